"""Worker processes: tasks dealt, results as they finish, and nothing left of them, however it ends."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import engine_tasks
import pytest

from amber2_core import engine
from amber2_core.engine import Dealt, call, deal
from amber2_core.errors import ModelError, WorkerError

TESTS = Path(__file__).parent
posix = pytest.mark.skipif(os.name != "posix", reason="signals and /proc of other systems")


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_every_task_is_done_once_and_comes_with_its_result() -> None:
    found = list(deal(engine_tasks.with_state, range(50), setup=engine_tasks.state, workers=["a", "b"], shared="all"))
    assert sorted(task for task, _ in found) == list(range(50))
    assert all(result[1] == "all" and result[3] == task for task, result in found)
    assert {result[0] for _, result in found} == {"a", "b"}
    processes = {result[2] for _, result in found}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_no_task_is_no_result() -> None:
    assert list(deal(engine_tasks.with_state, [], setup=engine_tasks.state, workers=[1])) == []


def test_results_come_as_they_finish(tmp_path: Path) -> None:
    """The first task waits for the second worker's; what is behind it waits with it."""
    (tmp_path / "fast").touch()
    found = []
    for task, _ in deal(
        engine_tasks.wait_for, ["slow", *["fast"] * 5], setup=engine_tasks.state, workers=[0, 1], shared=tmp_path
    ):
        found.append(task)
        if len(found) == 4:
            (tmp_path / "slow").touch()
    assert found[:5] == ["fast"] * 4 + ["slow"]


def test_a_worker_is_set_up_once_before_its_first_task(tmp_path: Path) -> None:
    tasks = deal(engine_tasks.note, range(9), setup=engine_tasks.noted_state, workers=["a", "b", "c"], shared=tmp_path)
    assert sorted(task for task, _ in tasks) == list(range(9))
    assert sorted(path.name[:8] for path in tmp_path.glob("setup-*")) == ["setup-a-", "setup-b-", "setup-c-"]


def test_tasks_are_taken_two_for_each_worker_ahead_of_who_takes_the_results() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = deal(engine_tasks.with_state, tasks(), setup=engine_tasks.state, workers=[0, 1])
    assert taken == []
    next(results)
    assert len(taken) <= 1 + 4
    for _ in range(10):
        next(results)
    assert len(taken) <= 11 + 4
    results.close()


def test_a_users_error_is_raised_as_it_is_and_says_on_demand_where_it_came_from() -> None:
    problem = ModelError("no such model: take another")
    with pytest.raises(ModelError) as raised:
        list(deal(engine_tasks.fail, [problem], setup=engine_tasks.state, workers=[0]))
    assert str(raised.value) == "no such model: take another"
    assert "in fail" in str(raised.value.__cause__)
    with pytest.raises(ModelError, match=r"^no setup$"):
        list(deal(engine_tasks.with_state, [1], setup=engine_tasks.fail_at_setup, workers=[0, 1], shared="no setup"))


def test_an_error_of_pythons_is_raised_as_it_is_and_another_by_its_name() -> None:
    with pytest.raises(OSError, match="full") as raised:
        list(deal(engine_tasks.fail, [OSError(28, "full", "/disk")], setup=engine_tasks.state, workers=[0]))
    assert (raised.value.errno, raised.value.filename) == (28, "/disk")
    with pytest.raises(RuntimeError, match=r"^StrangeError: 4 and 4$") as strange:
        list(deal(engine_tasks.fail_strangely, [4], setup=engine_tasks.state, workers=[0]))
    assert "in fail_strangely" in str(strange.value.__cause__)
    with pytest.raises(Exception, match="pickle"):
        list(deal(engine_tasks.give_what_cannot_be_sent, [4], setup=engine_tasks.state, workers=[0]))


@pytest.mark.parametrize("problem", [MemoryError(), RuntimeError("could not create a memory object")])
def test_memory_that_runs_out_in_a_worker_is_one_line_with_a_remedy(problem: Exception) -> None:
    line = rf"^a worker ran out of memory \({str(problem) or 'MemoryError'}; .*fewer workers run: OMP_NUM_THREADS=1\)$"
    with pytest.raises(WorkerError, match=line):
        list(deal(engine_tasks.fail, [problem], setup=engine_tasks.state, workers=[0]))


def test_an_error_of_the_tasks_themselves_is_raised() -> None:
    def tasks() -> Iterator[int]:
        yield 1
        raise KeyError("given")

    with pytest.raises(KeyError, match="given"):
        list(deal(engine_tasks.with_state, tasks(), setup=engine_tasks.state, workers=[0]))


@posix
def test_a_worker_that_is_killed_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = dict(deal(engine_tasks.die_once, range(12), setup=engine_tasks.state, workers=[0, 1], shared=tmp_path))
    assert found == {task: task * task for task in range(12)}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("a worker died (killed by SIGKILL: perhaps memory ran out")
    assert line.endswith("its task is dealt again")


@posix
def test_a_task_that_kills_two_workers_is_not_tried_a_third_time(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WorkerError, match=r"^a worker died twice on the same task \(killed by SIGSEGV\)$"):
        list(deal(engine_tasks.die, range(3), setup=engine_tasks.state, workers=[0]))
    assert len(caplog.records) == 1
    with pytest.raises(WorkerError, match="exit code 7"):
        list(deal(engine_tasks.with_state, [0], setup=engine_tasks.die_at_setup, workers=[0]))


@posix
def test_a_worker_that_is_killed_while_it_waits_is_replaced() -> None:
    release = threading.Event()

    def tasks() -> Iterator[int]:
        yield 0
        assert release.wait(30)
        yield 1

    results = deal(engine_tasks.with_state, tasks(), setup=engine_tasks.state, workers=[0])
    release.set()
    _, first = next(results)
    os.kill(first[2], signal.SIGKILL)
    for process in multiprocessing.active_children():
        process.join(30)
    assert [task for task, _ in results] == [1]


class Far:
    """A worker on a machine that may be lost; it gives tasks back as they are."""

    def __init__(self) -> None:
        self.dealt: deque[Dealt] = deque()
        self.is_gone = False
        self.given: list[object] = []

    def give(self, dealt: Dealt) -> None:
        self.dealt.append(dealt)
        self.given.append(dealt.task)

    def receive(self) -> tuple[str, object] | None:
        return None if self.given == ["slow"] else ("made", self.dealt[0].task)

    def kill(self) -> None:
        pass

    def bury(self) -> str:
        self.dealt.clear()
        self.is_gone = True
        return "a machine was lost"


class Machines:
    """Two of them: the second has the slow task, and is lost when the first has a copy of it."""

    has_stragglers = True

    def __init__(self) -> None:
        self.one, self.other = Far(), Far()

    def workers(self, entries: object, work: object) -> list[Far]:
        return [self.one, self.other]

    def ready(self, busy: object, timeout: float | None) -> list[Far]:
        if timeout == 0:  # there is more to deal
            return []
        time.sleep(0.001)
        if "slow" not in self.one.given:
            return [self.one] if self.one.dealt else []
        return [self.one] if self.other.is_gone else [self.other]


def test_what_has_a_copy_already_is_not_dealt_again_where_its_worker_is_lost() -> None:
    machines = Machines()
    results = deal(engine_tasks.same, ["quick", "slow"], setup=engine_tasks.state, workers=[0, 1], engine=machines)
    assert [task for task, _ in results] == ["quick", "slow"]
    assert (machines.one.given, machines.other.given) == (["quick", "slow"], ["slow"])


def test_results_and_tasks_larger_than_any_pipe_cross_each_other() -> None:
    tasks = [bytes([number]) * 20_000_000 for number in range(5)]
    found = list(deal(engine_tasks.same, tasks, setup=engine_tasks.state, workers=[0, 1], shared=bytes(5_000_000)))
    assert all(task == result for task, result in found)
    assert len(found) == 5


def test_what_workers_log_is_logged_here_at_the_levels_of_here_and_once(caplog: pytest.LogCaptureFixture) -> None:
    lines = ["details of 0", "details of 1", "the same from all"]
    for level, heard in ((logging.DEBUG, lines), (logging.INFO, lines[2:]), (logging.WARNING, [])):
        caplog.clear()
        with caplog.at_level(level, logger="amber2_core"):
            list(deal(engine_tasks.log, [0, 1], setup=engine_tasks.state, workers=[0, 1]))
        assert sorted(record.getMessage() for record in caplog.records) == heard
        assert {record.name for record in caplog.records} <= {"amber2_core.engine_tasks"}


def test_pythons_warnings_are_shown_once_and_are_errors_where_they_are_here(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        list(deal(engine_tasks.warn, [0, 1], setup=engine_tasks.state, workers=[0, 1]))
        (line,) = [record.getMessage() for record in caplog.records]
        assert "UserWarning: this is slow" in line
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="this is slow"):
            list(deal(engine_tasks.warn, [0], setup=engine_tasks.state, workers=[0]))


def test_workers_can_be_started_afresh_where_there_is_no_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_HAS_SERVER", False)
    monkeypatch.setattr(engine, "_context", multiprocessing.get_context("spawn"))
    assert call(engine_tasks.surroundings, "nothing") == (None, os.getcwd())


def test_a_fork_server_that_died_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unborn:
        def start(self) -> None:
            raise EOFError

    monkeypatch.setattr(engine, "_context", SimpleNamespace(Pipe=multiprocessing.Pipe, Process=lambda **_: Unborn()))
    with pytest.raises(WorkerError, match="no worker could be started: the fork server has died"):
        call(os.getpid)


def test_a_crash_under_a_limit_of_memory_is_perhaps_a_lack_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_limit", lambda: True)
    assert engine._in_words(-signal.SIGSEGV) == "killed by SIGSEGV: perhaps memory ran out; fewer workers need less"
    assert engine._in_words(-signal.SIGTERM) == "killed by SIGTERM"
    monkeypatch.setattr(engine, "has_limit", lambda: False)
    assert engine._in_words(-signal.SIGSEGV) == "killed by SIGSEGV"


def test_a_worker_has_the_environment_and_the_folder_of_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMBER2_ANYTHING", "now")
    monkeypatch.chdir(tmp_path)
    assert call(engine_tasks.surroundings, "AMBER2_ANYTHING") == ("now", str(tmp_path))
    assert not {"PYTHONSAFEPATH", "AMBER2_PRELOADED"} & os.environ.keys()


@posix
def test_a_worker_handles_no_signal_but_faults_of_its_own() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    blocked = call(engine_tasks.blocked)
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1, signal.SIGHUP} <= blocked
    assert not blocked & {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS}
    assert not blocked & {signal.SIGTSTP, signal.SIGCONT}, "Ctrl-Z stops everything"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@posix
def test_a_storm_of_signals_harms_neither_a_worker_nor_its_products(tmp_path: Path) -> None:
    """In the main thread of a process that handles them, such work ends in "corrupted size vs. prev_size"."""
    done = threading.Event()

    def storm() -> None:
        while not done.wait(0.0005):
            for path in tmp_path.iterdir():
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
                    os.kill(int(path.name), number)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        tasks = deal(engine_tasks.multiply, [1.5], setup=engine_tasks.state, workers=[0], shared=tmp_path)
        _, (_, count, worst) = next(tasks)
    finally:
        done.set()
        thread.join()
    tasks.close()
    assert count > 0
    assert worst < 1e-5


# ── scripts: without `if __name__ == "__main__"`, each in a session of its own ────────────────────────────────────────

HEAD = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import engine_tasks
from amber2_core.engine import deal, prepare
print("begun", flush=True)
"""
SLEEPING = f"""{HEAD}
try:
    for task, _ in deal(engine_tasks.sleep, [0.0, *[60.0] * 9], setup=engine_tasks.state, workers=[0, 1]):
        print(task, flush=True)
except KeyboardInterrupt:
    sys.exit("stopped")
"""


class Script:
    """A script that runs in its own session, from a folder with modules that nobody should import."""

    def __init__(self, folder: Path, lines: str) -> None:
        path = folder / "script.py"
        path.write_text(lines)
        for name in ("selectors", "torch", "pickle"):
            (folder / f"{name}.py").write_text("raise RuntimeError('a module of the folder where the user is')")
        options = ["-P"]  # as for a command, whose folder is the environment's
        self.process = subprocess.Popen(
            [sys.executable, *options, path],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().rstrip()

    def end(self) -> tuple[int, str, str]:
        """Its exit code, what else it wrote, and its errors, once every process that it started has gone, soon."""
        out, err = self.process.communicate(timeout=30)
        deadline = time.monotonic() + 5
        while left := session(self.process.pid):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
        return self.process.returncode, out, err


def session(leader: int) -> list[str]:
    """The processes of a session that are not dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(") ")
        except OSError:
            continue
        state, _, _, of = rest.split()[:4]
        if int(of) == leader and state != "Z":
            found.append(name)
    return found


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@linux
def test_a_script_needs_no_guard_takes_what_it_likes_and_its_process_loads_no_torch(tmp_path: Path) -> None:
    script = Script(
        tmp_path,
        f"""{HEAD}
print(*(found for _, found in deal(engine_tasks.torch_sum, [2, 3], setup=engine_tasks.state, workers=[0])))
nobody_goes_on = deal(engine_tasks.sleep, [0.0, 60.0], setup=engine_tasks.state, workers=[0, 1])
print(next(nobody_goes_on))
print(sorted({{"torch", "numpy"}} & set(sys.modules)))
""",
    )
    assert script.end() == (0, "begun\n2.0 3.0\n(0.0, 0.0)\n[]\n", "")


@linux
def test_memory_that_runs_out_while_the_fork_server_loads_is_the_workers_line_and_no_traceback(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "starved.py").write_text('raise MemoryError("not enough memory to load all that")')
    (modules / "broken.py").write_text('raise ValueError("its own")')
    script = Script(
        tmp_path,
        f"""{HEAD}
import os
from amber2_core import engine
os.environ["PYTHONPATH"] = {str(modules)!r}
engine.prepare("broken", "starved")
try:
    engine.call(os.getpid)
except engine.WorkerError as problem:
    print(problem)
""",
    )
    code, out, err = script.end()
    assert (code, err) == (0, "")
    assert out.startswith("begun\na worker ran out of memory (not enough memory to load all that; raise the limit")


@linux
@pytest.mark.parametrize("delay", [0.2, None])
def test_ctrl_c_ends_all_whenever_it_comes(tmp_path: Path, delay: float | None) -> None:
    """Soon after the start, when the fork server loads, or, with no delay, while workers compute."""
    script = Script(tmp_path, SLEEPING)
    assert script.line() == "begun"
    if delay is None:
        assert script.line() == "0.0"
    time.sleep(delay or 0)
    began = time.monotonic()
    os.killpg(script.process.pid, signal.SIGINT)
    code, _, err = script.end()
    assert time.monotonic() - began < 5
    assert (code, err) == (1, "stopped\n")


@linux
def test_workers_end_when_their_conductor_is_killed(tmp_path: Path) -> None:
    script = Script(tmp_path, SLEEPING)
    assert [script.line(), script.line()] == ["begun", "0.0"]
    script.process.kill()
    assert script.end() == (-signal.SIGKILL, "", "")
