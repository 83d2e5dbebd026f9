"""Sweeps that are stopped: what was finished is not trained again, and nothing else is ever mixed in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from synthetic_data import training_data, write_small_cache

from amber2_core.errors import RunFolderError
from amber2_train import jobs as jobs_module
from amber2_train import sweep as sweep_module
from amber2_train.cli import train_heads
from amber2_train.folds import make_folds
from amber2_train.grid import Setting, expand
from amber2_train.parts import Part, Parts
from amber2_train.sweep import sweep
from amber2_train.unfinished import unfinished_sweep

QUICK = ["--hidden", "5", "--seeds", "2", "--epochs", "2", "--batch-size", "16", "--kappa", "0,8"]
SMALL: dict[str, Any] = {"hidden": (5,), "batch_size": (16,), "lr": (0.03,), "kappa": (0.0, 8.0)}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(train_heads, list(arguments))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_cache(tmp_path_factory.mktemp("caches"), count=36)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Make training stop, as by Ctrl-C, when one stack more than so many is trained; counts the stacks."""

    def stop(stacks: int) -> list[int]:
        trained: list[int] = []
        part_of = jobs_module.part_of

        def counted(*arguments: Any) -> Part:
            if len(trained) == stacks:
                raise KeyboardInterrupt
            trained.append(1)
            return part_of(*arguments)

        monkeypatch.setattr(sweep_module, "part_of", counted)
        return trained

    return stop


def files(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del found["log.txt"]
    settings = json.loads(found.pop("settings.json"))
    del settings["created"], settings["command"]
    return found | {"settings.json": json.dumps(settings).encode()}


def test_a_stopped_sweep_goes_on_and_ends_as_if_it_had_not_been(
    cache: Path, tmp_path: Path, stop_after: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--cache", str(cache), *QUICK]
    assert call(*arguments, "--output", str(tmp_path / "whole")).exit_code == 0
    monkeypatch.setattr(jobs_module, "STACKED_SETTINGS", {"cpu": 2})
    assert call(*arguments, "--output", str(tmp_path / "stacked")).exit_code == 0
    with monkeypatch.context():
        stop_after(3)
        stopped = call(*arguments, "--output", str(tmp_path / "run"))
    assert stopped.exit_code == 1
    line = f"error: Stopped: {tmp_path / 'run.unfinished'} holds 3 of 6 stacks; the same command goes on from there"
    assert stopped.stderr.splitlines()[-1] == line
    assert not (tmp_path / "run").exists()
    held = json.loads((tmp_path / "run.unfinished" / "unfinished.json").read_text())
    assert held["what"] == "an unfinished sweep: 3 of 6 stacks are done; the same command goes on"

    monkeypatch.undo()
    monkeypatch.setattr(jobs_module, "STACKED_SETTINGS", {"cpu": 2})
    trained = stop_after(99)
    assert call(*arguments, "--output", str(tmp_path / "run")).exit_code == 0
    assert len(trained) == 3
    assert not (tmp_path / "run.unfinished").exists()
    one, other = files(tmp_path / "stacked"), files(tmp_path / "run")
    assert "curves.csv" in one
    assert [name for name in one if one[name] != other[name]] == []
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("36 of 36 utterances kept") == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--kappa", "0,4"], "its kappa is [0.0, 8.0], not [0.0, 4.0]"),
        (["--seeds", "3"], "its seeds is 2, not 3"),
        (["--inputs", "standardized"], 'its inputs is "raw", not "standardized"'),
        (["--keep", "majority"], "its policy is "),
        (["--missing", "mask"], 'its missing is "drop", not "mask"'),
        (["--system", "amber2"], 'its system is ["amber2", "cb-ce"], not ["amber2"]'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_changed_setting_is_named_and_nothing_is_touched(
    cache: Path, tmp_path: Path, stop_after: Callable[[int], list[int]], change: list[str], named: str
) -> None:
    arguments = ["--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK]
    stop_after(1)
    assert call(*arguments).exit_code == 1
    before = (tmp_path / "run.unfinished" / "unfinished.json").read_bytes()
    other = call(*arguments, *change)
    assert other.exit_code == 1
    assert f"run.unfinished holds another sweep: {named}" in other.stderr
    assert "finish it with its own command, remove it, or name another --output" in other.stderr
    assert (tmp_path / "run.unfinished" / "unfinished.json").read_bytes() == before


def test_a_cache_with_other_features_or_votes_is_named(tmp_path: Path, stop_after: Callable[[int], list[int]]) -> None:
    cache = write_small_cache(tmp_path, count=36)
    stop_after(1)
    arguments = ["--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK]
    assert call(*arguments).exit_code == 1
    write_small_cache(tmp_path, count=36, seed=1)
    assert "holds another sweep: its cache's contents is " in call(*arguments).stderr


def test_stacks_of_another_size_are_not_taken_for_those_of_this_one(
    cache: Path, tmp_path: Path, stop_after: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(1)
    arguments = ["--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK]
    assert call(*arguments).exit_code == 1
    monkeypatch.setattr(jobs_module, "STACKED_SETTINGS", {"cpu": 2})
    assert "holds another sweep: its settings in a stack is 6, not 2" in call(*arguments).stderr


def test_without_a_name_the_same_command_finds_the_sweep_that_it_began(
    cache: Path, tmp_path: Path, stop_after: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context():
        stop_after(2)
        assert call("--cache", str(cache), *QUICK).exit_code == 1
    (begun,) = (tmp_path / "runs").iterdir()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert call("--cache", str(cache), *QUICK, "--kappa", "3").exit_code == 0  # another sweep, beside it
    assert begun.exists()
    trained = stop_after(99)
    assert call("--cache", str(cache), *QUICK).exit_code == 0
    assert len(trained) == 1
    assert not begun.exists()
    assert begun.with_name(begun.name.removesuffix(".unfinished")).is_dir()


def test_a_sweep_stopped_before_anything_was_finished_leaves_nothing(
    cache: Path, tmp_path: Path, stop_after: Callable[[int], list[int]]
) -> None:
    stop_after(0)
    assert call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK).exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_two_sweeps_do_not_write_to_one_place(tmp_path: Path) -> None:
    with (
        unfinished_sweep(tmp_path / "run", {"kappa": 4}, stacks=1),
        pytest.raises(RunFolderError, match=r"run.unfinished is being written by another train-heads"),
    ):
        unfinished_sweep(tmp_path / "run", {"kappa": 4}, stacks=1).__enter__()


def test_a_damaged_stack_is_named(cache: Path, tmp_path: Path, stop_after: Callable[[int], list[int]]) -> None:
    stop_after(1)
    arguments = ["--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK]
    call(*arguments)
    (stack,) = (tmp_path / "run.unfinished").glob("*.safetensors")
    stack.write_bytes(stack.read_bytes()[:100])
    assert f"{stack} is damaged" in call(*arguments).stderr


def test_stacks_are_read_back_as_they_were_trained(tmp_path: Path) -> None:
    data = training_data(36)
    settings = expand(["amber2", "cb-ce"], SMALL)
    folds = make_folds("session", data)[:1]
    first = sweep(data, folds, settings, seeds=2, epochs=2, parts=Parts(tmp_path))
    assert Parts(tmp_path).count == 1
    again = sweep(data, folds, settings, seeds=2, epochs=2, parts=Parts(tmp_path))
    assert first.rows == again.rows
    assert first.curves == again.curves
    assert first.selected == again.selected
    for key, heads in first.heads.items():
        other = again.heads[key].model.parameters
        assert all(bool((tensor == other[name]).all()) for name, tensor in heads.model.parameters.items())
    assert isinstance(first.selected["amber2", 1], Setting)


def test_a_folder_of_somebody_else_is_not_touched(cache: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run.unfinished" / "mine.txt"
    mine.parent.mkdir()
    mine.touch()
    result = call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK)
    assert result.exit_code == 1
    assert "run.unfinished is not a sweep that can go on: remove it, or name another --output" in result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["run.unfinished", "mine.txt"]
