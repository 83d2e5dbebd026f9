"""A sweep of utterances that lack a modality: what is predicted, scored and remembered of each head."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slow_training import small
from small_sweep import Swept, swept
from synthetic_data import training_data, values_of, with_values

from amber2_core.fusion import FUSIONS
from amber2_core.heads_folder import TrainedHeads, read_heads
from amber2_core.metrics import METRICS
from amber2_core.run_folder import summarise
from amber2_train.folds import make_folds
from amber2_train.grid import Setting
from amber2_train.training_data import TrainingData

LACKING = {"audio": [0, 1, 2, 21, 35, 43], "text": [3, 4, 5, 9, 12, 13, 14, 18, 20, 22, 24, 30, 31, 40, 41]}
QUICK: dict[str, Any] = {"hidden": 6, "batch_size": 16, "lr": 0.03}


def settings_of(**values: Any) -> list[Setting]:
    return [small(kappa=kappa, **QUICK, **values) for kappa in (0.0, 20.0)] + [small("cb-ce", **QUICK, **values)]


def heads_of(found: Swept, system: str, fold: int, seed: int = 0) -> TrainedHeads:
    """The weights of what was chosen."""
    run = found.selection.of(fold, found.results.selected[system][fold])[seed]
    return read_heads(found.selection.finished.weights(run))


def predicted_again(
    heads: TrainedHeads, data: TrainingData, rows: np.ndarray[Any, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    features = {name: torch.from_numpy(x[rows]) for name, x in values_of(data).items()}
    present = {name: torch.from_numpy(mask[rows]) for name, mask in data.present.items()}
    return {head: probs.numpy() for head, probs in heads.probs(features, present).items()}


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return training_data(45, missing=LACKING)


@pytest.fixture(scope="module")
def found(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return swept(tmp_path_factory.mktemp("sweep"), data, settings_of())


def test_every_head_is_scored_on_the_utterances_that_have_it_and_n_says_how_many(
    data: TrainingData, found: Swept
) -> None:
    folds = {fold.number: fold for fold in make_folds("session", data)}
    for row in found.results.rows:
        fold = folds[row["fold"]]
        rows = fold.dev if row["split"] == "dev" else fold.test
        assert row["n"] == sum(i not in LACKING.get(row["head"], ()) for i in rows)
        assert all(math.isfinite(row[name]) for name in METRICS)
    keys = ("system", "head", "fold", "seed", "epoch")
    curves = {tuple(row[key] for key in keys): row["dev_js"] for row in found.results.curves}
    for row in (r for r in found.results.rows if r["split"] == "dev" and r["selected"]):
        assert row["js"] == pytest.approx(curves[tuple(row[key] for key in keys)], abs=1e-6)


def test_predictions_are_whole_or_nan_where_a_head_has_nothing_to_go_by_and_the_heads_give_them_again(
    data: TrainingData, found: Swept
) -> None:
    predictions = found.results.predictions
    for fold in make_folds("session", data):
        missing = {name: int(np.isin(fold.train, rows).sum()) for name, rows in LACKING.items()}
        for system in ("amber2", "cb-ce"):
            heads = heads_of(found, system, fold.number, seed=1)
            assert heads.origin["missing"] == missing
            assert heads.origin["untrained"] == []
            for head, again in predicted_again(heads, data, fold.test).items():
                probs = predictions.probs[f"{system}/{head}"][1, predictions.fold == fold.number]
                lacking = np.isin(fold.test, LACKING.get(head, []))
                assert np.isnan(probs[lacking]).all()
                np.testing.assert_allclose(probs[~lacking].sum(-1), 1, atol=1e-6)
                np.testing.assert_allclose(again, probs, atol=1e-6)


def without_text(session: int, *, sessions: int) -> TrainingData:
    """Fold k tests on session k − 1 and chooses on the next one."""
    lacking = {"text": [i for i in range(48) if i % sessions == session]}
    return training_data(48, speakers=2 * sessions, sessions=sessions, missing=lacking)


def test_a_session_without_a_modality_is_left_out_of_the_means_of_its_head(tmp_path: Path) -> None:
    found = swept(tmp_path, without_text(1, sessions=4), settings_of())
    of_text = {
        (row["system"], row["split"], row["fold"]): (row["n"], math.isfinite(row["js"]))
        for row in found.results.rows
        if row["head"] == "text"
    }
    whole, nothing, folds = (12, True), (0, False), (1, 2, 3, 4)
    assert [of_text["amber2", "dev", k] for k in folds] == [nothing, whole, whole, whole]
    assert [of_text["amber2", "test", k] for k in folds] == [whole, nothing, whole, whole]
    assert [of_text["cb-ce", "dev", k] for k in folds] == [nothing, whole, whole, whole]
    # the baseline's text head would have to choose its epoch by itself
    assert [of_text["cb-ce", "test", k] for k in folds] == [nothing, nothing, whole, whole]
    table = summarise(found.results.rows)
    test = [r for r in found.results.rows if (r["split"], r["system"], r["head"]) == ("test", "amber2", "text")]
    expected = np.mean([row["js"] for row in test if row["fold"] != 2])
    assert table["amber2"]["text"]["js"]["mean"] == pytest.approx(expected)
    assert all(values["js"]["mean"] is not None for heads in table.values() for values in heads.values())
    predictions = found.results.predictions
    assert np.isnan(predictions.probs["cb-ce/text"][:, predictions.fold == 1]).all()
    assert heads_of(found, "cb-ce", 1).origin["epochs"]["text"] == 0


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("standardise", [False, True], ids=["raw", "standardized"])
def test_a_modality_that_no_train_row_has_is_left_out_of_the_whole_fold(
    fusion: str, standardise: bool, tmp_path: Path
) -> None:
    data = without_text(2, sessions=3)  # all that fold 1 trains on
    present = {**data.present, "audio": ~np.isin(np.arange(48), [0, 1])}  # one of test and one of dev have text alone
    data, (fold, *_) = replace(data, present=present), make_folds("session", data)
    found = swept(tmp_path / "one", data, settings_of(fusion=fusion), [fold], standardise=standardise)
    rows, predictions = found.results.rows, found.results.predictions
    assert {(row["head"], row["n"]) for row in rows} == {("audio", 15), ("text", 0), ("fusion", 15)}
    assert all(math.isfinite(row["js"]) == (row["head"] != "text") for row in rows)
    # as if nobody had text: what the cache holds of it has no influence
    other = with_values(data, text=values_of(data)["text"] * 100 + 3)
    again = swept(tmp_path / "other", other, settings_of(fusion=fusion), [fold], standardise=standardise)
    for name, probs in predictions.probs.items():
        np.testing.assert_array_equal(probs, again.results.predictions.probs[name])
    heads = heads_of(found, "amber2", 1)
    assert heads.origin["untrained"] == ["text"]
    for head, given in predicted_again(heads, data, fold.test).items():
        kept = predictions.probs[f"amber2/{head}"][0]
        there = ~np.isnan(kept[:, 0])
        assert there.sum() == {"audio": 15, "text": 0, "fusion": 15}[head]
        np.testing.assert_allclose(given[there], kept[there], atol=1e-6)


def test_beside_a_student_that_dev_can_judge_one_that_it_cannot_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = without_text(1, sessions=3)
    with caplog.at_level(logging.WARNING):
        found = swept(tmp_path, data, [small(student="text"), small()], make_folds("session", data)[:1])
    assert found.chosen("amber2", 1).values.student == "fusion"
    assert "amber2" in caplog.text
    assert "student text" in caplog.text
