"""Run folders and their caches in a moment: random predictions, everything else as train-heads writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.cache import FeatureCache, write_cache
from amber2_core.metrics import METRICS, evaluate
from amber2_core.run_folder import (
    KEY_COLUMNS,
    UTTERANCE_COLUMNS,
    Predictions,
    summarise,
    write_curves,
    write_json,
    write_predictions,
    write_results,
    write_utterances,
)
from amber2_core.tables import RatingTable, UtteranceTable, texts
from amber2_core.utterance import LabelDefaults

AXES = ("lambda_rai", "lambda_mai", "lambda_expert", "kappa", "student", "fusion")
HEADS = ("audio", "text", "fusion")
GRID = tuple((mai, kappa) for mai in (0.3, 0.5, 0.7) for kappa in (2.0, 4.0, 8.0))


@dataclass(frozen=True)
class Sketch:
    """What a made-up run is to look like."""

    count: int = 60
    folds: int = 3
    speakers: int = 9
    seeds: int = 2
    raters: int = 5
    corpus: str = "made-up"
    emotions: tuple[str, ...] = ("neutral", "happy", "angry", "sad")
    systems: tuple[str, ...] = ("amber2", "cb-ce")
    # (λ_MAI, κ) of amber2; the first is selected in every fold
    grid: Sequence[tuple[float, float]] = ((0.5, 4.0),)
    transcripts: Sequence[str] = ("We will see.",)
    # prefixes of the utterances' names
    names: str = "u"
    # decides the votes
    votes_seed: int = 0
    # decides the predictions
    seed: int = 0
    audio: Sequence[str] = ("",)
    # head → the rows of predictions.npz for which it predicts nothing
    lacking: Mapping[str, Sequence[int]] = field(default_factory=dict)
    epochs: int = 4
    # a folder of the first version: it declares nothing, and has neither curves.csv nor utterances.csv
    earlier: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_run(folder: Path, sketch: Sketch | None = None, *, cache: Path | None = None) -> Path:
    """A run folder; with `cache`, its feature cache too."""
    sketch = sketch or Sketch()
    votes = _votes(sketch)
    fold = np.arange(sketch.count) % sketch.speakers % sketch.folds + 1
    order = np.argsort(fold, kind="stable")
    ids = texts([f"{sketch.names}{k:05}" for k in range(sketch.count)])
    counts = np.stack([(votes == c).sum(1) for c in range(len(sketch.emotions))], 1)
    target = (counts / sketch.raters).astype(np.float32)[order]
    predictions = Predictions(
        id=ids[order],
        fold=fold[order].astype(np.int64),
        target=target,
        emotions=sketch.emotions,
        probs={
            f"{system}/{head}": _probs(target, sketch, [ord(letter) for letter in system + head], head)
            for system in sketch.systems
            for head in HEADS
        },
    )
    rows = [row for part in ("dev", "test") for row in _rows(sketch, predictions, part)]
    folder.mkdir(parents=True)
    write_json(folder / "settings.json", _settings(sketch, cache))
    write_results(folder / "results.csv", rows)
    write_predictions(folder / "predictions.npz", predictions)
    if not sketch.earlier:
        write_curves(folder / "curves.csv", _curves(sketch))
        write_utterances(folder / "utterances.csv", _utterances(sketch, predictions))
    write_json(folder / "summary.json", {"table": summarise(rows), "selected": {}})
    if cache is not None:
        write_cache(cache, _cache(sketch, ids, votes))
    return folder


def result_row(fold: int, seed: int, *, split: str = "test", head: str = "fusion", **metrics: float) -> dict[str, Any]:
    """One row of results.csv, its metrics what fold and seed make them, or as they are given."""
    values = dict.fromkeys(METRICS, 0.1 * fold + 0.013 * seed**2)
    key = dict(zip(KEY_COLUMNS, ("amber2", head, split, fold, seed, 1), strict=True))
    return {**key, "kappa": 4.0, "student": "fusion", "lambda_rai": None, "epoch": 3, "n": 10, **values, **metrics}


def _votes(sketch: Sketch) -> npt.NDArray[np.int64]:
    """(utterances, raters) classes, more or less agreed upon."""
    rng = np.random.default_rng(sketch.votes_seed)
    classes = len(sketch.emotions)
    favourite = rng.integers(classes, size=(sketch.count, 1))
    other = rng.integers(classes, size=(sketch.count, sketch.raters))
    follows = rng.random((sketch.count, sketch.raters)) < rng.random((sketch.count, 1))
    return np.where(follows, favourite, other)


def _probs(target: npt.NDArray[np.float32], sketch: Sketch, name: list[int], head: str) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng([sketch.seed, *name])
    noise = rng.dirichlet(np.ones(target.shape[1]), size=(sketch.seeds, len(target)))
    probs = (0.5 * target + 0.5 * noise).astype(np.float32)
    probs[:, list(sketch.lacking.get(head, ()))] = np.nan
    return probs


def _rows(sketch: Sketch, predictions: Predictions, split: str) -> list[dict[str, Any]]:
    """Rows of results.csv; dev scores are those of other predictions, a little worse for each later grid point."""
    rows: list[dict[str, Any]] = []
    for name, probs in predictions.probs.items():
        system, head = name.split("/")
        points: Sequence[tuple[float | None, float | None]] = sketch.grid if system == "amber2" else [(None, None)]
        for place, (mai, kappa) in enumerate(points if split == "dev" else points[:1]):
            for number in np.unique(predictions.fold):
                members = np.flatnonzero((predictions.fold == number) & ~np.isnan(probs[0, :, 0]))
                scored = probs[:, members] if split == "test" else np.roll(probs, 1, -1)[:, members]
                scores = evaluate(predictions.target[members], scored)
                for seed in range(sketch.seeds):
                    key = {"system": system, "head": head, "split": split, "fold": int(number), "seed": seed}
                    amber = system == "amber2"
                    setting = {
                        "lambda_rai": 1.0 if amber else None,
                        "lambda_mai": mai,
                        "lambda_expert": 0.0 if amber else None,
                        "kappa": kappa,
                        "student": "fusion" if amber else None,
                        "fusion": "gmu",
                    }
                    values = {metric: float(x[seed]) + (0.001 * place) for metric, x in scores.items()}
                    rows.append(
                        {**key, "selected": int(place == 0), **setting, "epoch": 3, "n": len(members), **values}
                    )
    return rows


def _curves(sketch: Sketch) -> list[dict[str, Any]]:
    """Rows of curves.csv, lowest at epoch 3."""
    rng = np.random.default_rng([sketch.seed, 3])
    return [
        {"system": system, "head": head, "fold": fold, "seed": seed, "epoch": epoch,
         "dev_js": float(0.2 + 0.05 * abs(epoch - 3) + 0.01 * rng.random())}
        for system in sketch.systems
        for head in HEADS
        for fold in range(1, sketch.folds + 1)
        for seed in range(sketch.seeds)
        for epoch in range(1, sketch.epochs + 1)
    ]  # fmt: skip


def _utterances(sketch: Sketch, predictions: Predictions) -> list[dict[str, Any]]:
    """Rows of utterances.csv, with the speakers of the cache."""
    rows = zip(predictions.id, predictions.fold.tolist(), strict=True)
    empty = dict.fromkeys(UTTERANCE_COLUMNS, "")
    return [
        {**empty, "id": name, "fold": fold, "speaker": f"s{int(name[len(sketch.names) :]) % sketch.speakers}",
         "style": ("read", "free")[fold % 2]}
        for name, fold in rows
    ]  # fmt: skip


def _settings(sketch: Sketch, cache: Path | None) -> dict[str, Any]:
    policy = {
        "emotions": list(sketch.emotions), "stimulus": "audio", "raters": "external", "multi_label": "pooled",
        "out_of_space": "drop", "merge": [], "keep": "any-vote",
    }  # fmt: skip
    return {
        "command": ["train-heads", "--seeds", str(sketch.seeds)],
        "created": "2026-01-01T12:00:00+00:00",
        "corpus": sketch.corpus,
        "cache": "" if cache is None else str(cache),
        "policy": policy,
        "emotions": list(sketch.emotions),
        "utterances": {"kept": sketch.count, "dropped": {"no counting vote": 0}},
        "folds": {"protocol": "speaker", "sizes": {str(k + 1): {} for k in range(sketch.folds)}},
        "seeds": sketch.seeds,
        **({} if sketch.earlier else {"axes": [*AXES], "metrics": [*METRICS]}),
        **sketch.extra,
    }


def _cache(sketch: Sketch, ids: npt.NDArray[np.object_], votes: npt.NDArray[np.int64]) -> FeatureCache:
    count, empty = sketch.count, texts([""] * sketch.count)
    words = [sketch.transcripts[k % len(sketch.transcripts)] for k in range(count)]
    return FeatureCache(
        corpus=sketch.corpus,
        utterances=UtteranceTable(
            id=ids,
            speaker=texts([f"s{k % sketch.speakers}" for k in range(count)]),
            session=empty, dialogue=empty, split=empty, language=empty,
            transcript=texts(words),
            audio=texts([sketch.audio[k % len(sketch.audio)] for k in range(count)]),
            audio_sha256=empty,
            start=np.full(count, np.nan, np.float32),
            duration=np.ones(count, np.float32),
        ),
        ratings=RatingTable(
            utterance=np.repeat(np.arange(count, dtype=np.int32), votes.shape[1]),
            rater=texts([f"r{r}" for _ in range(count) for r in range(votes.shape[1])]),
            source=texts(["external"] * votes.size),
            stimulus=texts(["audio"] * votes.size),
            label=texts([sketch.emotions[c] for c in votes.ravel()]),
            weight=np.ones(votes.size, np.float32),
        ),
        defaults=LabelDefaults(emotions=sketch.emotions, stimulus="audio", folds="speaker"),
        features=(),
    )  # fmt: skip
