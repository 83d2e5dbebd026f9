"""Divergences against scipy, against loops, and against the laws they obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from amber2_core import divergences

SATURATED = torch.tensor([[60.0, -60.0, -60.0, -60.0], [60.0, 60.0, -60.0, -60.0], [-60.0, -60.0, -60.0, 60.0]])


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two stacks of logits (rows, classes), fp64, from mild to saturated."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(2, 9)))
    logits = arrays(np.float64, shape, elements=st.floats(-60, 60))
    return torch.from_numpy(draw(logits)), torch.from_numpy(draw(logits))


@st.composite
def votes(draw: st.DrawFn, rows: int, classes: int) -> Tensor:
    """Vote shares (rows, classes), fp64, with many zeros and many one-hot rows."""
    counts = draw(arrays(np.int64, (rows, classes), elements=st.sampled_from([0, 0, 0, 1, 2, 5])))
    counts[counts.sum(-1) == 0, 0] = 3
    return torch.from_numpy(counts / counts.sum(-1, keepdims=True))


@given(st.data(), logit_pairs())
def test_every_divergence_agrees_with_scipy_and_with_loops(data: st.DataObject, logits: tuple[Tensor, Tensor]) -> None:
    import scipy.stats

    log_q = logits[0].log_softmax(-1)
    p = data.draw(votes(*log_q.shape))
    for row, y in enumerate(p.tolist()):
        q = log_q[row].exp().tolist()
        assert divergences.entropy(p)[row].item() == pytest.approx(scipy.stats.entropy(y, base=2), abs=1e-12)
        assert divergences.entropy(p)[row].item() == pytest.approx(reference.entropy(y), abs=1e-12)
        assert divergences.kl(p, log_q)[row].item() == pytest.approx(reference.kl(y, q), rel=1e-9, abs=1e-12)
        assert divergences.kl(p, log_q)[row].item() == pytest.approx(
            scipy.stats.entropy(y, q, base=2), rel=1e-9, abs=1e-9
        )
        js = divergences.js(p, log_q)[row].item()
        assert js == pytest.approx(reference.js(y, q), abs=1e-12)
        # not scipy's jensenshannon, whose root is no number where equal distributions round to less than 0
        middle = (p[row].numpy() + log_q[row].exp().numpy()) / 2
        halves = scipy.stats.entropy(y, middle, base=2), scipy.stats.entropy(q, middle, base=2)
        assert js == pytest.approx(sum(halves) / 2, abs=1e-12)


def test_the_published_test_vector_comes_out() -> None:
    p, q = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), torch.tensor([0.5, 0.5, 0, 0], dtype=torch.float64)
    assert divergences.js(p, q.log()).item() == pytest.approx(0.311278, abs=5e-7)
    assert divergences.js(q, p.log()).item() == pytest.approx(0.311278, abs=5e-7)
    assert divergences.kl(p, q.log()).item() == 1.0
    assert divergences.kl(q, p.log()).item() == math.inf


@given(logit_pairs())
def test_js_is_symmetric_bounded_and_zero_between_equals(logits: tuple[Tensor, Tensor]) -> None:
    log_p, log_q = (x.log_softmax(-1) for x in logits)
    js = divergences.js_log(log_p, log_q)
    torch.testing.assert_close(js, divergences.js_log(log_q, log_p), rtol=0, atol=1e-15)
    torch.testing.assert_close(js, divergences.js(log_p.exp(), log_q), rtol=0, atol=1e-12)
    assert ((js >= -1e-15) & (js <= 1 + 1e-15)).all()
    torch.testing.assert_close(divergences.js_log(log_p, log_p), torch.zeros_like(js), rtol=0, atol=1e-15)


def test_js_is_one_bit_between_distributions_that_share_no_class() -> None:
    p = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0]])
    q = torch.tensor([[0.0, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(divergences.js(p, q.log()), torch.ones(2))
    torch.testing.assert_close(divergences.js_log(p.log(), q.log()), torch.ones(2))


@given(logit_pairs())
def test_kl_is_soft_cross_entropy_less_entropy_and_never_negative(logits: tuple[Tensor, Tensor]) -> None:
    p, log_q = logits[0].softmax(-1), logits[1].log_softmax(-1)
    kl = divergences.kl(p, log_q)
    assert (kl >= -1e-12).all()
    nats = torch.nn.functional.cross_entropy(logits[1], p, reduction="none")
    torch.testing.assert_close(divergences.cross_entropy(p, log_q) * math.log(2), nats)
    entropy = torch.special.entr(p).sum(-1)
    torch.testing.assert_close(kl * math.log(2), nats - entropy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_stay_finite_for_one_hot_targets_and_saturated_logits(dtype: torch.dtype) -> None:
    y = torch.cat((torch.eye(4), torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]]))).to(dtype)[:, None]
    first, second = SATURATED.to(dtype).requires_grad_(), (-SATURATED).to(dtype).requires_grad_()
    for name in ("js", "kl", "cross_entropy"):
        values = getattr(divergences, name)(y, first.log_softmax(-1))
        (gradient,) = torch.autograd.grad(values.sum(), first)
        assert values.shape == (6, 3)
        assert values.isfinite().all(), name
        assert gradient.isfinite().all(), name
    values = divergences.js_log(first.log_softmax(-1), second.log_softmax(-1)[:, None])
    gradients = torch.autograd.grad(values.sum(), (first, second))
    assert values.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_saturated_wrong_answer_keeps_its_full_gradient_in_single_precision() -> None:
    logits = torch.tensor([60.0, -60.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(divergences.kl(torch.tensor([0.0, 1.0]), logits.log_softmax(-1)), logits)
    torch.testing.assert_close(gradient, torch.tensor([1.0, -1.0]) / math.log(2))


def test_probabilities_of_exactly_zero_on_both_sides_give_a_number_and_no_gradient() -> None:
    log_q = torch.tensor([0.25, 0.75, 0.0]).log().requires_grad_()
    js = divergences.js(torch.tensor([0.5, 0.5, 0.0]), log_q)
    (gradient,) = torch.autograd.grad(js, log_q)
    assert js.item() == pytest.approx(reference.js([0.5, 0.5, 0], [0.25, 0.75, 0]), abs=1e-7)
    assert gradient.isfinite().all()
    assert gradient[2] == 0


def test_gradients_agree_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(3, 2, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    y = torch.randn(2, 5, dtype=torch.float64, generator=generator).softmax(-1)
    one_hot = torch.eye(5, dtype=torch.float64)[:2]

    def between(a: Tensor, b: Tensor) -> Tensor:
        return divergences.js_log(a.log_softmax(-1), b.log_softmax(-1))

    def broadcast(a: Tensor, b: Tensor) -> Tensor:
        return divergences.js_log(a[0].log_softmax(-1), b.log_softmax(-1))

    def across(a: Tensor, b: Tensor) -> Tensor:
        return divergences.js_log(a.log_softmax(-2), b.log_softmax(-2), dim=-2)

    for function in (between, broadcast, across):
        assert torch.autograd.gradcheck(function, (a, b))
    # straight in the log-probabilities too, where nothing makes them sum to one
    assert torch.autograd.gradcheck(divergences.js_log, (a, b))
    for target in (y, one_hot):
        for name in ("js", "kl", "cross_entropy"):
            function = getattr(divergences, name)
            assert torch.autograd.gradcheck(lambda x: function(target, x.log_softmax(-1)), (a,)), name  # noqa: B023


def test_leading_axes_broadcast_and_classes_may_lie_on_another_axis() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 2, 7, 4, generator=generator)
    y = torch.rand(7, 4, generator=generator)
    y = y / y.sum(-1, keepdim=True)
    log_q = logits.log_softmax(-1)
    for name in ("js", "kl", "cross_entropy"):
        function = getattr(divergences, name)
        whole = function(y, log_q)
        assert whole.shape == (3, 2, 7)
        torch.testing.assert_close(whole[1, 0, 5], function(y[5], log_q[1, 0, 5]))
        torch.testing.assert_close(whole, function(y.mT, log_q.mT, dim=-2))
    torch.testing.assert_close(divergences.entropy(y), divergences.entropy(y.mT, dim=-2))


def test_nothing_is_renormalised() -> None:
    p, q = [0.5, 0.1], [0.2, 0.2]
    expected = reference.js(p, q)
    assert divergences.js(torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64).log()).item() == (
        pytest.approx(expected, abs=1e-12)
    )
    assert expected != pytest.approx(reference.js([5 / 6, 1 / 6], [0.5, 0.5]), abs=1e-2)
