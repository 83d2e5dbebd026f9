"""Losses against loops over single utterances, against finite differences, and against the laws they obey."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from amber2_core import divergences, losses
from amber2_core.errors import SettingError
from amber2_train.systems import amber2

HEADS = ("audio", "text", "fusion")
DISTANCES = [getattr(divergences, name) for name in amber2.DISTANCES.values()]
SETTINGS: dict[str, Any] = {"lambda_rai": 0.9, "lambda_mai": 0.6, "lambda_expert": 0.3, "kappa": 5.0}


def targets(rows: int, classes: int, seed: int) -> Tensor:
    """Vote shares (rows, classes), fp64, many of them one-hot."""
    counts = np.random.default_rng(seed).choice([0, 0, 1, 3], size=(rows, classes))
    counts[counts.sum(-1) == 0, -1] = 2
    return torch.from_numpy(counts / counts.sum(-1, keepdims=True))


def random_logits(*shape: int, seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_head(stacked: Tensor) -> dict[str, Tensor]:
    return dict(zip(HEADS, stacked, strict=True))


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(3, 5), st.integers(0, 4), st.floats(0, 20))
def test_amber_loss_is_the_mean_of_what_the_loops_give(
    seed: int, classes: int, heads: int, student: int, kappa: float
) -> None:
    y, logits = targets(5, classes, seed), random_logits(heads, 5, classes, seed=seed)
    settings = {**SETTINGS, "kappa": kappa}
    expected = reference.amber(y.tolist(), logits.softmax(-1).tolist(), student=student % heads, **settings)
    actual = losses.amber_loss(logits, y, student=student % heads, **settings)
    assert actual.shape == ()
    assert actual.item() == pytest.approx(expected, abs=1e-12)


def test_the_parts_of_the_loss_are_what_the_loops_give() -> None:
    y, logits = targets(6, 4, 0), random_logits(3, 6, 4, seed=1)
    probs = logits.softmax(-1).tolist()
    rai = [reference.js(a, b) for a, b in zip(y.tolist(), probs[2], strict=True)]
    mai = [reference.mai(y[i].tolist(), probs[2][i], [probs[0][i], probs[1][i]], 3.0) for i in range(6)]
    torch.testing.assert_close(losses.rai_loss(logits[2], y, reduction="none").tolist(), rai)
    torch.testing.assert_close(losses.mai_loss(logits[2], logits[:2], y, kappa=3.0, reduction="none").tolist(), mai)
    assert losses.rai_loss(logits[2], y).item() == pytest.approx(np.mean(rai))
    assert losses.mai_loss(logits[2], logits[:2], y, kappa=3.0).item() == pytest.approx(np.mean(mai))
    each = losses.amber_loss(logits, y, student=2, lambda_rai=2.0, lambda_mai=0.5, kappa=3.0, reduction="none")
    torch.testing.assert_close(each.tolist(), [2 * r + 0.5 * m for r, m in zip(rai, mai, strict=True)])


def test_heads_come_by_name_or_stacked_and_any_of_them_may_be_the_student() -> None:
    y, logits = targets(6, 4, 2), random_logits(3, 6, 4, seed=3)
    values = []
    for index, name in enumerate(HEADS):
        values.append(losses.amber_loss(by_head(logits), y, student=name, **SETTINGS).item())
        assert values[-1] == losses.amber_loss(logits, y, student=index, **SETTINGS).item()
    assert len(set(values)) == 3
    assert losses.amber_loss(by_head(logits), y, **SETTINGS).item() == values[2]
    reordered = {name: by_head(logits)[name] for name in ("fusion", "text", "audio")}
    assert losses.amber_loss(reordered, y, **SETTINGS).item() == pytest.approx(values[2], abs=1e-15)


def test_stacked_runs_with_their_own_settings_give_what_each_gives_alone() -> None:
    runs = (2, 3)
    y, logits = targets(5, 4, 4), random_logits(3, *runs, 5, 4, seed=5).requires_grad_()
    generator = torch.Generator().manual_seed(6)
    per_run: dict[str, Any] = {
        name: 4 * torch.rand(runs, dtype=torch.float64, generator=generator) for name in SETTINGS
    }
    together = losses.amber_loss(by_head(logits), y, weight_gradient="flow", **per_run)
    assert together.shape == runs
    (gradient,) = torch.autograd.grad(together.sum(), logits)
    for run in np.ndindex(runs):
        mine = logits.detach()[(slice(None), *run)].requires_grad_()
        settings: dict[str, Any] = {name: float(value[run]) for name, value in per_run.items()}
        alone = losses.amber_loss(by_head(mine), y, weight_gradient="flow", **settings)
        assert alone.item() == pytest.approx(together[run].item(), abs=1e-14)
        torch.testing.assert_close(
            gradient[(slice(None), *run)], torch.autograd.grad(alone, mine)[0], rtol=0, atol=1e-14
        )


def test_runs_may_have_targets_of_their_own() -> None:
    y = torch.stack([targets(5, 4, seed) for seed in (7, 8)])
    logits = random_logits(3, 2, 5, 4, seed=9)
    weights = torch.stack([losses.class_balanced_weights(each) for each in y])
    amber = losses.amber_loss(logits, y, student=2)
    balanced = losses.class_balanced_cross_entropy(logits, y, weights)  # (heads, runs)
    for run in range(2):
        assert amber[run].item() == pytest.approx(losses.amber_loss(logits[:, run], y[run], student=2).item())
        for head in range(3):
            alone = losses.class_balanced_cross_entropy(logits[head, run], y[run], weights[run])
            assert balanced[head, run].item() == pytest.approx(alone.item())


# --- the experts' weights ---


@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(0, 50))
def test_expert_weights_sum_to_one_and_follow_the_loops(seed: int, experts: int, kappa: float) -> None:
    y, logits = targets(4, 5, seed), random_logits(experts, 4, 5, seed=seed)
    divergence = torch.stack([losses.rai_loss(expert, y, reduction="none") for expert in logits])
    weights = losses.expert_weights(divergence, kappa)
    torch.testing.assert_close(weights.sum(0), torch.ones(4, dtype=torch.float64))
    for i in range(4):
        expected = reference.expert_weights(y[i].tolist(), logits[:, i].softmax(-1).tolist(), kappa)
        torch.testing.assert_close(weights[:, i].tolist(), expected)


def test_kappa_zero_weighs_all_experts_alike_and_a_large_kappa_picks_the_best() -> None:
    divergence = torch.tensor([[0.2, 0.9], [0.3, 0.1], [0.4, 0.2]])
    torch.testing.assert_close(losses.expert_weights(divergence, 0.0), torch.full((3, 2), 1 / 3))
    torch.testing.assert_close(losses.expert_weights(divergence, 1e6), torch.tensor([[1.0, 0], [0, 1], [0, 0]]))


def test_kappa_may_differ_by_run() -> None:
    divergence = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    kappa = torch.tensor([0.0, 2.0, 8.0])
    weights = losses.expert_weights(divergence, kappa)
    for run in range(3):
        torch.testing.assert_close(weights[:, run], losses.expert_weights(divergence[:, run], float(kappa[run])))


# --- gradients ---


@pytest.mark.parametrize("student", [0, 1, 2])
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_agree_with_finite_differences(student: int, distance: losses.Distance) -> None:
    """With "flow": detached weights are no function that finite differences could see."""
    y, logits = targets(4, 4, 10), random_logits(3, 2, 4, 4, seed=11).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return losses.amber_loss(x, y, student=student, distance=distance, weight_gradient="flow", **SETTINGS)

    assert torch.autograd.gradcheck(loss, (logits,))
    weights = losses.class_balanced_weights(y)
    assert torch.autograd.gradcheck(lambda x: losses.class_balanced_cross_entropy(x, y, weights), (logits,))


def test_detached_weights_are_constants_to_the_gradient() -> None:
    y, logits = targets(4, 4, 12), random_logits(3, 4, 4, seed=13).requires_grad_()
    with torch.no_grad():
        divergence = torch.stack([losses.rai_loss(expert, y, reduction="none") for expert in logits[:2]])
        weights = losses.expert_weights(divergence, 6.0)  # (experts, batch)

    def with_constant_weights(x: Tensor) -> Tensor:
        each = [losses.rai_loss(x[2], expert.softmax(-1), reduction="none") for expert in x[:2].detach()]
        return (weights * torch.stack(each)).sum(0).mean()

    (actual,) = torch.autograd.grad(losses.mai_loss(logits[2], logits[:2], y, kappa=6.0), logits)
    (expected,) = torch.autograd.grad(with_constant_weights(logits), logits)
    torch.testing.assert_close(actual[2], expected[2])
    # and what reaches an expert has only the part through JS(s‖p_m)
    for m in range(2):
        expert = logits.detach()[m].requires_grad_()
        pull = (weights[m] * losses.rai_loss(expert, logits[2].detach().softmax(-1), reduction="none")).mean()
        torch.testing.assert_close(actual[m], torch.autograd.grad(pull, expert)[0])


def test_flowing_weights_add_the_term_that_pushes_a_dissenting_expert_from_the_target() -> None:
    """∂L/∂D_m = −κ u_m (J_m − Σ u J), on top of the detached gradient."""
    y, logits, kappa = targets(1, 4, 14), random_logits(3, 1, 4, seed=15), 5.0
    gradients = {}
    for weight_gradient in losses.WEIGHT_GRADIENTS:
        x = logits.clone().requires_grad_()
        loss = losses.mai_loss(x[2], x[:2], y, kappa=kappa, weight_gradient=weight_gradient)
        (gradients[weight_gradient],) = torch.autograd.grad(loss, x)
    probs = logits[:, 0].softmax(-1).tolist()
    u = reference.expert_weights(y[0].tolist(), probs[:2], kappa)
    j = [reference.js(probs[2], probs[m]) for m in range(2)]
    for m in range(2):
        expert = logits[m].clone().requires_grad_()
        (to_logits,) = torch.autograd.grad(losses.rai_loss(expert, y), expert)  # ∂D_m / ∂ logits
        by_divergence = -kappa * u[m] * (j[m] - sum(a * b for a, b in zip(u, j, strict=True)))
        torch.testing.assert_close(gradients["flow"][m] - gradients["detach"][m], by_divergence * to_logits)
        assert abs(by_divergence) > 1e-3
    torch.testing.assert_close(gradients["flow"][2], gradients["detach"][2])


def test_without_supervision_of_their_own_experts_learn_from_the_student_alone() -> None:
    y, logits = targets(4, 4, 16), random_logits(3, 4, 4, seed=17).requires_grad_()
    (mine,) = torch.autograd.grad(losses.amber_loss(logits, y, student=2, lambda_mai=0.0), logits)
    assert not mine[:2].any()
    assert mine[2].any()
    (supervised,) = torch.autograd.grad(
        losses.amber_loss(logits, y, student=2, lambda_mai=0.0, lambda_expert=1.0), logits
    )
    for m in range(2):
        expert = logits.detach()[m].requires_grad_()
        torch.testing.assert_close(supervised[m], torch.autograd.grad(losses.rai_loss(expert, y), expert)[0])
    torch.testing.assert_close(supervised[2], mine[2])


def test_a_stop_gradient_leaves_experts_what_their_own_supervision_gives_them() -> None:
    y, logits = targets(4, 4, 18), random_logits(3, 4, 4, seed=19).requires_grad_()
    stopped, free = (
        torch.autograd.grad(
            losses.amber_loss(logits, y, student=2, lambda_expert=0.7, stop_expert_gradient=stop), logits
        )[0]
        for stop in (True, False)
    )
    for m in range(2):
        expert = logits.detach()[m].requires_grad_()
        torch.testing.assert_close(stopped[m], 0.7 * torch.autograd.grad(losses.rai_loss(expert, y), expert)[0])
    torch.testing.assert_close(stopped[2], free[2])
    assert not torch.allclose(stopped[:2], free[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_gradient", losses.WEIGHT_GRADIENTS)
def test_values_and_gradients_stay_finite_for_one_hot_targets_and_saturated_logits(
    dtype: torch.dtype, weight_gradient: losses.WeightGradient
) -> None:
    y = torch.eye(4, dtype=dtype)
    logits = torch.full((3, 4, 4), -60.0, dtype=dtype)
    logits[0].fill_diagonal_(60.0)  # right, wrong, and undecided
    logits[1, :, 0] = 60.0
    logits[2] = 0.0
    logits.requires_grad_()
    for student in range(3):
        for distance in DISTANCES:
            loss = losses.amber_loss(
                logits, y, student=student, distance=distance, weight_gradient=weight_gradient, **SETTINGS
            )
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite()
            assert gradient.isfinite().all()
    loss = losses.class_balanced_cross_entropy(logits, y, losses.class_balanced_weights(y)).sum()
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_single_precision_loses_nothing_and_half_precision_only_what_its_logits_lost() -> None:
    y, logits = targets(64, 8, 20), random_logits(3, 64, 8, seed=21)
    for distance in DISTANCES:
        double = losses.amber_loss(logits, y, student=2, distance=distance)
        single = losses.amber_loss(logits.float(), y.float(), student=2, distance=distance)
        assert single.dtype == torch.float32
        assert single.item() == pytest.approx(double.item(), abs=1e-6)
    half = logits.bfloat16()
    torch.testing.assert_close(
        losses.amber_loss(half, y.float(), student=2), losses.amber_loss(half.float(), y.float(), student=2)
    )


# --- utterances that lack a head ---

# of audio, text and a third head; the last utterance has the third alone, one before it no third
PRESENT = torch.tensor([[1, 0, 1, 1, 0, 1, 0], [1, 1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 1]]).bool()


def slow_loss(y: Tensor, logits: Tensor, present: Tensor, student: int, **settings: Any) -> Tensor:
    """By tests/reference.py, each utterance with only the heads that it has."""
    total = torch.zeros((), dtype=y.dtype)
    for i in range(len(y)):
        own = {str(m): logits[m, i] for m in range(len(logits)) if present[m, i]}
        total = total + reference.amber_tensor(y[i], own, student=str(student), **settings)
    return total / len(y)


@pytest.mark.parametrize("student", [0, 1, 2])
@pytest.mark.parametrize("weight_gradient", losses.WEIGHT_GRADIENTS)
def test_loss_and_gradient_are_those_of_the_heads_that_each_utterance_has(
    student: int, weight_gradient: losses.WeightGradient
) -> None:
    y, logits = targets(7, 4, 30), random_logits(3, 7, 4, seed=31).requires_grad_()
    settings: dict[str, Any] = {**SETTINGS, "weight_gradient": weight_gradient}
    actual = losses.amber_loss(logits, y, student=student, present=PRESENT, **settings)
    expected = slow_loss(y, logits, PRESENT, student, **settings)
    assert actual.item() == pytest.approx(expected.item(), abs=1e-12)
    mine, theirs = torch.autograd.grad(actual, logits)[0], torch.autograd.grad(expected, logits)[0]
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    assert not mine[~PRESENT].any()


@pytest.mark.parametrize("student", [0, 1, 2])
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_with_missing_heads_agree_with_finite_differences(student: int, distance: losses.Distance) -> None:
    y, logits = targets(7, 4, 32), random_logits(3, 2, 7, 4, seed=33).requires_grad_()
    present = PRESENT.unsqueeze(1)  # the same for both runs

    def loss(x: Tensor) -> Tensor:
        return losses.amber_loss(
            x, y, student=student, distance=distance, weight_gradient="flow", present=present, **SETTINGS
        )

    assert torch.autograd.gradcheck(loss, (logits,))
    weights = losses.class_balanced_weights(y)
    assert torch.autograd.gradcheck(
        lambda x: losses.class_balanced_cross_entropy(x, y, weights, present=present), (logits,)
    )


@pytest.mark.parametrize("filling", [0.0, 1e4, math.nan, math.inf])
@pytest.mark.parametrize("weight_gradient", losses.WEIGHT_GRADIENTS)
def test_logits_of_a_head_that_is_not_there_are_never_looked_at(
    filling: float, weight_gradient: losses.WeightGradient
) -> None:
    y, logits = targets(7, 4, 34), random_logits(3, 7, 4, seed=35)
    weights = losses.class_balanced_weights(y)
    for student, distance in itertools.product(range(3), DISTANCES):
        values = []
        for some in (logits, logits.masked_fill(~PRESENT.unsqueeze(-1), filling)):
            x = some.clone().requires_grad_()
            loss = (
                losses.amber_loss(
                    x,
                    y,
                    student=student,
                    distance=distance,
                    weight_gradient=weight_gradient,
                    present=PRESENT,
                    **SETTINGS,
                )
                + losses.class_balanced_cross_entropy(x, y, weights, present=PRESENT).sum()
            )
            values.append((loss, torch.autograd.grad(loss, x)[0]))
        assert torch.equal(values[0][0], values[1][0])
        assert torch.equal(values[0][1], values[1][1])
        assert values[1][1].isfinite().all()


def test_weights_are_shared_among_the_experts_that_are_there() -> None:
    divergence = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 0, 0]]).bool()
    weights = losses.expert_weights(divergence, 6.0, present)
    assert (weights[:, :4][~present[:, :4]] == 0).all()
    for i in range(4):
        own = present[:, i]
        torch.testing.assert_close(weights[own, i], losses.expert_weights(divergence[own, i], 6.0))
    assert weights.isfinite().all()


@pytest.mark.parametrize("weight_gradient", losses.WEIGHT_GRADIENTS)
def test_without_any_expert_there_is_no_modality_ambiguity_and_no_nan(weight_gradient: losses.WeightGradient) -> None:
    y, logits = targets(2, 4, 36), random_logits(3, 2, 4, seed=37).requires_grad_()
    present = torch.tensor([[0, 0], [0, 0], [1, 1]]).bool()
    loss = losses.amber_loss(logits, y, student=2, present=present, weight_gradient=weight_gradient, **SETTINGS)
    alone = SETTINGS["lambda_rai"] * losses.rai_loss(logits[2], y)
    assert loss.item() == pytest.approx(alone.item(), abs=1e-15)
    gradient, expected = (torch.autograd.grad(x, logits)[0] for x in (loss, alone))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-15)


def test_an_absent_head_adds_nothing_to_the_baseline_and_the_mean_is_over_the_whole_batch() -> None:
    y, logits = targets(7, 4, 38), random_logits(3, 7, 4, seed=39)
    weights = losses.class_balanced_weights(y)
    found = losses.class_balanced_cross_entropy(logits, y, weights, present=PRESENT)
    each = losses.class_balanced_cross_entropy(logits, y, weights, reduction="none")
    torch.testing.assert_close(found, (each * PRESENT).sum(-1) / 7)


# --- other distances between student and raters ---


def test_kl_and_soft_cross_entropy_differ_by_the_entropy_of_the_target_and_not_in_gradient() -> None:
    y, logits = targets(5, 4, 22), random_logits(5, 4, seed=23).requires_grad_()
    kl, soft = (
        losses.rai_loss(logits, y, distance=distance) for distance in (divergences.kl, divergences.cross_entropy)
    )
    assert (soft - kl).item() == pytest.approx(np.mean([reference.entropy(row) for row in y.tolist()]))
    torch.testing.assert_close(torch.autograd.grad(kl, logits), torch.autograd.grad(soft, logits))
    probs = logits.softmax(-1).tolist()
    assert kl.item() == pytest.approx(np.mean([reference.kl(a, b) for a, b in zip(y.tolist(), probs, strict=True)]))


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student": 3}, r"Bad student '3', expected one of \['0', '1', '2'\]"),
        ({"student": "fusion"}, "Bad student 'fusion'"),
        (
            {"student": 2, "weight_gradient": "stop"},
            r"Bad weight gradient 'stop', expected one of \['detach', 'flow'\]",
        ),
        ({"student": 2, "stop_expert_gradient": True}, "the experts would never train"),
        ({"student": 2, "stop_expert_gradient": True, "lambda_expert": torch.tensor([1.0, 0.0])}, "would never train"),
        ({"student": 2, "stop_expert_gradient": True, "lambda_expert": 1.0, "weight_gradient": "flow"}, "'detach'"),
    ],
)
def test_settings_without_meaning_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        losses.amber_loss(random_logits(3, 5, 4, seed=0), targets(5, 4, 0), **arguments)


def test_an_unknown_student_is_told_the_heads_there_are() -> None:
    with pytest.raises(SettingError, match=r"Bad student 'video', expected one of \['audio', 'text', 'fusion'\]"):
        losses.amber_loss(by_head(random_logits(3, 5, 4, seed=0)), targets(5, 4, 0), student="video")


def test_one_expert_alone_is_refused() -> None:
    with pytest.raises(SettingError, match="needs 3 heads or more, got 2"):
        losses.amber_loss(random_logits(2, 5, 4, seed=0), targets(5, 4, 0), student=1)


# --- class-balanced cross-entropy ---


def test_class_balanced_weights_reproduce_the_published_vector() -> None:
    counts = torch.tensor([3049, 1708, 1213, 154, 1772, 233, 2636, 380, 1482])
    target = torch.zeros(6092, 9)
    for c, count in enumerate(counts):
        target[:count, c] = 0.2  # above 1/9
    weights = losses.class_balanced_weights(target)
    expected = torch.tensor([0.2139, 0.3445, 0.4665, 3.3741, 0.3337, 2.2446, 0.2398, 1.3928, 0.3900])
    torch.testing.assert_close(weights, expected, rtol=0, atol=5.1e-5)
    assert weights.dtype == torch.float32


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 9))
def test_class_balanced_loss_is_what_the_loops_give(seed: int, rows: int, classes: int) -> None:
    y, logits = targets(rows, classes, seed), random_logits(rows, classes, seed=seed)
    expected = reference.class_balanced_weights(y.tolist())
    weights = losses.class_balanced_weights(y)
    torch.testing.assert_close(weights.tolist(), expected)
    assert weights.mean().item() == pytest.approx(1)
    loss = losses.class_balanced_cross_entropy(logits, y, weights).item()
    assert loss == pytest.approx(
        reference.class_balanced_cross_entropy(y.tolist(), logits.softmax(-1).tolist(), expected)
    )


def test_equal_weights_make_it_the_soft_cross_entropy_of_torch() -> None:
    y, logits = targets(7, 4, 24), random_logits(2, 7, 4, seed=25)
    loss = losses.class_balanced_cross_entropy(logits, y, torch.ones(4, dtype=torch.float64))
    for head in range(2):
        assert loss[head].item() == pytest.approx(torch.nn.functional.cross_entropy(logits[head], y).item())
    each = losses.class_balanced_cross_entropy(logits[0], y, torch.ones(4, dtype=torch.float64), reduction="none")
    torch.testing.assert_close(each, torch.nn.functional.cross_entropy(logits[0], y, reduction="none"))


def test_a_class_without_examples_counts_as_one_example_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    absent = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]])
    once = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0.6, 0, 0.4]])
    with caplog.at_level(logging.WARNING):
        weights = losses.class_balanced_weights(absent)
        losses.class_balanced_weights(absent, ("calm", "angry", "sad"))
    line = "no training target has more than 1/3 of {}: weighted as if one had, and hardly learnt"
    assert caplog.messages == [line.format(2), line.format("sad")]
    caplog.clear()
    torch.testing.assert_close(weights, losses.class_balanced_weights(once))
    assert not caplog.records


@pytest.mark.parametrize("classes", [3, 6, 7, 9])
def test_a_share_of_exactly_one_in_c_is_not_above_it_in_any_precision(classes: int) -> None:
    target = torch.full((5, classes), 1.0 / classes, dtype=torch.float64)
    target[0] = torch.eye(classes, dtype=torch.float64)[0]
    for each in (target, target.float(), target.float().double()):  # no class in more than one row: all weigh the same
        torch.testing.assert_close(losses.class_balanced_weights(each), torch.ones_like(each[0]))


@given(st.integers(0, 10**6), st.integers(2, 9), st.floats(0, 0.9))
def test_smoothed_labels_follow_the_loops_and_sum_to_one(seed: int, classes: int, epsilon: float) -> None:
    y = targets(3, classes, seed)
    smoothed = losses.smooth_labels(y, epsilon)
    torch.testing.assert_close(smoothed.sum(-1), torch.ones(3, dtype=torch.float64))
    for row, each in zip(y.tolist(), smoothed.tolist(), strict=True):
        torch.testing.assert_close(each, reference.smooth_labels(row, epsilon))
    torch.testing.assert_close(losses.smooth_labels(y, 0.0), y)


@pytest.mark.parametrize("epsilon", [-0.1, 1.0, math.nan])
def test_a_smoothing_that_is_no_share_is_refused(epsilon: float) -> None:
    with pytest.raises(SettingError, match="Bad label smoothing"):
        losses.smooth_labels(targets(2, 4, 0), epsilon)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=8).filter(any))
def test_hard_labels_are_one_hot_of_the_first_largest_share(votes: list[int]) -> None:
    y = torch.tensor(votes, dtype=torch.float32) / sum(votes)
    expected = torch.zeros(len(votes))
    expected[votes.index(max(votes))] = 1
    assert torch.equal(losses.one_hot_labels(y), expected)
    assert torch.equal(losses.one_hot_labels(torch.stack([y, y.flip(0)]))[0], expected)
