"""Fold protocols as named functions: which rows train, which choose, which test.

`session` and `speaker` never part a speaker and are refused where they would. `stratified`, `official` and
`column:NAME` do not look at speakers; how many stand in more than one part of a fold is counted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from amber2_core.distributions import ambiguity_bins, label
from amber2_core.errors import SettingError, bad_choice
from amber2_core.votes import codes

from .training_data import Fold, RowNumbers, TrainingData

FOLD_COUNT = 5
ENTROPY_BINS = 5
STRATIFIED_SEED = 20_260
# spellings of the partitions of releases, in lower case; "test1" is what most papers mean by test
TRAIN, DEV, TEST = ("train",), ("dev", "development", "val", "valid", "validation"), ("test", "test1")

_log = logging.getLogger(__name__)


def session_folds(data: TrainingData) -> Sequence[RowNumbers]:
    """One fold per session, in the order of their names."""
    return _groups(data.session, "session")


def speaker_folds(data: TrainingData) -> Sequence[RowNumbers]:
    """Five folds of about equal size in which no speaker stands twice: the largest speakers are dealt out first."""
    by_speaker = _groups(data.speaker, "speaker")
    largest_first = sorted(range(len(by_speaker)), key=lambda k: (-len(by_speaker[k]), k))
    folds: list[list[RowNumbers]] = [[] for _ in range(min(FOLD_COUNT, len(by_speaker)))]
    for k in largest_first:
        lightest = min(folds, key=lambda fold: sum(map(len, fold)))
        lightest.append(by_speaker[k])
    return [np.sort(np.concatenate(fold)) for fold in folds]


def stratified_folds(data: TrainingData) -> Sequence[RowNumbers]:
    """Five equal folds with the same share of every (largest class × entropy bin); speakers may stand in several.

    Entropy is binned in five equal widths of [0, log2 C] bits. The draw is fixed, and depends on the ids alone: not on
    the order in which the cache holds them.
    """
    stratum = label(data.targets) * ENTROPY_BINS + ambiguity_bins(data.targets, count=ENTROPY_BINS)[0]  # (N,)
    by_id = np.argsort(data.id.astype(str), kind="stable")
    shuffled = by_id[np.random.default_rng(STRATIFIED_SEED).permutation(len(by_id))]
    dealt = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    return [np.sort(dealt[k::FOLD_COUNT]) for k in range(min(FOLD_COUNT, len(dealt)))]


def column_folds(data: TrainingData, name: str) -> Sequence[RowNumbers]:
    """One fold per value of a column or attribute of the cache, in their order ("2" before "10")."""
    if name not in data.columns:
        raise SettingError(bad_choice("column of --folds", name, data.columns))
    return _groups(data.columns[name], name)


def official_fold(data: TrainingData, split: str = "") -> Fold:
    """One fold: the release's own partitions; `split` is the one to test on, else test or test1.

    Raises:
        SettingError: train, dev or the partition to test on has no kept utterance, or `split` is train or dev itself.
    """
    if split.casefold() in (*TRAIN, *DEV):
        raise SettingError(
            f"Folds official:{split} would test on utterances that train or choose: name another split of the release"
        )
    labels = np.array([label.casefold() for label in data.split], dtype=object)
    held = sorted({label for label in labels if label})
    parts = [np.flatnonzero(np.isin(labels, names)) for names in (TRAIN, DEV, (split.casefold(),) if split else TEST)]
    for rows, what in zip(parts, ("train", "dev", split or "test"), strict=True):
        if not len(rows):
            raise SettingError(
                f"Folds official need utterances of the split {what!r}, the kept ones are of {held or 'no split'}: "
                "choose other --folds"
            )
    left = len(data) - sum(map(len, parts))
    if left:
        _log.info("%d utterances of other splits are neither trained nor tested on", left)
    train, dev, test = parts
    return Fold(1, train, dev, test, _shared_speakers(data, *parts))


PROTOCOLS: Mapping[str, Callable[[TrainingData], Sequence[RowNumbers]]] = {
    "session": session_folds,
    "speaker": speaker_folds,
    "stratified": stratified_folds,
}
SPEAKER_SAFE = ("session", "speaker")
CHOICES = (*PROTOCOLS, "official", "official:SPLIT", "column:NAME")


def make_folds(protocol: str, data: TrainingData) -> tuple[Fold, ...]:
    """Fold k tests on part k, selects on the next one (the first after the last) and trains on all others.

    Raises:
        SettingError: no such protocol, too little to divide, an empty part, or a protocol that should part no speaker
            would.
    """
    kind, _, name = protocol.partition(":")
    if kind == "official":
        return (official_fold(data, name),)
    if kind == "column" and name:
        parts, what = column_folds(data, name), f"{name} value"
    elif protocol in PROTOCOLS:
        parts, what = PROTOCOLS[protocol](data), "utterance" if protocol == "stratified" else protocol
    else:
        raise SettingError(bad_choice("folds", protocol, CHOICES))
    if len(parts) < 3:
        raise SettingError(
            f"Folds by {protocol} need at least 3 {what}s for train, dev and test, the kept utterances have "
            f"{len(parts)}: an empty train or dev set would be left; choose other --folds or more data"
        )
    folds = []
    for k in range(len(parts)):
        dev = (k + 1) % len(parts)
        train = np.sort(np.concatenate([part for j, part in enumerate(parts) if j not in (k, dev)]))
        folds.append(Fold(k + 1, train, parts[dev], parts[k], _shared_speakers(data, train, parts[dev], parts[k])))
    shared = max(fold.shared_speakers for fold in folds)
    if shared and protocol in SPEAKER_SAFE:
        raise SettingError(
            f"Folds by {protocol} would put {shared} speakers into more than one part of a fold: "
            f"choose --folds speaker, or column:{protocol} if that is meant"
        )
    return tuple(folds)


def heard_before(recording: npt.NDArray[np.object_], folds: Sequence[Fold]) -> int:
    """How many utterances are tested on though train or dev of their fold holds the same recording.

    `recording` (K,) names the recording of each utterance, "" where it is unknown.
    """
    count = 0
    for fold in folds:
        heard = {*recording[fold.train], *recording[fold.dev]} - {""}
        count += sum(name in heard for name in recording[fold.test])
    return count


def _groups(column: npt.NDArray[np.object_], name: str) -> list[RowNumbers]:
    unknown = int((column == "").sum())
    if unknown:
        raise SettingError(
            f"Folds by {name} need a {name} for every utterance, {unknown} of {len(column)} have none: "
            f"choose other --folds"
        )
    numbers, names = codes(column)
    return [np.flatnonzero(numbers == names.index(name)) for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    """The key by which "fold2" stands before "fold10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name) if part]


def _shared_speakers(data: TrainingData, *parts: RowNumbers) -> int:
    speakers = [set(data.speaker[part]) - {""} for part in parts]
    return len((speakers[0] & speakers[1]) | (speakers[0] & speakers[2]) | (speakers[1] & speakers[2]))
