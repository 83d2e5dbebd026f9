"""A sweep in the test's own process: what workers do and what is made of it, without a command around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amber2_train import worker
from amber2_train.folds import make_folds
from amber2_train.grid import Setting, axes_of
from amber2_train.request import feature_record
from amber2_train.results import Results, results_of
from amber2_train.selection import Selection
from amber2_train.systems.system import FitOptions
from amber2_train.tasks import FinishedTasks, tasks_of
from amber2_train.training_data import Fold, TrainingData


@dataclass(frozen=True)
class Swept:
    """A sweep that is done."""

    selection: Selection
    results: Results

    def chosen(self, system: str, fold: int) -> Setting:
        """What dev chose."""
        return self.selection.settings[self.results.selected[system][fold]]


def sweep_of(
    folder: Path,
    data: TrainingData,
    settings: Sequence[Setting],
    folds: Sequence[Fold] | None = None,
    *,
    epochs: int = 3,
    device: str = "cpu",
    standardise: bool = False,
    score_all: bool = False,
    **options: Any,
) -> worker.Sweep:
    """What workers are told of a sweep whose files are kept in a folder."""
    features = {modality: feature_record(some) for modality, some in data.inputs.items()}
    origin = {"emotions": list(data.emotions), "policy": {}, "features": features}
    return worker.Sweep(
        data,
        {fold.number: fold for fold in folds or make_folds("session", data)},
        tuple((setting.reference, setting.row()) for setting in settings),
        tuple(setting.name for setting in settings),
        FitOptions(epochs, **options),
        device,
        standardise,
        score_all,
        origin,
        folder,
    )


def swept(
    folder: Path,
    data: TrainingData,
    settings: Sequence[Setting],
    folds: Sequence[Fold] | None = None,
    *,
    seeds: int = 2,
    **options: Any,
) -> Swept:
    """A whole sweep, trained here; options are those of `sweep_of`."""
    sweep = sweep_of(folder, data, settings, folds, **options)
    folder.mkdir(parents=True, exist_ok=True)
    here = worker.Worker(1, sweep)
    selection = Selection(settings, seeds, FinishedTasks(folder))
    for task in tasks_of([setting.shape for setting in settings], seeds, list(sweep.folds), sweep.device):
        for run in worker.train(here, task):
            selection.add(run)
    columns = list(axes_of(list(dict.fromkeys(setting.reference for setting in settings))))
    return Swept(selection, results_of(selection, data, list(sweep.folds.values()), columns))
