"""Small training data and caches for the tests of stage 2: random features that tell something of random votes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amber2_core.cache import FeatureCache, Features, Frames, MappedFeatures, write_cache
from amber2_core.features import Side
from amber2_core.tables import RatingTable, UtteranceTable, texts
from amber2_core.utterance import LabelDefaults
from amber2_train.fold_data import FoldData, Rows, features_on, fold_data
from amber2_train.folds import make_folds
from amber2_train.training_data import Fold, TrainingData, read_material

EMOTIONS = ("neutral", "happy", "angry", "sad")
SIZES = {"audio": 6, "text": 5, "video": 4}


def votes(count: int, *, raters: int = 3, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(count, raters) classes; raters agree about some utterances more than about others."""
    random = np.random.default_rng(seed)
    clarity = random.uniform(0.4, 1.0, count)
    felt = random.integers(0, len(EMOTIONS), count)
    heard = random.integers(0, len(EMOTIONS), (count, raters))
    return np.where(random.uniform(size=(count, raters)) < clarity[:, None], felt[:, None], heard)


def soft_labels(count: int, *, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(count, C) shares of votes."""
    ticks = votes(count, seed=seed)
    return np.stack([(ticks == c).mean(1) for c in range(len(EMOTIONS))], axis=1).astype(np.float32)


def features(
    targets: np.ndarray[Any, Any], modalities: Sequence[str] = ("audio", "text"), *, seed: int = 0
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Vectors (count, D_m) by modality that carry the targets, noisily and off centre."""
    random = np.random.default_rng(seed + 1)
    made = {}
    for name in modalities:
        signal = targets @ random.normal(size=(targets.shape[1], SIZES[name]))
        noise = random.normal(size=signal.shape)
        made[name] = (2.0 + signal + 0.5 * noise).astype(np.float32)
    return made


def training_data(
    count: int = 60,
    *,
    speakers: int = 6,
    sessions: int = 3,
    modalities: Sequence[str] = ("audio", "text"),
    missing: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> TrainingData:
    """Utterances of three sessions; `missing` names rows that a modality does not have."""
    targets = soft_labels(count, seed=seed)
    sets = feature_sets(targets, modalities, missing=missing, seed=seed)
    return TrainingData(
        id=texts([f"u{i:03}" for i in range(count)]),
        speaker=texts([f"s{i % speakers}" for i in range(count)]),
        session=texts([f"Ses{i % sessions}" for i in range(count)]),
        split=texts([""] * count),
        inputs={some.modality: some for some in sets},
        rows=np.arange(count),
        targets=targets,
        emotions=EMOTIONS,
        dropped={},
        ignored={},
        present={some.modality: some.encoded for some in sets if some.modality in (missing or {})},
    )


def with_values(data: TrainingData, **values: np.ndarray[Any, Any]) -> TrainingData:
    """The same utterances with other numbers as features of some modalities."""
    sets: dict[str, Features | MappedFeatures] = dict(data.inputs)
    for name, x in values.items():
        own = data.inputs[name]
        sets[name] = Features(name, own.name, x.astype(np.float32), own.inputs, own.recipe)
    return replace(data, inputs=sets)


def values_of(data: TrainingData) -> dict[str, np.ndarray[Any, Any]]:
    """All utterances' features by modality, wherever they are."""
    found = {}
    for name, some in data.inputs.items():
        found[name] = some.values if isinstance(some.values, np.ndarray) else some.values.open()
    return found


def fold_in(
    data: TrainingData, fold: Fold, *, dtype: torch.dtype = torch.float64, standardise: bool = False
) -> FoldData:
    """A fold on the CPU, to be trained in any precision."""
    found = fold_data(data, fold, features_on("cpu", data), standardise=standardise)

    def part(rows: Rows) -> Rows:
        return replace(rows, targets=rows.targets.to(dtype))

    return replace(found, train=part(found.train), dev=part(found.dev), test=part(found.test))


def feature_sets(
    targets: np.ndarray[Any, Any],
    modalities: Sequence[str],
    *,
    missing: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> list[Features]:
    """What a cache holds of `features`."""
    sets = []
    for name, values in features(targets, modalities, seed=seed).items():
        inputs = np.array([f"{i:064}" for i in range(len(targets))], dtype=object)
        for row in (missing or {}).get(name, ()):
            values[row], inputs[row] = np.nan, ""
        sets.append(Features(name, f"{name}-model", values, inputs, {"model": name}))
    return sets


def cache_of(
    count: int = 60,
    *,
    modalities: Sequence[str] = ("audio", "text"),
    speakers: int = 6,
    sessions: int = 3,
    emotions: tuple[str, ...] = EMOTIONS,
    folds: str = "session",
    defaults: Mapping[str, Any] | None = None,
    missing: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> FeatureCache:
    """A feature cache; `missing` names rows that a modality does not have."""
    ticks = votes(count, seed=seed)
    columns = {name: texts([""] * count) for name in ("dialogue", "split", "language", "transcript", "audio")}
    sets = feature_sets(soft_labels(count, seed=seed), modalities, missing=missing, seed=seed)
    return FeatureCache(
        corpus="made-up",
        utterances=UtteranceTable(
            id=texts([f"u{i:03}" for i in range(count)]),
            speaker=texts([f"s{i % speakers}" for i in range(count)]),
            session=texts([f"Ses{i % sessions}" for i in range(count)]),
            audio_sha256=texts([""] * count),
            start=np.full(count, np.nan, np.float32),
            duration=np.ones(count, np.float32),
            **columns,
        ),
        ratings=RatingTable(
            utterance=np.repeat(np.arange(count, dtype=np.int32), ticks.shape[1]),
            rater=texts([f"r{r}" for _ in range(count) for r in range(ticks.shape[1])]),
            source=texts(["external"] * ticks.size),
            stimulus=texts(["audiovisual"] * ticks.size),
            label=texts([EMOTIONS[c] for c in ticks.ravel()]),
            weight=np.ones(ticks.size, np.float32),
        ),
        defaults=LabelDefaults(emotions=emotions, folds=folds, **(defaults or {})),  # type: ignore[arg-type]
        features=tuple(sets),
    )


def write_small_cache(folder: Path, **what: Any) -> Path:
    path = folder / "made-up.h5"
    write_cache(path, cache_of(**what))
    return path


def write_layered_cache(folder: Path, *, layers: int = 3, **what: Any) -> Path:
    """A small cache of which every modality has several layers, the second the informative one, and frames."""
    path, random, cache = folder / "layered.h5", np.random.default_rng(1), cache_of(**what)
    sets = []
    for some in cache.features:
        values = np.asarray(some.values)
        noise = random.normal(size=(len(values), layers, values.shape[1])).astype(np.float32)
        noise[:, 1] = values
        noise[~some.encoded] = np.nan
        lengths = np.where(some.encoded, random.integers(1, 6, len(values)), 0)
        rows = np.repeat(values, lengths, axis=0) + random.normal(scale=0.1, size=(lengths.sum(), values.shape[1]))
        frames = Frames(rows.astype(np.float32), np.concatenate([[0], np.cumsum(lengths)]))
        sets.append(replace(some, values=noise, frames=frames))
    write_cache(path, replace(cache, features=tuple(sets)))
    return path


def layered_fold(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    standardise: bool = False,
    sides: Collection[Side] = (),
    **what: Any,
) -> FoldData:
    """The first fold of such a cache, of whatever utterances have something."""
    path = write_layered_cache(folder, **what)
    data = read_material(path, {"audio": None, "text": None}, {}, missing="mask", sides=sides).data
    return fold_in(data, make_folds("session", data)[0], dtype=dtype, standardise=standardise)
