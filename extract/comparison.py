"""The paths of two feature caches go in; how their recipes, values, utterances and failures differ comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from amber2_core.cache import FeatureCache, Features, read_cache

from .assembly import sequence_of, stage_of
from .earlier import find_features
from .recipe import differences

Record = dict[str, Any]  # JSON values


def compare(a: Path, b: Path) -> Record:
    """How cache `b` differs from cache `a`; rows are matched by utterance.

    Returns:
        ``same`` (nothing differs), ``utterances`` and ``failures`` (only in a, only in b, in both), ``ratings`` and
        ``features``. Of a feature set in both: ``recipe`` (a phrase per setting that differs), ``encoded`` (only in a,
        only in b, in both), and of the rows encoded in both ``equal`` (how many, to the last bit), ``inputs`` (how many
        were encoded from something else), ``absolute`` (the largest difference of two numbers) and ``relative`` (the
        largest relative L2 difference of two rows). The last two are None where shapes differ or no row is in both.

    Raises:
        CacheError: one of them cannot be read, or is damaged.
    """
    one, two = read_cache(a), read_cache(b)
    stages = dict.fromkeys(stage_of(f.modality, f.name) for cache in (one, two) for f in cache.features)
    record: Record = {
        "a": str(a),
        "b": str(b),
        "utterances": _counts(set(one.utterances.id), set(two.utterances.id)),
        "failures": _counts(*({(f.utterance, f.stage) for f in cache.failures} for cache in (one, two))),
        "ratings": _ratings(one) == _ratings(two),
        "features": {stage: _features(one, two, *stage.split("/", 1)) for stage in sorted(stages)},
    }
    record["same"] = (
        record["ratings"]
        and all(record[what]["a"] == record[what]["b"] == 0 for what in ("utterances", "failures"))
        and all(features["same"] for features in record["features"].values())
    )
    return record


def describe(record: Record) -> str:
    """The lines for people."""
    lines = [f"a           {record['a']}", f"b           {record['b']}"]
    for what in ("utterances", "failures"):
        counts = record[what]
        lines.append(f"{what:11} {counts['both']:,} in both, {counts['a']:,} only in a, {counts['b']:,} only in b")
    lines.append(f"ratings     {'the same' if record['ratings'] else 'differ'}")
    for stage, features in record["features"].items():
        lines.append(f"features    {stage}: {_words(features)}")
        lines += [f"              {difference}" for difference in features.get("recipe", ())]
    lines.append("nothing differs" if record["same"] else "they differ")
    return "\n".join(lines)


def _words(features: Record) -> str:
    if "only_in" in features:
        return f"only in {features['only_in']}"
    encoded = features["encoded"]
    words = [f"{encoded['both']:,} rows in both, {features['equal']:,} of them equal"]
    words += [f"{encoded[cache]:,} only in {cache}" for cache in ("a", "b") if encoded[cache]]
    if features["inputs"]:
        words.append(f"{features['inputs']:,} encoded from another input")
    if features["absolute"] is None:
        words.append("not to be compared")
    elif features["equal"] < encoded["both"]:
        words.append(f"largest difference {features['absolute']:.2g}, relative {features['relative']:.2g}")
    return ", ".join(words)


def _features(one: FeatureCache, two: FeatureCache, modality: str, name: str) -> Record:
    a, b = (find_features(cache.features, modality, name) for cache in (one, two))
    if a is None or b is None:
        return {"only_in": "b" if a is None else "a", "same": False}
    rows = [{id_: row for row, id_ in enumerate(cache.utterances.id)} for cache in (one, two)]
    encoded = [{id_ for id_, row in rows[side].items() if f.encoded[row]} for side, f in enumerate((a, b))]
    both = sorted(encoded[0] & encoded[1])
    pairs = [(rows[0][id_], rows[1][id_]) for id_ in both]
    record: Record = {
        "recipe": list(differences(a.recipe, b.recipe)),
        "encoded": _counts(*encoded),
        "inputs": sum(a.inputs[i] != b.inputs[j] for i, j in pairs),
        **_values(a, b, pairs),
    }
    counts = record["encoded"]
    record["same"] = not record["recipe"] and counts["a"] == counts["b"] == 0 and record["equal"] == counts["both"]
    return record


def _values(a: Features, b: Features, pairs: list[tuple[int, int]]) -> Record:
    if not pairs or a.values.shape[1:] != b.values.shape[1:]:
        return {"equal": 0, "absolute": None, "relative": None}
    equal, absolute, relative = 0, 0.0, 0.0
    for i, j in pairs:
        x, y = a.values[i].astype(np.float64).ravel(), b.values[j].astype(np.float64).ravel()
        if np.array_equal(x, y) and np.array_equal(_sequence(a, i), _sequence(b, j)):
            equal += 1
            continue
        absolute = max(absolute, float(np.abs(x - y).max()))
        relative = max(relative, float(np.linalg.norm(x - y)) / max(float(np.linalg.norm(x)), 1e-30))
    return {"equal": equal, "absolute": absolute, "relative": relative}


def _sequence(features: Features, row: int) -> Any:
    return None if features.frames is None else sequence_of(features.frames, row)


def _ratings(cache: FeatureCache) -> set[tuple[str, ...]]:
    table, ids = cache.ratings, cache.utterances.id
    columns = (table.rater, table.source, table.stimulus, table.label, table.weight)
    return {(ids[row], *map(str, tick)) for row, *tick in zip(table.utterance, *columns, strict=True)}


def _counts(a: set[Any], b: set[Any]) -> dict[str, int]:
    return {"a": len(a - b), "b": len(b - a), "both": len(a & b)}
