"""What stands at the output already: what of it the new cache takes over, row by row, and whether anything changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from amber2_core.cache import Failure, FeatureCache, Features, Frames, read_cache, stored_features
from amber2_core.errors import CacheError
from amber2_core.features import IMPORTED, StoredFeatures, StoredFrames
from amber2_core.tables import Texts, UtteranceTable, take, texts, with_ratings

from .recipe import EncoderRecipe, differences
from .recordings import Inputs
from .rows import RowStore

# (N,) the row of an earlier feature set that each row takes over, -1 where none
Sources = npt.NDArray[np.intp]
FeatureSet = TypeVar("FeatureSet", Features, StoredFeatures)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Previous:
    """An earlier cache."""

    # without its feature sets
    cache: FeatureCache
    # their numbers still on the disk
    features: tuple[StoredFeatures, ...]


@contextmanager
def read_previous(output: Path, corpus: str, *, force: bool) -> Iterator[Previous | None]:
    """What stands at `output` already, if it can be gone on from; its numbers can be read inside the block.

    Raises:
        CacheError: it is damaged, or holds another corpus than `corpus`; with `force` that is a warning.
    """
    with ExitStack() as stack:
        found = None
        try:
            if output.exists():
                cache = read_cache(output, only=())
                if cache.corpus != corpus:
                    line = f"{output} holds the corpus {cache.corpus!r}, not {corpus!r}: choose another --output"
                    raise CacheError(line)
                found = Previous(cache, stack.enter_context(stored_features(output)))
        except CacheError as problem:
            if not force:
                raise CacheError(f"{problem}; or replace it with --force") from None
            _log.warning("%s is replaced: %s", output, problem)
        yield found


def stage_of(modality: str, name: str) -> str:
    """What a failure of a feature set is filed under: ``audio/wav2vec2-base``."""
    return f"{modality}/{name}"


def find_features(sets: Sequence[FeatureSet], modality: str, name: str) -> FeatureSet | None:
    """The feature set of that name, if it is there."""
    for features in sets:
        if (features.modality, features.name) == (modality, name):
            return features
    return None


def with_features(cache: FeatureCache, features: Features, *, lacking: str = "", force: bool) -> FeatureCache:
    """The cache with one more feature set; `lacking` is why utterances without a row failed, "": they did not.

    Raises:
        CacheError: there is one of that name, and no `force` to replace it.
    """
    key, stage = (features.modality, features.name), stage_of(features.modality, features.name)
    others = [f for f in cache.features if (f.modality, f.name) != key]
    if len(others) < len(cache.features) and not force:
        raise CacheError(f"The cache holds {stage} already: give another name or --force")
    failures = [f for f in cache.failures if f.stage != stage]
    failures += [
        Failure(str(id_), stage, lacking)
        for id_, held in zip(cache.utterances.id, features.encoded, strict=True)
        if not held and lacking
    ]
    sets = sorted([*others, features], key=lambda f: (f.modality, f.name))
    failures.sort(key=lambda failure: (failure.stage, failure.utterance))
    return replace(cache, features=tuple(sets), failures=tuple(failures))


def reusable_rows(before: StoredFeatures | None, recipe: EncoderRecipe) -> dict[str, int]:
    """Digest → row of an earlier feature set that can be used again; the log says why none can."""
    if before is None:
        return {}
    if before.fingerprint != recipe.fingerprint:
        why = "; ".join(differences(before.recipe, recipe.record()))
        _log.info("%s/%s is encoded again: %s", before.modality, before.name, why)
        return {}
    return {digest: row for row, digest in enumerate(before.inputs) if digest}


def known_failures(
    before: Previous | None, table: UtteranceTable, inputs: Inputs, *, recipe: EncoderRecipe, name: str
) -> dict[str, str]:
    """Digest → reason of what the same recipe could not encode before, and what has not changed since."""
    features = None if before is None else find_features(before.features, recipe.modality, name)
    if before is None or features is None or features.fingerprint != recipe.fingerprint:
        return {}
    table_before = before.cache.utterances
    columns = ("audio_sha256", "start", "duration") if recipe.modality == "audio" else ("transcript",)
    rows_before = {str(id_): row for row, id_ in enumerate(table_before.id)}
    rows_now = {str(id_): row for row, id_ in enumerate(table.id)}
    known = {}
    for failure in before.cache.failures:
        old, new = rows_before.get(failure.utterance), rows_now.get(failure.utterance)
        if failure.stage != stage_of(recipe.modality, name) or old is None or new is None or not inputs.digests[new]:
            continue
        pairs = [(getattr(table_before, column)[old], getattr(table, column)[new]) for column in columns]
        if all(was == now or (was != was and now != now) for was, now in pairs):
            known[inputs.digests[new]] = failure.reason
    return known


def known_lengths(before: Previous | None) -> dict[str, float]:
    """sha256 → seconds of the recordings that were encoded whole: only there is a row's input the file itself."""
    lengths: dict[str, float] = {}
    for features in before.features if before is not None else ():
        if before is not None and features.modality == "audio":
            table = before.cache.utterances
            columns = (table.audio_sha256, features.inputs, table.duration.tolist())
            rows = zip(*columns, strict=True)
            lengths.update((sha256, seconds) for sha256, digest, seconds in rows if sha256 == digest and seconds > 0)
    return lengths


def with_recordings(table: UtteranceTable, recordings: Inputs | None, before: UtteranceTable | None) -> UtteranceTable:
    """The table with digests and lengths of the recordings; where none were read now, those of the earlier cache."""
    if recordings is not None:
        lengths = [np.nan if seconds is None else seconds for seconds in recordings.seconds]
        return _filled(table, texts(recordings.sha256), np.array(lengths, dtype=np.float32))
    if before is None:
        return table
    rows = {(id_, audio): row for row, (id_, audio) in enumerate(_keys(before))}
    sources = [rows.get(key) for key in _keys(table)]
    digests = ["" if row is None else str(before.audio_sha256[row]) for row in sources]
    lengths = [np.nan if row is None else before.duration[row] for row in sources]
    return _filled(table, texts(digests), np.array(lengths, dtype=np.float32))


def new_features(
    name: str,
    recipe: EncoderRecipe,
    inputs: Inputs,
    before: StoredFeatures | None,
    reusable: Mapping[str, int],
    store: RowStore,
) -> StoredFeatures | None:
    """The feature set of rows of an earlier cache and of the row store; None where there is not a single row."""
    source = np.array([reusable.get(digest, -1) for digest in inputs.digests], dtype=np.intp)
    held = [digest if digest in reusable or digest in store else "" for digest in inputs.digests]
    if not any(held):
        return None
    is_new = any(held[row] for row in np.flatnonzero(source < 0))
    if before is not None and not is_new and list(before.inputs) == list(inputs.digests):
        return before
    values, frames = _gathered(before, source, held, store, with_frames=recipe.frames is not None)
    return StoredFeatures(recipe.modality, name, values, texts(held), recipe.record(), frames)


def kept_features(
    before: StoredFeatures, ids_before: Texts, ids_now: Texts, inputs: Inputs | None
) -> StoredFeatures | None:
    """An earlier feature set that is not encoded now, its rows where the utterances are now.

    Rows whose transcript or recording has changed since are dropped, with a warning; None where no row is left.
    """
    source = _kept_rows(before, ids_before, ids_now, inputs)
    if (source < 0).all():
        return None
    if np.array_equal(ids_before, ids_now) and (source >= 0).sum() == before.encoded.sum():
        return before
    digests = [str(before.inputs[row]) if row >= 0 else "" for row in source]
    values, frames = _gathered(before, source, digests, None, with_frames=before.frames is not None)
    return replace(before, values=values, inputs=texts(digests), frames=frames)


def with_synthetic_ratings(blank: FeatureCache, before: FeatureCache) -> FeatureCache:
    """The tables of a corpus with what models said of its utterances, which no release holds, from an earlier cache."""
    rows = {str(id_): row for row, id_ in enumerate(blank.utterances.id)}
    row_now = np.array([rows.get(str(id_), -1) for id_ in before.utterances.id], dtype=np.int32)
    ratings = replace(before.ratings, utterance=row_now[before.ratings.utterance])
    kept = (ratings.source == "synthetic") & (ratings.utterance >= 0)
    return replace(blank, ratings=with_ratings(blank.ratings, take(ratings, np.flatnonzero(kept))))


def is_same(before: Previous, after: FeatureCache, sets: Sequence[StoredFeatures]) -> bool:
    """Whether two caches hold the same utterances, ratings, attributes, features and failures."""
    plain = ("corpus", "corpus_version", "defaults", "failures")
    cache = before.cache
    return (
        cache.summary.get("shard") == after.summary.get("shard")
        and all(getattr(cache, name) == getattr(after, name) for name in plain)
        and _same_tables(cache.utterances, after.utterances)
        and _same_tables(cache.ratings, after.ratings)
        and cache.attributes.keys() == after.attributes.keys()
        and all(_same_columns(column, after.attributes[name]) for name, column in cache.attributes.items())
        and [_identity(features) for features in before.features] == [_identity(features) for features in sets]
        and all(_same_columns(a.inputs, b.inputs) for a, b in zip(before.features, sets, strict=True))
    )


def sequence_of(frames: Frames | StoredFrames, row: int) -> npt.NDArray[Any]:
    """(T, D): the sequence of one utterance."""
    return frames.values[frames.offsets[row] : frames.offsets[row + 1]]


def _kept_rows(before: StoredFeatures, ids_before: Texts, ids_now: Texts, inputs: Inputs | None) -> Sources:
    row_of = {str(id_): row for row, id_ in enumerate(ids_before)}
    source = np.array([row_of.get(str(id_), -1) for id_ in ids_now], dtype=np.intp)
    held = np.array([row >= 0 and before.inputs[row] != "" for row in source])
    if inputs is not None:
        pairs = zip(source, inputs.digests, strict=True)
        fresh = np.array([row >= 0 and before.inputs[row] in (now, IMPORTED) for row, now in pairs])
        if (held & ~fresh).any():
            stage, count = stage_of(before.modality, before.name), int((held & ~fresh).sum())
            _log.warning("%s: %d rows are dropped, as what they were encoded from has changed", stage, count)
        held &= fresh
    return np.where(held, source, -1)


def _gathered(
    before: StoredFeatures | None, source: Sources, digests: Sequence[str], store: RowStore | None, *, with_frames: bool
) -> tuple[Gathered, StoredFrames | None]:
    """Values and frames of rows of an earlier feature set, or else, by digest, of the store."""
    stored = [digest if store is not None and row < 0 else "" for digest, row in zip(digests, source, strict=True)]
    # What lies together in the earlier cache is read together.
    follows = np.append(False, (source[1:] == source[:-1] + 1) & (source[:-1] >= 0))
    if before is not None and (source >= 0).any():
        shape, dtype = before.values.shape[1:], before.values.dtype
    else:
        assert store is not None
        shape, dtype = store.row_shape, np.dtype(np.float32)

    def values(one: int, stop: int) -> npt.NDArray[Any] | None:
        if before is not None and source[one] >= 0:
            return before.values[source[one] : source[one] + stop - one]
        return store.read(stored[one]).values[None] if store is not None and stored[one] else None

    gathered = Gathered(shape, dtype, np.arange(len(source) + 1), values, follows)
    if not with_frames:
        return gathered, None
    earlier = None if before is None else before.frames

    def sequences(one: int, stop: int) -> npt.NDArray[Any] | None:
        if earlier is not None and source[one] >= 0:
            return earlier.values[earlier.offsets[source[one]] : earlier.offsets[source[stop - 1] + 1]]
        return store.read(stored[one]).frames if store is not None and stored[one] else None

    lengths = np.array([store.bins(digest) if store is not None and digest else 0 for digest in stored])
    if earlier is not None:
        lengths = np.where(source >= 0, np.diff(earlier.offsets)[source], lengths)
        shape, dtype = earlier.values.shape[1:], earlier.values.dtype
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return gathered, StoredFrames(Gathered(shape[-1:], dtype, offsets, sequences, follows), offsets)


class Gathered:
    """A matrix of rows that lie elsewhere, in the row store or in other caches, read when they are asked for.

    It need not fit into memory, and is written down nowhere but in the cache that is made of it.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        offsets: npt.NDArray[np.int64],
        read: Callable[[int, int], npt.NDArray[Any] | None],
        follows: npt.NDArray[np.bool_],
    ) -> None:
        """Rows offsets[i]:offsets[i + 1] belong to utterance i.

        Args:
            shape: of one row.
            dtype: of the numbers.
            offsets: (N + 1,).
            read: gives the rows of utterances from the first up to, not including, the second; None: they are NaN.
            follows: (N,) True where an utterance can be read together with the one before it.
        """
        self.shape = (int(offsets[-1]), *shape)
        self.dtype = np.dtype(dtype)
        self._offsets, self._read, self._follows = offsets, read, follows

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows that follow one another.

        Raises:
            OSError, CacheError: they cannot be read.
        """
        first, last, _ = rows.indices(self.shape[0])
        values = np.full((max(0, last - first), *self.shape[1:]), np.nan, dtype=self.dtype)
        one = int(np.searchsorted(self._offsets, first, side="right")) - 1
        end = int(np.searchsorted(self._offsets, last, side="left"))
        while one < end:
            stop = one + 1
            while stop < end and self._follows[stop]:
                stop += 1
            piece = self._read(one, stop)
            if piece is not None:
                begin = int(self._offsets[one])
                low, high = max(begin, first), min(begin + len(piece), last)
                values[low - first : high - first] = piece[low - begin : high - begin]
            one = stop
        return values


def _identity(features: StoredFeatures) -> tuple[Any, ...]:
    return features.modality, features.name, features.fingerprint, features.values.shape


def _keys(table: UtteranceTable) -> Sequence[tuple[str, str]]:
    return list(zip(table.id, table.audio, strict=True))


def _filled(table: UtteranceTable, digests: Texts, lengths: npt.NDArray[np.float32]) -> UtteranceTable:
    return replace(table, audio_sha256=digests, duration=np.where(np.isnan(lengths), table.duration, lengths))


def _same_tables(a: Any, b: Any) -> bool:
    return all(_same_columns(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


def _same_columns(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype != object)
