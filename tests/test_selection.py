"""Selection: the lowest mean dev JS of the head that decides, whatever everything else says."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from slow_training import small
from synthetic_data import training_data

from amber2_core.errors import SettingError
from amber2_train.folds import make_folds
from amber2_train.grid import Setting
from amber2_train.selection import Selection, check_deciders, warn_of_deciders
from amber2_train.systems.system import History
from amber2_train.tasks import FinishedTasks, Run
from amber2_train.training_data import TrainingData


def run(setting: int, seed: int, fold: int = 1, **js: float) -> Run:
    """A run whose dev JS is 0.5 but where `js` says otherwise."""
    dev = {head: {"n": 9, "js": js.get(head, 0.5)} for head in ("audio", "text", "fusion")}
    return Run(fold, setting, seed, History(), dev, {})


def selection(folder: Path, settings: Sequence[Setting], runs: Sequence[Run], seeds: int = 2) -> Selection:
    """What is chosen of runs, each of which has its files."""
    made = Selection(settings, seeds, FinishedTasks(folder))
    for each in runs:
        for path in (made.finished.weights(each), made.finished.weights(each).with_suffix(".npz")):
            path.touch()
        made.add(each)
    return made


SETTINGS = [small(kappa=2.0), small(kappa=4.0), small("cb-ce")]


def all_runs(js: Mapping[tuple[int, int], float], settings: int = 3) -> list[Run]:
    """Runs under two seeds, whose fusion scores as `js` (setting, seed) says."""
    return [run(k, s, fusion=js.get((k, s), 0.5)) for k, s in itertools.product(range(settings), (0, 1))]


def test_the_setting_with_the_lowest_mean_over_seeds_is_chosen_per_system(tmp_path: Path) -> None:
    runs = all_runs({(0, 0): 0.1, (1, 0): 0.3, (1, 1): 0.2})
    made = selection(tmp_path, SETTINGS, runs)
    assert made.chosen(1) == {"amber2": 1, "cb-ce": 2}
    assert made.best[1, "amber2"][1] == pytest.approx(0.25)
    assert made.best[1, "cb-ce"][1] == 0.5
    assert [each.seed for each in made.of(1, 1)] == [0, 1]


def test_the_mean_over_seeds_is_the_same_to_the_last_digit_in_whatever_order_they_come_in(tmp_path: Path) -> None:
    runs = [run(0, seed, fusion=js) for seed, js in enumerate((0.1, 0.2, 0.3))]
    assert sum((0.1, 0.2, 0.3)) != sum((0.3, 0.2, 0.1))
    scores = {selection(tmp_path, SETTINGS[:1], some, 3).best[1, "amber2"][1] for some in itertools.permutations(runs)}
    assert len(scores) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_order_in_which_runs_come_in_changes_nothing(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    settings = [small(kappa=float(k)) for k in range(5)]
    runs = all_runs({(k, s): float(random.integers(1, 4)) / 4 for k in range(5) for s in (0, 1)}, 5)
    means = [np.mean([r.dev["fusion"]["js"] for r in runs if r.setting == k]) for k in range(5)]
    expected = min(range(5), key=lambda k: (means[k], k))  # the earlier one on a tie
    for turn in range(4):
        folder = tmp_path / str(turn)
        folder.mkdir()
        order = random.permutation(len(runs))
        made = selection(folder, settings, [runs[k] for k in order])
        assert made.chosen(1) == {"amber2": expected}
        # of the others no file is left
        kept = {f"fold1-setting{expected}-seed{s}{end}" for s in (0, 1) for end in (".safetensors", ".npz")}
        assert {path.name for path in folder.iterdir()} == kept


def test_a_setting_competes_when_its_last_run_is_there(tmp_path: Path) -> None:
    made = selection(tmp_path, SETTINGS[:1], [run(0, 1)])
    assert not made.is_complete(1)
    with pytest.raises(SettingError, match="amber2 diverged in fold 1"):
        made.chosen(1)
    made.add(run(0, 0))
    assert made.is_complete(1)
    assert made.chosen(1) == {"amber2": 0}
    assert not made.is_complete(2)


def test_folds_choose_each_for_itself(tmp_path: Path) -> None:
    runs = [run(k, 0, fold=f, fusion=0.1 if k + f == 2 else 0.5) for k, f in itertools.product((0, 1), (1, 2))]
    made = selection(tmp_path, SETTINGS[:2], runs, seeds=1)
    assert [made.chosen(fold) for fold in (1, 2)] == [{"amber2": 1}, {"amber2": 0}]


def test_variants_of_a_system_compete_each_for_itself(tmp_path: Path) -> None:
    settings = [small(), replace(small(kappa=0.0), variant="uniform")]
    assert selection(tmp_path, settings, [run(0, 0), run(1, 0)], seeds=1).chosen(1) == {
        "amber2": 0,
        "amber2-uniform": 1,
    }


def test_the_student_decides_whichever_head_it_is(tmp_path: Path) -> None:
    settings = [small(student="audio", kappa=2.0), small(student="audio", kappa=4.0)]
    runs = [run(0, 0, fusion=0.0), run(1, 0, audio=0.4)]
    assert selection(tmp_path, settings, runs, seeds=1).chosen(1) == {"amber2": 1}


def test_settings_that_differ_only_in_shape_compete_too(tmp_path: Path) -> None:
    settings = [small(hidden=2), small(hidden=6)]
    assert selection(tmp_path, settings, [run(0, 0), run(1, 0, fusion=0.4)], seeds=1).chosen(1) == {"amber2": 1}


def test_a_diverged_setting_does_not_compete_and_all_diverged_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = selection(tmp_path, SETTINGS, all_runs({(0, 0): math.nan, (1, 1): 0.9, (2, 1): math.inf}))
    assert made.best[1, "amber2"][0] == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"{point}: the dev JS of a run is not a number from the first epoch on: left out"
        for point in ("amber2 hidden 8 lr 0.01 batch_size 7 kappa 2.0", "cb-ce hidden 8 lr 0.01 batch_size 7")
    ]
    with pytest.raises(SettingError, match="cb-ce diverged in fold 1: no dev JS is a number; try a smaller --lr"):
        made.chosen(1)


def without_text(session: int) -> TrainingData:
    """Fold k of three tests on session k − 1 and chooses on the next one."""
    return training_data(48, missing={"text": [i for i in range(48) if i % 3 == session]})


def test_a_student_that_nobody_on_dev_has_is_refused_before_anything_trains() -> None:
    data = without_text(1)
    folds = make_folds("session", data)
    with pytest.raises(
        SettingError,
        match="amber2 is chosen by the dev JS of its text head, and in fold 1 no utterance of train or none of dev has "
        "it: choose another --student, other --folds or --missing drop",
    ):
        check_deciders(data, folds, [small(student="text"), small(student="text", kappa=2.0)])
    check_deciders(data, folds, [small(student="text"), small(), small("cb-ce")])
    check_deciders(data, folds[1:2], [small(student="text")])
    with pytest.raises(SettingError, match="in fold 3 no utterance of train"):
        check_deciders(data, folds[1:], [small(student="text")])


def test_students_that_see_different_utterances_are_compared_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    data = training_data(45, missing={"text": [3, 4]})
    students = [small(student=head) for head in ("fusion", "text")]
    with caplog.at_level(logging.WARNING):
        warn_of_deciders(data, students[:1])
        warn_of_deciders(training_data(45), students)
        assert not caplog.records
        warn_of_deciders(data, students)
    assert [record.getMessage() for record in caplog.records] == [
        "amber2: the dev JS of fusion or text, by which it is chosen, is over different utterances"
    ]
