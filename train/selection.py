"""Selection on dev: of each system in each fold the setting whose runs score best, as the runs come in."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from amber2_core.errors import SettingError
from amber2_core.metrics import METRICS_OF

from .grid import Setting, decider
from .tasks import FinishedTasks, Run
from .training_data import Fold, TrainingData

_log = logging.getLogger(__name__)


class Selection:
    """The best setting of each system in each fold so far, and all runs' scores.

    Args:
        settings: of the sweep.
        seeds: how many runs each setting has on a fold.
        finished: where the runs' files are; those of settings that were not chosen are removed.
    """

    def __init__(self, settings: Sequence[Setting], seeds: int, finished: FinishedTasks) -> None:
        self.settings, self.seeds, self.finished = settings, seeds, finished
        # (fold, setting) → its runs, by seed
        self.runs: dict[tuple[int, int], dict[int, Run]] = {}
        # (fold, name of the system) → place of the setting, and its dev score, averaged over seeds
        self.best: dict[tuple[int, str], tuple[int, float]] = {}
        self._there = Counter[int]()  # fold → how many runs

    def add(self, run: Run) -> None:
        """Take in a run; with a setting's last one it competes.

        The best dev score of the head that the system names wins, the lowest JS unless the system decides by another
        metric; the earlier setting on a tie. A setting of which a run never had a score that is a number does not
        compete; one without epochs that predicts nothing on dev does, as imported predictions may be of test alone.
        """
        runs = self.runs.setdefault((run.fold, run.setting), {})
        runs[run.seed] = run
        self._there[run.fold] += 1
        if len(runs) < self.seeds:
            return
        setting = self.settings[run.setting]
        head = decider(setting, tuple(run.dev))
        score = float(np.mean([each.dev[head][setting.decides] for each in self.of(run.fold, run.setting)]))
        if not run.history.epoch and run.dev[head].get("n") == 0:
            score = math.inf
        elif not np.isfinite(score):
            words = (setting.point, title_of(setting))
            _log.warning("%s: the dev %s of a run is not a number from the first epoch on: left out", *words)
            self._drop(run.fold, run.setting)
            return
        key = (run.fold, setting.name)
        held = self.best.get(key)
        if held is None or _rank(setting, run.setting, score) < _rank(setting, *held):
            self.best[key] = (run.setting, score)
            if held is not None:
                self._drop(run.fold, held[0])
        else:
            self._drop(run.fold, run.setting)

    def is_complete(self, fold: int) -> bool:
        """Whether all runs of a fold are there."""
        return self._there[fold] == self.seeds * len(self.settings)

    def chosen(self, fold: int) -> dict[str, int]:
        """Name of the system → place of its setting.

        Raises:
            SettingError: a system has no setting that could be chosen.
        """
        names = dict.fromkeys(setting.name for setting in self.settings)
        for name in names:
            if (fold, name) not in self.best:
                title = next(title_of(setting) for setting in self.settings if setting.name == name)
                raise SettingError(f"{name} diverged in fold {fold}: no dev {title} is a number; try a smaller --lr")
        return {name: self.best[fold, name][0] for name in names}

    def of(self, fold: int, place: int) -> list[Run]:
        """A setting's runs on a fold, seed by seed."""
        runs = self.runs[fold, place]
        return [runs[seed] for seed in sorted(runs)]

    def _drop(self, fold: int, place: int) -> None:
        self.finished.remove(self.of(fold, place))


def title_of(setting: Setting) -> str:
    """What the metric that decides between settings is called."""
    return METRICS_OF[setting.kind][setting.decides].title


def _rank(setting: Setting, place: int, score: float) -> tuple[float, int]:
    """The lower, the better; what has no score is last."""
    lower = METRICS_OF[setting.kind][setting.decides].better == "lower"
    return (score if lower or math.isinf(score) else -score), place


def check_deciders(data: TrainingData, folds: Sequence[Fold], settings: Sequence[Setting]) -> None:
    """Raises SettingError where dev could choose no setting of a system: in a fold nobody has a head to decide by."""
    for fold in folds:
        parts = (fold.train, fold.dev)
        lacking = {name for name, having in data.present.items() if not all(having[rows].any() for rows in parts)}
        for name, heads in _deciders(data, settings).items():
            if heads <= lacking:
                title = next(title_of(setting) for setting in settings if setting.name == name)
                raise SettingError(
                    f"{name} is chosen by the dev {title} of its {' or '.join(sorted(heads))} head, and in fold "
                    f"{fold.number} no utterance of train or none of dev has it: choose another --student, other "
                    "--folds or --missing drop"
                )


def warn_of_deciders(data: TrainingData, settings: Sequence[Setting]) -> None:
    """Log where settings of a system are compared by heads that not the same utterances have."""
    for name, heads in _deciders(data, settings).items():
        if len(heads) > 1 and heads & data.present.keys():
            words = (name, next(title_of(one) for one in settings if one.name == name), " or ".join(sorted(heads)))
            _log.warning("%s: the dev %s of %s, by which it is chosen, is over different utterances", *words)


def _deciders(data: TrainingData, settings: Sequence[Setting]) -> Mapping[str, set[str]]:
    """The heads by whose dev JS the settings of each system are compared."""
    deciders: dict[str, set[str]] = {}
    for setting in settings:
        deciders.setdefault(setting.name, set()).add(decider(setting, setting.system.heads(tuple(data.inputs))))
    return deciders
