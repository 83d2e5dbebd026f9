"""`train-heads` from a cache to a run folder: every number can be computed again, and the same call repeats it."""

from __future__ import annotations

import csv
import json
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from synthetic_data import cache_of, write_small_cache

from amber2_core import engine
from amber2_core.cache import Frames, write_cache
from amber2_core.heads_folder import read_heads
from amber2_core.metrics import METRICS, evaluate
from amber2_core.run_folder import (
    mean_and_sd,
    read_curves,
    read_experts,
    read_predictions,
    read_results,
    read_settings,
    read_summary,
    read_utterances,
)
from amber2_core.tables import texts
from amber2_report.cli import report_runs
from amber2_train import run as run_module
from amber2_train.cli import train_heads
from amber2_train.options import Grid, TrainOptions
from amber2_train.results import Report
from amber2_train.show import print_table

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
def shown(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run folder, and what the command said."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return folder, train(cache, folder, *GRID)


@pytest.fixture(scope="module")
def run(shown: tuple[Path, Result]) -> Path:
    return shown[0]


def test_a_run_folder_holds_what_its_docstring_says(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir()) == [
        "curves.csv", "experts.csv", "heads", "log.txt", "predictions.npz", "results.csv", "settings.json",
        "summary.json", "utterances.csv",
    ]  # fmt: skip
    names = {f"{s}-fold{k}-seed{seed}.safetensors" for s in ("amber2", "cb-ce") for k in (1, 2, 3) for seed in (0, 1)}
    assert {path.name for path in (run / "heads").iterdir()} == names
    assert [path.name for path in run.parent.iterdir()] == ["first"]


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
                    key = (system, head, seed)
                    values = [float(row[metric]) for row in rows if (row["system"], row["head"], row["seed"]) == key]
                    assert len(values) == 3
                    per_seed.append(statistics.fmean(values))
                assert summary[system][head][metric]["mean"] == pytest.approx(statistics.fmean(per_seed), abs=1e-12)
                assert summary[system][head][metric]["sd"] == pytest.approx(statistics.stdev(per_seed), abs=1e-12)


def test_the_heads_know_what_they_are_and_give_the_predictions(run: Path) -> None:
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
    assert settings["utterances"] == {
        "in the cache": 48,
        "kept": 48,
        "dropped": {"no counting vote": 0, "not keep=any-vote": 0, "features missing": 0},
        "missing": {},
    }
    assert settings["folds"]["protocol"] == "session"
    assert settings["folds"]["sizes"]["1"] == {"train": 16, "dev": 16, "test": 16}
    assert settings["grid"] == {
        "kappa": [0.0, 8.0], "lambda_mai": [0.3, 2.0], "hidden": [5], "batch_size": [16], "lr": [0.03],
    }  # fmt: skip
    assert (settings["systems"], settings["metrics"]) == (["amber2", "cb-ce"], list(METRICS))
    assert set(settings["axes"]) > set(settings["grid"])


def test_utterances_stand_in_the_order_of_the_predictions_with_what_people_group_by(run: Path) -> None:
    utterances, predictions = read_utterances(run), read_predictions(run)
    assert utterances is not None
    assert utterances["id"].tolist() == predictions.id.tolist()
    assert utterances["fold"].tolist() == predictions.fold.tolist()
    numbers = [int(name[1:]) for name in predictions.id]
    assert utterances["speaker"].tolist() == [f"s{number % 6}" for number in numbers]
    assert utterances["session"].tolist() == [f"Ses{number % 3}" for number in numbers]


def test_the_log_tells_what_was_kept_and_chosen(run: Path) -> None:
    log = (run / "log.txt").read_text()
    assert "48 of 48 utterances kept (dropped: none)" in log
    for fold, point in read_summary(run)["selected"]["amber2"].items():
        words = f"amber2 lambda_mai {point['lambda_mai']} kappa {point['kappa']}"
        assert re.search(rf"fold {fold} of 3 after .* s; chosen on dev: {words} \(dev js .*\), cb-ce \(dev js", log)
    assert re.search(r"done in [0-9.]+ s\n$", log)


def test_the_curves_hold_every_epoch_of_the_selected_settings_and_meet_their_dev_scores(run: Path) -> None:
    curves = {(r["system"], r["head"], r["fold"], r["seed"], r["epoch"]): r["dev_js"] for r in read_curves(run)}
    chosen = [row for row in read_results(run) if row["split"] == "dev" and row["selected"]]
    assert len(curves) == 3 * len(chosen) == 3 * 2 * 3 * 3 * 2
    for row in chosen:
        key = (row["system"], row["head"], row["fold"], row["seed"])
        assert curves[*key, row["epoch"]] == pytest.approx(row["js"], abs=1e-6)
        if row["system"] == "cb-ce" or row["head"] == "fusion":  # these are judged by their own score
            assert curves[*key, row["epoch"]] == min(curves[*key, epoch] for epoch in (1, 2, 3))


def test_the_selected_settings_have_the_lowest_mean_dev_js_and_are_those_marked_in_the_results(run: Path) -> None:
    selected = read_summary(run)["selected"]
    assert set(selected["amber2"]) == {"1", "2", "3"}
    for fold, point in selected["amber2"].items():
        rows = [row for row in read_results(run) if (row["system"], row["fold"]) == ("amber2", int(fold))]
        means: dict[tuple[float, float], list[float]] = {}
        for row in rows:
            if (row["head"], row["split"]) == ("fusion", "dev"):
                means.setdefault((row["kappa"], row["lambda_mai"]), []).append(row["js"])
        best = min(means, key=lambda key: statistics.fmean(means[key]))
        assert {len(some) for some in means.values()} == {2}
        assert (point["kappa"], point["lambda_mai"]) == best
        assert {(row["kappa"], row["lambda_mai"]) for row in rows if row["selected"]} == {best}
    assert all(point == {} for point in selected["cb-ce"].values())


def test_the_table_shows_every_system_and_head_and_what_dev_chose(shown: tuple[Path, Result]) -> None:
    folder, result = shown
    lines = result.stdout.splitlines()
    for system in ("amber2", "cb-ce"):
        for head in ("audio", "text", "fusion"):
            assert any(line.split()[:2] == [system, head] and "±" in line for line in lines)
    assert any("amber2, chosen on dev: fold 1: lambda_mai" in line for line in lines)
    (weights,) = [line for line in lines if line.startswith("amber2, mean expert weight: ")]
    own = [row for row in read_experts(folder) if row["system"] == "amber2" and row["by"] == "all"]
    for expert in ("audio", "text"):
        assert f"{expert} {statistics.fmean(row[f'weight_{expert}'] for row in own):.3f}" in weights
    assert lines[-1] == f"run folder: {folder}"


def test_a_system_of_a_long_name_is_shown_with_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = "a-system-that-says-at-length-what-it-does"
    score = {"mean": 0.25, "sd": 0.125}
    print_table(Report(tmp_path, {system: {"fusion": dict.fromkeys(METRICS, score)}}, {}, {}))
    _, header, row, _ = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["system", "head", "js", "↓", "bc"]
    printed = sum(metric.printed > 0 for metric in METRICS.values())
    assert row.split() == [system, "fusion", *["0.250", "±", "0.125"] * printed]


def test_a_score_that_is_no_number_anywhere_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {metric: {"mean": 0.5, "sd": 0.25} for metric in METRICS}
    nowhere = mean_and_sd(np.array([np.nan, np.nan]))
    table = {"cb-ce": {"fusion": {**scores, "r2": nowhere, "ece": mean_and_sd(np.array([0.125]))}}}
    print_table(Report(Path("run"), table, {}, {}))
    head, line, *_ = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    cells = " ".join(line).replace(" ± ", "±").split()
    assert dict(zip([word for word in head if word not in "↑↓"], cells, strict=True)) == {
        "system": "cb-ce", "head": "fusion",
        **dict.fromkeys(("js", "bc", "macro_f1", "weighted_f1", "accuracy", "uar"), "0.500±0.250"),
        "r2": "–", "ece": "0.125",
    }  # fmt: skip


def without_times(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by name, without what tells the time or the folder's name."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    settings = json.loads(files.pop("settings.json"))
    del settings["created"], settings["command"]
    log = re.sub(r"(?m)^[\d-]+ [\d:]+ ", "", files.pop("log.txt").decode())  # folds may end in any order
    lines = sorted(re.sub(r"[0-9.]+ s\b", "N s", log).splitlines())
    return {**files, "settings.json": json.dumps(settings).encode(), "log.txt": "\n".join(lines).encode()}


def test_the_same_command_gives_the_same_files_with_two_workers_and_a_full_log_where_nothing_is_said(
    run: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    result = train(cache, tmp_path / "second", *GRID, "--quiet")
    assert result.stderr == ""
    first, second = without_times(run), without_times(tmp_path / "second")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


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


def test_a_policy_given_as_options_is_the_policy_used(cache: Path, tmp_path: Path) -> None:
    train(cache, tmp_path / "run", "--emotions", "happy,neutral,angry", "--merge", "sad=neutral", "--keep", "majority")
    settings = read_settings(tmp_path / "run")
    assert settings["emotions"] == ["happy", "neutral", "angry"]
    assert settings["policy"]["merge"] == [["sad", "neutral"]]
    assert settings["utterances"]["dropped"]["not keep=majority"] > 0
    assert read_predictions(tmp_path / "run").target.max(1).min() > 0.5


@pytest.mark.parametrize("options", [[], ["--missing", "mask", "--inputs", "standardized", "--dropout", "0"]])
def test_one_modality_alone_trains_its_head_as_it_trains_beside_another(
    cache: Path, options: list[str], tmp_path: Path
) -> None:
    """Audio, that is, which the random stream of a run begins with."""
    train(cache, tmp_path / "both", "--system", "cb-ce", *options)
    train(cache, tmp_path / "one", "--system", "cb-ce", *options, "--text", "none")
    whole = cache_of(48)
    write_cache(tmp_path / "one.h5", replace(whole, features=(whole.feature_set("audio"),)))
    result = train(tmp_path / "one.h5", tmp_path / "without", "--system", "cb-ce", *options)
    assert "no text features in the cache: trained without" in result.stderr
    expected = [row for row in read_results(tmp_path / "both") if row["head"] == "audio"]
    for folder in ("one", "without"):
        rows = read_results(tmp_path / folder)
        assert {row["head"] for row in rows} == {"audio"}
        assert [row["epoch"] for row in rows] == [row["epoch"] for row in expected]
        for name in ("js", "uar", "ece"):
            assert [row[name] for row in rows] == pytest.approx([row[name] for row in expected], abs=1e-6)
        heads = read_heads(tmp_path / folder / "heads" / "cb-ce-fold1-seed0.safetensors")
        assert heads.model.architecture.heads == ("audio",)
        predictions, features = read_predictions(tmp_path / folder), whole.feature_set("audio").values
        places = [int(name[1:]) for name in predictions.id[predictions.fold == 1]]
        probs = heads.probs({"audio": torch.from_numpy(features[places])})["audio"]
        np.testing.assert_allclose(probs, predictions.probs["cb-ce/audio"][0, : len(places)], atol=1e-6)
        assert all(row["disagreement"] is None for row in read_experts(tmp_path / folder))
    (line,) = [line for line in result.stdout.splitlines() if line.split()[:1] == ["cb-ce"]]
    assert line.split()[1] == "audio"


def test_on_one_modality_dev_chooses_by_its_head_and_a_report_is_made(cache: Path, tmp_path: Path) -> None:
    mine = f"{Path(__file__).with_name('my_systems.py')}:Prior"
    grid = ["--system", f"cb-ce,{mine}", "--hidden", "2,6", "--prior-votes", "0,9"]
    train(cache, tmp_path / "run", "--audio", "none", *grid)
    settings = read_settings(tmp_path / "run")
    assert list(settings["features"]) == ["text"]
    for system, axis in (("cb-ce", "hidden"), ("prior", "prior_votes")):
        for fold, point in read_summary(tmp_path / "run")["selected"][system].items():
            dev: dict[float, list[float]] = {}
            for row in read_results(tmp_path / "run"):
                if (row["system"], row["split"], str(row["fold"])) == (system, "dev", fold):
                    dev.setdefault(row[axis], []).append(row["js"])
            assert point[axis] == min(dev, key=lambda value: statistics.fmean(dev[value]))
    result = CliRunner().invoke(report_runs, [str(tmp_path / "run"), "--output", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output


def test_what_needs_two_modalities_says_so_in_one_line(cache: Path, tmp_path: Path) -> None:
    def line(*arguments: str) -> str:
        result = call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK, *arguments)
        assert result.exit_code == 1
        return result.stderr.splitlines()[-1]

    alone = (
        "error: amber2 weighs experts of two modalities or more against each other, and there is audio alone: "
        "train with --system cb-ce, or with features of another modality"
    )
    assert line("--text", "none") == alone
    whole = cache_of(48)
    write_cache(tmp_path / "audio.h5", replace(whole, features=(whole.feature_set("audio"),)))
    assert line("--cache", str(tmp_path / "audio.h5")) == alone
    assert "no modality is left to train on" in line("--text", "none", "--audio", "none")
    assert "holds no text features called 'bert' (it has text-model): name one: --text" in line("--text", "bert")
    assert list(tmp_path.iterdir()) == [tmp_path / "audio.h5"]


def test_three_modalities_train_with_three_experts_where_the_third_is_asked_for(tmp_path: Path) -> None:
    cache = write_small_cache(tmp_path, count=36, modalities=("audio", "text", "video"), missing={"video": [4]})
    train(cache, tmp_path / "run", "--video", "video-model", "--student", "video")
    heads = {row["head"] for row in read_results(tmp_path / "run")}
    assert heads == {"audio", "text", "video", "fusion"}
    assert read_settings(tmp_path / "run")["utterances"]["dropped"]["features missing"] == 1
    (row, *_) = read_experts(tmp_path / "run")
    weights = [row[f"weight_{head}"] for head in ("audio", "text", "fusion")]
    assert sum(weights) == pytest.approx(1)
    assert row["weight_video"] is None


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


def test_utterances_that_lack_a_modality_are_trained_and_reported_without_a_word_of_nan(tmp_path: Path) -> None:
    """A whole session without transcripts among them: the log and the report's notes say so."""
    no_text = [*range(1, 48, 4), 2, 7]
    lacking = {"audio": [0, 13, 40], "text": no_text, "video": [2, 3, 13, 40, 44]}
    modalities = ("audio", "text", "video")
    cache = write_small_cache(tmp_path, count=48, sessions=4, speakers=8, modalities=modalities, missing=lacking)
    options = ["--missing", "mask", "--video", "video-model", "--student", "fusion,audio", *GRID]
    assert json.loads(call("--cache", str(cache), *QUICK, *options, "--plan", "--json").stdout)["runs"] == 9 * 4 * 2
    train(cache, tmp_path / "run", *options)
    settings = read_settings(tmp_path / "run")
    assert settings["missing"] == "mask"
    assert settings["utterances"]["missing"] == {"audio": 2, "text": len(no_text) - 1, "video": 4}  # 13 has nothing
    assert settings["utterances"]["kept"] == 47
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "47 of 48 utterances kept (dropped: 1 no features of any modality)" in log
    assert "of these, trained and scored with what they have: 2 without audio, 13 without text, 4 without video" in log
    assert "amber2: the dev JS of audio or fusion, by which it is chosen, is over different utterances" in log
    assert "fold 1: no utterance of dev has text" in log
    assert "fold 2: no utterance of test has text" in log
    table = read_summary(tmp_path / "run")["table"]
    assert all(
        v["mean"] is not None for heads in table.values() for metrics in heads.values() for v in metrics.values()
    )
    result = CliRunner().invoke(report_runs, [str(tmp_path / "run"), "--output", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    for path in (tmp_path / "report" / "tables").iterdir():
        words = path.read_text(encoding="utf-8")
        assert not re.search(r"\bnan\b|\binf\b", words, re.IGNORECASE), path.name
    notes = (tmp_path / "report" / "tables" / "all-metrics.md").read_text(encoding="utf-8")
    assert "amber2 text has no score in fold 2" in notes
    assert "cb-ce text has no score in fold 1, 2" in notes
    assert "cb-ce audio 45 of 47" in notes
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "missing: audio 2, text 13, video 4" in page
    assert not re.search(r"\bNaN\b", page)


def test_what_of_the_cache_is_not_read_or_tells_nothing_is_said_in_log_and_settings(tmp_path: Path) -> None:
    cache = cache_of(48)
    audio, text = cache.features
    frames = Frames(np.zeros((48, 6), np.float32), np.arange(49))
    layers = replace(audio, values=np.stack([audio.values * 0, audio.values + 1, audio.values], axis=1), frames=frames)
    dull = replace(text, values=np.ones_like(text.values))
    table = cache.utterances
    # u000 and u001 are one recording, and so in different sessions; u004 and u005 are two stretches of one
    sha256 = ["a", "a", "c", "d", "e", "e", *map(str, range(42))]
    start = np.array([0, 0, 0, 0, 1, 2, *[np.nan] * 42], dtype=np.float32)
    table = replace(table, audio_sha256=texts(sha256), start=start)
    write_cache(tmp_path / "cache.h5", replace(cache, features=(layers, dull), utterances=table))
    result = train(tmp_path / "cache.h5", tmp_path / "run", "--epochs", "1", "--seeds", "1")
    settings = read_settings(tmp_path / "run")
    assert settings["reads"] == {"audio": "the vectors of the last of 3 layers, not the frames", "text": "the vectors"}
    assert settings["heard_before"] == 2
    for said in (result.stderr, (tmp_path / "run" / "log.txt").read_text()):
        assert "read of what is cached: audio, the vectors of the last of 3 layers, not the frames; text, the v" in said
        assert "all text vectors are the same: nothing can be learnt of them" in said
        assert "2 utterances are tested on whose very recording is also in train or dev of their fold" in said
    write_cache(tmp_path / "last.h5", replace(cache, features=(audio, dull)))
    train(tmp_path / "last.h5", tmp_path / "last", "--epochs", "1", "--seeds", "1")
    assert read_results(tmp_path / "last") == read_results(tmp_path / "run")
    log = (tmp_path / "last" / "log.txt").read_text()
    assert "read of what is cached" not in log
    assert "very recording" not in log


def test_from_python_the_same_comes_back_and_progress_counts_every_run(run: Path, cache: Path, tmp_path: Path) -> None:
    axes = {"hidden": (5,), "batch_size": (16,), "lr": (0.03,), "kappa": (0.0, 8.0), "lambda_mai": (0.3, 2.0)}
    seen: list[tuple[int, int]] = []
    options = TrainOptions(grid=Grid(axes=axes, seeds=2, epochs=3))
    report = run_module.train(
        cache, tmp_path / "run", options, on_progress=lambda done, total: seen.append((done, total))
    )
    assert report.folder == tmp_path / "run"
    assert report.table == read_summary(run)["table"]
    assert report.selected == read_summary(run)["selected"]
    assert seen[-1] == (30, 30)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize("there", [True, False])
def test_bfloat16_that_is_not_faster_here_is_told(
    cache: Path, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "call", lambda look, device: ("cpu", there))
    result = train(cache, tmp_path / "run", "--precision", "bf16", "--epochs", "1", "--seeds", "1", "--system", "cb-ce")
    for said in (result.stderr, (tmp_path / "run" / "log.txt").read_text()):
        assert ("this processor does not multiply bfloat16" in said) == (not there)


def test_the_process_that_was_started_never_loads_torch(cache: Path, tmp_path: Path) -> None:
    """In a script without a guard, too, which no worker runs again."""
    script = tmp_path / "mine.py"
    options = ["--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK]
    script.write_text(
        "import sys\nfrom amber2_train.cli import train_heads\nprint('begun')\n"
        f"train_heads({options!r}, standalone_mode=False)\nprint('torch' in sys.modules)\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1], lines.count("begun")) == ("begun", "False", 1)
    assert "run folder: " in lines[-2]


@pytest.mark.parametrize(
    ("axis", "chosen", "said"),
    [
        ("kappa", (8.0, 8.0, 8.0), "amber2: dev chose kappa 8.0 in every fold, the largest of the grid: beyond it"),
        ("kappa", (2.0, 2.0, 2.0), "amber2: dev chose kappa 2.0 in every fold, the smallest of the grid: beyond it"),
        ("kappa", (4.0, 4.0, 4.0), ""),
        ("kappa", (8.0, 8.0, 4.0), ""),
        ("lambda_mai", (0.0, 0.0, 0.0), ""),  # nothing lies beyond it
        ("fusion", ("gmu", "gmu", "gmu"), ""),
    ],
)
def test_a_choice_at_the_edge_of_the_grid_in_every_fold_is_hinted_at(
    axis: str, chosen: tuple[Any, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    grid = Grid(axes={"kappa": (8.0, 2.0, 4.0), "lambda_mai": (0.0, 1.0), "fusion": ("gmu", "concat")})
    settings = grid.settings()
    # all else is as far from an edge as it can be
    inner = {"kappa": (4.0, 8.0, 4.0), "lambda_mai": (0.0, 1.0, 1.0), "fusion": ("gmu", "concat", "gmu")}
    places: dict[int, dict[str, int]] = {}
    for fold in (1, 2, 3):
        point = {name: values[fold - 1] for name, values in {**inner, axis: chosen}.items()}
        for k, setting in enumerate(settings):
            if all(setting.row().get(name, value) == value for name, value in point.items()):
                places.setdefault(fold, {}).setdefault(setting.name, k)
    selection: Any = SimpleNamespace(settings=settings, chosen=places.__getitem__)
    request: Any = SimpleNamespace(
        folds=[SimpleNamespace(number=k) for k in (1, 2, 3)], options=TrainOptions(grid=grid)
    )
    with caplog.at_level("INFO", logger="amber2_train"):
        run_module._say_what_lies_at_the_edge(selection, request)
    assert [line.startswith(said) for line in caplog.messages] == ([True] if said else [])


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a\\b"])
def test_a_name_that_leads_elsewhere_is_refused(
    cache: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("--cache", str(cache), *QUICK, "--name", name)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: Bad name {name!r}, expected a word for a folder in ./runs")
    assert list(tmp_path.iterdir()) == []
