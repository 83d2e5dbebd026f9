"""Time of one training within a sweep, as a ratio to the loop that a user writes, and to what this machine can do.

    python benchmarks/stage2_sweep.py [--epochs 30] [--turns 3]
    python benchmarks/stage2_sweep.py --device cuda     stage2_gpu.py, where there is a GPU

IEMOCAP's protocol: 3,319 train and 1,106 dev rows of 768 + 768 features, the default gated unit, batch 128, dev scored
after every epoch. The sweep is nine settings of κ and λ_MAI under as many seeds as there are cores, with selection and
the scores of dev and test, in the workers that `train-heads` starts, and with their start. All is measured in turns
within one run, and the ratios are of the medians; every contestant has processes of its own. The user's loop is one
model at a time: DataLoader over tensors in memory, modules, plain AdamW.
The floor is the sweep's products at the rate of its library here, plus AdamW's pass over memory, in all workers at
once. Where the processor has no bfloat16 products, the sweep in bf16 rounds and multiplies in single precision, as its
floor does.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import stage2_gpu
import torch
from made_up import write_made_up_cache
from stage2_workers import BATCH, SIZE, floor_of, floor_setup, seconds_of_users_loop, timed

from amber2_core import engine
from amber2_train import worker
from amber2_train.options import Grid, TrainOptions
from amber2_train.request import Request, cores, prepared
from amber2_train.results import Results, results_of
from amber2_train.selection import Selection
from amber2_train.stacked.kernels import low_factors
from amber2_train.systems.system import Precision
from amber2_train.tasks import FinishedTasks

COUNT = 5531
EMOTIONS = ("neutral", "happy", "angry", "sad")
GRID = {"lambda_mai": (0.3, 0.5, 0.7), "kappa": (2.0, 4.0, 8.0)}
CORES = cores()  # so many seeds, and workers
SETTINGS = math.prod(map(len, GRID.values()))


def write_corpus(folder: Path) -> Path:
    """A cache of IEMOCAP's size, of one fold."""
    sizes = {"audio": SIZE, "text": SIZE}
    return write_made_up_cache(folder / "cache.h5", COUNT, sizes=sizes, emotions=EMOTIONS, raters=3)


def request_of(cache: Path, epochs: int, precision: Precision = "fp32") -> Request:
    grid = Grid(systems=("amber2",), axes=GRID, seeds=CORES, epochs=epochs)
    return prepared(cache, TrainOptions(grid=grid, precision=precision, device="cpu"))


def swept(request: Request) -> Results:
    """Training, selection and scores of all settings under all seeds, as `train-heads` has them done."""
    with tempfile.TemporaryDirectory() as folder:
        finished = FinishedTasks(Path(folder))
        selection = Selection(request.settings, request.options.grid.seeds, finished)
        sweep, workers = request.sweep(finished.folder), request.workers
        for _, runs in engine.deal(
            worker.train, request.tasks, setup=worker.Worker, workers=workers, shared=sweep, queued=1
        ):
            for run in runs:
                selection.add(run)
        return results_of(selection, request.material.data, request.folds, request.options.grid.columns)


def seconds_of_sweep(cache: Path, epochs: int, precision: Precision) -> float:
    """Of one training within a sweep."""
    request = request_of(cache, epochs, precision)
    return timed(lambda: swept(request)) / (SETTINGS * CORES)


CONTESTANTS: dict[str, Callable[[Path, int], float]] = {
    "the user's loop": lambda cache, epochs: engine.call(seconds_of_users_loop, cache, epochs, CORES),
    "sweep, fp32": partial(seconds_of_sweep, precision="fp32"),
    "sweep, bf16": partial(seconds_of_sweep, precision="bf16"),
}


def floor(request: Request, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of the wide products, and of AdamW's memory traffic, of one training, while all workers do the same."""
    runs = max(len(task.settings) * len(task.seeds) for task in request.tasks)
    in_all: Sequence[tuple[float, float]] = [
        found
        for _, found in engine.deal(
            floor_of, [runs] * CORES, setup=floor_setup, workers=[1] * CORES, shared=dtype, queued=1
        )
    ]
    product, optimizer = (statistics.mean(some) / (runs * CORES) for some in zip(*in_all, strict=True))
    (fold,), epochs = request.folds, request.options.grid.epochs
    steps = 2 * epochs * math.ceil(len(fold.train) / BATCH)  # two modalities
    scored = 2 * epochs * len(fold.dev) / BATCH / 2  # forward alone
    return (steps + scored) * product, steps * optimizer


def print_ratios(cache: Path, epochs: int, turns: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(turns):
        for name, seconds_of in CONTESTANTS.items():
            times[name].append(seconds_of(cache, epochs))
    request = request_of(cache, epochs)
    dtypes = {"sweep, fp32": torch.float32, "sweep, bf16": low_factors(torch.empty(0))}
    floors = {name: floor(request, dtype) for name, dtype in dtypes.items()}
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
