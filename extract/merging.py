"""The shards of a corpus made one feature cache, their rows streamed into it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.cache import Failure, write_cache
from amber2_core.errors import CacheError
from amber2_core.features import IMPORTED, FeatureKey, StoredFeatures, StoredFrames
from amber2_core.shards import whole_of
from amber2_core.tables import Texts, UtteranceTable, texts

from .parts import Part, check_evidence, check_gaps, check_recipe, check_rows, read_part, read_shards
from .previous import Gathered, Sources, find_features, stage_of, with_synthetic_ratings
from .recipe import OF_TRANSCRIPTS
from .rows import work_folder

# (stage, utterance) → why it was not encoded
Failures = Mapping[tuple[str, str], Failure]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """A cache that was made of shards."""

    output: Path
    utterances: int
    # stage → utterances that are encoded
    features: Mapping[str, int]
    failures: tuple[Failure, ...]


@dataclass(frozen=True, eq=False)
class _Whole:
    """What stood at the output before: a cache, and its utterances."""

    part: Part
    utterances: UtteranceTable


def merge_caches(paths: Sequence[Path], output: Path | None = None) -> Merged:
    """Make all shards of a corpus one cache.

    What stands at `output` already keeps its other feature sets, and those rows that the shards left to it.

    Args:
        paths: the shards, in any order.
        output: the cache to write; None: as they are called without their numbers.

    Raises:
        SettingError: a shard is missing, named twice, or one of another number of shards.
        CacheError: a file is no shard, or is damaged; they hold other utterances or votes, or were encoded in other
            ways; an utterance was encoded by none, or by two with other values; `output` cannot be written.
    """
    output = output or whole_of(paths[0])
    cache, parts = read_shards(paths)
    if output in paths:
        raise CacheError(f"{output} is one of the shards: name the cache to write with --output")
    if output.is_dir():
        raise CacheError(f"{output} is a folder: name the file of the cache to write with --output")
    with work_folder(output):
        whole = None
        if output.exists():
            earlier, part = read_part(output)
            if earlier.corpus != cache.corpus:
                raise CacheError(f"{output} holds the corpus {earlier.corpus!r}, not {cache.corpus!r}: name another")
            whole, cache = _Whole(part, earlier.utterances), with_synthetic_ratings(cache, earlier)
        failures = {(one.stage, one.utterance): one for part in reversed(parts) for one in part.failures}
        sets = [_merged(key, cache.utterances, parts, failures, whole) for key in _keys(parts)]
        work = {stage: _work(stage, parts, whole, some) for some in sets if (stage := _stage(some)) in _asked(parts)}
        if whole is not None:
            sets += _others(cache.utterances, whole, sets)
            stages = {_stage(some) for some in sets}
            failures = {
                (one.stage, one.utterance): one for one in whole.part.failures if one.stage in stages
            } | failures
            work = {stage: dict(found) for stage in stages if (found := whole.part.work(stage))} | work
        sets.sort(key=lambda some: (some.modality, some.name))
        left = _left(failures.values(), cache.utterances.id, sets)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        write_cache(output, replace(cache, failures=left, created=created, summary={"features": work}), sets)
    return Merged(output, len(cache.utterances), {_stage(some): int(some.encoded.sum()) for some in sets}, left)


def _stage(features: StoredFeatures) -> str:
    return stage_of(features.modality, features.name)


def _asked(parts: Sequence[Part]) -> set[str]:
    """The feature sets that extract-features was asked for."""
    return {stage for part in parts for stage in part.summary.get("features", {})}


def _keys(parts: Sequence[Part]) -> list[FeatureKey]:
    """The feature sets that shards hold or were asked for."""
    held = {_stage(some) for part in parts for some in part.features}
    return [(modality, name) for stage in sorted(held | _asked(parts)) for modality, _, name in [stage.partition("/")]]


def _merged(
    key: FeatureKey, table: UtteranceTable, parts: Sequence[Part], failures: Failures, whole: _Whole | None
) -> StoredFeatures:
    """One feature set of all shards, and of the earlier whole cache what they left to it."""
    stage = stage_of(*key)
    check_evidence(stage, parts)
    found = [(part, some) for part in parts if (some := find_features(part.features, *key)) is not None]
    source, place = np.full(len(table), -1, dtype=np.intp), np.arange(len(table))
    for number, one in enumerate(found):
        check_recipe(found[0], one)
        encoded = one[1].encoded
        for row in np.flatnonzero(encoded & (source >= 0)):
            check_rows(found[source[row]], one, int(row), table.id[row])
        source[encoded & (source < 0)] = number
    failed = np.array([(stage, str(id_)) in failures for id_ in table.id], dtype=bool)
    before = None if whole is None else find_features(whole.part.features, *key)
    if whole is not None and before is not None and (not found or before.fingerprint == found[0][1].fingerprint):
        found.append((whole.part, before))
        check_recipe(found[0], found[-1])
        places = _places(before, whole.utterances, table)
        taken = (source < 0) & ~failed & (places >= 0)
        source[taken], place[taken] = len(found) - 1, places[taken]
    if not found:
        reason = next((one.reason for one in failures.values() if one.stage == stage), "there is none")
        raise CacheError(f"Not one of {len(table)} utterances is encoded as {stage} ({reason})")
    sets = [some for _, some in found]
    if not any(IMPORTED in some.inputs for some in sets):
        check_gaps(stage, table.id[(source < 0) & ~failed].tolist(), parts)
    return _joined(sets, source, place)


def _places(features: StoredFeatures, earlier: UtteranceTable, now: UtteranceTable) -> Sources:
    """(N,) the row of an earlier feature set that was made of what each utterance is now, -1 where there is none."""

    def keys(table: UtteranceTable) -> list[Any]:
        if IMPORTED in features.inputs or features.modality not in ("audio", *OF_TRANSCRIPTS):
            return list(table.id)
        if features.modality in OF_TRANSCRIPTS:
            return list(table.transcript)
        times = (np.nan_to_num(column, nan=-1.0).tolist() for column in (table.start, table.duration))
        return [key if key[0] else None for key in zip(table.audio_sha256, *times, strict=True)]

    rows = {key: row for row, (key, held) in enumerate(zip(keys(earlier), features.encoded, strict=True)) if held}
    return np.array([-1 if key is None else rows.get(key, -1) for key in keys(now)], dtype=np.intp)


def _joined(sets: Sequence[StoredFeatures], source: Sources, place: Sources) -> StoredFeatures:
    """The feature set whose row i is row place[i] of the set source[i]; -1: of none."""
    follows = np.append(False, (source[1:] == source[:-1]) & (place[1:] == place[:-1] + 1) & (source[1:] >= 0))
    inputs = [sets[one].inputs[row] if one >= 0 else "" for one, row in zip(source, place, strict=True)]
    first = sets[0]

    def values(one: int, stop: int) -> npt.NDArray[Any] | None:
        row = place[one]
        return None if source[one] < 0 else sets[source[one]].values[row : row + stop - one]

    def sequences(one: int, stop: int) -> npt.NDArray[Any] | None:
        frames = None if source[one] < 0 else sets[source[one]].frames
        return (
            None if frames is None else frames.values[frames.offsets[place[one]] : frames.offsets[place[stop - 1] + 1]]
        )

    frames = None
    if first.frames is not None:
        lengths = np.zeros(len(source), dtype=np.int64)
        for number, some in enumerate(sets):
            own = source == number
            if some.frames is not None:
                lengths[own] = np.diff(some.frames.offsets)[place[own]]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        kind = first.frames.values
        frames = StoredFrames(Gathered(kind.shape[1:], kind.dtype, offsets, sequences, follows), offsets)
    rows = Gathered(first.values.shape[1:], first.values.dtype, np.arange(len(source) + 1), values, follows)
    return StoredFeatures(first.modality, first.name, rows, texts(inputs), first.recipe, frames)


def _others(now: UtteranceTable, whole: _Whole, sets: Sequence[StoredFeatures]) -> list[StoredFeatures]:
    """The feature sets of the earlier cache that no shard has, where their utterances are now."""
    kept, done = [], {_stage(some) for some in sets}
    for some in whole.part.features:
        if _stage(some) in done:
            continue
        place = _places(some, whole.utterances, now)
        if dropped := int(some.encoded.sum()) - len(set(place[place >= 0])):
            _log.warning("%s: %d rows are dropped, as what they were encoded from has changed", _stage(some), dropped)
        if (place >= 0).any():
            kept.append(_joined([some], np.where(place >= 0, 0, -1), place))
    return kept


def _work(stage: str, parts: Sequence[Part], whole: _Whole | None, features: StoredFeatures) -> dict[str, Any]:
    """What the summary tells of a feature set, of all shards together."""
    works = [found for part in parts if (found := part.work(stage))]
    evidence = reduce(or_, [part.evidence(stage) for part in parts])
    before = None if whole is None else find_features(whole.part.features, features.modality, features.name)
    if whole is not None and before is not None and before.fingerprint == features.fingerprint:
        evidence |= whole.part.evidence(stage)
    counted = ("encoded", "distinct", "seconds", "truncated", "elapsed")
    sums = {name: sum(work[name] for work in works) for name in counted}
    devices = dict.fromkeys(device for work in works for device in work["device"].split(",") if device)
    done = {"up_to_date": int(features.encoded.sum()) - sums["encoded"], "device": ",".join(devices)}
    return {**works[0], **sums, **done, "evidence": asdict(evidence)}


def _left(failures: Iterable[Failure], ids: Texts, sets: Sequence[StoredFeatures]) -> tuple[Failure, ...]:
    """The failures of what no shard encoded, in their order."""
    held = {
        (_stage(some), str(id_)) for some in sets for id_, is_there in zip(ids, some.encoded, strict=True) if is_there
    }
    known = {str(id_) for id_ in ids}
    left = [one for one in failures if one.utterance in known and (one.stage, one.utterance) not in held]
    return tuple(sorted(left, key=lambda failure: (failure.stage, failure.utterance)))
