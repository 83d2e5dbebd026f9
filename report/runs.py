"""Run folders, read and held against themselves: every test row of one is computed again from its predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from amber2_core.errors import RunFolderError
from amber2_core.metrics import metrics_of_kinds
from amber2_core.run_folder import AGAINST_SYNTHETIC, RunFolder, load, scores_again

Floats = npt.NDArray[np.float64]

# results.csv keeps numbers in full; what differs by more was not computed from these predictions
TOLERANCE = 1e-6
# what stands in the place of a run folder as long as its sweep goes on
UNFINISHED = "unfinished.json"
ROW = ["system", "head", "fold", "seed"]  # what a tested row is told by


def read_run(folder: Path) -> RunFolder:
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
    run = load(folder)
    path, split = folder / "results.csv", run.results["split"]
    for name in ("fold", "seed", "n", "selected"):
        _check_cells(path, run.results[name], _whole(run.results[name], at_least=0))
    _check_cells(path, split, split.isin(["dev", "test", AGAINST_SYNTHETIC]))
    for name in _metrics(run):
        _check_cells(path, run.results[name], _number(run.results[name]))
    if len(run.curves):
        for name, least in (("fold", 0), ("seed", 0), ("epoch", 1)):
            _check_cells(folder / "curves.csv", run.curves[name], _whole(run.curves[name], at_least=least))
        _check_cells(folder / "curves.csv", run.curves["dev_js"], _number(run.curves["dev_js"]))
    _check_completeness(run)
    _check_scores(run)
    return run


def _metrics(run: RunFolder) -> list[str]:
    return [name for name in metrics_of_kinds(run.kinds.values()) if name in run.results]


def _whole(column: pd.Series, *, at_least: int) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce")
    return (numbers % 1 == 0) & (numbers >= at_least)


def _number(column: pd.Series) -> pd.Series:
    return column.isna() | pd.to_numeric(column, errors="coerce").notna()


def _check_cells(path: Path, column: pd.Series, right: pd.Series) -> None:
    if not right.all():
        row = int(np.argmin(right.to_numpy(bool)))
        value = f"{column.name} is {column.tolist()[row]!r}"
        raise RunFolderError(f"{path}, line {row + 2}: {value}; it was changed by hand, train again")


def _check_completeness(run: RunFolder) -> None:
    """Every head has its test rows, one for each fold and seed, and its predictions."""
    path, folds = run.path / "results.csv", run.arrays.folds
    by_head = {f"{system}/{head}": rows for (system, head), rows in run.tested.groupby(["system", "head"])}
    for name in sorted(by_head.keys() ^ run.arrays.probs.keys()):
        raise RunFolderError(f"{path} and predictions.npz differ: only one of them has {name}; train again")
    for name, rows in by_head.items():
        seeds = len(run.arrays.probs[name])
        parts = {"fold": len(folds), "seed": seeds}
        complete = len(rows) == len(rows.drop_duplicates(ROW)) == len(folds) * seeds
        if not complete or any(rows[part].nunique() != count for part, count in parts.items()):
            raise RunFolderError(
                f"{path} has {len(rows)} test rows for {name}, expected one for each of {len(folds)} folds and "
                f"{seeds} seeds: it is not complete; train again"
            )


def _check_scores(run: RunFolder) -> None:
    """Every row of results.csv that is of test must be what its predictions give."""
    for split, rows in (("test", run.tested), (AGAINST_SYNTHETIC, run.against_synthetic)):
        again = scores_again(run, _metrics(run), split=split)
        if len(again) != len(rows):
            raise RunFolderError(
                f"{run.path / 'results.csv'} has {len(rows)} rows of the split {split}, predictions.npz makes "
                f"{len(again)}: it is not complete; train again"
            )
        if len(rows):
            _check_rows(run, rows.merge(again, how="left", on=ROW, suffixes=("", " again")))


def _check_rows(run: RunFolder, rows: pd.DataFrame) -> None:
    """Rows of results.csv, each with what its predictions give, must be equal to it."""
    for name in (*_metrics(run), "n"):
        stored, again = rows[name], rows[f"{name} again"]
        right = ((stored - again).abs() <= TOLERANCE) | (stored.isna() & again.isna())
        if name == "n":  # of a head without a chosen epoch nothing is predicted, whoever has it
            right |= rows["epoch"] == 0
        if not right.all():
            row = rows.iloc[int(np.argmin(right.to_numpy(bool)))]
            raise RunFolderError(
                f"{run.path / 'results.csv'} was changed by hand, or is of another run: {name} of {row['system']}/"
                f"{row['head']}, fold {row['fold']}, seed {row['seed']} is {row[name]}, its predictions give "
                f"{row[f'{name} again']:.6f}; train again"
            )
