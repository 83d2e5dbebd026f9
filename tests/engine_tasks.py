"""What the engine's tests let workers do; workers import it by name."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn

from amber2_core.errors import ModelError

State = tuple[Any, Any, int]


def state(worker: Any, shared: Any) -> State:
    """The worker's entry, what all share, and its process."""
    return worker, shared, os.getpid()


def with_state(state: State, task: Any) -> tuple[Any, ...]:
    """The task behind the state."""
    return (*state, task)


def noted_state(worker: Any, shared: Path) -> State:
    """A file for each setup."""
    (shared / f"setup-{worker}-{os.getpid()}").touch()
    return worker, shared, os.getpid()


def note(state: State, task: int) -> int:
    """A file for each task that is begun."""
    (state[1] / f"task-{task}").touch()
    return task


def sleep(state: State, seconds: float) -> float:
    """Wait so long."""
    time.sleep(seconds)
    return seconds


def wait_for(state: State, task: str) -> str:
    """Wait until there is a file of that name."""
    while not (state[1] / task).exists():
        time.sleep(0.01)
    return task


def warn(state: State, task: int) -> int:
    """A warning of Python's, the same from all workers."""
    warnings.warn("this is slow", UserWarning, stacklevel=1)
    return task


def die_once(state: State, task: int) -> int:
    """The first worker to meet task 3 is killed by it."""
    mark = state[1] / "died"
    if task == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task


def die(state: State, task: int) -> NoReturn:
    """A crash."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def die_at_setup(worker: Any, shared: Any) -> NoReturn:
    """The worker ends before its first task."""
    os._exit(7)


def fail(state: State, task: BaseException) -> NoReturn:
    """Raise the task."""
    raise task


class StrangeError(Exception):
    """An exception that nobody can pickle."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_strangely(state: State, task: int) -> NoReturn:
    """Raise what the conductor cannot know."""
    raise StrangeError(task, task)


def fail_at_setup(worker: Any, shared: str) -> NoReturn:
    """Raise a user's error."""
    raise ModelError(shared)


def give_what_cannot_be_sent(state: State, task: int) -> object:
    """A function without a name."""
    return lambda: task


def log(state: State, task: int) -> int:
    """Lines of several levels, the same from all workers but for one."""
    logger = logging.getLogger("amber2_core.engine_tasks")
    logger.debug("details of %d", task)
    logger.info("the same from all")
    logging.getLogger("another").info("nobody asked")
    return task


def same(state: State, task: bytes) -> bytes:
    """The task itself, as large as it came."""
    return task


def surroundings(name: str) -> tuple[str | None, str]:
    """A variable of the environment, and the folder."""
    return os.environ.get(name), os.getcwd()


def blocked() -> set[int]:
    """The signals that are not handled here."""
    return set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))


def multiply(state: State, seconds: float) -> tuple[str, int, float]:
    """Products and convolutions for so long: what torch may compute them in, how many, and their largest error."""
    import torch

    from amber2_core.devices import set_arithmetic

    set_arithmetic(torch.device("cpu"), threads=2)
    (state[1] / str(os.getpid())).touch()
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(rows, 768, generator=generator) for rows in (128, 700))
    convolution, states = torch.nn.Conv1d(768, 768, 128, padding=64, groups=16), torch.randn(1, 768, 50)
    exact = x.double() @ weight.double().T
    worst, count, end = 0.0, 0, time.monotonic() + seconds
    with torch.no_grad():
        while time.monotonic() < end:
            y = x @ weight.T
            y.T @ x
            convolution(states)
            torch.randn(1000).clone()
            worst = max(worst, float((y - exact).abs().max() / exact.abs().max()))
            count += 1
    return str(torch.backends.mkldnn.matmul.fp32_precision), count, worst  # type: ignore[attr-defined]


def torch_sum(state: State, count: int) -> float:
    """So many ones, added by torch."""
    import torch

    return float(torch.ones(count).sum())


# longer than any test waits
FOREVER = 100.0


def straggle(state: State, task: int) -> int:
    """The first worker to meet task 2 is held up for ever."""
    begun, again = state[1] / "begun", state[1] / "again"
    if task != 2:
        time.sleep(0.1)
    elif begun.exists():
        again.touch()
    else:
        begun.touch()
        time.sleep(FOREVER)
    return task


# an encoder of one's own that a recording of 3.25 s kills
DEADLY = """
import os

import numpy as np

class Loudness:
    sampling_rate = 8_000
    size = 2

    def encode(self, waveforms):
        if any(len(one) == 26_000 for one in waveforms):
            os._exit(11)
        lengths = [len(one) // 80 for one in waveforms]
        frames = np.zeros((len(waveforms), max(lengths), 2), np.float32)
        for row, (one, length) in enumerate(zip(waveforms, lengths)):
            level = np.abs(one[: 80 * length]).reshape(length, 80).mean(1)
            frames[row, :length] = np.stack([level, level**2], axis=1)
        return frames, lengths
"""
