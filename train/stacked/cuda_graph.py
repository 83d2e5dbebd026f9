"""A training step as one recorded graph on CUDA.

A step of a stack is a few hundred small kernels, which a GPU works off faster than they can be launched one by one. As
a CUDA graph they are launched together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Step = Callable[..., None]  # takes tensors of equal shapes at every call, or None; all it changes are tensors in place
# a step without arguments → what does it again: what it reads and writes then lies where it lay when it was recorded
Record = Callable[[Callable[[], None]], Callable[[], None]]
WARM_UP = 3  # steps of each shape taken as they are: libraries set themselves up at the first ones
_log = logging.getLogger(__name__)


def record_steps(step: Step, device: torch.device) -> Step:
    """The step itself, on CUDA the step to be recorded."""
    return RecordedStep(step, partial(cuda_graph, device=device)) if device.type == "cuda" else step


class RecordedStep:
    """A step that is recorded once for each shape of its inputs and from then on played back: the same numbers.

    Args:
        step: what it reads from the CPU is read once, when it is recorded; it must not wait for the device.
        record: `cuda_graph`. Where it fails, with a RuntimeError, steps are taken as they are, and the log says so.
    """

    def __init__(self, step: Step, record: Record) -> None:
        self._step, self._record = step, record
        self._calls: dict[tuple[object, ...], int] = {}
        self._recorded: dict[tuple[object, ...], tuple[Sequence[Tensor | None], Callable[[], None]]] = {}
        self._can_record = True

    def __call__(self, *inputs: Tensor | None) -> None:
        """Take the step."""
        key = tuple(x if x is None else x.shape for x in inputs)
        self._calls[key] = self._calls.get(key, 0) + 1
        if key not in self._recorded and self._can_record and self._calls[key] > WARM_UP:
            self._try_to_record(key, inputs)
        if key not in self._recorded:
            self._step(*inputs)
            return
        places, play = self._recorded[key]
        for place, x in zip(places, inputs, strict=True):
            if place is not None and x is not None:
                place.copy_(x)
        play()

    def _try_to_record(self, key: tuple[object, ...], inputs: Sequence[Tensor | None]) -> None:
        places = [x if x is None else x.clone() for x in inputs]
        try:
            self._recorded[key] = places, self._record(lambda: self._step(*places))
        except RuntimeError as problem:
            self._can_record = False
            reason = str(problem).partition("\n")[0]
            _log.warning(
                "training step by step, which is slower: a step cannot be recorded as a CUDA graph: %s", reason
            )


def cuda_graph(step: Callable[[], None], *, device: torch.device) -> Callable[[], None]:
    """Record a step on the device, without taking it, as a CUDA graph.

    Raises:
        RuntimeError: it does something that a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    of_this_thread: Any = "thread_local"  # whatever other threads ask of the device is no part of it, and no error
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode=of_this_thread):
        step()
    return graph.replay
