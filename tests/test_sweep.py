"""A whole sweep, end to end: what is chosen, what is told of it, and that test targets decide nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_data import training_data

from amber2_core.metrics import METRICS, evaluate
from amber2_core.run_folder import KEY_COLUMNS
from amber2_train import jobs as jobs_module
from amber2_train.experts import expert_rows
from amber2_train.folds import Fold, make_folds
from amber2_train.grid import AXES, Setting, expand
from amber2_train.jobs import stacks
from amber2_train.sweep import SweepResult, sweep
from amber2_train.targets import TrainingData

SMALL: dict[str, Any] = {"hidden": (6,), "batch_size": (16,), "lr": (0.03,)}
SETTINGS = expand(["amber2", "cb-ce"], {**SMALL, "kappa": (0.0, 20.0), "lambda_mai": (0.1, 3.0)})


def small_sweep(**changes: Any) -> SweepResult:
    data = training_data(48)
    folds = make_folds("session", data)
    return sweep(changes.pop("data", data), changes.pop("folds", folds), SETTINGS, seeds=2, epochs=4, **changes)


@pytest.fixture(scope="module")
def result() -> SweepResult:
    return small_sweep()


def test_every_run_leaves_its_dev_row_and_the_selected_one_its_test_row(result: SweepResult) -> None:
    dev = [row for row in result.rows if row["split"] == "dev"]
    test = [row for row in result.rows if row["split"] == "test"]
    assert len(dev) == len(SETTINGS) * 3 * 2 * 3  # folds, seeds, heads
    assert len(test) == 2 * 3 * 2 * 3  # systems, folds, seeds, heads
    assert all(list(row) == [*KEY_COLUMNS, *AXES, "epoch", "n", *METRICS] for row in result.rows)
    key = [(r["system"], r["head"], r["split"], r["fold"], r["seed"], r["kappa"], r["lambda_mai"]) for r in result.rows]
    assert len(set(key)) == len(key)
    assert all(row["selected"] == 1 for row in test)


def test_the_selected_setting_has_the_lowest_dev_js_averaged_over_seeds(result: SweepResult) -> None:
    for fold in (1, 2, 3):
        means = {}
        for kappa, mai in ((k, m) for k in (0.0, 20.0) for m in (0.1, 3.0)):
            own = [
                row["js"]
                for row in result.rows
                if (row["system"], row["head"], row["split"], row["fold"]) == ("amber2", "fusion", "dev", fold)
                and (row["kappa"], row["lambda_mai"]) == (kappa, mai)
            ]
            assert len(own) == 2
            means[kappa, mai] = sum(own) / 2
        chosen = result.selected["amber2", fold]
        assert (chosen.kappa, chosen.lambda_mai) == min(means, key=lambda point: means[point])
        marked = {(r["kappa"], r["lambda_mai"]) for r in result.rows if r["fold"] == fold and r["selected"]}
        assert marked == {(chosen.kappa, chosen.lambda_mai), (None, None)}


def permuted_test(targets: np.ndarray[Any, Any], fold: Fold) -> np.ndarray[Any, Any]:
    shuffled = targets.copy()
    shuffled[fold.test] = targets[np.random.default_rng(0).permutation(fold.test)]
    return shuffled


def test_permuting_the_test_targets_changes_no_selected_setting_and_no_epoch(result: SweepResult) -> None:
    data = training_data(48)
    folds = make_folds("session", data)
    for fold in folds:
        shuffled = replace(data, targets=permuted_test(data.targets, fold))
        assert not np.array_equal(shuffled.targets, data.targets)
        other = small_sweep(data=shuffled, folds=[fold])
        assert other.selected == {key: s for key, s in result.selected.items() if key[1] == fold.number}
        of_fold = [row for row in result.rows if row["fold"] == fold.number]
        assert [r["epoch"] for r in other.rows] == [r["epoch"] for r in of_fold]
        assert [r for r in other.rows if r["split"] == "dev"] == [r for r in of_fold if r["split"] == "dev"]
        tests = [[r["js"] for r in rows if r["split"] == "test"] for rows in (other.rows, of_fold)]
        assert tests[0] != tests[1]
        for name, probs in other.predictions.probs.items():
            own = result.predictions.fold == fold.number
            np.testing.assert_array_equal(probs, result.predictions.probs[name][:, own])


def test_dev_targets_do_decide() -> None:
    data = training_data(48)
    fold = make_folds("session", data)[0]
    epochs = set()
    for seed in range(3):
        targets = data.targets.copy()
        targets[fold.dev] = targets[np.random.default_rng(seed).permutation(fold.dev)]
        rows = small_sweep(data=replace(data, targets=targets), folds=[fold]).rows
        epochs.add(tuple(row["epoch"] for row in rows))
    assert len(epochs) > 1


def test_test_rows_are_the_metrics_of_the_predictions_and_the_heads_give_them_again(result: SweepResult) -> None:
    data, predictions = training_data(48), result.predictions
    place = {name: k for k, name in enumerate(data.id)}
    for (system, fold, seed), heads in result.heads.items():
        rows = np.flatnonzero(predictions.fold == fold)
        features = {m: torch.from_numpy(x[[place[i] for i in predictions.id[rows]]]) for m, x in data.features.items()}
        for head, probs in heads.probs(features).items():
            kept = predictions.probs[f"{system}/{head}"][seed, rows]
            np.testing.assert_allclose(probs.numpy(), kept, atol=1e-6)
            scores = evaluate(predictions.target[rows], kept)
            (row,) = [
                r
                for r in result.rows
                if (r["system"], r["head"], r["split"], r["fold"], r["seed"]) == (system, head, "test", fold, seed)
            ]
            np.testing.assert_array_equal([row[name] for name in METRICS], [scores[name] for name in METRICS])
            assert row["epoch"] == heads.origin["epochs"][head]


def test_predictions_cover_every_utterance_once_with_its_target(result: SweepResult) -> None:
    data, predictions = training_data(48), result.predictions
    assert sorted(predictions.id) == sorted(data.id)
    targets = dict(zip(data.id, data.targets, strict=True))
    np.testing.assert_array_equal(predictions.target, [targets[name] for name in predictions.id])
    assert set(predictions.probs) == {f"{s}/{h}" for s in ("amber2", "cb-ce") for h in ("audio", "text", "fusion")}
    for probs in predictions.probs.values():
        assert probs.shape == (2, 48, 4)
        np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-6)


def test_how_the_settings_are_stacked_changes_no_result(result: SweepResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "STACKED_SETTINGS", {"cpu": 2})
    other = small_sweep()
    assert other.selected == result.selected
    for one, another in zip(result.rows, sorted(other.rows, key=lambda r: order(result, r)), strict=True):
        assert {k: one[k] for k in KEY_COLUMNS} == {k: another[k] for k in KEY_COLUMNS}
        assert one["js"] == pytest.approx(another["js"], abs=1e-4)


def test_with_patience_a_curve_ends_where_its_own_run_stopped_however_they_are_stacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"patience": 1, "data": training_data(48)}
    together = small_sweep(**changes).curves
    monkeypatch.setattr(jobs_module, "STACKED_SETTINGS", {"cpu": 1})
    alone = small_sweep(**changes).curves
    assert [{**row, "dev_js": 0} for row in together] == [{**row, "dev_js": 0} for row in alone]
    assert [row["dev_js"] for row in together] == pytest.approx([row["dev_js"] for row in alone], abs=1e-4)
    ends = {tuple(row[name] for name in ("system", "head", "fold", "seed")): row["epoch"] for row in together}
    assert set(ends.values()) > {4}  # some stopped before the last epoch


def order(result: SweepResult, row: dict[str, Any]) -> int:
    names = [*KEY_COLUMNS, *AXES]
    return [tuple(r[n] for n in names) for r in result.rows].index(tuple(row[n] for n in names))


def test_stacks_hold_settings_of_one_shape_in_a_chunk_that_fits() -> None:
    settings = expand(["amber2", "cb-ce"], {"kappa": tuple(map(float, range(20))), "hidden": (8, 16)})
    chunks = list(stacks(settings, "cpu"))
    assert sorted(map(hash, settings)) == sorted(hash(s) for chunk in chunks for s in chunk)
    assert all(len({s.shape for s in chunk}) == 1 for chunk in chunks)
    assert max(map(len, chunks)) <= jobs_module.STACKED_SETTINGS["cpu"]
    for chunk in chunks:
        systems = [s.system for s in chunk]
        assert systems == sorted(systems)


def test_progress_counts_every_run() -> None:
    seen: list[tuple[int, int]] = []
    small_sweep(on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (30, 30)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_inputs_that_are_standardised_are_so_in_training_and_in_the_heads() -> None:
    standardised = small_sweep(inputs="standardized")
    heads = standardised.heads["amber2", 1, 0]
    data = training_data(48)
    train = make_folds("session", data)[0].train
    for name, (mean, _) in heads.standardisation.items():
        np.testing.assert_allclose(mean, data.features[name][train].mean(0), rtol=1e-5)
    shifted = replace(data, features={m: 10 * x + 3 for m, x in data.features.items()})
    again = small_sweep(data=shifted, inputs="standardized")
    for one, another in zip(standardised.rows, again.rows, strict=True):
        assert one["js"] == pytest.approx(another["js"], abs=1e-3)


def test_settings_that_differ_only_in_shape_compete_too() -> None:
    data = training_data(48)
    settings = [Setting(hidden=h, batch_size=16, lr=0.03) for h in (2, 6)]
    found = sweep(data, make_folds("session", data)[:1], settings, seeds=1, epochs=3)
    scores = {r["hidden"]: r["js"] for r in found.rows if r["split"] == "dev" and r["head"] == "fusion"}
    assert found.selected["amber2", 1].hidden == min(scores, key=lambda h: scores[h])


def reliable_audio() -> TrainingData:
    """Sessions in which audio tells what was voted, and text tells less."""
    data = training_data(360, seed=5)
    random = np.random.default_rng(5)
    told = data.targets @ random.normal(size=(4, 6))
    features = {"audio": told + 0.1 * random.normal(size=told.shape), "text": told + 4 * random.normal(size=told.shape)}
    return replace(data, features={name: x.astype(np.float32) for name, x in features.items()})


def test_expert_weights_prefer_the_modality_that_can_be_relied_on_and_without_kappa_they_do_not() -> None:
    data = reliable_audio()
    shape = {"hidden": 16, "lr": 0.01, "batch_size": 32}
    settings = [
        Setting(kappa=8.0, **shape),  # type: ignore[arg-type]
        Setting(kappa=0.0, variant="uniform", **shape),  # type: ignore[arg-type]
    ]
    found = sweep(data, make_folds("session", data), settings, seeds=2, epochs=12)
    rows = expert_rows(found.predictions, found.selected)
    by_class = [row for row in rows if row["by"] == "class" and row["system"] == "amber2"]
    assert np.mean([row["weight_audio"] > row["weight_text"] for row in by_class]) >= 0.9
    assert all(row["weight_audio"] == 0.5 for row in rows if row["system"] == "amber2-uniform")
