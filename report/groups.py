"""Runs go in; groups of those with the same test set come out, entry by entry: what may stand in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from amber2_core.run_folder import Predictions

from .runs import TOLERANCE, Floats, Row, Run, fold_mean, head_of, tested_rows


@dataclass(frozen=True, eq=False)
class Entry:
    """One head of one system of one run: what has a line in a table."""

    run: Run
    system: str
    head: str
    label: str
    probs: npt.NDArray[np.float32]  # (seeds, N, C), NaN rows where the head predicts nothing

    @cached_property
    def there(self) -> npt.NDArray[np.bool_]:
        """(N,) the utterances that the head predicts under every seed: with --missing mask not always all."""
        return np.asarray(~np.isnan(self.probs[..., 0]).any(axis=0))

    @cached_property
    def rows(self) -> npt.NDArray[np.intp]:
        """The rows of these."""
        return np.flatnonzero(self.there)

    @cached_property
    def tested(self) -> list[Row]:
        """Its test rows of results.csv, one per fold and seed: those of the setting that dev chose."""
        return [row for row in tested_rows(self.run.rows) if head_of(row) == (self.system, self.head)]

    def per_seed(self, metric: str) -> Floats:
        """A metric averaged over the folds of each seed that have something to score → (seeds,), from results.csv."""
        seeds = sorted({row["seed"] for row in self.tested})
        return np.array([fold_mean([r for r in self.tested if r["seed"] == seed], metric) for seed in seeds])


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


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs by test set, in their order. Labels name the run only where a group holds several."""
    alike: list[list[Run]] = []
    for run in _named_apart(runs):
        home = next((some for some in alike if same_test_set(some[0], run)), None)
        if home is None:
            alike.append(home := [])
        home.append(run)
    return [Group(some, _entries(some)) for some in alike]


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


def dev_rows(main: Entry) -> list[Row]:
    """The dev rows of an entry, one per setting, fold and seed."""
    return [
        row for row in main.run.rows
        if row["split"] == "dev" and (row["system"], row["head"]) == (main.system, main.head)
    ]  # fmt: skip


def slug(label: str) -> str:
    """A label as part of a file's name."""
    return "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in label).split()).lower() or "unnamed"


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
        run if names.count(run.name) == 1 else replace(run, name=f"{run.folder.resolve().parent.name}/{run.name}")
        for run in runs
    ]
