"""Divergences of distributions over classes that training differentiates: torch, one number in bits per pair.

The same formulas for results, in numpy and without a gradient, stand in `amber2_core.distributions`: the process that
plans and writes never loads torch, and a loss needs log-probabilities and the exact gradient below.

Targets are probabilities, zeros allowed; predictions are log-probabilities, as `logits.log_softmax(-1)` gives them,
because a saturated softmax underflows to 0 while its logarithm stays exact. Classes lie along `dim`, counted from the
end: the last axis by default; a training loop may put them last but one, where sums over few classes run several times
faster. All other axes broadcast. Nothing is normalised here: what does not sum to one gives what the formula gives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LN2 = math.log(2.0)


def entropy(p: Tensor, *, dim: int = -1) -> Tensor:
    """H(p) = −Σ p log₂ p in bits, of probabilities (…, classes) → (…). 0 log 0 = 0."""
    return torch.xlogy(p, p).sum(dim) / -LN2


def cross_entropy(p: Tensor, log_q: Tensor, *, dim: int = -1) -> Tensor:
    """−Σ p log₂ q in bits, p probabilities and q log-probabilities, both (…, classes) → (…); inf where q = 0 < p."""
    return torch.where(p > 0, p * log_q, 0.0).sum(dim) / -LN2


def kl(p: Tensor, log_q: Tensor, *, dim: int = -1) -> Tensor:
    """KL(p‖q) = Σ p log₂ (p / q) in bits, p probabilities and q log-probabilities → (…); inf where q = 0 < p."""
    return cross_entropy(p, log_q, dim=dim) - entropy(p, dim=dim)


def js(p: Tensor, log_q: Tensor, *, dim: int = -1) -> Tensor:
    """JS(p‖q) in bits, so in [0, 1], p target probabilities and q log-probabilities, both (…, classes) → (…).

    The gradient reaches q; p is taken as a constant.
    """
    return js_log(p.detach().log(), log_q, dim=dim)


def js_log(log_p: Tensor, log_q: Tensor, *, dim: int = -1) -> Tensor:
    """JS(p‖q) = ½ KL(p‖m) + ½ KL(q‖m), m = (p + q) / 2, in bits, of two log-distributions (…, classes) → (…).

    Symmetric, and differentiable (once) in both. Value and gradient are finite for every pair of distributions, in
    every precision; −inf stands for probability 0. Rounding may put the value of near-equal distributions a few units
    of the last place of 1 below 0.
    """
    divergence: Tensor = _JensenShannon.apply(log_p, log_q, dim)  # type: ignore[no-untyped-call]
    return divergence


class _JensenShannon(torch.autograd.Function):
    """The summands of JS are its own gradient: ∂JS/∂ log p_c = ½ p_c (log p_c − log m_c), all the rest cancels.

    So forward keeps them, and backward is one product; left to autograd it would be some ten passes and as many
    temporaries, with 0 · ∞ in the way where p underflows.
    """

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor, dim: int) -> Tensor:
        log_p, log_q = (x.clamp_min(torch.finfo(x.dtype).min) for x in (log_p, log_q))  # −inf − (−inf) is no number
        log_m = torch.logaddexp(log_p, log_q).sub_(LN2)
        from_p = (log_p - log_m).mul_(log_p.exp())
        from_q = (log_q - log_m).mul_(log_q.exp())
        ctx.save_for_backward(from_p, from_q)
        ctx.dim, ctx.shapes = dim, (log_p.shape, log_q.shape)
        return (from_p + from_q).sum(dim).mul_(0.5 / LN2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        scale = (gradient * (0.5 / LN2)).unsqueeze(ctx.dim)
        to_p, to_q = (
            (scale * summands).sum_to_size(shape) if needed else None
            for summands, shape, needed in zip(ctx.saved_tensors, ctx.shapes, ctx.needs_input_grad[:2], strict=True)
        )
        return to_p, to_q, None
