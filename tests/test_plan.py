"""The plan of a sweep: its runs are those that would be trained, and making it trains none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from synthetic_data import training_data, write_small_cache

from amber2_core.heads import Architecture
from amber2_train import jobs as jobs_module
from amber2_train.cli import train_heads
from amber2_train.folds import make_folds
from amber2_train.grid import expand
from amber2_train.plan import plan_sweep


def test_a_plan_counts_the_runs_stacks_and_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "STACKED_SETTINGS", {"cpu": 4})
    data = training_data(48)
    settings = expand(["amber2", "cb-ce"], {"kappa": (2.0, 4.0, 8.0), "hidden": (5, 7)})
    plan = plan_sweep(data, make_folds("session", data), settings, seeds=5, epochs=2)
    assert plan.systems == {"amber2": 6, "cb-ce": 2}
    assert (plan.runs, plan.folds) == (8 * 3 * 5, 3)
    assert [(stack.settings, stack.seeds) for stack in plan.stacks] == [(4, 1), (4, 1)]
    sizes = []
    for hidden in (5, 7):
        shape = Architecture((("audio", 6), ("text", 5)), 4, hidden=hidden, fusion_width=hidden)
        sizes.append(sum(math.prod(size) for size in shape.shapes.values()))
    assert [stack.parameters for stack in plan.stacks] == sizes
    assert plan.seconds > 0
    assert plan.at_once == min(torch.get_num_threads(), 2 * 3 * 5, jobs_module.MOST_LANES["cpu"])
    assert plan.bytes >= plan.feature_bytes + plan.at_once * 4 * 4 * 5 * max(sizes)


def test_the_command_shows_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "caches").mkdir()
    cache = write_small_cache(tmp_path / "caches", count=30)
    arguments = [
        "--cache",
        str(cache),
        "--output",
        str(tmp_path / "run"),
        "--hidden",
        "5",
        "--preset",
        "paper",
        "--plan",
    ]
    shown = CliRunner().invoke(train_heads, arguments)
    assert shown.exit_code == 0, shown.output
    assert "amber2: 9 settings x 3 folds x 5 seeds = 135 runs" in shown.stdout
    assert "cb-ce: 1 settings x 3 folds x 5 seeds = 15 runs" in shown.stdout
    assert "in all 150 runs of 30 epochs" in shown.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["caches"]
    as_json = json.loads(CliRunner().invoke(train_heads, [*arguments, "--json"]).stdout)
    assert as_json["at_once"] == min(torch.get_num_threads(), jobs_module.MOST_LANES["cpu"])
    assert (as_json["runs"], as_json["settings"]) == (150, {"amber2": 9, "cb-ce": 1})
