"""Training losses of logits against target distributions, one number per run.

Logits are (…, batch, classes) with any leading run axes, targets (batch, classes) or (…, batch, classes); a loss is the
mean over the batch axis alone, so runs stacked along leading axes never meet, and their losses are summed for one step.
Every λ and κ is a number, or a tensor with one value per run, of the shape of the run axes.
Symbols: y target, s student, p_m the other heads (experts), JS in bits (`amber2_core.divergences`).

An utterance that lacks a modality has no such head: `present`, booleans (heads, …, batch), says which it has. One rule
for every loss: an utterance's loss is made of the heads that it has. A term of a head that is not there is zero, expert
weights are shared among the experts that are there, and without the student there is neither RAI nor MAI. The mean is
over the whole batch, as ever. Logits of a head that is not there are never looked at, and get no gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from amber2_core import divergences
from amber2_core.distributions import SHARE_TOLERANCE
from amber2_core.errors import SettingError, bad_choice
from amber2_core.fusion import without_score

# of target probabilities and predicted log-probabilities along `dim`, as in `amber2_core.divergences`
Distance = Callable[..., Tensor]
WeightGradient = Literal["detach", "flow"]
Reduction = Literal["mean", "none"]
WEIGHT_GRADIENTS: tuple[WeightGradient, ...] = get_args(WeightGradient)

_log = logging.getLogger(__name__)


def rai_loss(
    logits: Tensor, target: Tensor, *, distance: Distance = divergences.js, reduction: Reduction = "mean"
) -> Tensor:
    """Rater-ambiguity loss JS(y‖s) (Eq. 3) of the student's logits (…, batch, classes) → (…).

    Any other `distance` is for ablations, as KL(y‖s), or the cross-entropy −Σ y log₂ s. `reduction="none"` keeps the
    batch axis.
    """
    return _reduced(distance(_classes_first(target), _log_probs(logits), dim=-2), reduction)


def expert_weights(divergence: Tensor, kappa: float | Tensor, present: Tensor | None = None) -> Tensor:
    """u_m = softmax_m(−κ D_m) (Eq. 5), per utterance: D (experts, …, batch), κ a number or one per run (…) → as D.

    An expert that is not there has weight 0; weights of an utterance without any expert mean nothing.
    """
    scores = -_per_run(kappa) * divergence
    return torch.softmax(scores if present is None else without_score(scores, ~present), dim=0)


def mai_loss(
    logits: Tensor,
    expert_logits: Tensor,
    target: Tensor,
    *,
    kappa: float | Tensor = 4.0,
    weight_gradient: WeightGradient = "detach",
    reduction: Reduction = "mean",
) -> Tensor:
    """Modality-ambiguity loss Σ_m u_m JS(s‖p_m) (Eq. 4) → (…), one value per run.

    `logits` are the student's (…, batch, classes), `expert_logits` (experts, …, batch, classes).
    u_m = softmax_m(−κ JS(p_m‖y)) is a constant ("detach") or sends its gradient into the experts ("flow").
    """
    log_p = _log_probs(expert_logits)  # (experts, …, classes, batch)
    divergence = divergences.js(_classes_first(target), log_p, dim=-2)  # (experts, …, batch)
    return _reduced(_mai(_log_probs(logits), log_p, divergence, kappa, weight_gradient), reduction)


def amber_loss(
    logits: Mapping[str, Tensor] | Tensor,
    target: Tensor,
    *,
    student: str | int = "fusion",
    lambda_rai: float | Tensor = 1.0,
    lambda_mai: float | Tensor = 0.5,
    lambda_expert: float | Tensor = 0.0,
    kappa: float | Tensor = 4.0,
    distance: Distance = divergences.js,
    weight_gradient: WeightGradient = "detach",
    stop_expert_gradient: bool = False,
    present: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of AmbER², λ_RAI·RAI + λ_MAI·MAI + λ_E·Σ_m JS(y‖p_m) (Eq. 6 where λ_E = 0) → (…), one value per run.

    `logits` are every head's, a mapping name → (…, batch, classes) or one tensor (heads, …, batch, classes). `student`
    names one head of the mapping, or is its index in the tensor; all other heads, two or more, are the experts.
    `distance` replaces JS in RAI alone. `stop_expert_gradient` makes the p_m of MAI constants, so that experts learn
    from λ_E alone: `check_stop_gradient` refuses it without λ_E, here as well unless λ_E lies on an accelerator, where
    looking would wait for the device at every step. SettingError for that, for a choice or a student that does not
    exist, and for fewer than three heads.

    `present` (heads, …, batch), in the order of the heads, where some utterances lack some: see the module's rule.
    """
    if stop_expert_gradient and not (isinstance(lambda_expert, Tensor) and lambda_expert.device.type != "cpu"):
        check_stop_gradient(lambda_expert, weight_gradient)
    stacked, index = _stacked(logits, student)
    if present is not None:
        stacked = stacked.masked_fill(~present.unsqueeze(-1), 0.0)
    y = _classes_first(target)  # (…, classes, batch)
    log_p = _log_probs(stacked)  # (heads, …, classes, batch)
    divergence = _there(divergences.js(y, log_p, dim=-2), present)  # (heads, …, batch)
    log_experts = _without(log_p, index)  # (experts, …, classes, batch)
    expert_divergence = _without(divergence, index)  # (experts, …, batch)
    experts = None if present is None else _without(present, index)  # (experts, …, batch)

    rai = divergence[index]  # (…, batch)
    if distance is not divergences.js:
        rai = _there(distance(y, log_p[index], dim=-2), None if present is None else present[index])
    if stop_expert_gradient:
        log_experts = log_experts.detach()
    mai = _mai(log_p[index], log_experts, expert_divergence, kappa, weight_gradient, experts)  # (…, batch)
    mai = _there(mai, None if present is None else present[index])
    supervision = expert_divergence.sum(0)  # (…, batch)
    loss = _per_run(lambda_rai) * rai + _per_run(lambda_mai) * mai + _per_run(lambda_expert) * supervision
    return _reduced(loss, reduction)


def check_stop_gradient(lambda_expert: float | Tensor, weight_gradient: WeightGradient = "detach") -> None:
    """Refuse a stop-gradient on the experts that leaves them without any gradient, or that "flow" contradicts.

    SettingError unless every λ_E > 0 and the weights are detached.
    """
    if not bool((torch.as_tensor(lambda_expert) > 0).all()):
        raise SettingError(
            "stop_expert_gradient with lambda_expert 0: the experts would never train; "
            "give lambda_expert a value above 0 or leave the gradient alone"
        )
    if weight_gradient == "flow":
        raise SettingError(
            "stop_expert_gradient with weight_gradient 'flow': the weights' gradient runs into the experts; "
            "use weight_gradient 'detach'"
        )


def class_balanced_weights(target: Tensor, emotions: Sequence[str] = ()) -> Tensor:
    """Weights of the class-balanced loss from the training targets (N, classes) → (classes,), of mean 1.

    n_c = #{i : y_ic > 1/C} to the rounding of single precision, β = (N−1)/N, w_c = (1−β)/(1−β^{n_c}), then w ← C·w/Σw
    (Cui et al. 2019 with the settings of EMO-SUPERB, Wu et al. 2024). A class with n_c = 0 is treated as n_c = 1, and
    logged as a warning, by its name among the `emotions` (classes), or else by its number.
    """
    total, classes = target.shape
    counts = (target > 1.0 / classes + SHARE_TOLERANCE).sum(0)
    if absent := (counts == 0).nonzero().flatten().tolist():
        names = ", ".join(emotions[c] if emotions else str(c) for c in absent)
        _log.warning(
            "no training target has more than 1/%d of %s: weighted as if one had, and hardly learnt", classes, names
        )
    beta = torch.tensor((total - 1) / total, dtype=torch.float64)
    weights = (1 - beta) / (1 - beta ** counts.clamp_min(1).to("cpu", torch.float64))
    return (classes * weights / weights.sum()).to(target)


def one_hot_labels(target: Tensor) -> Tensor:
    """One-hot of the label of targets (…, classes) → as target: the largest share, the first of equals."""
    largest = target >= target.amax(-1, keepdim=True) - SHARE_TOLERANCE
    return torch.nn.functional.one_hot(largest.int().argmax(-1), target.shape[-1]).to(target)


def smooth_labels(target: Tensor, epsilon: float) -> Tensor:
    """y' = (1−ε) y + ε (1−y)/(C−1), (…, classes) → as y. SettingError unless 0 ≤ ε < 1."""
    if not 0 <= epsilon < 1:
        raise SettingError(f"Bad label smoothing {epsilon}, expected a number in [0, 1)")
    return (1 - epsilon) * target + epsilon * (1 - target) / (target.shape[-1] - 1)


def soft_cross_entropy(
    logits: Tensor, target: Tensor, *, above_entropy: bool = False, present: Tensor | None = None
) -> Tensor:
    """Mean of −Σ_c y_c ln p_c over the batch, in nats, logits (…, batch, classes) → (…).

    Of one-hot targets this is the cross-entropy of labels. `above_entropy` leaves out what no prediction can change,
    H(y): then it is KL(y‖p), of the same gradient. `present` as in `class_balanced_cross_entropy`.
    """
    if present is not None:
        logits = logits.masked_fill(~present.unsqueeze(-1), 0.0)
    y = _classes_first(target)  # (…, classes, batch)
    least = torch.xlogy(y, y).sum(-2) if above_entropy else 0.0
    return _there(least - (y * _log_probs(logits)).sum(-2), present).mean(-1)


def class_balanced_cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor, *, present: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Mean of −(Σ_c w_c y_c)·Σ_c y_c ln p_c over the batch, logits (…, batch, classes), weights (classes,) → (…).

    In nats, as everywhere in the literature. One head's loss: a model's is the sum over its heads, which may be stacked
    along a leading axis like runs. Weights with leading axes (…, classes) give every run its own. `present` is
    (…, batch) like the logits: what a head has not got adds nothing to its sum over the batch.
    """
    if present is not None:
        logits = logits.masked_fill(~present.unsqueeze(-1), 0.0)
    y = _classes_first(target)  # (…, classes, batch)
    utterance_weight = (weights.unsqueeze(-1) * y).sum(-2)  # (…, batch)
    return _reduced(_there(-utterance_weight * (y * _log_probs(logits)).sum(-2), present), reduction)


def _mai(
    log_s: Tensor,
    log_experts: Tensor,
    divergence: Tensor,
    kappa: float | Tensor,
    weight_gradient: WeightGradient,
    present: Tensor | None = None,
) -> Tensor:
    """Eq. 4 before the mean over the batch: (…, classes, batch), (experts, …, classes, batch), (experts, …, batch)."""
    if weight_gradient not in WEIGHT_GRADIENTS:
        raise SettingError(bad_choice("weight gradient", weight_gradient, WEIGHT_GRADIENTS))
    if weight_gradient == "detach":
        divergence = divergence.detach()
    disagreement = _there(divergences.js_log(log_s, log_experts, dim=-2), present)  # (experts, …, batch)
    return (expert_weights(divergence, kappa, present) * disagreement).sum(0)


def _there(terms: Tensor, present: Tensor | None) -> Tensor:
    """Terms (…, batch), zero where the head is not there."""
    return terms if present is None else terms.masked_fill(~present, 0.0)


def _stacked(logits: Mapping[str, Tensor] | Tensor, student: str | int) -> tuple[Tensor, int]:
    """All heads' logits along a first axis, and the student's place on it."""
    if isinstance(logits, Tensor):
        if not isinstance(student, int) or not 0 <= student < len(logits):
            raise SettingError(bad_choice("student", student, range(len(logits))))
        stacked, index = logits, student
    else:
        if student not in logits:
            raise SettingError(bad_choice("student", student, logits))
        stacked, index = torch.stack(list(logits.values())), list(logits).index(str(student))
    if len(stacked) < 3:
        raise SettingError(f"AmbER² weighs experts against each other and needs 3 heads or more, got {len(stacked)}")
    return stacked, index


def _without(x: Tensor, index: int) -> Tensor:
    """x without one entry of its first axis; slices, because indexing by a list is slow and waits for the device."""
    return x[:-1] if index == len(x) - 1 else torch.cat((x[:index], x[index + 1 :]))


def _log_probs(logits: Tensor) -> Tensor:
    """(…, batch, classes) → log-probabilities (…, classes, batch), at least in single precision.

    Over four or eight classes a softmax along the last axis takes several times as long as one across rows.
    """
    return logits.mT.log_softmax(-2, dtype=torch.promote_types(logits.dtype, torch.float32))


def _classes_first(target: Tensor) -> Tensor:
    return target.mT.contiguous()


def _per_run(value: float | Tensor) -> float | Tensor:
    """One value per run (…), or a number, so that it multiplies (…, batch)."""
    return value.unsqueeze(-1) if isinstance(value, Tensor) else value


def _reduced(loss: Tensor, reduction: Reduction) -> Tensor:
    """Mean over the batch axis, the last; "none" keeps it."""
    return loss if reduction == "none" else loss.mean(-1)
