"""Feature caches of random numbers, as large as those of real corpora: what the benchmarks of stage 2 train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from amber2_core.cache import FeatureCache, Features, write_cache
from amber2_core.tables import RatingTable, UtteranceTable, texts
from amber2_core.utterance import LabelDefaults


def write_made_up_cache(
    path: Path,
    count: int,
    *,
    sizes: Mapping[str, int],
    emotions: Sequence[str],
    raters: int,
    folds: Literal["session", "official"] = "official",
) -> Path:
    """A cache of `count` utterances with features of these sizes, in partitions of 3 : 1 : 1, in five sessions."""
    random = np.random.default_rng(0)
    empty = texts([""] * count)
    names = texts([f"u{i:06}" for i in range(count)])
    sets = [
        Features(m, f"{m}-model", random.standard_normal((count, d), dtype=np.float32), names, {"model": m})
        for m, d in sizes.items()
    ]
    place = np.arange(count) % 5
    votes = random.choice(np.array(emotions, dtype=object), count * raters)
    table = UtteranceTable(
        id=names,
        speaker=texts([f"s{i % 1000}" for i in range(count)]),
        session=texts([f"Ses{k}" for k in place]),
        dialogue=empty,
        split=np.array(["train", "train", "train", "dev", "test"], dtype=object)[place],
        language=empty,
        transcript=empty,
        audio=empty,
        audio_sha256=empty,
        start=np.full(count, np.nan, np.float32),
        duration=np.ones(count, np.float32),
    )
    ratings = RatingTable(
        utterance=np.repeat(np.arange(count, dtype=np.int32), raters),
        rater=texts([f"r{r}" for _ in range(count) for r in range(raters)]),
        source=texts(["external"] * len(votes)),
        stimulus=texts(["audio"] * len(votes)),
        label=votes,
        weight=np.ones(len(votes), np.float32),
    )
    defaults = LabelDefaults(emotions=tuple(emotions), stimulus="audio", folds=folds)
    write_cache(path, FeatureCache("made-up", table, ratings, defaults, tuple(sets)))
    return path
