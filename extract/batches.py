"""Batches that pad little, planned by the sizes of what they hold, and the portions in which workers get them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

Batch = TypeVar("Batch")

# A worker's threads wait for one another at the end of each portion: batches for each of them, at least and at most.
_LEAST, _MOST = 4, 16
# Portions for each worker, where there are batches enough, so that all end at about the same time.
_TURNS = 8


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
