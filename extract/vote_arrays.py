"""A file of arrays that holds a whole corpus → a feature cache of its utterances and votes, still without features.

The arrays, each with N rows: `id`; `votes_audio`, `votes_video`, `votes_audiovisual` or `votes` (N, C), how many raters
chose each of the C names in `emotions` (or their shares); and, as far as known, `speaker`, `session`, `dialogue`,
`split`, `language`, `transcript`, `audio` (a path), `start` and `duration` (s). Any other column of N numbers or texts
is an attribute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Literal

import numpy as np
import numpy.typing as npt

from amber2_core.arrays import Array, ArrayFile
from amber2_core.cache import FeatureCache
from amber2_core.errors import CacheError
from amber2_core.tables import RatingTable, Texts, UtteranceTable, is_storable_name, texts
from amber2_core.utterance import STIMULI, LabelDefaults, Stimulus

ID_NAMES = ("id", "ids")
EMOTIONS = "emotions"
VOTES: Mapping[str, Stimulus] = {"votes": "audiovisual", **{f"votes_{stimulus}": stimulus for stimulus in STIMULI}}
TEXT_COLUMNS = ("speaker", "session", "dialogue", "split", "language", "transcript", "audio")
NUMBER_COLUMNS = ("start", "duration")
MAX_VOTES = 10_000  # of one utterance for one emotion


def software_versions() -> dict[str, str]:
    """What wrote a cache of imported features."""
    return {package: version(package) for package in ("amber2", "numpy", "h5py")}


def holds_votes(file: ArrayFile) -> bool:
    """Whether a file may become a whole cache."""
    return EMOTIONS in file.shapes and any(array in file.shapes for array in VOTES)


def cache_of_arrays(file: ArrayFile, ids: Texts, name: str, defaults: LabelDefaults | None = None) -> FeatureCache:
    """A cache without features.

    Args:
        file: the arrays; their names are those that this module's docstring lists.
        ids: (N,) of the utterances.
        name: of the corpus.
        defaults: how it is labelled; by default its emotions in their order, any vote.

    Raises:
        CacheError: there are no votes, or an array is of another shape or type.
    """
    if not holds_votes(file):
        raise CacheError(
            f"{file.path} holds no votes ({[*file.shapes]}): add its vectors to a cache with --cache CACHE, "
            f"or to a corpus with --corpus NAME; a whole cache needs {EMOTIONS!r} and one of {[*VOTES]}"
        )
    held = [array for array in VOTES if array in file.shapes]
    emotions = tuple(str(emotion).strip() for emotion in file.read(EMOTIONS))
    columns, unknown = dict(_columns(file, len(ids))), np.full(len(ids), np.nan)
    table = UtteranceTable(
        id=ids,
        **{column: columns.pop(column, texts([""] * len(ids))) for column in TEXT_COLUMNS},
        audio_sha256=texts([""] * len(ids)),
        start=columns.pop("start", unknown).astype(np.float32),
        duration=columns.pop("duration", unknown).astype(np.float32),
    )
    stimuli = {VOTES[array]: _votes(file, array, (len(ids), len(emotions))) for array in held}
    return FeatureCache(
        corpus=name,
        utterances=table,
        ratings=_rating_table(stimuli, emotions),
        defaults=defaults or _defaults(table, emotions, tuple(stimuli)),
        features=(),
        attributes={column: values for column, values in columns.items() if is_storable_name(column)},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=software_versions(),
        summary={"imported": file.path.name},
    )


def _columns(file: ArrayFile, count: int) -> Iterator[tuple[str, Array]]:
    """Every array of one value per utterance, as columns of the cache."""
    for name, shape in file.shapes.items():
        if name in (*ID_NAMES, EMOTIONS) or shape != (count,):
            continue
        values = file.read(name)
        if name in TEXT_COLUMNS and values.dtype != object:
            values = texts([str(value) for value in values.tolist()])
        if name in NUMBER_COLUMNS and values.dtype.kind not in "fiu":
            raise CacheError(f"array {name!r} of {file.path} holds no numbers")
        if values.dtype.kind in "fiub":
            yield name, values.astype(np.float64)
        elif values.dtype == object:
            yield name, values


def _votes(file: ArrayFile, name: str, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    values = file.read(name)
    if values.shape != shape or values.dtype.kind not in "fiu":
        raise CacheError(f"array {name!r} of {file.path} is {values.shape} {values.dtype}, expected {shape} of votes")
    votes = values.astype(np.float64)
    if not (np.isfinite(votes).all() and (votes >= 0).all() and (votes <= MAX_VOTES).all()):
        raise CacheError(f"array {name!r} of {file.path} holds votes below 0, above {MAX_VOTES:,} or not finite")
    return votes


def _rating_table(stimuli: Mapping[Stimulus, npt.NDArray[np.float64]], emotions: tuple[str, ...]) -> RatingTable:
    """One row for each vote of an anonymous rater; where votes are no whole numbers, one for each share."""
    parts: list[tuple[npt.NDArray[np.intp], list[str], Stimulus, npt.NDArray[np.intp], npt.NDArray[np.float64]]] = []
    for stimulus, votes in stimuli.items():
        utterance, emotion = np.nonzero(votes)
        amount = votes[utterance, emotion]
        if (amount == np.floor(amount)).all():
            counts = amount.astype(np.intp)
            utterance, emotion = np.repeat(utterance, counts), np.repeat(emotion, counts)
            first = np.searchsorted(utterance, utterance)  # of the ticks on the same utterance
            raters = [f"anonymous{number}" for number in np.arange(len(utterance)) - first + 1]
            amount = np.ones(len(utterance))
        else:
            raters = ["distribution"] * len(utterance)
        parts.append((utterance, raters, stimulus, emotion, amount))
    utterance = np.concatenate([part[0] for part in parts])
    order = np.argsort(utterance, kind="stable")
    return RatingTable(
        utterance=utterance[order].astype(np.int32),
        rater=texts([rater for part in parts for rater in part[1]])[order],
        source=texts(["external"] * len(order)),
        stimulus=texts([part[2] for part in parts for _ in part[1]])[order],
        label=texts(list(emotions))[np.concatenate([part[3] for part in parts])[order]],
        weight=np.concatenate([part[4] for part in parts])[order].astype(np.float32),
    )


def _defaults(table: UtteranceTable, emotions: tuple[str, ...], stimuli: tuple[Stimulus, ...]) -> LabelDefaults:
    folds: Literal["session", "speaker", "stratified"] = "stratified"
    if all(table.session):
        folds = "session"
    elif all(table.speaker):
        folds = "speaker"
    stimulus: Stimulus = "audiovisual" if "audiovisual" in stimuli else stimuli[0]
    return LabelDefaults(emotions=emotions, stimulus=stimulus, keep="any-vote", folds=folds)
