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
from .rows import FoldRows, Inputs, fold_rows
from .scores import Row, dev_rows, mark_selected, score_on_test, trained_heads
from .select import Candidate, check_chosen, choose
from .targets import TrainingData

# Settings that train in one stack. More would share the first layer's product, but their weights, gradients and moments
# (20 MB a run for the default heads) leave the processor's cache.
STACKED_SETTINGS = {"cpu": 12, "cuda": 64}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SweepResult:
    """All that a sweep found."""

    rows: list[Row]  # of results.csv
    predictions: Predictions
    # (system, fold) → the setting that dev chose
    selected: Mapping[tuple[str, int], Setting]
    # (system, fold, seed) → the selected setting's heads
    heads: Mapping[tuple[str, int, int], TrainedHeads]


@dataclass
class _Found:
    """What the folds have given so far."""

    rows: list[Row] = field(default_factory=list)
    selected: dict[tuple[str, int], Setting] = field(default_factory=dict)
    heads: dict[tuple[str, int, int], TrainedHeads] = field(default_factory=dict)
    probs: dict[str, list[npt.NDArray[np.float32]]] = field(default_factory=dict)


def sweep(
    data: TrainingData,
    folds: Sequence[Fold],
    settings: Sequence[Setting],
    *,
    seeds: int = 5,
    epochs: int = 30,
    inputs: Inputs = "raw",
    device: str = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SweepResult:
    """Train every setting under every seed on every fold, choose by dev, test what was chosen.

    In each fold and system the setting with the lowest dev JS, averaged over seeds, is the one tested; test targets are
    looked at after that, and decide nothing.

    Args:
        seeds: how many; they are 0, 1, ….
        inputs: features as the cache holds them, or standardised by the mean and sd of the fold's train rows.
        on_progress: called with the runs done and the runs in all.

    Raises:
        SettingError: under all settings of a system training diverged.
    """
    total, done = len(folds) * len(settings) * seeds, 0
    found = _Found()
    for fold in folds:
        began = time.monotonic()
        rows = fold_rows(data, fold, inputs=inputs, device=device)
        candidates: dict[str, Candidate] = {}
        of_dev: list[Row] = []
        for chunk in stacks(settings, device):
            fitted = []
            for group in seed_groups(seeds, device):
                fitted.append(fit(rows, chunk, seeds=group, epochs=epochs))
                of_dev += dev_rows(rows, chunk, fitted[-1], group)
                done += len(chunk) * len(group)
                on_progress(done, total)
            choose(candidates, chunk, fitted)
        check_chosen(candidates, settings, fold.number)
        _test(rows, candidates, of_dev, data, found)
        chosen = ", ".join(f"{name}{_point(c.setting)} (dev js {c.dev_js:.4f})" for name, c in candidates.items())
        _log.info("fold %d of %d: %.1f s; chosen on dev: %s", fold.number, len(folds), time.monotonic() - began, chosen)
    return SweepResult(found.rows, _predictions(data, folds, found), found.selected, found.heads)


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
    rows: FoldRows, candidates: Mapping[str, Candidate], of_dev: list[Row], data: TrainingData, found: _Found
) -> None:
    """Score what dev chose in one fold, and add all that the fold has given to `found`."""
    found.rows += of_dev
    for system, candidate in candidates.items():
        mark_selected(of_dev, candidate.setting)
        tested = score_on_test(rows, candidate)
        found.rows += tested.rows
        found.selected[system, rows.number] = candidate.setting
        for head, probs in tested.probs.items():
            found.probs.setdefault(f"{system}/{head}", []).append(probs)
        for seed, model in enumerate(tested.models):
            found.heads[system, rows.number, seed] = trained_heads(
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
