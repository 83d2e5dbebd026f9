"""What the engine's tests let workers do; workers import it by name."""

from __future__ import annotations

import os


def setup(worker: object, shared: object) -> tuple[object, object, int]:
    """The worker's entry, what all share, and its process."""
    return worker, shared, os.getpid()


def identity(state: tuple[object, object, int], task: object) -> tuple[object, ...]:
    """The task with the state."""
    return (*state, task)
