"""Tasks: every run in one of them, and what they gave on the disk as it was."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amber2_core.errors import RunFolderError
from amber2_train.grid import expand
from amber2_train.systems.system import History
from amber2_train.tasks import RUNS, FinishedTasks, Predicted, Run, Task, tasks_of


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
@pytest.mark.parametrize(("kappas", "seeds"), [(1, 1), (1, 5), (4, 2), (9, 5), (20, 7)])
def test_every_run_is_in_one_task_with_others_of_its_shape_and_no_task_is_too_large(
    kappas: int, seeds: int, device: str
) -> None:
    settings = expand(["amber2", "cb-ce"], {"kappa": tuple(map(float, range(kappas))), "hidden": (8, 16)})
    tasks = tasks_of([setting.shape for setting in settings], seeds, [1, 2, 4], device)
    runs = [(t.fold, place, seed) for t in tasks for place, seed in itertools.product(t.settings, t.seeds)]
    assert sorted(runs) == list(itertools.product([1, 2, 4], range(len(settings)), range(seeds)))
    assert all(len({settings[place].shape for place in t.settings}) == 1 for t in tasks)
    most = RUNS[device.partition(":")[0]]
    assert max(len(t.settings) * len(t.seeds) for t in tasks) <= most
    assert len({(t.fold, t.number) for t in tasks}) == len(tasks)
    assert [t.fold for t in tasks] == sorted(t.fold for t in tasks)
    if device != "cpu":  # all fits
        assert len(tasks) <= 3 * 4 * math.ceil(kappas * seeds / most + 1)


def test_every_fold_is_cut_alike() -> None:
    tasks = tasks_of(["one", "another", *["one"] * 8], 5, [1, 2], "cpu")
    cut = [[(t.number, t.settings, t.seeds) for t in tasks if t.fold == fold] for fold in (1, 2)]
    assert cut[0] == cut[1]


class Model:
    """What a system's fit yields, without a system."""

    setting, seed, history = None, 0, History()

    def __init__(self, content: bytes = b"weights") -> None:
        self.content = content

    def probs(self, rows: object) -> Mapping[str, Any]:
        raise NotImplementedError

    def save(self, path: Path, origin: Mapping[str, Any]) -> None:
        path.write_bytes(self.content + str(dict(origin)).encode())


TASK = Task(fold=2, number=3, settings=(4, 5), seeds=(0,))
HISTORY = History({"text": [0.5, float("nan")]}, {"text": 1, "fusion": 0}, frozenset({"text", "audio"}))
RUNS_OF_TASK = [
    Run(2, 4, 0, HISTORY, {"text": {"n": 3, "js": 0.1 + 0.2}}, {}),
    Run(2, 5, 0, HISTORY, {"text": {"n": 3, "js": 1 / 3}}, {"text": {"n": 2, "js": 0.25}}),
]
PROBS = {"text": np.random.default_rng(0).dirichlet([1] * 4, 5).astype(np.float32)}
PREDICTED = Predicted(PROBS, {"vacuity": np.linspace(0, 1, 5)})


def written(folder: Path) -> FinishedTasks:
    finished = FinishedTasks(folder)
    assert finished.read(TASK) is None
    finished.write(
        TASK, [(run, Model(), PREDICTED) for run in RUNS_OF_TASK], [{"seed": run.seed} for run in RUNS_OF_TASK]
    )
    return finished


def test_a_task_is_read_back_as_it_was_trained(tmp_path: Path) -> None:
    assert written(tmp_path).count == 1
    again = FinishedTasks(tmp_path)
    found = again.read(TASK)
    assert found is not None
    assert repr(found) == repr(RUNS_OF_TASK)  # NaN is not equal to itself
    for run in found:
        assert again.predicted(run).probs.keys() == PROBS.keys()
        np.testing.assert_array_equal(again.predicted(run).probs["text"], PROBS["text"])
        np.testing.assert_array_equal(again.predicted(run).measures["vacuity"], PREDICTED.measures["vacuity"])
        assert again.weights(run).read_bytes() == b"weights{'seed': 0}"
    assert again.read(replace(TASK, number=4)) is None


def test_a_task_of_which_not_all_is_there_is_not_there(tmp_path: Path) -> None:
    class Stopped(Model):
        def save(self, path: Path, origin: Mapping[str, Any]) -> None:
            raise KeyboardInterrupt

    finished = FinishedTasks(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        finished.write(TASK, [(RUNS_OF_TASK[0], Model(), PREDICTED), (RUNS_OF_TASK[1], Stopped(), PREDICTED)], [{}, {}])
    assert finished.weights(RUNS_OF_TASK[0]).exists()
    assert finished.read(TASK) is None
    assert finished.count == 0


def test_files_of_runs_that_nobody_wants_go_and_what_is_known_of_them_stays(tmp_path: Path) -> None:
    finished = written(tmp_path)
    finished.remove(RUNS_OF_TASK[:1])
    finished.remove(RUNS_OF_TASK[:1])
    assert not finished.weights(RUNS_OF_TASK[0]).exists()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npz", ".safetensors"]
    found = finished.read(TASK)
    assert found is not None
    assert found[0].dev == RUNS_OF_TASK[0].dev


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"runs": [{"fold": 1}]}', b'{"runs": 5}', b"\xff\xfe"])
def test_a_damaged_task_is_named(tmp_path: Path, content: bytes) -> None:
    finished = written(tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"fold2-task3.json is damaged .*: remove it, and it is trained again$"):
        finished.read(TASK)


def test_damaged_distributions_are_named(tmp_path: Path) -> None:
    finished = written(tmp_path)
    path = finished.weights(RUNS_OF_TASK[0]).with_suffix(".npz")
    whole = path.read_bytes()
    for content in (whole[:100], whole[:-30], b""):
        path.write_bytes(content)
        with pytest.raises(RunFolderError, match=r"setting4-seed0.npz is damaged .*: remove .*, and train again$"):
            finished.predicted(RUNS_OF_TASK[0])


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"^Cannot write .*/nowhere: No such file or directory$"):
        written(tmp_path / "nowhere")
