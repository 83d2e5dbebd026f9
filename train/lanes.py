"""Jobs go in; what lanes, threads that share the processor's cores among them, make of them comes out in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from threading import Event
from typing import TypeVar

import torch

from amber2_core.lanes import ahead

from .interrupts import stopped_with_this

Given = TypeVar("Given")
Made = TypeVar("Made")


def in_lanes(make: Callable[[Given], Made], given: Iterable[Given], lanes: int) -> Generator[Made]:
    """`map` in so many lanes, in order; with one lane in this thread.

    Ctrl-C, an error in any lane, or the end of interest stops each at its next `check_interrupt`. While there are
    several, this thread has one core, too: what it makes of the results should take little time.
    """
    if lanes < 2:
        yield from map(make, given)
        return
    threads, unwanted = torch.get_num_threads(), Event()
    make = stopped_with_this(make, unwanted)
    torch.set_num_threads(1)
    try:
        yield from ahead(make, given, lanes, threads_each=max(1, threads // lanes), on_end=unwanted.set)
    finally:
        torch.set_num_threads(threads)
