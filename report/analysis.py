"""What the figures show, as arrays: scores by ambiguity, confusions, calibration, entropies and expert weights.

A head may predict nothing for some utterances, which then do not count in what is told of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from amber2_core import distributions
from amber2_core.distributions import ambiguity_bins, entropy
from amber2_core.metrics import METRICS, confusion, utterance_accuracy, utterance_js
from amber2_core.tables import Texts

from .groups import FUSION, Entry, Group
from .runs import Floats

CONFIDENCE_BINS = 10


@dataclass(frozen=True, eq=False)
class Bins:
    """Utterances by ambiguity."""

    member: npt.NDArray[np.intp]  # (N,) the bin of each utterance
    edges: Floats  # (bins + 1,) bits
    counts: npt.NDArray[np.intp]  # (bins,)


def bins_of(group: Group) -> Bins:
    """Five bins of equal width on [0, log₂ C]."""
    member, edges = ambiguity_bins(group.predictions.target)
    return Bins(member, edges, np.bincount(member, minlength=len(edges) - 1))


def scores_by_bin(group: Group, entry: Entry, bins: Bins) -> Mapping[str, Floats]:
    """metric → (seeds, bins), over the test utterances of all folds that the head predicts; NaN in an empty bin."""
    target = group.predictions.target
    found = {name: np.full((len(entry.probs), len(bins.counts)), np.nan) for name in METRICS}
    for b in np.flatnonzero(bins.counts):
        rows = np.flatnonzero((bins.member == b) & entry.there)
        for name, metric in METRICS.items():
            found[name][:, b] = metric(target[rows], entry.probs[:, rows])
    return found


def confusion_counts(group: Group, entry: Entry) -> Floats:
    """Utterances with label c whose predicted class is k, over all seeds → (C, C)."""
    return np.asarray(confusion(group.predictions.target[entry.rows], entry.probs[:, entry.rows]).sum(0))


def confusion_shares(group: Group, entry: Entry) -> Floats:
    """Share of the utterances with label c whose predicted class is k, over all seeds → (C, C); NaN for no label."""
    return _by_row(confusion_counts(group, entry))


def vote_shares(group: Group, entry: Entry) -> Floats:
    """Of a vote for c, what share of the predicted probability is on k: Σ_i y_ic p_ik / Σ_i y_ic → (C, C)."""
    target = group.predictions.target[entry.rows].astype(np.float64)
    return _by_row(target.T @ entry.probs[:, entry.rows].mean(0, dtype=np.float64))


def reliability(group: Group, entry: Entry) -> tuple[Floats, Floats, Floats]:
    """Mean confidence, accuracy and share of predictions in ten bins of confidence, over all seeds; NaN where empty."""
    probs = entry.probs[:, entry.rows]
    confidence = probs.max(-1).astype(np.float64).ravel()
    hits = utterance_accuracy(group.predictions.target[entry.rows], probs).ravel()
    member = np.searchsorted(np.linspace(0, 1, CONFIDENCE_BINS + 1)[1:-1], confidence)
    count = np.bincount(member, minlength=CONFIDENCE_BINS).astype(np.float64)
    sums = [_shares(np.bincount(member, x, CONFIDENCE_BINS).astype(float), count) for x in (confidence, hits)]
    return sums[0], sums[1], count / max(1.0, count.sum())


def entropies(group: Group, entry: Entry) -> tuple[Floats, Floats]:
    """Entropy of the raters and of the predictions, averaged over seeds, in bits, of the n predicted → (n,), (n,)."""
    return entropy(group.predictions.target[entry.rows]), entropy(entry.probs[:, entry.rows]).mean(0)


def disagreement(group: Group, main: Entry) -> Floats | None:
    """JS between the heads of single modalities, in bits, averaged over their pairs and over seeds → (N,).

    Over the pairs that an utterance has; NaN where it has none. None for a system without pairs.
    """
    single = [entry.probs for name, entry in group.heads(main).items() if name != FUSION]
    return distributions.disagreement(single).mean(0) if len(single) > 1 else None


def expert_weights(group: Group, main: Entry) -> Mapping[str, Floats] | None:
    """u = softmax(−κ JS(p_m‖y)) (Eq. 5) of the test utterances, averaged over seeds: expert → (N,).

    With the κ and the student that dev chose in each fold. 0 for an expert that an utterance has not got, NaN where it
    has none. None for a system without κ.
    """
    settings, heads = main.settings, group.heads(main)
    if not {"kappa", "student"} <= {*settings} or (settings["student"] != main.head).any():
        return None
    experts = [name for name in heads if name != main.head]
    if len(experts) < 2:
        return None
    of_fold = dict(zip(main.tested["fold"], settings["kappa"], strict=True))
    kappa = np.array([of_fold[fold] for fold in group.predictions.fold.tolist()], dtype=np.float64)
    divergence = [utterance_js(group.predictions.target, heads[name].probs) for name in experts]
    weights = distributions.expert_weights(divergence, kappa)  # (experts, seeds, N)
    return dict(zip(experts, weights.mean(1), strict=True))


def speaker_scores(group: Group, entry: Entry, speaker: Texts) -> pd.Series:
    """JS by known speaker, averaged over his predicted utterances and seeds, the lowest first."""
    scores = utterance_js(group.predictions.target[entry.rows], entry.probs[:, entry.rows]).mean(0)
    of_speakers = pd.Series(scores).groupby(speaker[entry.rows]).mean()
    return of_speakers.drop("", errors="ignore").sort_values(kind="stable")


def training_curve(entry: Entry) -> pd.DataFrame | None:
    """Dev JS in bits of an entry's head by epoch, over the folds and seeds still in training, from curves.csv.

    Epoch → mean; sd, ddof 1, NaN for a single run; and kept, how many runs keep their weights of it. None for a run
    without curves.
    """
    rows = entry.curves
    if not len(rows):
        return None
    by_epoch = rows["dev_js"].where(np.isfinite(rows["dev_js"])).groupby(rows["epoch"])
    curve = pd.DataFrame({"mean": by_epoch.mean(), "sd": by_epoch.std()})
    curve = curve.reindex(np.arange(1, rows["epoch"].max() + 1))
    return curve.assign(kept=entry.tested["epoch"].value_counts().reindex(curve.index, fill_value=0))


def grid_map(main: Entry) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Dev JS over λ_MAI × κ, and in how many folds each point was chosen: (lambda_mai, kappa), NaN: not trained.

    Means over folds and seeds; where other settings vary too, the best of them. None where there is no such grid.
    """
    place, rows = ["lambda_mai", "kappa"], main.dev
    if not {*place} <= {*main.run.axes}:
        return None
    rows = rows.dropna(subset=place)
    if len(rows.drop_duplicates(place)) < 2:
        return None
    point = [*place, *(name for name in main.varied if name not in place)]
    mean = rows[rows["n"] > 0].groupby(point, dropna=False)["js"].mean(skipna=False)
    chosen = rows[rows["selected"] == 1].groupby(point, dropna=False)["fold"].nunique()
    js = mean.groupby(place).min().unstack()
    return js, chosen.groupby(place).sum().unstack().reindex_like(js).fillna(0).astype(int)


def _by_row(counts: Floats) -> Floats:
    return _shares(counts, counts.sum(1, keepdims=True))


def _shares(part: Floats, whole: npt.NDArray[Any]) -> Floats:
    """part / whole, NaN where whole is 0."""
    shares: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares
