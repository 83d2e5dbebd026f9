"""What an earlier cache holds, and rows encoded since, go in; the feature sets of the new cache come out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.cache import Failure, FeatureCache, Features, Frames
from amber2_core.tables import Texts, UtteranceTable, texts

from .inputs import Inputs, Recordings
from .parts import Parts
from .recipe import EncoderRecipe, differences

# in place of a digest: vectors that import-features brought, from what is not known
IMPORTED = "imported"

_log = logging.getLogger(__name__)


def find_features(cache: FeatureCache | None, modality: str, name: str) -> Features | None:
    """The feature set of that name, if the cache has it."""
    for features in cache.features if cache else ():
        if (features.modality, features.name) == (modality, name):
            return features
    return None


def reusable_rows(before: Features | None, recipe: EncoderRecipe) -> dict[str, int]:
    """Digest → row of an earlier feature set that can be used again; the log says why none can."""
    if before is None:
        return {}
    if before.fingerprint != recipe.fingerprint:
        why = "; ".join(differences(before.recipe, recipe.record()))
        _log.info("%s/%s is encoded again: %s", before.modality, before.name, why)
        return {}
    return {digest: row for row, digest in enumerate(before.inputs) if digest}


def known_failures(
    before: FeatureCache | None, table: UtteranceTable, inputs: Inputs, *, recipe: EncoderRecipe, name: str
) -> dict[str, str]:
    """Digest → reason of what the same recipe could not encode before, and what has not changed since."""
    features = find_features(before, recipe.modality, name)
    if before is None or features is None or features.fingerprint != recipe.fingerprint:
        return {}
    columns = ("audio_sha256", "start", "duration") if recipe.modality == "audio" else ("transcript",)
    rows_before = {str(id_): row for row, id_ in enumerate(before.utterances.id)}
    rows_now = {str(id_): row for row, id_ in enumerate(table.id)}
    known = {}
    for failure in before.failures:
        old, new = rows_before.get(failure.utterance), rows_now.get(failure.utterance)
        if failure.stage != stage_of(recipe.modality, name) or old is None or new is None or not inputs.digests[new]:
            continue
        pairs = [(getattr(before.utterances, column)[old], getattr(table, column)[new]) for column in columns]
        if all(was == now or (was != was and now != now) for was, now in pairs):
            known[inputs.digests[new]] = failure.reason
    return known


def stage_of(modality: str, name: str) -> str:
    """What a failure of a feature set is filed under: ``audio/wav2vec2-base``."""
    return f"{modality}/{name}"


def new_features(
    name: str, recipe: EncoderRecipe, inputs: Inputs, before: Features | None, reusable: Mapping[str, int], parts: Parts
) -> Features | None:
    """The feature set whose rows lie in an earlier cache or in parts; None where there is not a single row."""
    rows = inputs.rows()
    old = [digest for digest in rows if digest in reusable]
    new = {digest: targets for digest, targets in rows.items() if digest not in reusable and digest in parts}
    if not old and not new:
        return None
    if before is not None and not new and list(before.inputs) == list(inputs.digests):
        return before
    shape = before.values.shape[1:] if before is not None and old else parts.row_shape
    values = parts.matrix("values", (len(inputs.digests), *shape))
    held = [digest if digest in reusable or digest in new else "" for digest in inputs.digests]
    frames = None
    if recipe.frames is not None:
        bins = dict(parts.bins)
        if before is not None and before.frames is not None:
            bins.update({digest: len(sequence_of(before.frames, row)) for digest, row in reusable.items()})
        offsets = np.cumsum([0, *(bins.get(digest, 0) if digest else 0 for digest in held)], dtype=np.int64)
        frames = Frames(parts.matrix("frames", (int(offsets[-1]), shape[-1])), offsets)
    if before is not None:
        for source, row in ((reusable[digest], row) for digest in old for row in rows[digest]):
            values[row] = before.values[source]
            if frames is not None and before.frames is not None:
                sequence_of(frames, row)[:] = sequence_of(before.frames, source)
    if frames is None:
        parts.fill(values, new)
    else:
        parts.fill(values, new, frames=frames.values, offsets=frames.offsets)
    return Features(recipe.modality, name, values, texts(held), recipe.record(), frames)


def sequence_of(frames: Frames, row: int) -> npt.NDArray[Any]:
    """(T, D): the sequence of one utterance."""
    return frames.values[frames.offsets[row] : frames.offsets[row + 1]]


def kept_features(before: Features, ids_before: Texts, ids_now: Texts, inputs: Inputs | None) -> Features | None:
    """An earlier feature set that is not encoded now, its rows where the utterances are now.

    Rows whose transcript or recording has changed since are dropped, with a warning; None where no row is left.
    """
    place = {str(id_): row for row, id_ in enumerate(ids_before)}
    source = np.array([place.get(str(id_), -1) for id_ in ids_now])
    held = np.array([row >= 0 and before.inputs[row] != "" for row in source])
    if inputs is not None:
        fresh = np.array(
            [
                row >= 0 and before.inputs[row] in (now, IMPORTED)
                for row, now in zip(source, inputs.digests, strict=True)
            ]
        )
        if (held & ~fresh).any():
            name, count = stage_of(before.modality, before.name), int((held & ~fresh).sum())
            _log.warning("%s: %d rows are dropped, as what they were encoded from has changed", name, count)
        held &= fresh
    if not held.any():
        return None
    if np.array_equal(ids_before, ids_now) and held.sum() == before.encoded.sum():
        return before
    values = np.full((len(ids_now), *before.values.shape[1:]), np.nan, dtype=before.values.dtype)
    values[held] = before.values[source[held]]
    digests = texts([str(before.inputs[row]) if keep else "" for row, keep in zip(source, held, strict=True)])
    frames = None if before.frames is None else _moved(before.frames, np.where(held, source, -1).tolist())
    return replace(before, values=values, inputs=digests, frames=frames)


def known_lengths(before: FeatureCache | None) -> dict[str, float]:
    """sha256 → seconds of the recordings that were encoded whole: only there is a row's input the file itself."""
    lengths: dict[str, float] = {}
    for features in before.features if before is not None else ():
        if before is not None and features.modality == "audio":
            columns = (before.utterances.audio_sha256, features.inputs, before.utterances.duration.tolist())
            rows = zip(*columns, strict=True)
            lengths.update((sha256, seconds) for sha256, digest, seconds in rows if sha256 == digest and seconds > 0)
    return lengths


def with_recordings(
    table: UtteranceTable, recordings: Recordings | None, before: FeatureCache | None
) -> UtteranceTable:
    """The table with digests and lengths of the recordings; where none were read now, those of the earlier cache."""
    if recordings is not None:
        lengths = [np.nan if seconds is None else seconds for seconds in recordings.seconds]
        return _filled(table, texts(recordings.sha256), np.array(lengths, dtype=np.float32))
    if before is None:
        return table
    rows = {(id_, audio): row for row, (id_, audio) in enumerate(_keys(before.utterances))}
    sources = [rows.get(key) for key in _keys(table)]
    digests = ["" if row is None else str(before.utterances.audio_sha256[row]) for row in sources]
    lengths = [np.nan if row is None else before.utterances.duration[row] for row in sources]
    return _filled(table, texts(digests), np.array(lengths, dtype=np.float32))


def is_same(before: FeatureCache, after: FeatureCache) -> bool:
    """Whether two caches hold the same utterances, ratings, attributes, features and failures."""
    plain = ("corpus", "corpus_version", "defaults", "failures")
    return (
        all(getattr(before, name) == getattr(after, name) for name in plain)
        and _same_tables(before.utterances, after.utterances)
        and _same_tables(before.ratings, after.ratings)
        and before.attributes.keys() == after.attributes.keys()
        and all(_same_columns(column, after.attributes[name]) for name, column in before.attributes.items())
        and [_identity(features) for features in before.features] == [_identity(f) for f in after.features]
        and all(_same_columns(a.inputs, b.inputs) for a, b in zip(before.features, after.features, strict=True))
    )


def failures_of(name: str, modality: str, ids: Texts, inputs: Inputs, failed: Mapping[str, str]) -> list[Failure]:
    """The failures of a feature set: of reading its inputs, and, by digest, of encoding them."""
    reasons = dict(inputs.failures)
    reasons.update({row: failed[digest] for row, digest in enumerate(inputs.digests) if digest in failed})
    return [Failure(str(ids[row]), stage_of(modality, name), reasons[row]) for row in sorted(reasons)]


def _moved(frames: Frames, source: Sequence[int]) -> Frames:
    """The sequences of the given rows, none where a row is -1."""
    sequences = [sequence_of(frames, row) if row >= 0 else frames.values[:0] for row in source]
    offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
    return Frames(np.concatenate(sequences), offsets)


def _identity(features: Features) -> tuple[Any, ...]:
    return features.modality, features.name, features.fingerprint, features.values.shape


def _keys(table: UtteranceTable) -> Sequence[tuple[str, str]]:
    return list(zip(table.id, table.audio, strict=True))


def _filled(table: UtteranceTable, digests: Texts, lengths: npt.NDArray[np.float32]) -> UtteranceTable:
    return replace(table, audio_sha256=digests, duration=np.where(np.isnan(lengths), table.duration, lengths))


def _same_tables(a: Any, b: Any) -> bool:
    return all(_same_columns(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


def _same_columns(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype != object)
