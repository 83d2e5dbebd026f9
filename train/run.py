"""One call of stage 2: from a cache and what the user asked for to a complete run folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from amber2_core import engine
from amber2_core.devices import choose_device_name
from amber2_core.errors import SettingError
from amber2_core.run_folder import (
    Summary,
    new_run_folder,
    summarise,
    write_curves,
    write_experts,
    write_json,
    write_predictions,
    write_results,
    write_utterances,
)
from amber2_core.metrics import METRICS

from . import tasks as tasks_module
from .folds import Fold, make_folds
from .grid import Setting
from .options import TrainOptions
from .plan import Plan, plan_sweep
from .results import Results, results_of
from .selection import Selection, check_deciders, warn_of_deciders
from .tasks import FinishedTasks, Task, tasks_of
from .training_data import Material, TrainingData, read_material
from .unfinished import LOG, check_free, earlier_output, new_output, unfinished_sweep
from .worker import Sweep, Worker, train as train_task

_log = logging.getLogger(__name__)
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Report:
    """What a command shows of a finished run."""

    folder: Path
    table: Summary
    # system → fold → setting, of the settings with several values on the grid
    selected: Mapping[str, Mapping[str, Mapping[str, Any]]]
    # system → expert → weight, mean over folds and seeds
    weights: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class Request:
    """A sweep that is ready to be trained: checked, with its data read and divided."""

    options: TrainOptions
    settings: tuple[Setting, ...]
    device: str
    material: Material
    protocol: str
    folds: tuple[Fold, ...]

    @property
    def tasks(self) -> list[Task]:
        folds = [fold.number for fold in self.folds]
        return tasks_of(self.settings, self.options.grid.seeds, folds, self.device)

    def sweep(self, folder: Path) -> Sweep:
        """What workers are told; they keep finished tasks in `folder`."""
        material = self.material
        origin = {
            "emotions": list(material.data.emotions),
            "policy": json.loads(json.dumps(asdict(material.policy))),
            "features": {m: _feature_set(some) for m, some in material.data.inputs.items()},
        }
        settings = tuple((setting.reference, setting.row()) for setting in self.settings)
        names = tuple(setting.name for setting in self.settings)
        folds = {fold.number: fold for fold in self.folds}
        return Sweep(material.data, folds, settings, names, self.options, self.device, origin, folder)


def train(
    cache_path: Path,
    output: Path | None,
    options: TrainOptions,
    *,
    name: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Report:
    """Train a sweep from a cache and write its run folder.

    Args:
        output: the run folder; None: the one that an interrupted call of the same sweep was to write, else a new one
            in ./runs, called for the time and `name` (the cache's own where that is None).

    Raises:
        Amber2Error: anything that the user asked for cannot be had; no run folder is left then.
    """
    if output is not None:
        check_free(output)  # before anything is read
    request = _request(cache_path, options)
    this = identity(request)
    if output is None:
        name = name or cache_path.stem
        output = earlier_output(Path("runs"), name, this) or new_output(Path("runs"), name)
    with unfinished_sweep(output, this, tasks=len(request.tasks)) as finished:
        with _logged(finished.folder / LOG):
            _say_what_is_kept(request)
            warn_of_deciders(request.material.data, request.settings)
            _warn_of_precision(request)
            selection = _trained(request, finished, on_progress)
        results = results_of(selection, request.material.data, request.folds, options.grid.columns)
        with new_run_folder(output) as folder:
            report = _write(folder, request, selection, results)
            shutil.copyfile(finished.folder / LOG, folder / LOG)
    return Report(output, report.table, report.selected, report.weights)


def plan(cache_path: Path, options: TrainOptions) -> Plan:
    """What `train` would do, and about how long it would take, found out by training a few steps.

    Raises:
        Amber2Error: as `train`.
    """
    request = _request(cache_path, options)
    _warn_of_precision(request)
    return plan_sweep(request.sweep(Path()), request.tasks, _workers(request))


def _request(cache_path: Path, options: TrainOptions) -> Request:
    engine.prepare("amber2_train.worker", "amber2_train.fold_data", "amber2_train.stacked.loop")
    settings = options.settings()
    material = read_material(cache_path, options.modalities, options.policy, missing=options.missing)
    protocol = options.folds or material.cache.defaults.folds
    folds = make_folds(protocol, material.data)
    check_deciders(material.data, folds, settings)
    for setting in settings:
        for modality, inputs in material.data.inputs.items():
            inputs.check_need(setting.system.reads(setting.values, modality), setting.name, modality)
    device = engine.call(choose_device_name, options.device, ("cpu", "cuda"))
    if options.precision == "tf32" and device == "cpu":
        raise SettingError("Bad precision 'tf32' on a CPU: only GPUs have it; use --precision fp32 or --device cuda")
    return Request(options, settings, device, material, protocol, folds)


def _trained(request: Request, finished: FinishedTasks, on_progress: OnProgress) -> Selection:
    """Train what is not there yet, and choose as it comes in."""
    seeds, settings = request.options.grid.seeds, request.settings
    selection = Selection(settings, seeds, finished)
    total, done, began = len(settings) * seeds * len(request.folds), 0, time.monotonic()
    told = set[int]()

    def take(runs: Sequence[Any]) -> None:
        nonlocal done
        for run in runs:
            selection.add(run)
        done += len(runs)
        on_progress(done, total)
        for fold in request.folds:
            if fold.number not in told and selection.is_complete(fold.number):
                told.add(fold.number)
                _say_what_is_chosen(selection, fold.number, len(request.folds), time.monotonic() - began)

    missing = []
    for task in request.tasks:
        runs = finished.read(task)
        if runs is None:
            missing.append(task)
        else:
            take(runs)
    if missing:
        workers = _workers(request)[: len(missing)]
        sweep = request.sweep(finished.folder)
        with closing(
            engine.deal(train_task, missing, setup=Worker, workers=workers, shared=sweep, queued=1)
        ) as results:
            for _, runs in results:
                take(runs)
    return selection


def _workers(request: Request) -> list[int]:
    """The threads of each worker: one worker for each core, as far as there are tasks; one for a GPU.

    How many tasks were finished earlier plays no part: the threads of a task are in its last digits.
    """
    cores = int(os.environ.get("OMP_NUM_THREADS") or 0) or len(os.sched_getaffinity(0))
    if request.device != "cpu":
        return [cores]
    count = min(cores, len(request.tasks))
    return [max(1, cores // count)] * count


def identity(request: Request) -> dict[str, Any]:
    """All that a sweep's results depend on, by the names that the user knows, as JSON values."""
    settings, options, data = request.settings, request.options, request.material.data
    rows = [setting.row() for setting in settings]
    columns = options.grid.columns
    grid = {axis.replace("_", "-"): list(dict.fromkeys(r[axis] for r in rows if axis in r)) for axis in columns}
    whole: dict[str, Any] = {
        "system": list(dict.fromkeys(setting.name for setting in settings)),
        **grid,
        "settings in all": _checksum(repr([(setting.name, setting.row()) for setting in settings]).encode()),
        **options.named(request.device),
        "folds": request.protocol,
        "policy": asdict(request.material.policy),
        "features": {m: [some.name, some.fingerprint] for m, some in data.inputs.items()},
        "cache's contents": _contents(data, request.folds),
        # how finished tasks are numbered
        "runs in a task": tasks_module.RUNS[request.device.partition(":")[0]],
        "version of torch": importlib.metadata.version("torch"),
    }
    read_back: dict[str, Any] = json.loads(json.dumps(whole))
    return read_back


def _contents(data: TrainingData, folds: Sequence[Fold]) -> str:
    """A checksum of ids, folds, targets and features."""
    checksum = _checksum("\0".join(data.id).encode()) + data.checksum
    for array in [data.targets, *(part for fold in folds for part in (fold.train, fold.dev, fold.test))]:
        checksum += _checksum(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return _checksum(checksum.encode())


def _checksum(content: bytes | memoryview) -> str:
    return f"{zlib.crc32(content):08x}"


def _write(folder: Path, request: Request, selection: Selection, results: Results) -> Report:
    """Write all of a run folder but its log."""
    grid, settings = request.options.grid, request.settings
    table = summarise(results.rows)
    selected = {
        system: {
            str(fold): {name: row[name] for name in grid.varied if name in (row := settings[place].row())}
            for fold, place in folds.items()
        }
        for system, folds in results.selected.items()
    }
    write_json(folder / "settings.json", _settings_record(request))
    write_results(folder / "results.csv", results.rows)
    write_curves(folder / "curves.csv", results.curves)
    write_experts(folder / "experts.csv", results.experts)
    write_predictions(folder / "predictions.npz", results.predictions)
    write_utterances(folder / "utterances.csv", _utterance_rows(request))
    write_json(folder / "summary.json", {"table": table, "selected": selected})
    (folder / "heads").mkdir()
    for system, folds in results.selected.items():
        for fold, place in folds.items():
            for run in selection.of(fold, place):
                path = folder / "heads" / f"{system}-fold{fold}-seed{run.seed}.safetensors"
                _link(selection.finished.weights(run), path)
    return Report(folder, table, selected, _mean_weights(results.experts))


def _link(source: Path, path: Path) -> None:
    """The same file under a second name, or a copy where the file system has no such thing."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def _settings_record(request: Request) -> dict[str, Any]:
    """settings.json (see `amber2_core.run_folder`)."""
    material, data, folds, options = request.material, request.material.data, request.folds, request.options
    cache = material.cache
    return {
        "command": list(options.command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "corpus": cache.corpus,
        "corpus_version": cache.corpus_version,
        "cache": str(material.path),
        "features": {m: _feature_set(some) for m, some in data.inputs.items()},
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


def _feature_set(some: Any) -> dict[str, Any]:
    return {"name": some.name, "fingerprint": some.fingerprint, "recipe": some.recipe}


def _digest(data: TrainingData) -> str:
    """sha256 over what the numbers rest on: every kept utterance's id, what its features were made of, its target."""
    digest = hashlib.sha256()
    for k, name in enumerate(data.id):
        inputs = [some.digests[data.rows[k]] for some in data.inputs.values() if len(some.digests)]
        digest.update("\0".join([name, *inputs]).encode() + data.targets[k].tobytes())
    return digest.hexdigest()


def _utterance_rows(request: Request) -> list[dict[str, Any]]:
    """One row per test utterance, in the order of predictions.npz: who spoke, and what people group by."""
    data = request.material.data
    return [
        {"id": data.id[k], "fold": fold.number, **{name: column[k] for name, column in data.columns.items()}}
        for fold in request.folds
        for k in fold.test
    ]


def _mean_weights(experts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """system → expert → mean over folds and seeds of its weight over all utterances."""
    weights: dict[str, dict[str, list[float]]] = {}
    for row in experts:
        for column, value in row.items():
            if row["by"] == "all" and column.startswith("weight_") and value is not None:
                expert = column.removeprefix("weight_")
                weights.setdefault(row["system"], {}).setdefault(expert, []).append(value)
    return {s: {expert: sum(some) / len(some) for expert, some in own.items()} for s, own in weights.items()}


def _say_what_is_kept(request: Request) -> None:
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


def _say_what_is_chosen(selection: Selection, fold: int, folds: int, seconds: float) -> None:
    points = []
    for name, place in selection.chosen(fold).items():
        row = selection.settings[place].row()
        named = "".join(f" {axis} {row[axis]}" for axis in ("lambda_mai", "kappa") if axis in row)
        points.append(f"{name}{named} (dev js {selection.best[fold, name][1]:.4f})")
    _log.info("fold %d of %d after %.1f s; chosen on dev: %s", fold, folds, seconds, ", ".join(points))


def _warn_of_precision(request: Request) -> None:
    """Log where a precision saves no time."""
    if request.options.precision == "bf16" and request.device == "cpu" and not engine.call(multiplies_bfloat16):
        _log.warning(
            "this processor does not multiply bfloat16: --precision bf16 rounds like one that does, but is not faster "
            "than fp32"
        )


@contextmanager
def _logged(path: Path) -> Iterator[None]:
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
