"""The tables of a run folder as a sweep's runs give them: the rows of results.csv, curves.csv and experts.csv."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.distributions import ambiguity_bins, disagreement, label
from amber2_core.heads import FUSION_HEAD
from amber2_core.kinds import MULTI_LABEL, Kind
from amber2_core.metrics import metrics_of_kinds
from amber2_core.run_folder import AGAINST_SYNTHETIC, Predictions, Summary

from .selection import Selection
from .tasks import Run, Scores, scores_of
from .training_data import Fold, TrainingData

Row = dict[str, Any]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Results:
    """What a sweep found."""

    rows: list[Row]  # of results.csv
    curves: list[Row]
    experts: list[Row]
    predictions: Predictions
    selected: Mapping[str, Mapping[int, int]]  # system → fold → place of the setting


@dataclass(frozen=True)
class Report:
    """What a command shows of a finished run."""

    folder: Path
    table: Summary
    # system → fold → setting, of the settings with several values on the grid
    selected: Mapping[str, Mapping[str, Mapping[str, Any]]]
    # system → expert → weight, mean over folds and seeds
    weights: Mapping[str, Mapping[str, float]]
    # as `table`, against what synthetic raters say, where there are any
    against_synthetic: Summary = field(default_factory=dict)
    # system → what it predicts; distributions where it is not named
    kinds: Mapping[str, Kind] = field(default_factory=dict)


def results_of(selection: Selection, data: TrainingData, folds: Sequence[Fold], columns: Sequence[str]) -> Results:
    """All tables of a complete sweep; here, and only for what dev chose, the targets of test are looked at.

    Where models rated utterances of test, too, the same predictions are also scored against what these said, in rows of
    their own.

    `columns` are the settings' names in results.csv.
    """
    rows, curves, chosen_probs = list[Row](), list[Row](), dict[str, list[npt.NDArray[np.float32]]]()
    measured: dict[str, dict[int, Floats]] = {}  # "<system>/<name>" → fold → (seeds, n)
    selected: dict[str, dict[int, int]] = {}
    thresholds: dict[str, list[list[float]]] = {}
    for fold in folds:
        chosen = selection.chosen(fold.number)
        target, tests = data.targets[fold.test], list[Row]()
        for name, place in chosen.items():
            selected.setdefault(name, {})[fold.number] = place
            runs = selection.of(fold.number, place)
            found = [selection.finished.predicted(run) for run in runs]
            probs = [one.probs for one in found]
            for run, predicted in zip(runs, probs, strict=True):
                having = {head: _having(data, fold, head) & (head not in run.history.unjudged) for head in predicted}
                above = run.threshold
                tested = {
                    head: scores_of(target, some, having[head], above, has_epochs=head in run.history.epoch)
                    for head, some in predicted.items()
                }
                tests += _rows(selection, run, "test", tested, columns, chosen=True)
                if data.synthetic is not None:
                    said = data.synthetic[fold.test]
                    rated = ~np.isnan(said[:, 0])
                    tested = {
                        head: scores_of(said, some, having[head] & rated, above, has_epochs=head in run.history.epoch)
                        for head, some in predicted.items()
                    }
                    tests += _rows(selection, run, AGAINST_SYNTHETIC, tested, columns, chosen=True)
                curves += _curve_rows(name, run)
            if own := [run.threshold for run in runs if run.threshold is not None]:
                thresholds.setdefault(name, []).append(own)
            for head in probs[0]:
                chosen_probs.setdefault(f"{name}/{head}", []).append(np.stack([some[head] for some in probs]))
            for measure in found[0].measures:
                values = np.stack([one.measures[measure] for one in found])
                measured.setdefault(f"{name}/{measure}", {})[fold.number] = values
        for place in range(len(selection.settings)):
            is_chosen = place in chosen.values()
            for run in selection.of(fold.number, place):
                rows += _rows(selection, run, "dev", run.dev, columns, chosen=is_chosen)
        for place in set(range(len(selection.settings))) - set(chosen.values()):
            for run in selection.of(fold.number, place):
                rows += _rows(selection, run, "test", run.test, columns, chosen=False)
        rows += tests
    of_presence = {name: np.array(own).T for name, own in thresholds.items()}  # (seeds, folds)
    predictions = _predictions(data, folds, chosen_probs, measured, of_presence)
    return Results(rows, curves, _expert_rows(selection, predictions, selected), predictions, selected)


def _rows(
    selection: Selection, run: Run, split: str, scores: Mapping[str, Scores], columns: Sequence[str], *, chosen: bool
) -> Iterator[Row]:
    setting = selection.settings[run.setting]
    values, metrics = setting.row(), metrics_of_kinds({one.kind for one in selection.settings})
    for head, own in scores.items():
        key = {"system": setting.name, "head": head, "split": split, "fold": run.fold, "seed": run.seed}
        settings = {name: values.get(name) for name in columns}
        scored = {name: own.get(name) for name in ("n", *metrics)}
        yield {**key, "selected": int(chosen), **settings, "epoch": run.history.epoch.get(head), **scored}


def _curve_rows(name: str, run: Run) -> Iterator[Row]:
    """The dev JS of every head after every epoch."""
    for head, curve in run.history.dev_js.items():
        for epoch, value in enumerate(curve, start=1):
            yield {"system": name, "head": head, "fold": run.fold, "seed": run.seed, "epoch": epoch, "dev_js": value}


def _having(data: TrainingData, fold: Fold, head: str) -> npt.NDArray[np.bool_]:
    """Which of a fold's test utterances have a head: the modality's of that name, or any modality."""
    masks = data.presence(fold.train)
    if masks is None:
        return np.ones(len(fold.test), dtype=bool)
    return np.asarray(dict(zip(data.inputs, masks, strict=False)).get(head, masks[-1])[fold.test])


def _predictions(
    data: TrainingData,
    folds: Sequence[Fold],
    probs: Mapping[str, Sequence[npt.NDArray[np.float32]]],
    measured: Mapping[str, Mapping[int, Floats]],
    thresholds: Mapping[str, npt.NDArray[np.float64]],
) -> Predictions:
    seeds = len(next(iter(probs.values()))[0])
    tested = np.concatenate([fold.test for fold in folds])
    return Predictions(
        id=data.id[tested],
        fold=np.concatenate([np.full(len(fold.test), fold.number, dtype=np.int64) for fold in folds]),
        target=data.targets[tested],
        emotions=data.emotions,
        probs={name: np.concatenate(parts, axis=1) for name, parts in probs.items()},
        synthetic=None if data.synthetic is None else data.synthetic[tested],
        measures={
            name: np.concatenate(
                [own.get(fold.number, np.full((seeds, len(fold.test)), np.nan)) for fold in folds], axis=1
            )
            for name, own in measured.items()
        },
        thresholds=thresholds,
    )


def _expert_rows(
    selection: Selection, predictions: Predictions, selected: Mapping[str, Mapping[int, int]]
) -> list[Row]:
    """The rows of experts.csv (see `amber2_core.run_folder`), from the selected settings' predictions on test.

    Weights are those of each utterance (Eq. 5), with the κ and the student of the setting, then their mean.
    """
    heads = tuple(dict.fromkeys(name.partition("/")[2] for name in predictions.probs))
    rows = []
    for system, fold, place in ((s, fold, place) for s, folds in selected.items() for fold, place in folds.items()):
        setting = selection.settings[place]
        if setting.kind == MULTI_LABEL:  # experts and their disagreement are of distributions
            continue
        here = predictions.fold == fold
        target = predictions.target[here]
        groups = dict(_groups(target, predictions.emotions))
        own = [head for head in heads if f"{system}/{head}" in predictions.probs]
        probs = {head: predictions.probs[f"{system}/{head}"][:, here] for head in own}  # (seeds, n, C)
        weights = setting.system.expert_weights(setting.values, probs, target)
        apart = _disagreement(probs)
        for seed, (by, members) in itertools.product(range(selection.seeds), groups.items()):
            key = {"system": system, "fold": fold, "seed": seed, "by": by[0], "group": by[1], "n": int(members.sum())}
            means = {
                f"weight_{head}": _mean(weights[head][seed, members]) if head in weights else None for head in heads
            }
            rows.append({**key, **means, "disagreement": _mean(apart[seed, members])})
    return rows


def _disagreement(probs: Mapping[str, Floats]) -> Floats:
    """JS(p_A‖p_T) (seeds, n); with more modalities the mean over the pairs that an utterance has, NaN without any."""
    modalities = [some for head, some in probs.items() if head != FUSION_HEAD]
    if len(modalities) < 2:
        return np.full(next(iter(probs.values())).shape[:-1], np.nan)
    return disagreement(modalities)


def _groups(target: Floats, emotions: Sequence[str]) -> Iterator[tuple[tuple[str, str], npt.NDArray[np.bool_]]]:
    """(by, group) and who is in it, (n,), for every group that somebody is in."""
    yield ("all", ""), np.ones(len(target), dtype=bool)
    labels = label(target)
    for c, emotion in enumerate(emotions):
        if (labels == c).any():
            yield ("class", emotion), labels == c
    bins, edges = ambiguity_bins(target)
    for b, (low, high) in enumerate(itertools.pairwise(edges)):
        if (bins == b).any():
            yield ("ambiguity", f"{low:.2f}-{high:.2f}"), bins == b


def _mean(values: Floats) -> float | None:
    """Over the utterances (n,) that have a value; None where none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
