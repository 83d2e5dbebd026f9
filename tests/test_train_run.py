"""`train-heads` from a cache to a run folder: every number can be computed again, and the same call repeats it."""

from __future__ import annotations

import csv
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from synthetic_data import cache_of, write_small_cache

from amber2_core.cache import read_cache, write_cache
from amber2_core.heads_folder import read_heads
from amber2_core.metrics import METRICS, evaluate
from amber2_core.run_folder import (
    load,
    read_curves,
    read_experts,
    read_predictions,
    read_results,
    read_settings,
    read_summary,
)
from amber2_report.cli import report_runs
from amber2_train.cli import train_heads

QUICK = ["--hidden", "5", "--seeds", "2", "--epochs", "3", "--batch-size", "16", "--lr", "0.03"]
GRID = ["--kappa", "0,8", "--lambda-mai", "0.3,2"]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(train_heads, list(arguments))


def train(cache: Path, output: Path, *more: str) -> Result:
    result = call("--cache", str(cache), "--output", str(output), *QUICK, *more)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_cache(tmp_path_factory.mktemp("caches"), count=48)


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(cache, folder, *GRID)
    return folder


def test_a_run_folder_holds_what_its_docstring_says(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir()) == [
        "curves.csv", "experts.csv", "heads", "log.txt", "predictions.npz", "results.csv", "settings.json",
        "summary.json",
    ]  # fmt: skip
    names = {f"{s}-fold{k}-seed{seed}.safetensors" for s in ("amber2", "cb-ce") for k in (1, 2, 3) for seed in (0, 1)}
    assert {path.name for path in (run / "heads").iterdir()} == names


def test_the_test_rows_can_be_computed_from_the_predictions_exactly(run: Path) -> None:
    predictions = read_predictions(run)
    tested = [row for row in read_results(run) if row["split"] == "test"]
    assert len(tested) == 2 * 3 * 3 * 2
    for row in tested:
        chosen = predictions.fold == row["fold"]
        probs = predictions.probs[f"{row['system']}/{row['head']}"][row["seed"], chosen]
        scores = evaluate(predictions.target[chosen], probs)
        assert [row[name] for name in METRICS] == [float(scores[name]) for name in METRICS]
        assert row["n"] == chosen.sum()


def test_the_summary_can_be_computed_from_the_results_file_alone(run: Path) -> None:
    with (run / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    summary = read_summary(run)["table"]
    for system in ("amber2", "cb-ce"):
        for head in ("audio", "text", "fusion"):
            for metric in METRICS:
                per_seed = []
                for seed in ("0", "1"):
                    values = [
                        float(row[metric])
                        for row in rows
                        if (row["system"], row["head"], row["seed"]) == (system, head, seed)
                    ]
                    assert len(values) == 3
                    per_seed.append(statistics.fmean(values))
                assert summary[system][head][metric]["mean"] == pytest.approx(statistics.fmean(per_seed), abs=1e-12)
                assert summary[system][head][metric]["sd"] == pytest.approx(statistics.stdev(per_seed), abs=1e-12)


def test_the_heads_know_what_they_are_and_give_the_predictions(run: Path, cache: Path) -> None:
    predictions = read_predictions(run)
    features = {f.modality: f.values for f in cache_of(48).features}
    for path in (run / "heads").iterdir():
        heads = read_heads(path)
        system, fold, seed = heads.origin["system"], heads.origin["fold"], heads.origin["seed"]
        assert path.name == f"{system}-fold{fold}-seed{seed}.safetensors"
        assert heads.emotions == predictions.emotions
        assert {name: heads.origin[name] for name in ("policy", "features", "versions")} == {
            name: read_settings(run)[name] for name in ("policy", "features", "versions")
        }
        rows = np.flatnonzero(predictions.fold == fold)
        places = [int(name[1:]) for name in predictions.id[rows]]
        for head, probs in heads.probs({m: torch.from_numpy(x[places]) for m, x in features.items()}).items():
            np.testing.assert_allclose(probs, predictions.probs[f"{system}/{head}"][seed, rows], atol=1e-6)


def test_settings_tell_the_command_the_cache_and_what_was_kept(run: Path, cache: Path) -> None:
    settings = read_settings(run)
    assert settings["command"] == ["train-heads", "--cache", str(cache), "--output", str(run), *QUICK, *GRID]
    assert settings["cache"] == str(cache)
    assert settings["features"]["audio"]["name"] == "audio-model"
    assert settings["features"]["text"]["recipe"] == {"model": "text"}
    assert settings["utterances"]["kept"] == 48
    assert settings["folds"]["protocol"] == "session"
    assert settings["folds"]["sizes"]["1"] == {"train": 16, "dev": 16, "test": 16}
    assert settings["grid"] == {
        "kappa": [0.0, 8.0], "lambda_mai": [0.3, 2.0], "hidden": [5], "batch_size": [16], "lr": [0.03],
    }  # fmt: skip
    log = (run / "log.txt").read_text()
    assert "48 of 48 utterances kept" in log
    assert "fold 3 of 3" in log


def test_the_curves_hold_every_epoch_of_the_selected_settings_and_meet_their_dev_scores(run: Path) -> None:
    curves = {(r["system"], r["head"], r["fold"], r["seed"], r["epoch"]): r["dev_js"] for r in read_curves(run)}
    chosen = [row for row in read_results(run) if row["split"] == "dev" and row["selected"]]
    assert len(curves) == 3 * len(chosen) == 3 * 2 * 3 * 3 * 2
    for row in chosen:
        key = (row["system"], row["head"], row["fold"], row["seed"])
        assert curves[*key, row["epoch"]] == pytest.approx(row["js"], abs=1e-6)
        if row["system"] == "cb-ce" or row["head"] == "fusion":  # these are judged by their own score
            assert curves[*key, row["epoch"]] == min(curves[*key, epoch] for epoch in (1, 2, 3))


def test_the_selected_settings_are_those_marked_in_the_results(run: Path) -> None:
    selected = read_summary(run)["selected"]
    assert set(selected["amber2"]) == {"1", "2", "3"}
    for fold, point in selected["amber2"].items():
        marked = {
            (row["kappa"], row["lambda_mai"])
            for row in read_results(run)
            if row["system"] == "amber2" and row["fold"] == int(fold) and row["selected"]
        }
        assert marked == {(point["kappa"], point["lambda_mai"])}
    assert all(point == {} for point in selected["cb-ce"].values())


def without_times(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by name, without what tells the time or the folder's name."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    settings = json.loads(files.pop("settings.json"))
    del settings["created"], settings["command"]
    files["settings.json"] = json.dumps(settings).encode()
    del files["log.txt"]
    return files


def test_the_same_command_twice_gives_the_same_files(run: Path, cache: Path, tmp_path: Path) -> None:
    train(cache, tmp_path / "second", *GRID)
    first, second = without_times(run), without_times(tmp_path / "second")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def permuted_labels(path: Path, session: str) -> Path:
    """The cache with the ratings of one session handed round among its utterances."""
    cache = cache_of(48)
    rows = np.flatnonzero(cache.utterances.session == session)
    to = np.arange(48)
    to[rows] = np.roll(rows, 5)
    order = np.argsort(to[cache.ratings.utterance], kind="stable")
    labels = cache.ratings.label.copy()
    labels[:] = cache.ratings.label[order]
    write_cache(path, replace(cache, ratings=replace(cache.ratings, label=labels)))
    return path


def test_permuting_the_test_targets_changes_no_choice_of_the_command(run: Path, tmp_path: Path) -> None:
    sessions = ["Ses0", "Ses1", "Ses2"]
    for fold, session in enumerate(sessions, start=1):
        train(permuted_labels(tmp_path / f"{session}.h5", session), tmp_path / session, *GRID)
        before, after = (read_summary(folder)["selected"]["amber2"] for folder in (run, tmp_path / session))
        assert before[str(fold)] == after[str(fold)]

        def rows(folder: Path, split: str, fold: int = fold) -> list[dict[str, Any]]:
            return [row for row in read_results(folder) if row["fold"] == fold and row["split"] == split]

        assert rows(run, "dev") == rows(tmp_path / session, "dev")
        tests = [rows(folder, "test") for folder in (run, tmp_path / session)]
        assert [row["epoch"] for row in tests[0]] == [row["epoch"] for row in tests[1]]
        assert [row["js"] for row in tests[0]] != [row["js"] for row in tests[1]]


def test_one_cache_in_the_folder_is_found_and_the_run_is_named_for_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("--cache-dir", str(cache.parent), *QUICK, "--epochs", "1", "--seeds", "1", "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    folder = Path(shown["run"])
    assert folder.parent == Path("runs")
    assert folder.name.endswith("-made-up")
    assert shown["table"] == read_summary(folder)["table"]
    assert shown["table"]["amber2"]["fusion"]["js"]["sd"] is None


def test_the_table_shows_every_system_and_head_and_what_dev_chose(cache: Path, tmp_path: Path) -> None:
    result = train(cache, tmp_path / "run", *GRID)
    lines = result.stdout.splitlines()
    for system in ("amber2", "cb-ce"):
        for head in ("audio", "text", "fusion"):
            assert any(line.split()[:2] == [system, head] and "±" in line for line in lines)
    assert any("amber2, chosen on dev: fold 1: lambda_mai" in line for line in lines)
    assert lines[-1] == f"run folder: {tmp_path / 'run'}"


def test_a_policy_given_as_options_is_the_policy_used(cache: Path, tmp_path: Path) -> None:
    train(cache, tmp_path / "run", "--emotions", "happy,neutral,angry", "--merge", "sad=neutral", "--keep", "majority")
    settings = read_settings(tmp_path / "run")
    assert settings["emotions"] == ["happy", "neutral", "angry"]
    assert settings["policy"]["merge"] == [["sad", "neutral"]]
    assert settings["utterances"]["dropped"]["not keep=majority"] > 0
    assert read_predictions(tmp_path / "run").target.max(1).min() > 0.5


def test_three_modalities_train_with_two_or_three_experts(tmp_path: Path) -> None:
    cache = write_small_cache(tmp_path, count=36, modalities=("audio", "text", "video"), missing={"video": [4]})
    train(cache, tmp_path / "run", "--video", "video-model", "--student", "video")
    heads = {row["head"] for row in read_results(tmp_path / "run")}
    assert heads == {"audio", "text", "video", "fusion"}
    assert read_settings(tmp_path / "run")["utterances"]["dropped"]["features missing"] == 1
    (row, *_) = read_experts(tmp_path / "run")
    weights = [row[f"weight_{head}"] for head in ("audio", "text", "fusion")]
    assert sum(weights) == pytest.approx(1)
    assert row["weight_video"] is None
    train(cache, tmp_path / "without")
    assert {row["head"] for row in read_results(tmp_path / "without")} == {"audio", "text", "fusion"}


def test_every_setting_is_scored_on_test_where_that_is_asked_for_and_the_table_stays(
    run: Path, cache: Path, tmp_path: Path
) -> None:
    train(cache, tmp_path / "all", *GRID, "--score-all")
    rows = [row for row in read_results(tmp_path / "all") if row["split"] == "test"]
    assert len(rows) == (4 + 1) * 3 * 3 * 2
    selected = [row for row in rows if row["selected"]]
    assert selected == [row for row in read_results(run) if row["split"] == "test"]
    assert read_summary(tmp_path / "all") == read_summary(run)


def test_variants_have_rows_heads_and_predictions_of_their_own(cache: Path, tmp_path: Path) -> None:
    train(cache, tmp_path / "run", "--preset", "ablation")
    summary = read_summary(tmp_path / "run")["table"]
    assert set(summary) == {
        "amber2", "cb-ce", "amber2-no-mai", "amber2-no-rai", "amber2-uniform-weights", "amber2-hard-labels",
        "amber2-student-audio", "amber2-student-text",
    }  # fmt: skip
    assert "amber2-no-mai/fusion" in read_predictions(tmp_path / "run").probs
    heads = read_heads(tmp_path / "run" / "heads" / "amber2-no-mai-fold1-seed0.safetensors")
    assert heads.origin["system"] == "amber2-no-mai"
    assert heads.origin["setting"]["lambda_mai"] == 0
    uniform = [row for row in read_experts(tmp_path / "run") if row["system"] == "amber2-uniform-weights"]
    assert {row["weight_audio"] for row in uniform} == {0.5}


def test_bfloat16_gives_nearly_the_same_scores_and_exact_ones_of_its_heads(
    run: Path, cache: Path, tmp_path: Path
) -> None:
    train(cache, tmp_path / "low", *GRID, "--precision", "bf16")
    exact, low = (read_summary(folder)["table"]["amber2"]["fusion"]["js"] for folder in (run, tmp_path / "low"))
    assert low["mean"] != exact["mean"]
    assert low["mean"] == pytest.approx(exact["mean"], abs=0.02)
    predictions = read_predictions(tmp_path / "low")
    row = next(r for r in read_results(tmp_path / "low") if r["split"] == "test")
    probs = predictions.probs[f"{row['system']}/{row['head']}"][row["seed"], predictions.fold == row["fold"]]
    assert row["js"] == float(evaluate(predictions.target[predictions.fold == row["fold"]], probs)["js"])


LACKING = {"audio": [0, 13, 40], "text": [1, 2, 5, 9, 17, 21, 22, 30, 41], "video": [2, 3, 13, 40, 44]}


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which some utterances could not be encoded, one of them in no modality."""
    folder = tmp_path_factory.mktemp("gaps")
    return write_small_cache(
        folder, count=48, modalities=("audio", "text", "video"), missing={**LACKING, "text": [*LACKING["text"], 13]}
    )


@pytest.fixture(scope="module")
def masked(gaps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked") / "run"
    train(gaps, folder, *GRID, "--missing", "mask")
    return folder


def test_utterances_that_lack_a_modality_are_dropped_and_counted_unless_a_mask_is_asked_for(
    gaps: Path, masked: Path, tmp_path: Path
) -> None:
    train(gaps, tmp_path / "dropped")
    dropped, kept = read_settings(tmp_path / "dropped"), read_settings(masked)
    lacking = {*LACKING["audio"], *LACKING["text"]}
    assert dropped["missing"] == "drop"
    assert dropped["utterances"]["missing"] == {}
    assert dropped["utterances"]["kept"] == 48 - len(lacking)
    assert dropped["utterances"]["dropped"]["features missing"] == len(lacking)
    assert kept["missing"] == "mask"
    assert kept["utterances"]["missing"] == {"audio": 2, "text": 9}
    assert kept["utterances"]["kept"] == 47
    assert kept["utterances"]["dropped"]["no features of any modality"] == 1
    log = (masked / "log.txt").read_text()
    assert "47 of 48 utterances kept (dropped: 1 no features of any modality)" in log
    assert "of these, trained and scored with what they have: 2 without audio, 9 without text" in log


def test_the_test_rows_under_a_mask_can_be_computed_from_the_predictions_exactly(masked: Path) -> None:
    predictions = read_predictions(masked)
    assert len(predictions.id) == 47
    for row in (r for r in read_results(masked) if r["split"] == "test"):
        chosen = predictions.fold == row["fold"]
        probs = predictions.probs[f"{row['system']}/{row['head']}"][row["seed"], chosen]
        lacking = [f"u{k:03}" in predictions.id[chosen] for k in LACKING.get(row["head"], ()) if k != 13]
        there = np.isfinite(probs).all(-1)
        assert row["n"] == there.sum() == chosen.sum() - sum(lacking)
        scores = evaluate(predictions.target[chosen][there], probs[there])
        assert [row[name] for name in METRICS] == [float(scores[name]) for name in METRICS]
    tables = load(masked)
    assert all(np.isfinite(x).all() for name, x in tables.predictions.items() if name.startswith("predicted_"))
    assert len(tables.predictions["id"]) == 2 * 2 * (3 * 47 - 2 - 9)


def test_with_nothing_missing_a_mask_changes_no_number(run: Path, cache: Path, tmp_path: Path) -> None:
    train(cache, tmp_path / "masked", *GRID, "--missing", "mask")
    plain, masked = without_times(run), without_times(tmp_path / "masked")
    settings = json.loads(masked["settings.json"])
    assert settings["missing"] == "mask"
    assert settings["utterances"]["missing"] == {}
    assert [name for name in plain if plain[name] != masked[name]] == ["settings.json"]


@pytest.mark.parametrize(
    "more",
    [
        ["--video", "video-model", "--student", "fusion,video", "--fusion", "gmu,softmax-gate"],
        ["--video", "video-model", "--preset", "ablation", "--seeds", "1"],
        ["--precision", "bf16", "--inputs", "standardized", "--dropout", "0.2", "--patience", "1"],
        ["--fusion", "concat,self-gate", "--weight-gradient", "flow", "--score-all", "--batch-size", "1"],
    ],
    ids=["video", "ablation", "bf16", "score-all"],
)
def test_a_mask_goes_with_all_other_options_and_no_number_is_missing(
    gaps: Path, tmp_path: Path, more: list[str]
) -> None:
    train(gaps, tmp_path / "run", "--missing", "mask", *more)
    for row in read_results(tmp_path / "run"):
        assert row["epoch"] > 0
        assert all(np.isfinite(row[name]) for name in METRICS), row
    for row in read_experts(tmp_path / "run"):
        weights = [value for name, value in row.items() if name.startswith("weight_") and value is not None]
        assert not weights or sum(weights) == pytest.approx(1)
    table = read_summary(tmp_path / "run")["table"]
    assert all(
        v["mean"] is not None for heads in table.values() for metrics in heads.values() for v in metrics.values()
    )


def test_a_plan_counts_what_a_mask_keeps_and_trains_nothing(gaps: Path, tmp_path: Path) -> None:
    result = call(
        "--cache", str(gaps), "--output", str(tmp_path / "run"), *QUICK, "--missing", "mask", "--plan", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["runs"] == 2 * 3 * 2
    assert list(tmp_path.iterdir()) == []


def test_the_heads_of_a_mask_give_the_predictions_of_utterances_with_and_without(gaps: Path, masked: Path) -> None:
    predictions, cache = read_predictions(masked), read_cache(gaps)
    place = {name: k for k, name in enumerate(cache.utterances.id)}
    sets = {f.modality: f for f in cache.features if f.modality != "video"}
    for path in sorted((masked / "heads").iterdir())[:4]:
        heads = read_heads(path)
        rows = np.flatnonzero(predictions.fold == heads.origin["fold"])
        of_cache = [place[name] for name in predictions.id[rows]]
        features = {m: torch.from_numpy(f.values[of_cache]) for m, f in sets.items()}
        present = {m: torch.from_numpy(f.encoded[of_cache]) for m, f in sets.items()}
        for head, probs in heads.probs(features, present).items():
            kept = predictions.probs[f"{heads.origin['system']}/{head}"][heads.origin["seed"], rows]
            np.testing.assert_allclose(probs.numpy(), kept, atol=1e-6)


def test_a_masked_run_becomes_a_report_without_a_word_of_nan(gaps: Path, tmp_path: Path) -> None:
    more = ["--video", "video-model", "--student", "fusion,text", "--missing", "mask"]
    train(gaps, tmp_path / "run", *GRID, *more)
    result = CliRunner().invoke(report_runs, [str(tmp_path / "run"), "--output", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    for path in (tmp_path / "report" / "tables").iterdir():
        words = path.read_text(encoding="utf-8")
        assert not re.search(r"\bnan\b|\binf\b", words, re.IGNORECASE), path.name
    notes = (tmp_path / "report" / "tables" / "all-metrics.md").read_text(encoding="utf-8")
    assert "cb-ce text 38 of 47" in notes
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "missing: audio 2, text 9, video 4" in page
    assert not re.search(r"\bNaN\b", page)


def test_a_session_without_transcripts_is_trained_and_reported_and_the_log_and_notes_say_so(tmp_path: Path) -> None:
    cache = write_small_cache(tmp_path, count=48, sessions=4, speakers=8, missing={"text": range(1, 48, 4)})
    train(cache, tmp_path / "run", "--missing", "mask")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "fold 1: no utterance of dev has text" in log
    assert "fold 2: no utterance of test has text" in log
    table = read_summary(tmp_path / "run")["table"]
    assert all(
        v["mean"] is not None for heads in table.values() for metrics in heads.values() for v in metrics.values()
    )
    result = CliRunner().invoke(report_runs, [str(tmp_path / "run"), "--output", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    notes = (tmp_path / "report" / "tables" / "all-metrics.md").read_text(encoding="utf-8")
    assert "amber2 text has no score in fold 2" in notes
    assert "cb-ce text has no score in fold 1, 2" in notes
    for path in (tmp_path / "report" / "tables").iterdir():
        assert not re.search(r"\bnan\b", path.read_text(encoding="utf-8"), re.IGNORECASE), path.name
