"""What encoders made of a corpus: feature sets and failures beside the tables, as one feature cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import CacheError
from .tables import AttributeColumns, RatingTable, Texts, UtteranceTable, is_storable_name
from .utterance import LabelDefaults

Recipe = Mapping[str, Any]  # JSON values only
FeatureKey = tuple[str, str]  # (modality, name)
# in place of a digest: vectors that import-features brought, from what is not known
IMPORTED = "imported"
BLOCK_BYTES = 1 << 22  # of numbers that lie on the disk, read together
SAMPLED = 64  # rows looked at to see whether it is worth looking at all


class Side(NamedTuple):
    """A feature set that a system reads beside the modalities, as a sentiment, or predictions made elsewhere."""

    modality: str
    # None: the only one of its modality
    name: str | None = None
    # whether the system cannot do without
    needed: bool = True

    @property
    def key(self) -> str:
        """By which rows know it."""
        return f"{self.modality}:{self.name}" if self.name else self.modality


class Rows(Protocol):
    """Numbers by row: an array, or what lies on the disk and is read where it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its first number is that of the rows."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers."""

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        """Rows that follow one another."""


@dataclass(frozen=True)
class StoredArray:
    """Where in a file numbers lie in one piece: small and picklable, for other processes to map into memory."""

    path: Path
    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    written: tuple[int, int]  # the file's size and time in ns, by which a later one of the same name is known

    def open(self) -> npt.NDArray[Any]:
        """The numbers, mapped: whoever changes them changes a copy of his own, never the file.

        In caches that an older version wrote they may begin at any byte, so that `flags.aligned` is False.

        Raises:
            CacheError: another file stands under the name now, or none.
        """
        try:
            with self.path.open("rb") as file:
                if file_stamp(file.fileno()) != self.written:
                    raise CacheError(f"{self.path} was replaced while it was in use: run the command again")
                if 0 in self.shape:  # nothing cannot be mapped
                    return np.empty(self.shape, self.dtype)
                return np.memmap(file, self.dtype, "c", self.offset, self.shape)
        except OSError as problem:
            raise CacheError(f"Cannot read {self.path}: {problem.strerror or problem}") from None

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        """Rows that follow one another."""
        return self.open()[rows]


ValuesType = TypeVar("ValuesType", bound=Rows, covariant=True)


@dataclass(frozen=True, eq=False)
class FrameSet(Generic[ValuesType]):
    """Sequences of all utterances behind one another; utterance i owns rows offsets[i]:offsets[i + 1]."""

    values: ValuesType  # (ΣT, D)
    offsets: npt.NDArray[np.int64]  # (N + 1,)


@dataclass(frozen=True, eq=False)
class FeatureSet(Generic[ValuesType]):
    """One feature set: what one encoder, under one recipe, made of one modality."""

    modality: str  # audio | text | video | sentiment
    name: str
    values: ValuesType  # (N, D) or (N, layers, D), NaN rows: not encoded
    inputs: Texts  # (N,) sha256 of what each row was encoded from, "" for NaN rows
    recipe: Recipe
    frames: FrameSet[ValuesType] | None = None

    @property
    def fingerprint(self) -> str:
        """The cache key: sha256 of the recipe."""
        return fingerprint(self.recipe)

    @property
    def encoded(self) -> npt.NDArray[np.bool_]:
        """(N,) True where the row holds features."""
        return np.array([digest != "" for digest in self.inputs], dtype=bool)


# numbers in memory
Frames = FrameSet[npt.NDArray[np.floating[Any]]]
Features = FeatureSet[npt.NDArray[np.floating[Any]]]
# numbers wherever they are: a feature set larger than memory can be written and read
StoredFrames = FrameSet[Rows]
StoredFeatures = FeatureSet[Rows]
# numbers to be mapped by whoever needs them
MappedFeatures = FeatureSet[StoredArray]


@dataclass(frozen=True)
class Failure:
    """An utterance that could not be encoded."""

    utterance: str
    stage: str  # the feature set that lacks it: audio/wav2vec2-base
    reason: str

    def __str__(self) -> str:
        return f"{self.utterance} ({self.stage}): {self.reason}"


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """Everything that one cache file holds."""

    corpus: str
    utterances: UtteranceTable  # N rows
    ratings: RatingTable
    defaults: LabelDefaults
    # a file gives them, and the attributes, back in the order of their names
    features: tuple[Features, ...]
    attributes: AttributeColumns = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    corpus_version: str = ""
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)

    def feature_set(self, modality: str, name: str | None = None) -> Features:
        """The feature set of a modality; `name` may be left out where there is only one.

        Raises:
            CacheError: there is none, or several and no name says which.
        """
        sets = [f for f in self.features if f.modality == modality]
        if name is not None:
            sets = [f for f in sets if f.name == name]
        if len(sets) == 1:
            return sets[0]
        held = ", ".join(f"{f.modality}/{f.name}" for f in self.features) or "none"
        wanted = f"{modality}/{name}" if name else modality
        if sets:
            raise CacheError(f"The cache holds several {wanted} feature sets ({held}): name one with --{modality}")
        raise CacheError(f"The cache holds no {wanted} features (it holds {held}): encode them with extract-features")


def fingerprint(recipe: Recipe) -> str:
    """sha256 of a recipe's canonical JSON (sorted keys, no spaces), in hex."""
    return hashlib.sha256(canonical_json(recipe).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON that is the same text for the same value: sorted keys, no spaces.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def file_stamp(descriptor: int) -> tuple[int, int]:
    """What tells an open file from one that takes its name later: `StoredArray.written`."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def blocks(values: Rows) -> Iterator[slice]:
    """Stretches of rows, small enough to be read one after the other whatever there is in all."""
    of_one = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    some = max(1, BLOCK_BYTES // max(1, of_one))
    for first in range(0, values.shape[0], some):
        yield slice(first, min(first + some, values.shape[0]))


def repeated_rows(values: Rows) -> tuple[int, int] | None:
    """How many rows hold one and the same vector, of how many that hold any, where that is more than half of them.

    None otherwise, and where a single row does. All is read only if a sample of 64 rows has a vector in many of them.
    """
    places = np.unique(np.linspace(0, max(0, values.shape[0] - 1), SAMPLED, dtype=int))
    digests = {int(place): _digest(values[place : place + 1]) for place in places[: values.shape[0]]}
    sample = Counter(digest for digest in digests.values() if digest)
    if not sample or (common := sample.most_common(1)[0])[1] < len(places) / 4:
        return None
    place = next(place for place, digest in digests.items() if digest == common[0])
    repeated = values[place : place + 1]
    counts = np.array([_equal_and_held(values[rows], repeated) for rows in blocks(values)])
    same, held = counts.sum(0).tolist()
    return (same, held) if same > max(1, held / 2) else None


def _digest(row: npt.NDArray[Any]) -> str:
    """Of a row's numbers; "" where it holds none."""
    return "" if np.isnan(row).any() else hashlib.sha256(np.ascontiguousarray(row).data).hexdigest()


def _equal_and_held(values: npt.NDArray[Any], row: npt.NDArray[Any]) -> tuple[int, int]:
    """How many rows equal one, and how many hold numbers."""
    axes = tuple(range(1, values.ndim))
    return int((values == row).all(axis=axes).sum()), int((~np.isnan(values).all(axis=axes)).sum())


def check_fit(cache: FeatureCache, stored: Sequence[StoredFeatures] = ()) -> None:
    """Check that the parts of a cache fit together, so that what is written can be read and trained on.

    Args:
        cache: all of a cache, or what is in memory of it.
        stored: its further feature sets.

    Raises:
        CacheError: columns of different lengths, an id twice, a rating of no utterance, a name that HDF5 cannot hold,
            features of a wrong shape or type, NaN or infinity in a row that was encoded, numbers in one that was not.
    """
    count = len(cache.utterances)
    for what, table in (("utterances", cache.utterances), ("ratings", cache.ratings)):
        lengths = {column.name: len(getattr(table, column.name)) for column in fields(table)}
        if len(set(lengths.values())) > 1:
            raise CacheError(f"the columns of the {what} have different lengths, {lengths}")
    if len(set(cache.utterances.id)) < count:
        raise CacheError("two utterances have the same id")
    if len(cache.ratings) and not 0 <= cache.ratings.utterance.min() <= cache.ratings.utterance.max() < count:
        raise CacheError(f"a rating belongs to none of the {count} utterances")
    for name, column in cache.attributes.items():
        if not is_storable_name(name):
            raise CacheError(f"Bad attribute name {name!r}, expected one without '/'")
        if column.shape != (count,) or column.dtype not in (np.dtype(np.float64), np.dtype(object)):
            raise CacheError(f"attribute {name!r} must be ({count},) float64 or text, is {column.shape} {column.dtype}")
    sets: tuple[StoredFeatures, ...] = (*cache.features, *stored)
    keys = [f"{features.modality}/{features.name}" for features in sets]
    for key, features in zip(keys, sets, strict=True):
        if not is_storable_name(features.modality) or not is_storable_name(features.name):
            raise CacheError(f"Bad feature set name {key!r}, expected <modality>/<name> without another '/'")
        if keys.count(key) > 1:
            raise CacheError(f"two feature sets are called {key!r}")
        for problem in _misfits(features, cache.utterances.id):
            raise CacheError(f"{key} {problem}")


def _misfits(features: StoredFeatures, ids: Texts) -> Iterator[str]:
    """What is wrong with a feature set of the utterances with these ids; nothing if it is well."""
    values, count = features.values, len(ids)
    if len(values.shape) not in (2, 3) or 0 in values.shape[1:] or values.dtype not in (np.float32, np.float16):
        yield f"must be (N, D) or (N, layers, D) of float32 or float16, is {values.shape} {values.dtype}"
    if values.shape[0] != count or len(features.inputs) != count:
        yield f"has {values.shape[0]} rows and {len(features.inputs)} inputs for {count} utterances"
    encoded = features.encoded
    for rows in blocks(values):
        block = values[rows]
        block = block.reshape(len(block), -1)  # (rows, ·)
        right = np.where(encoded[rows], np.isfinite(block).all(axis=1), np.isnan(block).all(axis=1))
        if not right.all():
            row = rows.start + int(np.argmin(right))
            held = "NaN or infinity" if encoded[row] else "numbers, though nothing was encoded"
            yield f"holds {held} in the row of utterance {ids[row]!r}"
    if features.frames is not None:
        yield from _misfits_of_frames(features.frames, count)


def _misfits_of_frames(sequences: StoredFrames, count: int) -> Iterator[str]:
    offsets, frames = sequences.offsets, sequences.values
    is_right = len(frames.shape) == 2 and frames.dtype in (np.float32, np.float16)
    if not is_right or not all(np.isfinite(frames[rows]).all() for rows in blocks(frames)):
        yield f"frames must be (ΣT, D) of finite float32 or float16, are {frames.shape} {frames.dtype}"
    if offsets.shape != (count + 1,) or offsets.dtype != np.int64:
        yield f"frames need ({count + 1},) int64 offsets, have {offsets.shape} {offsets.dtype}"
    if offsets[0] != 0 or offsets[-1] != frames.shape[0] or (np.diff(offsets) < 0).any():
        yield f"frames need offsets that rise from 0 to {frames.shape[0]}"
