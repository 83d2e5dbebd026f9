"""A whole sweep: training data and a grid go in; every setting's dev scores and the selected one's test come out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.heads_folder import TrainedHeads
from amber2_core.run_folder import Predictions

from .fit import fit
from .folds import Fold
from .grid import Setting
from .interrupts import in_quiet_thread
from .parts import Part, Parts
from .products import Precision
from .rows import FoldRows, Inputs, fold_rows
from .scores import Row, curve_rows, mark_selected, score_on_test, scores_of, trained_heads
from .select import Candidate, best_settings, check_chosen, compete
from .targets import TrainingData

# Settings that train in one stack. More would share the first layer's product, but their weights, gradients and moments
# (20 MB a run for the default heads) leave the processor's cache.
STACKED_SETTINGS = {"cpu": 12, "cuda": 64}
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
        SettingError: under all settings of a system training diverged.
    """
    plan = _Plan(settings, seeds, epochs, patience, inputs, precision, score_all, device)
    total, done = len(folds) * len(settings) * seeds, 0
    found = _Found()
    for fold in folds:
        began = time.monotonic()
        rows = fold_rows(data, fold, inputs=inputs, labels={setting.labels for setting in settings}, device=device)
        candidates: dict[str, Candidate] = {}
        of_settings: list[Row] = []
        for part in _parts_of(rows, plan, parts):
            of_settings += part.rows
            compete(candidates, part.candidates)
            done += part.runs
            on_progress(done, total)
        check_chosen(candidates, settings, fold.number)
        _test(rows, candidates, of_settings, data, found)
        chosen = ", ".join(f"{name}{_point(c.setting)} (dev js {c.dev_js:.4f})" for name, c in candidates.items())
        _log.info("fold %d of %d: %.1f s; chosen on dev: %s", fold.number, len(folds), time.monotonic() - began, chosen)
    return SweepResult(found.rows, found.curves, _predictions(data, folds, found), found.selected, found.heads)


@dataclass(frozen=True)
class _Plan:
    """What is trained, and how."""

    settings: Sequence[Setting]
    seeds: int
    epochs: int
    patience: int | None
    inputs: Inputs
    precision: Precision
    score_all: bool
    device: str


def _parts_of(rows: FoldRows, plan: _Plan, kept: Parts | None) -> Iterator[Part]:
    """Every stack of one fold: from disk where it was finished before, else trained, and kept."""
    for number, settings in enumerate(stacks(plan.settings, plan.device), start=1):
        part = kept.read(rows.number, number) if kept is not None else None
        if part is None:
            part = _train(rows, settings, plan)
            if kept is not None:
                kept.write(rows.number, number, part)
        yield part


def _train(rows: FoldRows, settings: Sequence[Setting], plan: _Plan) -> Part:
    """Train one stack of settings under all seeds, and score it."""
    fitted, of_dev, of_test, dev_js = [], [], [], []
    for group in seed_groups(plan.seeds, plan.device):
        some = fit(rows, settings, seeds=group, epochs=plan.epochs, patience=plan.patience, precision=plan.precision)
        fitted.append(some)
        scored, js = scores_of(rows.dev, "dev", rows.number, settings, some, group)
        of_dev += scored
        dev_js.append(js)
        if plan.score_all:
            of_test += scores_of(rows.test, "test", rows.number, settings, some, group)[0]
    return Part(
        len(settings) * plan.seeds, of_dev + of_test, best_settings(settings, fitted, np.concatenate(dev_js, axis=1))
    )


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
