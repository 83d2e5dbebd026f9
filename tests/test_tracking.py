"""Trackers: what they hold is what the run folder holds, and what is missing or broken costs no training."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from run_folders import Sketch, write_run
from synthetic_data import write_small_cache

from amber2_core.errors import SettingError
from amber2_core.metrics import METRICS
from amber2_core.run_folder import read_curves, read_results, read_settings, read_summary, write_json, write_results
from amber2_train.cli import train_heads
from amber2_train.tracking import MLFLOW_PATIENCE, _parameters, track, trackers, trained

QUICK = ["--hidden", "4", "--seeds", "1", "--epochs", "2"]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(train_heads, list(arguments))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", Sketch(grid=((0.5, 4.0), (0.7, 4.0))))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_small_cache(tmp_path, count=30)


def curve(run: Path, head: str, **key: Any) -> list[tuple[int, float]]:
    """(epoch, dev JS) of one head of one run."""
    own = [row for row in read_curves(run) if row["head"] == head and all(row[n] == v for n, v in key.items())]
    return [(row["epoch"], row["dev_js"]) for row in own]


def scored(run: Path, head: str, **key: Any) -> dict[str, Any]:
    """One head's row on test of one run."""
    rows = [row for row in read_results(run) if row["split"] == "test" and row["head"] == head]
    (own,) = [row for row in rows if all(row[n] == v for n, v in key.items())]
    return own


def test_trackers_are_a_comma_list_of_those_there_are() -> None:
    assert trackers(None) == ()
    assert trackers("csv, csv") == ("csv",)
    for wrong in ("wandb", "csv,", ""):
        with pytest.raises(SettingError, match=r"Bad track '.*', expected one of \['csv', 'tensorboard', 'mlflow'\]"):
            trackers(wrong)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_told_before_training_starts(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    result = call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK, "--track", f"csv,{name}")
    assert result.exit_code == 1
    assert result.stderr == f"error: --track {name} needs the package {name}: pip install 'amber2[{name}]'\n"
    assert list(tmp_path.iterdir()) == [cache]


def test_a_tracker_that_fails_leaves_the_run_and_says_so(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.py").write_text("raise RuntimeError('the server\\nis gone')\n", encoding="utf-8")
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    result = call("--cache", str(cache), "--output", str(run), *QUICK, "--track", "mlflow")
    assert result.exit_code == 3
    line = f"warning: {run} is complete, but --track mlflow failed: the server is gone"
    assert result.stderr.splitlines()[-1] == line
    assert f"run folder: {run}" in result.stdout
    assert set(read_summary(run)["table"]) == {"amber2", "cb-ce"}


def test_only_what_a_run_declares_is_a_setting_in_a_tracker(run: Path) -> None:
    rows = [{**row, "seconds": 1.5} for row in read_results(run)]
    before = [one.setting for one in trained(run)]
    write_results(run / "results.csv", rows)
    assert [one.setting for one in trained(run)] == before
    assert "lambda_mai" in before[0]


def test_csv_is_in_every_run_folder(cache: Path, tmp_path: Path) -> None:
    result = call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK, "--track", "csv")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "curves.csv").is_file()


def test_every_selected_run_is_there_once_with_its_setting_scores_and_curves(run: Path) -> None:
    found = {one.name: one for one in trained(run)}
    assert len(found) == 2 * 3 * 2
    one = found["amber2-fold2-seed1"]
    key = {"system": "amber2", "fold": 2, "seed": 1}
    assert one.setting == {**key, "lambda_rai": 1, "lambda_mai": 0.5, "lambda_expert": 0, "kappa": 4,
                           "student": "fusion", "fusion": "gmu"}  # fmt: skip
    assert len(one.scores) == 3 * (len(METRICS) + 1)
    for head in ("audio", "text", "fusion"):
        row = scored(run, head, **key)
        assert one.scores[f"kept_epoch/{head}"] == 3
        assert all(one.scores[f"test_{metric}/{head}"] == row[metric] for metric in METRICS)
        assert [(e, js) for tag, e, js in one.curves if tag == f"dev_js/{head}"] == curve(run, head, **key)
    assert found["cb-ce-fold1-seed0"].setting["kappa"] is None


def test_a_parameter_that_a_run_folder_does_not_tell_is_no_trouble(run: Path) -> None:
    write_json(run / "settings.json", {**read_settings(run), "folds": {}})
    assert [value for name, value in _parameters(read_settings(run)) if name == "folds"] == []


def test_what_has_no_score_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Sketch(count=30, lacking={"text": range(20, 30)}))  # all of the last fold
    assert any(math.isnan(row["js"]) for row in read_results(folder))
    for one in trained(folder):
        assert all(math.isfinite(score) for score in one.scores.values())
        assert ("test_js/text" in one.scores) == (one.setting["fold"] != 3)
        assert "test_js/fusion" in one.scores


def test_tensorboard_shows_the_curves_and_the_scores_of_the_run_folder(run: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'amber2[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # logged again, nothing is there twice
        assert track(run, trackers("tensorboard")) == []
    places = {path.name for path in (run / "tensorboard").iterdir() if path.is_dir()}
    assert places == {one.name for one in trained(run)}
    shown = EventAccumulator(str(run / "tensorboard" / "cb-ce-fold3-seed1")).Reload()
    key = {"system": "cb-ce", "fold": 3, "seed": 1}
    for head in ("audio", "text", "fusion"):
        events = [(event.step, event.value) for event in shown.Scalars(f"dev_js/{head}")]
        assert events == [(epoch, pytest.approx(js)) for epoch, js in curve(run, head, **key)]
        (score,) = shown.Scalars(f"test_js/{head}")
        assert score.value == pytest.approx(scored(run, head, **key)["js"])
    assert "_hparams_/session_start_info" in shown.summary_metadata
    whole = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"settings.json/text_summary", "summary.json/text_summary"} <= set(whole.Tags()["tensors"])


def test_mlflow_holds_the_sweep_its_runs_and_its_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'amber2[mlflow]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")
    assert track(run, trackers("mlflow")) == []
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("amber2")
    runs = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"run", *(one.name for one in trained(run))}
    sweep, one = runs["run"], runs["amber2-fold2-seed1"]
    assert {some.info.status for some in runs.values()} == {"FINISHED"}
    assert one.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert sweep.data.params["corpus"] == "made-up"
    assert sweep.data.params["policy.keep"] == "any-vote"
    table = read_summary(run)["table"]
    assert sweep.data.metrics["test_js/amber2-fusion"] == table["amber2"]["fusion"]["js"]["mean"]
    files = {file.path for file in client.list_artifacts(sweep.info.run_id)}
    assert files == {"settings.json", "summary.json", "results.csv", "curves.csv", "utterances.csv"}
    key = {"system": "amber2", "fold": 2, "seed": 1}
    assert one.data.params["kappa"] == "4.0"
    assert one.data.metrics["test_uar/text"] == scored(run, "text", **key)["uar"]
    history = client.get_metric_history(one.info.run_id, "dev_js/fusion")
    assert sorted((point.step, point.value) for point in history) == curve(run, "fusion", **key)


def test_a_run_of_mlflow_that_is_named_is_the_one_logged_to(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'amber2[mlflow]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")
    client = mlflow.MlflowClient()
    theirs = client.create_experiment("theirs")
    named = client.create_run(theirs, run_name="the lab's").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", named)
    assert track(run, trackers("mlflow")) == []
    assert {each.name for each in client.search_experiments()} == {"theirs", "Default"}
    runs = client.search_runs([theirs], max_results=100)
    assert {each.info.run_name for each in runs} == {"the lab's", *(one.name for one in trained(run))}
    assert client.get_run(named).data.params["corpus"] == "made-up"
    assert {each.data.tags.get("mlflow.parentRunId") for each in runs} == {None, named}


def test_a_server_of_mlflow_that_is_gone_is_not_asked_for_minutes(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """How often it is asked is MLflow's own setting, and whoever set it has the last word."""
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'amber2[mlflow]'")
    gone = "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gone)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for variable in MLFLOW_PATIENCE:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level("INFO"):
        (line,) = track(run, trackers("mlflow"))
    assert f"{run} is complete, but --track mlflow failed: " in line
    assert f"logging to MLflow at {gone}" in caplog.messages
    assert not any("Retry(total=1" in message for message in caplog.messages)
    assert {name: os.environ[name] for name in MLFLOW_PATIENCE} == {
        **MLFLOW_PATIENCE, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }  # fmt: skip
