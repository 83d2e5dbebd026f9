"""Groups of runs with one test set: what may stand in one table, entry by entry, and what was set in each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from amber2_core.errors import RunFolderError, bad_choice
from amber2_core.kinds import MULTI_LABEL
from amber2_core.metrics import METRICS
from amber2_core.run_folder import Predictions, RunFolder, fold_means, shown_name

from .provenance import same_test_set
from .runs import Floats

LONGEST_NAME = 80  # characters of a part of a file's name, of which file systems allow 255 in all
DEEPEST = 100  # folders
FUSION = "fusion"  # the head of all modalities


@dataclass(frozen=True, eq=False)
class Entry:
    """One head of one system of one run: what has a line in a table."""

    run: RunFolder
    system: str
    head: str
    label: str
    probs: npt.NDArray[np.float32]  # (seeds, N, C), NaN rows where the head predicts nothing
    members: tuple[Entry, ...] = ()  # of an ensemble, what it is the mean of

    @cached_property
    def there(self) -> npt.NDArray[np.bool_]:
        """(N,) the utterances that the head predicts under every seed: with --missing mask not always all."""
        return np.asarray(~np.isnan(self.probs[..., 0]).any(axis=0))

    @cached_property
    def rows(self) -> npt.NDArray[np.intp]:
        """The rows of these."""
        return np.flatnonzero(self.there)

    @cached_property
    def tested(self) -> pd.DataFrame:
        """Its test rows of results.csv, one per fold and seed: those of the setting that dev chose."""
        return self._own(self.run.tested)

    @cached_property
    def against_synthetic(self) -> pd.DataFrame:
        """The same predictions' rows against synthetic raters; none where nobody but people rated."""
        return self._own(self.run.against_synthetic)

    @cached_property
    def dev(self) -> pd.DataFrame:
        """Its dev rows of results.csv, one per setting, fold and seed."""
        return self._own(self.run.results[self.run.results["split"] == "dev"])

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Its rows of curves.csv; none in a folder of an earlier version."""
        return self._own(self.run.curves) if len(self.run.curves) else self.run.curves

    @cached_property
    def settings(self) -> pd.DataFrame:
        """What was set in its tested rows, a column for each setting that the system looks at."""
        return self.tested[list(self.run.axes)].dropna(axis="columns", how="all")

    @property
    def chosen(self) -> dict[str, str]:
        """The settings that were tested, in words; several where folds chose differently."""
        return {str(name): " or ".join(sorted(_words(values))) for name, values in self.settings.items()}

    @property
    def varied(self) -> list[str]:
        """The settings that take several values on dev."""
        return [name for name in self.run.axes if self.dev[name].nunique(dropna=False) > 1]

    @property
    def diverged(self) -> bool:
        """Whether it diverged at once in some run: there was something to score, and no epoch was kept."""
        return bool(((self.tested["epoch"] == 0) & (self.tested["n"] > 0)).any())

    def per_seed(self, metric: str) -> Floats:
        """A metric averaged over the folds of each seed that have something to score → (seeds,), from results.csv."""
        return np.asarray(fold_means(self.tested, [metric])[0])

    def _own(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows[(rows["system"] == self.system) & (rows["head"] == self.head)]


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that were tested on the same utterances with the same targets and folds: these can be compared."""

    runs: Sequence[RunFolder]
    entries: Sequence[Entry]  # of systems that predict distributions; none where all predict presence
    head: str | None = None  # the head that every system is told by; None: each by its own `main_head`

    @property
    def predictions(self) -> Predictions:
        """Of the first run; ids, folds and targets are those of every run."""
        return self.runs[0].arrays

    @property
    def corpus(self) -> str:
        corpus: str = self.runs[0].settings.get("corpus", "")
        return corpus.encode("utf-8", "replace").decode()  # settings.json can hold what is no text

    @property
    def metrics(self) -> list[str]:
        """The metrics that any of the runs has."""
        return self.having(METRICS)

    def having(self, metrics: Iterable[str]) -> list[str]:
        """Those of some metrics that any of the runs has."""
        return [name for name in metrics if any(name in run.results for run in self.runs)]

    @property
    def spread(self) -> str:
        """In words, what mean and sd of its scores are of."""
        seeds = sorted({len(entry.probs) for entry in self.entries if not entry.members})
        counts = " or ".join(map(str, seeds))
        return f"Mean ± sd over {counts} seeds of the mean over {len(self.predictions.folds)} test folds"

    @cached_property
    def mains(self) -> list[Entry]:
        """Of every system the head that counts: that which was asked for, else its main one; AmbER² comes first."""
        systems: dict[tuple[int, str], list[Entry]] = {}
        for entry in self.entries:
            systems.setdefault((id(entry.run), entry.system), []).append(entry)
        mains = [e for heads in systems.values() for e in heads if e.head == (self.head or main_head(heads))]
        return sorted(mains, key=lambda entry: entry.system != "amber2")

    @cached_property
    def slugs(self) -> dict[str, str]:
        """What each entry is called in names of files, by its label."""
        return slugs(entry.label for entry in self.entries)

    def heads(self, main: Entry) -> dict[str, Entry]:
        """All heads of an entry's system in its run, by name."""
        return {e.head: e for e in self.entries if e.run is main.run and e.system == main.system}

    @property
    def differing_settings(self) -> dict[str, list[str]]:
        """What sets the runs apart: setting → its words in each run."""
        names = dict.fromkeys(name for run in self.runs for name in run.axes)
        words = {
            name: [", ".join(_words(run.results[name])) if name in run.axes else "" for run in self.runs]
            for name in names
        }
        return {name: values for name, values in words.items() if len(set(values)) > 1}


def grouped(runs: Sequence[RunFolder], head: str | None = None) -> list[Group]:
    """Runs by test set, in their order. Labels name the run only where a group holds several.

    Raises:
        RunFolderError: no system of some group has a head of that name.
    """
    alike: list[list[RunFolder]] = []
    for run in _named_apart(runs):
        home = next((some for some in alike if same_test_set(some[0], run)), None)
        if home is None:
            alike.append(home := [])
        home.append(run)
    groups = [Group(some, _entries(some), head) for some in alike]
    for group in groups:
        if group.entries and not group.mains:
            names = ", ".join(run.name for run in group.runs)
            raise RunFolderError(f"{bad_choice('head', head, dict.fromkeys(e.head for e in group.entries))} in {names}")
    return groups


def main_head(heads: Sequence[Entry]) -> str:
    """The head of a system that its tables are about: the student, else fusion, else the only one."""
    names = [entry.head for entry in heads]
    students = heads[0].settings.get("student", pd.Series()).unique()  # dev may have chosen another one in each fold
    wanted = [*students, FUSION] if len(students) == 1 else [FUSION]
    return next((name for name in wanted if name in names), names[-1])


def slug(label: str) -> str:
    """A label as part of a file's name, of 80 characters at most."""
    words = "".join(c if c.isalnum() and c.isascii() else " " for c in label).split()
    return "-".join(words).lower()[:LONGEST_NAME].rstrip("-") or "unnamed"


def slugs(labels: Iterable[str]) -> dict[str, str]:
    """Labels, each with a `slug` of its own: λ fusion and κ fusion are fusion and fusion-2."""
    found: dict[str, str] = {}
    for label in labels:
        names = (slug(label) if number == 1 else f"{slug(label)}-{number}" for number in itertools.count(1))
        found[label] = next(name for name in names if name not in found.values())
    return found


def _words(values: pd.Series) -> list[str]:
    """The values that are there, each once, in words."""
    return list(map(str, values.dropna().unique()))


def _entries(runs: Sequence[RunFolder]) -> list[Entry]:
    entries = []
    for run in runs:
        for name, probs in run.arrays.probs.items():
            system, _, head = name.partition("/")
            if run.kinds.get(system) == MULTI_LABEL:  # which has a table of its own, and no distributions to draw
                continue
            label = f"{system} {head}" if len(runs) == 1 else f"{run.name}: {system} {head}"
            entries.append(Entry(run, system, head, label, probs))
    return entries


def _named_apart(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Runs with different names: folders of the same name get as many of their parents' in front as it takes."""
    named, depth = list(runs), 1
    while (again := _repeated([run.name for run in named])) and depth < DEEPEST:
        named = [replace(run, name=_with_parents(run.path, depth)) if run.name in again else run for run in named]
        depth += 1
    return named


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}


def _with_parents(folder: Path, count: int) -> str:
    path = folder.resolve()
    return "/".join(shown_name(one) for one in (*reversed(path.parents[:count]), path) if one.name)
