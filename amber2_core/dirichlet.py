"""Dirichlet distributions over classes: what raters' votes cost under them, and how sure they are.

torch, in nats, one number per utterance: α, votes n, soft labels y and predictions p are (…, C) → (…). α > 0, S = Σ α,
M = Σ n; votes may be fractional. Formulas are those of Sensoy et al. 2018 (arXiv 1806.01768), of EDL* (Wu et al. 2024,
arXiv 2402.12862), and of the code of Wu et al. 2022 (arXiv 2203.04443, W-Wu/ERC-SLT22) for prior networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

# exp(z) of the evidence is that of z within ±10, as in the usual code of evidential heads: it would overflow
LARGEST_EXPONENT = 10.0
# what a vote of a prior network leaves to each of the other classes, and the least α
DPN_FLOOR = 1e-6


def _exp(outputs: Tensor) -> Tensor:
    return outputs.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp()


# outputs z → evidence e ≥ 0; α = e + 1
EVIDENCE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softplus": functional.softplus,
    "relu": torch.relu,
    "exp": _exp,
}


def marginal_nll(alpha: Tensor, votes: Tensor) -> Tensor:
    """−ln of the Dirichlet–multinomial probability of the votes in an order: it knows S from how votes spread.

    −[lnΓ(S) − lnΓ(S+M) + Σ_c (lnΓ(α_c+n_c) − lnΓ(α_c))]; what ∫ Π p_c^{n_c} Dir(p; α) dp gives.
    """
    total, count = alpha.sum(-1), votes.sum(-1)
    classes = torch.lgamma(alpha + votes) - torch.lgamma(alpha)
    return torch.lgamma(total + count) - torch.lgamma(total) - classes.sum(-1)


def votes_nll(alpha: Tensor, votes: Tensor) -> Tensor:
    """NLL* = Σ_c n_c (ln S − ln α_c), the sum over votes as independent draws (EDL*, Eqs. 10–13).

    It depends on α/S alone: nothing in it ties S.
    """
    return (votes * (alpha.sum(-1, keepdim=True).log() - alpha.log())).sum(-1)


def squared_error(alpha: Tensor, target: Tensor) -> Tensor:
    """E‖y − p‖² = Σ_c (y_c − p_c)² + α_c (S − α_c) / (S² (S + 1)), p = α/S (Sensoy et al. 2018, Eq. 5)."""
    total = alpha.sum(-1, keepdim=True)
    variance = alpha * (total - alpha) / (total.square() * (total + 1))
    return ((target - alpha / total).square() + variance).sum(-1)


def misleading(alpha: Tensor, target: Tensor) -> Tensor:
    """KL(Dir(α̃) ‖ Dir(1)), α̃ = y + (1 − y) α: what evidence costs for what nobody voted for (R1 of EDL*).

    Of a split vote it also counts evidence that is right: y = (½, ½, 0, 0), α = (11, 11, 1, 1) costs 2.217.
    """
    kept = target + (1 - target) * alpha
    total = kept.sum(-1, keepdim=True)
    slopes = (kept - 1) * (torch.digamma(kept) - torch.digamma(total))
    normaliser = torch.lgamma(total.squeeze(-1)) - torch.lgamma(kept).sum(-1)
    return normaliser - math.lgamma(alpha.shape[-1]) + slopes.sum(-1)


def kl(target: Tensor, log_probs: Tensor) -> Tensor:
    """KL(y ‖ p) in nats, of log-probabilities (R2 of EDL*)."""
    return (torch.xlogy(target, target) - target * log_probs).sum(-1)


def prior_network_nll(alpha: Tensor, votes: Tensor) -> Tensor:
    """−Σ_c n_c ln Dir(m_c; α), m_c the one-hot vector of class c with 1e-6 for each other class (Wu et al. 2022)."""
    classes = alpha.shape[-1]
    hit, miss = math.log1p(-(classes - 1) * DPN_FLOOR), math.log(DPN_FLOOR)
    total, count = alpha.sum(-1), votes.sum(-1)
    constant = torch.lgamma(total) - torch.lgamma(alpha).sum(-1) + miss * (total - classes)
    return -(count * constant + (hit - miss) * (votes * (alpha - 1)).sum(-1))


def vacuity(alpha: Tensor) -> Tensor:
    """u = C/S, in (0, 1] where α ≥ 1: how little evidence there is."""
    return alpha.shape[-1] / alpha.sum(-1)


def total_entropy(alpha: Tensor) -> Tensor:
    """H(p) of p = α/S: all uncertainty about the next vote."""
    p = alpha / alpha.sum(-1, keepdim=True)
    return -torch.xlogy(p, p).sum(-1)


def aleatoric(alpha: Tensor) -> Tensor:
    """E H = −Σ_c p_c (ψ(α_c+1) − ψ(S+1)): how raters differ whatever is known; what is left of H(p) is epistemic."""
    total = alpha.sum(-1, keepdim=True)
    return -(alpha / total * (torch.digamma(alpha + 1) - torch.digamma(total + 1))).sum(-1)
