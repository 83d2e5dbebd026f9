"""The training loop against slow loops over single utterances, and each run against itself in other company."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from slow_training import slow_dev_js, small, trained_slowly
from synthetic_data import fold_in, training_data

from amber2_core.fusion import FUSIONS
from amber2_core.heads import Architecture, initial_parameters
from amber2_train.fit import Fitted, dev_js, fit, predict, random_stream
from amber2_train.folds import make_folds
from amber2_train.rows import FoldRows, Rows, fold_rows, train_statistics
from amber2_train.stacked.parameters import StackedHeads

EPOCHS = 4


@pytest.fixture(scope="module")
def fold() -> FoldRows:
    data = training_data(45)
    return fold_in(data, make_folds("session", data)[0])


def logits_of(fitted: Fitted, rows: Rows) -> torch.Tensor:
    return predict(fitted.stack, rows)


SYSTEMS = [
    {"system": "amber2"},
    {"system": "amber2", "fusion": "concat", "student": "audio", "kappa": 8.0, "lambda_expert": 1.0},
    {"system": "amber2", "fusion": "softmax-gate", "student": "text", "weight_gradient": "flow", "lambda_mai": 2.0},
    {"system": "cb-ce"},
    {"system": "cb-ce", "fusion": "self-gate"},
]


@pytest.mark.parametrize("values", SYSTEMS, ids=lambda v: "-".join(map(str, v.values())))
def test_training_is_what_the_slow_loop_with_torchs_adamw_does_and_keeps_the_best_epochs(
    fold: FoldRows, values: dict[str, Any]
) -> None:
    setting = small(**values)
    fitted = fit(fold, [setting], seeds=[3], epochs=EPOCHS, dtype=torch.float64)
    history = trained_slowly(fold, setting, seed=3, epochs=EPOCHS)
    scores = [slow_dev_js(fold, parameters, setting.fusion) for parameters in history]
    for h, head in enumerate(("audio", "text", "fusion")):
        judge = head if setting.system == "cb-ce" else setting.student
        best = min(range(EPOCHS), key=lambda e, judge=judge: scores[e][judge])  # type: ignore[misc]
        assert fitted.epoch[h, 0, 0] == best + 1
        assert fitted.dev_js[h, 0, 0] == pytest.approx(scores[best][head], abs=1e-9)
        for row in range(3):
            features = {m: x[row] for m, x in fold.dev.features.items()}
            expected = reference.head_logits(history[best], features, setting.fusion)[head]
            rows = Rows(fold.dev.features, torch.tensor([row]), fold.dev.targets[:1])
            torch.testing.assert_close(logits_of(fitted, rows)[h, 0, 0, 0], expected, rtol=0, atol=1e-9)


def test_dev_scores_rise_and_fall_so_that_the_best_epoch_is_not_simply_the_last(fold: FoldRows) -> None:
    fitted = fit(fold, [small(system="cb-ce", lr=0.1)], seeds=[0, 1, 2, 3], epochs=12, dtype=torch.float64)
    assert fitted.epoch.min() < 12
    assert len(np.unique(fitted.epoch)) > 2


COMPANY = [
    small(kappa=kappa, lambda_mai=mai, student=student, loss=loss, weight_gradient=gradient)
    for kappa, mai, student, loss, gradient in (
        (2.0, 0.3, "fusion", "js", "detach"),
        (8.0, 0.7, "fusion", "js", "detach"),
        (4.0, 0.5, "audio", "js", "detach"),
        (4.0, 0.5, "text", "kl", "detach"),
        (4.0, 0.5, "fusion", "soft-ce", "flow"),
    )
] + [small(system="cb-ce")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_run_gives_the_same_alone_as_among_runs_of_other_settings_and_seeds(
    fusion: str, dtype: torch.dtype, tolerance: float
) -> None:
    data = training_data(45)
    fold = fold_in(data, make_folds("session", data)[1], dtype=dtype)
    company = [replace(setting, fusion=fusion) for setting in COMPANY]  # type: ignore[arg-type]
    together = fit(fold, company, seeds=[4, 0, 7], epochs=3, dtype=dtype)
    every = logits_of(together, fold.dev)
    for (k, setting), (s, seed) in itertools.product(enumerate(company), enumerate([4, 0, 7])):
        alone = fit(fold, [setting], seeds=[seed], epochs=3, dtype=dtype)
        torch.testing.assert_close(logits_of(alone, fold.dev)[:, 0, 0], every[:, s, k], rtol=0, atol=tolerance)
        np.testing.assert_allclose(alone.dev_js[:, 0, 0], together.dev_js[:, s, k], rtol=0, atol=tolerance)
        assert alone.epoch[:, 0, 0].tolist() == together.epoch[:, s, k].tolist()


def test_a_run_with_dropout_gives_the_same_alone_as_in_company(fold: FoldRows) -> None:
    company = [replace(setting, dropout=0.3) for setting in COMPANY]
    together = fit(fold, company, seeds=[0, 1], epochs=3, dtype=torch.float64)
    alone = fit(fold, company[2:3], seeds=[1], epochs=3, dtype=torch.float64)
    expected = logits_of(together, fold.dev)[:, 1, 2]
    torch.testing.assert_close(logits_of(alone, fold.dev)[:, 0, 0], expected, rtol=0, atol=1e-9)
    undropped = fit(fold, COMPANY[2:3], seeds=[1], epochs=3, dtype=torch.float64)
    assert not torch.allclose(logits_of(undropped, fold.dev)[:, 0, 0], expected, atol=1e-3)


def test_random_numbers_differ_between_seeds_folds_and_purposes_and_come_again() -> None:
    def draw(*key: Any) -> Sequence[float]:
        return list(torch.rand(4, generator=random_stream(*key)).tolist())

    keys = list(itertools.product((0, 1), (1, 2), ("parameters", "order", "dropout")))
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    assert all(draw(*key) == draw(*key) for key in keys)


def test_test_rows_are_not_looked_at_in_training(fold: FoldRows) -> None:
    nothing = Rows({}, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    blind = fit(replace(fold, test=nothing), COMPANY, seeds=[0], epochs=2, dtype=torch.float64)
    seeing = fit(fold, COMPANY, seeds=[0], epochs=2, dtype=torch.float64)
    assert torch.equal(logits_of(blind, fold.dev), logits_of(seeing, fold.dev))


def test_the_dev_js_is_that_of_the_slow_formula(fold: FoldRows) -> None:
    shape = Architecture((("audio", 6), ("text", 5)), 4, hidden=8, fusion_width=8)
    start = {n: t.double() for n, t in initial_parameters(shape, torch.Generator().manual_seed(0)).items()}
    found = dev_js(StackedHeads(shape, [start], 1, dtype=torch.float64), fold.dev)
    expected = slow_dev_js(fold, start, "gmu")
    assert found[:, 0, 0].tolist() == pytest.approx([expected[head] for head in shape.heads], abs=1e-12)


def test_a_run_that_diverges_keeps_no_epoch_and_leaves_the_others_alone(fold: FoldRows) -> None:
    wild = replace(COMPANY[0], kappa=math.nan)
    fitted = fit(fold, [wild, *COMPANY[1:]], seeds=[0], epochs=2, dtype=torch.float64)
    calm = fit(fold, COMPANY[1:], seeds=[0], epochs=2, dtype=torch.float64)
    assert np.isnan(fitted.dev_js[:, :, 0]).all()
    assert (fitted.epoch[:, :, 0] == 0).all()
    np.testing.assert_allclose(fitted.dev_js[:, :, 1:], calm.dev_js, rtol=0, atol=1e-9)


def test_inputs_are_standardised_by_train_rows_alone() -> None:
    data = training_data(60)
    fold = make_folds("session", data)[0]
    elsewhere = np.setdiff1d(np.arange(60), fold.train)
    other = {name: x.copy() for name, x in data.features.items()}
    for x in other.values():
        x[elsewhere] = 1000.0 * x[elsewhere] - 50.0
    for features in (data.features, other):
        rows = fold_rows(replace(data, features=features), fold, inputs="standardized")
        for name, x in data.features.items():
            mean, sd = rows.dev.standardisation[name]
            np.testing.assert_allclose(mean, x[fold.train].mean(0), rtol=1e-5)
            np.testing.assert_allclose(sd, x[fold.train].std(0), rtol=1e-5)
    train = fold_rows(data, fold, inputs="standardized").train
    for vectors in train.vectors(torch.arange(len(train))).values():
        np.testing.assert_allclose(vectors.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(vectors.std(0, correction=0), 1, atol=1e-5)


def test_raw_inputs_are_left_as_the_cache_holds_them() -> None:
    data = training_data(60)
    fold = make_folds("session", data)[0]
    rows = fold_rows(data, fold)
    assert rows.train.standardisation == {}
    chosen = rows.dev.vectors(torch.tensor([[2, 0], [1, 1]]))
    for name, x in data.features.items():
        np.testing.assert_array_equal(chosen[name], x[fold.dev[[[2, 0], [1, 1]]]])


def test_a_constant_dimension_is_centred_and_not_divided_by_zero() -> None:
    x = torch.tensor([[5.1, 1.0], [5.1, 3.0], [5.1, 2.0], [0.0, 9.0]])
    mean, sd = train_statistics({"audio": x}, torch.tensor([0, 1, 2]))["audio"]
    torch.testing.assert_close(mean, torch.tensor([5.1, 2.0]))
    torch.testing.assert_close(sd, torch.tensor([1.0, (2 / 3) ** 0.5]))
