"""Run folders go in and are held against themselves; runs whose every test row was computed again come out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.errors import RunFolderError
from amber2_core.metrics import METRICS, evaluate
from amber2_core.run_folder import Predictions, read_curves, read_predictions, read_results, read_settings

Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]

# results.csv keeps numbers in full; what differs by more was not computed from these predictions
TOLERANCE = 1e-6
# what stands in the place of a run folder as long as its sweep goes on
UNFINISHED = "unfinished.json"


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder, read and found to agree with itself."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    predictions: Predictions
    curves: Sequence[Row] = ()  # of curves.csv; none in a folder of an older version


def read_run(folder: Path) -> Run:
    """Read a run folder and hold its results against its predictions.

    Raises:
        RunFolderError: not a run folder, half of one, damaged, or its numbers are not those of its predictions.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a run folder: name a folder that train-heads wrote")
    if (folder / UNFINISHED).is_file():
        raise RunFolderError(
            f"{folder} holds a sweep that is not finished: the train-heads command that began it goes on"
        )
    settings, rows = read_settings(folder), read_results(folder)
    run = Run(folder.resolve().name, folder, settings, rows, read_predictions(folder), read_curves(folder))
    _check_rows(run)
    _check_curves(run)
    _check_shapes(run)
    _check_numbers(run)
    return run


def tested_rows(rows: Sequence[Row]) -> list[Row]:
    """The test rows of the settings that dev chose; a run may have scored the others on test as well."""
    return [row for row in rows if row["split"] == "test" and row["selected"] == 1]


def fold_mean(rows: Sequence[Row], metric: str) -> float:
    """A metric averaged over rows of results.csv, one per fold; NaN where no fold had anything to score."""
    values = [row[metric] for row in rows if row["n"]]
    return float(np.mean(np.array(values, dtype=np.float64))) if values else math.nan


def head_of(row: Row) -> tuple[Any, Any]:
    """(system, head) of a row."""
    return row["system"], row["head"]


def _check_rows(run: Run) -> None:
    for line, row in enumerate(run.rows, start=2):
        odd = [name for name in METRICS if not isinstance(row[name], int | float | None)]
        odd += [name for name in ("fold", "seed", "n", "selected") if not isinstance(row[name], int)]
        odd += ["split"] if row["split"] not in ("dev", "test") else []
        if odd:
            value = f"{odd[0]} is {row[odd[0]]!r}"
            raise RunFolderError(
                f"{run.folder / 'results.csv'}, line {line}: {value}; it was changed by hand, train again"
            )


def _check_curves(run: Run) -> None:
    for line, row in enumerate(run.curves, start=2):
        odd = [name for name in ("fold", "seed", "epoch") if not isinstance(row[name], int) or row[name] < 0]
        odd += ["dev_js"] if not isinstance(row["dev_js"], int | float) else []
        odd += ["epoch"] if not odd and not row["epoch"] else []
        if odd:
            value = f"{odd[0]} is {row[odd[0]]!r}"
            raise RunFolderError(
                f"{run.folder / 'curves.csv'}, line {line}: {value}; it was changed by hand, train again"
            )


def _check_shapes(run: Run) -> None:
    p, again = run.predictions, "it is not as train-heads writes it; train again"
    count, classes = len(p.id), len(p.emotions)
    if not p.probs or not count or p.target.shape != (count, classes) or p.fold.shape != (count,):
        raise RunFolderError(f"{run.folder / 'predictions.npz'} holds no predictions that fit its targets: {again}")
    for name, probs in p.probs.items():
        if probs.ndim != 3 or probs.shape[1:] != (count, classes) or not len(probs):
            raise RunFolderError(
                f"{run.folder / 'predictions.npz'}: {name} has shape {probs.shape}, "
                f"expected (seeds, {count}, {classes}): {again}"
            )
        no_number = ~np.isfinite(probs)  # allowed in whole rows of NaN alone: the head predicts nothing there
        odd = no_number.any(axis=-1) & ~np.isnan(probs).all(axis=-1)
        if odd.any() or not np.isfinite(p.target).all():
            raise RunFolderError(f"{run.folder / 'predictions.npz'}: {name} or its targets hold no number: {again}")


def _check_numbers(run: Run) -> None:
    """Every test row of results.csv must be what its predictions give."""
    p, path = run.predictions, run.folder / "results.csv"
    wanted = {tuple(name.split("/", 1)) for name in p.probs}
    tested = tested_rows(run.rows)
    found = {head_of(row) for row in tested}
    if found != wanted:
        odd = "/".join(map(str, sorted(found ^ wanted, key=str)[0]))
        raise RunFolderError(f"{path} and predictions.npz differ: only one of them has {odd}; train again")
    folds = {int(fold): np.flatnonzero(p.fold == fold) for fold in np.unique(p.fold)}
    for (system, head), probs in ((tuple(name.split("/", 1)), probs) for name, probs in p.probs.items()):
        own = {(row["fold"], row["seed"]): row for row in tested if head_of(row) == (system, head)}
        seeds = sorted({seed for _, seed in own}, key=str)
        if len(own) != len(folds) * len(probs) or len(seeds) != len(probs) or {f for f, _ in own} != set(folds):
            raise RunFolderError(
                f"{path} has {len(own)} test rows for {system}/{head}, expected one for each of {len(folds)} folds and "
                f"{len(probs)} seeds: it is not complete; train again"
            )
        for fold, members in folds.items():
            for k, seed in enumerate(seeds):
                where = f"{system}/{head}, fold {fold}, seed {seed}"
                rows = members[~np.isnan(probs[k, members, 0])]
                scores = {name: float(value) for name, value in evaluate(p.target[rows], probs[k, rows]).items()}
                # of a head without a chosen epoch nothing is predicted, whoever has it
                counted = {"n": float(len(rows))} if own[fold, seed]["epoch"] else {}
                _check_row(path, where, own[fold, seed], {**scores, **counted})


def _check_row(path: Path, where: str, row: Row, scores: Mapping[str, float]) -> None:
    for metric, score in scores.items():
        value = row[metric]
        number = float(value) if isinstance(value, int | float) else math.nan if value is None else math.inf
        if not (abs(number - score) <= TOLERANCE or (math.isnan(number) and math.isnan(score))):
            raise RunFolderError(
                f"{path} was changed by hand, or is of another run: {metric} of {where} is {value}, "
                f"its predictions give {score:.6f}; train again"
            )
