"""The training loop against slow loops over single utterances, and each run against itself in other company."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from slow_training import slow_dev_js, small, trained_slowly, vectors_of
from synthetic_data import fold_in, training_data, values_of, with_values

from amber2_core.fusion import FUSIONS
from amber2_core.heads import Architecture, initial_parameters
from amber2_core.losses import one_hot_labels
from amber2_train.fold_data import FoldData, Rows
from amber2_train.folds import make_folds
from amber2_train.grid import Setting
from amber2_train.stacked.loop import Trained, dev_js, random_stream, train
from amber2_train.stacked.parameters import StackedHeads
from amber2_train.stacked.system import StackedSystem
from amber2_train.systems import system
from amber2_train.systems.amber2 import Amber2
from amber2_train.systems.system import FitOptions, system_of

EPOCHS = 4
TWO = ("audio", "text")
THREE = ("audio", "text", "video")
# rows of 45 utterances, so that every part of every fold lacks some of each
LACKING = {"audio": [0, 1, 2, 21, 35, 43], "text": [3, 4, 5, 9, 12, 13, 14, 18, 20, 22, 24, 30, 31, 40, 41]}
WITH_VIDEO = {**LACKING, "video": [0, 3, 6, 7, 8, 17, 21, 25, 33, 40, 41]}


def whole(fold: int = 0, *, dtype: torch.dtype = torch.float64) -> FoldData:
    """A fold of utterances that have everything."""
    data = training_data(45)
    return fold_in(data, make_folds("session", data)[fold], dtype=dtype)


def masked(lacking: Mapping[str, Sequence[int]] = LACKING, fold: int = 0) -> FoldData:
    """A fold of utterances of which some lack a modality."""
    data = training_data(45, modalities=THREE if "video" in lacking else TWO, missing=lacking)
    return fold_in(data, make_folds("session", data)[fold])


def trained(fold: FoldData, settings: Sequence[Setting], seeds: Sequence[int], epochs: int, **options: Any) -> Trained:
    system = settings[0].system
    assert isinstance(system, StackedSystem)
    assert {setting.reference for setting in settings} == {settings[0].reference}
    values = [setting.values for setting in settings]
    return train(system, fold, values, seeds, FitOptions(epochs, **options))


def logits_of(found: Trained, rows: Rows) -> torch.Tensor:
    """(heads, seeds, settings, n, C)."""
    some = torch.arange(len(rows))
    vectors = {name: x.expand(found.stack.seeds, -1, -1) for name, x in rows.vectors(some).items()}
    present = rows.presence(some)
    with torch.no_grad():
        return found.stack.logits(vectors, present=None if present is None else present.unsqueeze(1))


SYSTEMS: list[dict[str, Any]] = [
    {"system": "amber2"},
    {"system": "amber2", "fusion": "concat", "student": "audio", "kappa": 8.0, "lambda_expert": 1.0},
    {"system": "amber2", "fusion": "softmax-gate", "student": "text", "weight_gradient": "flow", "lambda_mai": 2.0},
    {"system": "amber2", "fusion": "self-gate", "weight_gradient": "flow", "lambda_expert": 0.5},
    {"system": "cb-ce"},
    {"system": "cb-ce", "fusion": "softmax-gate"},
]


@pytest.mark.parametrize("lacking", [{}, LACKING, WITH_VIDEO], ids=["whole", "two", "three"])
@pytest.mark.parametrize("values", SYSTEMS, ids=lambda v: "-".join(map(str, v.values())))
def test_training_is_what_the_slow_loop_with_torchs_adamw_does_and_keeps_the_best_epochs(
    values: dict[str, Any], lacking: dict[str, list[int]]
) -> None:
    """Where utterances lack a modality, the slow loop computes each with only what it has."""
    fold, setting = masked(lacking) if lacking else whole(), small(**values)
    found = trained(fold, [setting], [3], EPOCHS)
    history = trained_slowly(fold, setting, seed=3, epochs=EPOCHS, lacking=lacking)
    scores = [slow_dev_js(fold, parameters, setting.values.fusion, lacking) for parameters in history]
    logits = logits_of(found, fold.dev)[:, 0, 0]
    sizes = {name: x.shape[1] for name, x in fold.dev.features.items()}
    having = fold.dev.having()
    assert having.all() == (not lacking)
    for h, head in enumerate((*sizes, "fusion")):
        judge = getattr(setting.values, "student", head)
        best = min(range(EPOCHS), key=lambda e, judge=judge: scores[e][judge])  # type: ignore[misc]
        assert found.best.epoch[h, 0, 0] == best + 1
        assert found.best.dev_js[h, 0, 0] == pytest.approx(scores[best][head], abs=1e-9)
        for k, row in enumerate(fold.dev.index.tolist()):
            own = vectors_of(fold.dev.features, row, lacking)
            expected = reference.head_logits(history[best], own, setting.values.fusion, sizes)
            assert bool(having[h, k]) == (head in expected)
            if head in expected:
                torch.testing.assert_close(logits[h, k], expected[head], rtol=0, atol=1e-9)


def test_an_utterance_that_lacks_a_modality_does_change_the_training() -> None:
    """Else the test above would hold for a loop that dropped such utterances."""
    fold = masked()
    complete = torch.from_numpy(fold.train.having().all(axis=0))
    short = replace(fold.train, index=fold.train.index[complete], targets=fold.train.targets[complete])
    some, other = (trained(replace(fold, train=rows), [small()], [0], 2) for rows in (fold.train, short))
    assert not torch.allclose(some.stack.parameters["wide.audio"], other.stack.parameters["wide.audio"], atol=1e-4)


def test_dev_scores_rise_and_fall_so_that_the_best_epoch_is_not_simply_the_last() -> None:
    found = trained(whole(), [small("cb-ce", lr=0.1)], [0, 1, 2, 3], 12)
    assert found.best.epoch.min() < 12
    assert len(np.unique(found.best.epoch)) > 2


COMPANY = [
    small(kappa=kappa, lambda_mai=mai, student=student, loss=loss, weight_gradient=gradient)
    for kappa, mai, student, loss, gradient in (
        (2.0, 0.3, "fusion", "js", "detach"),
        (8.0, 0.7, "fusion", "js", "detach"),
        (4.0, 0.5, "audio", "js", "detach"),
        (4.0, 0.5, "text", "kl", "detach"),
        (4.0, 0.5, "fusion", "soft-ce", "flow"),
    )
] + [small(lambda_expert=1.0, expert_gradient="own")]


def changed(settings: Sequence[Setting], **values: Any) -> list[Setting]:
    return [replace(setting, values=replace(setting.values, **values)) for setting in settings]


@pytest.mark.parametrize(
    ("fusion", "lacking", "dtype", "tolerance"),
    [
        *((fusion, {}, torch.float64, 1e-9) for fusion in FUSIONS),
        ("gmu", {}, torch.float32, 1e-3),
        *((fusion, LACKING, torch.float64, 1e-9) for fusion in FUSIONS),
    ],
)
def test_a_run_gives_the_same_alone_as_among_runs_of_other_settings_and_seeds(
    fusion: str, lacking: dict[str, list[int]], dtype: torch.dtype, tolerance: float
) -> None:
    fold, seeds = masked(lacking, 1) if lacking else whole(1, dtype=dtype), [4, 0]
    company = changed(COMPANY, fusion=fusion)
    together = trained(fold, company, seeds, 3)
    every = logits_of(together, fold.dev)
    for (k, setting), (s, seed) in itertools.product(enumerate(company), enumerate(seeds)):
        alone = trained(fold, [setting], [seed], 3)
        torch.testing.assert_close(logits_of(alone, fold.dev)[:, 0, 0], every[:, s, k], rtol=0, atol=tolerance)
        np.testing.assert_allclose(alone.best.dev_js[:, 0, 0], together.best.dev_js[:, s, k], rtol=0, atol=tolerance)
        assert alone.best.epoch[:, 0, 0].tolist() == together.best.epoch[:, s, k].tolist()


def test_a_run_with_dropout_gives_the_same_alone_as_in_company() -> None:
    fold, company = whole(), changed(COMPANY, dropout=0.3)
    together = trained(fold, company, [0, 1], 3)
    alone = trained(fold, company[2:3], [1], 3)
    expected = logits_of(together, fold.dev)[:, 1, 2]
    torch.testing.assert_close(logits_of(alone, fold.dev)[:, 0, 0], expected, rtol=0, atol=1e-9)
    undropped = trained(fold, COMPANY[2:3], [1], 3)
    assert not torch.allclose(logits_of(undropped, fold.dev)[:, 0, 0], expected, atol=1e-3)


def test_random_numbers_differ_between_seeds_folds_and_purposes_and_come_again() -> None:
    def draw(*key: Any) -> Sequence[float]:
        return list(torch.rand(4, generator=random_stream(*key)).tolist())

    keys = list(itertools.product((0, 1), (1, 2), ("parameters", "order", "dropout")))
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    assert all(draw(*key) == draw(*key) for key in keys)


def test_test_rows_are_not_looked_at_in_training() -> None:
    fold = whole()
    nothing = Rows({}, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    blind = trained(replace(fold, test=nothing), COMPANY, [0], 2)
    assert torch.equal(logits_of(blind, fold.dev), logits_of(trained(fold, COMPANY, [0], 2), fold.dev))


def test_the_dev_js_is_that_of_the_slow_formula() -> None:
    fold, shape = whole(), Architecture((("audio", 6), ("text", 5)), 4, hidden=8, fusion_width=8)
    start = {n: t.double() for n, t in initial_parameters(shape, torch.Generator().manual_seed(0)).items()}
    stack, needs = StackedHeads(shape, [start], 1, dtype=torch.float64), {"audio": "vector", "text": "vector"}
    found = dev_js(Amber2(), None, stack, fold.dev, needs)
    expected = slow_dev_js(fold, start, "gmu")
    assert found[:, 0, 0].tolist() == pytest.approx([expected[head] for head in shape.heads], abs=1e-12)


def test_a_run_that_diverges_keeps_no_epoch_and_leaves_the_others_alone() -> None:
    fold = whole()
    wild = changed(COMPANY[:1], kappa=math.nan)
    found, calm = trained(fold, wild + COMPANY[1:], [0], 2), trained(fold, COMPANY[1:], [0], 2)
    assert np.isnan(found.best.dev_js[:, :, 0]).all()
    assert (found.best.epoch[:, :, 0] == 0).all()
    np.testing.assert_allclose(found.best.dev_js[:, :, 1:], calm.best.dev_js, rtol=0, atol=1e-9)


def assert_the_same(some: Trained, other: Trained) -> None:
    np.testing.assert_array_equal(some.best.curves, other.best.curves)
    for name, parameter in some.stack.parameters.items():
        assert torch.equal(parameter, other.stack.parameters[name]), name


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("modalities", [TWO, THREE], ids=["two", "three"])
def test_a_mask_under_which_nothing_is_missing_changes_no_bit(fusion: str, modalities: Sequence[str]) -> None:
    data = training_data(45, modalities=modalities)
    plain = fold_in(data, make_folds("session", data)[0], dtype=torch.float32)
    assert plain.train.present is None
    everything = torch.ones(len(modalities) + 1, 45, dtype=torch.bool)
    parts = {name: replace(getattr(plain, name), present=everything) for name in ("train", "dev", "test")}
    company = changed(COMPANY, fusion=fusion)
    assert_the_same(trained(replace(plain, **parts), company, [0, 1], 3), trained(plain, company, [0, 1], 3))


@pytest.mark.parametrize("standardise", [False, True], ids=["raw", "standardized"])
def test_what_is_stored_in_place_of_missing_features_never_matters(standardise: bool) -> None:
    data = training_data(45, missing=LACKING)
    fold, found = make_folds("session", data)[0], []
    for filling in (0.0, 1e30, math.nan, math.inf):
        filled = {m: np.where(data.present[m][:, None], x, filling) for m, x in values_of(data).items()}
        rows = fold_in(with_values(data, **filled), fold, dtype=torch.float32, standardise=standardise)
        found.append(trained(rows, COMPANY, [0], 3))
        assert torch.isfinite(logits_of(found[-1], rows.test)).all()
        assert_the_same(found[0], found[-1])
    assert np.isfinite(found[0].best.dev_js).all()


@pytest.mark.parametrize("system", ["amber2", "cb-ce"])
def test_a_run_with_hard_labels_learns_what_one_on_one_hot_targets_does(system: str) -> None:
    """Dev is judged by the raters' own distributions all the same."""
    fold = whole()
    one_hot = replace(fold, train=replace(fold.train, targets=one_hot_labels(fold.train.targets)))
    hard, soft, on_one_hot = (
        logits_of(trained(some, [small(system, labels=labels)], [0], 2), fold.dev)
        for some, labels in ((fold, "hard"), (fold, "soft"), (one_hot, "soft"))
    )
    torch.testing.assert_close(hard, on_one_hot)
    assert not torch.allclose(hard, soft, atol=1e-4)


def test_the_loss_knows_the_epoch_and_systems_may_have_another_output() -> None:
    """What a system may say for itself: its loss from the epoch on, its probabilities from its outputs."""
    seen: list[float] = []

    class Squared(StackedSystem):
        name = "squared"

        def loss(self, settings: Any, *, heads: Any, fold: system.FoldData) -> Any:
            def losses(outputs: torch.Tensor, target: torch.Tensor, present: Any, epoch: torch.Tensor) -> torch.Tensor:
                seen.append(float(epoch))
                return (self.log_probs_of(outputs, settings[0]).exp() - target).square().sum((0, -1)).mean(-1)

            return losses

        def log_probs_of(self, outputs: torch.Tensor, setting: Any) -> torch.Tensor:
            return (outputs.square() + 1e-3).log().log_softmax(-1)

    fold, values = whole(), system_of("cb-ce").Settings(hidden=8, batch_size=15)
    found = train(Squared(), fold, [values], [0], FitOptions(3))
    assert seen == [1.0, 2.0, 3.0]
    (fitted,) = Squared().fit(fold, [values], [0], FitOptions(3))
    of_text = fitted.probs(fold.dev)["text"]
    expected = [reference.js(y, p) for y, p in zip(fold.dev.targets.tolist(), of_text.tolist(), strict=True)]
    assert found.best.dev_js[1, 0, 0] == pytest.approx(np.mean(expected), abs=1e-6)
    power = logits_of(found, fold.dev)[1, 0, 0].square() + 1e-3
    np.testing.assert_allclose(of_text, power / power.sum(-1, keepdim=True), atol=1e-6)
