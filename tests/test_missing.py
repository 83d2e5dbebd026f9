"""Utterances that lack a modality: the engine against loops that compute each with only what it has."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from slow_training import slow_dev_js, small, trained_slowly, vectors_of
from synthetic_data import fold_in, training_data

from amber2_core.errors import SettingError
from amber2_core.fusion import FUSIONS
from amber2_core.metrics import METRICS, evaluate
from amber2_core.run_folder import summarise
from amber2_train.experts import expert_rows
from amber2_train.fit import Fitted, fit, predict
from amber2_train.folds import Fold, make_folds
from amber2_train.grid import expand
from amber2_train.rows import FoldRows, fold_rows
from amber2_train.select import check_deciders, warn_of_deciders
from amber2_train.sweep import SweepResult, sweep
from amber2_train.targets import TrainingData

EPOCHS = 4
TWO = ("audio", "text")
THREE = ("audio", "text", "video")
# rows of 45 utterances, so that every part of every fold lacks some of each
LACKING = {"audio": [0, 1, 2, 21, 35, 43], "text": [3, 4, 5, 9, 12, 13, 14, 18, 20, 22, 24, 30, 31, 40, 41]}
WITH_VIDEO = {**LACKING, "video": [0, 3, 6, 7, 8, 17, 21, 25, 33, 40, 41]}


def masked(modalities: Sequence[str] = TWO, fold: int = 0) -> FoldRows:
    data = training_data(45, modalities=modalities, missing=LACKING if len(modalities) == 2 else WITH_VIDEO)
    return fold_in(data, make_folds("session", data)[fold])


SYSTEMS: list[dict[str, Any]] = [
    {"system": "amber2"},
    {"system": "amber2", "fusion": "concat", "student": "audio", "kappa": 8.0, "lambda_expert": 1.0},
    {"system": "amber2", "fusion": "softmax-gate", "student": "text", "weight_gradient": "flow", "lambda_mai": 2.0},
    {"system": "amber2", "fusion": "self-gate", "weight_gradient": "flow", "lambda_expert": 0.5},
    {"system": "cb-ce"},
    {"system": "cb-ce", "fusion": "softmax-gate"},
]


@pytest.mark.parametrize("modalities", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize("values", SYSTEMS, ids=lambda v: "-".join(map(str, v.values())))
def test_training_is_what_the_slow_loop_does_with_only_what_each_utterance_has(
    values: dict[str, Any], modalities: Sequence[str]
) -> None:
    fold, setting = masked(modalities), small(**values)
    lacking = LACKING if len(modalities) == 2 else WITH_VIDEO
    fitted = fit(fold, [setting], seeds=[3], epochs=EPOCHS, dtype=torch.float64)
    history = trained_slowly(fold, setting, seed=3, epochs=EPOCHS, lacking=lacking)
    scores = [slow_dev_js(fold, parameters, setting.fusion, lacking) for parameters in history]
    logits = predict(fitted.stack, fold.dev)[:, 0, 0]
    sizes = {name: x.shape[1] for name, x in fold.dev.features.items()}
    having = fold.dev.having()
    assert 0 < having[:-1].sum() < having[:-1].size
    for h, head in enumerate((*modalities, "fusion")):
        judge = head if setting.system == "cb-ce" else setting.student
        best = min(range(EPOCHS), key=lambda e, judge=judge: scores[e][judge])  # type: ignore[misc]
        assert fitted.epoch[h, 0, 0] == best + 1
        assert fitted.dev_js[h, 0, 0] == pytest.approx(scores[best][head], abs=1e-9)
        for k, row in enumerate(fold.dev.index.tolist()):
            own = vectors_of(fold.dev.features, row, lacking)
            expected = reference.head_logits(history[best], own, setting.fusion, sizes)
            assert bool(having[h, k]) == (head in expected)
            if head in expected:
                torch.testing.assert_close(logits[h, k], expected[head], rtol=0, atol=1e-9)


def test_an_utterance_that_lacks_a_modality_does_change_the_training() -> None:
    """Else the test above would hold for an engine that dropped such utterances."""
    fold = masked()
    complete = torch.from_numpy(fold.train.having().all(axis=0))
    short = replace(fold.train, index=fold.train.index[complete], targets=fold.train.targets[complete])
    some, other = (
        fit(replace(fold, train=rows), [small()], seeds=[0], epochs=2, dtype=torch.float64)
        for rows in (fold.train, short)
    )
    assert not torch.allclose(some.stack.parameters["wide.audio"], other.stack.parameters["wide.audio"], atol=1e-4)


COMPANY = [
    small(),
    small(kappa=8.0, lambda_mai=0.7, student="audio", lambda_expert=1.0),
    small(student="text", loss="kl"),
    small(loss="soft-ce", weight_gradient="flow"),
    small(lambda_expert=1.0, expert_gradient="own"),
    small(system="cb-ce"),
]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_run_with_missing_modalities_gives_the_same_alone_as_in_company(fusion: str) -> None:
    fold = masked(fold=1)
    company = [replace(setting, fusion=fusion) for setting in COMPANY]  # type: ignore[arg-type]
    together = fit(fold, company, seeds=[4, 0], epochs=3, dtype=torch.float64)
    every = predict(together.stack, fold.dev)
    for (k, setting), (s, seed) in itertools.product(enumerate(company), enumerate([4, 0])):
        alone = fit(fold, [setting], seeds=[seed], epochs=3, dtype=torch.float64)
        torch.testing.assert_close(predict(alone.stack, fold.dev)[:, 0, 0], every[:, s, k], rtol=0, atol=1e-9)
        np.testing.assert_allclose(alone.dev_js[:, 0, 0], together.dev_js[:, s, k], rtol=0, atol=1e-9)


def assert_the_same(some: Fitted, other: Fitted) -> None:
    np.testing.assert_array_equal(some.curves, other.curves)
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
    company = [replace(setting, fusion=fusion) for setting in COMPANY]  # type: ignore[arg-type]
    assert_the_same(
        fit(replace(plain, **parts), company, seeds=[0, 1], epochs=3), fit(plain, company, seeds=[0, 1], epochs=3)
    )


@pytest.mark.parametrize("inputs", ["raw", "standardized"])
@pytest.mark.parametrize("filling", [0.0, 1e30, math.nan, math.inf])
def test_what_is_stored_in_place_of_missing_features_never_matters(inputs: Any, filling: float) -> None:
    data = training_data(45, missing=LACKING)
    fold = make_folds("session", data)[0]
    other = {name: np.where(data.present[name][:, None], x, np.float32(filling)) for name, x in data.features.items()}
    fitted = []
    for features in (data.features, other):
        rows = fold_rows(replace(data, features=features), fold, inputs=inputs)
        fitted.append(fit(rows, COMPANY, seeds=[0], epochs=3))
        assert torch.isfinite(predict(fitted[-1].stack, rows.test)).all()
    assert_the_same(*fitted)
    assert np.isfinite(fitted[0].dev_js).all()


def test_standardisation_is_by_the_train_rows_that_are_there_and_leaves_the_missing_at_zero() -> None:
    data = training_data(45, missing=LACKING)
    fold = make_folds("session", data)[0]
    rows = fold_rows(data, fold, inputs="standardized")
    for name, x in data.features.items():
        own = x[[row for row in fold.train if row not in LACKING[name]]]
        mean, sd = rows.train.standardisation[name]
        np.testing.assert_allclose(mean, own.mean(0), rtol=1e-5)
        np.testing.assert_allclose(sd, own.std(0), rtol=1e-5)
        vectors = rows.train.vectors(torch.arange(len(fold.train)))[name]
        missing = np.isin(fold.train, LACKING[name])
        assert not vectors[missing].any()
        np.testing.assert_allclose(vectors[~missing].mean(0), 0, atol=1e-5)


def test_the_class_weights_are_those_of_all_train_rows() -> None:
    fold = masked()
    expected = reference.class_balanced_weights(fold.train.targets.tolist())
    assert fold.statistics["soft"].class_weights.tolist() == pytest.approx(expected)


# --- a whole sweep ---

SETTINGS = expand(
    ["amber2", "cb-ce"], {"hidden": (6,), "batch_size": (16,), "lr": (0.03,), "kappa": (0.0, 20.0), "fusion": ("gmu",)}
)


def swept(data: TrainingData, folds: Sequence[Fold] | None = None, **changes: Any) -> SweepResult:
    return sweep(
        data, folds or make_folds("session", data), changes.pop("settings", SETTINGS), seeds=2, epochs=3, **changes
    )


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return training_data(45, missing=LACKING)


@pytest.fixture(scope="module")
def result(data: TrainingData) -> SweepResult:
    return swept(data)


def test_every_head_is_scored_on_the_utterances_that_have_it_and_n_says_how_many(
    data: TrainingData, result: SweepResult
) -> None:
    folds = {fold.number: fold for fold in make_folds("session", data)}
    for row in result.rows:
        fold = folds[row["fold"]]
        rows = fold.dev if row["split"] == "dev" else fold.test
        assert row["n"] == sum(i not in LACKING.get(row["head"], ()) for i in rows)
        assert all(math.isfinite(row[name]) for name in METRICS)
    curves = {tuple(c[k] for k in ("system", "head", "fold", "seed", "epoch")): c["dev_js"] for c in result.curves}
    for row in (r for r in result.rows if r["split"] == "dev" and r["selected"]):
        assert row["js"] == pytest.approx(
            curves[row["system"], row["head"], row["fold"], row["seed"], row["epoch"]], abs=1e-6
        )
    predictions = result.predictions
    for row in (r for r in result.rows if r["split"] == "test"):
        chosen = predictions.fold == row["fold"]
        probs = predictions.probs[f"{row['system']}/{row['head']}"][row["seed"], chosen]
        there = ~np.isnan(probs).all(-1)
        assert there.sum() == row["n"]
        scores = evaluate(predictions.target[chosen][there], probs[there])
        assert [row[name] for name in METRICS] == [float(scores[name]) for name in METRICS]


def test_predictions_are_whole_or_nan_where_a_head_has_nothing_to_go_by(
    data: TrainingData, result: SweepResult
) -> None:
    place = {name: k for k, name in enumerate(data.id)}
    rows = [place[name] for name in result.predictions.id]
    for name, probs in result.predictions.probs.items():
        lacking = np.isin(rows, LACKING.get(name.partition("/")[2], []))
        assert np.isnan(probs[:, lacking]).all()
        np.testing.assert_allclose(probs[:, ~lacking].sum(-1), 1, atol=1e-6)


def test_the_heads_give_the_predictions_again_and_know_what_they_were_trained_without(
    data: TrainingData, result: SweepResult
) -> None:
    place = {name: k for k, name in enumerate(data.id)}
    for (system, fold, seed), heads in result.heads.items():
        chosen = np.flatnonzero(result.predictions.fold == fold)
        rows = [place[name] for name in result.predictions.id[chosen]]
        features = {name: torch.from_numpy(x[rows]) for name, x in data.features.items()}
        present = {name: torch.from_numpy(mask[rows]) for name, mask in data.present.items()}
        for head, probs in heads.probs(features, present).items():
            kept = result.predictions.probs[f"{system}/{head}"][seed, chosen]
            np.testing.assert_allclose(probs.numpy(), kept, atol=1e-6)
        train = next(f.train for f in make_folds("session", data) if f.number == fold)
        assert heads.origin["missing"] == {m: int(np.isin(train, rows).sum()) for m, rows in LACKING.items()}


def test_permuting_the_test_targets_changes_no_choice(data: TrainingData, result: SweepResult) -> None:
    for fold in make_folds("session", data):
        targets = data.targets.copy()
        targets[fold.test] = data.targets[np.random.default_rng(0).permutation(fold.test)]
        other = swept(replace(data, targets=targets), [fold])
        of_fold = [row for row in result.rows if row["fold"] == fold.number]
        assert other.selected == {key: s for key, s in result.selected.items() if key[1] == fold.number}
        assert [r for r in other.rows if r["split"] == "dev"] == [r for r in of_fold if r["split"] == "dev"]
        for name, probs in other.predictions.probs.items():
            own = result.predictions.fold == fold.number
            np.testing.assert_array_equal(probs, result.predictions.probs[name][:, own])


def test_an_expert_that_is_not_there_weighs_nothing_and_disagreement_needs_both(
    data: TrainingData, result: SweepResult
) -> None:
    found, place = result.predictions, {name: k for k, name in enumerate(data.id)}
    for row in expert_rows(found, result.selected):
        if row["by"] != "all":
            continue
        setting, weights, disagreements = result.selected[row["system"], row["fold"]], [], []
        for k in np.flatnonzero(found.fold == row["fold"]).tolist():
            own = [m for m in TWO if place[found.id[k]] not in LACKING[m]]
            probs = {m: found.probs[f"{row['system']}/{m}"][row["seed"], k].astype(float).tolist() for m in own}
            of_own = reference.expert_weights(found.target[k].tolist(), list(probs.values()), setting.kappa)
            weights.append(dict.fromkeys(TWO, 0.0) | dict(zip(own, of_own, strict=True)))
            disagreements += [reference.js(*probs.values())] if len(own) == 2 else []
        assert row["n"] == len(weights)
        assert row["disagreement"] == pytest.approx(np.mean(disagreements), abs=1e-6)
        for m in TWO:
            expected = np.mean([w[m] for w in weights]) if row["system"] == "amber2" else None
            assert row[f"weight_{m}"] == (None if expected is None else pytest.approx(expected, abs=1e-6))


# --- a modality that whole sessions lack ---


def without_text(session: int, *, sessions: int) -> TrainingData:
    """Fold k tests on session k − 1 and chooses on the next one."""
    lacking = {"text": [i for i in range(48) if i % sessions == session]}
    return training_data(48, speakers=2 * sessions, sessions=sessions, missing=lacking)


def test_a_session_without_a_modality_is_left_out_of_the_means_of_its_head() -> None:
    result = swept(without_text(1, sessions=4))
    of_text = {
        (row["system"], row["split"], row["fold"]): (row["n"], math.isfinite(row["js"]))
        for row in result.rows
        if row["head"] == "text"
    }
    whole, nothing = (12, True), (0, False)
    folds = (1, 2, 3, 4)
    assert [of_text["amber2", "dev", k] for k in folds] == [nothing, whole, whole, whole]
    assert [of_text["amber2", "test", k] for k in folds] == [whole, nothing, whole, whole]
    assert [of_text["cb-ce", "dev", k] for k in folds] == [nothing, whole, whole, whole]
    # the baseline's text head would have to choose its epoch by itself
    assert [of_text["cb-ce", "test", k] for k in folds] == [nothing, nothing, whole, whole]
    table = summarise(result.rows)
    test = [r for r in result.rows if r["split"] == "test" and r["system"] == "amber2" and r["head"] == "text"]
    expected = np.mean([row["js"] for row in test if row["fold"] != 2])
    assert table["amber2"]["text"]["js"]["mean"] == pytest.approx(expected)
    assert all(values["js"]["mean"] is not None for heads in table.values() for values in heads.values())
    assert np.isnan(result.predictions.probs["cb-ce/text"][:, result.predictions.fold == 1]).all()
    assert result.heads["cb-ce", 1, 0].origin["epochs"]["text"] == 0


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("inputs", ["raw", "standardized"])
def test_a_modality_that_no_train_row_has_is_left_out_of_the_whole_fold(fusion: str, inputs: Any) -> None:
    data = without_text(2, sessions=3)  # all that fold 1 trains on
    present = {**data.present, "audio": ~np.isin(np.arange(48), [0, 1])}  # one of test and one of dev have text alone
    data = replace(data, present=present)
    (fold,) = make_folds("session", data)[:1]
    settings = [replace(setting, fusion=fusion) for setting in SETTINGS]  # type: ignore[arg-type]
    result = swept(data, [fold], settings=settings, inputs=inputs)
    assert {(row["head"], row["n"]) for row in result.rows} == {("audio", 15), ("text", 0), ("fusion", 15)}
    assert all(math.isfinite(row["js"]) == (row["head"] != "text") for row in result.rows)
    # as if nobody had text: what the cache holds of it has no influence
    other = {**data.features, "text": data.features["text"] * 100 + 3}
    again = swept(replace(data, features=other), [fold], settings=settings, inputs=inputs)
    for name, probs in result.predictions.probs.items():
        np.testing.assert_array_equal(probs, again.predictions.probs[name])
    heads = result.heads["amber2", 1, 0]
    assert heads.origin["untrained"] == ["text"]
    features = {name: torch.from_numpy(x[fold.test]) for name, x in data.features.items()}
    masks = {name: torch.from_numpy(mask[fold.test]) for name, mask in data.present.items()}
    for head, given in heads.probs(features, masks).items():
        kept = result.predictions.probs[f"amber2/{head}"][0]
        there = ~np.isnan(kept[:, 0])
        assert there.sum() == {"audio": 15, "text": 0, "fusion": 15}[head]
        np.testing.assert_allclose(given.numpy()[there], kept[there], atol=1e-6)


def test_a_student_that_nobody_on_dev_has_is_refused_before_anything_trains() -> None:
    data = without_text(1, sessions=3)
    folds = make_folds("session", data)
    with pytest.raises(
        SettingError,
        match="amber2 is chosen by the dev JS of its text head, and in fold 1 no utterance of train or none of dev has "
        "it: choose another --student, other --folds or --missing drop",
    ):
        check_deciders(data, folds, [small(student="text"), small(student="text", kappa=2.0)])
    check_deciders(data, folds, [small(student="text"), small(), small(system="cb-ce")])
    check_deciders(data, folds[1:2], [small(student="text")])
    with pytest.raises(SettingError, match="in fold 3 no utterance of train"):
        check_deciders(data, folds[1:], [small(student="text")])


def test_students_that_see_different_utterances_are_compared_with_a_warning(
    data: TrainingData, caplog: pytest.LogCaptureFixture
) -> None:
    students = [small(student=head) for head in ("fusion", "text")]
    with caplog.at_level(logging.WARNING):
        warn_of_deciders(data, students[:1])
        warn_of_deciders(training_data(45), students)
        assert not caplog.records
        warn_of_deciders(data, students)
    assert [record.getMessage() for record in caplog.records] == [
        "amber2: the dev JS of fusion or text, by which it is chosen, is over different utterances"
    ]


def test_beside_a_student_that_dev_can_judge_one_that_it_cannot_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    data = without_text(1, sessions=3)
    with caplog.at_level(logging.WARNING):
        result = swept(data, settings=[small(student="text"), small()])
    assert result.selected["amber2", 1].student == "fusion"
    assert "amber2 student text" in caplog.text
