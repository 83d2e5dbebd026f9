"""What a sweep would cost: data and a grid go in; runs, stacks, memory and an estimate of time come out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .fit import fit, new_stack
from .folds import Fold
from .grid import Setting
from .interrupts import in_quiet_thread
from .jobs import Sweep, lanes, seed_groups, stacks
from .lanes import in_lanes
from .memory import memory_for_features, memory_for_runs
from .precision import Precision, products_in, warn_of_precision
from .rows import FoldRows, Rows, fold_rows
from .stacked.cuda_graph import WARM_UP
from .streams import own_stream
from .targets import TrainingData

MEASURED_STEPS = 4
# Memory of a run, in sizes of its parameters. On a CPU: they, two moments, the best epoch's parameters, and gradients,
# though of one run at a time. On a GPU the steps recorded for full batches and for the last one keep what they compute,
# too: measured with heads of the default size and batches of 128.
COPIES = {"cpu": 5, "cuda": 10}


@dataclass(frozen=True)
class StackPlan:
    """One stack: settings of one shape that train together, on every fold."""

    settings: int
    seeds: int  # trained at the same time
    parameters: int  # of one run
    seconds: float  # of all folds and seeds


@dataclass(frozen=True)
class Plan:
    """A sweep before it is trained."""

    systems: dict[str, int]  # name → settings
    folds: int
    seeds: int
    epochs: int
    stacks: tuple[StackPlan, ...]
    at_once: int  # stacks, each under its seeds, that train at the same time
    copies: int  # of its parameters, for which a run that trains needs memory
    feature_bytes: int

    @property
    def runs(self) -> int:
        return sum(self.systems.values()) * self.folds * self.seeds

    @property
    def seconds(self) -> float:
        return sum(stack.seconds for stack in self.stacks)

    @property
    def bytes(self) -> int:
        """Of features and of the largest stacks that train at the same time, with their optimizers."""
        copies = [self.copies * stack.seeds * self.at_once + self.seeds for stack in self.stacks]
        largest = max(s.settings * s.parameters * n for s, n in zip(self.stacks, copies, strict=True))
        return self.feature_bytes + 4 * largest


@in_quiet_thread
def plan_sweep(
    data: TrainingData,
    folds: Sequence[Fold],
    settings: Sequence[Setting],
    *,
    seeds: int,
    epochs: int,
    precision: Precision = "fp32",
    device: str = "cpu",
) -> Plan:
    """Count the runs of a sweep, and train a few steps of every stack to tell how long it would take.

    Raises:
        SettingError: a GPU's memory is too small.
    """
    warn_of_precision(precision, device)
    with memory_for_features(len(data), device):
        rows = fold_rows(data, folds[0], labels={setting.labels for setting in settings}, device=device)
    at_once = lanes(Sweep(settings, seeds, epochs, device=device), len(folds))
    planned = []
    for some in stacks(settings, device):
        groups = seed_groups(seeds, device)
        with products_in(precision, device), memory_for_runs(len(some) * len(groups[0]), device):
            step, dev_row = _measured(rows, some, groups[0], precision, at_once)
        steps = sum(math.ceil(len(fold.train) / some[0].batch_size) for fold in folds)
        scored = sum(len(fold.dev) for fold in folds)
        parameters = sum(p[0, 0].numel() for p in new_stack(rows, some[:1], [0], torch.float32).parameters.values())
        seconds = len(groups) * epochs * (steps * step + scored * dev_row) / at_once
        planned.append(StackPlan(len(some), len(groups[0]), parameters, seconds))
    names = [setting.name for setting in settings]
    return Plan(
        systems={name: names.count(name) for name in dict.fromkeys(names)},
        folds=len(folds),
        seeds=seeds,
        epochs=epochs,
        stacks=tuple(planned),
        at_once=at_once,
        copies=COPIES[device.split(":")[0]],
        feature_bytes=sum(x.nbytes for x in data.features.values()),
    )


def _measured(
    rows: FoldRows, settings: Sequence[Setting], seeds: Sequence[int], precision: Precision, at_once: int
) -> tuple[float, float]:
    """Seconds of one step, and of scoring one dev row, of a stack, while as many train as will."""
    batch = min(settings[0].batch_size, len(rows.train))
    dev = len(rows.dev)

    def seconds(steps: int, scored: int) -> float:
        count = min(steps * batch, len(rows.train))
        short = replace(rows, train=_first(rows.train, count), dev=_first(rows.dev, scored))

        def train(_: int) -> None:
            with own_stream(rows.train.targets.device):
                fit(short, settings, seeds=seeds, epochs=1, precision=precision)

        began = time.perf_counter()
        list(in_lanes(train, range(at_once), at_once))
        return time.perf_counter() - began

    in_epoch = math.ceil(len(rows.train) / batch)
    # on CUDA the first steps warm up and record the one that all others play back
    first = max(1, min(1 if rows.train.targets.device.type == "cpu" else WARM_UP + 2, in_epoch - 1))
    more = max(1, min(MEASURED_STEPS, in_epoch - first))
    seconds(first, 1)
    start, longer = seconds(first, 1), seconds(first + more, 1)
    # more steps take longer, but for noise; then all of it is the steps'
    step = (longer - start) / more if longer > start else longer / (first + more)
    return step, max(seconds(first, dev) - start, 0.0) / dev


def _first(rows: Rows, count: int) -> Rows:
    return replace(rows, index=rows.index[:count], targets=rows.targets[:count])
