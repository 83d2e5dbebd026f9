"""A whole sweep: training data and a grid go in; every setting's dev scores and the selected one's test come out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amber2_core.heads import MultimodalHeads
from amber2_core.heads_folder import TrainedHeads, standardised
from amber2_core.metrics import evaluate
from amber2_core.run_folder import Predictions

from .fit import Fitted, Rows, fit, predict
from .folds import Fold
from .grid import Setting
from .select import Candidate, choose
from .targets import TrainingData

Inputs = Literal["raw", "standardized"]
Standardisation = Mapping[str, tuple[Tensor, Tensor]]
# Settings that train in one stack. More would share the first layer's product, but their weights, gradients and moments
# (20 MB a run for the default heads) leave the processor's cache.
STACKED_SETTINGS = {"cpu": 12, "cuda": 64}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """All that a sweep found."""

    rows: list[dict[str, Any]]  # of results.csv
    predictions: Predictions
    # (system, fold) → the setting that dev chose
    selected: Mapping[tuple[str, int], Setting]
    # (system, fold, seed) → the selected setting's heads
    heads: Mapping[tuple[str, int, int], TrainedHeads]


@dataclass
class _Fold:
    """One fold's data in tensors."""

    number: int
    train: Rows
    dev: Rows
    test: Rows
    standardisation: Standardisation


@dataclass
class _Found:
    """What the folds have given so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    selected: dict[tuple[str, int], Setting] = field(default_factory=dict)
    heads: dict[tuple[str, int, int], TrainedHeads] = field(default_factory=dict)
    probs: dict[str, list[npt.NDArray[np.float32]]] = field(default_factory=dict)


def sweep(
    data: TrainingData,
    folds: Sequence[Fold],
    settings: Sequence[Setting],
    *,
    seeds: int = 5,
    epochs: int = 30,
    inputs: Inputs = "raw",
    device: str = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SweepResult:
    """Train every setting under every seed on every fold, choose by dev, test what was chosen.

    In each fold and system the setting with the lowest dev JS, averaged over seeds, is the one tested; test targets are
    looked at after that, and decide nothing.

    Args:
        seeds: how many; they are 0, 1, ….
        inputs: features as the cache holds them, or standardised by the mean and sd of the fold's train rows.
        on_progress: called with the runs done and the runs in all.
    """
    total, done = len(folds) * len(settings) * seeds, 0
    found = _Found()
    for fold in folds:
        began = time.monotonic()
        part = _fold_tensors(data, fold, inputs, device)
        candidates: dict[str, Candidate] = {}
        first_row = len(found.rows)
        for chunk in stacks(settings, device):
            fitted = []
            for group in seed_groups(seeds, device):
                fitted.append(
                    fit(part.train, part.dev, chunk, fold=fold.number, seeds=group, epochs=epochs, device=device)
                )
                done += len(chunk) * len(group)
                on_progress(done, total)
            found.rows += _dev_rows(part, chunk, fitted)
            choose(candidates, chunk, fitted)
        for system, candidate in candidates.items():
            found.selected[system, fold.number] = candidate.setting
            _mark_selected(found.rows[first_row:], candidate)
            _test(part, system, candidate, data, found)
        chosen = ", ".join(f"{name}{_point(c.setting)} (dev js {c.dev_js:.4f})" for name, c in candidates.items())
        _log.info("fold %d of %d: %.1f s; chosen on dev: %s", fold.number, len(folds), time.monotonic() - began, chosen)
    tested = np.concatenate([fold.test for fold in folds])
    predictions = Predictions(
        id=data.id[tested],
        fold=np.concatenate([np.full(len(fold.test), fold.number, dtype=np.int64) for fold in folds]),
        target=data.targets[tested],
        emotions=data.emotions,
        probs={name: np.concatenate(parts, axis=1) for name, parts in found.probs.items()},
    )
    return SweepResult(found.rows, predictions, found.selected, found.heads)


def stacks(settings: Sequence[Setting], device: str) -> Iterator[list[Setting]]:
    """Settings that can train together: of one shape, each system's side by side, as many as a stack takes."""
    size = STACKED_SETTINGS[device.split(":")[0]]
    by_shape: dict[tuple[Any, ...], list[Setting]] = {}
    for setting in settings:
        by_shape.setdefault(setting.shape, []).append(setting)
    for alike in by_shape.values():
        for first in range(0, len(alike), size):
            yield alike[first : first + size]


def seed_groups(seeds: int, device: str) -> list[list[int]]:
    """Seeds that train together: all on an accelerator, one by one on a CPU, where they share no product."""
    return [list(range(seeds))] if device.startswith("cuda") else [[seed] for seed in range(seeds)]


def _fold_tensors(data: TrainingData, fold: Fold, inputs: Inputs, device: str) -> _Fold:
    raw = {
        part: {m: torch.from_numpy(x[rows]).to(device) for m, x in data.features.items()}
        for part, rows in (("train", fold.train), ("dev", fold.dev), ("test", fold.test))
    }
    statistics = train_statistics(raw["train"]) if inputs == "standardized" else {}

    def rows(part: str, chosen: npt.NDArray[np.intp]) -> Rows:
        features = {m: standardised(x, statistics.get(m)) for m, x in raw[part].items()}
        return Rows(features, torch.from_numpy(data.targets[chosen]).to(device))

    return _Fold(fold.number, rows("train", fold.train), rows("dev", fold.dev), rows("test", fold.test), statistics)


def train_statistics(features: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and sd of every dimension over train rows (n, D_m); a constant dimension has sd 1."""
    statistics = {}
    for modality, x in features.items():
        sd, mean = torch.std_mean(x.double(), dim=0, correction=0)
        statistics[modality] = (mean.to(x.dtype), torch.where(sd > 0, sd, 1.0).to(x.dtype))
    return statistics


def _dev_rows(part: _Fold, chunk: Sequence[Setting], fitted: Sequence[Fitted]) -> list[dict[str, Any]]:
    """Every run's metrics on dev, each head at its best epoch."""
    rows = []
    target = _numbers(part.dev.targets)
    first_seed = 0
    for some in fitted:
        scores = evaluate(target, _numbers(predict(some.stack, part.dev).softmax(-1)))  # each (heads, seeds, settings)
        for h, head in enumerate(some.stack.architecture.heads):
            for s in range(some.stack.seeds):
                for k, setting in enumerate(chunk):
                    metrics = {name: float(values[h, s, k]) for name, values in scores.items()}
                    seed, epoch = first_seed + s, int(some.epoch[h, s, k])
                    rows.append(_row(setting, head, "dev", part.number, seed, epoch, len(part.dev), metrics))
        first_seed += some.stack.seeds
    return rows


def _test(part: _Fold, system: str, candidate: Candidate, data: TrainingData, found: _Found) -> None:
    """Score the chosen setting of one system on test, under every seed, with the very heads that are kept."""
    setting, target = candidate.setting, _numbers(part.test.targets)
    probs: dict[str, list[npt.NDArray[np.float32]]] = {}
    for seed, (architecture, state, epochs) in enumerate(candidate.runs):
        model = MultimodalHeads(architecture)
        model.load_state_dict({name: tensor.cpu() for name, tensor in state.items()})
        origin = {
            "system": system,
            "setting": setting.row(),
            "fold": part.number,
            "seed": seed,
            "epochs": epochs,
            "features": {m: {"name": name, "fingerprint": key} for m, (name, key) in data.feature_sets.items()},
        }
        statistics = {m: (mean.cpu(), sd.cpu()) for m, (mean, sd) in part.standardisation.items()}
        found.heads[system, part.number, seed] = TrainedHeads(model.eval(), data.emotions, statistics, origin)
        with torch.no_grad():
            logits = model({m: x.cpu() for m, x in part.test.features.items()})
        for head in logits:
            predicted = _numbers(logits[head].softmax(-1))
            probs.setdefault(head, []).append(predicted)
            metrics = {name: float(value) for name, value in evaluate(target, predicted).items()}
            row = _row(setting, head, "test", part.number, seed, epochs[head], len(part.test), metrics)
            found.rows.append({**row, "selected": 1})
    for head, parts in probs.items():
        found.probs.setdefault(f"{system}/{head}", []).append(np.stack(parts))


def _row(
    setting: Setting, head: str, split: str, fold: int, seed: int, epoch: int, n: int, metrics: Mapping[str, float]
) -> dict[str, Any]:
    values = setting.row()
    key = {"system": values.pop("system"), "head": head, "split": split, "fold": fold, "seed": seed, "selected": 0}
    return {**key, **values, "epoch": epoch, "n": n, **metrics}


def _mark_selected(rows: list[dict[str, Any]], candidate: Candidate) -> None:
    chosen = candidate.setting.row()
    for row in rows:
        if all(row[name] == value for name, value in chosen.items()):
            row["selected"] = 1


def _point(setting: Setting) -> str:
    named = {name: setting.row()[name] for name in ("lambda_mai", "kappa")}
    return "".join(f" {name} {value}" for name, value in named.items() if value is not None)


def _numbers(x: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(x.detach().float().cpu().numpy())
