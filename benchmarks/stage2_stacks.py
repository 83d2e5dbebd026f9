"""How many settings a stack should take on this processor: time of one training within a sweep, by the stack's size.

    python benchmarks/stage2_stacks.py [--epochs 2] [--turns 4]

The data of stage2_sweep.py, twelve settings of κ and λ_MAI, as many seeds as there are cores. All sizes are measured in
turns within one run; a size's figure is its median as a ratio to that of `jobs.STACKED_SETTINGS`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from unittest.mock import patch

from stage2_sweep import CORES, corpus, timed, write_corpus

from amber2_train import jobs
from amber2_train.grid import expand
from amber2_train.sweep import sweep

SETTINGS = expand(["amber2"], {"lambda_mai": (0.3, 0.5, 0.7), "kappa": (1.0, 2.0, 4.0, 8.0)})
SIZES = tuple(size for size in range(1, len(SETTINGS) + 1) if len(SETTINGS) % size == 0)


def seconds_of(size: int, cache: Path, epochs: int) -> float:
    """Of one training, in stacks of that size."""
    data, fold = corpus(cache)
    with patch.dict(jobs.STACKED_SETTINGS, cpu=size):
        whole = timed(lambda: sweep(data, [fold], SETTINGS, seeds=CORES, epochs=epochs))
    return whole / (len(SETTINGS) * CORES)


def main() -> None:
    parser = argparse.ArgumentParser(description="How many settings a stack should take.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=4)
    options = parser.parse_args()
    standing = jobs.STACKED_SETTINGS["cpu"]
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
        print(f"stacks of {size:2}: {seconds:.2f} s, {seconds / of_standing:.2f} x")


if __name__ == "__main__":
    main()
