"""What a sweep spends beside training, and how soon it begins.

    python benchmarks/stage2_shares.py [--epochs 30] [--turns 3]

One fold of the grid of stage2_sweep.py and of the baseline as a user gets it, from a cache on disk to a complete run
folder: the share of processor time that goes into dev after every epoch (the best weights kept with it), into scoring
(all metrics), selection and writing, by timing the real calls from outside, in workers and in the process that plans,
beside what the products of the dev rows alone need. Then the time from `train-heads` typed to the end of the first
optimizer step, files being in the disk's cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from stage2_sweep import CORES, GRID, write_corpus
from stage2_workers import Stopwatch, floor_setup, product_of_dev, watched_training

from amber2_core import engine
from amber2_train import run, worker
from amber2_train.options import Grid, TrainOptions
from amber2_train.request import prepared
from amber2_train.selection import Selection
from amber2_train.stacked.kernels import low_factors
from amber2_train.systems.system import Precision

GROUPS = ("dev after every epoch", "scoring", "selection", "writing")
# the same as `stage2_workers.BESIDE_TRAINING` in the process that plans
IN_THE_CONDUCTOR: dict[str, tuple[tuple[Any, str], ...]] = {
    "scoring": ((run, "results_of"),),
    "selection": ((Selection, "add"),),
    "writing": ((run, "_write"),),
}
# train-heads, but for its end: a worker tells the time of its first step, and the sweep is over
UNTIL_FIRST_STEP = """
from amber2_core import engine
deal = engine.deal
def until_first_step(function, tasks, **how):
    if function.__module__ == "amber2_train.worker":
        from first_step import until_first_step
        how = {**how, "setup": until_first_step}
    return deal(function, tasks, **how)
engine.deal = until_first_step
from amber2_train.cli import train_heads
train_heads()
"""


def print_shares(cache: Path, folder: Path, epochs: int) -> None:
    """Of the call behind `train-heads`: one fold, the grid and the baseline."""
    grid = Grid(axes=GRID, seeds=CORES, epochs=epochs)
    precisions: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": low_factors(torch.empty(0))}
    for precision, dtype in precisions.items():
        options, in_workers = TrainOptions(grid=grid, precision=precision, device="cpu"), Counter[str]()
        deal, watch = engine.deal, Stopwatch()

        def watched(
            function: Any, tasks: Any, deal: Any = deal, in_workers: Any = in_workers, **how: Any
        ) -> Generator[Any]:
            if function is not worker.train:
                yield from deal(function, tasks, **how)
                return
            for task, (runs, seconds, whole) in deal(watched_training, tasks, **how):
                in_workers.update(seconds)
                in_workers["whole"] += whole
                yield task, runs

        with patch.object(engine, "deal", watched), watch.watching(IN_THE_CONDUCTOR):
            began = time.process_time()
            run.train(cache, folder / precision, options)
            whole = time.process_time() - began + in_workers["whole"]
        parts = {group: (watch.seconds[group] + in_workers[group]) / whole for group in GROUPS}
        request = prepared(cache, options)
        products = 2 * epochs * _seconds_of_dev(len(request.folds[0].dev), len(request.settings) * CORES, dtype)
        shown = ", ".join(f"{group} {share:.1%}" for group, share in parts.items())
        print(f"a sweep, {precision}: {sum(parts.values()):.1%} of {whole:.1f} s on processors is not training "
              f"({shown}); the products of dev after every epoch alone need {products / whole:.1%}")  # fmt: skip


def _seconds_of_dev(rows: int, runs: int, dtype: torch.dtype) -> float:
    """Of the wide product of one modality of so many runs over the dev rows, while all workers do the same."""
    some = 6
    found = engine.deal(
        product_of_dev, [(rows, some)] * CORES, setup=floor_setup, workers=[1] * CORES, shared=dtype, queued=1
    )
    return statistics.mean(seconds for _, seconds in found) * runs / some


def print_first_step(cache: Path, folder: Path, turns: int) -> None:
    command = [sys.executable, "-c", UNTIL_FIRST_STEP, "--device", "cpu", "--quiet", "--cache", str(cache)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    seconds = []
    for turn in range(turns + 1):
        began = time.time()
        done = subprocess.run(
            [*command, "--output", str(folder / f"{turn}")], capture_output=True, text=True, env=environment
        )
        if "the first step is done" not in done.stderr:
            sys.exit(f"train-heads failed: {done.stderr}")
        seconds.append(min(map(float, done.stdout.split())) - began)
    line = ", ".join(f"{one:.2f}" for one in seconds[1:])
    print(f"from train-heads typed to its first optimizer step: {statistics.median(seconds[1:]):.2f} s ({line})")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a sweep spends beside training.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = write_corpus(folder)
        print_shares(cache, folder, options.epochs)
        print_first_step(cache, folder, options.turns)


if __name__ == "__main__":
    main()
