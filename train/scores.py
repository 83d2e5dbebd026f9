"""From fitted runs to rows of results.csv (every run on dev, the selected ones on test) and of curves.csv."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amber2_core.heads import Heads
from amber2_core.heads_folder import TrainedHeads
from amber2_core.metrics import METRICS, evaluate

from .fit import SCORED_ROWS, Fitted, predict
from .grid import Setting
from .rows import FoldRows, Rows
from .select import Candidate
from .systems import registry

Row = dict[str, Any]  # of results.csv, or of curves.csv


@dataclass(frozen=True, eq=False)
class Tested:
    """The selected setting of one system in one fold, on test."""

    rows: list[Row]
    probs: Mapping[str, npt.NDArray[np.float32]]  # head → (seeds, n, C), NaN where the head predicts nothing
    models: tuple[Heads, ...]  # one per seed


def scores_of(
    part: Rows, split: str, fold: int, settings: Sequence[Setting], fitted: Fitted, seeds: Sequence[int]
) -> tuple[list[Row], npt.NDArray[np.float64]]:
    """Every run's metrics on dev or test, each head at its best epoch; of them the JS as (heads, seeds, settings), too.

    A head is scored on the utterances that have it. What diverged at once, so that no epoch was kept, has no scores:
    NaN; so has a head that no utterance has.
    """
    rows = []
    probs, having = _numbers(predict(fitted.stack, part).softmax(-1)), part.having()
    # each (heads, seeds, settings)
    scores = {
        name: np.where(fitted.epoch > 0, values, np.nan)
        for name, values in _of_heads(_numbers(part.targets), probs, having).items()
    }
    for k, setting in enumerate(settings):
        for s, seed in enumerate(seeds):
            for h, head in enumerate(fitted.stack.architecture.heads):
                metrics = {name: float(values[h, s, k]) for name, values in scores.items()}
                n, epoch = int(having[h].sum()), int(fitted.epoch[h, s, k])
                rows.append(_row(setting, head, split, fold, seed, epoch, n, metrics))
    return rows, scores["js"]


def score_on_test(fold: FoldRows, candidate: Candidate) -> Tested:
    """Score the chosen setting of one system on test, under every seed, with the very heads that are kept.

    A head of which no epoch was kept predicts nothing: it diverged at once, or, which the row's n of 0 tells, no dev
    utterance has the head that should have chosen its epoch.
    """
    setting, target = candidate.setting, _numbers(fold.test.targets)
    test, counts = fold.test.having(), _judged_counts(fold, candidate)
    rows: list[Row] = []
    probs: dict[str, list[npt.NDArray[np.float32]]] = {}
    models = []
    for seed, run in enumerate(candidate.runs):
        model = Heads(run.architecture, run.state)
        models.append(model)
        for (head, predicted), own in zip(_test_probs(model, fold).items(), test, strict=True):
            having = own & (run.epochs[head] > 0)
            predicted[~having] = np.nan
            probs.setdefault(head, []).append(predicted)
            metrics = {name: float(value) for name, value in evaluate(target[having], predicted[having]).items()}
            row = _row(setting, head, "test", fold.number, seed, run.epochs[head], counts[head], metrics)
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
    model: Heads,
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
        **_gaps(fold, features),
    }
    statistics = {m: (mean.cpu(), sd.cpu()) for m, (mean, sd) in fold.test.standardisation.items()}
    return TrainedHeads(model, emotions, statistics, origin)


def _gaps(fold: FoldRows, modalities: Iterable[str]) -> dict[str, Any]:
    """What `heads/` tells of the modalities that train utterances lacked."""
    having = dict(zip(modalities, fold.train.having(), strict=False))
    return {
        "missing": {name: int((~own).sum()) for name, own in having.items() if not own.all()},
        "untrained": [name for name, own in having.items() if not own.any()],
    }


@torch.no_grad()
def _test_probs(model: Heads, fold: FoldRows) -> dict[str, npt.NDArray[np.float32]]:
    """Probabilities (n, C) on test by head, on the CPU, where anybody else will compute them."""
    parts: dict[str, list[npt.NDArray[np.float32]]] = {}
    for rows in torch.split(torch.arange(len(fold.test), device=fold.test.index.device), SCORED_ROWS["cpu"]):
        vectors = {name: x.cpu() for name, x in fold.test.vectors(rows).items()}
        present = fold.test.presence(rows)
        masks = None if present is None else dict(zip(vectors, present.cpu(), strict=False))
        for head, probs in model.probs(vectors, present=masks).items():
            parts.setdefault(head, []).append(_numbers(probs))
    return {head: np.concatenate(some) for head, some in parts.items()}


def _judged_counts(fold: FoldRows, candidate: Candidate) -> dict[str, int]:
    """How many test utterances have each head; 0 for one whose judge no dev utterance has."""
    heads = candidate.runs[0].architecture.heads
    system, on_dev = registry.system(candidate.setting.system), fold.dev.having()
    judged = {head: on_dev[heads.index(system.judge(head, candidate.setting))].any() for head in heads}
    return {
        head: int(having.sum()) if judged[head] else 0 for head, having in zip(heads, fold.test.having(), strict=True)
    }


def _of_heads(
    target: npt.NDArray[np.float32], probs: npt.NDArray[np.float32], having: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.float64]]:
    """Every metric of probabilities (heads, …, n, C), each head over the utterances that have it (heads, n)."""
    if having.all():
        return evaluate(target, probs)
    of_heads = [evaluate(target[own], some[..., own, :]) for some, own in zip(probs, having, strict=True)]
    return {name: np.stack([scores[name] for scores in of_heads]) for name in METRICS}


def _row(
    setting: Setting, head: str, split: str, fold: int, seed: int, epoch: int, n: int, metrics: Mapping[str, float]
) -> Row:
    values = setting.row()
    key = {"system": values.pop("system"), "head": head, "split": split, "fold": fold, "seed": seed, "selected": 0}
    return {**key, **values, "epoch": epoch, "n": n, **metrics}


def _numbers(x: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(x.detach().float().cpu().numpy())
