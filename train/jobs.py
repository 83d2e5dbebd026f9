"""What a sweep trains, in pieces that do not depend on each other: data and settings go in, trained stacks come out.

A job is one stack of settings under some seeds on one fold. Jobs share the features and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .fit import Fitted, fit
from .folds import Fold
from .grid import Setting
from .memory import memory_for_features, memory_for_runs
from .parts import Part, Parts
from .precision import Precision
from .rows import FoldRows, Inputs, features_on, fold_rows
from .scores import Row, scores_of
from .select import best_settings
from .streams import own_stream
from .targets import TrainingData

# Settings that train in one stack. On a CPU a stack of one loses a quarter of its time between products, and from three
# to twelve they take equally long (benchmarks/stage2_stacks.py): so rather more stacks, for more cores to share, and
# less to train again where a sweep is stopped. On a GPU each is for all seeds.
STACKED_SETTINGS = {"cpu": 6, "cuda": 16}
# Stacks that train at the same time, at most. On a CPU each has a core, and Python, about a fifteenth of a training
# step, runs in one thread at a time. On a GPU one trains while another is scored; more are no faster.
MOST_LANES = {"cpu": 16, "cuda": 2}


@dataclass(frozen=True)
class Sweep:
    """What a sweep trains on every fold, and how."""

    settings: Sequence[Setting]
    seeds: int  # how many; they are 0, 1, …
    epochs: int
    patience: int | None = None
    inputs: Inputs = "raw"
    precision: Precision = "fp32"
    score_all: bool = False
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Job:
    """One stack of settings under some seeds on one fold."""

    rows: FoldRows
    stack: int  # its number in the fold, from 1
    settings: Sequence[Setting]
    seeds: Sequence[int]
    finished: Part | None = None  # what the whole stack has given earlier: then there is nothing to train


@dataclass(frozen=True, eq=False)
class Trained:
    """What training a job has given: its runs, scored on dev, with `score_all` on test, too."""

    fitted: Fitted
    of_dev: list[Row]
    of_test: list[Row]
    dev_js: npt.NDArray[np.float64]  # (heads, seeds, settings)


def jobs(data: TrainingData, folds: Sequence[Fold], sweep: Sweep, finished: Parts | None = None) -> Iterator[Job]:
    """All jobs of a sweep: fold by fold, stack by stack, seed by seed."""
    labels = {setting.labels for setting in sweep.settings}
    with memory_for_features(len(data), sweep.device):
        features = features_on(sweep.device, data)
    for fold in folds:
        rows = fold_rows(data, fold, inputs=sweep.inputs, labels=labels, device=sweep.device, features=features)
        for number, settings in enumerate(stacks(sweep.settings, sweep.device), start=1):
            part = None if finished is None else finished.read(fold.number, number)
            for seeds in seed_groups(sweep.seeds, sweep.device):
                yield Job(rows, number, settings, seeds, part)


def stacks(settings: Sequence[Setting], device: str) -> Iterator[list[Setting]]:
    """Settings that can train together: of one shape, each system's side by side, as many as a stack takes."""
    size = STACKED_SETTINGS[device.split(":")[0]]
    by_shape: dict[tuple[Any, ...], list[Setting]] = {}
    for setting in settings:
        by_shape.setdefault(setting.shape, []).append(setting)
    for alike in by_shape.values():
        for first in range(0, len(alike), size):
            yield alike[first : first + size]


def seed_groups(seeds: int, device: str) -> list[list[int]]:
    """Seeds that train together: all on an accelerator, one by one on a CPU, where they share no product."""
    return [list(range(seeds))] if device.startswith("cuda") else [[seed] for seed in range(seeds)]


def lanes(sweep: Sweep, folds: int) -> int:
    """How many jobs are trained at the same time: on a CPU one for each core, as torch counts them.

    Two jobs on two cores are done sooner than one after the other with two threads each, which wait for each other at
    every product. How many jobs were finished earlier plays no part: the threads of a job are in its last digits.
    """
    kind = sweep.device.split(":")[0]
    of_fold = len(list(stacks(sweep.settings, sweep.device))) * len(seed_groups(sweep.seeds, sweep.device))
    cores = torch.get_num_threads() if kind == "cpu" else MOST_LANES[kind]
    return min(cores, folds * of_fold, MOST_LANES[kind])


def train(job: Job, sweep: Sweep) -> Trained:
    """Train a job, and score it. SettingError where a GPU's memory is too small."""
    number = job.rows.number
    with memory_for_runs(len(job.settings) * len(job.seeds), sweep.device), own_stream(torch.device(sweep.device)):
        fitted = fit(
            job.rows,
            job.settings,
            seeds=job.seeds,
            epochs=sweep.epochs,
            patience=sweep.patience,
            precision=sweep.precision,
        )
        of_dev, dev_js = scores_of(job.rows.dev, "dev", number, job.settings, fitted, job.seeds)
        of_test: list[Row] = []
        if sweep.score_all:
            of_test, _ = scores_of(job.rows.test, "test", number, job.settings, fitted, job.seeds)
    return Trained(fitted, of_dev, of_test, dev_js)


def part_of(settings: Sequence[Setting], trained: Sequence[Trained]) -> Part:
    """What one stack has given under all seeds, from those of its jobs, in order.

    Rows come setting by setting, then seed by seed, however the seeds were spread over jobs.
    """
    dev_js = np.concatenate([one.dev_js for one in trained], axis=1)
    of_dev, of_test = ([one.of_dev for one in trained], [one.of_test for one in trained])
    return Part(
        len(settings) * dev_js.shape[1],
        _by_setting(of_dev, len(settings)) + _by_setting(of_test, len(settings)),
        best_settings(settings, [one.fitted for one in trained], dev_js),
    )


def _by_setting(of_jobs: Sequence[list[Row]], settings: int) -> list[Row]:
    """The rows of jobs, each of which has as many for every setting, one setting after the other."""
    each = [len(rows) // settings for rows in of_jobs]
    return [row for k in range(settings) for rows, n in zip(of_jobs, each, strict=True) for row in rows[k * n :][:n]]
