"""What the benchmarks of stage 2 let worker processes do, which import it by name: a user's loop, the floor, clocks."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.utils.data import DataLoader, TensorDataset

from amber2_core.devices import set_arithmetic
from amber2_train import tasks, worker
from amber2_train.folds import make_folds
from amber2_train.stacked import loop, parameters, system
from amber2_train.training_data import read_material

SIZE, WIDTH, CLASSES, BATCH = 768, 256, 4, 128
# what is not training, in a worker: group → the calls
BESIDE_TRAINING: dict[str, tuple[tuple[Any, str], ...]] = {
    "dev after every epoch": (
        (loop, "dev_js"),
        (parameters.BestHeads, "keep"),
        (parameters.BestHeads, "restore"),
    ),
    "scoring": ((worker, "scores"), (system.FittedHeads, "probs")),
    "writing": ((tasks.FinishedTasks, "write"),),
}


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


def seconds_of_users_loop(cache: Path, epochs: int, threads: int) -> float:
    """Of one training of one setting on the first fold, with the data in memory."""
    torch.set_num_threads(threads)
    material = read_material(cache, {"audio": None, "text": None}, {})
    fold, data = make_folds(material.cache.defaults.folds, material.data)[0], material.data
    vectors = [data.inputs[name].values[: len(data.inputs[name].inputs)][data.rows] for name in ("audio", "text")]
    arrays = (*vectors, data.targets)
    train, dev = (TensorDataset(*(torch.from_numpy(x[rows]) for x in arrays)) for rows in (fold.train, fold.dev))
    return timed(lambda: _users_loop(train, dev, epochs))


def _users_loop(train: TensorDataset, dev: TensorDataset, epochs: int) -> None:
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


def floor_setup(threads: int, dtype: torch.dtype) -> torch.dtype:
    set_arithmetic(torch.device("cpu"), tf32=False, threads=threads)
    return dtype


def floor_of(dtype: torch.dtype, runs: int) -> tuple[float, float]:
    """Seconds of one modality's wide products, and of AdamW on its weights, of one step of so many runs."""
    weight = torch.randn(runs * 3 * WIDTH, SIZE)
    moments = [torch.zeros_like(weight) for _ in range(3)]
    step = torch.zeros(())
    x, gradients = torch.randn(BATCH, SIZE, dtype=dtype), torch.randn(runs * 3, BATCH, WIDTH, dtype=dtype)
    layers, held = weight.to(dtype).view(-1, WIDTH, SIZE), torch.empty(runs * 3, WIDTH, SIZE, dtype=dtype)

    def products() -> None:
        for layer, gradient, place in zip(layers, gradients, held, strict=True):
            torch.mm(x, layer.T)
            torch.mm(gradient.T, x, out=place)

    def update() -> None:
        adamw([weight], moments[:1], moments[1:2], moments[2:], [], [step], fused=True, amsgrad=False, beta1=0.9,
              beta2=0.999, lr=3e-4, weight_decay=1e-2, eps=1e-8, maximize=False)  # fmt: skip

    return best(products), best(update)


def product_of_dev(dtype: torch.dtype, size: tuple[int, int]) -> float:
    """Seconds of the wide product of one modality over the dev rows, for (rows, runs)."""
    rows, runs = size
    x, weight = torch.randn(rows, SIZE, dtype=dtype), torch.randn(runs * 3 * WIDTH, SIZE, dtype=dtype)
    return best(lambda: torch.mm(x, weight.T))


class Stopwatch:
    """Seconds of processor time spent in calls, by group; calls within a timed call are the outer one's."""

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
            self._running, began = True, time.process_time()
            try:
                return call(*args, **options)
            finally:
                self._running = False
                self.seconds[group] += time.process_time() - began

        return wrapped


def watched_training(made: worker.Worker, task: tasks.Task) -> tuple[Sequence[tasks.Run], dict[str, float], float]:
    """`worker.train` with the seconds that are not training, by group, and those in all."""
    watch, began = Stopwatch(), time.process_time()
    with watch.watching(BESIDE_TRAINING):
        runs = worker.train(made, task)
    return runs, dict(watch.seconds), time.process_time() - began


def best(what: Callable[[], object], repeats: int = 12) -> float:
    return min(timed(what) for _ in range(repeats))


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began
