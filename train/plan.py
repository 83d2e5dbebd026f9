"""What a sweep would cost, found out by training a few steps of every kind of task as it would be trained."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from amber2_core import engine

from .tasks import Task
from .worker import Sweep, Worker

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
    cost: dict[Task, list[tuple[float, float]]] = {}
    memory = 0
    for task, (step, dev_row, peak) in engine.deal(measure, measured, setup=Worker, workers=workers, shared=sweep):
        cost.setdefault(task, []).append((step, dev_row))
        memory = max(memory, peak)
    seconds = 0.0
    for some in alike.values():
        step, dev_row = (median(costs) for costs in zip(*cost[some[0]], strict=True))
        batch = sweep.settings[some[0].settings[0]][1].get("batch_size", 128)
        for each in some:
            fold = sweep.folds[each.fold]
            seconds += sweep.fit.epochs * (math.ceil(len(fold.train) / batch) * step + len(fold.dev) * dev_row)
    names = list(sweep.names)
    return Plan(
        systems={name: names.count(name) for name in dict.fromkeys(names)},
        folds=len(sweep.folds),
        seeds=seeds,
        epochs=sweep.fit.epochs,
        tasks=len(tasks),
        at_once=len(workers),
        seconds=seconds / len(workers),
        bytes=memory * len(workers),
    )


def measure(worker: Worker, task: Task) -> tuple[float, float, int]:
    """Seconds of one step, and of scoring one dev row, of a task; and the memory that this process took at most."""
    fold, kind = worker.fold(task.fold), worker.sweep.device.partition(":")[0]
    setting = worker.sweep.settings[task.settings[0]][1]
    batch = min(setting.get("batch_size", 128), len(fold.train))
    steps, dev = min(MEASURED_STEPS[kind], math.ceil(len(fold.train) / batch)), len(fold.dev)

    def seconds(epochs: int, scored: int) -> float:
        short = replace(fold, train=fold.train.first(steps * batch), dev=fold.dev.first(scored))
        began = time.perf_counter()
        for _ in worker.fitted(task, short, replace(worker.sweep.fit, epochs=epochs, patience=None)):
            pass
        return time.perf_counter() - began

    seconds(1, 1)
    once, twice, scored = seconds(1, 1), seconds(2, 1), seconds(1, dev)
    step = (twice - once) / steps if twice > once else twice / (2 * steps)  # noise
    return step, max(scored - once, 0.0) / dev, _peak(kind)


def _peak(kind: str) -> int:
    """Bytes that this process has held at most, on its device."""
    if kind == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
