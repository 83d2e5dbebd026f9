"""Sweeps that are stopped: what was finished is not trained again, and nothing else is ever mixed in."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from synthetic_data import write_small_cache

from amber2_core import engine
from amber2_core.errors import RunFolderError, WorkerError
from amber2_core.run_folder import read_settings
from amber2_train import run as run_module
from amber2_train import tasks, worker
from amber2_train.cli import train_heads
from amber2_train.unfinished import unfinished_sweep

QUICK = ["--hidden", "5", "--seeds", "2", "--epochs", "2", "--batch-size", "16", "--kappa", "0,8"]
StopAfter = Callable[[int], list[Any]]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(train_heads, list(arguments))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_cache(tmp_path_factory.mktemp("caches"), count=36)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> StopAfter:
    """Stop training, as by Ctrl-C, when so many tasks more are trained; tells which they are."""
    deal = engine.deal

    def stop(count: int) -> list[Any]:
        trained: list[Any] = []

        def stopped(function: Any, some: Any, **how: Any) -> Iterator[Any]:
            for task, result in deal(function, some, **how) if count or function is not worker.train else ():
                yield task, result
                if function is worker.train:
                    trained.append(task)
                    if len(trained) == count:
                        break
            if function is worker.train and len(trained) == count:
                raise KeyboardInterrupt

        monkeypatch.setattr(engine, "deal", stopped)
        return trained

    return stop


def files(folder: Path) -> dict[str, bytes]:
    """Every file by name, without what tells the time."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del found["log.txt"]
    settings = json.loads(found.pop("settings.json"))
    del settings["created"], settings["command"]
    return found | {"settings.json": json.dumps(settings).encode()}


def test_a_stopped_sweep_goes_on_and_ends_as_if_it_had_not_been(
    cache: Path, tmp_path: Path, stop_after: StopAfter
) -> None:
    arguments = ["--cache", str(cache), *QUICK]
    assert call(*arguments, "--output", str(tmp_path / "whole")).exit_code == 0
    first = stop_after(3)
    stopped = call(*arguments, "--output", str(tmp_path / "run"))
    assert stopped.exit_code == 1
    line = f"error: Stopped: {tmp_path / 'run.unfinished'} holds 3 of 6 tasks; the same command goes on from there"
    assert stopped.stderr.splitlines()[-1] == line
    assert not (tmp_path / "run").exists()
    held = json.loads((tmp_path / "run.unfinished" / "unfinished.json").read_text())
    assert held["what"] == "an unfinished sweep: 3 of 6 tasks are done; the same command goes on"
    assert held["run folder"] == str(tmp_path / "run")

    second = stop_after(99)
    assert call(*arguments, "--output", str(tmp_path / "run")).exit_code == 0
    assert len(second) == 3
    assert not set(first) & set(second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]
    one, other = files(tmp_path / "whole"), files(tmp_path / "run")
    assert "curves.csv" in one
    assert [name for name in one | other if one.get(name) != other.get(name)] == []
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("36 of 36 utterances kept") == 2


def test_whatever_differs_from_the_sweep_that_was_begun_is_named_and_nothing_is_touched(
    tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name that there is: see test_request."""
    cache = write_small_cache(tmp_path, count=36)
    arguments = ["--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK]
    stop_after(1)
    assert call(*arguments).exit_code == 1
    before = (tmp_path / "run.unfinished" / "unfinished.json").read_bytes()

    def check_refused(named: str, *change: str) -> None:
        other = call(*arguments, *change)
        assert other.exit_code == 1
        assert f"run.unfinished holds another sweep: its {named}" in other.stderr
        assert "finish it with its own command, remove it, or name another --output" in other.stderr
        assert (tmp_path / "run.unfinished" / "unfinished.json").read_bytes() == before

    check_refused("kappa is [0.0, 8.0], not [0.0, 4.0]", "--kappa", "0,4")
    check_refused('inputs is "raw", not "standardized"', "--inputs", "standardized")
    with monkeypatch.context() as smaller:
        smaller.setitem(tasks.RUNS, "cpu", 2)
        check_refused("runs in a task is 6, not 2")
    write_small_cache(tmp_path, count=36, seed=1)
    check_refused("cache's contents is ")


def test_without_a_name_the_same_command_finds_the_sweep_that_it_began(
    cache: Path, tmp_path: Path, stop_after: StopAfter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stop_after(5)
    assert call("--cache", str(cache), *QUICK).exit_code == 1
    (begun,) = (tmp_path / "runs").iterdir()
    trained = stop_after(99)
    assert call("--cache", str(cache), *QUICK, "--kappa", "3").exit_code == 0  # another sweep, beside it
    assert begun.exists()
    trained.clear()
    assert call("--cache", str(cache), *QUICK).exit_code == 0
    assert len(trained) == 1
    assert not begun.exists()
    assert begun.with_name(begun.name.removesuffix(".unfinished")).is_dir()


def test_a_sweep_stopped_before_anything_was_finished_leaves_nothing(
    cache: Path, tmp_path: Path, stop_after: StopAfter
) -> None:
    stop_after(0)
    assert call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK).exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_two_sweeps_do_not_write_to_one_place(tmp_path: Path) -> None:
    with (
        unfinished_sweep(tmp_path / "run", {"kappa": 4}, tasks=1),
        pytest.raises(RunFolderError, match=r"run.unfinished is being written by .*: wait for it, or name another"),
    ):
        unfinished_sweep(tmp_path / "run", {"kappa": 4}, tasks=1).__enter__()


def test_what_was_finished_is_kept_where_memory_runs_out(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal = engine.deal

    def full(function: Any, some: Any, **how: Any) -> Iterator[Any]:
        for result in deal(function, some, **how):
            yield result
            if function is worker.train:
                raise WorkerError("cpu ran out of memory")

    arguments = ["--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK]
    monkeypatch.setattr(engine, "deal", full)
    assert call(*arguments).stderr.splitlines()[-1] == "error: cpu ran out of memory"
    assert len(list((tmp_path / "run.unfinished").glob("fold*.json"))) == 1
    monkeypatch.setattr(engine, "deal", deal)
    assert call(*arguments).exit_code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
@pytest.mark.parametrize("most", [200, 3000, 8000])
def test_where_nothing_more_can_be_written_one_line_says_so_and_the_same_command_goes_on(
    cache: Path, tmp_path: Path, most: int
) -> None:
    """No file may be longer than so many bytes: at first not even the sweep's record can be written."""
    arguments = ["--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK, "--hidden", "40"]
    limited = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, resource.RLIM_INFINITY))\n"
        f"from amber2_train.cli import train_heads; train_heads({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"error: Cannot write {tmp_path / 'run'}")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_cannot_be_written_is_one_line() -> None:
    with (
        pytest.raises(RunFolderError, match=r"^Cannot write /dev/full: No space left on device$"),
        run_module._logged(Path("/dev/full")),
    ):
        logging.getLogger("amber2_train").warning("a line that has no place")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="every path there is Unicode")
def test_a_path_whose_bytes_are_no_utf8_is_worked_with(cache: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    there = Path(shutil.copy(cache, folder / "made-up.h5"))
    result = call("--cache", str(there), "--output", str(folder / "run"), *QUICK, "--quiet", "--json")
    assert result.exit_code == 0, result.output
    assert read_settings(folder / "run")["cache"] == str(there)
    assert "caf\\udce9" in (folder / "run" / "log.txt").read_text(encoding="utf-8")


def test_a_damaged_task_is_named(cache: Path, tmp_path: Path, stop_after: StopAfter) -> None:
    stop_after(1)
    arguments = ["--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK]
    call(*arguments)
    (task,) = (tmp_path / "run.unfinished").glob("fold*.json")
    task.write_bytes(task.read_bytes()[:100])
    assert f"{task} is damaged" in call(*arguments).stderr
    task.unlink()
    stop_after(99)
    assert call(*arguments).exit_code == 0


@pytest.mark.parametrize("name", ["unfinished.json", "mine.txt"])
def test_a_folder_of_somebody_else_is_not_touched(cache: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "run.unfinished" / name
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    result = call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK)
    assert result.exit_code == 1
    assert "run.unfinished is not a sweep that can go on: remove it, or name another --output" in result.stderr
    assert mine.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "run").exists()


def test_what_a_process_leaves_that_is_killed_before_its_first_record_stands_in_nobodys_way(tmp_path: Path) -> None:
    folder = tmp_path / "run.unfinished"
    folder.mkdir()
    for name in ("lock", ".unfinished.json.0123abcd.writing"):
        (folder / name).touch()
    with unfinished_sweep(tmp_path / "run", {"kappa": 4}, tasks=1) as finished:
        assert finished.count == 0
    assert list(tmp_path.iterdir()) == []
