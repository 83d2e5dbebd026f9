"""The plan of a sweep: its runs are those that would be trained, and making it trains none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_sweep import sweep_of
from synthetic_data import training_data, write_small_cache

from amber2_core import engine
from amber2_train.cli import train_heads
from amber2_train.grid import expand
from amber2_train.plan import Cost, measure, plan_sweep
from amber2_train.tasks import FinishedTasks, Task, tasks_of
from amber2_train.worker import Worker

SETTINGS = expand(["amber2", "cb-ce"], {"kappa": (2.0, 4.0, 8.0), "hidden": (5, 7), "batch_size": (8,)})
SHAPES = [setting.shape for setting in SETTINGS]


def test_a_plan_counts_runs_and_tasks_and_adds_up_what_was_measured_of_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(tmp_path, training_data(48), SETTINGS, epochs=4)
    tasks = tasks_of(SHAPES, 5, [1, 2, 3], "cpu")
    measured: list[Task] = []

    def deal(function: Any, some: Any, **how: Any) -> Any:
        assert (function, how["setup"], how["shared"]) == (measure, Worker, sweep)
        for task in some:
            measured.append(task)
            runs = len(task.settings) * len(task.seeds)
            yield task, Cost(runs / 8, runs / 64, rest=runs / 4, took=1e9, bytes=1000 * runs)

    monkeypatch.setattr(engine, "deal", deal)
    plan = plan_sweep(sweep, tasks, [1, 1], shapes=SHAPES, seeds=5)
    assert plan.systems == {"amber2": 6, "cb-ce": 2}
    assert (plan.runs, plan.folds, plan.tasks, plan.at_once) == (8 * 3 * 5, 3, len(tasks), 2)
    sizes = [len(task.settings) * len(task.seeds) for task in tasks]
    # 4 epochs of 16 train rows in batches of 8 and of 16 dev rows, and what comes once
    seconds = [4 * (2 * runs / 8 + 16 * runs / 64) + runs / 4 for runs in sizes]
    first, second = 0.0, 0.0
    for each in seconds:  # to the worker that is free first
        if first <= second:
            first += each
        else:
            second += each
    assert plan.seconds == pytest.approx(max(first, second))
    assert plan.bytes == 2 * 1000 * max(sizes)
    kinds = [(SHAPES[task.settings[0]], len(task.settings), len(task.seeds)) for task in measured]
    assert {kinds.count(kind) for kind in kinds} == {2}  # in both workers
    assert set(kinds) == {(SHAPES[task.settings[0]], len(task.settings), len(task.seeds)) for task in tasks}


def test_measuring_a_task_keeps_nothing_of_it(tmp_path: Path) -> None:
    worker = Worker(1, sweep_of(tmp_path, training_data(48), SETTINGS, epochs=4))
    cost = measure(worker, Task(1, 1, (0, 2), (0,)))
    assert 0 < cost.step < math.inf
    assert cost.dev_row >= 0
    assert 0 < cost.rest < cost.took
    assert cost.bytes > 2**20
    assert list(tmp_path.iterdir()) == []
    assert FinishedTasks(tmp_path).count == 0


def test_the_command_shows_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "caches").mkdir()
    cache = write_small_cache(tmp_path / "caches", count=30)
    arguments = ["--cache", str(cache), "--output", str(tmp_path / "run"), "--hidden", "5"]
    arguments += ["--preset", "paper", "--plan"]
    shown = CliRunner().invoke(train_heads, arguments)
    assert shown.exit_code == 0, shown.output
    assert "amber2: 9 settings x 3 folds x 5 seeds = 135 runs" in shown.stdout
    assert "cb-ce: 1 settings x 3 folds x 5 seeds = 15 runs" in shown.stdout
    assert "in all 150 runs of 30 epochs in " in shown.stdout
    assert "nothing was trained" in shown.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["caches"]
    as_json = json.loads(CliRunner().invoke(train_heads, [*arguments, "--json"]).stdout)
    assert (as_json["runs"], as_json["settings"]) == (150, {"amber2": 9, "cb-ce": 1})
    assert set(as_json) == {"runs", "tasks", "at_once", "bytes", "seconds", "settings"}
