"""What the figures show, as arrays: scores by ambiguity, confusions, calibration, entropies and expert weights.

A head may predict nothing for some utterances, which then do not count in what is told of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core import distributions
from amber2_core.distributions import ambiguity_bins, entropy
from amber2_core.metrics import METRICS, confusion, utterance_accuracy, utterance_js
from amber2_core.summary import fold_mean
from amber2_core.tables import Texts

from .groups import Entry, Group, dev_rows
from .runs import Floats, head_of
from .settings import by_setting, setting_of

CONFIDENCE_BINS = 10
FUSION = "fusion"


@dataclass(frozen=True, eq=False)
class Bins:
    """Utterances by ambiguity."""

    member: npt.NDArray[np.intp]  # (N,) the bin of each utterance
    edges: Floats  # (bins + 1,) bits
    counts: npt.NDArray[np.intp]  # (bins,)

    @property
    def centres(self) -> Floats:
        return (self.edges[1:] + self.edges[:-1]) / 2


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


def confusion_shares(group: Group, entry: Entry) -> Floats:
    """Share of the utterances with label c whose predicted class is k, over all seeds → (C, C); NaN for no label."""
    return _by_row(confusion(group.predictions.target[entry.rows], entry.probs[:, entry.rows]).sum(0))


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
    safe = np.where(count > 0, count, np.nan)
    sums = [np.bincount(member, x, CONFIDENCE_BINS) / safe for x in (confidence, hits)]
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
    chosen = {row["fold"]: setting_of(row) for row in main.tested}
    heads = group.heads(main)
    if not all("kappa" in setting and setting.get("student") == main.head for setting in chosen.values()):
        return None
    experts = [name for name in heads if name != main.head]
    if len(experts) < 2:
        return None
    kappa = np.array([chosen[fold]["kappa"] for fold in group.predictions.fold.tolist()], dtype=np.float64)
    divergence = [utterance_js(group.predictions.target, heads[name].probs) for name in experts]
    weights = distributions.expert_weights(divergence, kappa)  # (experts, seeds, N)
    return dict(zip(experts, weights.mean(1), strict=True))


def speaker_scores(group: Group, entry: Entry, speaker: Texts) -> tuple[list[str], Floats]:
    """JS of each known speaker, averaged over his predicted utterances and seeds, the lowest first."""
    per_utterance = utterance_js(group.predictions.target[entry.rows], entry.probs[:, entry.rows]).mean(0)
    speaker = speaker[entry.rows]
    names = [name for name in dict.fromkeys(speaker) if name]
    means = np.array([per_utterance[speaker == name].mean() for name in names], dtype=np.float64)
    order = np.argsort(means)
    return [names[k] for k in order], means[order]


@dataclass(frozen=True, eq=False)
class Curve:
    """How one head trained, over the folds and seeds that were still in training."""

    mean: Floats  # (epochs,) dev JS, bits
    sd: Floats  # (epochs,) ddof 1; NaN for a single run
    kept: npt.NDArray[np.intp]  # (epochs,) how many runs keep their weights of each epoch


def training_curve(entry: Entry) -> Curve | None:
    """Dev JS of an entry's head by epoch, from curves.csv; None for a run without."""
    rows = [row for row in entry.run.curves if head_of(row) == (entry.system, entry.head)]
    if not rows:
        return None
    epochs = max(row["epoch"] for row in rows)
    by_epoch: list[list[float]] = [[] for _ in range(epochs)]
    for row in rows:
        if np.isfinite(row["dev_js"]):
            by_epoch[row["epoch"] - 1].append(row["dev_js"])
    mean = [np.mean(some) if some else np.nan for some in by_epoch]
    sd = [np.std(some, ddof=1) if len(some) > 1 else np.nan for some in by_epoch]
    kept = np.bincount([row["epoch"] for row in entry.tested if row["epoch"] <= epochs], minlength=epochs + 1)[1:]
    return Curve(np.array(mean, dtype=np.float64), np.array(sd, dtype=np.float64), kept)


@dataclass(frozen=True, eq=False)
class GridMap:
    """Dev JS over λ_MAI × κ, and in how many folds each point was chosen."""

    lambda_mai: list[float]
    kappa: list[float]
    js: Floats  # (lambda_mai, kappa), NaN: not trained
    chosen: npt.NDArray[np.int64]  # (lambda_mai, kappa)


def grid_map(main: Entry) -> GridMap | None:
    """The grid of a system, mean over folds and seeds; where other settings vary too, the best of them."""
    rows = [row for row in dev_rows(main) if row.get("lambda_mai") is not None and row.get("kappa") is not None]
    lambdas, kappas = (sorted({row[name] for row in rows}) for name in ("lambda_mai", "kappa"))
    if len(lambdas) * len(kappas) < 2:
        return None
    js = np.full((len(lambdas), len(kappas)), np.nan)
    chosen = np.zeros((len(lambdas), len(kappas)), dtype=np.int64)
    for own in by_setting(rows).values():
        place = lambdas.index(own[0]["lambda_mai"]), kappas.index(own[0]["kappa"])
        js[place] = np.fmin(js[place], fold_mean(own, "js"))
        chosen[place] += len({row["fold"] for row in own if row["selected"] == 1})
    return GridMap(lambdas, kappas, js, chosen)


def _by_row(counts: Floats) -> Floats:
    return _shares(counts, counts.sum(1, keepdims=True))


def _shares(part: Floats, whole: npt.NDArray[Any]) -> Floats:
    """part / whole, NaN where whole is 0."""
    shares: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares
