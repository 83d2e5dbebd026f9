"""What a sweep is cut into, settings of one shape under some seeds on one fold, and what each task has given, on disk.

Of every run (a setting under a seed on a fold) there is a file of weights (`amber2_core.heads_folder`) and an `.npz`
with its distributions on test; of every task a JSON file with how its runs trained and scored, which takes its name
last: a task is there as a whole or not at all. The files of runs that dev did not choose go as the sweep goes on.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.errors import RunFolderError
from amber2_core.files import write_text, written_whole
from amber2_core.metrics import evaluate

from .systems.system import Fitted, History

# Runs that train together. On a CPU a run alone loses a quarter of its time between products, and from three to twelve
# they take equally long (benchmarks/stage2_stacks.py): so rather more tasks, for more cores to share, and less to train
# again where a sweep is stopped. On a GPU one task is to fill the device.
RUNS = {"cpu": 6, "cuda": 80}

Scores = Mapping[str, float]  # "n" utterances, and every metric of these
Probs = Mapping[str, npt.NDArray[np.float32]]  # head → (n, C)
Measures = Mapping[str, npt.NDArray[np.floating[Any]]]  # name → (n,)
MEASURE = "measure/"  # before a measure's name in the file of a run's distributions


@dataclass(frozen=True)
class Task:
    """Settings of one shape under some seeds on one fold."""

    fold: int  # its number, from 1
    number: int  # of the task in its fold, from 1
    settings: tuple[int, ...]  # their places in the sweep
    seeds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a run says of the utterances of test."""

    probs: Probs
    measures: Measures


@dataclass(frozen=True)
class Run:
    """One setting under one seed on one fold, trained: how, and how it scored, by head."""

    fold: int
    setting: int
    seed: int
    history: History
    dev: Mapping[str, Scores]
    test: Mapping[str, Scores]  # empty unless the test scores of every setting are asked for
    # above which a class is predicted present; None: it predicts distributions
    threshold: float | None = None


def tasks_of(shapes: Sequence[Hashable], seeds: int, folds: Sequence[int], device: str) -> list[Task]:
    """All tasks of a sweep, fold by fold, from the shape of each setting; the kind of device tells their size."""
    runs, alike = RUNS[device.partition(":")[0]], dict[Hashable, list[int]]()
    for place, shape in enumerate(shapes):
        alike.setdefault(shape, []).append(place)
    of_fold = []
    for places in alike.values():
        for some in _parts(places, runs):
            of_fold += [(tuple(some), tuple(group)) for group in _parts(range(seeds), max(1, runs // len(some)))]
    return [Task(fold, n, some, group) for fold in folds for n, (some, group) in enumerate(of_fold, start=1)]


class FinishedTasks:
    """The finished tasks in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def count(self) -> int:
        return len(list(self.folder.glob("fold*-task*.json")))

    def write(
        self, task: Task, fitted: Sequence[tuple[Run, Fitted, Predicted]], origins: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep a finished task; `origins` are what `Fitted.save` is to write down of each run.

        Raises:
            RunFolderError: the place cannot be written, or is full.
        """
        try:
            for (run, model, predicted), origin in zip(fitted, origins, strict=True):
                model.save(self.weights(run), origin)
                measures = {f"{MEASURE}{name}": values for name, values in predicted.measures.items()}
                with written_whole(self._predicted(run)) as path, path.open("wb") as file:
                    np.savez(file, **predicted.probs, **measures)  # type: ignore[arg-type]
            record = [_record(run) for run, _, _ in fitted]
            write_text(self._path(task), json.dumps({"runs": record}))
        except OSError as problem:
            raise RunFolderError(f"Cannot write {self.folder}: {problem.strerror or problem}") from None

    def take(self, task: Task, files: Mapping[str, bytes]) -> None:
        """Keep a task that was finished elsewhere, from its files by name.

        Raises:
            RunFolderError: the place cannot be written, or is full.
        """
        last = self._path(task).name
        try:
            for name in sorted(files, key=lambda name: name == last):
                with written_whole(self.folder / name) as path:
                    path.write_bytes(files[name])
        except OSError as problem:
            raise RunFolderError(f"Cannot write {self.folder}: {problem.strerror or problem}") from None

    def read(self, task: Task) -> list[Run] | None:
        """The runs of a finished task; None where it is not there yet.

        Raises:
            RunFolderError: its file is damaged.
        """
        path = self._path(task)
        try:
            return [_run(record) for record in json.loads(path.read_text(encoding="utf-8"))["runs"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise RunFolderError(f"{path} is damaged ({problem}): remove it, and it is trained again") from None

    def predicted(self, run: Run) -> Predicted:
        """What a run says of test. RunFolderError: its file is damaged."""
        path = self._predicted(run)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                probs = {name: arrays[name] for name in arrays if not name.startswith(MEASURE)}
                measures = {name.removeprefix(MEASURE): arrays[name] for name in arrays if name.startswith(MEASURE)}
                return Predicted(probs, measures)
        except Exception as problem:  # zipfile raises many things on damaged bytes
            raise RunFolderError(f"{path} is damaged ({problem}): remove {path.parent}, and train again") from None

    def take_over(self, other: FinishedTasks) -> None:
        """Have all that another folder holds, too; of each task its own file last. OSError: it cannot be had."""
        for source in sorted(other.folder.glob("fold*"), key=lambda path: path.suffix == ".json"):
            path = self.folder / source.name
            path.unlink(missing_ok=True)
            link(source, path)

    def weights(self, run: Run) -> Path:
        """A run's file of weights."""
        return self.folder / f"fold{run.fold}-setting{run.setting}-seed{run.seed}.safetensors"

    def remove(self, runs: Sequence[Run]) -> None:
        """Remove weights and distributions of runs that are not wanted any more."""
        for run in runs:
            self.weights(run).unlink(missing_ok=True)
            self._predicted(run).unlink(missing_ok=True)

    def _predicted(self, run: Run) -> Path:
        return self.weights(run).with_suffix(".npz")

    def _path(self, task: Task) -> Path:
        return self.folder / f"fold{task.fold}-task{task.number}.json"


def link(source: Path, path: Path) -> None:
    """The same file under a second name, or a copy where the file system has no such thing."""
    try:
        os.link(source, path)
    except OSError:
        with written_whole(path) as writing:
            shutil.copyfile(source, writing)


def scores_of(
    target: npt.NDArray[Any],
    probs: npt.NDArray[Any],
    having: npt.NDArray[np.bool_],
    threshold: float | None = None,
    *,
    has_epochs: bool = True,
) -> Scores:
    """`n`, how many utterances have a head, and its metrics over those for which it predicts something.

    Of predicted presence they are those of the `threshold`.

    NaN for a head that no utterance has, and for one of which no epoch was kept, since it diverged at once. Of a head
    without epochs, as one of imported predictions, `n` is how many it predicts.
    """
    there = having & ~np.isnan(probs).any(axis=-1)
    having = having if has_epochs else there
    metrics = evaluate(target[there], probs[there], threshold)
    return {"n": int(having.sum()), **{name: float(score) for name, score in metrics.items()}}


def _record(run: Run) -> dict[str, Any]:
    record = asdict(run)
    record["history"]["unjudged"] = sorted(run.history.unjudged)
    return record


def _run(record: Mapping[str, Any]) -> Run:
    history = record["history"]
    return Run(**{**record, "history": History(**{**history, "unjudged": frozenset(history["unjudged"])})})


def _parts(things: Sequence[int], most: int) -> list[Sequence[int]]:
    """Pieces of at most so many, about equally long."""
    count = -(-len(things) // most)
    edges = [round(k * len(things) / count) for k in range(count + 1)]
    return [things[a:b] for a, b in itertools.pairwise(edges)]
