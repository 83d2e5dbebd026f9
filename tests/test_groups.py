"""Groups of runs: what may be compared stands together, under labels and with the settings that tell it apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import GRID, Sketch, write_run

from amber2_core.run_folder import RunFolder
from amber2_report.groups import grouped, slug, slugs
from amber2_report.runs import read_run


def test_runs_of_one_test_set_stand_together_and_others_apart(tmp_path: Path) -> None:
    sketches = {
        "a": Sketch(), "b": Sketch(seed=1), "other-votes": Sketch(votes_seed=1), "other-corpus": Sketch(corpus="x"),
        "other-folds": Sketch(folds=2), "other-emotions": Sketch(emotions=("neutral", "happy", "angry", "fear")),
        "other-utterances": Sketch(names="v"),
    }  # fmt: skip
    runs = [read_run(write_run(tmp_path / name, sketch)) for name, sketch in sketches.items()]
    assert [[run.name for run in group.runs] for group in grouped(runs)] == [
        ["a", "b"],
        *([name] for name in list(sketches)[2:]),
    ]


def test_labels_name_the_run_only_where_they_must(tmp_path: Path) -> None:
    first, second = (read_run(write_run(tmp_path / place / "run", Sketch(seed=k))) for k, place in enumerate("ab"))
    (alone,) = grouped([first])
    assert [entry.label for entry in alone.mains] == ["amber2 fusion", "cb-ce fusion"]
    (both,) = grouped([first, second])
    assert [entry.label for entry in both.mains] == [
        "a/run: amber2 fusion", "b/run: amber2 fusion", "a/run: cb-ce fusion", "b/run: cb-ce fusion",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("a/run: amber2 fusion", "a-run-amber2-fusion"),
        ("λ ½ ../etc", "etc"),
        ("emo-superb", "emo-superb"),
        ("…", "unnamed"),
    ],
)
def test_a_label_becomes_a_name_that_any_file_may_have(label: str, name: str) -> None:
    assert slug(label) == name


def test_labels_that_look_alike_have_names_of_files_of_their_own() -> None:
    names = slugs(["run_a: fusion", "run-a: fusion", "run-a-fusion-2", "n" * 300, "n" * 301])
    assert list(names.values()) == ["run-a-fusion", "run-a-fusion-2", "run-a-fusion-2-2", "n" * 80, "n" * 80 + "-2"]


def test_folders_of_one_name_are_told_apart_by_as_many_parents_as_it_takes(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "x" / "run", tmp_path / "b" / "x" / "run", tmp_path / "b" / "y" / "run"]
    (group,) = grouped([read_run(write_run(place, Sketch(count=30, seeds=1))) for place in places])
    assert [run.name for run in group.runs] == ["a/x/run", "b/x/run", "y/run"]


# --- settings ---


@pytest.fixture(scope="module")
def run(run_folder: Path) -> RunFolder:
    return read_run(run_folder)


def test_a_setting_is_an_axis_that_the_system_looks_at(run: RunFolder) -> None:
    amber2, cb_ce = grouped([run])[0].mains
    assert list(amber2.settings) == ["lambda_rai", "lambda_mai", "lambda_expert", "kappa", "student", "fusion"]
    assert cb_ce.chosen == {"fusion": "gmu"}
    assert (amber2.varied, cb_ce.varied) == (["lambda_mai", "kappa"], [])
    assert len(amber2.dev) == len(GRID) * 3 * 2  # folds × seeds


def test_a_column_that_nobody_declares_sets_nothing_apart(run: RunFolder) -> None:
    other = replace(run, name="other", results=run.results.assign(seconds=range(len(run.results))))
    (group,) = grouped([run, other])
    assert group.differing_settings == {}
    assert "seconds" not in group.mains[1].chosen
    assert "seconds" not in group.mains[1].varied


def test_folds_that_chose_differently_are_told_in_words(run: RunFolder) -> None:
    kappa = run.results["kappa"].where(run.results["kappa"].isna() | (run.results["fold"] != 2), 8.0)
    words = [grouped([one])[0].mains[0].chosen for one in (run, replace(run, results=run.results.assign(kappa=kappa)))]
    assert [chosen["kappa"] for chosen in words] == ["2.0", "2.0 or 8.0"]
    assert [chosen["lambda_mai"] for chosen in words] == ["0.3", "0.3"]


def test_only_what_differs_sets_runs_apart(run: RunFolder, tmp_path: Path) -> None:
    sketch = Sketch(count=120, grid=((0.0, 4.0),), systems=("amber2",))
    (group,) = grouped([run, read_run(write_run(tmp_path / "other", sketch))])
    assert group.differing_settings == {"lambda_mai": ["0.3, 0.5, 0.7", "0.0"], "kappa": ["2.0, 4.0, 8.0", "4.0"]}
