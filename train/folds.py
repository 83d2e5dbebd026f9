"""Fold protocols as named functions: who said what goes in, rows of train, dev and test come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amber2_core.errors import SettingError, bad_choice
from amber2_core.votes import codes

from .targets import TrainingData

Rows = npt.NDArray[np.intp]
FOLD_COUNT = 5


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of the training data in the three parts of one fold; fold k is tested once, by its own models."""

    number: int  # 1, 2, …
    train: Rows
    dev: Rows
    test: Rows
    # speakers who stand in more than one part; 0 unless the protocol's name says otherwise
    shared_speakers: int


def session_folds(data: TrainingData) -> Sequence[Rows]:
    """One fold per session, in the order of their names."""
    return _groups(data.session, "session")


def speaker_folds(data: TrainingData) -> Sequence[Rows]:
    """Five folds of about equal size in which no speaker stands twice: the largest speakers are dealt out first."""
    by_speaker = _groups(data.speaker, "speaker")
    largest_first = sorted(range(len(by_speaker)), key=lambda k: (-len(by_speaker[k]), k))
    folds: list[list[Rows]] = [[] for _ in range(min(FOLD_COUNT, len(by_speaker)))]
    for k in largest_first:
        lightest = min(folds, key=lambda fold: sum(map(len, fold)))
        lightest.append(by_speaker[k])
    return [np.sort(np.concatenate(fold)) for fold in folds]


PROTOCOLS: Mapping[str, Callable[[TrainingData], Sequence[Rows]]] = {
    "session": session_folds,
    "speaker": speaker_folds,
}


def make_folds(protocol: str, data: TrainingData) -> tuple[Fold, ...]:
    """Fold k tests on part k, selects on the next one (the first after the last) and trains on all others.

    Raises:
        SettingError: no such protocol, too little to divide, or an empty part.
    """
    if protocol not in PROTOCOLS:
        raise SettingError(bad_choice("folds", protocol, PROTOCOLS))
    parts = PROTOCOLS[protocol](data)
    if len(parts) < 3:
        raise SettingError(
            f"Folds by {protocol} need at least 3 {protocol}s for train, dev and test, the kept utterances have "
            f"{len(parts)}: an empty train or dev set would be left; choose other --folds or more data"
        )
    folds = []
    for k in range(len(parts)):
        dev = (k + 1) % len(parts)
        train = np.sort(np.concatenate([part for j, part in enumerate(parts) if j not in (k, dev)]))
        folds.append(Fold(k + 1, train, parts[dev], parts[k], _shared_speakers(data, train, parts[dev], parts[k])))
    return tuple(folds)


def _groups(column: npt.NDArray[np.object_], name: str) -> list[Rows]:
    unknown = int((column == "").sum())
    if unknown:
        raise SettingError(
            f"Folds by {name} need a {name} for every utterance, {unknown} of {len(column)} have none: "
            f"choose other --folds"
        )
    numbers, names = codes(column)
    return [np.flatnonzero(numbers == names.index(name)) for name in sorted(names)]


def _shared_speakers(data: TrainingData, *parts: Rows) -> int:
    speakers = [set(data.speaker[part]) - {""} for part in parts]
    return len((speakers[0] & speakers[1]) | (speakers[0] & speakers[2]) | (speakers[1] & speakers[2]))
