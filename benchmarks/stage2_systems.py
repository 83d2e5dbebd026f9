"""Time of one training of every gradient system within a grid, as a ratio to a plain loop of that system.

    python benchmarks/stage2_systems.py [--epochs 30] [--turns 3] [--systems amber2,sailer]

The corpus is that of stage2_sweep.py. The grid is nine settings, three learning rates by three weight decays, under as
many seeds as there are cores, with selection and the scores of dev and test, in the workers that `train-heads` starts,
and with their start. The plain loop (plain_systems.py) trains the same model, one at a time, in a process of its own.
Both are measured in turns within one run, and the ratios are of the medians. Settings of different learning rates or
weight decays share no stack: what is gained is not the reading of rows once for all settings, as it is in the grid of
stage2_sweep.py.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path

from plain_systems import SYSTEMS, parameters_of, seconds_of_plain_loop
from stage2_sweep import CORES, swept, write_corpus
from stage2_workers import CLASSES, SIZE, timed

from amber2_core import engine
from amber2_core.heads import Architecture
from amber2_train.grid import own_axes
from amber2_train.options import Grid, TrainOptions
from amber2_train.request import prepared
from amber2_train.systems.system import system_of

GRID = {"lr": (1e-4, 3e-4, 1e-3), "weight_decay": (1e-4, 1e-3, 1e-2)}
RUNS = math.prod(map(len, GRID.values())) * CORES


def seconds_in_grid(name: str, cache: Path, epochs: int) -> float:
    """Of one training within the grid."""
    grid = Grid(systems=(name,), axes=GRID, seeds=CORES, epochs=epochs)
    request = prepared(cache, TrainOptions(grid=grid, device="cpu"))
    return timed(lambda: swept(request)) / RUNS


def check_sizes(name: str) -> None:
    """Both loops train models of as many numbers."""
    default = {axis: field.default for axis, field in own_axes(system_of(name)).items()}
    inputs = (("audio", SIZE), ("text", SIZE))
    shape = Architecture(inputs, CLASSES, default["fusion"], pooling=default["input_pooling"])
    ours = sum(math.prod(size) for size in shape.shapes.values())
    if ours != parameters_of(name):
        raise SystemExit(f"{name} has {ours:,} parameters, and its plain loop {parameters_of(name):,}")


def print_ratios(cache: Path, systems: list[str], epochs: int, turns: int) -> None:
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(turns):
        for name in systems:
            plain = engine.call(seconds_of_plain_loop, name, cache, epochs, CORES)
            times.setdefault((name, "plain"), []).append(plain)
            times.setdefault((name, "grid"), []).append(seconds_in_grid(name, cache, epochs))
    print(f"one training of {epochs} epochs, of {RUNS} in the grid, {CORES} cores, medians of {turns} turns")
    for name in systems:
        plain, grid = (statistics.median(times[name, kind]) for kind in ("plain", "grid"))
        ratios = [p / g for p, g in zip(times[name, "plain"], times[name, "grid"], strict=True)]
        spread = f"{min(ratios):.1f}-{max(ratios):.1f}"
        print(f"{name:10} plain {plain:7.2f} s   in the grid {grid:7.2f} s   {plain / grid:5.1f} x   ({spread})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of one training of every gradient system within a grid.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    options = parser.parse_args()
    systems = options.systems.split(",")
    for name in systems:
        check_sizes(name)
    with tempfile.TemporaryDirectory() as folder:
        print_ratios(write_corpus(Path(folder)), systems, options.epochs, options.turns)


if __name__ == "__main__":
    main()
