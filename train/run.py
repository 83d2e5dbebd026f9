"""One call of stage 2: from a cache and what the user asked for to a complete run folder."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amber2_core import engine
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

from . import worker
from .options import TrainOptions
from .plan import Plan, plan_sweep
from .record import logged, say_what_is_chosen, say_what_is_kept, settings_record, utterance_rows
from .request import Request, identity, prepared
from .results import Results, results_of
from .selection import Selection, warn_of_deciders
from .tasks import FinishedTasks, Run
from .unfinished import LOG, check_free, earlier_output, new_output, unfinished_sweep

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
    request = prepared(cache_path, options)
    this = identity(request)
    if output is None:
        name = name or cache_path.stem
        output = earlier_output(Path("runs"), name, this) or new_output(Path("runs"), name)
    with unfinished_sweep(output, this, tasks=len(request.tasks)) as finished:
        with logged(finished.folder / LOG):
            say_what_is_kept(request)
            warn_of_deciders(request.material.data, request.settings)
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
    request = prepared(cache_path, options)
    return plan_sweep(request.sweep(Path()), request.tasks, request.workers)


def _trained(request: Request, finished: FinishedTasks, on_progress: OnProgress) -> Selection:
    """Train what is not there yet, and choose as it comes in."""
    seeds, settings = request.options.grid.seeds, request.settings
    selection = Selection(settings, seeds, finished)
    total, done, began = len(settings) * seeds * len(request.folds), 0, time.monotonic()
    told = set[int]()

    def take(runs: Sequence[Run]) -> None:
        nonlocal done
        for run in runs:
            selection.add(run)
        done += len(runs)
        on_progress(done, total)
        for fold in request.folds:
            if fold.number not in told and selection.is_complete(fold.number):
                told.add(fold.number)
                seconds, varied = time.monotonic() - began, request.options.grid.varied
                say_what_is_chosen(selection, fold.number, len(request.folds), seconds, varied)

    missing = []
    for task in request.tasks:
        runs = finished.read(task)
        if runs is None:
            missing.append(task)
        else:
            take(runs)
    if missing:
        workers = request.workers[: len(missing)]
        sweep = request.sweep(finished.folder)
        with closing(
            engine.deal(worker.train, missing, setup=worker.Worker, workers=workers, shared=sweep, queued=1)
        ) as results:
            for _, runs in results:
                take(runs)
    return selection


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
    write_json(folder / "settings.json", settings_record(request))
    write_results(folder / "results.csv", results.rows)
    if results.curves:  # a system that trains by no epochs has none
        write_curves(folder / "curves.csv", results.curves)
    write_experts(folder / "experts.csv", results.experts)
    write_predictions(folder / "predictions.npz", results.predictions)
    write_utterances(folder / "utterances.csv", utterance_rows(request))
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


def _mean_weights(experts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """system → expert → mean over folds and seeds of its weight over all utterances."""
    weights: dict[str, dict[str, list[float]]] = {}
    for row in experts:
        for column, value in row.items():
            if row["by"] == "all" and column.startswith("weight_") and value is not None:
                expert = column.removeprefix("weight_")
                weights.setdefault(row["system"], {}).setdefault(expert, []).append(value)
    return {s: {expert: sum(some) / len(some) for expert, some in own.items()} for s, own in weights.items()}
