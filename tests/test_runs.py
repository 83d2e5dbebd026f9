"""Run folders: what does not agree with itself is refused in one line, and only equal test sets are compared."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import Sketch, write_run

from amber2_core.errors import RunFolderError
from amber2_core.run_folder import read_results, write_curves, write_results
from amber2_report.runs import read_run


def refusal(folder: Path) -> str:
    with pytest.raises(RunFolderError) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")


def changed(lines: list[str], column: str, value: str, *, split: str = "test") -> list[str]:
    """The first row of a split with another value in a column."""
    names = lines[0].split(",")
    at = next(k for k, line in enumerate(lines) if f",{split}," in line)
    cells = lines[at].split(",")
    cells[names.index(column)] = value
    return [*lines[:at], ",".join(cells), *lines[at + 1 :]]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_as_it_was_written_is_read(tmp_path: Path, earlier: bool) -> None:
    found = read_run(write_run(tmp_path / "run", Sketch(earlier=earlier)))
    assert len(found.arrays.id) == 60
    assert set(found.arrays.probs) == {f"{s}/{h}" for s in ("amber2", "cb-ce") for h in ("audio", "text", "fusion")}


@pytest.mark.parametrize("name", ["settings.json", "results.csv", "predictions.npz"])
def test_half_a_run_is_refused(run: Path, name: str) -> None:
    (run / name).unlink()
    assert f"it has no {name}" in refusal(run)


def test_a_sweep_that_was_stopped_is_told_from_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "run.unfinished"
    folder.mkdir()
    (folder / "unfinished.json").write_text("{}", encoding="utf-8")
    assert "holds a sweep that is not finished" in refusal(folder)


def test_a_folder_of_something_else_and_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert "not a run folder" in refusal(tmp_path / "photos")
    assert "name a folder that train-heads wrote" in refusal(tmp_path / "nowhere")


def test_a_score_that_was_improved_by_hand_is_found(run: Path) -> None:
    edit(run / "results.csv", lambda lines: changed(lines, "js", "0.01"))
    line = refusal(run)
    assert "changed by hand" in line
    assert "js of amber2/audio, fold 1, seed 0 is 0.01" in line


@pytest.mark.parametrize(("column", "value"), [("js", "good"), ("fold", "first"), ("split", "holdout")])
def test_a_word_where_a_number_should_be_names_its_line(run: Path, column: str, value: str) -> None:
    edit(run / "results.csv", lambda lines: changed(lines, column, value, split="dev"))
    assert f"line 2: {column} is {value!r}" in refusal(run)


@pytest.mark.parametrize(("column", "value"), [("dev_js", "good"), ("epoch", "0"), ("fold", "-1"), ("seed", "1.5")])
def test_a_curve_that_is_no_curve_names_its_line(run: Path, column: str, value: str) -> None:
    with (run / "curves.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[2][column] = value
    write_curves(run / "curves.csv", rows)
    assert re.search(rf"curves.csv, line 4: {column} is '?{value}'?; it was changed by hand", refusal(run))


def test_rows_that_are_missing_are_counted(run: Path) -> None:
    edit(run / "results.csv", lambda lines: lines[:-1])
    assert "has 5 test rows for cb-ce/fusion, expected one for each of 3 folds and 2 seeds" in refusal(run)


def test_results_and_predictions_of_two_runs_do_not_go_together(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", Sketch(seed=1))
    shutil.copy(other / "predictions.npz", run)
    assert "changed by hand, or is of another run" in refusal(run)
    fewer = write_run(tmp_path / "fewer", Sketch(systems=("amber2",)))
    shutil.copy(fewer / "predictions.npz", run)
    assert "only one of them has cb-ce/audio" in refusal(run)


def test_predictions_that_do_not_fit_their_targets_are_refused(run: Path) -> None:
    with np.load(run / "predictions.npz") as arrays:
        kept = dict(arrays)
    kept["amber2/audio"] = kept["amber2/audio"][:, :-1]
    np.savez(run / "predictions.npz", **kept)
    assert "amber2/audio has shape (2, 59, 4), expected (seeds, 60, 4)" in refusal(run)
    kept["target"] = kept["target"][:-1]
    np.savez(run / "predictions.npz", **kept)
    assert "holds no predictions that fit its targets" in refusal(run)


def test_predictions_that_are_no_numbers_are_refused(run: Path) -> None:
    with np.load(run / "predictions.npz") as arrays:
        kept = dict(arrays)
    kept["cb-ce/text"][0, 3, 1] = np.nan
    np.savez(run / "predictions.npz", **kept)
    assert "cb-ce/text or its targets hold no number" in refusal(run)


def test_a_head_may_predict_nothing_for_some_utterances_but_the_rest_must_agree(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Sketch(lacking={"text": [3, 4, 30]}))
    read = read_run(run)
    assert np.isnan(read.arrays.probs["amber2/text"][:, [3, 4, 30]]).all()
    edit(run / "results.csv", lambda lines: changed(lines, "n", "19"))
    assert "n of amber2/audio, fold 1, seed 0 is 19, its predictions give 20" in refusal(run)


def test_predictions_that_were_taken_out_by_hand_are_missed(run: Path) -> None:
    with np.load(run / "predictions.npz") as arrays:
        kept = dict(arrays)
    kept["cb-ce/text"][0, 3] = np.nan
    np.savez(run / "predictions.npz", **kept)
    assert "of cb-ce/text, fold 1, seed 0 is" in refusal(run)


def test_a_metric_that_is_younger_than_the_run_is_no_reason_to_refuse_it(run: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "ece"} for row in read_results(run)]
    write_results(run / "results.csv", rows)
    assert read_run(run).tested["ece"].notna().all()
    edit(run / "results.csv", lambda lines: changed(lines, "js", "0.01"))
    assert "changed by hand" in refusal(run)


@given(
    st.sampled_from(["settings.json", "results.csv", "curves.csv", "utterances.csv", "predictions.npz"]),
    st.floats(0, 1), st.binary(max_size=4) | st.sampled_from([b",", b"\n", b"nan", b"1e999", b"9" * 30]), st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # numpy leaves a damaged archive open
def test_whatever_became_of_a_file_is_told_in_one_line_or_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, run_folder: Path, name: str, place: float, bytes_: bytes, cut: bool
) -> None:
    run = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(run_folder, run)
    whole = (run / name).read_bytes()
    at = int(place * len(whole))
    (run / name).write_bytes(whole[:at] + bytes_ + (b"" if cut else whole[at + len(bytes_) :]))
    said = ""
    try:
        read_run(run)
    except RunFolderError as problem:
        said = str(problem)
    assert "\n" not in said
