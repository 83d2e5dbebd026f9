"""What a worker process of stage 2 does: one task after the other, on the fold's features."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from amber2_core.devices import choose_device, is_out_of_memory, set_arithmetic
from amber2_core.errors import SettingError, WorkerError
from amber2_core.kinds import MULTI_LABEL, Kind

from .systems.system import FitOptions, Fitted, History, system_of
from .tasks import FinishedTasks, Predicted, Probs, Run, Scores, Task, scores_of
from .training_data import Fold, TrainingData

if TYPE_CHECKING:  # the process that plans a sweep never loads torch
    from .fold_data import FoldData, Rows


@dataclass(frozen=True, eq=False)
class Sweep:
    """All that the workers of a sweep are told."""

    data: TrainingData
    folds: Mapping[int, Fold]  # by number
    # (system, its settings as plain values): classes of a user's own file are not known to a worker before it loads it
    settings: tuple[tuple[str, Mapping[str, Any]], ...]
    names: tuple[str, ...]  # of the settings, as results have them
    fit: FitOptions
    device: str
    # features standardised by a fold's train rows; every setting scored on test
    standardise: bool = False
    score_all: bool = False
    # what the files of weights tell beside their runs: emotions, label policy, features
    origin: Mapping[str, Any] = field(default_factory=dict)
    # where finished tasks are kept
    folder: Path = Path()


class Worker:
    """A process that trains tasks of one sweep."""

    def __init__(self, threads: int, sweep: Sweep) -> None:
        from .fold_data import features_on

        set_arithmetic(choose_device(sweep.device), tf32=sweep.fit.precision == "tf32", threads=threads)
        self.sweep = sweep
        with _memory_for(f"the features of {len(sweep.data)} utterances: train on fewer modalities", sweep.device):
            self.features = features_on(sweep.device, sweep.data)
        self._fold: FoldData | None = None

    def fold(self, number: int) -> FoldData:
        """A fold's rows, kept until another one is asked for."""
        from .fold_data import fold_data

        if self._fold is None or self._fold.number != number:
            sweep = self.sweep
            fold, standardise = sweep.folds[number], sweep.standardise
            self._fold = fold_data(sweep.data, fold, self.features, standardise=standardise)
        return self._fold

    def fitted(self, task: Task, fold: FoldData, options: FitOptions) -> Iterator[tuple[int, Fitted]]:
        """Every run of a task, trained, with the place of its setting."""
        systems = [self.sweep.settings[place] for place in task.settings]
        own = system_of(systems[0][0])
        values = [own.Settings(**some) for _, some in systems]
        places = dict(zip(values, task.settings, strict=True))
        runs = len(values) * len(task.seeds)
        with _memory_for(f"{runs} runs at once: ask for fewer --seeds or a smaller --hidden", self.sweep.device):
            for one in own.fit(fold, values, task.seeds, options):
                yield places.get(one.setting, -1), one


def look_at(device: str) -> tuple[str, bool]:
    """The device of that name, and whether it multiplies bfloat16. SettingError: there is none."""
    from .stacked.kernels import multiplies_bfloat16

    found = choose_device(device, ("cpu", "cuda"))
    return str(found), found.type != "cpu" or multiplies_bfloat16()


def train(worker: Worker, task: Task) -> list[Run]:
    """Train a task, score it, and keep it; what there is to know of its runs."""
    sweep, fold = worker.sweep, worker.fold(task.fold)
    found = [scored(sweep, fold, place, one) for place, one in worker.fitted(task, fold, sweep.fit)]
    if sorted((run.setting, run.seed) for run, _, _ in found) != sorted(itertools.product(task.settings, task.seeds)):
        name = sweep.settings[task.settings[0]][0]
        raise SettingError(
            f"The system {name!r} gave {len(found)} runs for {len(task.settings)} settings under "
            f"{len(task.seeds)} seeds: its fit must yield one for each"
        )
    keep(sweep, task, found)
    return [run for run, _, _ in found]


def train_afar(worker: Worker, task: Task) -> tuple[list[Run], dict[str, bytes]]:
    """The same on a machine that may not see the sweep's folder: what it would write there goes back, by its name."""
    with TemporaryDirectory(prefix="amber2-") as folder:
        worker.sweep = replace(worker.sweep, folder=Path(folder))
        runs = train(worker, task)
        return runs, {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def scored(sweep: Sweep, fold: FoldData, place: int, one: Fitted) -> tuple[Run, Fitted, Predicted]:
    """A trained run with its scores, and what it says of test."""
    system, name = system_of(sweep.settings[place][0]), sweep.names[place]
    kind, history = system.kind(one.setting), one.history
    threshold = _threshold(name, one) if kind == MULTI_LABEL else None
    on_dev, on_test = (_checked(name, one.probs(rows), rows, kind) for rows in (fold.dev, fold.test))
    test = scores(fold.test, on_test, history, threshold) if sweep.score_all else {}
    dev = scores(fold.dev, on_dev, history, threshold)
    run = Run(fold.number, place, one.seed, history, dev, test, threshold)
    return run, one, Predicted(on_test, system.measures(one, fold.test))


def keep(sweep: Sweep, task: Task, found: Sequence[tuple[Run, Fitted, Predicted]]) -> None:
    """Write a finished task into the folder of the sweep."""
    FinishedTasks(sweep.folder).write(task, found, [_origin(sweep, run) for run, _, _ in found])


def _threshold(name: str, one: Fitted) -> float:
    """Above which a class is predicted present. SettingError: none was chosen."""
    found = getattr(one, "threshold", None)
    if not isinstance(found, float | int) or not 0 <= found <= 1:
        raise SettingError(f"{name} predicts presence: each of its runs needs a threshold in [0, 1], chosen on dev")
    return float(found)


def _checked(name: str, probs: Probs, rows: Rows, kind: Kind) -> Probs:
    """What a system predicts, if it is of its kind: every row of NaN, or of probabilities in [0, 1].

    Those of a distribution sum to one.

    Raises:
        SettingError: it is not.
    """
    shape = tuple(rows.targets.shape)
    for head, some in probs.items():
        if some.shape != shape:
            raise SettingError(
                f"{name} predicts {some.shape} by its head {head!r}, expected (utterances, classes) = {shape}"
            )
        there = some[~np.isnan(some).all(axis=-1)]
        if kind == MULTI_LABEL:
            if not ((there >= 0) & (there <= 1)).all():
                raise SettingError(f"{name} predicts by its head {head!r} what is no presence: each is in [0, 1]")
        elif not (there >= 0).all() or not np.allclose(there.sum(axis=-1), 1, atol=1e-3):
            raise SettingError(f"{name} predicts by its head {head!r} what is no distribution: shares sum to one")
    return probs


def scores(rows: Rows, probs: Probs, history: History, threshold: float | None = None) -> dict[str, Scores]:
    """Every metric of every head, over the utterances that have it."""
    target = rows.targets.cpu().numpy()
    return {
        head: scores_of(target, some, rows.having_head(head), threshold, has_epochs=head in history.epoch)
        for head, some in probs.items()
    }


def _origin(sweep: Sweep, run: Run) -> dict[str, Any]:
    _, setting = sweep.settings[run.setting]
    return {
        **sweep.origin,
        "system": sweep.names[run.setting],
        "setting": dict(setting),
        "fold": run.fold,
        "seed": run.seed,
    }


@contextmanager
def _memory_for(what: str, device: str) -> Iterator[None]:
    """Raises WorkerError where there is too little memory for what is done within.

    Another time there may be enough: what was finished is worth keeping.
    """
    try:
        yield
    except MemoryError:
        pass
    except RuntimeError as problem:
        if not is_out_of_memory(problem):
            raise
    else:
        return
    instead = "let fewer workers run, as with OMP_NUM_THREADS=1" if device == "cpu" else "use --device cpu"
    raise WorkerError(f"{device} ran out of memory with {what}, or {instead}")
