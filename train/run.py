"""One call of stage 2: a cache and what the user asked for go in, a complete run folder comes out."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch

from amber2_core.cache import FeatureCache, read_cache
from amber2_core.errors import SettingError, bad_choice
from amber2_core.heads_folder import write_heads
from amber2_core.label_spaces import policy_with
from amber2_core.run_folder import (
    Summary,
    new_run_folder,
    summarise,
    write_json,
    write_predictions,
    write_results,
)
from amber2_core.votes import LabelPolicy

from .folds import Fold, make_folds
from .grid import Setting, Value, expand
from .rows import Inputs
from .sweep import SweepResult, sweep
from .targets import TrainingData, feature_keys, training_data

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What `train-heads` is asked for."""

    # fields of LabelPolicy that replace the corpus's defaults
    policy: Mapping[str, Any] = field(default_factory=dict)
    # None: the corpus's own default
    folds: str | None = None
    systems: Sequence[str] = ("amber2", "cb-ce")
    # setting → values; what is absent stands at its default
    axes: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    seeds: int = 5
    epochs: int = 30
    inputs: Inputs = "raw"
    # modality → name of the feature set, None where the cache has one
    modalities: Mapping[str, str | None] = field(default_factory=lambda: {"audio": None, "text": None})
    device: str = "auto"
    # for the record: the words that were typed
    command: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """What a command shows of a finished run."""

    folder: Path
    table: Summary
    # system → fold → setting, of the settings with several values on the grid
    selected: Mapping[str, Mapping[str, Mapping[str, Any]]]


def train(
    cache_path: Path,
    output: Path,
    request: Request,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Train a sweep from a cache and write its run folder.

    Raises:
        Amber2Error: anything that the user asked for cannot be had; no run folder is left then.
    """
    settings = expand(request.systems, request.axes)
    device = _device(request)
    keys = feature_keys(cache_path, request.modalities)
    _check_students(settings, [modality for modality, _ in keys])
    with new_run_folder(output) as folder, _logged(folder / "log.txt"):
        cache = read_cache(cache_path, only=keys)
        policy = policy_with(cache.defaults, request.policy)
        data = training_data(cache, policy)
        protocol = request.folds or cache.defaults.folds
        folds = make_folds(protocol, data)
        _say_what_is_kept(cache_path, cache, policy, data, protocol, folds)
        result = sweep(
            data,
            folds,
            settings,
            seeds=request.seeds,
            epochs=request.epochs,
            inputs=request.inputs,
            device=device,
            on_progress=on_progress,
        )
        record = _record(cache_path, cache, policy, data, protocol, folds, request, device)
        return replace(_write(folder, record, result, _varied(request, settings)), folder=output)


def _write(folder: Path, record: Mapping[str, Any], result: SweepResult, varied: Sequence[str]) -> Report:
    table = summarise(result.rows)
    selected: dict[str, dict[str, dict[str, Any]]] = {}
    for (system, fold), setting in result.selected.items():
        row = setting.row()
        selected.setdefault(system, {})[str(fold)] = {name: row[name] for name in varied if row[name] is not None}
    write_json(folder / "settings.json", record)
    write_results(folder / "results.csv", result.rows)
    write_predictions(folder / "predictions.npz", result.predictions)
    write_json(folder / "summary.json", {"table": table, "selected": selected})
    (folder / "heads").mkdir()
    for (system, fold, seed), heads in result.heads.items():
        write_heads(folder / "heads" / f"{system}-fold{fold}-seed{seed}.safetensors", heads)
    return Report(folder, table, selected)


def _record(
    cache_path: Path,
    cache: FeatureCache,
    policy: LabelPolicy,
    data: TrainingData,
    protocol: str,
    folds: Sequence[Fold],
    request: Request,
    device: str,
) -> dict[str, Any]:
    """settings.json."""
    return {
        "command": list(request.command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "corpus": cache.corpus,
        "corpus_version": cache.corpus_version,
        "cache": str(cache_path),
        "features": {
            f.modality: {"name": f.name, "fingerprint": f.fingerprint, "recipe": f.recipe} for f in cache.features
        },
        "policy": json.loads(json.dumps(asdict(policy))),
        "emotions": list(data.emotions),
        "utterances": {"in the cache": len(cache.utterances), "kept": len(data), "dropped": dict(data.dropped)},
        "ratings": {"in the cache": len(cache.ratings), "ignored": dict(data.ignored)},
        "folds": {
            "protocol": protocol,
            "shared_speakers": max(fold.shared_speakers for fold in folds),
            "sizes": {str(f.number): {"train": len(f.train), "dev": len(f.dev), "test": len(f.test)} for f in folds},
        },
        "systems": list(request.systems),
        "grid": {axis: list(values) for axis, values in request.axes.items()},
        "seeds": request.seeds,
        "epochs": request.epochs,
        "inputs": request.inputs,
        "device": device,
        "versions": {name: importlib.metadata.version(name) for name in ("amber2", "numpy", "torch")},
    }


def _say_what_is_kept(
    path: Path, cache: FeatureCache, policy: LabelPolicy, data: TrainingData, protocol: str, folds: Sequence[Fold]
) -> None:
    sets = ", ".join(f"{modality} {name}" for modality, (name, _) in data.feature_sets.items())
    _log.info("%s: corpus %s, %s", path, cache.corpus, sets)
    dropped = ", ".join(f"{count} {reason}" for reason, count in data.dropped.items() if count) or "none"
    _log.info(
        "%d of %d utterances kept (dropped: %s), stimulus %s, emotions %s",
        len(data), len(cache.utterances), dropped, policy.stimulus, " ".join(data.emotions),
    )  # fmt: skip
    ignored = ", ".join(f"{count} {reason}" for reason, count in data.ignored.items() if count)
    if ignored:
        _log.info("%d ratings, ignored: %s", len(cache.ratings), ignored)
    sizes = ", ".join(f"{len(f.train)}/{len(f.dev)}/{len(f.test)}" for f in folds)
    _log.info("%d folds by %s, train/dev/test: %s", len(folds), protocol, sizes)
    shared = max(fold.shared_speakers for fold in folds)
    if shared:
        _log.warning("up to %d speakers stand in more than one part of a fold", shared)


def _check_students(settings: Sequence[Setting], modalities: Sequence[str]) -> None:
    heads = [*modalities, "fusion"]
    for setting in settings:
        if setting.student not in heads:
            raise SettingError(bad_choice("student", setting.student, heads))


def _device(request: Request) -> str:
    for name, value in (("seeds", request.seeds), ("epochs", request.epochs)):
        if value < 1:
            raise SettingError(f"Bad {name} {value}, expected a number of at least 1")
    if request.inputs not in get_args(Inputs):
        raise SettingError(bad_choice("inputs", request.inputs, get_args(Inputs)))
    if request.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if request.device.split(":")[0] not in ("cpu", "cuda"):
        raise SettingError(bad_choice("device", request.device, ("auto", "cpu", "cuda", "cuda:0")))
    if request.device != "cpu" and not torch.cuda.is_available():
        raise SettingError(f"Bad device {request.device!r}: torch finds no CUDA device here; use --device cpu")
    return request.device


def _varied(request: Request, settings: Sequence[Setting]) -> list[str]:
    return [name for name in settings[0].row() if len(request.axes.get(name, ())) > 1]


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Everything that this package and core log goes to the run folder too."""
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
