"""Settings of runs, from the rows of results.csv: what varied on a grid, what dev chose, what sets runs apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import GRID, Sketch, write_run

from amber2_report.groups import dev_rows, grouped
from amber2_report.runs import Run, read_run
from amber2_report.settings import by_setting, chosen_settings, run_settings, setting_of, varied_settings


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(write_run(tmp_path / "run", Sketch(grid=GRID)))


def test_a_setting_is_what_a_row_holds_beside_its_key_and_its_scores(run: Run) -> None:
    of_system = {row["system"]: setting_of(row) for row in run.rows}
    assert of_system["cb-ce"] == {"fusion": "gmu"}  # what it does not look at is no setting of it
    assert list(of_system["amber2"]) == ["lambda_rai", "lambda_mai", "lambda_expert", "kappa", "student", "fusion"]


def test_rows_of_a_grid_stand_together_by_setting_and_only_what_varied_is_named(run: Run) -> None:
    (group,) = grouped([run])
    amber2, cb_ce = group.mains
    rows = dev_rows(amber2)
    assert varied_settings(rows) == ["lambda_mai", "kappa"]
    assert varied_settings(dev_rows(cb_ce)) == []
    points = {(dict(setting)["lambda_mai"], dict(setting)["kappa"]): own for setting, own in by_setting(rows).items()}
    assert list(points) == list(GRID)
    assert {len(own) for own in points.values()} == {3 * 2}  # folds × seeds


def test_folds_that_chose_differently_are_told_in_words(run: Run) -> None:
    other = [{**row, "kappa": 8.0} if row["fold"] == 2 and row["kappa"] else row for row in run.rows]
    words = [chosen_settings(grouped([one])[0].mains[0]) for one in (run, replace(run, rows=other))]
    assert [chosen["kappa"] for chosen in words] == ["2.0", "2.0 or 8.0"]
    assert [chosen["lambda_mai"] for chosen in words] == ["0.3", "0.3"]


def test_only_what_differs_sets_runs_apart(run: Run, tmp_path: Path) -> None:
    other = read_run(write_run(tmp_path / "other", Sketch(grid=((0.0, 4.0),), systems=("amber2",))))
    assert run_settings([run, other]) == {"lambda_mai": ["0.3, 0.5, 0.7", "0.0"], "kappa": ["2.0, 4.0, 8.0", "4.0"]}
    assert run_settings([run, run]) == {}
