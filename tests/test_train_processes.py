"""Whole `train-heads` commands as a shell starts them: Ctrl-C, and whatever kills a process of theirs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from synthetic_data import write_small_cache

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
QUICK = ["--hidden", "5", "--seeds", "2", "--batch-size", "8", "--epochs", "30", "--kappa", "0,2,4,8"]
TASKS = 3 * (2 + 1)  # AmbER²'s eight runs of a fold in two, the baseline's in one
PATIENCE = 120.0  # s, for whatever must happen


class Command:
    """`train-heads` in a session of its own, with two workers."""

    def __init__(self, cache: Path, output: Path, *more: str) -> None:
        code = "from amber2_train.cli import train_heads; train_heads()"
        command = [sys.executable, "-c", code, "--cache", str(cache), "--output", str(output), *QUICK, *more]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
        )  # fmt: skip
        self.unfinished = output.with_name(output.name + ".unfinished")

    def end(self) -> tuple[int, list[str]]:
        """Exit code and the lines on standard error, when every process that was started has gone."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        until(lambda: not self.processes(), "processes are left")
        return self.process.returncode, errors.splitlines()

    def processes(self) -> dict[int, int]:
        """Process → parent, of the session, but for what has ended and is not yet waited for."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:  # it has just gone
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                found[int(path.parent.name)] = int(fields[1])
        return found

    def workers(self) -> list[int]:
        """What the server of processes, itself a child, has started."""
        found = self.processes()
        return [pid for pid, parent in found.items() if parent in found and parent != self.process.pid]

    def until_tasks(self, count: int) -> None:
        """Wait until so many tasks are finished, or the command is."""
        until(lambda: self.finished() >= count or self.process.poll() is not None, "nothing is finished")

    def finished(self) -> int:
        return len(list(self.unfinished.glob("fold*-task*.json")))


def until(happened: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.005)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_cache(tmp_path_factory.mktemp("caches"), count=48)


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a command that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, errors = Command(cache, folder).end()
    assert code == 0, errors
    return folder


@pytest.fixture
def started() -> Iterator[list[Command]]:
    """Commands of which nothing is left when the test is over."""
    commands: list[Command] = []
    yield commands
    for command in commands:
        for pid in command.processes():
            os.kill(pid, signal.SIGKILL)


def files(folder: Path) -> dict[str, bytes]:
    """Every file by name, without what tells the time or the folder's name."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del found["log.txt"]
    settings = json.loads(found.pop("settings.json"))
    del settings["created"], settings["command"]
    return found | {"settings.json": json.dumps(settings).encode()}


def assert_the_same(folder: Path, whole: Path) -> None:
    one, other = files(folder), files(whole)
    assert [name for name in one | other if one.get(name) != other.get(name)] == []
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_ctrl_c_ends_all_processes_with_one_line_and_the_same_command_goes_on(
    cache: Path, whole: Path, tmp_path: Path, started: list[Command]
) -> None:
    command = Command(cache, tmp_path / "run")
    started.append(command)
    command.until_tasks(2)
    os.killpg(command.process.pid, signal.SIGINT)
    code, errors = command.end()
    assert code == 1
    count = command.finished()
    assert 2 <= count < TASKS
    line = f"error: Stopped: {command.unfinished} holds {count} of {TASKS} tasks; the same command goes on from there"
    assert errors[-1] == line
    assert not [one for one in errors if "Traceback" in one or "resource_tracker" in one]
    assert not (tmp_path / "run").exists()

    again = Command(cache, tmp_path / "run")
    started.append(again)
    code, errors = again.end()
    assert code == 0, errors
    assert_the_same(tmp_path / "run", whole)


def test_ctrl_c_before_anything_is_finished_leaves_nothing(cache: Path, tmp_path: Path, started: list[Command]) -> None:
    command = Command(cache, tmp_path / "run", "--epochs", "1000000")
    started.append(command)
    until(lambda: len(command.workers()) == 2 or command.process.poll() is not None, "no worker was started")
    os.killpg(command.process.pid, signal.SIGINT)
    code, errors = command.end()
    assert code == 1
    assert not [one for one in errors if "Traceback" in one]
    assert errors[-1] == "Aborted!"
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_killed_costs_one_line_and_no_result(
    cache: Path, whole: Path, tmp_path: Path, started: list[Command]
) -> None:
    command = Command(cache, tmp_path / "run")
    started.append(command)
    command.until_tasks(1)
    os.kill(command.workers()[0], signal.SIGKILL)
    code, errors = command.end()
    assert code == 0, errors
    (line,) = [one for one in errors if one.startswith("warning: ")]
    assert line.startswith("warning: a worker died (killed by SIGKILL: perhaps memory ran out")
    assert line.endswith("its task is dealt again")
    assert_the_same(tmp_path / "run", whole)
    assert line.removeprefix("warning: ") in (tmp_path / "run" / "log.txt").read_text()


def test_if_the_command_itself_is_killed_its_workers_go_and_the_same_command_goes_on(
    cache: Path, whole: Path, tmp_path: Path, started: list[Command]
) -> None:
    command = Command(cache, tmp_path / "run")
    started.append(command)
    command.until_tasks(1)
    command.process.kill()
    code, errors = command.end()
    assert code == -signal.SIGKILL
    assert not [one for one in errors if "Traceback" in one]
    assert command.finished() >= 1

    again = Command(cache, tmp_path / "run")
    started.append(again)
    code, errors = again.end()
    assert code == 0, errors
    assert_the_same(tmp_path / "run", whole)
