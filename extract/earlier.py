"""An earlier cache goes in; what of it can be used again comes out, and whether anything has changed since."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from amber2_core.cache import FeatureCache, Features, read_cache, stored_features
from amber2_core.errors import CacheError
from amber2_core.features import StoredFeatures
from amber2_core.tables import Texts, UtteranceTable, texts

from .assembly import stage_of
from .inputs import Inputs, Recordings
from .recipe import EncoderRecipe, differences

_log = logging.getLogger(__name__)

FeatureSet = TypeVar("FeatureSet", Features, StoredFeatures)


@dataclass(frozen=True)
class Earlier:
    """What stands at the output already."""

    # without its feature sets
    cache: FeatureCache
    # their numbers still on the disk
    features: tuple[StoredFeatures, ...]


def find_features(sets: Sequence[FeatureSet], modality: str, name: str) -> FeatureSet | None:
    """The feature set of that name, if it is there."""
    for features in sets:
        if (features.modality, features.name) == (modality, name):
            return features
    return None


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
    before: Earlier | None, table: UtteranceTable, inputs: Inputs, *, recipe: EncoderRecipe, name: str
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


@contextmanager
def earlier(output: Path, corpus: str, *, force: bool) -> Iterator[Earlier | None]:
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
                found = Earlier(cache, stack.enter_context(stored_features(output)))
        except CacheError as problem:
            if not force:
                raise CacheError(f"{problem}; or replace it with --force") from None
            _log.warning("%s is replaced: %s", output, problem)
        yield found


def known_lengths(before: Earlier | None) -> dict[str, float]:
    """sha256 → seconds of the recordings that were encoded whole: only there is a row's input the file itself."""
    lengths: dict[str, float] = {}
    for features in before.features if before is not None else ():
        if before is not None and features.modality == "audio":
            table = before.cache.utterances
            columns = (table.audio_sha256, features.inputs, table.duration.tolist())
            rows = zip(*columns, strict=True)
            lengths.update((sha256, seconds) for sha256, digest, seconds in rows if sha256 == digest and seconds > 0)
    return lengths


def with_recordings(
    table: UtteranceTable, recordings: Recordings | None, before: UtteranceTable | None
) -> UtteranceTable:
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


def is_same(before: Earlier, after: FeatureCache, sets: Sequence[StoredFeatures]) -> bool:
    """Whether two caches hold the same utterances, ratings, attributes, features and failures."""
    plain = ("corpus", "corpus_version", "defaults", "failures")
    cache = before.cache
    return (
        all(getattr(cache, name) == getattr(after, name) for name in plain)
        and _same_tables(cache.utterances, after.utterances)
        and _same_tables(cache.ratings, after.ratings)
        and cache.attributes.keys() == after.attributes.keys()
        and all(_same_columns(column, after.attributes[name]) for name, column in cache.attributes.items())
        and [_identity(features) for features in before.features] == [_identity(features) for features in sets]
        and all(_same_columns(a.inputs, b.inputs) for a, b in zip(before.features, sets, strict=True))
    )


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
