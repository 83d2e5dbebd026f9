"""Time of one training within a sweep, as a ratio to the loop that a user writes, and to what this machine can do.

    python benchmarks/stage2_sweep.py [--epochs 30] [--turns 3]
    python benchmarks/stage2_sweep.py --device cuda     stage2_gpu.py, where there is a GPU

IEMOCAP's protocol: 3,319 train and 1,106 dev rows of 768 + 768 features, the default gated unit, batch 128, dev scored
after every epoch. The sweep is nine settings of κ and λ_MAI under as many seeds as there are cores, with selection and
the scores of dev and test. All is measured in turns within one run, and the ratios are of the medians; every contestant
has a process of its own. The user's loop is one model at a time: DataLoader over tensors in memory, modules, plain
AdamW.
The floor is the sweep's products at the rate of its library here, plus AdamW's pass over memory, in all lanes at once.
Where the processor has no bfloat16 products, the sweep in bf16 rounds and multiplies in single precision, as its floor
does.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache as cache_result
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import stage2_gpu
import torch
from made_up import write_made_up_cache
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.utils.data import DataLoader, TensorDataset

from amber2_core.cache import read_cache
from amber2_core.label_spaces import policy_with
from amber2_train.folds import Fold, make_folds
from amber2_train.grid import expand
from amber2_train.interrupts import in_quiet_thread
from amber2_train.lanes import in_lanes
from amber2_train.precision import Precision
from amber2_train.stacked.kernels import low_factors
from amber2_train.sweep import sweep
from amber2_train.targets import TrainingData, training_data

COUNT, SIZE, WIDTH, CLASSES, BATCH = 5531, 768, 256, 4, 128
EMOTIONS = ("neutral", "happy", "angry", "sad")
GRID = {"lambda_mai": (0.3, 0.5, 0.7), "kappa": (2.0, 4.0, 8.0)}


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


def write_corpus(folder: Path) -> Path:
    """A cache of IEMOCAP's size."""
    sizes = {"audio": SIZE, "text": SIZE}
    return write_made_up_cache(folder / "cache.h5", COUNT, sizes=sizes, emotions=EMOTIONS, raters=3)


@cache_result
def corpus(cache: Path) -> tuple[TrainingData, Fold]:
    """The data, and the first fold."""
    contents = read_cache(cache)
    data = training_data(contents, policy_with(contents.defaults, {}))
    return data, make_folds(contents.defaults.folds, data)[0]


def users_loop(data: TrainingData, fold: Fold, epochs: int) -> None:
    """One training of one setting."""
    arrays = (data.features["audio"], data.features["text"], data.targets)
    train, dev = (TensorDataset(*(torch.from_numpy(x[rows]) for x in arrays)) for rows in (fold.train, fold.dev))
    model = UsersHeads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=1e-2)
    for _ in range(epochs):
        for audio, text, y in DataLoader(train, batch_size=BATCH, shuffle=True):
            p_a, p_t, s = model(audio, text)
            u = torch.softmax(-4 * torch.stack([users_js(p_a, y), users_js(p_t, y)]).detach(), dim=0)
            loss = (users_js(y, s) + 0.5 * (u[0] * users_js(s, p_a) + u[1] * users_js(s, p_t))).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            torch.cat(
                [users_js(y, model(audio, text)[2]) for audio, text, y in DataLoader(dev, batch_size=BATCH)]
            ).mean()


def sweep_of(data: TrainingData, fold: Fold, epochs: int, precision: Precision) -> None:
    """Training, selection and scores of all settings under all seeds, as `train-heads` runs it."""
    sweep(data, [fold], expand(["amber2"], GRID), seeds=CORES, epochs=epochs, precision=precision)


CONTESTANTS: dict[str, Callable[[TrainingData, Fold, int], None]] = {
    "the user's loop": users_loop,
    "sweep, fp32": partial(sweep_of, precision="fp32"),
    "sweep, bf16": partial(sweep_of, precision="bf16"),
}
CORES = torch.get_num_threads()  # so many seeds, and lanes
SETTINGS = math.prod(map(len, GRID.values()))


def seconds_of(name: str, cache: Path, epochs: int) -> float:
    """Of one training by a contestant."""
    data, fold = corpus(cache)
    return timed(lambda: CONTESTANTS[name](data, fold, epochs)) / (1 if name == "the user's loop" else SETTINGS * CORES)


@in_quiet_thread
def floor(cache: Path, epochs: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of the wide products, and of AdamW's memory traffic, of one training, while all lanes do the same."""
    _, fold = corpus(cache)
    in_all = list(in_lanes(partial(_floor_of_lane, dtype=dtype), range(CORES), CORES))
    product, optimizer = (statistics.mean(some) / (SETTINGS * CORES) for some in zip(*in_all, strict=True))
    steps = 2 * epochs * math.ceil(len(fold.train) / BATCH)  # two modalities
    scored = 2 * epochs * len(fold.dev) / BATCH / 2  # forward alone
    return (steps + scored) * product, steps * optimizer


def _floor_of_lane(_: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of one modality's wide products, and of AdamW on its weights, of one step of a stack."""
    weight = torch.randn(SETTINGS * 3 * WIDTH, SIZE)
    moments = [torch.zeros_like(weight) for _ in range(3)]
    step = torch.zeros(())
    x, gradients = torch.randn(BATCH, SIZE, dtype=dtype), torch.randn(SETTINGS * 3, BATCH, WIDTH, dtype=dtype)
    layers, held = weight.to(dtype).view(-1, WIDTH, SIZE), torch.empty(SETTINGS * 3, WIDTH, SIZE, dtype=dtype)

    def products() -> None:
        for layer, gradient, place in zip(layers, gradients, held, strict=True):
            torch.mm(x, layer.T)
            torch.mm(gradient.T, x, out=place)

    def optimizer() -> None:
        adamw([weight], moments[:1], moments[1:2], moments[2:], [], [step], fused=True, amsgrad=False, beta1=0.9,
              beta2=0.999, lr=3e-4, weight_decay=1e-2, eps=1e-8, maximize=False)  # fmt: skip

    return best(products), best(optimizer)


def best(what: Callable[[], object], repeats: int = 12) -> float:
    return min(timed(what) for _ in range(repeats))


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


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
        for name, dtype in (("sweep, fp32", torch.float32), ("sweep, bf16", low_factors(torch.empty(0)))):
            floors[name] = processes[name].submit(floor, cache, epochs, dtype).result()
    median = {name: statistics.median(some) for name, some in times.items()}
    users = median["the user's loop"]
    print(f"one training of {epochs} epochs, {CORES} cores, medians of {turns} turns")
    for name, seconds in median.items():
        line = f"{name:16} {seconds:6.2f} s   {users / seconds:4.1f} x the user's speed"
        if name in floors:
            products, optimizer = floors[name]
            line += f"   floor {products + optimizer:.2f} s (products {products:.2f}, AdamW {optimizer:.2f})"
            line += f", {(products + optimizer) / seconds:.0%} of it reached"
        print(line)


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
        cache = write_corpus(Path(name))
        print_ratios(cache, options.epochs, options.turns)


if __name__ == "__main__":
    main()
