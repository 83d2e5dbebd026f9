"""Ctrl-C in a training loop: the signal goes in, a KeyboardInterrupt comes out between two steps, never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Within the block Ctrl-C waits until the function that it gives is called, or the block ends.

    So none passes through torch's engine in the middle of a backward pass. Where somebody else handles the signal, or
    outside the main thread, nothing changes.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))

    def check() -> None:
        if came:
            came.clear()
            raise KeyboardInterrupt

    try:
        yield check
        check()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
