"""One call of stage 2: a cache and what the user asked for go in, a complete run folder comes out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch

from amber2_core.cache import read_cache
from amber2_core.errors import RunFolderError, SettingError, bad_choice
from amber2_core.heads import FUSION_HEAD
from amber2_core.heads_folder import write_heads
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
from .parts import Parts
from .plan import Plan, plan_sweep
from .presets import Grid
from .products import PRECISIONS, Precision
from .record import Material, identity, logged, say_what_is_kept, settings_record
from .rows import Inputs
from .select import check_deciders, warn_of_deciders
from .sweep import SweepResult, stacks, sweep
from .targets import MISSING, Missing, feature_keys, training_data
from .unfinished import earlier_output, new_output, unfinished_sweep


@dataclass(frozen=True)
class Request:
    """What `train-heads` is asked for."""

    grid: Grid = field(default_factory=Grid)
    # fields of LabelPolicy that replace the corpus's defaults
    policy: Mapping[str, Any] = field(default_factory=dict)
    # None: the corpus's own default
    folds: str | None = None
    patience: int | None = None
    inputs: Inputs = "raw"
    # utterances without features of some modality
    missing: Missing = "drop"
    precision: Precision = "fp32"
    score_all: bool = False
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
    settings, device = _checked(request)
    if output is not None and output.exists():  # before anything is read
        raise RunFolderError(f"{output} exists already: name another folder with --output, or remove that one")
    material = _material(cache_path, request, settings)
    options = _options(request, device)
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
    settings, device = _checked(request)
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


def _checked(request: Request) -> tuple[tuple[Setting, ...], str]:
    """The settings to train and the device, all that can be said without the data checked."""
    settings = request.grid.settings()
    counts = {"seeds": request.grid.seeds, "epochs": request.grid.epochs, "patience": request.patience}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise SettingError(f"Bad {name} {value}, expected a number of at least 1")
    for name, word, choices in (
        ("inputs", request.inputs, get_args(Inputs)),
        ("missing", request.missing, MISSING),
        ("precision", request.precision, PRECISIONS),
    ):
        if word not in choices:
            raise SettingError(bad_choice(name, word, choices))
    heads = [*request.modalities, FUSION_HEAD]
    for setting in settings:
        if setting.student not in heads:
            raise SettingError(bad_choice("student", setting.student, heads))
    return settings, _device(request.device)


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise SettingError(bad_choice("device", device, ("auto", "cpu", "cuda", "cuda:0")))
    if device != "cpu" and not torch.cuda.is_available():
        raise SettingError(f"Bad device {device!r}: torch finds no CUDA device here; use --device cpu")
    return device


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


def _options(request: Request, device: str) -> dict[str, Any]:
    """What results depend on beside settings and data, by the names that the user knows."""
    return {
        "seeds": request.grid.seeds,
        "epochs": request.grid.epochs,
        "patience": request.patience,
        "inputs": request.inputs,
        "missing": request.missing,
        "precision": request.precision,
        "score-all": request.score_all,
        "device": device.split(":")[0],
    }


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
        write_heads(folder / "heads" / f"{system}-fold{fold}-seed{seed}.safetensors", heads)
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
