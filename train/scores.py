"""From fitted runs to rows of results.csv (every run on dev, the selected ones on test) and of curves.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amber2_core.heads import MultimodalHeads
from amber2_core.heads_folder import TrainedHeads
from amber2_core.metrics import evaluate

from .fit import SCORED_ROWS, Fitted, predict
from .grid import Setting
from .rows import FoldRows, Rows
from .select import Candidate

Row = dict[str, Any]  # of results.csv, or of curves.csv


@dataclass(frozen=True, eq=False)
class Tested:
    """The selected setting of one system in one fold, on test."""

    rows: list[Row]
    probs: Mapping[str, npt.NDArray[np.float32]]  # head → (seeds, n, C)
    models: tuple[MultimodalHeads, ...]  # one per seed


def scores_of(
    part: Rows, split: str, fold: int, settings: Sequence[Setting], fitted: Fitted, seeds: Sequence[int]
) -> tuple[list[Row], npt.NDArray[np.float64]]:
    """Every run's metrics on dev or test, each head at its best epoch; of them the JS as (heads, seeds, settings), too.

    What diverged at once, so that no epoch was kept, has no scores: NaN.
    """
    rows = []
    probs = _numbers(predict(fitted.stack, part).softmax(-1))
    # each (heads, seeds, settings)
    scores = {
        name: np.where(fitted.epoch > 0, values, np.nan)
        for name, values in evaluate(_numbers(part.targets), probs).items()
    }
    for k, setting in enumerate(settings):
        for s, seed in enumerate(seeds):
            for h, head in enumerate(fitted.stack.architecture.heads):
                metrics = {name: float(values[h, s, k]) for name, values in scores.items()}
                rows.append(_row(setting, head, split, fold, seed, int(fitted.epoch[h, s, k]), len(part), metrics))
    return rows, scores["js"]


def score_on_test(fold: FoldRows, candidate: Candidate) -> Tested:
    """Score the chosen setting of one system on test, under every seed, with the very heads that are kept."""
    setting, target = candidate.setting, _numbers(fold.test.targets)
    rows: list[Row] = []
    probs: dict[str, list[npt.NDArray[np.float32]]] = {}
    models = []
    for seed, run in enumerate(candidate.runs):
        model = MultimodalHeads(run.architecture).eval()
        model.load_state_dict(run.state)
        models.append(model)
        for head, predicted in _test_probs(model, fold).items():
            probs.setdefault(head, []).append(predicted)
            metrics = {name: float(value) for name, value in evaluate(target, predicted).items()}
            row = _row(setting, head, "test", fold.number, seed, run.epochs[head], len(fold.test), metrics)
            rows.append({**row, "selected": 1})
    return Tested(rows, {head: np.stack(parts) for head, parts in probs.items()}, tuple(models))


def curve_rows(fold: int, candidate: Candidate) -> list[Row]:
    """The chosen setting's rows of curves.csv: the dev JS of every head after every epoch."""
    return [
        {"system": candidate.setting.name, "head": head, "fold": fold, "seed": seed, "epoch": epoch, "dev_js": js}
        for seed, run in enumerate(candidate.runs)
        for head, curve in run.curves.items()
        for epoch, js in enumerate(curve, start=1)
    ]


def mark_selected(rows: Sequence[Row], setting: Setting) -> None:
    """Set `selected` in a fold's dev rows of the chosen setting."""
    chosen = setting.row()
    for row in rows:
        if all(row[name] == value for name, value in chosen.items()):
            row["selected"] = 1


def trained_heads(
    fold: FoldRows,
    candidate: Candidate,
    seed: int,
    model: MultimodalHeads,
    *,
    emotions: tuple[str, ...],
    features: Mapping[str, tuple[str, str]],
) -> TrainedHeads:
    """A selected run as its file in `heads/` holds it; `features` gives every modality's name and fingerprint."""
    origin = {
        "system": candidate.setting.name,
        "setting": candidate.setting.row(),
        "fold": fold.number,
        "seed": seed,
        "epochs": candidate.runs[seed].epochs,
        "features": {m: {"name": name, "fingerprint": key} for m, (name, key) in features.items()},
    }
    statistics = {m: (mean.cpu(), sd.cpu()) for m, (mean, sd) in fold.test.standardisation.items()}
    return TrainedHeads(model, emotions, statistics, origin)


@torch.no_grad()
def _test_probs(model: MultimodalHeads, fold: FoldRows) -> dict[str, npt.NDArray[np.float32]]:
    """Probabilities (n, C) on test by head, on the CPU, where anybody else will compute them."""
    parts: dict[str, list[npt.NDArray[np.float32]]] = {}
    for rows in torch.split(torch.arange(len(fold.test), device=fold.test.index.device), SCORED_ROWS):
        vectors = {name: x.cpu() for name, x in fold.test.vectors(rows).items()}
        for head, logits in model(vectors).items():
            parts.setdefault(head, []).append(_numbers(logits.softmax(-1)))
    return {head: np.concatenate(some) for head, some in parts.items()}


def _row(
    setting: Setting, head: str, split: str, fold: int, seed: int, epoch: int, n: int, metrics: Mapping[str, float]
) -> Row:
    values = setting.row()
    key = {"system": values.pop("system"), "head": head, "split": split, "fold": fold, "seed": seed, "selected": 0}
    return {**key, **values, "epoch": epoch, "n": n, **metrics}


def _numbers(x: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(x.detach().float().cpu().numpy())
