"""What a feature cache holds, and how another differs from it: as records for machines, and as lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amber2_core.cache import (
    FeatureCache,
    FeatureHeader,
    Features,
    read_cache,
    read_feature_headers,
    read_repeated_rows,
    stored_features,
)
from amber2_core.errors import LabelError
from amber2_core.shards import shard_of
from amber2_core.tables import Texts
from amber2_core.votes import LabelPolicy, label_distributions

from .evidence import evidence_of
from .previous import find_features, sequence_of, stage_of
from .recipe import OF_TRANSCRIPTS, differences, settings

Record = dict[str, Any]  # JSON values


def read_description(path: Path, *, verify: bool = False) -> Record:
    """What a cache holds.

    Args:
        path: the cache.
        verify: read the features too, and so check every checksum; without it only the tables' are.

    Raises:
        CacheError: it cannot be read, or is damaged.
    """
    cache = read_cache(path, only=())
    if verify:
        with stored_features(path):
            pass
    table, repeated = cache.utterances, read_repeated_rows(path)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "verified": verify,
        "corpus": cache.corpus,
        "corpus_version": cache.corpus_version,
        "created": cache.created,
        "versions": dict(cache.versions),
        # of which this is one; None: all of the corpus
        "shard": cache.summary.get("shard"),
        "utterances": len(table),
        "hours": round(float(np.nansum(table.duration)) / 3600, 4),
        "speakers": len(set(table.speaker) - {""}),
        "sessions": len(set(table.session) - {""}),
        "ratings": _ratings(cache),
        "labels": _labels(cache),
        "attributes": sorted(cache.attributes),
        "features": [
            _features(header, repeated.get((header.modality, header.name)), table.transcript, cache.summary)
            for header in read_feature_headers(path)
        ],
        "failures": [{"utterance": f.utterance, "stage": f.stage, "reason": f.reason} for f in cache.failures],
        "summary": dict(cache.summary),
    }


def describe(record: Record) -> str:
    """The lines for people."""
    version = f" {record['corpus_version']}" if record["corpus_version"] else ""
    lines = [
        f"{record['file']}: {_size(record['bytes'])}" + (", every checksum verified" if record["verified"] else ""),
        f"corpus      {record['corpus']}{version}, encoded {record['created']}",
        f"utterances  {record['utterances']:,}, {record['hours']:.2f} h, {record['speakers']} speakers, "
        f"{record['sessions']} sessions",
    ]
    if (shard := shard_of(record)) is not None:
        lines.append(f"shard       {shard.number} of {shard.count}: features of this part; merge-shards makes them one")
    for stimulus, ratings in record["ratings"].items():
        words = ", ".join(f"{word} {count:,}" for word, count in list(ratings["words"].items())[:12])
        lines.append(
            f"ratings     {ratings['ratings']:,} of the {stimulus} stimulus, "
            f"{ratings['raters_per_utterance']:.2f} raters per rated utterance: {words}"
        )
        if len(ratings["sources"]) > 1:
            sources = ", ".join(f"{source} {count:,}" for source, count in ratings["sources"].items())
            lines.append(f"              by source: {sources}; raters and words are people's")
    labels = record["labels"]
    if "error" in labels:
        lines.append(f"labels      none by default: {labels['error']}")
    else:
        shares = ", ".join(f"{emotion} {share:.3f}" for emotion, share in labels["shares"].items())
        lines.append(f"labels      {labels['utterances']:,} utterances by default ({labels['policy']}): {shares}")
        lines.append(
            f"ambiguity   {labels['mean_entropy']:.3f} bits on average, {labels['unanimous']:.1%} unanimous, "
            f"{labels['tied']:.1%} tied"
        )
    for features in record["features"]:
        shape = " × ".join(str(size) for size in features["shape"])
        lines.append(
            f"features    {features['modality']}/{features['name']}: {shape} {features['dtype']}, "
            f"fingerprint {features['fingerprint'][:12]}"
        )
        lines += [f"              {name}: {value}" for name, value in settings(features["recipe"])]
        if features["evidence"]:
            lines.append(f"              evidence: {evidence_of(features['evidence']).words}")
        if features["without_content"]:
            lines.append(f"              warning: {features['without_content']}")
    lines.append(f"failures    {len(record['failures'])}")
    lines += [f"              {f['utterance']} ({f['stage']}): {f['reason']}" for f in record["failures"]]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _ratings(cache: FeatureCache) -> Record:
    """Of each stimulus; raters and words are people's, where there are any beside the models."""
    found = {}
    ratings = cache.ratings
    for stimulus in sorted(set(ratings.stimulus)):
        chosen = ratings.stimulus == stimulus
        people = chosen & (ratings.source != "synthetic")
        own = people if people.any() else chosen
        raters = set(zip(ratings.utterance[own], ratings.rater[own], strict=True))
        words = Counter(str(word) for word in ratings.label[own])
        found[str(stimulus)] = {
            "ratings": int(chosen.sum()),
            "raters_per_utterance": len(raters) / max(1, len(set(ratings.utterance[own]))),
            "sources": dict(Counter(str(source) for source in ratings.source[chosen])),
            "words": dict(words.most_common()),
        }
    return found


def _labels(cache: FeatureCache) -> Record:
    """What the corpus's default label policy makes of the ratings."""
    policy = LabelPolicy.of_corpus(cache.defaults)
    try:
        targets = label_distributions(cache.ratings, cache.attributes, len(cache.utterances), policy)
    except LabelError as problem:
        return {"error": str(problem)}
    y = targets.soft_labels  # (utterances, emotions)
    entropy = -(y * np.log2(np.where(y > 0, y, 1))).sum(axis=1)
    largest = y == y.max(axis=1, keepdims=True)
    return {
        "policy": f"{policy.stimulus}, keep={policy.keep}",
        "utterances": len(y),
        "dropped": dict(targets.dropped),
        "shares": dict(zip(targets.emotions, y.mean(axis=0).tolist(), strict=True)),
        "mean_entropy": float(entropy.mean()),
        "unanimous": float((entropy == 0).mean()),
        "tied": float((largest.sum(axis=1) > 1).mean()),
    }


def without_content(modality: str, counts: tuple[int, int], transcripts: Texts) -> str:
    """In words, that most utterances have one and the same vector, as `repeated_rows` counts them."""
    empty = sum(not transcript.strip() for transcript in transcripts) if modality in OF_TRANSCRIPTS else 0
    why = f" ({empty:,} transcripts are empty)" if empty else ""
    return (
        f"{counts[0]:,} of {counts[1]:,} utterances have the same vector{why}: little or nothing can be learnt from it"
    )


def _features(
    header: FeatureHeader, counts: tuple[int, int] | None, transcripts: Texts, summary: Mapping[str, Any]
) -> Record:
    work = summary.get("features", {}).get(stage_of(header.modality, header.name), {})
    return {
        "modality": header.modality,
        "name": header.name,
        "shape": list(header.shape),
        "dtype": header.dtype,
        "fingerprint": header.fingerprint,
        "frames": header.has_frames,
        "recipe": dict(header.recipe),
        # how far rows of batches were from their utterances alone; {} where nothing is known
        "evidence": work.get("evidence", {}),
        # "" where utterances differ
        "without_content": without_content(header.modality, counts, transcripts) if counts else "",
    }


# --- two caches ---


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
        "ratings": _ticks(one) == _ticks(two),
        "features": {stage: _compared(one, two, *stage.split("/", 1)) for stage in sorted(stages)},
    }
    record["same"] = (
        record["ratings"]
        and all(record[what]["a"] == record[what]["b"] == 0 for what in ("utterances", "failures"))
        and all(features["same"] for features in record["features"].values())
    )
    return record


def describe_comparison(record: Record) -> str:
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


def _compared(one: FeatureCache, two: FeatureCache, modality: str, name: str) -> Record:
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


def _ticks(cache: FeatureCache) -> set[tuple[str, ...]]:
    table, ids = cache.ratings, cache.utterances.id
    columns = (table.rater, table.source, table.stimulus, table.label, table.weight)
    return {(ids[row], *map(str, tick)) for row, *tick in zip(table.utterance, *columns, strict=True)}


def _counts(a: set[Any], b: set[Any]) -> dict[str, int]:
    return {"a": len(a - b), "b": len(b - a), "both": len(a & b)}
