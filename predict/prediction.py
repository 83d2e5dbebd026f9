"""What heads say of one utterance: distributions, a label, and how ambiguous raters and modalities make it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from amber2_core.distributions import disagreement, entropy, js, label
from amber2_core.features import canonical_json
from amber2_core.heads import FUSION_HEAD
from amber2_core.kinds import MULTI_LABEL

from .table import scores_of

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from amber2_extract.rows import Row

    from .folder import HeadsFolder

    Probs = Mapping[str, npt.NDArray[np.float64]]  # head → (members, N, C)


@dataclass(frozen=True)
class Prediction:
    """One utterance. Distributions are by emotion, in the order of the heads' label space.

    Multi-label heads give the probability of each emotion's presence, and no measures of distributions.
    """

    # head → emotion → probability; of an ensemble, the mean of its members; only heads that say something
    heads: Mapping[str, Mapping[str, float]]
    # the head whose distribution is meant: the system's student, or the expert of what alone was there
    predicted_by: str
    # the feature sets that the utterance had
    inputs: tuple[str, ...]
    # of the largest probability
    label: str
    # of multi-label heads: the emotions whose probability is above the heads' threshold; None of distributions
    present: tuple[str, ...] | None
    # bits, 0 … log₂ C: the entropy of the predicted distribution of raters' votes, H(p)
    rater_ambiguity: float | None
    # bits, 0 … 1: the mean JS(p_m‖p_n) over pairs of experts; None where fewer than two speak
    modality_ambiguity: float | None
    # the expert of least JS(p_m‖p) from what is predicted; None where fewer than two speak
    trusted_expert: str | None
    # bits: H(mean) − mean H over members of an ensemble, how much they differ; None of a single model
    ensemble_spread: float | None

    @property
    def distribution(self) -> Mapping[str, float]:
        """What is predicted: emotion → share of the raters, or probability of its presence."""
        return self.heads[self.predicted_by]

    @property
    def scores(self) -> list[dict[str, Any]]:
        """``[{"label", "score"}]``, the largest first, as the audio-classification task of transformers has it."""
        return scores_of(self.distribution)

    def record(self) -> dict[str, Any]:
        """As JSON values, in the order of the columns of a table of predictions."""
        return {
            "label": self.label,
            "predicted_by": self.predicted_by,
            "inputs": list(self.inputs),
            "present": None if self.present is None else list(self.present),
            "rater_ambiguity": self.rater_ambiguity,
            "modality_ambiguity": self.modality_ambiguity,
            "trusted_expert": self.trusted_expert,
            "ensemble_spread": self.ensemble_spread,
            "heads": {head: dict(own) for head, own in self.heads.items()},
        }


def predictions_of(heads: HeadsFolder, probs: Probs, inputs: Sequence[Sequence[str]]) -> list[Prediction | str]:
    """What heads say of N utterances, or why they say nothing.

    Where an utterance lacks a feature set, the fusion is asked only if it met such utterances in training; else the
    prediction is that of the expert that is left, of several that of the first.

    Args:
        heads: whose members predict together.
        probs: head → (members, N, C), rows of NaN where a head says nothing.
        inputs: the feature sets that each utterance has, at least one.
    """
    return [_prediction(heads, {head: x[:, row] for head, x in probs.items()}, own) for row, own in enumerate(inputs)]


def _prediction(heads: HeadsFolder, probs: Probs, inputs: Sequence[str]) -> Prediction | str:
    """Of one utterance, head → (members, C)."""
    lacking = [name for name in inputs_of(heads) if name not in inputs]
    asked = (*inputs, FUSION_HEAD) if not lacking or has_met(heads, lacking) else inputs
    said = {head: x[there] for head, x in probs.items() if head in asked and (there := ~np.isnan(x[:, 0])).any()}
    means = {head: x.mean(0) for head, x in said.items()}
    by = heads.head if heads.head in means else next(iter(means), "")
    if not by:
        return f"no head was trained for what there is of it ({' and '.join(inputs)})"
    experts = {head: p for head, p in means.items() if head in inputs}
    distances = {head: float(js(p, means[by])) for head, p in experts.items() if head != by}
    several, presence = len(experts) > 1, heads.kind == MULTI_LABEL
    return Prediction(
        heads={head: dict(zip(heads.emotions, map(float, p), strict=True)) for head, p in means.items()},
        predicted_by=by,
        inputs=tuple(inputs),
        label=heads.emotions[int(label(means[by]))],
        present=tuple(e for e, p in zip(heads.emotions, means[by], strict=True) if p > heads.threshold)
        if presence
        else None,
        rater_ambiguity=None if presence else float(entropy(means[by])),
        modality_ambiguity=float(disagreement(list(experts.values()))) if several else None,
        trusted_expert=min(distances, key=lambda head: distances[head]) if several else None,
        ensemble_spread=None if len(heads.members) == 1 or presence else _spread(said[by]),
    )


def _spread(members: npt.NDArray[np.float64]) -> float:
    """H(mean) − mean H of distributions (members, C), in bits: their generalised Jensen–Shannon divergence."""
    return max(0.0, float(entropy(members.mean(0)) - entropy(members).mean()))


def inputs_of(heads: HeadsFolder) -> tuple[str, ...]:
    """The feature sets that are read: ``audio`` and ``text``, or ``audio:NAME`` where there are several of one."""
    return heads.members[0].model.architecture.modalities


def has_met(heads: HeadsFolder, lacking: Sequence[str]) -> bool:
    """Whether every member met utterances without these feature sets in training."""
    return all(member.origin.get("missing", {}).get(name) for member in heads.members for name in lacking)


def digest_of(heads: HeadsFolder) -> str:
    """sha256 of all that predictions depend on: weights, statistics, and what is told beside them."""
    found = hashlib.sha256()
    for member in heads.members:
        found.update(canonical_json(dict(member.origin)).encode())
        parts = dict(member.model.parameters)
        for name, (mean, sd) in member.standardisation.items():
            parts |= {f"{name}.mean": mean, f"{name}.sd": sd}
        for name in sorted(parts):
            found.update(name.encode() + parts[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def probs_of(heads: HeadsFolder, rows: Mapping[str, Sequence[Row | None]]) -> Probs:
    """What every member says of N utterances, NaN where a head predicts nothing.

    Args:
        heads: any.
        rows: feature set → what its encoder gives, None where an utterance has nothing to encode; some of any.
    """
    import torch

    features, present = {}, {}
    for name, own in rows.items():
        mask = torch.tensor([row is not None for row in own])
        if mask.any():
            features[name] = _read(own, heads.reads[name])
            if not mask.all():
                present[name] = mask
    return {head: x.double().numpy() for head, x in heads.each(features, present).items()}


def _read(rows: Sequence[Row | None], need: str | int) -> Tensor | tuple[Tensor, Tensor]:
    """What is read of the rows of a feature set, zeros where there is none (see `TrainedHeads.probs`)."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    held = next(row for row in rows if row is not None)
    if need == "frames":
        assert held.frames is not None, "a recipe with frames gives them"
        nothing = np.zeros_like(held.frames[:1])
        parts = [nothing if row is None or row.frames is None else row.frames for row in rows]
        lengths = torch.tensor([len(part) for part in parts])
        padded = pad_sequence([torch.from_numpy(np.array(part)) for part in parts], batch_first=True)  # (N, T, D)
        return padded, torch.arange(padded.shape[1]) < lengths[:, None]
    values = [np.zeros_like(held.values) if row is None else row.values for row in rows]
    x = torch.from_numpy(np.stack(values))  # (N, D) or (N, layers, D)
    if need == "layers" or x.ndim == 2:
        return x
    return x[:, need if isinstance(need, int) else -1]
