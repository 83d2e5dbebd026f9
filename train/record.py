"""What a run folder tells of how it came about: settings.json, log.txt, and what a sweep's results depend on."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.cache import FeatureCache
from amber2_core.votes import LabelPolicy

from . import jobs
from .folds import Fold
from .grid import AXES, Setting
from .targets import TrainingData

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Material:
    """What a sweep trains on."""

    cache_path: Path
    # without the values of the features, which `data` holds as they are trained on
    cache: FeatureCache
    policy: LabelPolicy
    data: TrainingData
    protocol: str
    folds: tuple[Fold, ...]


def settings_record(material: Material) -> dict[str, Any]:
    """The part of settings.json that tells of the data."""
    cache, data, folds = material.cache, material.data, material.folds
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "corpus": cache.corpus,
        "corpus_version": cache.corpus_version,
        "cache": str(material.cache_path),
        "features": {
            f.modality: {"name": f.name, "fingerprint": f.fingerprint, "recipe": f.recipe} for f in cache.features
        },
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
            "protocol": material.protocol,
            "shared_speakers": max(fold.shared_speakers for fold in folds),
            "sizes": {str(f.number): {"train": len(f.train), "dev": len(f.dev), "test": len(f.test)} for f in folds},
        },
        "versions": {name: importlib.metadata.version(name) for name in ("amber2", "numpy", "torch")},
    }


def identity(material: Material, settings: Sequence[Setting], options: dict[str, Any]) -> dict[str, Any]:
    """All that a sweep's results depend on, by the names that the user knows, as JSON values."""
    rows = [setting.row() for setting in settings]
    grid = {
        axis.replace("_", "-"): list(dict.fromkeys(row[axis] for row in rows if row[axis] is not None)) for axis in AXES
    }
    whole: dict[str, Any] = {
        "system": list(dict.fromkeys(setting.name for setting in settings)),
        **grid,
        "settings in all": _checksum(repr(settings).encode()),
        **options,
        "folds": material.protocol,
        "policy": asdict(material.policy),
        "features": {f.modality: [f.name, f.fingerprint] for f in material.cache.features},
        "cache's contents": _contents(material),
        # how finished stacks are numbered
        "settings in a stack": jobs.STACKED_SETTINGS[options["device"]],
        "version of torch": importlib.metadata.version("torch"),
    }
    read_back: dict[str, Any] = json.loads(json.dumps(whole))
    return read_back


def say_what_is_kept(material: Material) -> None:
    """Log what was read, kept and divided."""
    data, cache, folds = material.data, material.cache, material.folds
    sets = ", ".join(f"{modality} {name}" for modality, (name, _) in data.feature_sets.items())
    _log.info("%s: corpus %s, %s", material.cache_path, cache.corpus, sets)
    dropped = ", ".join(f"{count} {reason}" for reason, count in data.dropped.items() if count) or "none"
    _log.info(
        "%d of %d utterances kept (dropped: %s), stimulus %s, emotions %s",
        len(data), len(cache.utterances), dropped, material.policy.stimulus, " ".join(data.emotions),
    )  # fmt: skip
    if data.missing:
        lacking = ", ".join(f"{count} without {modality}" for modality, count in data.missing.items())
        _log.info("of these, trained and scored with what they have: %s", lacking)
    ignored = ", ".join(f"{count} {reason}" for reason, count in data.ignored.items() if count)
    if ignored:
        _log.info("%d ratings, ignored: %s", len(cache.ratings), ignored)
    sizes = ", ".join(f"{len(f.train)}/{len(f.dev)}/{len(f.test)}" for f in folds)
    _log.info("%d folds by %s, train/dev/test: %s", len(folds), material.protocol, sizes)
    shared = max(fold.shared_speakers for fold in folds)
    if shared:
        _log.warning("up to %d speakers stand in more than one part of a fold", shared)
    for fold in folds:
        for modality, having in data.present.items():
            parts = {"train": fold.train, "dev": fold.dev, "test": fold.test}
            if empty := [part for part, rows in parts.items() if not having[rows].any()]:
                so = ", so it is left out of this fold" if "train" in empty else ""
                _log.warning("fold %d: no utterance of %s has %s%s", fold.number, " and ".join(empty), modality, so)


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


def _contents(material: Material) -> str:
    """A checksum of ids, folds, targets and features."""
    data = material.data
    checksum = _checksum("\0".join(data.id).encode())
    arrays: list[npt.NDArray[Any]] = [data.targets, *data.features.values()]
    arrays += [part for fold in material.folds for part in (fold.train, fold.dev, fold.test)]
    for array in arrays:
        checksum += _checksum(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return _checksum(checksum.encode())


def _checksum(content: bytes | memoryview) -> str:
    return f"{zlib.crc32(content):08x}"
