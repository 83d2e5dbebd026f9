"""One call of stage 2: a cache and what the user asked for go in, a complete run folder comes out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amber2_core.cache import read_cache
from amber2_core.errors import RunFolderError
from amber2_core.label_spaces import policy_with
from amber2_core.run_folder import (
    new_run_folder,
    write_curves,
    write_experts,
    write_json,
    write_predictions,
    write_results,
)
from amber2_core.summary import Summary, summarise

from .experts import expert_rows
from .folds import make_folds
from .grid import Setting
from .jobs import stacks
from .parts import Parts
from .plan import Plan, plan_sweep
from .record import Material, identity, logged, say_what_is_kept, settings_record
from .request import Request, checked, options_of
from .select import check_deciders, warn_of_deciders
from .sweep import SweepResult, sweep
from .targets import feature_keys, training_data
from .unfinished import earlier_output, new_output, unfinished_sweep


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
    request: Request,
    *,
    name: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Train a sweep from a cache and write its run folder.

    Args:
        output: the run folder; None: the one that an interrupted call of the same sweep was to write, else a new one
            in ./runs, called for the time and `name` (the cache's own where that is None).

    Raises:
        Amber2Error: anything that the user asked for cannot be had; no run folder is left then.
    """
    settings, device = checked(request)
    if output is not None and output.exists():  # before anything is read
        raise RunFolderError(f"{output} exists already: name another folder with --output, or remove that one")
    material = _material(cache_path, request, settings)
    options = options_of(request, device)
    this = identity(material, settings, options)
    if output is None:
        name = name or cache_path.stem
        output = earlier_output(Path("runs"), name, this) or new_output(Path("runs"), name)
    in_all = len(material.folds) * len(list(stacks(settings, device)))
    with unfinished_sweep(output, this, stacks=in_all) as unfinished:
        with logged(unfinished.log):
            say_what_is_kept(material)
            warn_of_deciders(material.data, settings)
            result = _swept(material, settings, request, device, unfinished.parts, on_progress)
        record = {
            "command": list(request.command),
            **settings_record(material),
            "systems": list(dict.fromkeys(setting.name for setting in settings)),
            "grid": {axis: list(values) for axis, values in request.grid.axes.items()},
            **options,
            "device": device,
        }
        with new_run_folder(output) as folder:
            shutil.copyfile(unfinished.log, folder / "log.txt")
            report = _write(folder, record, result, request.grid.varied)
    return replace(report, folder=output)


def plan(cache_path: Path, request: Request) -> Plan:
    """What `train` would do, and about how long it would take, found out by training a few steps.

    Raises:
        Amber2Error: as `train`.
    """
    settings, device = checked(request)
    material = _material(cache_path, request, settings)
    return plan_sweep(
        material.data,
        material.folds,
        settings,
        seeds=request.grid.seeds,
        epochs=request.grid.epochs,
        precision=request.precision,
        device=device,
    )


def _material(cache_path: Path, request: Request, settings: Sequence[Setting]) -> Material:
    """Read the cache and divide it."""
    cache = read_cache(cache_path, only=feature_keys(cache_path, request.modalities))
    policy = policy_with(cache.defaults, request.policy)
    data = training_data(cache, policy, missing=request.missing)
    protocol = request.folds or cache.defaults.folds
    folds = make_folds(protocol, data)
    check_deciders(data, folds, settings)
    light = replace(cache, features=tuple(replace(f, values=f.values[:0].copy(), frames=None) for f in cache.features))
    return Material(cache_path, light, policy, data, protocol, folds)


def _swept(
    material: Material,
    settings: Sequence[Setting],
    request: Request,
    device: str,
    parts: Parts,
    on_progress: Callable[[int, int], None],
) -> SweepResult:
    return sweep(
        material.data,
        material.folds,
        settings,
        seeds=request.grid.seeds,
        epochs=request.grid.epochs,
        patience=request.patience,
        inputs=request.inputs,
        precision=request.precision,
        score_all=request.score_all,
        device=device,
        parts=parts,
        on_progress=on_progress,
    )


def _write(folder: Path, record: Mapping[str, Any], result: SweepResult, varied: Sequence[str]) -> Report:
    table = summarise(result.rows)
    selected: dict[str, dict[str, dict[str, Any]]] = {}
    for (system, fold), setting in result.selected.items():
        row = setting.row()
        selected.setdefault(system, {})[str(fold)] = {name: row[name] for name in varied if row[name] is not None}
    experts = expert_rows(result.predictions, result.selected)
    write_json(folder / "settings.json", record)
    write_results(folder / "results.csv", result.rows)
    write_curves(folder / "curves.csv", result.curves)
    write_experts(folder / "experts.csv", experts)
    write_predictions(folder / "predictions.npz", result.predictions)
    write_json(folder / "summary.json", {"table": table, "selected": selected})
    (folder / "heads").mkdir()
    for (system, fold, seed), heads in result.heads.items():
        whole = replace(heads, origin={**heads.origin, **{name: record[name] for name in ("policy", "features")}})
        whole.write(folder / "heads" / f"{system}-fold{fold}-seed{seed}.safetensors")
    return Report(folder, table, selected, _mean_weights(experts))


def _mean_weights(experts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """system → expert → mean over folds and seeds of its weight over all utterances."""
    weights: dict[str, dict[str, list[float]]] = {}
    for row in experts:
        for column, value in row.items():
            if row["by"] == "all" and column.startswith("weight_") and value is not None:
                expert = column.removeprefix("weight_")
                weights.setdefault(row["system"], {}).setdefault(expert, []).append(value)
    return {s: {expert: sum(some) / len(some) for expert, some in own.items()} for s, own in weights.items()}
