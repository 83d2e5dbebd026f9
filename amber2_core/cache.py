"""The feature cache, format version 1: a corpus encoded once, in one HDF5 file that stage 2 reads.

```
/                        format         "amber2-feature-cache"
                         format_version 1
                         corpus         name of the reader that gave the utterances
                         corpus_version as far as the release tells
                         created        ISO 8601, UTC
                         versions       JSON: software → version
                         defaults       JSON: LabelDefaults of the corpus (label space, stimulus, merge, keep, folds)
                         summary        JSON: what the writer wants remembered of its work
/utterances/             id, speaker, session, dialogue, split, language, transcript, audio, audio_sha256  (N,) utf-8
                         start, duration                                              (N,) float32, s, NaN: unknown
/ratings/                utterance (R,) int32, a row of /utterances; rater, source, stimulus, label (R,) utf-8;
                         weight (R,) float32, 1 for a person's tick. One row per tick, raw: no label policy is applied.
/attributes/<name>       (N,) float64 (NaN: unknown) or utf-8 ("": unknown); present only where the corpus gives any
/features/<modality>/<name>/
                         recipe       attribute, JSON: everything the numbers depend on
                         fingerprint  attribute, sha256 of the recipe's canonical JSON
                         values       (N, D) or (N, layers, D), float32 or float16; a row of NaN: not encoded
                         inputs       (N,) utf-8, sha256 of what the row was encoded from, "": not encoded,
                                      "imported": made elsewhere, from what is not known
                         frames/values (ΣT, D), frames/offsets (N + 1,) int64: optional, the pooled sequence of each row
/failures/               utterance (an id), stage, reason  (F,) utf-8
```
Names of attributes, modalities and feature sets hold no "/". Numbers are contiguous; text has a fixed length, padded
with NUL, in gzip chunks (HDF5 keeps text of variable length in a heap without checksums, and a damaged heap can hang
a reader). Every dataset carries `crc32`: of its bytes, or, for text, of its strings joined by NUL in UTF-8. The file
is written with HDF5's 1.10 object headers, which carry checksums of their own, and all attributes lie inside them, so
none is longer than 60,000 bytes: a flipped bit is an error, never another number and never a hang. A file stands
under its final name only when it is complete. Readers know the versions in `READERS`; they ignore groups and
attributes that they do not know.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from .columns import read_attribute, read_dataset, verify_numbers, write_attribute, write_dataset
from .errors import CacheError
from .features import (
    Failure,
    FeatureCache,
    FeatureKey,
    Features,
    FeatureSet,
    Frames,
    MappedFeatures,
    Recipe,
    StoredArray,
    StoredFeatures,
    StoredFrames,
    canonical_json,
    check_fit,
    file_stamp,
    fingerprint,
    repeated_rows,
)
from .files import Sink, written_whole
from .tables import RatingTable, UtteranceTable, texts
from .utterance import LabelDefaults

# what stages need of a cache, under one name
__all__ = [
    "Failure",
    "FeatureCache",
    "FeatureHeader",
    "Features",
    "Frames",
    "MappedFeatures",
    "StoredArray",
    "StoredFeatures",
    "fingerprint",
    "mapped_features",
    "read_cache",
    "read_feature_headers",
    "read_repeated_rows",
    "stored_features",
    "write_cache",
]

FORMAT = "amber2-feature-cache"
FORMAT_VERSION = 1
# checksums in the object headers; and numbers that begin where memory would let them, for those who map them
_LAYOUT: Mapping[str, Any] = {"libver": ("v110", "v110"), "alignment_threshold": 4096, "alignment_interval": 64}


@dataclass(frozen=True)
class FeatureHeader:
    """A feature set without its numbers."""

    modality: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    recipe: Recipe
    fingerprint: str
    has_frames: bool


def write_cache(path: Path, cache: FeatureCache, stored: Sequence[StoredFeatures] = ()) -> None:
    """Write a cache; it stands under `path` only when it is complete and on the disk.

    Args:
        path: the cache file.
        cache: all of the cache, or what is in memory of it.
        stored: its further feature sets, copied from where they lie.

    Raises:
        CacheError: the folder cannot be written, the disk is full, or the parts of the cache do not fit together.
    """
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long
        raise CacheError(f"Cannot write {path}: it is a folder; name a file with --output")
    try:
        check_fit(cache, stored)
    except CacheError as problem:
        raise CacheError(f"Cannot write {path}: {problem}") from None
    except OSError as problem:
        raise CacheError(f"Cannot read what {path} is made of: {_reason(problem)}") from None
    try:
        with written_whole(path) as writing, Sink(writing, "w+") as sink, h5py.File(sink, "w", **_LAYOUT) as file:
            _write(file, cache, stored)
    except FileExistsError:
        raise CacheError(f"Cannot write {path}: {path.parent} is a file; choose another place with --output") from None
    except OSError as problem:
        raise CacheError(f"Cannot write {path}: {_reason(problem)}; choose another place with --output") from None
    except (RuntimeError, ValueError) as problem:
        raise CacheError(f"Cannot write {path}: {_reason(problem)}") from None


def read_cache(path: Path, *, only: Collection[FeatureKey] | None = None) -> FeatureCache:
    """Read a cache and verify every checksum of what is read.

    Args:
        path: the cache file.
        only: the feature sets wanted, as (modality, name); None reads all.

    Raises:
        CacheError: no such file, not a cache, another format version, truncated, or damaged.
    """
    with _opened(path) as (file, reader):
        sets = reader.features(file, only)
        return replace(reader.tables(file), features=tuple(_with_numbers(some, read_dataset) for some in sets))


def read_feature_headers(path: Path) -> tuple[FeatureHeader, ...]:
    """What feature sets a cache holds, without reading their numbers.

    Raises:
        CacheError: as `read_cache`.
    """
    with _opened(path) as (file, reader):
        return reader.headers(file)


def read_repeated_rows(path: Path) -> dict[FeatureKey, tuple[int, int]]:
    """What `repeated_rows` finds in the feature sets that tell little, without verifying their numbers.

    Raises:
        CacheError: as `read_cache`.
    """
    with _opened(path) as (file, _):
        found = {(modality, name): repeated_rows(group["values"]) for group, modality, name in _groups(file)}
    return {key: counts for key, counts in found.items() if counts is not None}


@contextmanager
def stored_features(path: Path) -> Iterator[tuple[StoredFeatures, ...]]:
    """The feature sets of a cache, verified; their numbers can be read for as long as the block is open.

    Raises:
        CacheError: as `read_cache`.
    """
    with ExitStack() as stack:
        with _opened(path) as (_, reader):
            # HDF5 shares the open file; this handle lasts, and what goes wrong later is no damage of the file.
            sets = reader.features(stack.enter_context(_file(path)), None)
            for some in sets:
                _with_numbers(some, verify_numbers)
        yield sets


def mapped_features(path: Path, *, only: Collection[FeatureKey] | None = None) -> tuple[MappedFeatures, ...]:
    """The feature sets of a cache, verified, their numbers as places in the file that any process can map.

    Args:
        path: the cache file.
        only: the feature sets wanted, as (modality, name); None takes all.

    Raises:
        CacheError: as `read_cache`.
    """
    with _opened(path) as (file, reader):
        written = file_stamp(file.id.get_vfd_handle())
        return tuple(
            _with_numbers(some, partial(_verified_place, path, written)) for some in reader.features(file, only)
        )


def _write(file: h5py.File, cache: FeatureCache, stored: Sequence[StoredFeatures]) -> None:
    write_attribute(file, "format", FORMAT)
    file.attrs["format_version"] = FORMAT_VERSION
    for name in ("corpus", "corpus_version", "created"):
        write_attribute(file, name, getattr(cache, name))
    write_attribute(file, "versions", canonical_json(cache.versions))
    write_attribute(file, "defaults", canonical_json(asdict(cache.defaults)))
    write_attribute(file, "summary", canonical_json(cache.summary))
    for group, table in (("utterances", cache.utterances), ("ratings", cache.ratings)):
        for column in fields(table):
            write_dataset(file, f"{group}/{column.name}", getattr(table, column.name))
    file.create_group("attributes")
    for name, column_values in cache.attributes.items():
        write_dataset(file, f"attributes/{name}", column_values)
    file.create_group("features")
    sets: tuple[StoredFeatures, ...] = (*cache.features, *stored)
    for features in sets:
        place = f"features/{features.modality}/{features.name}"
        write_dataset(file, f"{place}/values", features.values)
        write_dataset(file, f"{place}/inputs", features.inputs)
        if features.frames is not None:
            write_dataset(file, f"{place}/frames/values", features.frames.values)
            write_dataset(file, f"{place}/frames/offsets", features.frames.offsets)
        write_attribute(file[place], "recipe", canonical_json(features.recipe))
        write_attribute(file[place], "fingerprint", features.fingerprint)
    for column_name in ("utterance", "stage", "reason"):
        rows = [getattr(failure, column_name) for failure in cache.failures]
        write_dataset(file, f"failures/{column_name}", texts(rows))


def _with_numbers(stored: StoredFeatures, numbers: Callable[[Any], Any]) -> FeatureSet[Any]:
    """A feature set with what a function makes of its datasets of numbers."""
    frames = stored.frames and replace(stored.frames, values=numbers(stored.frames.values))
    return replace(stored, values=numbers(stored.values), frames=frames)


def _verified_place(path: Path, written: tuple[int, int], dataset: h5py.Dataset) -> StoredArray:
    verify_numbers(dataset)
    offset = dataset.id.get_offset()
    if offset is None and dataset.size:
        raise CacheError(f"the numbers of {dataset.name} do not lie in one piece")
    return StoredArray(path.absolute(), offset or 0, dataset.shape, dataset.dtype, written)


def _tables(file: h5py.File) -> FeatureCache:
    failures = [read_dataset(file["failures"][name]) for name in ("utterance", "stage", "reason")]
    return FeatureCache(
        corpus=read_attribute(file, "corpus"),
        corpus_version=read_attribute(file, "corpus_version"),
        created=read_attribute(file, "created"),
        versions=json.loads(read_attribute(file, "versions")),
        summary=json.loads(read_attribute(file, "summary")),
        defaults=_defaults(json.loads(read_attribute(file, "defaults"))),
        utterances=_table(file["utterances"], UtteranceTable),
        ratings=_table(file["ratings"], RatingTable),
        attributes={name: read_dataset(file["attributes"][name]) for name in file["attributes"]},
        features=(),
        failures=tuple(Failure(*row) for row in zip(*failures, strict=True)),
    )


def _table(group: h5py.Group, table: Any) -> Any:
    columns = {column.name: read_dataset(group[column.name]) for column in fields(table)}
    if len({len(values) for values in columns.values()}) > 1:
        raise CacheError(f"the columns of {group.name} have different lengths")
    return table(**columns)


def _groups(file: h5py.File) -> Iterator[tuple[h5py.Group, str, str]]:
    """The group of each feature set, its modality and its name."""
    for modality, sets in file["features"].items():
        for name in sets:
            yield sets[name], modality, name


def _headers(file: h5py.File) -> tuple[FeatureHeader, ...]:
    headers = []
    for group, modality, name in _groups(file):
        values, recipe = group["values"], _recipe(group)
        kind = str(values.dtype), recipe, fingerprint(recipe)
        headers.append(FeatureHeader(modality, name, values.shape, *kind, has_frames="frames" in group))
    return tuple(headers)


def _feature_sets(file: h5py.File, only: Collection[FeatureKey] | None) -> tuple[StoredFeatures, ...]:
    sets = []
    for group, modality, name in _groups(file):
        if only is None or (modality, name) in only:
            inputs, recipe, frames = read_dataset(group["inputs"]), _recipe(group), None
            if "frames" in group:
                frames = StoredFrames(group["frames/values"], read_dataset(group["frames/offsets"]))
            sets.append(StoredFeatures(modality, name, group["values"], inputs, recipe, frames))
    return tuple(sets)


def _recipe(group: h5py.Group) -> Recipe:
    """The recipe of a feature set, which must match its fingerprint."""
    recipe: Recipe = json.loads(read_attribute(group, "recipe"))
    if fingerprint(recipe) != read_attribute(group, "fingerprint"):
        raise CacheError(f"the recipe of {group.name} does not match its fingerprint")
    return recipe


@dataclass(frozen=True)
class Reader:
    """How one format version is read from an open file."""

    tables: Callable[[h5py.File], FeatureCache]  # all but the feature sets
    headers: Callable[[h5py.File], tuple[FeatureHeader, ...]]
    # those wanted, None: all; `values` and `frames.values` are datasets, neither read nor verified
    features: Callable[[h5py.File, Collection[FeatureKey] | None], tuple[StoredFeatures, ...]]


READERS: Mapping[int, Reader] = {1: Reader(_tables, _headers, _feature_sets)}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[h5py.File, Reader]]:
    """A cache open for reading, and how it is read; whatever goes wrong inside is one line that names the file."""
    again = "encode the corpus again with extract-features"
    try:
        if not path.is_file():
            raise CacheError(f"No feature cache at {path}: make one with extract-features, or name one with --cache")
        with _file(path) as file:
            if "format" not in file.attrs or read_attribute(file, "format") != FORMAT:
                raise CacheError(f"{path} is an HDF5 file but not a feature cache: make one with extract-features")
            version = int(file.attrs["format_version"])
            if version not in READERS:
                known, remedy = ", ".join(map(str, READERS)), "update amber2" if version > max(READERS) else again
                raise CacheError(f"{path} has cache format {version}, this amber2 reads {known}: {remedy}")
            try:
                yield file, READERS[version]
            except CacheError as problem:
                raise CacheError(f"{path} is damaged ({problem}): {again}") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:  # the world's fault, not the file's
            raise CacheError(f"Cannot read {path}: {_reason(problem)}") from None
        if not h5py.is_hdf5(path):
            raise CacheError(f"{path} is not an HDF5 file: make a cache with extract-features") from None
        raise CacheError(f"{path} is truncated or damaged ({_reason(problem)}): {again}") from None


def _file(path: Path) -> h5py.File:
    """The file, read without a lock, which some network folders refuse: a cache is replaced, never changed."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError:  # perhaps this process has it open with locks, and HDF5 wants all to be opened alike
        return h5py.File(path, "r")


def _defaults(record: Mapping[str, Any]) -> LabelDefaults:
    merge = tuple((str(word), str(emotion)) for word, emotion in record["merge"])
    return LabelDefaults(**{**record, "emotions": tuple(record["emotions"]), "merge": merge})


def _reason(problem: Exception) -> str:
    """Why something went wrong, in one line; HDF5 wraps the system's words in a paragraph of its own."""
    if isinstance(problem, OSError) and problem.errno is not None:
        return os.strerror(problem.errno)
    words = str(problem.args[0]) if problem.args else type(problem).__name__  # str(KeyError) has quotes of its own
    return words.strip().partition("\n")[0]
