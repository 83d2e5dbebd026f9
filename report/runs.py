"""Run folders go in, checked against themselves; groups of runs with the same test set come out, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.errors import RunFolderError
from amber2_core.metrics import METRICS, evaluate
from amber2_core.run_folder import KEY_COLUMNS, Predictions, read_predictions, read_results, read_settings

Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]

# results.csv keeps numbers in full; what differs by more was not computed from these predictions
TOLERANCE = 1e-6
NO_SETTINGS = frozenset({*KEY_COLUMNS, "epoch", "n", *METRICS})


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder, read and found to agree with itself."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    predictions: Predictions


@dataclass(frozen=True, eq=False)
class Entry:
    """One head of one system of one run: what has a line in a table."""

    run: Run
    system: str
    head: str
    label: str
    probs: npt.NDArray[np.float32]  # (seeds, N, C)

    @cached_property
    def tested(self) -> list[Row]:
        """Its test rows of results.csv, one per fold and seed: those of the setting that dev chose."""
        return [row for row in tested_rows(self.run.rows) if _key(row) == (self.system, self.head)]

    def per_seed(self, metric: str) -> Floats:
        """A metric averaged over the folds of each seed → (seeds,), from results.csv."""
        seeds = sorted({row["seed"] for row in self.tested})
        scores = [[row[metric] for row in self.tested if row["seed"] == seed] for seed in seeds]
        return np.array([np.mean(np.array(some, dtype=np.float64)) for some in scores])


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that were tested on the same utterances with the same targets and folds: these can be compared."""

    runs: Sequence[Run]
    entries: Sequence[Entry]

    @property
    def predictions(self) -> Predictions:
        """Of the first run; ids, folds and targets are those of every run."""
        return self.runs[0].predictions

    @property
    def corpus(self) -> str:
        return str(self.runs[0].settings.get("corpus", ""))

    @cached_property
    def mains(self) -> list[Entry]:
        """Of every system the head that counts: the student, else fusion, else the only one; AmbER² comes first."""
        systems: dict[tuple[int, str], list[Entry]] = {}
        for entry in self.entries:
            systems.setdefault((id(entry.run), entry.system), []).append(entry)
        mains = [next(e for e in heads if e.head == main_head(heads)) for heads in systems.values()]
        return sorted(mains, key=lambda entry: entry.system != "amber2")

    def heads(self, main: Entry) -> dict[str, Entry]:
        """All heads of an entry's system in its run, by name."""
        return {e.head: e for e in self.entries if e.run is main.run and e.system == main.system}


@dataclass
class _Parts:
    """A group while it is being filled."""

    runs: list[Run] = field(default_factory=list)


def read_run(folder: Path) -> Run:
    """Read a run folder and hold its results against its predictions.

    Raises:
        RunFolderError: not a run folder, half of one, damaged, or its numbers are not those of its predictions.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a run folder: name a folder that train-heads wrote")
    settings, rows = read_settings(folder), read_results(folder)
    run = Run(folder.resolve().name, folder, settings, rows, read_predictions(folder))
    _check_rows(run)
    _check_shapes(run)
    _check_numbers(run)
    return run


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs by test set, in their order. Labels name the run only where a group holds several."""
    parts: list[_Parts] = []
    for run in _named_apart(runs):
        home = next((part for part in parts if same_test_set(part.runs[0], run)), None)
        if home is None:
            parts.append(home := _Parts())
        home.runs.append(run)
    return [Group(part.runs, _entries(part.runs)) for part in parts]


def same_test_set(first: Run, second: Run) -> bool:
    """Whether two runs were tested on the same utterances, in the same folds, with the same targets."""
    a, b = first.predictions, second.predictions
    return (
        first.settings.get("corpus") == second.settings.get("corpus")
        and a.emotions == b.emotions
        and np.array_equal(a.id, b.id)
        and np.array_equal(a.fold, b.fold)
        and np.allclose(a.target, b.target, atol=TOLERANCE)
    )


def main_head(heads: Sequence[Entry]) -> str:
    """The head of a system that its tables are about."""
    names = [entry.head for entry in heads]
    students = {row.get("student") for row in heads[0].tested}  # dev may have chosen another one in each fold
    wanted = [*students, "fusion"] if len(students) == 1 else ["fusion"]
    return next((name for name in wanted if name in names), names[-1])


def tested_rows(rows: Sequence[Row]) -> list[Row]:
    """The test rows of the settings that dev chose; a run may have scored the others on test as well."""
    return [row for row in rows if row["split"] == "test" and row["selected"] == 1]


def setting_of(row: Row) -> dict[str, Any]:
    """What was set in a run of results.csv, without what the system does not look at."""
    return {name: value for name, value in row.items() if name not in NO_SETTINGS and value is not None}


def dev_rows(main: Entry) -> list[Row]:
    """The dev rows of an entry, one per setting, fold and seed."""
    return [
        row for row in main.run.rows
        if row["split"] == "dev" and (row["system"], row["head"]) == (main.system, main.head)
    ]  # fmt: skip


def by_setting(rows: Sequence[Row]) -> dict[tuple[tuple[str, Any], ...], list[Row]]:
    """Rows by setting, in their order."""
    found: dict[tuple[tuple[str, Any], ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(setting_of(row).items()), []).append(row)
    return found


def _entries(runs: Sequence[Run]) -> list[Entry]:
    entries = []
    for run in runs:
        for name, probs in run.predictions.probs.items():
            system, _, head = name.partition("/")
            label = f"{system} {head}" if len(runs) == 1 else f"{run.name}: {system} {head}"
            entries.append(Entry(run, system, head, label, probs))
    return entries


def _named_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs with different names: folders of the same name get their parent's in front."""
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else Run(
            f"{run.folder.resolve().parent.name}/{run.name}", run.folder, run.settings, run.rows, run.predictions
        )
        for run in runs
    ]  # fmt: skip


def _key(row: Row) -> tuple[Any, Any]:
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
        if not (np.isfinite(probs).all() and np.isfinite(p.target).all()):
            raise RunFolderError(f"{run.folder / 'predictions.npz'}: {name} or its targets hold no number: {again}")


def _check_numbers(run: Run) -> None:
    """Every test row of results.csv must be what its predictions give."""
    p, path = run.predictions, run.folder / "results.csv"
    wanted = {tuple(name.split("/", 1)) for name in p.probs}
    tested = tested_rows(run.rows)
    found = {_key(row) for row in tested}
    if found != wanted:
        odd = "/".join(map(str, sorted(found ^ wanted, key=str)[0]))
        raise RunFolderError(f"{path} and predictions.npz differ: only one of them has {odd}; train again")
    folds = {int(fold): np.flatnonzero(p.fold == fold) for fold in np.unique(p.fold)}
    for (system, head), probs in ((tuple(name.split("/", 1)), probs) for name, probs in p.probs.items()):
        own = {(row["fold"], row["seed"]): row for row in tested if _key(row) == (system, head)}
        seeds = sorted({seed for _, seed in own}, key=str)
        if len(own) != len(folds) * len(probs) or len(seeds) != len(probs) or {f for f, _ in own} != set(folds):
            raise RunFolderError(
                f"{path} has {len(own)} test rows for {system}/{head}, expected one for each of {len(folds)} folds and "
                f"{len(probs)} seeds: it is not complete; train again"
            )
        for fold, members in folds.items():
            scores = evaluate(p.target[members], probs[:, members])
            for k, seed in enumerate(seeds):
                where = f"{system}/{head}, fold {fold}, seed {seed}"
                _check_row(path, where, own[fold, seed], {name: float(values[k]) for name, values in scores.items()})


def _check_row(path: Path, where: str, row: Row, scores: Mapping[str, float]) -> None:
    for metric, score in scores.items():
        value = row[metric]
        number = float(value) if isinstance(value, int | float) else math.nan if value is None else math.inf
        if not (abs(number - score) <= TOLERANCE or (math.isnan(number) and math.isnan(score))):
            raise RunFolderError(
                f"{path} was changed by hand, or is of another run: {metric} of {where} is {value}, "
                f"its predictions give {score:.6f}; train again"
            )
