"""Workers: tasks dealt to them, results as they finish, and no worker left whatever happens.

The conductor, the process that the user started, reads, plans and writes; workers compute. They come from a fork
server that has loaded torch, where the platform has one, or start afresh. A worker handles no signal: Ctrl-C is the
conductor's, which ends its workers, and oneDNN, which before 3.11.2 (torch 2.11 brings 3.10) lets its stack pointer
stray into the heap while it multiplies (https://github.com/uxlfoundation/oneDNN/issues/4845), meets none. A worker
whose conductor has gone ends itself.
"""

from __future__ import annotations

import atexit
import logging
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, ClassVar, Protocol, TypeVar

from .devices import has_limit, is_out_of_memory, memory_in_words
from .errors import Amber2Error, WorkerError

State = TypeVar("State")
Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")

OnDeath = Callable[[Task, int, str], Iterable[Task] | None]

ENGINES = ("local", "ray")
# Seconds between looks at what takes long, and how many times as long as the longest finished task that is.
_WATCH, _STRAGGLES = 1.0, 2.0
# How long a worker that was killed may take to vanish, in seconds.
_PATIENCE = 5.0
# macOS has fork, but its libraries do not survive it. The server's socket needs a path of at most 107 bytes.
_HAS_SERVER = (
    "forkserver" in multiprocessing.get_all_start_methods()
    and sys.platform != "darwin"
    and len(os.fsencode(tempfile.gettempdir())) < 72
)
_context: Any = multiprocessing.get_context("forkserver" if _HAS_SERVER else "spawn")
# What a thread brings on itself, what the fork server waits for, and Ctrl-Z, which no handler of ours meets.
_UNBLOCKED = ("ABRT", "BUS", "FPE", "ILL", "SEGV", "TRAP", "CHLD", "CONT", "TSTP", "TTIN", "TTOU")
_starting = threading.RLock()
_alive: set[_Process] = set()
_log = logging.getLogger(__name__)


def prepare(*modules: str) -> None:
    """Start the fork server, with torch and these modules imported in it, and do not wait for it.

    Where it runs already, or where workers come from none, nothing happens. Modules must start no threads.
    """
    if not _HAS_SERVER:
        return
    from multiprocessing import forkserver, resource_tracker

    with _starting, _clean_start(AMBER2_PRELOADED=" ".join((__name__, "torch", *modules))):
        # This one lets SIGINT and SIGTERM through when it is done.
        resource_tracker.ensure_running()
        _block_signals()
        forkserver.set_forkserver_preload([f"{__package__}.preload"])
        forkserver.ensure_running()


def deal(
    function: Callable[[State, Task], Result],
    tasks: Iterable[Task],
    *,
    setup: Callable[[Any, Shared], State],
    workers: Sequence[Any],
    shared: Shared = None,  # type: ignore[assignment]
    queued: int = 2,
    on_death: OnDeath[Task] | None = None,
    engine: Engine | None = None,
) -> Generator[tuple[Task, Result]]:
    """Results with their tasks, as they finish.

    Closing the generator, or an exception that goes through it, ends all workers.

    Args:
        function: called in a worker with what `setup` gave there and a task. It and `setup` can be imported by name.
        tasks: taken as workers get free, at most `queued` for each ahead of who takes the results.
        setup: called once in each worker, with its entry of `workers` and `shared`.
        workers: one entry for each worker that may be started: its device, its number of threads, …
        shared: what all workers need, sent to each once.
        queued: how many tasks a worker has at most, one to compute and others to go on with.
        on_death: asked with a task that a worker died of, how many did, and how: gives the tasks to deal instead of it,
            or None for the same once more; it may raise. Where there is none, a task is dealt twice.
        engine: where workers run; None: in processes of this machine.

    Raises:
        WorkerError: a task killed two workers, a worker ran out of memory, or no worker is left.
        Exception: what `function` or `setup` raised, with the worker's traceback as its cause.
    """
    engine = engine or _Here()
    return _results(engine, iter(tasks), engine.workers(workers, (function, setup, shared)), queued, on_death)


def call(function: Callable[..., Result], *args: Any, worker: Any = None, engine: Engine | None = None) -> Result:
    """What a function gives when a fresh worker calls it once."""
    ((_, result),) = deal(_apply, [args], setup=_callee, workers=[worker], shared=function, engine=engine)
    return result


def _callee(_: None, shared: Callable[..., Result]) -> Callable[..., Result]:
    return shared


def _apply(function: Callable[..., Result], args: Sequence[Any]) -> Result:
    return function(*args)


class Engine(Protocol):
    """Where workers run, and how the conductor hears of them."""

    # a task that takes far longer than any other is dealt to an idle worker, too
    has_stragglers: ClassVar[bool]

    def workers(self, entries: Sequence[Any], work: tuple[Any, Any, Any]) -> Sequence[Worker]:
        """One for each entry; `work` is the function, its setup, and what all share."""

    def ready(self, busy: Sequence[Any], timeout: float | None) -> Sequence[Worker]:
        """Those of which there is something to receive, after so many seconds at most."""


class Worker(Protocol):
    """The conductor's side of one worker, which is started with its first task."""

    # what it is computing, and what it is to go on with
    dealt: deque[Dealt]
    # its machine was lost, and it does not start again
    is_gone: bool

    def give(self, dealt: Dealt) -> None:
        """Deal it a task."""

    def receive(self) -> tuple[Any, ...] | None:
        """Its next message, made, logged or raised and what belongs to it; None if it died."""

    def kill(self) -> None:
        """End it, and do not wait."""

    def bury(self) -> str:
        """How it died; a next task starts it anew."""


# ── in the conductor ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True, eq=False)
class Dealt:
    """A task, and what became of it."""

    task: Any
    # how many workers died of it
    deaths: int = 0
    # on the clock, when it came to be the next of a worker
    begun: float = math.inf
    is_done: bool = False
    is_copied: bool = False


def _results(
    engine: Engine, tasks: Iterator[Any], workers: Sequence[Worker], queued: int, on_death: OnDeath[Any] | None
) -> Generator[tuple[Any, Any]]:
    again: deque[Dealt] = deque()
    heard: dict[tuple[str, int, str], int | None] = {}
    longest = 0.0
    try:
        while True:
            took = _deal_one(again, tasks, workers, queued)
            busy = [worker for worker in workers if any(not dealt.is_done for dealt in worker.dealt)]
            if not busy:
                return
            watches = not took and engine.has_stragglers and _copy_straggler(busy, workers, longest)
            for worker in engine.ready(busy, 0 if took else _WATCH if watches else None):
                match worker.receive():
                    case "made", result:
                        dealt = worker.dealt.popleft()
                        longest = max(longest, time.monotonic() - dealt.begun)
                        _begin(worker)
                        if not dealt.is_done:
                            dealt.is_done = True
                            yield dealt.task, result
                    case "logged", record:
                        _handle_once(record, heard)
                    case "raised", problem, where:
                        raise problem from RuntimeError(f"in a worker:\n{where}")
                    case _:
                        again.extend(_of_the_dead(worker, workers, on_death))
    finally:
        _end(workers)


def _deal_one(again: deque[Dealt], tasks: Iterator[Any], workers: Sequence[Worker], queued: int) -> bool:
    """Give a task to the worker that has fewest, if it has room and there is one."""
    left = [worker for worker in workers if not worker.is_gone]
    if not left:
        raise WorkerError("no machine of the cluster is left: what is finished is kept, and the same command goes on")
    worker = min(left, key=lambda worker: len(worker.dealt))
    if len(worker.dealt) >= queued:
        return False
    dealt = again.popleft() if again else next(map(Dealt, tasks), None)
    if dealt is None:
        return False
    dealt.begun = math.inf
    worker.give(dealt)
    _begin(worker)
    return True


def _begin(worker: Worker) -> None:
    """Note when the next task of a worker came to be that."""
    if worker.dealt and worker.dealt[0].begun == math.inf:
        worker.dealt[0].begun = time.monotonic()


def _copy_straggler(busy: Sequence[Worker], workers: Sequence[Worker], longest: float) -> bool:
    """Deal what has taken far longer than any finished task to an idle worker, too; whether there may be more."""
    idle = next((worker for worker in workers if not worker.dealt and not worker.is_gone), None)
    running = [worker.dealt[0] for worker in busy if not (worker.dealt[0].is_copied or worker.dealt[0].is_done)]
    if idle is None or not running:
        return False
    oldest = min(running, key=lambda dealt: dealt.begun)
    if longest and time.monotonic() - oldest.begun > _STRAGGLES * longest:
        oldest.is_copied = True
        idle.give(oldest)
    return True


def _of_the_dead(worker: Worker, workers: Sequence[Worker], on_death: OnDeath[Any] | None) -> list[Dealt]:
    """The tasks of a worker that died, to be dealt again; the first of them was its death, if its machine lives.

    What another worker has as well stays with that one.
    """
    first, *others = worker.dealt
    how = worker.bury()
    instead: Iterable[Dealt] = [first]
    if worker.is_gone:
        _log.warning("%s: its tasks are dealt to others", how)
    else:
        first.deaths += 1
        parts = None if on_death is None else on_death(first.task, first.deaths, how)
        if on_death is None and first.deaths > 1:
            raise WorkerError(f"a worker died twice on the same task ({how})")
        if parts is None:
            _log.warning("a worker died (%s): its task is dealt again", how)
        else:
            instead = [Dealt(part, first.deaths) for part in parts]
    held = [dealt for worker in workers for dealt in worker.dealt]
    return [dealt for dealt in (*instead, *others) if not dealt.is_done and dealt not in held]


def _handle_once(record: logging.LogRecord, heard: dict[tuple[str, int, str], int | None]) -> None:
    """Log what a worker logged, unless another one said so before."""
    logger = logging.getLogger(record.name)
    first = heard.setdefault((record.name, record.levelno, record.getMessage()), record.process)
    if first == record.process and logger.isEnabledFor(record.levelno):
        logger.handle(record)


class _Here:
    """Processes of this machine."""

    has_stragglers: ClassVar[bool] = False

    def workers(self, entries: Sequence[Any], work: tuple[Any, Any, Any]) -> Sequence[_Process]:
        pickled = pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
        return [_Process(entry, pickled) for entry in entries]

    def ready(self, busy: Sequence[_Process], timeout: float | None) -> Sequence[_Process]:
        connections = wait([worker.connection for worker in busy], timeout=timeout)
        return [worker for worker in busy if worker.connection in connections]


class _Process:
    """A worker that is a process of this machine."""

    is_gone = False

    def __init__(self, entry: Any, work: bytes) -> None:
        self.dealt: deque[Dealt] = deque()
        self.process: Any = None
        self.connection: Any = None
        self._entry, self._work = entry, work

    def give(self, dealt: Dealt) -> None:
        if self.process is None:
            self._start()
        self.dealt.append(dealt)
        self._send(pickle.dumps(dealt.task, pickle.HIGHEST_PROTOCOL))

    def receive(self) -> Any:
        try:
            pickled = self.connection.recv_bytes()
        except (EOFError, OSError):
            return None
        return pickle.loads(pickled)

    def kill(self) -> None:
        if self.connection is not None:
            self.connection.close()
        if self.process is not None and self.process.exitcode is None:
            self.process.kill()

    def bury(self) -> str:
        self.kill()
        code = None
        if self.process is not None:
            self.process.join(_PATIENCE)
            code = self.process.exitcode
        self.process = self.connection = None
        self.dealt.clear()
        _alive.discard(self)
        return _in_words(code)

    def _start(self) -> None:
        self.connection, theirs = _context.Pipe()
        _alive.add(self)
        # Where this is interrupted, the worker that comes all the same finds its pipe closed, and ends.
        self.process = _start(theirs)
        told = (self._entry, dict(os.environ), *surroundings())
        self._send(pickle.dumps(told, pickle.HIGHEST_PROTOCOL))
        self._send(self._work)

    def _send(self, pickled: bytes) -> None:
        with suppress(OSError):  # it has died, and who waits for its messages will hear of it
            self.connection.send_bytes(pickled)


def _start(theirs: Connection) -> Any:
    """A process, started in a thread: Ctrl-C comes through while the fork server loads, and never halfway through."""
    started: Future[Any] = Future()

    def start() -> None:
        try:
            prepare()
            process = _context.Process(target=_work, args=(theirs,), name="amber2 worker", daemon=True)
            with _starting, _clean_start(), _bare_main():
                process.start()
            started.set_result(process)
        except BaseException as problem:
            started.set_exception(problem)
        finally:
            theirs.close()

    threading.Thread(target=start, daemon=True).start()
    try:
        return started.result()
    except (EOFError, ConnectionError) as problem:
        raise WorkerError(
            "no worker could be started: the fork server has died; perhaps memory ran out (ulimit -v)"
        ) from problem


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Threads and processes started within take no signals, nor does what they start."""
    mask = _block_signals()
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _clean_start(**told: str) -> Iterator[None]:
    """Processes started within take no signals and import nothing from the folder where the user happens to be.

    They are told more in their environment.
    """
    told = {"PYTHONSAFEPATH": "1", **told}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        with signals_blocked():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _bare_main() -> Iterator[None]:
    """A worker started within does not run the user's script again; other threads, too, see a bare `__main__`."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def surroundings() -> tuple[dict[str, int], list[Any]]:
    """The levels of loggers that have one, the root as "", and what becomes of Python's warnings."""
    loggers = logging.root.manager.loggerDict.items()
    levels = {name: logger.level for name, logger in loggers if isinstance(logger, logging.Logger) and logger.level}
    filters = [one for one in warnings.filters if one[2].__module__ == "builtins"]
    return {"": logging.root.level, **levels}, filters


def _in_words(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    # Libraries in C++ do not look whether they got what they asked for, or end the process.
    if name == "SIGKILL" or (has_limit() and name in ("SIGABRT", "SIGBUS", "SIGSEGV")):
        return f"killed by {name}: perhaps memory ran out; fewer workers need less"
    return f"killed by {name}"


@atexit.register
def _end_all() -> None:
    """At exit, before multiprocessing has its way, which would wait for workers that hear no SIGTERM."""
    _end(list(_alive))
    if _HAS_SERVER and not multiprocessing.active_children():
        from multiprocessing import forkserver

        # Left alone it ends as well, but only when it has loaded everything.
        server = getattr(forkserver._forkserver, "_forkserver_pid", None)
        if server is not None:
            with suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)


def _end(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.bury()


# ── in a worker ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _work(connection: Connection) -> None:
    """A worker's whole life."""
    _block_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    outbox = _Outbox(connection)
    try:
        entry, environment, levels, filters = pickle.loads(inbox.get())
        # what the conductor has now, which the fork server may never have had
        os.environ.clear()
        os.environ.update(environment)
        settle(outbox, levels, filters)
        from . import preload  # where there is no fork server, it does its work here

        preload.check()
        function, setup, shared = pickle.loads(inbox.get())
        state = setup(entry, shared)
        del shared
        while True:
            outbox.send("made", function(state, pickle.loads(inbox.get())))
    except BaseException as problem:
        outbox.send(*raised(problem))


def _listen(connection: Connection, inbox: SimpleQueue[bytes]) -> None:
    """Take what the conductor sends at once, so that it never waits for a worker that waits for it; end with it."""
    try:
        while True:
            inbox.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


class _Outbox(QueueHandler):
    """The way to the conductor: messages of any thread, and all that is logged."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)  # type: ignore[arg-type]
        self._connection, self._sending = connection, threading.Lock()

    def enqueue(self, record: logging.LogRecord) -> None:
        self.send("logged", record)

    def send(self, *message: Any) -> None:
        pickled = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        try:
            with self._sending:
                self._connection.send_bytes(pickled)
        except OSError:  # the conductor has gone
            os._exit(1)


def settle(outbox: logging.Handler, levels: dict[str, int], filters: list[Any]) -> None:
    """Let a worker log and warn as its conductor does, to a way to it."""
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.root.handlers = [outbox]
    logging.captureWarnings(True)
    warnings.filters[:] = filters  # type: ignore[index]


def raised(problem: BaseException) -> tuple[str, BaseException, str]:
    """The message of what was raised, with where."""
    return "raised", _portable(problem), traceback.format_exc()


def _portable(problem: BaseException) -> BaseException:
    """The problem as an exception that the conductor knows without further libraries."""
    if is_out_of_memory(problem):
        return WorkerError(f"a worker ran out of memory ({memory_in_words(problem)})")
    if isinstance(problem, Amber2Error) or type(problem).__module__ == "builtins":
        with suppress(Exception):
            pickle.loads(pickle.dumps(problem))
            return problem
    return RuntimeError(f"{type(problem).__qualname__}: {problem}")


def _block_signals() -> set[Any] | None:
    """Block signals in this thread and in what it starts; returns what was blocked before."""
    if not hasattr(signal, "pthread_sigmask"):
        return None
    kept = {getattr(signal, f"SIG{name}") for name in _UNBLOCKED}
    return signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - kept)
