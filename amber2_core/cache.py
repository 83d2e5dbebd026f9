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
                         inputs       (N,) utf-8, sha256 of what the row was encoded from, "": not encoded
                         frames/values (ΣT, D), frames/offsets (N + 1,) int64: optional, the pooled sequence of each row
/failures/               utterance (an id), stage, reason  (F,) utf-8
```
Numbers are contiguous; text has a fixed length, padded with NUL, in gzip chunks (HDF5 keeps text of variable length in a
heap without checksums, and a damaged heap can hang a reader). Every dataset carries `crc32`: of its bytes, or, for text,
of its strings joined by NUL in UTF-8. The file is written with HDF5's 1.10 object headers, which carry checksums of
their own, and all attributes lie inside them: a flipped bit is an error, never another number and never a hang. A file
stands under its final name only when it is complete. Readers accept this version alone; they ignore groups and
attributes that they do not know.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from .errors import CacheError
from .tables import AttributeColumns, RatingTable, Texts, UtteranceTable, texts
from .utterance import LabelDefaults

FORMAT = "amber2-feature-cache"
FORMAT_VERSION = 1
TEXT_BLOCK = 1 << 22  # bytes of padded text in one chunk

Recipe = Mapping[str, Any]  # JSON values only
FeatureKey = tuple[str, str]  # (modality, name)


@dataclass(frozen=True, eq=False)
class Frames:
    """Sequences of all utterances behind one another; utterance i owns rows offsets[i]:offsets[i + 1]."""

    values: npt.NDArray[np.floating[Any]]  # (ΣT, D)
    offsets: npt.NDArray[np.int64]  # (N + 1,)


@dataclass(frozen=True, eq=False)
class Features:
    """One feature set: what one encoder, under one recipe, made of one modality."""

    modality: str  # audio | text | video
    name: str
    values: npt.NDArray[np.floating[Any]]  # (N, D) or (N, layers, D), NaN rows: not encoded
    inputs: Texts  # (N,) sha256 of what each row was encoded from, "" for NaN rows
    recipe: Recipe
    frames: Frames | None = None

    @property
    def fingerprint(self) -> str:
        """The cache key: sha256 of the recipe."""
        return fingerprint(self.recipe)

    @property
    def encoded(self) -> npt.NDArray[np.bool_]:
        """(N,) True where the row holds features."""
        return np.array([digest != "" for digest in self.inputs], dtype=bool)


@dataclass(frozen=True)
class Failure:
    """An utterance that could not be encoded."""

    utterance: str
    stage: str  # audio | text
    reason: str


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """Everything that one cache file holds."""

    corpus: str
    utterances: UtteranceTable  # N rows
    ratings: RatingTable
    defaults: LabelDefaults
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


def fingerprint(recipe: Recipe) -> str:
    """sha256 of a recipe's canonical JSON (sorted keys, no spaces), in hex."""
    return hashlib.sha256(_json(recipe).encode()).hexdigest()


def write_cache(path: Path, cache: FeatureCache) -> None:
    """Write a cache; it stands under `path` only when it is complete and on the disk.

    Raises:
        CacheError: the folder cannot be written, the disk is full, or the parts of the cache do not fit together.
    """
    _check(cache, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".writing", dir=path.parent)
        os.close(handle)
    except OSError as problem:
        raise CacheError(f"Cannot write {path}: {problem.strerror}; choose another place with --output") from None
    temporary = Path(name)
    try:
        with h5py.File(temporary, "w", libver=("v110", "v110")) as file:
            _write(file, cache)
        os.chmod(temporary, 0o666 & ~_umask())
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, RuntimeError, ValueError) as problem:
        raise CacheError(f"Cannot write {path}: {_first_line(problem)}; nothing stands under that name") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_cache(path: Path, *, only: Collection[FeatureKey] | None = None) -> FeatureCache:
    """Read a cache and verify every checksum of what is read.

    Args:
        path: the cache file.
        only: the feature sets wanted, as (modality, name); None reads all.

    Raises:
        CacheError: no such file, not a cache, another format version, truncated, or damaged.
    """
    with _opened(path) as file:
        return FeatureCache(
            corpus=_text(file, "corpus"),
            corpus_version=_text(file, "corpus_version"),
            created=_text(file, "created"),
            versions=json.loads(_text(file, "versions")),
            summary=json.loads(_text(file, "summary")),
            defaults=_defaults(json.loads(_text(file, "defaults"))),
            utterances=_read_table(file["utterances"], UtteranceTable),
            ratings=_read_table(file["ratings"], RatingTable),
            attributes={name: _read(file["attributes"][name]) for name in file["attributes"]},
            features=tuple(
                _read_features(file["features"][modality][name], modality, name)
                for modality, name in _feature_keys(file)
                if only is None or (modality, name) in only
            ),
            failures=tuple(Failure(*row) for row in zip(*_failure_columns(file), strict=True)),
        )


def read_feature_headers(path: Path) -> tuple[FeatureHeader, ...]:
    """What feature sets a cache holds, without reading their numbers.

    Raises:
        CacheError: as `read_cache`.
    """
    with _opened(path) as file:
        headers = []
        for modality, name in _feature_keys(file):
            group = file["features"][modality][name]
            recipe, values = _recipe(group), group["values"]
            headers.append(
                FeatureHeader(
                    modality, name, values.shape, str(values.dtype), recipe, fingerprint(recipe), "frames" in group
                )
            )
        return tuple(headers)


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(cache: FeatureCache, path: Path) -> None:
    count = len(cache.utterances)
    for features in cache.features:
        name = f"{features.modality}/{features.name}"
        if features.values.shape[0] != count or len(features.inputs) != count:
            raise CacheError(f"Cannot write {path}: {name} has {features.values.shape[0]} rows for {count} utterances")
        if features.values.ndim not in (2, 3) or features.values.dtype not in (np.float32, np.float16):
            shape, dtype = features.values.shape, features.values.dtype
            raise CacheError(f"Cannot write {path}: {name} must be (N, D) or (N, layers, D) float, is {shape} {dtype}")
        if "/" in features.name or not features.name:
            raise CacheError(f"Cannot write {path}: Bad feature set name {features.name!r}, expected one without '/'")
    if len(cache.ratings) and not 0 <= cache.ratings.utterance.min() <= cache.ratings.utterance.max() < count:
        raise CacheError(f"Cannot write {path}: a rating belongs to none of the {count} utterances")


def _write(file: h5py.File, cache: FeatureCache) -> None:
    _set_text(file, "format", FORMAT)
    file.attrs["format_version"] = FORMAT_VERSION
    for name in ("corpus", "corpus_version", "created"):
        _set_text(file, name, getattr(cache, name))
    _set_text(file, "versions", _json(cache.versions))
    _set_text(file, "defaults", _json(asdict(cache.defaults)))
    _set_text(file, "summary", _json(cache.summary))
    for group, table in (("utterances", cache.utterances), ("ratings", cache.ratings)):
        for column in fields(table):
            _write_dataset(file, f"{group}/{column.name}", getattr(table, column.name))
    file.create_group("attributes")
    for name, column_values in cache.attributes.items():
        _write_dataset(file, f"attributes/{name}", column_values)
    file.create_group("features")
    for features in cache.features:
        place = f"features/{features.modality}/{features.name}"
        _write_dataset(file, f"{place}/values", features.values)
        _write_dataset(file, f"{place}/inputs", features.inputs)
        if features.frames is not None:
            _write_dataset(file, f"{place}/frames/values", features.frames.values)
            _write_dataset(file, f"{place}/frames/offsets", features.frames.offsets)
        _set_text(file[place], "recipe", _json(features.recipe))
        _set_text(file[place], "fingerprint", features.fingerprint)
    for column_name in ("utterance", "stage", "reason"):
        rows = [getattr(failure, column_name) for failure in cache.failures]
        _write_dataset(file, f"failures/{column_name}", texts(rows))


def _write_dataset(file: h5py.File, place: str, values: npt.NDArray[Any]) -> None:
    if values.dtype == object:
        dataset = _write_text(file, place, values)
    else:
        values = np.ascontiguousarray(values)
        dataset = file.create_dataset(place, data=values)
    dataset.attrs["crc32"] = np.uint32(_crc32(values))


def _write_text(file: h5py.File, place: str, values: Texts) -> h5py.Dataset:
    encoded = [value.encode() for value in values]
    if any(b"\0" in value for value in encoded):
        raise ValueError(f"{place} holds a NUL character")
    width = max(map(len, encoded), default=0) or 1
    rows = max(1, min(len(encoded), TEXT_BLOCK // width))
    dtype = h5py.string_dtype("utf-8", width)
    dataset = file.create_dataset(
        place, (len(encoded),), dtype, chunks=(rows,), compression="gzip", compression_opts=1, fletcher32=True
    )
    for first in range(0, len(encoded), rows):
        dataset[first : first + rows] = np.array(encoded[first : first + rows], dtype=dtype)
    return dataset


def _read(dataset: h5py.Dataset) -> npt.NDArray[Any]:
    """The values of a dataset, its checksum verified."""
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    values: npt.NDArray[Any] = _read_text(dataset) if is_text else dataset[...]
    if _crc32(values) != int(dataset.attrs["crc32"]):
        raise CacheError(f"{dataset.name} does not match its checksum")
    return values


def _read_text(dataset: h5py.Dataset) -> Texts:
    """A column of text, read block by block: one long transcript must not cost its length for every row."""
    rows = max(1, TEXT_BLOCK // dataset.dtype.itemsize)
    blocks = (dataset[first : first + rows] for first in range(0, len(dataset), rows))
    return texts([value.decode() for block in blocks for value in block.tolist()])


def _read_table(group: h5py.Group, table: Any) -> Any:
    columns = {column.name: _read(group[column.name]) for column in fields(table)}
    if len({len(values) for values in columns.values()}) > 1:
        raise CacheError(f"the columns of {group.name} have different lengths")
    return table(**columns)


def _read_features(group: h5py.Group, modality: str, name: str) -> Features:
    frames = None
    if "frames" in group:
        frames = Frames(_read(group["frames/values"]), _read(group["frames/offsets"]))
    return Features(modality, name, _read(group["values"]), _read(group["inputs"]), _recipe(group), frames)


def _recipe(group: h5py.Group) -> Recipe:
    recipe: Recipe = json.loads(_text(group, "recipe"))
    if fingerprint(recipe) != _text(group, "fingerprint"):
        raise CacheError(f"the recipe of {group.name} does not match its fingerprint")
    return recipe


def _feature_keys(file: h5py.File) -> list[FeatureKey]:
    return [(modality, name) for modality in file["features"] for name in file["features"][modality]]


def _failure_columns(file: h5py.File) -> list[list[str]]:
    return [list(_read(file["failures"][name])) for name in ("utterance", "stage", "reason")]


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """A cache open for reading; whatever goes wrong inside is one line that names the file."""
    again = "encode the corpus again with extract-features"
    if not path.is_file():
        raise CacheError(f"No feature cache at {path}: make one with extract-features, or name one with --cache")
    try:
        with h5py.File(path, "r") as file:
            if "format" not in file.attrs or _text(file, "format") != FORMAT:
                raise CacheError(f"{path} is an HDF5 file but not a feature cache: make one with extract-features")
            version = int(file.attrs["format_version"])
            if version != FORMAT_VERSION:
                newer = "update amber2" if version > FORMAT_VERSION else again
                raise CacheError(f"{path} has cache format {version}, this amber2 reads {FORMAT_VERSION}: {newer}")
            try:
                yield file
            except CacheError as problem:
                raise CacheError(f"{path} is damaged ({problem}): {again}") from None
    except CacheError:
        raise
    except PermissionError:
        raise CacheError(f"Cannot read {path}: permission denied") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, UnicodeError) as problem:
        if not h5py.is_hdf5(path):
            raise CacheError(f"{path} is not an HDF5 file: make a cache with extract-features") from None
        raise CacheError(f"{path} is truncated or damaged ({_first_line(problem)}): {again}") from None


def _defaults(record: Mapping[str, Any]) -> LabelDefaults:
    merge = tuple((str(word), str(emotion)) for word, emotion in record["merge"])
    return LabelDefaults(**{**record, "emotions": tuple(record["emotions"]), "merge": merge})


def _set_text(place: h5py.Group, name: str, value: str) -> None:
    encoded = value.encode() or b"\0"
    place.attrs.create(name, encoded, dtype=h5py.string_dtype("utf-8", len(encoded)))


def _text(place: h5py.Group, name: str) -> str:
    value = place.attrs[name]
    return value.decode() if isinstance(value, bytes) else str(value)


def _crc32(values: npt.NDArray[Any]) -> int:
    if values.dtype == object:
        return zlib.crc32("\0".join(values).encode())
    return zlib.crc32(values.reshape(-1).data.cast("B")) if values.size else zlib.crc32(b"")


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _first_line(problem: BaseException) -> str:
    return (str(problem) or type(problem).__name__).strip().splitlines()[0]
