"""Trackers: a finished run folder's settings, metrics and curves where people already look.

csv needs nothing: `curves.csv` is in every run folder. tensorboard writes event files into the run folder. mlflow logs
to MLflow's own default store, or to where its variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID)
point.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amber2_core.errors import SettingError, bad_choice
from amber2_core.metrics import METRICS_OF, metrics_of_kinds
from amber2_core.run_folder import axes_of, read_curves, read_results, read_settings, read_summary

EXPERIMENT = "amber2"
# what MLflow shows beside the metrics: all but weights and predictions
ARTIFACTS = ("*.json", "*.csv", "log.txt")
# of settings.json, those that are a word or a list
PARAMETERS = ("command", "corpus", "cache", "emotions", "systems", "seeds", "epochs", "patience", "inputs", "precision")
# some seconds in place of four minutes for a server that is gone
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
MLFLOW_BATCH = 900  # metrics of one call; with parameters and tags MLflow takes 1,000
MLFLOW_TEXT = 500  # letters of a parameter that every store of MLflow takes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """One selected setting under one seed on one fold: a line in a tracker."""

    name: str
    setting: dict[str, Any]
    scores: dict[str, float]  # "test_<metric>/<head>" where it is a number, and "kept_epoch/<head>"
    curves: list[tuple[str, int, float]]  # "dev_js/<head>", epoch, value


def trackers(text: str | None) -> tuple[str, ...]:
    """The trackers of a comma list, each once.

    Raises:
        SettingError: there is no such tracker, or its package is not installed.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(","))) if text is not None else ()
    for name in names:
        if name not in TRACKERS:
            raise SettingError(bad_choice("track", name, tuple(TRACKERS)))
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise SettingError(f"--track {name} needs the package {name}: pip install 'amber2[{name}]'")
    return names


def track(folder: Path, names: Sequence[str]) -> list[str]:
    """Log a complete run folder with each tracker; a line for each that failed, which leaves the folder as it is."""
    failures = []
    for name in names:
        try:
            TRACKERS[name](folder)
        except Exception as problem:  # a server may be gone, a package broken; the run is complete all the same
            _log.debug("the failure came from here", exc_info=True)
            failures.append(f"{folder} is complete, but --track {name} failed: {' '.join(str(problem).split())}")
    return failures


def track_csv(folder: Path) -> None:
    """Nothing to do: curves.csv is part of every run folder."""


def track_tensorboard(folder: Path) -> None:
    """Write `<folder>/tensorboard/<system>-fold<k>-seed<s>/`: curves, test scores and, for HParams, settings.

    What an earlier call wrote there is written anew: event files that are added to would be shown twice.
    """
    from torch.utils.tensorboard import SummaryWriter

    place = folder / "tensorboard"
    shutil.rmtree(place, ignore_errors=True)
    with SummaryWriter(place) as writer:
        for name in ("settings.json", "summary.json"):
            writer.add_text(name, "\n".join(f"    {line}" for line in (folder / name).read_text("utf-8").splitlines()))
    for one in trained(folder):
        with SummaryWriter(place / one.name) as writer:
            for tag, epoch, value in one.curves:
                writer.add_scalar(tag, value, epoch)
            setting = {name: value for name, value in one.setting.items() if value is not None}
            writer.add_hparams(setting, one.scores, run_name=".")


def track_mlflow(folder: Path) -> None:
    """Log a run with the sweep's settings, table and files, and in it one run per system, fold and seed.

    The run is the one that MLFLOW_RUN_ID names, if any. Where MLflow's own variables do not say how patient it is to be
    with a server that does not answer, it is `MLFLOW_PATIENCE`.
    """
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    for variable, value in MLFLOW_PATIENCE.items():
        os.environ.setdefault(variable, value)
    if (place := mlflow.get_tracking_uri()).startswith("http"):
        _log.info("logging to MLflow at %s", place)
    if not any(os.environ.get(f"MLFLOW_{name}") for name in ("EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID")):
        mlflow.set_experiment(EXPERIMENT)
    client = mlflow.MlflowClient()
    name = None if os.environ.get("MLFLOW_RUN_ID") else folder.resolve().name  # the user's own run keeps its name
    with mlflow.start_run(run_name=name) as parent:
        mlflow.log_params({name: _text(value) for name, value in _parameters(read_settings(folder))})
        mlflow.log_metrics(dict(_means(read_summary(folder)["table"])))
        for pattern in ARTIFACTS:
            for file in sorted(folder.glob(pattern)):
                mlflow.log_artifact(str(file))
        for one in trained(folder):
            with mlflow.start_run(run_name=one.name, nested=True, experiment_id=parent.info.experiment_id) as run:
                now = run.info.start_time
                metrics = [Metric(tag, value, now, epoch) for tag, epoch, value in one.curves]
                metrics += [Metric(name, value, now, 0) for name, value in one.scores.items()]
                params = [Param(name, _text(value)) for name, value in one.setting.items() if value is not None]
                tags = [RunTag("sweep", parent.info.run_name)]
                for k in range(0, len(metrics), MLFLOW_BATCH):
                    client.log_batch(run.info.run_id, metrics[k : k + MLFLOW_BATCH], params if k == 0 else (), tags)


TRACKERS: Mapping[str, Callable[[Path], None]] = {
    "csv": track_csv,
    "tensorboard": track_tensorboard,
    "mlflow": track_mlflow,
}


def trained(folder: Path) -> list[Trained]:
    """Every selected setting under every fold and seed of a run folder, its heads together."""
    keys = ("system", "fold", "seed")
    curves: dict[tuple[Any, ...], list[tuple[str, int, float]]] = {}
    for row in read_curves(folder):
        if math.isfinite(row["dev_js"]):
            curves.setdefault(tuple(row[key] for key in keys), []).append(
                (f"dev_js/{row['head']}", row["epoch"], row["dev_js"])
            )
    rows, found = read_results(folder), dict[tuple[Any, ...], Trained]()
    axes = axes_of(read_settings(folder), list(rows[0]) if rows else [])
    for row in rows:
        if row["split"] != "test" or not row["selected"]:
            continue
        key = tuple(row[name] for name in keys)
        if key not in found:
            setting = {name: row[name] for name in keys}
            setting |= {name: row[name] for name in axes}
            found[key] = Trained("{}-fold{}-seed{}".format(*key), setting, {}, curves.get(key, []))
        known = [name for name in metrics_of_kinds([*METRICS_OF]) if row.get(name) is not None]
        scores = {f"test_{name}/{row['head']}": row[name] for name in known if math.isfinite(row[name])}
        found[key].scores.update(scores)
        if row["epoch"] is not None:
            found[key].scores[f"kept_epoch/{row['head']}"] = row["epoch"]
    return list(found.values())


def _parameters(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The sweep's settings, one level deep."""
    yield from ((name, settings[name]) for name in PARAMETERS if settings.get(name) is not None)
    for record in ("grid", "policy", "versions"):
        yield from ((f"{record}.{name}", value) for name, value in settings.get(record, {}).items())
    if protocol := settings.get("folds", {}).get("protocol"):
        yield "folds", protocol


def _means(table: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The table's means, where they are numbers."""
    for system, heads in table.items():
        for head, metrics in heads.items():
            for metric, value in metrics.items():
                if value["mean"] is not None and math.isfinite(value["mean"]):
                    yield f"test_{metric}/{system}-{head}", value["mean"]


def _text(value: Any) -> str:
    """A value as a parameter of MLflow."""
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return words if len(words) <= MLFLOW_TEXT else words[: MLFLOW_TEXT - 1] + "…"
