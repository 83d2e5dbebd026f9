"""Whole `train-heads` commands as a shell starts them: Ctrl-C, and whatever kills a process of theirs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from synthetic_data import write_small_cache

from amber2_train.cli import train_heads

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
QUICK = ["--hidden", "5", "--seeds", "4", "--batch-size", "8", "--epochs", "15", "--kappa", "0,1,2,4,8,9"]
TASKS = 3 * (4 + 1)  # AmbER²'s 24 runs of a fold in four, the baseline's in one
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


def test_whatever_is_killed_all_processes_end_and_the_same_command_goes_on_to_the_same_files(
    tmp_path: Path, started: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, output = write_small_cache(tmp_path, count=48), tmp_path / "run"
    # the command itself: it can say nothing, and its workers go
    first = Command(cache, output)
    started.append(first)
    first.until_tasks(1)
    first.process.kill()
    code, errors = first.end()
    assert code == -signal.SIGKILL
    assert not [line for line in errors if "Traceback" in line]
    done = first.finished()
    assert 1 <= done < TASKS

    # Ctrl-C: one line
    second = Command(cache, output)
    started.append(second)
    second.until_tasks(done + 1)
    os.killpg(second.process.pid, signal.SIGINT)
    code, errors = second.end()
    assert code == 1
    assert done < second.finished() < TASKS
    held = f"{second.unfinished} holds {second.finished()} of {TASKS} tasks"
    assert errors[-1] == f"error: Stopped: {held}; the same command goes on from there"
    assert not [line for line in errors if "Traceback" in line or "resource_tracker" in line]
    assert not output.exists()

    # a worker: one warning
    third = Command(cache, output)
    started.append(third)
    third.until_tasks(second.finished() + 1)
    os.kill(third.workers()[0], signal.SIGKILL)
    code, errors = third.end()
    assert code == 0, errors
    (line,) = [line for line in errors if line.startswith("warning: ")]
    assert line.startswith("warning: a worker died (killed by SIGKILL: perhaps memory ran out")
    assert line.endswith("its task is dealt again")
    assert line.removeprefix("warning: ") in (output / "log.txt").read_text()

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    whole = ["--cache", str(cache), "--output", str(tmp_path / "whole"), *QUICK]
    assert CliRunner().invoke(train_heads, whole).exit_code == 0
    one, other = files(output), files(tmp_path / "whole")
    assert [name for name in one | other if one.get(name) != other.get(name)] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made-up.h5", "run", "whole"]


def test_a_limit_of_memory_ends_it_in_a_line_and_the_same_command_goes_on_without(tmp_path: Path) -> None:
    """1 GiB of addresses do not hold torch, nor what it reserves; what does not end is killed."""
    cache, output = write_small_cache(tmp_path, count=48), tmp_path / "run"
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); "
        "from amber2_train.cli import train_heads; train_heads()"
    )
    rest = ["--cache", str(cache), "--output", str(output), "--epochs", "1"]
    command = [sys.executable, "-c", limited, *rest]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: a worker ran out of memory (")
    assert list(tmp_path.iterdir()) == [cache]
    assert CliRunner().invoke(train_heads, rest).exit_code == 0


def test_ctrl_c_before_anything_is_finished_leaves_nothing(tmp_path: Path, started: list[Command]) -> None:
    cache = write_small_cache(tmp_path, count=48)
    command = Command(cache, tmp_path / "run", "--epochs", "1000000")
    started.append(command)
    until(lambda: len(command.workers()) == 2 or command.process.poll() is not None, "no worker was started")
    os.killpg(command.process.pid, signal.SIGINT)
    code, errors = command.end()
    assert code == 1
    assert not [line for line in errors if "Traceback" in line]
    assert errors[-1] == "Aborted!"
    assert list(tmp_path.iterdir()) == [cache]
