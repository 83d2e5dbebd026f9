"""What an earlier cache holds, and rows encoded since, go in; the feature sets of the new cache come out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.cache import Failure, Frames
from amber2_core.features import StoredFeatures, StoredFrames
from amber2_core.tables import Texts, texts

from .inputs import Inputs
from .parts import Parts
from .recipe import EncoderRecipe
from .scratch import Scratch

# (N,) the row of an earlier feature set that each row takes over, -1 where none
Sources = npt.NDArray[np.intp]

# in place of a digest: vectors that import-features brought, from what is not known
IMPORTED = "imported"

_log = logging.getLogger(__name__)


def stage_of(modality: str, name: str) -> str:
    """What a failure of a feature set is filed under: ``audio/wav2vec2-base``."""
    return f"{modality}/{name}"


def new_features(
    name: str,
    recipe: EncoderRecipe,
    inputs: Inputs,
    before: StoredFeatures | None,
    reusable: Mapping[str, int],
    parts: Parts,
) -> StoredFeatures | None:
    """The feature set whose rows lie in an earlier cache or in parts; None where there is not a single row.

    Raises:
        CacheError: the disk is full, or has gone.
        OSError: the earlier cache cannot be read any more.
    """
    new = {digest: rows for digest, rows in inputs.rows().items() if digest not in reusable and digest in parts}
    source = np.array([reusable.get(digest, -1) for digest in inputs.digests], dtype=np.intp)
    if not new and (source < 0).all():
        return None
    if before is not None and not new and list(before.inputs) == list(inputs.digests):
        return before
    held = [digest if digest in reusable or digest in new else "" for digest in inputs.digests]
    shape = before.values.shape[1:] if before is not None and (source >= 0).any() else parts.row_shape
    values = parts.scratch("values", (len(held), *shape))
    sequences, offsets = None, np.zeros(1, dtype=np.int64)
    if recipe.frames is not None:
        lengths = [parts.bins[digest] if digest in new else 0 for digest in inputs.digests]
        offsets = _offsets(_lengths(before, source) + np.array(lengths))
        sequences = parts.scratch("frames", (int(offsets[-1]), shape[-1]))
    with values, sequences or nullcontext():
        if before is not None:
            _copy(before, source, values, sequences, offsets)
        parts.fill(values, new, frames=sequences, offsets=offsets)
    frames = None if sequences is None else StoredFrames(sequences, offsets)
    return StoredFeatures(recipe.modality, name, values, texts(held), recipe.record(), frames)


def sequence_of(frames: Frames | StoredFrames, row: int) -> npt.NDArray[Any]:
    """(T, D): the sequence of one utterance."""
    return frames.values[frames.offsets[row] : frames.offsets[row + 1]]


def kept_features(
    before: StoredFeatures, ids_before: Texts, ids_now: Texts, inputs: Inputs | None, room: Path
) -> StoredFeatures | None:
    """An earlier feature set that is not encoded now, its rows where the utterances are now.

    Rows whose transcript or recording has changed since are dropped, with a warning; None where no row is left. Rows
    that have moved lie in the folder `room`.

    Raises:
        OSError: the earlier cache cannot be read, or `room` not be written.
    """
    stage = stage_of(before.modality, before.name)
    source = _kept_rows(before, ids_before, ids_now, inputs)
    if (source < 0).all():
        return None
    if np.array_equal(ids_before, ids_now) and (source >= 0).sum() == before.encoded.sum():
        return before
    # Whatever its name holds: a name for files.
    place = room / hashlib.sha256(stage.encode()).hexdigest()[:16]
    values = Scratch(place.with_suffix(".values"), (len(source), *before.values.shape[1:]), before.values.dtype)
    sequences, offsets = None, _offsets(_lengths(before, source))
    if before.frames is not None:
        stored = before.frames.values
        sequences = Scratch(place.with_suffix(".frames"), (int(offsets[-1]), *stored.shape[1:]), stored.dtype)
    with values, sequences or nullcontext():
        _copy(before, source, values, sequences, offsets)
    digests = texts([str(before.inputs[row]) if row >= 0 else "" for row in source])
    frames = None if sequences is None else StoredFrames(sequences, offsets)
    return replace(before, values=values, inputs=digests, frames=frames)


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


def _lengths(before: StoredFeatures | None, source: Sources) -> npt.NDArray[np.int64]:
    """Bins of the sequence that each row takes over."""
    if before is None or before.frames is None:
        return np.zeros(len(source), dtype=np.int64)
    return np.where(source >= 0, np.diff(before.frames.offsets)[source], 0)


def _offsets(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _copy(
    before: StoredFeatures,
    source: Sources,
    values: Scratch,
    sequences: Scratch | None,
    offsets: npt.NDArray[np.int64],
) -> None:
    """Put the rows that are taken over, and their sequences, where they belong now."""
    values.copy(before.values, source)
    if sequences is not None and before.frames is not None:
        for row in np.flatnonzero(source >= 0):
            sequences.put(int(offsets[row]), sequence_of(before.frames, source[row]))


def failures_of(name: str, modality: str, ids: Texts, inputs: Inputs, failed: Mapping[str, str]) -> list[Failure]:
    """The failures of a feature set: of reading its inputs, and, by digest, of encoding them."""
    reasons = dict(inputs.failures)
    reasons.update({row: failed[digest] for row, digest in enumerate(inputs.digests) if digest in failed})
    return [Failure(str(ids[row]), stage_of(modality, name), reasons[row]) for row in sorted(reasons)]
