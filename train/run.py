"""One call of stage 2: a sweep trained and chosen from, and its run folder written."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from amber2_core import engine
from amber2_core.distributions import Agreement, agreed
from amber2_core.errors import RunFolderError, SettingError
from amber2_core.ray_engine import Cluster
from amber2_core.run_folder import (
    AGAINST_SYNTHETIC,
    new_run_folder,
    summarise,
    write_curves,
    write_experts,
    write_json,
    write_predictions,
    write_results,
    write_utterances,
)
from amber2_core.shards import Shard

from . import worker
from .grid import Setting, axes_of, kinds_of
from .options import TrainOptions
from .plan import Plan, plan_sweep
from .request import Request, identity, prepared, settings_record, utterance_rows
from .results import Report, Results, results_of
from .selection import Selection, warn_of_deciders
from .tasks import FinishedTasks, Run, Task, link
from .unfinished import (
    LOG,
    Identity,
    check_free,
    check_shards,
    difference,
    earlier_output,
    new_output,
    unfinished_sweep,
)

OnProgress = Callable[[int, int], None]
_log = logging.getLogger(__name__)


def train(
    cache_path: Path,
    output: Path | None,
    options: TrainOptions,
    *,
    name: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
    machines: Cluster | None = None,
) -> Report:
    """Train a sweep from a cache and write its run folder.

    Args:
        output: the run folder; None: the one that an interrupted call of the same sweep was to write, else a new one
            in ./runs, called for the time and `name` (the cache's own where that is None).
        machines: a Ray cluster whose workers train; None: those of this machine do.

    Raises:
        Amber2Error: anything that the user asked for cannot be had; no run folder is left then.
    """
    # before anything is read
    if output is not None:
        check_free(output)
    if name is not None and (name in ("", ".", "..") or any(mark in name for mark in "/\\\0")):
        raise SettingError(f"Bad name {name!r}, expected a word for a folder in ./runs; a place is --output's")
    request = prepared(cache_path, options, machines=machines)
    this = identity(request)
    if output is None:
        name = cache_path.stem if name is None else name
        output = earlier_output(Path("runs"), name, this) or new_output(Path("runs"), name)
    return _sweep(request, output, this, on_progress=on_progress)


def train_shard(
    cache_path: Path,
    output: Path,
    options: TrainOptions,
    shard: Shard,
    *,
    on_progress: OnProgress = lambda done, total: None,
    machines: Cluster | None = None,
) -> Path:
    """Train a shard of a sweep's tasks, and keep them beside the run folder that all shards become by `merge`.

    Nothing is chosen yet: what is kept are all tasks, without the files of runs that another of the same shard beats.

    Raises:
        Amber2Error: as `train`.
    """
    check_free(output)
    request = prepared(cache_path, options, machines=machines)
    part = request.part(shard)
    with unfinished_sweep(output, identity(request), tasks=len(part), shard=shard) as finished:
        write_json(finished.folder / "settings.json", settings_record(request))
        with _logged(finished.folder / LOG):
            _say_what_is_kept(request)
            _log.info("%s: %d of %d tasks", shard.words, len(part), len(request.tasks))
            _trained(request, part, finished, on_progress)
    return finished.folder


def merge(shards: Sequence[Path], cache_path: Path, output: Path, options: TrainOptions) -> Report:
    """Choose among what all shards of a sweep trained, and write its run folder; the shards are removed.

    Args:
        shards: folders that `train_shard` gave.
        cache_path: where their cache is now.
        output: the run folder.
        options: with which they were trained.

    Raises:
        SettingError, RunFolderError: as `check_shards`; or what is to be trained now is another sweep than theirs.
    """
    check_free(output)
    this, device = check_shards(shards)
    request = prepared(cache_path, options, trained_on=device)
    if differs := difference(this, identity(request)):
        raise RunFolderError(f"{shards[0]} is of another sweep than its command makes now: {differs}")
    report = _sweep(request, output, this, shards=shards)
    for folder in shards:
        shutil.rmtree(folder, ignore_errors=True)
    _log.info("%d shards are removed: %s holds what they found", len(shards), output)
    return report


def _sweep(
    request: Request,
    output: Path,
    this: Identity,
    *,
    shards: Sequence[Path] = (),
    on_progress: OnProgress = lambda done, total: None,
) -> Report:
    """Train what no shard has and choose, and write the run folder."""
    with unfinished_sweep(output, this, tasks=len(request.tasks)) as finished:
        for folder in shards:
            finished.take_over(FinishedTasks(folder))
        with _logged(finished.folder / LOG):
            _say_what_is_kept(request)
            warn_of_deciders(request.material.data, request.settings)
            selection = _trained(request, request.tasks, finished, on_progress)
            _say_what_lies_at_the_edge(selection, request)
        results = results_of(selection, request.material.data, request.folds, request.options.grid.columns)
        with new_run_folder(output) as folder:
            report = _write(folder, request, selection, results)
            shutil.copyfile(finished.folder / LOG, folder / LOG)
    return replace(report, folder=output)


def plan(cache_path: Path, options: TrainOptions) -> Plan:
    """What `train` would do, and about how long it would take, found out by training a few steps.

    Raises:
        Amber2Error: as `train`.
    """
    request = prepared(cache_path, options)
    return plan_sweep(
        request.sweep(Path()), request.tasks, request.workers, shapes=request.shapes, seeds=options.grid.seeds
    )


def _trained(request: Request, tasks: Sequence[Task], finished: FinishedTasks, on_progress: OnProgress) -> Selection:
    """Train what is not there yet, and choose as it comes in."""
    grid, settings = request.options.grid, request.settings
    seeds, varied = grid.seeds, grid.varied
    selection = Selection(settings, seeds, finished)
    total = sum(len(task.settings) * len(task.seeds) for task in tasks)
    done, began = 0, time.monotonic()

    def take(runs: Sequence[Run]) -> None:
        nonlocal done
        for run in runs:
            selection.add(run)
        done += len(runs)
        on_progress(done, total)
        if selection.is_complete(runs[0].fold):
            took = time.monotonic() - began
            _say_what_is_chosen(selection, varied, runs[0].fold, len(request.folds), took)

    missing = []
    for task in tasks:
        runs = finished.read(task)
        if runs is None:
            missing.append(task)
        else:
            take(runs)
    if missing:
        function: Any = worker.train if request.machines is None else worker.train_afar
        results = engine.deal(
            function,
            missing,
            setup=worker.Worker,
            workers=request.workers[: len(missing)],
            shared=request.sweep(finished.folder),
            queued=1,
            engine=request.machines,
        )
        with closing(results):
            for task, made in results:
                if request.machines is not None:
                    made, files = made
                    finished.take(task, files)
                take(made)
    return selection


def _write(folder: Path, request: Request, selection: Selection, results: Results) -> Report:
    """Write all of a run folder but its log."""
    grid, settings = request.options.grid, request.settings
    kinds = kinds_of(settings)
    table, against = (summarise(results.rows, split=split, kinds=kinds) for split in ("test", AGAINST_SYNTHETIC))
    selected = {
        system: {
            str(fold): {name: row[name] for name in grid.varied if name in (row := settings[place].row())}
            for fold, place in folds.items()
        }
        for system, folds in results.selected.items()
    }
    write_json(folder / "settings.json", settings_record(request))
    write_results(folder / "results.csv", results.rows)
    if results.curves:  # a system that trains by no epochs has none
        write_curves(folder / "curves.csv", results.curves)
    write_experts(folder / "experts.csv", results.experts)
    write_predictions(folder / "predictions.npz", results.predictions)
    write_utterances(folder / "utterances.csv", utterance_rows(request))
    beside = {"against_synthetic": against} if against else {}
    write_json(folder / "summary.json", {"table": table, **beside, "selected": selected})
    (folder / "heads").mkdir()
    for system, folds in results.selected.items():
        for fold, place in folds.items():
            for run in selection.of(fold, place):
                path = folder / "heads" / f"{system}-fold{fold}-seed{run.seed}.safetensors"
                link(selection.finished.weights(run), path)
    return Report(folder, table, selected, _mean_weights(results.experts), against, kinds)


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
    for name, reason in request.left_out.items():
        _log.warning("%s is left out: %s", name, reason)
    _log.info("%s: corpus %s, %s", material.path, material.cache.corpus, sets)
    if unread := request.options.modalities.keys() - data.inputs.keys():
        _log.info("no %s features in the cache: trained without", " or ".join(sorted(unread)))
    reads = request.reads
    if any(words != "the vectors" for words in reads.values()):
        _log.info("read of what is cached: %s", "; ".join(f"{name}, {words}" for name, words in reads.items()))
    for modality in data.constant:
        _log.warning("all %s vectors are the same: nothing can be learnt of them", modality)
    dropped = ", ".join(f"{count} {reason}" for reason, count in data.dropped.items() if count) or "none"
    _log.info(
        "%d of %d utterances kept (dropped: %s), stimulus %s, emotions %s",
        len(data), len(material.cache.utterances), dropped, material.policy.stimulus, " ".join(data.emotions),
    )  # fmt: skip
    if data.missing:
        lacking = ", ".join(f"{count} without {modality}" for modality, count in data.missing.items())
        _log.info("of these, trained and scored with what they have: %s", lacking)
    for side in data.sides.values():
        if without := int((~side.encoded[data.rows]).sum()):
            _log.warning("%s/%s: %d of these have none", side.modality, side.name, without)
    ignored = ", ".join(f"{count} {reason}" for reason, count in data.ignored.items() if count)
    if ignored:
        _log.info("%d ratings, ignored: %s", len(material.cache.ratings), ignored)
    if data.synthetic is not None:
        _log.info(
            "%d utterances have votes of synthetic raters; train learns %s votes, dev and test are people's",
            int((~np.isnan(data.synthetic[:, 0])).sum()), request.options.targets,
        )  # fmt: skip
    sizes = ", ".join(f"{len(f.train)}/{len(f.dev)}/{len(f.test)}" for f in folds)
    _log.info("%d folds by %s, train/dev/test: %s", len(folds), request.protocol, sizes)
    for which, names in _learners(request.settings).items():
        counts = ", ".join(f"{agreed(data.targets[f.train], which).sum()} of {len(f.train)}" for f in folds)
        _log.info("%s: learns from %s train utterances, where raters agree by %s", ", ".join(names), counts, which)
    if request.options.precision == "bf16" and not request.has_bfloat16:
        _log.warning(
            "this processor does not multiply bfloat16: --precision bf16 rounds like one that does, but is not faster "
            "than fp32"
        )
    shared = max(fold.shared_speakers for fold in folds)
    if shared:
        _log.warning("up to %d speakers stand in more than one part of a fold", shared)
    if heard := request.heard_before:
        _log.warning("%d utterances are tested on whose very recording is also in train or dev of their fold", heard)
    for fold in folds:
        for modality, having in data.present.items():
            parts = {"train": fold.train, "dev": fold.dev, "test": fold.test}
            if empty := [part for part, rows in parts.items() if not having[rows].any()]:
                so = ", so it is left out of this fold" if "train" in empty else ""
                _log.warning("fold %d: no utterance of %s has %s%s", fold.number, " and ".join(empty), modality, so)


def _learners(settings: Sequence[Setting]) -> dict[Agreement, list[str]]:
    """The systems that learn from a part of the train utterances, by which part."""
    found: dict[Agreement, dict[str, None]] = {}
    for setting in settings:
        if (which := setting.system.learns_from(setting.values)) != "all":
            found.setdefault(which, {})[setting.name] = None
    return {which: list(names) for which, names in found.items()}


def _say_what_is_chosen(selection: Selection, varied: Sequence[str], fold: int, folds: int, seconds: float) -> None:
    """Log what dev chose among the settings that vary on the grid."""
    points = []
    for name, place in selection.chosen(fold).items():
        row = selection.settings[place].row()
        named = "".join(f" {axis} {row[axis]}" for axis in varied if axis in row)
        decides = selection.settings[place].decides
        points.append(f"{name}{named} (dev {decides} {selection.best[fold, name][1]:.4f})")
    _log.info("fold %d of %d after %.1f s; chosen on dev: %s", fold, folds, seconds, ", ".join(points))


def _say_what_lies_at_the_edge(selection: Selection, request: Request) -> None:
    """Log where dev chose the first or the last value of a grid in every fold, and others lie beyond it."""
    chosen = [selection.chosen(fold.number) for fold in request.folds]
    for name, axis in itertools.product(chosen[0], request.options.grid.varied):
        settings = [selection.settings[places[name]] for places in chosen]
        values = {setting.row().get(axis) for setting in settings}
        own = axes_of([settings[0].reference]).get(axis)
        if own is None or len(values) > 1 or isinstance(own.default, str):
            continue
        (value,), grid = values, request.options.grid.axes[axis]
        for edge, word, beyond in ((min(grid), "smallest", own.metadata["least"]), (max(grid), "largest", math.inf)):
            if value == edge != beyond:
                _log.info("%s: dev chose %s %s in every fold, the %s of the grid: beyond it may be better ones",
                          name, axis, value, word)  # fmt: skip


class _LogFile(logging.FileHandler):
    """A log that ends the work where it cannot be written, as on a full disk; logging itself would print and go on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        problem = sys.exc_info()[1]
        if not isinstance(problem, OSError):
            return super().handleError(record)
        raise RunFolderError(f"Cannot write {self.baseFilename}: {problem.strerror or problem}") from None

    def close(self) -> None:
        with suppress(OSError):  # told already
            super().close()


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Everything that this package and core log is added to a file, too.

    Raises:
        RunFolderError: the file cannot be written.
    """
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
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
