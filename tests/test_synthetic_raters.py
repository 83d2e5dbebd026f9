"""Models that stand in for raters: what train learns of them, and that dev and test never hear of it."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from slow_training import small
from small_sweep import Swept, swept
from synthetic_data import EMOTIONS, cache_of

from amber2_core.cache import FeatureCache, write_cache
from amber2_core.errors import LabelError, RunFolderError
from amber2_core.metrics import METRICS, evaluate
from amber2_core.run_folder import AGAINST_SYNTHETIC, Predictions, load, read_predictions, summarise, write_predictions
from amber2_core.tables import RatingTable, texts, with_ratings
from amber2_core.votes import VOTERS, LabelPolicy, Voters
from amber2_report.cli import report_runs
from amber2_report.runs import read_run
from amber2_train.cli import train_heads
from amber2_train.fold_data import features_on, fold_data
from amber2_train.folds import make_folds
from amber2_train.training_data import UNRATED, TrainingData
from amber2_train.training_data import training_data as training_data_of

COUNT = 60
SILENT = range(0, COUNT, 7)  # utterances that no model rated
POLICY = LabelPolicy(EMOTIONS)


def rated(*, stimulus: str = "audiovisual") -> FeatureCache:
    """A cache in which two models say, of every utterance but some, "sad" and "happy" of weights 3 and 1."""
    cache = cache_of(COUNT)
    rows = [row for row in range(COUNT) if row not in SILENT]
    more = RatingTable(
        utterance=np.repeat(np.array(rows, dtype=np.int32), 2),
        rater=texts(["listener", "reader"] * len(rows)),
        source=texts(["synthetic"] * 2 * len(rows)),
        stimulus=texts([stimulus] * 2 * len(rows)),
        label=texts(["Sadness", "happy"] * len(rows)),
        weight=np.array([3, 1] * len(rows), dtype=np.float32),
    )
    return replace(cache, ratings=with_ratings(cache.ratings, more))


def training_data(cache: FeatureCache, voters: Voters = "human", policy: LabelPolicy = POLICY) -> TrainingData:
    return training_data_of(cache, {some.modality: some for some in cache.features}, policy, voters=voters)


def test_targets_are_peoples_whoever_is_learnt_from() -> None:
    alone = training_data(cache_of(COUNT))
    assert (alone.synthetic, alone.learnt_targets) == (None, None)
    for voters in VOTERS:
        data = training_data(rated(), voters)
        np.testing.assert_array_equal(data.targets, alone.targets)
        np.testing.assert_array_equal(data.id, alone.id)


def test_what_is_learnt_is_what_the_models_say_or_all_votes_pooled() -> None:
    expected = np.full((COUNT, 4), np.nan)
    pooled = np.zeros((COUNT, 4))
    cache = cache_of(COUNT)
    for row, word in zip(cache.ratings.utterance, cache.ratings.label, strict=True):
        pooled[row, EMOTIONS.index(word)] += 1
    for row in range(COUNT):
        if row not in SILENT:
            expected[row] = [0, 0.25, 0, 0.75]
            pooled[row] += [0, 1, 0, 3]
    synthetic, combined = (training_data(rated(), voters) for voters in ("synthetic", "combined"))
    for data in (synthetic, combined):
        np.testing.assert_array_equal(data.synthetic, expected.astype(np.float32))
    np.testing.assert_array_equal(synthetic.learnt_targets, expected.astype(np.float32))
    np.testing.assert_allclose(combined.learnt_targets, pooled / pooled.sum(1, keepdims=True), rtol=1e-6)
    assert training_data(rated()).learnt_targets is None


def test_who_has_no_synthetic_vote_is_left_out_of_train_alone_and_counted() -> None:
    data = training_data(rated(), "synthetic")
    assert data.dropped[UNRATED] == len(SILENT)
    assert UNRATED not in training_data(rated(), "combined").dropped
    for fold in make_folds("session", data):
        kept = data.learnable(fold)
        assert kept.train.tolist() == [row for row in fold.train if row not in SILENT]
        assert set(fold.test) & set(SILENT)
        for part in ("dev", "test"):
            np.testing.assert_array_equal(getattr(kept, part), getattr(fold, part))
    folds = make_folds("session", data)
    assert training_data(rated()).learnable(folds[0]) is folds[0]


def test_a_fold_in_which_nothing_can_be_learnt_is_refused() -> None:
    data = training_data(rated(), "synthetic")
    fold = make_folds("session", data)[0]
    learnt = np.where(np.isin(np.arange(COUNT), fold.train)[:, None], np.nan, data.learnt_targets)
    with pytest.raises(LabelError, match="Fold 1: no utterance of train has synthetic votes: add some with import-rat"):
        replace(data, learnt_targets=learnt).learnable(fold)


@pytest.mark.parametrize("voters", ["synthetic", "combined"])
def test_a_cache_without_such_votes_says_where_they_come_from(voters: Voters) -> None:
    line = "No utterance has votes of synthetic raters on the audiovisual stimulus: add some with import-ratings, or "
    for cache in (cache_of(COUNT), rated(stimulus="audio")):
        with pytest.raises(LabelError, match=line):
            training_data(cache, voters)


@pytest.mark.parametrize("voters", VOTERS)
def test_a_fold_trains_on_what_is_learnt_and_is_judged_by_people(voters: Voters) -> None:
    data = training_data(rated(), voters)
    fold = data.learnable(make_folds("session", data)[1])
    found = fold_data(data, fold, features_on("cpu", data))
    learnt = data.targets if data.learnt_targets is None else data.learnt_targets
    for rows, own, targets in (
        (found.train, fold.train, learnt),
        (found.dev, fold.dev, data.targets),
        (found.test, fold.test, data.targets),
    ):
        assert torch.equal(rows.targets, torch.from_numpy(targets[own]))


SETTINGS = [small(kappa=8.0), small(kappa=2.0), small("cb-ce")]


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Swept]:
    """Sweeps that learn from people, without and with models beside them, and from models alone."""
    found = {}
    for name, cache, voters in (("alone", cache_of(COUNT), "human"), *((v, rated(), v) for v in VOTERS)):
        data = training_data(cache, voters)
        folds = [data.learnable(fold) for fold in make_folds("session", data)]
        found[name] = swept(tmp_path_factory.mktemp(name), data, SETTINGS, folds)
    return found


def rows_of(sweep: Swept, *splits: str) -> list[dict[str, Any]]:
    return [row for row in sweep.results.rows if row["split"] in splits]


def test_a_planted_rater_changes_neither_scores_nor_selection_where_people_are_learnt(sweeps: dict[str, Swept]) -> None:
    alone, human = sweeps["alone"], sweeps["human"]
    assert rows_of(human, "dev", "test") == rows_of(alone, "dev", "test")
    assert human.results.selected == alone.results.selected
    assert rows_of(alone, AGAINST_SYNTHETIC) == []
    assert rows_of(human, AGAINST_SYNTHETIC) != []


def test_dev_and_test_are_scored_by_people_whoever_is_learnt_from(sweeps: dict[str, Swept]) -> None:
    people = training_data(cache_of(COUNT))
    folds = make_folds("session", people)
    for voters in VOTERS:
        predictions = sweeps[voters].results.predictions
        np.testing.assert_array_equal(predictions.target, people.targets[np.concatenate([f.test for f in folds])])
        for row in rows_of(sweeps[voters], "test"):
            own = predictions.folds[row["fold"]]
            probs = predictions.probs[f"{row['system']}/{row['head']}"][row["seed"], own]
            scores = evaluate(people.targets[folds[row["fold"] - 1].test], probs)
            assert row["n"] == len(own)
            assert {name: row[name] for name in METRICS} == pytest.approx(
                {name: float(scores[name]) for name in METRICS}, nan_ok=True
            )
    assert rows_of(sweeps["human"], "test") != rows_of(sweeps["synthetic"], "test")


def test_rows_against_models_are_the_metrics_of_the_same_predictions_where_models_rated(
    sweeps: dict[str, Swept],
) -> None:
    said = np.array([0, 0.25, 0, 0.75])
    for voters in VOTERS:
        predictions, rows = sweeps[voters].results.predictions, rows_of(sweeps[voters], AGAINST_SYNTHETIC)
        tests = rows_of(sweeps[voters], "test")
        key = ("system", "head", "fold", "seed", "selected", "epoch", "kappa")
        assert [[row[name] for name in key] for row in rows] == [[row[name] for name in key] for row in tests]
        for row in rows:
            own = [k for k in predictions.folds[row["fold"]] if int(predictions.id[k][1:]) not in SILENT]
            probs = predictions.probs[f"{row['system']}/{row['head']}"][row["seed"], own]
            scores = evaluate(np.tile(said, (len(own), 1)), probs)
            assert row["n"] == len(own)
            assert row["js"] == pytest.approx(float(scores["js"]))
            assert row["accuracy"] == pytest.approx(float(scores["accuracy"]))


def test_models_are_learnt(sweeps: dict[str, Swept]) -> None:
    """Who learnt models is nearer to them, and farther from people, than who learnt people."""
    means = {
        (voters, split): np.mean([row["js"] for row in rows_of(sweeps[voters], split) if row["head"] == "fusion"])
        for voters in VOTERS
        for split in ("test", AGAINST_SYNTHETIC)
    }
    near = [means[voters, AGAINST_SYNTHETIC] for voters in ("synthetic", "combined", "human")]
    assert near == sorted(near)
    assert means["human", "test"] < means["synthetic", "test"]


def test_summaries_tell_the_two_apart(sweeps: dict[str, Swept]) -> None:
    rows = sweeps["human"].results.rows
    people, models = summarise(rows), summarise(rows, split=AGAINST_SYNTHETIC)
    assert people == summarise(rows_of(sweeps["human"], "test"))
    assert people == summarise(sweeps["alone"].results.rows)
    assert people.keys() == models.keys()
    assert people["cb-ce"]["fusion"]["js"] != models["cb-ce"]["fusion"]["js"]
    assert summarise(sweeps["alone"].results.rows, split=AGAINST_SYNTHETIC) == {}


# --- from the command to the page ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders that learnt from people and from models, and one of a cache without these."""
    folder = tmp_path_factory.mktemp("runs")
    write_cache(folder / "rated.h5", rated())
    write_cache(folder / "alone.h5", cache_of(COUNT))
    for name, cache, voters in (
        ("human", "rated", "human"), ("synthetic", "rated", "synthetic"), ("alone", "alone", "human"),
    ):  # fmt: skip
        words = ["--cache", str(folder / f"{cache}.h5"), "--output", str(folder / name), "--targets", voters]
        words += ["--system", "cb-ce", "--hidden", "4", "--seeds", "2", "--epochs", "2", "--json"]
        done = CliRunner().invoke(train_heads, words)
        assert done.exit_code == 0, done.output
        (folder / f"{name}.json").write_text(done.stdout)
    return folder


def test_a_run_folder_tells_who_was_learnt_and_what_models_said(folder: Path) -> None:
    run, alone = load(folder / "synthetic"), load(folder / "alone")
    assert (run.settings["targets"], alone.settings["targets"]) == ("synthetic", "human")
    assert run.settings["utterances"]["dropped"][UNRATED] == len(SILENT)
    silent = run.utterances["id"].isin([f"u{row:03}" for row in SILENT])
    assert run.utterances.loc[silent, "synthetic_sad"].isna().all()
    assert (run.utterances.loc[~silent, "synthetic_sad"] == 0.75).all()
    assert "synthetic_sad" not in alone.utterances
    assert alone.arrays.synthetic is None
    assert run.settings["digests"]["votes"] == alone.settings["digests"]["votes"]
    assert "synthetic votes" not in alone.settings["digests"]
    assert len(run.tested) == len(run.against_synthetic) == 3 * 3 * 2
    assert len(alone.against_synthetic) == 0
    summary = json.loads((folder / "synthetic" / "summary.json").read_text())
    assert summary["against_synthetic"] == json.loads((folder / "synthetic.json").read_text())["against_synthetic"]
    assert "against_synthetic" not in json.loads((folder / "alone.json").read_text())


def test_who_runs_a_command_again_learns_from_the_same_raters(folder: Path, tmp_path: Path) -> None:
    words = ["--again", str(folder / "synthetic"), "--output", str(tmp_path / "again")]
    done = CliRunner().invoke(train_heads, words)
    assert done.exit_code == 0, done.output
    assert "data, settings and numbers are those of" in done.stdout
    assert "against synthetic raters" in done.stdout


def test_a_report_shows_agreement_and_scores_against_models_only_where_there_are_any(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    monkeypatch.setattr("amber2_report.page.figures", lambda group, speaker: defaultdict(list))  # drawing takes long
    for name, runs in (("both", ["human", "synthetic"]), ("none", ["alone"])):
        words = [*(str(folder / run) for run in runs), "--output", str(tmp_path / name)]
        done = CliRunner().invoke(report_runs, words)
        assert done.exit_code == 0, done.output
        if name == "both":
            assert "synthetic learnt synthetic votes; its dev and test are people's." in done.stdout
    page, plain = ((tmp_path / name / "report.html").read_text() for name in ("both", "none"))
    assert page.count('href="#c1-agreement"') == page.count('id="c1-agreement"') == 1
    assert "Synthetic raters" not in plain
    tables = {path.stem for path in (tmp_path / "both" / "tables").glob("*.csv")}
    others = {path.stem for path in (tmp_path / "none" / "tables").glob("*.csv")}
    assert tables - others >= {"agreement", "against-synthetic"}
    assert not {"agreement", "against-synthetic"} & others
    agreement = pd.read_csv(tmp_path / "both" / "tables" / "agreement.csv")
    assert agreement["n"].iloc[0] == agreement["n"].iloc[1:].sum() == COUNT - len(SILENT)
    scores = pd.read_csv(tmp_path / "both" / "tables" / "against-synthetic.csv").set_index("entry")
    rows = load(folder / "human").against_synthetic
    own = rows[(rows["system"] == "cb-ce") & (rows["head"] == "fusion")]
    assert scores.loc["human: cb-ce fusion", "js"] == pytest.approx(own.groupby("seed")["js"].mean().mean())
    assert scores.loc["human: cb-ce fusion", "n"] == COUNT - len(SILENT)


def changed(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of a run folder with other predictions."""
    shutil.copytree(folder, target)
    write_predictions(target / "predictions.npz", replace(load(folder).arrays, **changes))
    return target


def test_rows_against_models_that_are_not_those_of_the_predictions_are_refused(folder: Path, tmp_path: Path) -> None:
    said = load(folder / "human").arrays.synthetic
    assert said is not None
    read_run(folder / "human")
    with pytest.raises(RunFolderError, match=r"rows of the split test_synthetic, predictions\.npz makes 0"):
        read_run(changed(folder / "human", tmp_path / "a", synthetic=None))
    with pytest.raises(RunFolderError, match=r"was changed by hand, or is of another run: .* of cb-ce/"):
        read_run(changed(folder / "human", tmp_path / "b", synthetic=said[:, ::-1]))
    broken = said.copy()
    broken[~np.isnan(said[:, 0]), 0] = np.nan
    for name, wrong in (("c", said[1:]), ("d", broken)):
        with pytest.raises(RunFolderError, match="synthetic is no distributions that fit its targets"):
            read_run(changed(folder / "human", tmp_path / name, synthetic=wrong))


def test_predictions_of_before_have_no_synthetic_raters(tmp_path: Path) -> None:
    target = np.array([[0.5, 0.5]], dtype=np.float32)
    whole = Predictions(texts(["u"]), np.array([1]), target, ("happy", "sad"), {"a/b": target[None]}, target)
    write_predictions(tmp_path / "predictions.npz", whole)
    np.testing.assert_array_equal(read_predictions(tmp_path).synthetic, target)
    with np.load(tmp_path / "predictions.npz") as arrays:
        np.savez(tmp_path / "predictions.npz", **{name: arrays[name] for name in arrays.files if name != "synthetic"})
    assert read_predictions(tmp_path).synthetic is None
