"""How many runs a task should take on this processor: time of one training within a sweep, by the task's size.

    python benchmarks/stage2_stacks.py [--epochs 2] [--turns 4]

The data of stage2_sweep.py, twelve settings of κ and λ_MAI, as many seeds as there are cores. All sizes are measured in
turns within one run; a size's figure is its median as a ratio to that of `tasks.RUNS`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from unittest.mock import patch

from stage2_sweep import CORES, swept, write_corpus
from stage2_workers import timed

from amber2_train import tasks
from amber2_train.options import Grid, TrainOptions
from amber2_train.request import prepared

GRID = {"lambda_mai": (0.3, 0.5, 0.7), "kappa": (1.0, 2.0, 4.0, 8.0)}
SETTINGS = 12
SIZES = tuple(size for size in range(1, SETTINGS + 1) if SETTINGS % size == 0)


def seconds_of(size: int, cache: Path, epochs: int) -> float:
    """Of one training, in tasks of that size."""
    grid = Grid(systems=("amber2",), axes=GRID, seeds=CORES, epochs=epochs)
    request = prepared(cache, TrainOptions(grid=grid, device="cpu"))
    with patch.dict(tasks.RUNS, cpu=size):
        return timed(lambda: swept(request)) / (SETTINGS * CORES)


def main() -> None:
    parser = argparse.ArgumentParser(description="How many runs a task should take.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=4)
    options = parser.parse_args()
    standing = tasks.RUNS["cpu"]
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    with tempfile.TemporaryDirectory() as name:
        cache = write_corpus(Path(name))
        seconds_of(standing, cache, 1)  # libraries set themselves up
        for _ in range(options.turns):
            for size, some in times.items():
                some.append(seconds_of(size, cache, options.epochs))
    medians = {size: statistics.median(some) for size, some in times.items()}
    of_standing = statistics.median(min(times.items(), key=lambda pair: abs(pair[0] - standing))[1])
    print(f"one training of {options.epochs} epochs, {CORES} cores, medians of {options.turns} turns")
    for size, seconds in medians.items():
        print(f"tasks of {size:2} runs: {seconds:.2f} s, {seconds / of_standing:.2f} x")


if __name__ == "__main__":
    main()
