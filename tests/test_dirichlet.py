"""Dirichlet distributions: the published test vectors, what defines each formula, and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from amber2_core import dirichlet

OUTPUTS, VOTES = [1.0, -0.5, 2.0, 0.3], [2.0, 1.0, 0.0, 0.0]
# evidence function → S and u; α; p
VALUES = {
    "softplus": (
        8.768622,
        0.456172,
        [2.313262, 1.474077, 3.126928, 1.854355],
        [0.263811, 0.168108, 0.356604, 0.211476],
    ),
    "relu": (7.3, 0.547945, [2, 1, 3, 1.3], [0.273973, 0.136986, 0.410959, 0.178082]),
}
# squared error and KL of class 0, NLL*, the marginal, R1, R2, H(p) and its aleatoric part
COSTS = {
    "softplus": [0.816878, 0.663187, 4.448190, 4.402368, 0.568568, 0.846216, 1.347559, 1.193648],
    "relu": [0.831490, 0.679515, 4.577329, 4.542385, 0.611263, 0.889262, 1.299764, 1.121004],
}


def exact(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def alpha_of(evidence: str) -> Tensor:
    return dirichlet.EVIDENCE[evidence](exact(*OUTPUTS)) + 1


@pytest.mark.parametrize("evidence", VALUES)
def test_every_quantity_is_that_of_the_computed_table(evidence: str) -> None:
    alpha, votes, one_hot = alpha_of(evidence), exact(*VOTES), exact(1, 0, 0, 0)
    strength, vacuity, expected, p = VALUES[evidence]
    target, log_p = votes / votes.sum(), (alpha / alpha.sum()).log()
    assert alpha.tolist() == pytest.approx(expected, abs=1e-6)
    assert (alpha.sum().item(), dirichlet.vacuity(alpha).item()) == pytest.approx((strength, vacuity), abs=1e-6)
    assert log_p.exp().tolist() == pytest.approx(p, abs=1e-6)
    found = [
        dirichlet.squared_error(alpha, one_hot),
        dirichlet.misleading(alpha, one_hot),
        dirichlet.votes_nll(alpha, votes),
        dirichlet.marginal_nll(alpha, votes),
        dirichlet.misleading(alpha, target),
        dirichlet.kl(target, log_p),
        dirichlet.total_entropy(alpha),
        dirichlet.aleatoric(alpha),
    ]
    assert [one.item() for one in found] == pytest.approx(COSTS[evidence], abs=1e-6)


def test_single_votes_are_sensoys_log_loss_of_a_label() -> None:
    for evidence, expected in (("softplus", 1.332521), ("relu", 1.294727)):
        assert dirichlet.votes_nll(alpha_of(evidence), exact(1, 0, 0, 0)).item() == pytest.approx(expected, abs=1e-6)


def test_a_prior_networks_loss_is_that_of_the_computed_table() -> None:
    z, votes = exact(*OUTPUTS), exact(*VOTES)
    alpha = z.exp() + dirichlet.DPN_FLOOR
    assert alpha.tolist() == pytest.approx([2.718283, 0.606532, 7.389057, 1.349860], abs=2e-6)
    nll, divergence = dirichlet.prior_network_nll(alpha, votes), dirichlet.kl(votes / 3, z.log_softmax(-1))
    assert nll.item() == pytest.approx(263.322550, abs=1e-5)
    assert divergence.item() == pytest.approx(1.353689, abs=1e-6)
    assert (20 * divergence + nll).item() == pytest.approx(290.396331, abs=1e-5)


def test_right_evidence_for_a_split_vote_is_punished_and_that_for_a_clear_one_is_not() -> None:
    assert dirichlet.misleading(exact(11, 11, 1, 1), exact(0.5, 0.5, 0, 0)).item() == pytest.approx(2.217417, abs=1e-6)
    assert dirichlet.misleading(exact(21, 1, 1, 1), exact(1, 0, 0, 0)).item() == pytest.approx(0, abs=1e-12)


def test_the_marginal_knows_how_much_evidence_there_is_and_single_votes_do_not() -> None:
    alpha, votes = exact(2, 1, 3, 1.3), exact(*VOTES)
    marginals = [dirichlet.marginal_nll(scale * alpha, votes).item() for scale in (1, 10, 100)]
    assert marginals == pytest.approx([4.542385, 4.569173, 4.576446], abs=1e-6)
    for scale in (1, 10, 100):
        assert dirichlet.votes_nll(scale * alpha, votes).item() == pytest.approx(4.577329, abs=1e-6)


def test_the_marginal_of_all_sequences_of_votes_sums_to_one() -> None:
    alpha = alpha_of("softplus")
    sequences = torch.tensor(list(itertools.product(range(4), repeat=3)))
    votes = torch.nn.functional.one_hot(sequences, 4).sum(1).double()
    assert torch.exp(-dirichlet.marginal_nll(alpha, votes)).sum().item() == pytest.approx(1, abs=1e-12)


def test_formulas_are_what_loops_and_scipy_give_for_any_distribution() -> None:
    from scipy.stats import dirichlet as scipy_dirichlet
    from scipy.stats import dirichlet_multinomial

    random = np.random.default_rng(0)
    for alpha, votes in zip(random.gamma(2, 2, (20, 5)) + 0.2, random.multinomial(6, [0.2] * 5, 20), strict=True):
        a, n = torch.from_numpy(alpha), torch.from_numpy(votes).double()
        y = n / n.sum()
        ways = math.log(math.factorial(6)) - sum(math.log(math.factorial(k)) for k in votes)
        marginal = dirichlet.marginal_nll(a, n).item()
        assert marginal == pytest.approx(ways - dirichlet_multinomial.logpmf(votes, alpha, np.array(6)))
        assert marginal == pytest.approx(reference.votes_in_order(alpha, votes))
        assert dirichlet.votes_nll(a, n).item() == pytest.approx(reference.votes_alone(alpha, votes))
        assert dirichlet.squared_error(a, y).item() == pytest.approx(reference.squared_error(alpha, y.tolist()))
        assert dirichlet.misleading(a, y).item() == pytest.approx(reference.misleading_evidence(alpha, y.tolist()))
        near = np.full((5, 5), 1e-6) + np.eye(5) * (1 - 5e-6)
        densities = [scipy_dirichlet.logpdf(one, alpha) for one in near]
        assert dirichlet.prior_network_nll(a, n).item() == pytest.approx(-float(votes @ densities))
        draws = torch.from_numpy(random.dirichlet(alpha, 20_000))
        entropies = -torch.xlogy(draws, draws).sum(-1)
        assert dirichlet.aleatoric(a).item() == pytest.approx(entropies.mean().item(), abs=0.02)
        assert dirichlet.total_entropy(a).item() > dirichlet.aleatoric(a).item() > 0


@pytest.mark.parametrize("evidence", dirichlet.EVIDENCE)
def test_evidence_is_never_negative_and_every_loss_has_the_slope_of_finite_differences(evidence: str) -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    votes = torch.tensor([[2.0, 1, 0, 0], [0, 0, 3, 0], [0.5, 0.5, 1, 1]], dtype=torch.float64)
    y = votes / votes.sum(-1, keepdim=True)

    def costs(outputs: Tensor) -> Tensor:
        alpha = dirichlet.EVIDENCE[evidence](outputs) + 1
        made = (dirichlet.marginal_nll, dirichlet.votes_nll, dirichlet.prior_network_nll)
        of_shares = (dirichlet.squared_error, dirichlet.misleading)
        return torch.stack([*(f(alpha, votes) for f in made), *(f(alpha, y) for f in of_shares)])

    assert (dirichlet.EVIDENCE[evidence](exact(-1e4, 0, 1e4)) >= 0).all()
    assert torch.isfinite(dirichlet.EVIDENCE[evidence](exact(-1e4, 0, 1e4).float())).all()
    assert torch.autograd.gradcheck(costs, (z,))
