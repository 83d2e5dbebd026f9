"""A worker of stage 2 that tells when its first step is done. It imports no more than any worker does."""

from __future__ import annotations

import time

from amber2_core.errors import SettingError
from amber2_train.worker import Sweep, Worker


def until_first_step(threads: int, sweep: Sweep) -> Worker:
    """A worker that prints the time after its first step, and ends the sweep."""
    from amber2_train.stacked.optimizer import StackedAdamW

    step = StackedAdamW.step

    def first(self: StackedAdamW) -> None:
        step(self)
        print(time.time(), flush=True)
        raise SettingError("the first step is done")

    StackedAdamW.step = first  # type: ignore[method-assign]
    return Worker(threads, sweep)
