"""The path of a feature cache goes in; what it holds comes out, as a record for machines and as lines for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from amber2_core.cache import FeatureCache, FeatureHeader, read_cache, read_feature_headers, stored_features
from amber2_core.errors import LabelError
from amber2_core.votes import LabelPolicy, label_distributions

from .recipe import settings

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
    table = cache.utterances
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "verified": verify,
        "corpus": cache.corpus,
        "corpus_version": cache.corpus_version,
        "created": cache.created,
        "versions": dict(cache.versions),
        "utterances": len(table),
        "hours": round(float(np.nansum(table.duration)) / 3600, 4),
        "speakers": len(set(table.speaker) - {""}),
        "sessions": len(set(table.session) - {""}),
        "ratings": _ratings(cache),
        "labels": _labels(cache),
        "attributes": sorted(cache.attributes),
        "features": [_features(header) for header in read_feature_headers(path)],
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
    for stimulus, ratings in record["ratings"].items():
        words = ", ".join(f"{word} {count:,}" for word, count in list(ratings["words"].items())[:12])
        lines.append(
            f"ratings     {ratings['ratings']:,} of the {stimulus} stimulus, "
            f"{ratings['raters_per_utterance']:.2f} raters per rated utterance: {words}"
        )
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
    lines.append(f"failures    {len(record['failures'])}")
    lines += [f"              {f['utterance']} ({f['stage']}): {f['reason']}" for f in record["failures"]]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _ratings(cache: FeatureCache) -> Record:
    found = {}
    ratings = cache.ratings
    for stimulus in sorted(set(ratings.stimulus)):
        chosen = ratings.stimulus == stimulus
        raters = set(zip(ratings.utterance[chosen], ratings.rater[chosen], strict=True))
        words = Counter(str(word) for word in ratings.label[chosen])
        found[str(stimulus)] = {
            "ratings": int(chosen.sum()),
            "raters_per_utterance": len(raters) / max(1, len(set(ratings.utterance[chosen]))),
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


def _features(header: FeatureHeader) -> Record:
    return {
        "modality": header.modality,
        "name": header.name,
        "shape": list(header.shape),
        "dtype": header.dtype,
        "fingerprint": header.fingerprint,
        "frames": header.has_frames,
        "recipe": dict(header.recipe),
    }
