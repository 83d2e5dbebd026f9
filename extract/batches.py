"""Batches that pad little: how large they may be, what goes into each, and in which portions workers get them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from amber2_core.errors import SettingError

from .recipe import Modality

Batch = TypeVar("Batch")

# A worker's threads wait for one another at the end of each portion: batches for each of them, at least and at most.
_LEAST, _MOST = 4, 16
# Portions for each worker, where there are batches enough, so that all end at about the same time.
_TURNS = 8
# Seconds and tokens of a batch where nobody says, on a processor and on an accelerator. A processor gains nothing from
# batches of audio, and would compute their padding.
_BUDGETS: dict[Modality, tuple[float, float]] = {
    "audio": (0.0, 120.0),
    "text": (1024.0, 16384.0),
    "sentiment": (1024.0, 16384.0),
}


@dataclass(frozen=True)
class Effort:
    """How to encode; nothing here changes the numbers."""

    # auto | cpu | cuda | cuda:N | cuda:0,cuda:1 | mps
    device: str = "auto"
    # seconds of audio, and tokens, per batch, padding included; 0: one at a time; None: as suits the device
    batch_seconds: float | None = None
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_seconds", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise SettingError(f"Bad {name} {value}, expected a number from 0 on")

    def budget(self, modality: Modality, device: str) -> float:
        """Most seconds of audio, or tokens, in a batch for a device."""
        given = self.batch_seconds if modality == "audio" else self.batch_tokens
        return _BUDGETS[modality][device != "cpu"] if given is None else given


def one_at_a_time(effort: Effort) -> Effort:
    """The same without batches."""
    return replace(effort, batch_seconds=0, batch_tokens=0)


def plan_batches(sizes: Sequence[float], *, budget: float) -> list[list[int]]:
    """Group items of similar size, the largest first, so that a batch that does not fit is met at once.

    The plan depends on the sizes and the budget alone, equal sizes keep their order, and so an interrupted extraction
    meets the same batches again.

    Args:
        sizes: of each item, in seconds or tokens.
        budget: most of items × largest size in one batch, padding included; 0 makes batches of one. An item above the
            budget has a batch of its own.

    Returns:
        Indices into `sizes`, each in exactly one batch.
    """
    order = sorted(range(len(sizes)), key=lambda item: -sizes[item])
    batches: list[list[int]] = []
    for item in order:
        batch = batches[-1] if batches else []
        if batch and (len(batch) + 1) * sizes[batch[0]] <= budget:
            batch.append(item)
        else:
            batches.append([item])
    return batches


def portions(batches: Sequence[Batch], *, workers: int, threads: int) -> list[Sequence[Batch]]:
    """The batches in their order, as many together as keep the threads of each of the workers busy."""
    most = max(1, math.ceil(len(batches) / workers))
    some = min(most, max(_LEAST * threads, min(_MOST * threads, math.ceil(most / _TURNS))))
    return [batches[first : first + some] for first in range(0, len(batches), some)]


def padding_waste(sizes: Sequence[float], batches: Sequence[Sequence[int]]) -> float:
    """The share of what is computed that is padding, in [0, 1)."""
    useful = sum(sizes[item] for batch in batches for item in batch)
    padded = sum(len(batch) * max(sizes[item] for item in batch) for batch in batches)
    return 1 - useful / padded if padded > 0 else 0.0
