"""A run folder's command run again: the same numbers from the same data, and a line for whatever differs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from synthetic_data import cache_of, write_small_cache

from amber2_core.cache import write_cache
from amber2_core.errors import RunFolderError
from amber2_core.run_folder import read_results, read_settings, write_json, write_results
from amber2_core.tables import texts
from amber2_train.again import differences, saved_command
from amber2_train.cli import train_heads

QUICK = ["--hidden", "5", "--seeds", "2", "--epochs", "2", "--batch-size", "16", "--kappa", "0,8"]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(train_heads, list(arguments))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one cache, and a run that found it without being told."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "cache").mkdir()
    write_small_cache(folder / "cache", count=36)
    result = call("--cache-dir", str(folder / "cache"), "--output", str(folder / "first"), *QUICK)
    assert result.exit_code == 0, result.output
    return folder


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def test_a_run_again_has_the_same_numbers_and_may_be_run_again_itself(place: Path, tmp_path: Path) -> None:
    again, third = tmp_path / "again", tmp_path / "third"
    result = call("--again", str(place / "first"), "--output", str(again))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"again: data, settings and numbers are those of {place / 'first'}"
    assert read_results(again) == read_results(place / "first")
    cache = str(place / "cache" / "made-up.h5")
    assert read_settings(again)["command"] == ["train-heads", *QUICK, "--cache", cache]
    assert read_settings(place / "first")["command"][-2:] == ["--cache", cache]
    result = call("--again", str(again), "--output", str(third), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["again"] == {"run": str(again), "differences": [], "besides": []}


def test_other_data_is_named_and_is_a_failure(place: Path, tmp_path: Path) -> None:
    cache = cache_of(36)
    text = cache.feature_set("text")
    inputs = texts(["f" * 64 if row == 7 else digest for row, digest in enumerate(text.inputs)])
    values = text.values.copy()
    values[7] += 1
    other = replace(text, inputs=inputs, values=values)
    write_cache(tmp_path / "other.h5", replace(cache, features=(cache.feature_set("audio"), other)))
    arguments = ["--cache", str(tmp_path / "other.h5"), "--output", str(tmp_path / "again")]
    result = call("--again", str(place / "first"), *arguments)
    assert result.exit_code == 3
    lines = result.stdout.splitlines()
    assert "again: data: other text (digest)" in lines
    assert any(line.startswith("again: js: ") and "rows differ, by " in line for line in lines)
    assert not any(line.startswith("again: settings: ") for line in lines)
    assert read_settings(tmp_path / "again")["cache"] == str(tmp_path / "other.h5")


@pytest.mark.parametrize(
    ("device", "step", "found"), [("cpu", 9e-6, 0), ("cpu", 2e-5, 1), ("cuda:0", 2e-5, 0), ("cuda:0", 2e-4, 1)]
)
def test_scores_differ_beyond_what_rounding_leaves(
    place: Path, tmp_path: Path, device: str, step: float, found: int
) -> None:
    old = copy_of(place / "first", tmp_path)
    rows = read_results(old)
    rows[5]["js"] += step
    write_results(old / "results.csv", rows)
    write_json(old / "settings.json", {**read_settings(old), "device": device})
    lines, besides = differences(old, place / "first")
    assert len(lines) == found
    assert besides == ([] if device == "cpu" else ["the device was cuda:0, is cpu"])
    if found:
        row = rows[5]
        where = f"{row['system']}/{row['head']} on {row['split']}, fold {row['fold']}, seed {row['seed']}"
        assert lines == [f"js: 1 of {len(rows)} rows differ, by {step:.2g} at most ({where})"]


def test_settings_choices_rows_and_versions_that_differ_are_told(place: Path, tmp_path: Path) -> None:
    old = copy_of(place / "first", tmp_path)
    rows, settings = read_results(old), read_settings(old)
    chosen = [row for row in rows if (row["system"], row["fold"]) == ("amber2", 2)]
    for row in chosen:
        row["selected"] = 1 - row["selected"]
    rows[0]["uar"] = float("nan")
    write_results(old / "results.csv", rows[:-1])
    settings["policy"]["keep"] = "majority"
    settings["versions"]["torch"] = "1.0"
    del settings["digest"], settings["digests"]
    write_json(old / "settings.json", settings)
    lines, besides = differences(old, place / "first")
    assert lines == [
        "settings: policy differs",
        f"results.csv: 1 of {len(rows)} rows were not there",
        "selection: dev chose another setting of amber2 in fold 2",
        "uar: 1 of {} rows differ, by inf at most ({}/{} on dev, fold 1, seed 0)".format(
            len(rows) - 1, rows[0]["system"], rows[0]["head"]
        ),
    ]
    now = read_settings(place / "first")["versions"]["torch"]
    assert besides == [
        "the earlier run has no digest: whether its data was the same, its numbers alone can tell",
        f"torch was 1.0, is {now}",
    ]


def test_what_an_earlier_version_did_not_know_of_is_no_difference(place: Path, tmp_path: Path) -> None:
    old = copy_of(place / "first", tmp_path)
    settings, rows = read_settings(old), read_results(old)
    del settings["policy"]["secondary"], settings["metrics"][1]
    write_json(old / "settings.json", settings)
    write_results(old / "results.csv", [{k: v for k, v in row.items() if k != "js_balanced"} for row in rows])
    assert differences(old, place / "first") == ([], [])
    settings["policy"]["raters"] = "all"
    write_json(old / "settings.json", settings)
    assert differences(old, place / "first") == (["settings: policy differs"], [])


def test_what_a_command_names_is_found_from_where_it_was_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache, the file of its grid and that of its system; also by what stands in for the folder of a moved run."""
    lab, elsewhere = tmp_path / "lab", tmp_path / "elsewhere"
    lab.mkdir()
    elsewhere.mkdir()
    shutil.copy(place / "cache" / "made-up.h5", lab / "data.h5")
    shutil.copy(Path(__file__).with_name("my_systems.py"), lab)
    (lab / "grid.toml").write_text("seeds = 1\nepochs = 2\nhidden = 5\n")
    monkeypatch.chdir(lab)
    command = ("--cache", "data.h5", "--grid", "grid.toml", "--system=cb-ce,my_systems.py:Flattened")
    result = call(*command, "--output", "runs/first")
    assert result.exit_code == 0, result.output
    monkeypatch.chdir(elsewhere)
    again = call("--again", str(lab / "runs/first"), "--output", "second")
    assert again.exit_code == 0, again.output
    assert again.stdout.splitlines()[-1].startswith("again: data, settings and numbers are those of")
    third = call("--again", str(elsewhere / "second"), "--output", "third")
    assert third.exit_code == 0, third.output

    settings = read_settings(lab / "runs/first")
    del settings["started_in"]  # an earlier version's
    write_json(lab / "runs/first/settings.json", {**settings, "command": ["train-heads", *QUICK]})
    assert call("--again", str(lab / "runs/first"), "--output", "earlier").exit_code == 3, "another command"
    (lab / "data.h5").unlink()
    lost = call("--again", str(lab / "runs/first"), "--output", "lost")
    assert lost.exit_code == 1
    (line,) = lost.stderr.splitlines()
    assert line == (
        f"error: No feature cache at data.h5, which {lab / 'runs/first'} was made from: say where it is now by --cache"
    )


def test_what_cannot_be_run_again_is_one_line(place: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        result = call("--again", *arguments)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        return line

    assert "--kappa beside --again would make another run" in refused(str(place / "first"), "--kappa", "3")
    assert "is not a run folder" in refused(str(tmp_path))
    old = copy_of(place / "first", tmp_path)
    settings = read_settings(old)
    write_json(old / "settings.json", {**settings, "command": ["train-heads", "--sharpness", "3"]})
    assert f"does not understand the command of {old}: No such option" in refused(str(old))
    write_json(old / "settings.json", {**settings, "cache": str(tmp_path / "gone.h5")})
    assert f"No feature cache at {tmp_path / 'gone.h5'}" in refused(str(old), "--output", str(tmp_path / "run"))
    write_json(old / "settings.json", {**settings, "command": []})
    with pytest.raises(RunFolderError, match=r"has no command in its settings.json: it was made from Python"):
        saved_command(old)
