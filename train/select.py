"""Selection on dev: fitted settings go in, the best of each system so far stays."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from amber2_core.errors import SettingError
from amber2_core.heads import Architecture

from .fit import Fitted
from .folds import Fold
from .grid import Setting
from .systems import registry
from .targets import TrainingData

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Run:
    """One trained run, on the CPU."""

    architecture: Architecture
    state: dict[str, Tensor]
    epochs: dict[str, int]  # head → the epoch kept
    curves: dict[str, list[float]]  # head → the dev JS after every epoch, as training saw it


@dataclass(frozen=True, eq=False)
class Candidate:
    """The best setting of a system so far in one fold."""

    setting: Setting
    # of the head that decides, averaged over seeds
    dev_js: float
    # one per seed
    runs: tuple[Run, ...]


def best_settings(
    settings: Sequence[Setting], fitted: Sequence[Fitted], dev_js: npt.NDArray[np.float64]
) -> dict[str, Candidate]:
    """The setting of each system with the lowest dev JS, the earlier one on a tie.

    A setting under which a run never had a dev JS that is a number does not compete.

    Args:
        settings: one stack of settings.
        fitted: the stack's runs, seeds spread over one or several.
        dev_js: (heads, seeds, settings), as results.csv holds it.
    """
    heads = fitted[0].stack.architecture.heads
    candidates: dict[str, Candidate] = {}
    for k, setting in enumerate(settings):
        decider = heads.index(registry.system(setting.system).decider(setting))
        score = float(dev_js[decider, :, k].mean())
        if not np.isfinite(score):
            _log.warning("%s: the dev JS of a run is not a number from the first epoch on: left out", setting.point)
            continue
        if setting.name not in candidates or score < candidates[setting.name].dev_js:
            runs = tuple(_run(some, seed, k) for some in fitted for seed in range(some.stack.seeds))
            candidates[setting.name] = Candidate(setting, score, runs)
    return candidates


def compete(candidates: dict[str, Candidate], others: Mapping[str, Candidate]) -> None:
    """Let later candidates take the place of earlier ones that they are better than."""
    for name, other in others.items():
        if name not in candidates or other.dev_js < candidates[name].dev_js:
            candidates[name] = other


def check_chosen(candidates: Mapping[str, Candidate], settings: Sequence[Setting], fold: int) -> None:
    """Raises SettingError where a system has no setting that could be chosen."""
    for name in dict.fromkeys(setting.name for setting in settings):
        if name not in candidates:
            raise SettingError(f"{name} diverged in fold {fold}: no dev JS is a number; try a smaller --lr")


def check_deciders(data: TrainingData, folds: Sequence[Fold], settings: Sequence[Setting]) -> None:
    """Raises SettingError where dev could choose no setting of a system: in a fold nobody has a head to decide by."""
    for fold in folds:
        parts = (fold.train, fold.dev)
        lacking = {name for name, having in data.present.items() if not all(having[rows].any() for rows in parts)}
        for name, heads in _deciders(settings).items():
            if heads <= lacking:
                raise SettingError(
                    f"{name} is chosen by the dev JS of its {' or '.join(sorted(heads))} head, and in fold "
                    f"{fold.number} no utterance of train or none of dev has it: choose another --student, other "
                    "--folds or --missing drop"
                )


def warn_of_deciders(data: TrainingData, settings: Sequence[Setting]) -> None:
    """Log where settings of a system are compared by heads that not the same utterances have."""
    for name, heads in _deciders(settings).items():
        if len(heads) > 1 and heads & data.present.keys():
            words = " or ".join(sorted(heads))
            _log.warning("%s: the dev JS of %s, by which it is chosen, is over different utterances", name, words)


def _deciders(settings: Sequence[Setting]) -> dict[str, set[str]]:
    """The heads by whose dev JS the settings of each system are compared."""
    deciders: dict[str, set[str]] = {}
    for setting in settings:
        deciders.setdefault(setting.name, set()).add(registry.system(setting.system).decider(setting))
    return deciders


def _run(fitted: Fitted, seed: int, setting: int) -> Run:
    architecture = fitted.stack.architecture
    epochs = {head: int(fitted.epoch[h, seed, setting]) for h, head in enumerate(architecture.heads)}
    curves = {
        head: fitted.curves[: fitted.epochs[h, seed, setting], h, seed, setting].tolist()
        for h, head in enumerate(architecture.heads)
    }
    state = {name: tensor.cpu() for name, tensor in fitted.stack.state(seed, setting).items()}
    return Run(architecture, state, epochs, curves)
