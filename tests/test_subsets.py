"""Scores on utterances with a majority, with a plurality and on all, against loops."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
import reference
from run_folders import Sketch, write_run

from amber2_report.groups import grouped
from amber2_report.runs import read_run
from amber2_report.tables import subset_tables, subsets

VOTES = [
    # votes by class, whether a majority, whether a plurality
    ([5, 0, 0, 0], True, True),
    ([3, 2, 0, 0], True, True),
    ([2, 2, 0, 0], False, False),
    ([2, 1, 1, 0], False, True),
    ([2, 2, 1, 0], False, False),
    ([3, 1, 1, 1], False, True),
    ([1, 1, 1, 0], False, False),
]


@pytest.mark.parametrize(("votes", "majority", "plurality"), VOTES)
def test_a_majority_is_more_than_half_and_a_plurality_more_than_any_other(
    votes: list[int], majority: bool, plurality: bool
) -> None:
    target = (np.array([votes]) / sum(votes)).astype(np.float32)
    found = {name: bool(members[0]) for name, members in subsets(target).items()}
    assert found == {"majority": majority, "plurality": plurality, "all": True}


def test_shares_of_single_precision_make_no_majority_of_a_half_and_no_plurality_of_a_tie() -> None:
    half = np.array([[0.5 + 1e-7, 0.5 - 1e-7, 0], [1 / 3 + 1e-7, 1 / 3, 1 / 3 - 1e-7]], np.float32)
    assert {name: members.tolist() for name, members in subsets(half).items()} == {
        "majority": [False, False], "plurality": [False, False], "all": [True, True],
    }  # fmt: skip


def test_the_table_holds_each_system_on_each_subset_as_loops_have_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Sketch(count=90, raters=4, lacking={"fusion": [7]}))
    (group,) = grouped([read_run(folder)])
    (table,) = subset_tables(group)
    p, scores = group.predictions, {"js": reference.js, "bc": reference.bhattacharyya}
    assert table.frame["subset"].tolist() == ["majority", "plurality", "all"] * 2
    for row in table.frame.to_dict("records"):
        probs = p.probs[row["entry"].replace(" ", "/")]
        own = []
        for k, y in enumerate(p.target.tolist()):
            votes = sorted(round(4 * share) for share in y)
            inside = {"majority": 2 * votes[-1] > 4, "plurality": votes[-1] > votes[-2], "all": True}[row["subset"]]
            if inside and k != 7:
                own.append(k)
        assert row["n"] == len(own)
        for name, score in scores.items():
            of_seeds = [
                statistics.fmean(
                    statistics.fmean(
                        score(p.target[k].tolist(), probs[seed, k].tolist()) for k in own if p.fold[k] == fold
                    )
                    for fold in (1, 2, 3)
                )
                for seed in range(2)
            ]
            assert row[name] == pytest.approx(statistics.fmean(of_seeds), abs=1e-6)
            assert row[f"{name}_sd"] == pytest.approx(statistics.stdev(of_seeds), abs=1e-6)


def test_on_all_utterances_scores_are_those_of_the_main_table(run_folder: Path) -> None:
    (group,) = grouped([read_run(run_folder)])
    (table,) = subset_tables(group)
    whole = table.frame[table.frame["subset"] == "all"].set_index("entry")
    for entry in group.mains:
        for name in ("js", "bc", "r2", "macro_f1", "weighted_f1", "accuracy"):
            assert whole.loc[entry.label, name] == pytest.approx(entry.per_seed(name).mean(), abs=1e-9)


def test_there_is_no_such_table_where_every_utterance_has_a_majority(tmp_path: Path) -> None:
    (group,) = grouped([read_run(write_run(tmp_path / "run", Sketch(raters=1)))])
    assert subset_tables(group) == []
