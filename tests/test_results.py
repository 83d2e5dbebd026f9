"""The tables of a sweep, from made-up runs: what is chosen, its scores on test, its curves and its experts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from slow_training import small
from synthetic_data import EMOTIONS, training_data

from amber2_core.metrics import METRICS, evaluate
from amber2_core.run_folder import KEY_COLUMNS, read_experts, write_experts
from amber2_train.folds import make_folds
from amber2_train.grid import Setting, axes_of
from amber2_train.results import Results, results_of
from amber2_train.selection import Selection
from amber2_train.systems.system import History
from amber2_train.tasks import FinishedTasks, Run
from amber2_train.training_data import Fold, TrainingData

SEEDS = 2
COLUMNS = list(axes_of(["amber2", "cb-ce"]))
SETTINGS = [small(kappa=8.0), small(kappa=2.0, student="audio"), small("cb-ce"), small(kappa=0.0)]
CHOSEN = (0, 1, 3)  # of AmbER² in each fold
LACKING = {"audio": [0, 13, 40], "text": [1, 2, 5, 9, 17, 21, 22, 30, 41]}
TEST_SCORE = 0.125  # of every metric on test, as runs tell it


@dataclass(frozen=True)
class Made:
    """Results and what they were made of."""

    data: TrainingData
    folds: Sequence[Fold]
    selection: Selection
    results: Results
    probs: Mapping[tuple[int, int, int, str], np.ndarray[Any, Any]]  # (fold, setting, seed, head) → (n, C)

    def chosen(self, system: str, fold: int) -> Setting:
        return SETTINGS[self.results.selected[system][fold]]

    def scores(self, split: str) -> list[dict[str, Any]]:
        return [row for row in self.results.rows if row["split"] == split]


def made(
    folder: Path,
    *,
    modalities: Sequence[str] = ("audio", "text"),
    lacking: Mapping[str, Sequence[int]] | None = None,
    score_all: bool = False,
    unjudged: frozenset[str] = frozenset(),
) -> Made:
    """Results of runs with random distributions."""
    random, data = np.random.default_rng(3), training_data(48, modalities=modalities, missing=lacking)
    folds, heads = make_folds("session", data), (*modalities, "fusion")
    finished, probs = FinishedTasks(folder), {}
    selection = Selection(SETTINGS, SEEDS, finished)
    for fold, place, seed in itertools.product(folds, range(len(SETTINGS)), range(SEEDS)):
        for head in heads:
            own = random.dirichlet([1] * 4, len(fold.test)).astype(np.float32)
            own[np.isin(fold.test, (lacking or {}).get(head, []))] = np.nan
            probs[fold.number, place, seed, head] = own
        epochs = {head: int(random.integers(1, 4)) for head in heads}
        history = History({head: random.uniform(size=4).tolist() for head in heads}, epochs, unjudged)
        js = 0.1 if place == CHOSEN[fold.number - 1] else float(random.uniform(0.2, 1))
        dev = {head: {"n": 5, **dict.fromkeys(METRICS, js)} for head in heads}
        test = {head: {"n": 6, **dict.fromkeys(METRICS, TEST_SCORE)} for head in heads} if score_all else {}
        run = Run(fold.number, place, seed, history, dev, test)
        with finished.weights(run).with_suffix(".npz").open("wb") as file:
            of_run: dict[str, Any] = {head: probs[fold.number, place, seed, head] for head in heads}
            np.savez(file, **of_run)
        selection.add(run)
    return Made(data, folds, selection, results_of(selection, data, folds, COLUMNS), probs)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Some utterances lack a modality."""
    return made(tmp_path_factory.mktemp("gaps"), lacking=LACKING)


def test_every_run_leaves_its_dev_row_and_the_selected_one_its_test_row(plain: Made) -> None:
    assert plain.results.selected == {"amber2": dict(zip((1, 2, 3), CHOSEN, strict=True)), "cb-ce": {1: 2, 2: 2, 3: 2}}
    rows, dev, test = plain.results.rows, plain.scores("dev"), plain.scores("test")
    assert len(dev) == len(SETTINGS) * 3 * SEEDS * 3  # folds, seeds, heads
    assert len(test) == 2 * 3 * SEEDS * 3  # systems, folds, seeds, heads
    assert all(list(row) == [*KEY_COLUMNS, *COLUMNS, "epoch", "n", *METRICS] for row in rows)
    assert len({tuple(row[name] for name in (*KEY_COLUMNS, *COLUMNS)) for row in rows}) == len(rows)
    assert all(row["selected"] == 1 for row in test)
    for row in rows:
        assert (row["kappa"] is None) == (row["system"] == "cb-ce")
        assert row["hidden"] == 8
    for row in dev:
        chosen = plain.chosen(row["system"], row["fold"])
        is_chosen = all(row[name] == chosen.row().get(name) for name in COLUMNS)
        assert row["selected"] == is_chosen
        (place,) = (k for k, s in enumerate(SETTINGS) if all(row[name] == s.row().get(name) for name in COLUMNS))
        run = plain.selection.runs[row["fold"], place][row["seed"]]
        assert {name: row[name] for name in ("n", *METRICS)} == run.dev[row["head"]]
        assert row["epoch"] == run.history.epoch[row["head"]]


@pytest.mark.parametrize("which", ["plain", "gaps"])
def test_test_rows_are_the_metrics_of_the_predictions_of_the_utterances_that_have_the_head(
    which: str, request: pytest.FixtureRequest
) -> None:
    found: Made = request.getfixturevalue(which)
    lacking = LACKING if which == "gaps" else {}
    for row in found.scores("test"):
        fold = found.folds[row["fold"] - 1]
        place = found.results.selected[row["system"]][row["fold"]]
        having = ~np.isin(fold.test, lacking.get(row["head"], []))
        probs = found.probs[row["fold"], place, row["seed"], row["head"]]
        scores = evaluate(found.data.targets[fold.test][having], probs[having])
        assert row["n"] == having.sum()
        assert [row[name] for name in METRICS] == [float(scores[name]) for name in METRICS]


def test_what_was_not_chosen_has_test_rows_only_as_the_runs_tell_them(tmp_path: Path, plain: Made) -> None:
    every = made(tmp_path, score_all=True)
    test = every.scores("test")
    assert len(test) == len(SETTINGS) * 3 * SEEDS * 3
    assert [row for row in test if row["selected"]] == plain.scores("test")
    assert all(row["js"] == TEST_SCORE for row in test if not row["selected"])
    assert every.results.curves == plain.results.curves


def test_predictions_cover_every_utterance_once_with_its_target(gaps: Made) -> None:
    predictions, data = gaps.results.predictions, gaps.data
    assert sorted(predictions.id) == sorted(data.id)
    targets = dict(zip(data.id, data.targets, strict=True))
    np.testing.assert_array_equal(predictions.target, [targets[name] for name in predictions.id])
    assert set(predictions.probs) == {f"{s}/{h}" for s in ("amber2", "cb-ce") for h in ("audio", "text", "fusion")}
    for name, probs in predictions.probs.items():
        system, _, head = name.partition("/")
        for fold, seed in itertools.product((1, 2, 3), range(SEEDS)):
            place = gaps.results.selected[system][fold]
            np.testing.assert_array_equal(probs[seed, predictions.fold == fold], gaps.probs[fold, place, seed, head])


def test_curves_hold_every_epoch_of_what_was_chosen(plain: Made) -> None:
    keys = ("system", "head", "fold", "seed", "epoch")
    curves = {tuple(row[key] for key in keys): row["dev_js"] for row in plain.results.curves}
    assert len(curves) == len(plain.results.curves) == 2 * 3 * 3 * SEEDS * 4
    for (system, head, fold, seed, epoch), value in curves.items():
        run = plain.selection.runs[fold, plain.results.selected[system][fold]][seed]
        assert value == run.history.dev_js[head][epoch - 1]


def test_a_head_of_which_nobody_could_choose_an_epoch_has_no_score_on_test(tmp_path: Path) -> None:
    for row in made(tmp_path, unjudged=frozenset({"text"})).scores("test"):
        assert (row["n"] == 0) == (row["head"] == "text")
        assert math.isnan(row["js"]) == (row["head"] == "text")


# --- experts ---


def members(found: Made, row: dict[str, Any]) -> list[int]:
    """Places, in the predictions, of who is in a row's group."""
    predictions = found.results.predictions
    rows = [i for i in range(len(predictions.id)) if predictions.fold[i] == row["fold"]]
    if row["by"] == "class":
        return [i for i in rows if EMOTIONS[reference.argmax(predictions.target[i].tolist())] == row["group"]]
    if row["by"] == "ambiguity":
        low, high = map(float, row["group"].split("-"))
        return [i for i in rows if low <= reference.entropy(predictions.target[i].tolist()) + 1e-6 < high + 1e-5]
    return rows


@pytest.mark.parametrize("which", ["plain", "gaps"])
def test_weights_and_disagreement_are_those_of_the_slow_formulas_in_every_group(
    which: str, request: pytest.FixtureRequest
) -> None:
    """An expert that is not there weighs nothing, and disagreement needs both."""
    found: Made = request.getfixturevalue(which)
    predictions, heads = found.results.predictions, ("audio", "text", "fusion")
    students = set()
    for row in found.results.experts:
        setting, some = found.chosen(row["system"], row["fold"]), members(found, row)
        assert row["n"] == len(some) > 0
        probs = {h: predictions.probs[f"{row['system']}/{h}"][row["seed"]].astype(float) for h in heads}
        pairs = [(probs["audio"][i].tolist(), probs["text"][i].tolist()) for i in some]
        apart = [reference.js(a, t) for a, t in pairs if not math.isnan(a[0] + t[0])]
        assert row["disagreement"] == (pytest.approx(np.mean(apart), abs=1e-6) if apart else None)
        if row["system"] == "cb-ce":
            assert all(row[f"weight_{head}"] is None for head in heads)
            continue
        students.add(setting.values.student)
        experts = [head for head in heads if head != setting.values.student]
        weights = []
        for i in some:
            there = [head for head in experts if not math.isnan(probs[head][i, 0])]
            of_there = [probs[head][i].tolist() for head in there]
            own = reference.expert_weights(predictions.target[i].tolist(), of_there, setting.values.kappa)
            weights.append(dict.fromkeys(experts, 0.0) | dict(zip(there, own, strict=True)))
        for expert in experts:
            assert row[f"weight_{expert}"] == pytest.approx(np.mean([w[expert] for w in weights]), abs=1e-6)
        assert row[f"weight_{setting.values.student}"] is None
    assert students == {"fusion", "audio"}


def test_every_utterance_is_in_one_class_and_one_ambiguity_bin(plain: Made) -> None:
    for system, fold, seed, by in itertools.product(
        ("amber2", "cb-ce"), (1, 2, 3), (0, 1), ("all", "class", "ambiguity")
    ):
        key = (system, fold, seed, by)
        own = [r for r in plain.results.experts if (r["system"], r["fold"], r["seed"], r["by"]) == key]
        assert sum(row["n"] for row in own) == 16


def test_the_disagreement_of_three_modalities_is_the_mean_over_their_pairs(tmp_path: Path) -> None:
    names = ("audio", "text", "video")
    found = made(tmp_path, modalities=names)
    for row in found.results.experts:
        probs = {h: found.results.predictions.probs[f"{row['system']}/{h}"][row["seed"]].astype(float) for h in names}
        pairs = itertools.product(itertools.combinations(names, 2), members(found, row))
        apart = [reference.js(probs[a][i].tolist(), probs[b][i].tolist()) for (a, b), i in pairs]
        assert row["disagreement"] == pytest.approx(np.mean(apart), abs=1e-6)
        if row["system"] == "amber2":
            weights = [row[f"weight_{head}"] for head in (*names, "fusion")]
            assert sum(weight for weight in weights if weight is not None) == pytest.approx(1)
            assert weights.count(None) == 1


def test_the_rows_of_experts_are_read_back_as_they_were_written(tmp_path: Path, gaps: Made) -> None:
    write_experts(tmp_path / "experts.csv", gaps.results.experts)
    assert [{k: v or None for k, v in row.items()} for row in read_experts(tmp_path)] == [
        {k: v or None for k, v in row.items()} for row in gaps.results.experts
    ]
