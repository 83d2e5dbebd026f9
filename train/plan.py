"""What a sweep would cost, found out by training a few steps of every kind of task as it would be trained."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from amber2_core import engine

from .systems.system import Fitted
from .tasks import Task
from .worker import Sweep, Worker, keep, scored

MEASURED_EPOCHS = 3
MEASURED_STEPS = {"cpu": 4, "cuda": 8}  # on CUDA the first few record the one that all others play back


@dataclass(frozen=True)
class Plan:
    """A sweep before it is trained."""

    systems: dict[str, int]  # name → settings
    folds: int
    seeds: int
    epochs: int
    tasks: int
    at_once: int  # tasks that train at the same time
    seconds: float
    bytes: int  # of memory, in all workers

    @property
    def runs(self) -> int:
        return sum(self.systems.values()) * self.folds * self.seeds


@dataclass(frozen=True)
class Cost:
    """What was measured of a task, in seconds."""

    step: float
    dev_row: float  # of scoring one after an epoch
    rest: float  # of making the stack, and of scoring and keeping its runs at the end
    took: float  # of measuring all this
    bytes: int  # that the process held at most

    def of(self, task: Task, sweep: Sweep) -> float:
        """Seconds of a task of this kind."""
        fold = sweep.folds[task.fold]
        steps = math.ceil(len(fold.train) / sweep.settings[task.settings[0]][1].get("batch_size", 128))
        seconds: float = sweep.fit.epochs * (steps * self.step + len(fold.dev) * self.dev_row) + self.rest
        return seconds


def plan_sweep(
    sweep: Sweep, tasks: Sequence[Task], workers: Sequence[int], *, shapes: Sequence[Hashable], seeds: int
) -> Plan:
    """Count a sweep's runs and measure a few steps of a task of every kind; `shapes` are those of the settings.

    Raises:
        WorkerError: memory is too small.
    """
    alike: dict[Hashable, list[Task]] = {}
    for task in tasks:
        alike.setdefault((shapes[task.settings[0]], len(task.settings), len(task.seeds)), []).append(task)
    measured = [some[0] for some in alike.values() for _ in workers]  # all workers at once, as in the sweep
    costs: dict[Task, list[Cost]] = {}
    began, start, memory = time.perf_counter(), math.inf, 0
    for task, cost in engine.deal(measure, measured, setup=Worker, workers=workers, shared=sweep):
        costs.setdefault(task, []).append(cost)
        # from asking for a worker to its first task
        start = min(start, max(0.0, time.perf_counter() - began - cost.took))
        memory = max(memory, cost.bytes)
    seconds = {
        task: median(cost.of(task, sweep) for cost in costs[some[0]]) for some in alike.values() for task in some
    }
    until = [start] * len(workers)  # when each worker is through with what it was dealt
    for task in tasks:
        until[until.index(min(until))] += seconds[task]
    names = list(sweep.names)
    return Plan(
        systems={name: names.count(name) for name in dict.fromkeys(names)},
        folds=len(sweep.folds),
        seeds=seeds,
        epochs=sweep.fit.epochs,
        tasks=len(tasks),
        at_once=len(workers),
        seconds=max(until),
        bytes=memory * len(workers),
    )


def measure(worker: Worker, task: Task) -> Cost:
    """What a task costs, from some short ones of the same kind."""
    came = time.perf_counter()
    fold, kind = worker.fold(task.fold), worker.sweep.device.partition(":")[0]
    setting = worker.sweep.settings[task.settings[0]][1]
    batch = min(setting.get("batch_size", 128), len(fold.train))
    steps, dev = min(MEASURED_STEPS[kind], math.ceil(len(fold.train) / batch)), len(fold.dev)

    def seconds(epochs: int, scored: int) -> float:
        short = replace(fold, train=fold.train.first(steps * batch), dev=fold.dev.first(scored))
        began = time.perf_counter()
        last.extend(worker.fitted(task, short, replace(worker.sweep.fit, epochs=epochs, patience=None)))
        del last[:-1]
        return time.perf_counter() - began

    last = list[tuple[int, Fitted]]()
    seconds(1, 1)
    once, longer, with_dev = seconds(1, 1), seconds(MEASURED_EPOCHS, 1), seconds(1, dev)
    more = steps * (MEASURED_EPOCHS - 1)
    step = (longer - once) / more if longer > once else longer / (steps + more)  # noise
    runs = len(task.settings) * len(task.seeds)
    rest = max(0.0, once - steps * step) + runs * _seconds_of_keeping(worker, task, *last[-1])
    return Cost(step, max(with_dev - once, 0.0) / dev, rest, time.perf_counter() - came, _peak(kind))


def _seconds_of_keeping(worker: Worker, task: Task, place: int, one: Fitted) -> float:
    """Seconds of scoring one trained run and writing it, here into a folder that goes at once."""
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        found = scored(worker.sweep, worker.fold(task.fold), place, one)
        keep(replace(worker.sweep, folder=Path(folder)), task, [found])
        return time.perf_counter() - began


def _peak(kind: str) -> int:
    """Bytes that this process has held at most, on its device."""
    if kind == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
