"""Ctrl-C while a sweep trains: a function goes in and is computed where no signal meets it; what it gives comes out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from amber2_core.onednn import fast_products, take_no_signals

Given = ParamSpec("Given")
Result = TypeVar("Result")
_of_thread = threading.local()


def in_quiet_thread(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """A function that runs in a thread of its own, which takes no signals and computes with `fast_products`.

    Ctrl-C ends it at its next `check_interrupt`; only then is KeyboardInterrupt raised where it was called. Where
    somebody else handles the signal, or outside the main thread, it is theirs. What is called in a quiet thread stays
    in it: two sets of OpenMP threads would slow each other down.
    """

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if _stops():
            return function(*args, **kwargs)
        stop, given = threading.Event(), Future[Result]()

        def compute() -> None:
            take_no_signals()
            _of_thread.stops = (stop,)
            try:
                with fast_products():
                    given.set_result(function(*args, **kwargs))
            except BaseException as problem:
                given.set_exception(problem)

        thread = threading.Thread(target=compute, name=function.__name__)
        with _on_ctrl_c(stop.set):
            try:
                _start(thread)
                thread.join()
            except BaseException:  # of somebody else's handler
                stop.set()
                thread.join()
                raise
        if stop.is_set():
            raise KeyboardInterrupt
        return given.result()

    return run


def check_interrupt() -> None:
    """Raise KeyboardInterrupt here, if Ctrl-C came while a quiet thread runs this."""
    if any(stop.is_set() for stop in _stops()):
        raise KeyboardInterrupt


def stopped_with_this(function: Callable[Given, Result], unwanted: threading.Event) -> Callable[Given, Result]:
    """A function for another thread, in which `check_interrupt` ends it when it would in this one, or when unwanted."""
    stops = (*_stops(), unwanted)

    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        _of_thread.stops = stops
        return function(*args, **kwargs)

    return run


def _stops() -> tuple[threading.Event, ...]:
    """What would end this thread's work; of a quiet thread there is something."""
    stops: tuple[threading.Event, ...] = getattr(_of_thread, "stops", ())
    return stops


def _start(thread: threading.Thread) -> None:
    """Start a thread; what comes of a signal comes when it runs."""
    if not hasattr(signal, "pthread_sigmask"):
        thread.start()
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _on_ctrl_c(act: Callable[[], None]) -> Iterator[None]:
    """Within the block Ctrl-C calls a function instead of raising KeyboardInterrupt."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
