"""The shards of a corpus as they are read to be merged, and all by which they may not fit together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.cache import Failure, FeatureCache, StoredFeatures, mapped_features, read_cache
from amber2_core.errors import CacheError
from amber2_core.shards import check_all, shard_of

from .evidence import Evidence, evidence_of
from .previous import sequence_of, stage_of
from .recipe import differences

# the parts are dealt by what is batched together
_AGAIN = "give all shards the same --batch-seconds, --batch-tokens and kind of --device, and run them again"
# a shard keeps what it was ever asked for
_SAME = "give all shards the same options, and remove those that were run with others first"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Part:
    """A cache that rows come from: what it tells of its work, and its feature sets, where they lie in the file."""

    path: Path
    failures: tuple[Failure, ...]
    summary: Mapping[str, Any]
    features: tuple[StoredFeatures, ...]

    def work(self, stage: str) -> Mapping[str, Any]:
        """What the summary says of a feature set; {}: it was not asked for."""
        found: Mapping[str, Any] = self.summary.get("features", {}).get(stage, {})
        return found

    def evidence(self, stage: str) -> Evidence:
        """How far rows of batches were from their utterances alone."""
        return evidence_of(self.work(stage).get("evidence", {}))


def read_part(path: Path) -> tuple[FeatureCache, Part]:
    """The tables of a cache, and the rest.

    Raises:
        CacheError: it cannot be read, or is damaged.
    """
    cache = read_cache(path, only=())
    return cache, Part(path, cache.failures, cache.summary, mapped_features(path))


def read_shards(paths: Sequence[Path]) -> tuple[FeatureCache, list[Part]]:
    """The tables, which all shards must share, and the rest of each, in the order of their numbers.

    Raises:
        SettingError: one is missing, or one of another number of shards.
        CacheError: one cannot be read, is damaged, no shard, named twice, or of another corpus.
    """
    first: FeatureCache | None = None
    shards, parts = {}, []
    for path in paths:
        cache, part = read_part(path)
        if (shard := shard_of(cache.summary)) is None:
            raise CacheError(f"{path} is no shard but a whole cache: shards are what extract-features --shard writes")
        if path in shards:
            raise CacheError(f"{path} is named twice: name each shard once")
        first = first or cache
        _check_same(paths[0], first, path, cache)
        shards[path] = shard
        parts.append(part)
    check_all(shards, what="cache")
    assert first is not None
    return first, sorted(parts, key=lambda part: shards[part.path].number)


def _check_same(path: Path, one: FeatureCache, other_path: Path, other: FeatureCache) -> None:
    """Raises CacheError that names the first thing of a corpus by which two caches differ."""
    so = f"{path} and {other_path} are not of one corpus"
    for name in ("corpus", "corpus_version", "defaults"):
        if (a := getattr(one, name)) != (b := getattr(other, name)):
            raise CacheError(f"{so}: {name.replace('_', ' ')} is {a!r} and {b!r}")
    for what, (a, b) in {
        "utterances": (_columns(one.utterances), _columns(other.utterances)),
        "ratings": (_columns(one.ratings), _columns(other.ratings)),
        "attributes": (dict(one.attributes), dict(other.attributes)),
    }.items():
        for name in a | b:
            if name not in a or name not in b:
                raise CacheError(f"{so}: one has no {name} among its {what}")
            if (row := _first_difference(a[name], b[name])) is not None:
                longer = one if row < len(a[name]) else other
                id_ = longer.utterances.id[longer.ratings.utterance[row] if what == "ratings" else row]
                raise CacheError(f"{so}: their {what} differ, the first in {name} of {id_!r}")
    for name in sorted(one.versions.keys() | other.versions.keys()):
        if (a := one.versions.get(name)) != (b := other.versions.get(name)):
            _log.warning("%s was written with %s %s, %s with %s", path, name, a, other_path, b)


def _columns(table: Any) -> dict[str, npt.NDArray[Any]]:
    return {field.name: getattr(table, field.name) for field in fields(table)}


def _first_difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> int | None:
    """The first row in which two columns differ; two that are NaN do not."""
    length = min(len(a), len(b))
    x, y = a[:length], b[:length]
    differ = (x != y) & ((x == x) | (y == y))
    if differ.any():
        return int(np.argmax(differ))
    return None if len(a) == len(b) else length


def check_recipe(one: tuple[Part, StoredFeatures], other: tuple[Part, StoredFeatures]) -> None:
    """Raises CacheError where a feature set was encoded in another way in another shard."""
    (part, a), (other_part, b) = one, other
    stage, files = stage_of(a.modality, a.name), f"{part.path} and {other_part.path}"
    if why := differences(a.recipe, b.recipe):
        raise CacheError(f"{stage} is encoded in other ways in {files}: {'; '.join(why)}")
    kinds = [(some.values.shape[1:], str(some.values.dtype), some.frames is not None) for some in (a, b)]
    if kinds[0] != kinds[1]:
        raise CacheError(f"{stage} has rows of other kinds in {files}: {kinds[0]} and {kinds[1]}")


def check_rows(one: tuple[Part, StoredFeatures], other: tuple[Part, StoredFeatures], row: int, id_: str) -> None:
    """Raises CacheError where two shards hold other values of an utterance."""
    (part, a), (other_part, b) = one, other
    is_same = a.inputs[row] == b.inputs[row] and np.array_equal(a.values[row : row + 1], b.values[row : row + 1])
    if is_same and a.frames is not None and b.frames is not None:
        is_same = np.array_equal(sequence_of(a.frames, row), sequence_of(b.frames, row))
    if not is_same:
        files = f"{part.path} and {other_part.path}"
        raise CacheError(f"{files} hold other values of {id_!r} as {stage_of(a.modality, a.name)}: {_AGAIN}")


def check_evidence(stage: str, parts: Sequence[Part]) -> None:
    """Raises CacheError where a shard found that batches change the values, and another encoded in batches."""
    evidence = {part.path: part.evidence(stage) for part in parts}
    singly = [path for path, found in evidence.items() if found.singly]
    together = [path for path, found in evidence.items() if not found.singly and found.checked]
    if singly and together:
        option = "--batch-seconds 0" if stage.startswith("audio/") else "--batch-tokens 0"
        raise CacheError(
            f"{singly[0]} found that batches change the values of {stage} ({evidence[singly[0]].words}), and "
            f"{together[0]} encoded in batches: encode all shards again with {option} --force"
        )


def check_gaps(stage: str, gaps: Sequence[str], parts: Sequence[Part]) -> None:
    """Raises CacheError where utterances were neither encoded nor failed."""
    if gaps:
        more = f" and {len(gaps) - 1:,} more" if len(gaps) > 1 else ""
        never = [part.path for part in parts if not part.work(stage)]
        why = f"{never[0]} was not asked for it: {_SAME}" if never else _AGAIN
        raise CacheError(f"No shard encoded {gaps[0]!r}{more} as {stage}: {why}")
