"""Recipes of the challenge of 2025, SAILER and MEDUSA: their draws, losses and training against slow loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from synthetic_data import (
    EMOTIONS,
    cache_of,
    features,
    fold_in,
    training_data,
    votes,
    write_layered_cache,
    write_small_cache,
)

from amber2_core.heads import mixed
from amber2_core.heads_folder import read_heads
from amber2_core.losses import one_hot_labels, root_inverse_weights, soft_cross_entropy
from amber2_core.run_folder import read_predictions, read_results, read_settings
from amber2_train.cli import train_heads
from amber2_train.fold_data import FoldData, Rows
from amber2_train.folds import make_folds
from amber2_train.stacked.loop import random_stream, train
from amber2_train.stacked.system import StackedSystem
from amber2_train.systems.medusa import Medusa, balanced
from amber2_train.systems.sailer import Sailer, after_dropout, inverse_shares, majority_of, pairs_of
from amber2_train.systems.system import FitOptions, system_of
from amber2_train.systems.system import FoldData as AnyFold

SMALL: dict[str, Any] = {"hidden": 8, "batch_size": 11, "lr": 0.01}
LACKING = {"audio": [0, 1, 2, 21, 35, 43], "text": [3, 4, 5, 9, 12, 13, 30, 31, 40]}
RATERS = 6
HEADS = ("audio", "text", "fusion")


def uneven_fold(count: int = 60, *, missing: dict[str, list[int]] | None = None) -> FoldData:
    """A fold of utterances with six votes each, of which two classes have few."""
    data = training_data(count, missing=missing)
    random = np.random.default_rng(5)
    ticks = votes(count, raters=RATERS)
    ticks[random.uniform(size=ticks.shape) < 0.4] = 0
    counts = np.stack([(ticks == c).sum(1) for c in range(len(EMOTIONS))], axis=1).astype(np.float32)
    data = replace(data, votes=counts, targets=counts / counts.sum(1, keepdims=True))
    return fold_in(data, make_folds("session", data)[0])


def system(name: str) -> StackedSystem:
    found = system_of(name)
    assert isinstance(found, StackedSystem)
    return found


# --- annotation dropout ---


def test_a_dropped_vote_changes_the_target_as_in_the_published_vector() -> None:
    n, majority = torch.tensor([[3.0, 0, 1, 1]]), torch.tensor([1, 1, 0, 0]).bool()
    for seed in range(20):
        keys = torch.rand(1, 5, generator=torch.Generator().manual_seed(seed))
        left = after_dropout(n, majority, keys, 0.2)
        assert (left / left.sum()).tolist() == [[0.5, 0, 0.25, 0.25]]


COUNTS = st.lists(st.lists(st.integers(0, 7), min_size=4, max_size=4).filter(any), min_size=1, max_size=6)


@given(
    COUNTS, st.lists(st.booleans(), min_size=4, max_size=4), st.sampled_from([0.05, 0.2, 0.5, 0.9]), st.integers(0, 99)
)
def test_votes_are_dropped_as_the_loop_drops_them_and_one_always_stays(
    counts: list[list[int]], droppable: list[bool], share: float, seed: int
) -> None:
    n = torch.tensor(counts, dtype=torch.float64)
    keys = torch.rand(len(n), int(n.sum(-1).max()), generator=torch.Generator().manual_seed(seed))
    left = after_dropout(n, torch.tensor(droppable), keys, share)
    for row, found in enumerate(left.tolist()):
        assert found == reference.annotations_left(counts[row], droppable, keys[row].tolist(), share)
    assert (left.sum(-1) >= 1).all()
    assert (left >= 0).all()
    assert torch.equal(left[:, ~torch.tensor(droppable)], n[:, ~torch.tensor(droppable)])


def test_fewer_than_five_votes_lose_each_with_a_probability_of_a_fifth() -> None:
    n, all_classes = torch.tensor([[2.0, 1, 0, 1]]).repeat(20_000, 1), torch.ones(4, dtype=torch.bool)
    left = after_dropout(n, all_classes, torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0)), 0.2)
    assert (n - left).mean(0).tolist() == pytest.approx([0.4, 0.2, 0, 0.2], abs=0.01)


def test_fractions_of_a_vote_are_never_dropped() -> None:
    n, keys = torch.tensor([[2.5, 0.5, 0, 2.0]]), torch.zeros(1, 4)
    assert after_dropout(n, torch.ones(4, dtype=torch.bool), keys, 0.5).tolist() == [[0.5, 0.5, 0, 2.0]]


def test_majority_classes_have_more_than_their_share_of_votes_or_are_the_most_voted() -> None:
    n = torch.tensor([[5.0, 0, 1, 1], [4, 2, 0, 0], [0, 2, 1, 0]])
    assert majority_of(n).tolist() == [True, False, False, False]
    assert majority_of(n, 2).tolist() == [True, True, False, False]


# --- mixing ---


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.integers(0, 99),
)
def test_pairs_are_those_of_the_loop(labels: list[int], majority: list[bool], seed: int) -> None:
    draws = torch.rand(len(labels), 3, generator=torch.Generator().manual_seed(seed))
    targets = torch.nn.functional.one_hot(torch.tensor(labels), 4).double()
    partners, whether = pairs_of(targets, torch.tensor(majority), draws, 0.7)
    expected = reference.mixed_with(labels, majority, draws.tolist(), 0.7)
    assert partners.tolist() == expected
    for i, (j, is_mixed) in enumerate(zip(expected, whether.tolist(), strict=True)):
        assert is_mixed == (j != i)
        assert not is_mixed or (majority[labels[i]] and not majority[labels[j]])


def test_rare_classes_are_mixed_in_as_often_as_they_are_rare() -> None:
    labels = torch.tensor([0] * 6000 + [1] * 300 + [2] * 100)
    draws = torch.rand(len(labels), 3, generator=torch.Generator().manual_seed(0))
    majority = torch.tensor([True, False, False])
    partners, whether = pairs_of(torch.nn.functional.one_hot(labels).double(), majority, draws, 0.5)
    assert whether.double().mean() == pytest.approx(0.5 * 6000 / 6400, abs=0.02)
    classes = labels[partners[whether]].bincount(minlength=3) / whether.sum()
    assert classes.tolist() == pytest.approx([0, 0.25, 0.75], abs=0.02)


def test_an_epoch_of_sailer_halves_features_and_targets_of_its_pairs() -> None:
    fold, sailer = uneven_fold(missing=LACKING), Sailer()
    setting = sailer.Settings(annotation_dropout=0.0, mix_probability=1.0)
    drawn = sailer.drawn(setting, fold.train, 1, torch.Generator().manual_seed(3))
    draws = torch.rand(len(fold.train), 3, generator=torch.Generator().manual_seed(3))
    assert fold.train.votes is not None
    majority = majority_of(fold.train.votes).tolist()
    labels = one_hot_labels(fold.train.targets).argmax(-1).tolist()
    partners = reference.mixed_with(labels, majority, draws.tolist(), 1.0)
    assert any(i != j for i, j in enumerate(partners))
    rows = torch.arange(len(fold.train))
    before, after, there = fold.train.vectors(rows), drawn.vectors(rows), fold.train.having()
    for i, j in enumerate(partners):
        torch.testing.assert_close(drawn.targets[i], (fold.train.targets[i] + fold.train.targets[j]) / 2)
        for k, m in enumerate(before):
            both = (before[m][i] + before[m][j]) / 2 if there[k, j] else before[m][i]
            torch.testing.assert_close(after[m][i], both if there[k, i] else torch.zeros_like(both))


# --- losses ---


def test_class_weights_of_medusa_are_the_published_ones() -> None:
    target = torch.zeros(100, 4, dtype=torch.float64)
    for c, (start, stop) in enumerate(((0, 60), (60, 85), (85, 95), (95, 100))):
        target[start:stop, c] = 1
    assert root_inverse_weights(target).tolist() == pytest.approx([0.645497, 1, 1.581139, 2.236068], abs=1e-6)
    assert root_inverse_weights(torch.tensor([[1.0, 0.0], [1.0, 0.0]])).tolist() == pytest.approx([math.sqrt(0.5), 1])


def test_weighted_soft_cross_entropy_is_the_published_value_and_gradient() -> None:
    y, p = torch.tensor([[0.5, 0.5, 0, 0]]).double(), torch.tensor([[0.4, 0.3, 0.2, 0.1]]).double()
    w, logits = torch.tensor([0.5, 1, 2, 0.5]).double(), p.log().requires_grad_()
    weighted = soft_cross_entropy(logits, y, w)
    weighted.backward()  # type: ignore[no-untyped-call]
    assert weighted.item() == pytest.approx(0.831059, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([0.05, -0.275, 0.15, 0.075])
    assert soft_cross_entropy(logits, y).item() == pytest.approx(1.060132, abs=1e-6)


def outputs_and_targets(settings: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs (heads, 2 seeds, settings, 6, C), targets (2, 1, 6, C) and who has which head (heads, 2, 1, 6)."""
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(3, 2, settings, 6, 4, generator=generator, dtype=torch.float64)
    ticks = torch.randint(0, 4, (2, 1, 6, 3), generator=generator)
    present = torch.rand(3, 2, 1, 6, generator=generator) < 0.7
    return outputs, torch.nn.functional.one_hot(ticks, 4).double().mean(-2), present


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_the_loss_of_sailer_is_the_divergence_of_every_head(masked: bool) -> None:
    fold, sailer = uneven_fold(), Sailer()
    settings = [sailer.Settings(reweight=how) for how in ("none", "raw", "corrected")]
    outputs, target, present = outputs_and_targets(3)
    loss = sailer.loss(settings, heads=HEADS, fold=fold)
    found = loss(outputs, target, present if masked else None, torch.ones(()))
    q = fold.train.targets.mean(0).tolist()
    w = [1 / q_c / sum(1 / other for other in q) for q_c in q]
    assert inverse_shares(fold.train.targets).tolist() == pytest.approx(w)
    for s, (k, setting) in ((s, pair) for s in range(2) for pair in enumerate(settings)):
        expected = 0.0
        for h in range(3):
            for i in range(6):
                d = target[s, 0, i].tolist()
                z = [math.exp(x) for x in outputs[h, s, k, i].tolist()]
                if setting.reweight != "none":
                    d = [a * b for a, b in zip(d, w, strict=True)]
                if setting.reweight == "corrected":
                    z = [a * b for a, b in zip(z, w, strict=True)]
                if not masked or present[h, s, 0, i]:
                    expected += sum(a * math.log(a / (b / sum(z))) for a, b in zip(d, z, strict=True) if a) / 6
        assert found[s, k].item() == pytest.approx(expected, abs=1e-12)


def test_the_divergence_of_sailer_is_torchs_kl_div_summed_over_classes() -> None:
    outputs, target, _ = outputs_and_targets(1)
    loss = Sailer().loss([Sailer.Settings()], heads=HEADS, fold=uneven_fold())
    kl = torch.nn.functional.kl_div(outputs[:, 1, 0].log_softmax(-1), target[1, 0].expand(3, -1, -1), reduction="none")
    found = loss(outputs, target, None, torch.ones(()))[1, 0]
    assert found.item() == pytest.approx(kl.sum().item() / 6)


def test_medusa_weighs_classes_in_stage_one_alone() -> None:
    fold, medusa = uneven_fold(), Medusa()
    outputs, target, _ = outputs_and_targets(1)
    loss = medusa.loss([medusa.Settings(stage_one_epochs=2)], heads=HEADS, fold=fold)
    weights = root_inverse_weights(fold.train.targets)
    for epoch, own in ((1.0, weights), (2.0, weights), (3.0, torch.ones(4))):
        expected = sum(-(own * target[:, 0] * outputs[h, :, 0].log_softmax(-1)).sum(-1).mean(-1) for h in range(3))
        torch.testing.assert_close(loss(outputs, target, None, torch.tensor(epoch))[:, 0], expected)


# --- stages and mixup of MEDUSA ---


def test_stage_two_has_agreed_classes_alike_and_an_eighth_as_many_ambiguous_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 40 + [1] * 25 + [2] * 16)
    agreed = 0.7 * torch.nn.functional.one_hot(labels, 4).double() + 0.075
    tied = torch.tensor([[0.5, 0.5, 0, 0]]).double().repeat(30, 1)
    targets = torch.cat((agreed, tied))
    fixed, *fresh = torch.rand(3, len(targets), generator=generator)
    first, second = (balanced(targets, fixed, keys) for keys in fresh)
    assert first.bincount(minlength=111)[:81].max() == 1
    assert labels[first[:48]].bincount().tolist() == [16, 16, 16]
    assert torch.equal(first[:48], second[:48])
    assert len(first) == 48 + 6
    assert (first[48:] >= 81).all()
    assert len(first[48:].unique()) == 6
    assert first[48:].tolist() != second[48:].tolist()
    smallest = sorted(range(40), key=lambda i: float(fixed[i]))[:16]
    assert sorted(first[:16].tolist()) == sorted(smallest)
    assert sorted(balanced(tied, fixed[81:], fresh[0][81:]).tolist()) == list(range(30))


def test_mixed_targets_are_the_published_ones() -> None:
    y = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.2, 0.8]]).double()
    found = mixed(y, torch.tensor([1, 0]), torch.tensor([0.3, 1.0]))
    torch.testing.assert_close(found, torch.tensor([[0.15, 0.15, 0.14, 0.56], [0, 0, 0.2, 0.8]]).double())


def test_three_batches_of_ten_are_mixed_with_shares_of_a_beta_distribution() -> None:
    from scipy.stats import beta, kstest

    medusa, streams = Medusa(), [torch.Generator().manual_seed(seed) for seed in range(500)]
    found = medusa.mixing(medusa.Settings(), 16, streams)
    assert found is not None
    of_mixed = found.share[(found.share != 1).any(-1)]
    assert len(of_mixed) / 500 == pytest.approx(0.3, abs=0.06)
    assert kstest(of_mixed.flatten().numpy().astype(float), beta(0.2, 0.2).cdf).pvalue > 0.001
    assert torch.equal(found.partner.sort(-1).values, torch.arange(16).expand(500, -1))
    assert medusa.mixing(medusa.Settings(mixup=0.0), 16, streams) is None


def test_the_rate_falls_to_a_tenth_with_stage_two() -> None:
    medusa = Medusa()
    assert [medusa.rate(medusa.Settings(), epoch) for epoch in (1, 4, 5, 30)] == [1, 1, 0.1, 0.1]


# --- training ---


def slow_steps(
    drawn: Rows, order: torch.Generator, size: int, mixing: Sequence[Any] | None = None
) -> list[reference.Step]:
    """An epoch's steps for the loop; `mixing` gives partners and shares of a batch by its size."""
    rows, found = torch.randperm(len(drawn), generator=order), []
    vectors = drawn.vectors(torch.arange(len(drawn)))
    for batch in rows.split(size):
        items = [{m: x[i].double() for m, x in vectors.items()} for i in batch.tolist()]
        pairs = [(i, 1.0) for i in range(len(batch))] if mixing is None else mixing[0](len(batch))
        found.append((items, [drawn.targets[i] for i in batch.tolist()], pairs))
    return found


def assert_trained_as(fold: FoldData, name: str, setting: Any, history: Sequence[Any]) -> None:
    """By what heads say of dev, each at its best epoch."""
    found = train(system(name), fold, [setting], [3], FitOptions(len(history)))
    vectors = fold.dev.vectors(torch.arange(len(fold.dev)))
    with torch.no_grad():
        logits = found.stack.logits({m: x.unsqueeze(0) for m, x in vectors.items()})[:, 0, 0]
    for h, (head, epoch) in enumerate(zip(HEADS, found.best.epoch[:, 0, 0], strict=True)):
        for i in range(len(fold.dev)):
            own = {m: x[i] for m, x in vectors.items()}
            hidden = reference.recipe_hidden(history[epoch - 1], own, setting.fusion, name == "sailer")[head]
            expected = reference.output_of_head(history[epoch - 1], head, hidden)
            torch.testing.assert_close(logits[h, i], expected, rtol=0, atol=1e-7)


def start_of(fold: AnyFold, name: str, setting: Any) -> dict[str, torch.Tensor]:
    from amber2_core.heads import initial_parameters

    fresh = initial_parameters(system(name).architecture(setting, fold), random_stream(3, fold.number, "parameters"))
    return {parameter: value.double() for parameter, value in fresh.items()}


def test_sailer_trains_as_the_slow_loop_does() -> None:
    fold, sailer = uneven_fold(), Sailer()
    setting = sailer.Settings(**SMALL)
    order, stream = (random_stream(3, fold.number, purpose) for purpose in ("order", "rows"))
    assert fold.train.votes is not None
    n, labels = fold.train.votes.tolist(), [reference.argmax(y) for y in fold.train.targets.tolist()]
    total = [sum(column) for column in zip(*n, strict=True)]
    majority = [share > sum(total) / 4 for share in total]
    assert 0 < sum(majority) < 4
    vectors, epochs = fold.train.vectors(torch.arange(len(n))), []
    for _ in range(3):
        keys = torch.rand(len(n), RATERS, generator=stream).tolist()
        draws = torch.rand(len(n), 3, generator=stream).tolist()
        left = [reference.annotations_left(v, majority, k, 0.2) for v, k in zip(n, keys, strict=True)]
        d = fold.train.targets.clone()  # in single precision where nothing was dropped
        for i, own in enumerate(left):
            if own != n[i]:
                d[i] = torch.tensor([count / sum(own) for count in own], dtype=torch.float64)
        partners = reference.mixed_with(labels, majority, draws, 0.5)
        assert len(set(partners)) < len(partners)
        both = {m: (x + x[partners]) / 2 for m, x in vectors.items()}
        rows = Rows(both, torch.arange(len(n)), (d + d[partners]) / 2)
        epochs.append((0.01, [1.0] * 4, slow_steps(rows, order, 11)))
    history = reference.train_recipe(
        start_of(fold, "sailer", setting), epochs, fusion="concat", pointwise=True, weight_decay=1e-4
    )
    assert_trained_as(fold, "sailer", setting, history)


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_medusa_trains_as_the_slow_loop_does(labels: str) -> None:
    fold, medusa = uneven_fold(), Medusa()
    setting = medusa.Settings(**SMALL, mixup=0.6, stage_one_epochs=2, labels=labels)
    order, stream, mixing = (random_stream(3, fold.number, purpose) for purpose in ("order", "rows", "mixing"))
    targets = one_hot_labels(fold.train.targets) if labels == "hard" else fold.train.targets
    mass = targets.sum(0).tolist()
    weights = [math.sqrt(len(targets) / (4 * (f or 1))) for f in mass]

    def pairs(batch: int) -> list[tuple[int, float]]:
        whether = float(torch.rand((), generator=mixing)) < 0.6
        partner = torch.randperm(batch, generator=mixing).tolist()
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=mixing)))
        shares = random.beta(0.2, 0.2, batch).astype(np.float32).astype(float)
        return list(zip(partner, shares if whether else [1.0] * batch, strict=True))

    epochs = []
    fixed = torch.rand(len(targets), generator=torch.Generator().manual_seed(stream.initial_seed() ^ 1)).tolist()
    for epoch in range(1, 5):
        rows = list(range(len(targets)))
        if epoch > 2:
            fresh = torch.rand(len(targets), generator=stream).tolist()
            y = fold.train.targets.tolist()
            agreed = [i for i in rows if sorted(y[i])[-1] - sorted(y[i])[-2] > 1e-6]
            by_class = [[i for i in agreed if reference.argmax(y[i]) == c] for c in range(4)]
            size = min(len(some) for some in by_class if some)
            chosen = [i for some in by_class for i in sorted(some, key=fixed.__getitem__)[:size]]
            rest = sorted((i for i in rows if i not in agreed), key=fresh.__getitem__)
            rows = chosen + rest[: len(chosen) // 8]
            assert 0 < len(rows) < len(targets)
        drawn = replace(fold.train, targets=targets).some(torch.tensor(rows))
        own = weights if epoch <= 2 else [1.0] * 4
        epochs.append((0.01 if epoch <= 2 else 0.001, own, slow_steps(drawn, order, 11, [pairs])))
    history = reference.train_recipe(
        start_of(fold, "medusa", setting), epochs, fusion="deep", pointwise=False, weight_decay=1e-2
    )
    assert_trained_as(fold, "medusa", setting, history)


COMPANY: list[tuple[str, list[dict[str, Any]]]] = [
    ("sailer", [{}, {"reweight": "raw"}, {"reweight": "corrected"}]),
    ("sailer", [{"drop_from": "any", "input_pooling": "mean", "dropout": 0.2, "fusion": "gmu"}]),
    ("sailer", [{"mix_probability": 0.0, "majority_classes": 1, "annotation_dropout": 0.5}]),
    ("medusa", [{"stage_one_epochs": 1, "mixup": 0.7, "dropout": 0.2}]),
    ("medusa", [{"stage_one_epochs": 0, "augment": "dime"}]),
]


@pytest.mark.parametrize("missing", [{}, LACKING], ids=["whole", "masked"])
@pytest.mark.parametrize(("name", "own"), COMPANY)
def test_a_run_does_not_depend_on_its_neighbours(
    name: str, own: list[dict[str, Any]], missing: dict[str, list[int]]
) -> None:
    fold, recipe = uneven_fold(missing=missing), system(name)
    settings = [recipe.Settings(**{**SMALL, **values}) for values in own]
    many = list(recipe.fit(fold, settings, [0, 1, 2], FitOptions(3)))
    assert len(many) == 3 * len(own)
    for one in many:
        (alone,) = recipe.fit(fold, [one.setting], [one.seed], FitOptions(3))
        assert one.history.epoch == alone.history.epoch
        for head, probs in one.probs(fold.test).items():
            np.testing.assert_allclose(probs, alone.probs(fold.test)[head], atol=1e-6)
    if len(own) > 1:
        assert len({float(one.probs(fold.test)["fusion"][5, 0]) for one in many}) == len(many)


def thirty_two(seed: int = 0) -> FoldData:
    """32 utterances, which are train, dev and test."""
    ticks = votes(32, raters=5, seed=seed)
    n = torch.from_numpy(np.stack([(ticks == c).sum(1) for c in range(4)], axis=1)).double()
    x = {m: torch.from_numpy(value).double() for m, value in features((n / 5).numpy()).items()}
    noise = torch.randn(32, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = {m: torch.cat((value, noise), dim=-1) for m, value in x.items()}
    rows = Rows(x, torch.arange(32), n / 5, votes=n)
    return FoldData(1, rows, rows, rows)


def test_sailer_overfits_32_utterances_to_no_divergence() -> None:
    fold, sailer = thirty_two(), Sailer()
    setting = sailer.Settings(
        hidden=64, lr=3e-3, weight_decay=0.0, annotation_dropout=0.0, mix_probability=0.0, input_pooling="mean"
    )
    found = train(sailer, fold, [setting], [0], FitOptions(400))
    assert found.best.dev_js.max() < 1e-3


def test_medusa_overfits_32_utterances_to_the_floor_of_its_weighted_loss() -> None:
    """Which is at p ∝ w∘y, and not at y."""
    fold, medusa = thirty_two(), Medusa()
    setting = medusa.Settings(hidden=16, lr=0.01, weight_decay=0.0, mixup=0.0, stage_one_epochs=120)
    weighted = root_inverse_weights(fold.train.targets) * fold.train.targets
    floor = -torch.xlogy(weighted, weighted / weighted.sum(-1, keepdim=True)).sum(-1).mean()
    found = train(medusa, replace_dev(fold, weighted), [setting], [0], FitOptions(120))
    vectors = {m: x.unsqueeze(0) for m, x in fold.train.vectors(torch.arange(32)).items()}
    outputs = found.stack.logits(vectors).detach()
    loss = medusa.loss([setting], heads=("fusion",), fold=fold)(
        outputs[2:], fold.train.targets[None, None], None, torch.ones(())
    )
    assert floor < loss.item() < floor + 0.01


def replace_dev(fold: FoldData, shares: torch.Tensor) -> FoldData:
    """The fold with a dev that is best where shares (n, C) are met: its epoch is kept."""
    return replace(fold, dev=replace(fold.dev, targets=shares / shares.sum(-1, keepdim=True)))


# --- commands ---


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(train_heads, [*map(str, words), "--seeds", "1", "--epochs", "6", "--hidden", "8"])


def test_both_are_trained_by_name_with_options_of_their_own(tmp_path: Path) -> None:
    cache, output = write_small_cache(tmp_path), tmp_path / "run"
    words = ["--system", "sailer,medusa", "--reweight", "none,raw,corrected", "--stage-one-epochs", "2"]
    result = run("--cache", cache, "--output", output, *words)
    assert result.exit_code == 0, result.output
    rows = [row for row in read_results(output) if row["split"] == "dev"]
    assert {(row["system"], row["reweight"], row["fusion"]) for row in rows} == {
        ("sailer", "none", "concat"), ("sailer", "raw", "concat"), ("sailer", "corrected", "concat"),
        ("medusa", None, "deep"),
    }  # fmt: skip

    predictions, x = read_predictions(output), {f.modality: torch.from_numpy(f.values) for f in cache_of().features}
    for name, fold in (("sailer", 1), ("medusa", 2)):
        own = np.flatnonzero(predictions.fold == fold)
        places = [int(utterance[1:]) for utterance in predictions.id[own]]
        heads = read_heads(output / "heads" / f"{name}-fold{fold}-seed0.safetensors")
        for head, probs in heads.probs({m: values[places] for m, values in x.items()}).items():
            np.testing.assert_allclose(probs, predictions.probs[f"{name}/{head}"][0, own], atol=1e-6)
    remarks = read_settings(output)["remarks"]
    assert any("p ∝ d∘w" in line for line in remarks["sailer"])
    assert any("attention is over feature sets" in line for line in remarks["medusa"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sailer", "--input-pooling", "pointwise"], "sailer mixes pooled features, and input-pooling pointwise reads"),
        (["sailer", "--augment", "dime"], "augment dime with sailer: it mixes utterances itself"),
        (["sailer", "--mix-probability", "1.5"], "Bad mix-probability 1.5, expected a number of at most 1"),
        (["medusa", "--mixup", "2"], "Bad mixup 2, expected a probability of at most 1"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path: Path, words: list[str], line: str) -> None:
    result = run("--cache", write_small_cache(tmp_path), "--output", tmp_path / "run", "--system", *words)
    assert result.exit_code == 1
    assert line in result.output
    assert result.output.count("\n") == 1


def test_sailer_reads_frames_where_it_does_not_mix(tmp_path: Path) -> None:
    words = ["--system", "sailer", "--input-pooling", "pointwise", "--mix-probability", "0"]
    result = run("--cache", write_layered_cache(tmp_path), "--output", tmp_path / "run", *words)
    assert result.exit_code == 0, result.output


def test_what_differs_from_the_papers_is_told() -> None:
    for name in ("sailer", "medusa"):
        recipe = system(name)
        plain = recipe.remarks(recipe.Settings())
        assert plain
        assert all(line and "\n" not in line for line in plain)
    assert "made up" in Medusa().remarks(Medusa.Settings(augment="dime"))[0]
    assert not system("cb-ce").remarks(system("cb-ce").Settings())
    assert any("p_c / w_c" in line for line in Sailer().remarks(Sailer.Settings(reweight="corrected")))
    assert any("fusion gmu" in line for line in Medusa().remarks(Medusa.Settings(fusion="gmu")))
