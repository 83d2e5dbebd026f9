"""Time of one training within a sweep, as a ratio to the loop that a user writes, and to what this machine can do.

    python benchmarks/stage2_sweep.py [--epochs 30] [--turns 3]
    python benchmarks/stage2_sweep.py --device cuda     stage2_gpu.py, where there is a GPU

IEMOCAP's protocol: 3,319 train and 1,106 dev rows of 768 + 768 features, the default gated unit, batch 128, dev scored
after every epoch; nine settings of κ and λ_MAI train together. All is measured in turns within one run, and the ratios
are of the medians; every contestant has a process of its own. The user's loop is one model at a time: DataLoader over
tensors in memory, modules, plain AdamW.
The floor is the sweep's products at the rate of its library here, plus AdamW's pass over memory.

Then one fold of the same grid as a user gets it, from a cache on disk to a complete run folder: the share of dev after
every epoch (the best weights kept with it), of scoring (all metrics), of selection and of writing, by timing the real
calls from outside, beside what the products of the dev rows alone need; and the time from `train-heads` typed to the
end of the first optimizer step, files being in the disk's cache.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache as cache_result
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import stage2_gpu
import torch
from made_up import write_made_up_cache
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.utils.data import DataLoader, TensorDataset

import amber2_train.fit
import amber2_train.run
import amber2_train.sweep
from amber2_core.cache import read_cache
from amber2_core.label_spaces import policy_with
from amber2_train.best import BestHeads
from amber2_train.fit import fit
from amber2_train.folds import make_folds
from amber2_train.grid import expand
from amber2_train.interrupts import in_quiet_thread
from amber2_train.parts import Parts
from amber2_train.presets import Grid
from amber2_train.products import Precision
from amber2_train.request import Request
from amber2_train.rows import FoldRows, fold_rows
from amber2_train.targets import training_data

COUNT, SIZE, WIDTH, CLASSES, BATCH = 5531, 768, 256, 4, 128
EMOTIONS = ("neutral", "happy", "angry", "sad")
GRID = {"lambda_mai": (0.3, 0.5, 0.7), "kappa": (2.0, 4.0, 8.0)}
# what is not training: group → the calls
BESIDE_TRAINING: dict[str, tuple[tuple[Any, str], ...]] = {
    "dev after every epoch": ((amber2_train.fit, "dev_js"), (BestHeads, "keep"), (BestHeads, "restore")),
    "scoring": (
        (amber2_train.sweep, "scores_of"),
        (amber2_train.sweep, "_test"),
        (amber2_train.sweep, "_predictions"),
    ),
    "selection": (
        (amber2_train.sweep, "best_settings"),
        (amber2_train.sweep, "compete"),
        (amber2_train.sweep, "check_chosen"),
    ),
    "writing": ((Parts, "write"), (amber2_train.run, "_write")),
}
# train-heads, but for its end: the clock is read after the first step, and the process is gone
UNTIL_FIRST_STEP = """
import os, time
from amber2_train.optimizer import StackedAdamW
step = StackedAdamW.step
def first(optimizer):
    step(optimizer)
    print(time.time(), flush=True)
    os._exit(0)
StackedAdamW.step = first
from amber2_train.cli import train_heads
train_heads()
"""


class UsersHeads(nn.Module):
    """Two heads and a gated one, as one writes them."""

    def __init__(self) -> None:
        super().__init__()

        def head(size: int) -> nn.Module:
            return nn.Sequential(nn.Linear(size, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))

        self.audio, self.text, self.fusion = head(SIZE), head(SIZE), head(WIDTH)
        self.w_audio, self.w_text = (nn.Linear(SIZE, WIDTH, bias=False) for _ in range(2))
        self.gate = nn.Linear(2 * SIZE, WIDTH, bias=False)

    def forward(self, audio: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = torch.sigmoid(self.gate(torch.cat([audio, text], -1)))
        fused = z * torch.tanh(self.w_audio(audio)) + (1 - z) * torch.tanh(self.w_text(text))
        return self.audio(audio).softmax(-1), self.text(text).softmax(-1), self.fusion(fused).softmax(-1)


def users_js(p: Tensor, q: Tensor) -> Tensor:
    m = ((p + q) / 2).clamp_min(1e-12).log()
    kl_p = torch.xlogy(p, p) - p * m
    kl_q = q * (q.clamp_min(1e-12).log() - m)
    return (kl_p + kl_q).sum(-1) / (2 * math.log(2))


def users_loop(data: FoldRows, epochs: int) -> None:
    """One training of one setting."""
    part = {name: (rows.features["audio"][rows.index], rows.features["text"][rows.index], rows.targets)
            for name, rows in (("train", data.train), ("dev", data.dev))}  # fmt: skip
    train = DataLoader(TensorDataset(*part["train"]), batch_size=BATCH, shuffle=True)
    dev = DataLoader(TensorDataset(*part["dev"]), batch_size=BATCH)
    model = UsersHeads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=1e-2)
    for _ in range(epochs):
        for audio, text, y in train:
            p_a, p_t, s = model(audio, text)
            u = torch.softmax(-4 * torch.stack([users_js(p_a, y), users_js(p_t, y)]).detach(), dim=0)
            loss = (users_js(y, s) + 0.5 * (u[0] * users_js(s, p_a) + u[1] * users_js(s, p_t))).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            torch.cat([users_js(y, model(audio, text)[2]) for audio, text, y in dev]).mean()


@cache_result
def first_fold(cache: Path) -> FoldRows:
    contents = read_cache(cache)
    data = training_data(contents, policy_with(contents.defaults, {}))
    return fold_rows(data, make_folds(contents.defaults.folds, data)[0])


@in_quiet_thread
def sweep_loop(data: FoldRows, epochs: int, precision: Precision) -> None:
    """One training of all settings, as `train-heads` runs it."""
    fit(data, expand(["amber2"], GRID), seeds=[0], epochs=epochs, precision=precision)


CONTESTANTS: dict[str, Callable[[FoldRows, int], None]] = {
    "the user's loop": users_loop,
    "sweep, fp32": partial(sweep_loop, precision="fp32"),
    "sweep, bf16": partial(sweep_loop, precision="bf16"),
}
SETTINGS = math.prod(map(len, GRID.values()))


def seconds_of(name: str, cache: Path, epochs: int) -> float:
    """Of one training by a contestant."""
    data = first_fold(cache)
    return timed(lambda: CONTESTANTS[name](data, epochs)) / (1 if name == "the user's loop" else SETTINGS)


@in_quiet_thread
def floor(cache: Path, epochs: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of the wide products, and of AdamW's memory traffic, of one stack of settings."""
    data = first_fold(cache)
    weight = torch.randn(SETTINGS * 3 * WIDTH, SIZE)
    moments = [torch.zeros_like(weight) for _ in range(3)]
    step = torch.zeros(())
    x, gradient = torch.randn(BATCH, SIZE, dtype=dtype), torch.randn(BATCH, len(weight), dtype=dtype)
    factors, held = weight.to(dtype), torch.empty(len(weight), SIZE, dtype=dtype)

    def products() -> None:
        torch.mm(x, factors.T)
        torch.mm(gradient.T, x, out=held)

    def optimizer() -> None:
        adamw([weight], moments[:1], moments[1:2], moments[2:], [], [step], fused=True, amsgrad=False, beta1=0.9,
              beta2=0.999, lr=3e-4, weight_decay=1e-2, eps=1e-8, maximize=False)  # fmt: skip

    steps = 2 * epochs * math.ceil(len(data.train) / BATCH)  # two modalities
    scored = 2 * epochs * len(data.dev) / BATCH / 2  # forward alone
    return (steps + scored) * best(products), steps * best(optimizer)


def best(what: Callable[[], object], repeats: int = 12) -> float:
    return min(timed(what) for _ in range(repeats))


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


class Stopwatch:
    """Seconds spent in calls, by group; calls within a timed call are the outer one's."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._running = False

    @contextmanager
    def watching(self, calls: dict[str, tuple[tuple[Any, str], ...]]) -> Iterator[None]:
        with ExitStack() as stack:
            for group, some in calls.items():
                for owner, name in some:
                    stack.enter_context(patch.object(owner, name, self._timed(getattr(owner, name), group)))
            yield

    def _timed(self, call: Callable[..., Any], group: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            if self._running:
                return call(*args, **options)
            self._running = True
            began = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self._running = False
                self.seconds[group] += time.perf_counter() - began

        return wrapped


def fresh_process() -> ProcessPoolExecutor:
    """A process of its own: what a contestant leaves behind, such as idle threads, would slow down the others."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def print_ratios(cache: Path, epochs: int, turns: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    floors: dict[str, tuple[float, float]] = {}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(fresh_process()) for name in CONTESTANTS}
        for _ in range(turns):
            for name, process in processes.items():
                times[name].append(process.submit(seconds_of, name, cache, epochs).result())
        for name, dtype in (("sweep, fp32", torch.float32), ("sweep, bf16", torch.bfloat16)):
            floors[name] = processes[name].submit(floor, cache, epochs, dtype).result()
    median = {name: statistics.median(some) for name, some in times.items()}
    users = median["the user's loop"]
    print(f"one training of {epochs} epochs, {torch.get_num_threads()} threads, medians of {turns} turns")
    for name, seconds in median.items():
        line = f"{name:16} {seconds:6.2f} s   {users / seconds:4.1f} x the user's speed"
        if name in floors:
            products, optimizer = (part / SETTINGS for part in floors[name])
            line += f"   floor {products + optimizer:.2f} s (products {products:.2f}, AdamW {optimizer:.2f})"
            line += f", {(products + optimizer) / seconds:.0%} of it reached"
        print(line)


def print_shares(cache: Path, folder: Path, epochs: int) -> None:
    """Of the call behind `train-heads`: one fold, one seed, the grid above and the baseline."""
    grid = Grid(axes=GRID, seeds=1, epochs=epochs)
    precisions: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for precision, dtype in precisions.items():
        request = Request(grid, precision=precision, device="cpu")
        watch = Stopwatch()
        with watch.watching(BESIDE_TRAINING):
            whole = timed(partial(amber2_train.run.train, cache, folder / precision, request))
        parts = ", ".join(f"{group} {watch.seconds[group] / whole:.1%}" for group in BESIDE_TRAINING)
        share = sum(watch.seconds.values()) / whole
        x = torch.randn(COUNT // 5, SIZE, dtype=dtype)
        weight = torch.randn(len(grid.settings()) * 3 * WIDTH, SIZE, dtype=dtype)
        products = 2 * epochs * best(partial(torch.mm, x, weight.T))
        print(f"a sweep, {precision}: {share:.1%} of {whole:.1f} s is not training ({parts}); "
              f"the products of dev after every epoch alone need {products / whole:.1%}")  # fmt: skip


def print_first_step(cache: Path, folder: Path, turns: int) -> None:
    command = [sys.executable, "-c", UNTIL_FIRST_STEP, "--device", "cpu", "--quiet", "--cache", str(cache)]
    seconds = []
    for turn in range(turns + 1):
        began = time.time()
        done = subprocess.run([*command, "--output", str(folder / f"{turn}")], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"train-heads failed: {done.stderr}")
        seconds.append(float(done.stdout.split()[-1]) - began)
    line = ", ".join(f"{one:.2f}" for one in seconds[1:])
    print(f"from train-heads typed to its first optimizer step: {statistics.median(seconds[1:]):.2f} s ({line})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of one training within a sweep.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    if options.device == "cuda":
        stage2_gpu.measure()
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"audio": SIZE, "text": SIZE}
        cache = write_made_up_cache(folder / "cache.h5", COUNT, sizes=sizes, emotions=EMOTIONS, raters=3)
        print_ratios(cache, options.epochs, options.turns)
        with fresh_process() as process:
            process.submit(print_shares, cache, folder, options.epochs).result()
        print_first_step(cache, folder, options.turns)


if __name__ == "__main__":
    main()
