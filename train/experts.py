"""What the model learnt about modalities: predictions go in, mean expert weights and disagreement come out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core import distributions
from amber2_core.distributions import ambiguity_bins, label
from amber2_core.heads import FUSION_HEAD
from amber2_core.metrics import utterance_js
from amber2_core.run_folder import Predictions

from .grid import Setting
from .systems import registry

Floats = npt.NDArray[np.floating[Any]]


def expert_rows(predictions: Predictions, selected: Mapping[tuple[str, int], Setting]) -> list[dict[str, Any]]:
    """The rows of experts.csv (see `amber2_core.run_folder`), from the selected settings' predictions on test.

    u_m = softmax_m(−κ JS(p_m‖y)) per utterance (Eq. 5), with the κ and the student of the setting, then the mean.
    Predictions may be NaN, where an utterance lacks a modality.
    """
    heads = tuple(dict.fromkeys(name.partition("/")[2] for name in predictions.probs))
    rows = []
    for (system, fold), setting in selected.items():
        chosen = predictions.fold == fold
        target = predictions.target[chosen]
        groups = dict(_groups(target, predictions.emotions))
        probs = {head: predictions.probs[f"{system}/{head}"][:, chosen] for head in heads}  # (seeds, n, C)
        weights = expert_weights(probs, target, setting)
        disagreement = modality_disagreement(probs)
        for seed, (by, members) in itertools.product(range(len(probs[FUSION_HEAD])), groups.items()):
            key = {"system": system, "fold": fold, "seed": seed, "by": by[0], "group": by[1], "n": int(members.sum())}
            means = {
                f"weight_{head}": _mean(weights[head][seed, members]) if head in weights else None for head in heads
            }
            rows.append({**key, **means, "disagreement": _mean(disagreement[seed, members])})
    return rows


def expert_weights(probs: Mapping[str, Floats], target: Floats, setting: Setting) -> dict[str, Floats]:
    """u_m of every expert, (seeds, n) by head; none for a system without experts.

    0 for one that predicts nothing (NaN), the others share its part; NaN where none does.
    """
    if "kappa" not in registry.system(setting.system).uses:
        return {}
    experts = [head for head in probs if head != setting.student]
    divergence = [utterance_js(target, probs[head]) for head in experts]  # (experts, seeds, n)
    return dict(zip(experts, distributions.expert_weights(divergence, setting.kappa), strict=True))


def modality_disagreement(probs: Mapping[str, Floats]) -> Floats:
    """JS(p_A‖p_T) (seeds, n); with more modalities the mean over the pairs that an utterance has, NaN without any."""
    return distributions.disagreement([p for head, p in probs.items() if head != FUSION_HEAD])


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
