"""What a sweep spends beside training, and how soon it begins.

    python benchmarks/stage2_shares.py [--epochs 30] [--turns 3]

One fold of the grid of stage2_sweep.py and of the baseline as a user gets it, from a cache on disk to a complete run
folder: the share of processor time that goes into dev after every epoch (the best weights kept with it), into scoring
(all metrics), selection and writing, by timing the real calls from outside, beside what the products of the dev rows
alone need. Then the time from `train-heads` typed to the end of the first optimizer step, files being in the disk's
cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from stage2_sweep import CORES, GRID, SIZE, WIDTH, best, corpus, write_corpus

import amber2_train.fit
import amber2_train.jobs
import amber2_train.run
import amber2_train.sweep
from amber2_train.interrupts import in_quiet_thread
from amber2_train.lanes import in_lanes
from amber2_train.parts import Parts
from amber2_train.precision import Precision
from amber2_train.presets import Grid
from amber2_train.request import Request
from amber2_train.stacked.best_epochs import BestHeads
from amber2_train.stacked.kernels import low_factors

# what is not training: group → the calls
BESIDE_TRAINING: dict[str, tuple[tuple[Any, str], ...]] = {
    "dev after every epoch": ((amber2_train.fit, "dev_js"), (BestHeads, "keep"), (BestHeads, "restore")),
    "scoring": (
        (amber2_train.jobs, "scores_of"),
        (amber2_train.sweep, "_test"),
        (amber2_train.sweep, "_predictions"),
    ),
    "selection": (
        (amber2_train.jobs, "best_settings"),
        (amber2_train.sweep, "compete"),
        (amber2_train.sweep, "check_chosen"),
    ),
    "writing": ((Parts, "write"), (amber2_train.run, "_write")),
}
# train-heads, but for its end: the clock is read after the first step, and the process is gone
UNTIL_FIRST_STEP = """
import os, threading, time
from amber2_train.stacked.optimizer import StackedAdamW
step, one_of_the_lanes = StackedAdamW.step, threading.Lock()
def first(optimizer):
    step(optimizer)
    one_of_the_lanes.acquire()
    print(time.time(), flush=True)
    os._exit(0)
StackedAdamW.step = first
from amber2_train.cli import train_heads
train_heads()
"""


class Stopwatch:
    """Seconds of processor time spent in calls, by group; calls within a timed call are the outer one's."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._of_thread = threading.local()  # a lane has one thread
        self._lock = threading.Lock()

    @contextmanager
    def watching(self, calls: dict[str, tuple[tuple[Any, str], ...]]) -> Iterator[None]:
        with ExitStack() as stack:
            for group, some in calls.items():
                for owner, name in some:
                    stack.enter_context(patch.object(owner, name, self._timed(getattr(owner, name), group)))
            yield

    def _timed(self, call: Callable[..., Any], group: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            if getattr(self._of_thread, "running", False):
                return call(*args, **options)
            self._of_thread.running = True
            began = time.thread_time()
            try:
                return call(*args, **options)
            finally:
                self._of_thread.running = False
                with self._lock:
                    self.seconds[group] += time.thread_time() - began

        return wrapped


def print_shares(cache: Path, folder: Path, epochs: int) -> None:
    """Of the call behind `train-heads`: one fold, the grid above and the baseline."""
    grid = Grid(axes=GRID, seeds=CORES, epochs=epochs)
    _, fold = corpus(cache)
    precisions: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": low_factors(torch.empty(0))}
    for precision, dtype in precisions.items():
        request = Request(grid, precision=precision, device="cpu")
        watch = Stopwatch()
        with watch.watching(BESIDE_TRAINING):
            began = time.process_time()
            amber2_train.run.train(cache, folder / precision, request)
            whole = time.process_time() - began
        parts = ", ".join(f"{group} {watch.seconds[group] / whole:.1%}" for group in BESIDE_TRAINING)
        share = sum(watch.seconds.values()) / whole
        products = 2 * epochs * CORES * _seconds_of_dev(len(fold.dev), len(grid.settings()), dtype)
        print(f"a sweep, {precision}: {share:.1%} of {whole:.1f} s on processors is not training ({parts}); "
              f"the products of dev after every epoch alone need {products / whole:.1%}")  # fmt: skip


@in_quiet_thread
def _seconds_of_dev(rows: int, settings: int, dtype: torch.dtype) -> float:
    """Of the wide product of one modality over the dev rows, in one of the lanes."""

    def product(_: int) -> float:
        x, weight = torch.randn(rows, SIZE, dtype=dtype), torch.randn(settings * 3 * WIDTH, SIZE, dtype=dtype)
        return best(partial(torch.mm, x, weight.T))

    return statistics.mean(in_lanes(product, range(CORES), CORES))


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
