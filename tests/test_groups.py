"""Groups of runs: what may be compared stands together, under labels that tell it apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import Sketch, write_run

from amber2_report.groups import grouped, slug
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
