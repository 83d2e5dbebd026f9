"""A whole sweep: training data and a grid go in; every setting's dev scores and the selected one's test come out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import numpy.typing as npt

from amber2_core.heads_folder import TrainedHeads
from amber2_core.run_folder import Predictions

from .folds import Fold
from .grid import Setting
from .interrupts import in_quiet_thread
from .jobs import Job, Sweep, Trained, jobs, lanes, part_of, train
from .lanes import in_lanes
from .parts import Part, Parts
from .precision import Precision, products_in, warn_of_precision
from .rows import FoldRows, Inputs
from .scores import Row, curve_rows, mark_selected, score_on_test, trained_heads
from .select import Candidate, check_chosen, compete
from .targets import TrainingData

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SweepResult:
    """All that a sweep found."""

    rows: list[Row]  # of results.csv
    curves: list[Row]  # of curves.csv
    predictions: Predictions
    # (system, fold) → the setting that dev chose
    selected: Mapping[tuple[str, int], Setting]
    # (system, fold, seed) → the selected setting's heads
    heads: Mapping[tuple[str, int, int], TrainedHeads]


@dataclass
class _Found:
    """What the folds have given so far."""

    rows: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)
    selected: dict[tuple[str, int], Setting] = field(default_factory=dict)
    heads: dict[tuple[str, int, int], TrainedHeads] = field(default_factory=dict)
    probs: dict[str, list[npt.NDArray[np.float32]]] = field(default_factory=dict)


@in_quiet_thread
def sweep(
    data: TrainingData,
    folds: Sequence[Fold],
    settings: Sequence[Setting],
    *,
    seeds: int = 5,
    epochs: int = 30,
    patience: int | None = None,
    inputs: Inputs = "raw",
    precision: Precision = "fp32",
    score_all: bool = False,
    device: str = "cpu",
    parts: Parts | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SweepResult:
    """Train every setting under every seed on every fold, choose by dev, test what was chosen.

    In each fold and system the setting with the lowest dev JS, averaged over seeds, is the one tested; test targets are
    looked at after that, and decide nothing.

    Args:
        seeds: how many; they are 0, 1, ….
        inputs: features as the cache holds them, or standardised by the mean and sd of the fold's train rows.
        epochs, patience, precision: as `fit`.
        score_all: give every setting's test scores too, for those who study what selection costs.
        parts: finished stacks of an earlier, interrupted call, which are not trained again.
        on_progress: called with the runs done and the runs in all.

    Raises:
        SettingError: under all settings of a system training diverged, or a GPU's memory is too small.
    """
    warn_of_precision(precision, device)
    wanted = Sweep(settings, seeds, epochs, patience, inputs, precision, score_all, device)
    total, done = len(folds) * len(settings) * seeds, 0
    found = _Found()
    began = time.monotonic()
    with products_in(precision, device), closing(_parts(data, folds, wanted, parts)) as finished:
        for rows, of_fold in groupby(finished, key=lambda pair: pair[0]):
            candidates: dict[str, Candidate] = {}
            of_settings: list[Row] = []
            for _, part in of_fold:
                of_settings += part.rows
                compete(candidates, part.candidates)
                done += part.runs
                on_progress(done, total)
            check_chosen(candidates, settings, rows.number)
            of_settings.sort(key=lambda row: str(row["split"]))  # the same order, whatever the size of the stacks
            _test(rows, candidates, of_settings, data, found)
            chosen = ", ".join(f"{name}{_point(c.setting)} (dev js {c.dev_js:.4f})" for name, c in candidates.items())
            elapsed = time.monotonic() - began
            _log.info("fold %d of %d after %.1f s; chosen on dev: %s", rows.number, len(folds), elapsed, chosen)
    return SweepResult(found.rows, found.curves, _predictions(data, folds, found), found.selected, found.heads)


def _parts(
    data: TrainingData, folds: Sequence[Fold], wanted: Sweep, finished: Parts | None
) -> Generator[tuple[FoldRows, Part]]:
    """Every stack of every fold under all seeds: from disk where it was finished before, else trained, and kept."""

    def done(job: Job) -> tuple[Job, Trained | None]:
        return job, train(job, wanted) if job.finished is None else None

    with closing(in_lanes(done, jobs(data, folds, wanted, finished), lanes(wanted, len(folds)))) as results:
        for (fold, stack), of_stack in groupby(results, key=lambda pair: (pair[0].rows.number, pair[0].stack)):
            some, trained = zip(*of_stack, strict=True)
            part = some[0].finished
            if part is None:
                part = part_of(some[0].settings, trained)
                if finished is not None:
                    finished.write(fold, stack, part)
            yield some[0].rows, part


def _test(
    rows: FoldRows, candidates: Mapping[str, Candidate], of_settings: list[Row], data: TrainingData, found: _Found
) -> None:
    """Score what dev chose in one fold, and add all that the fold has given to `found`."""
    for candidate in candidates.values():
        mark_selected(of_settings, candidate.setting)
    # the selected ones' test rows are those of the heads that are kept
    found.rows += [row for row in of_settings if row["split"] == "dev" or not row["selected"]]
    for name, candidate in candidates.items():
        tested = score_on_test(rows, candidate)
        found.rows += tested.rows
        found.curves += curve_rows(rows.number, candidate)
        found.selected[name, rows.number] = candidate.setting
        for head, probs in tested.probs.items():
            found.probs.setdefault(f"{name}/{head}", []).append(probs)
        for seed, model in enumerate(tested.models):
            found.heads[name, rows.number, seed] = trained_heads(
                rows, candidate, seed, model, emotions=data.emotions, features=data.feature_sets
            )


def _predictions(data: TrainingData, folds: Sequence[Fold], found: _Found) -> Predictions:
    tested = np.concatenate([fold.test for fold in folds])
    return Predictions(
        id=data.id[tested],
        fold=np.concatenate([np.full(len(fold.test), fold.number, dtype=np.int64) for fold in folds]),
        target=data.targets[tested],
        emotions=data.emotions,
        probs={name: np.concatenate(parts, axis=1) for name, parts in found.probs.items()},
    )


def _point(setting: Setting) -> str:
    named = {name: setting.row()[name] for name in ("lambda_mai", "kappa")}
    return "".join(f" {name} {value}" for name, value in named.items() if value is not None)
