"""What a run folder tells of how it came about: settings.json, utterances.csv and log.txt."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from amber2_core.metrics import METRICS

from .request import Request, feature_record
from .selection import Selection
from .training_data import TrainingData

_log = logging.getLogger(__name__)


def settings_record(request: Request) -> dict[str, Any]:
    """settings.json (see `amber2_core.run_folder`)."""
    material, data, folds, options = request.material, request.material.data, request.folds, request.options
    cache = material.cache
    return {
        "command": list(options.command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "corpus": cache.corpus,
        "corpus_version": cache.corpus_version,
        "cache": str(material.path),
        "features": {m: feature_record(some) for m, some in data.inputs.items()},
        "policy": json.loads(json.dumps(asdict(material.policy))),
        "emotions": list(data.emotions),
        "utterances": {
            "in the cache": len(cache.utterances),
            "kept": len(data),
            "dropped": dict(data.dropped),
            "missing": data.missing,
        },
        "ratings": {"in the cache": len(cache.ratings), "ignored": dict(data.ignored)},
        "folds": {
            "protocol": request.protocol,
            "shared_speakers": max(fold.shared_speakers for fold in folds),
            "sizes": {str(f.number): {"train": len(f.train), "dev": len(f.dev), "test": len(f.test)} for f in folds},
        },
        "versions": {name: importlib.metadata.version(name) for name in ("amber2", "numpy", "torch")},
        "digest": _digest(data),
        "systems": list(dict.fromkeys(setting.name for setting in request.settings)),
        "axes": options.grid.columns,
        "metrics": list(METRICS),
        "grid": {axis: list(values) for axis, values in options.grid.axes.items()},
        **options.named(request.device),
        "device": request.device,
    }


def _digest(data: TrainingData) -> str:
    """sha256 over what the numbers rest on: every kept utterance's id, what its features were made of, its target."""
    digest = hashlib.sha256()
    for name, row, target in zip(data.id, data.rows, data.targets, strict=True):
        inputs = [some.inputs[row] for some in data.inputs.values()]
        digest.update("\0".join([name, *inputs]).encode() + target.tobytes())
    return digest.hexdigest()


def utterance_rows(request: Request) -> list[dict[str, Any]]:
    """One row per test utterance, in the order of predictions.npz: who spoke, and what people group by."""
    data = request.material.data
    return [
        {"id": data.id[k], "fold": fold.number, **{name: column[k] for name, column in data.columns.items()}}
        for fold in request.folds
        for k in fold.test
    ]


def say_what_is_kept(request: Request) -> None:
    """Log what was read, kept and divided."""
    material, data, folds = request.material, request.material.data, request.folds
    sets = ", ".join(f"{modality} {some.name}" for modality, some in data.inputs.items())
    _log.info("%s: corpus %s, %s", material.path, material.cache.corpus, sets)
    dropped = ", ".join(f"{count} {reason}" for reason, count in data.dropped.items() if count) or "none"
    _log.info(
        "%d of %d utterances kept (dropped: %s), stimulus %s, emotions %s",
        len(data), len(material.cache.utterances), dropped, material.policy.stimulus, " ".join(data.emotions),
    )  # fmt: skip
    if data.missing:
        lacking = ", ".join(f"{count} without {modality}" for modality, count in data.missing.items())
        _log.info("of these, trained and scored with what they have: %s", lacking)
    ignored = ", ".join(f"{count} {reason}" for reason, count in data.ignored.items() if count)
    if ignored:
        _log.info("%d ratings, ignored: %s", len(material.cache.ratings), ignored)
    sizes = ", ".join(f"{len(f.train)}/{len(f.dev)}/{len(f.test)}" for f in folds)
    _log.info("%d folds by %s, train/dev/test: %s", len(folds), request.protocol, sizes)
    shared = max(fold.shared_speakers for fold in folds)
    if shared:
        _log.warning("up to %d speakers stand in more than one part of a fold", shared)
    for fold in folds:
        for modality, having in data.present.items():
            parts = {"train": fold.train, "dev": fold.dev, "test": fold.test}
            if empty := [part for part, rows in parts.items() if not having[rows].any()]:
                so = ", so it is left out of this fold" if "train" in empty else ""
                _log.warning("fold %d: no utterance of %s has %s%s", fold.number, " and ".join(empty), modality, so)


def say_what_is_chosen(selection: Selection, fold: int, folds: int, seconds: float, varied: Sequence[str]) -> None:
    """Log what dev chose in a fold; `varied` are the settings that have several values on the grid."""
    points = []
    for name, place in selection.chosen(fold).items():
        row = selection.settings[place].row()
        named = "".join(f" {axis} {row[axis]}" for axis in varied if axis in row)
        points.append(f"{name}{named} (dev js {selection.best[fold, name][1]:.4f})")
    _log.info("fold %d of %d after %.1f s; chosen on dev: %s", fold, folds, seconds, ", ".join(points))


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Everything that this package and core log is added to a file, too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    loggers = [logging.getLogger(package) for package in ("amber2_core", __package__)]
    for logger in loggers:
        logger.addHandler(handler)
    began = time.monotonic()
    try:
        yield
        _log.info("done in %.1f s", time.monotonic() - began)
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
