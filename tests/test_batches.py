"""Batches hold every utterance once, stay within their budget, and pad little."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import amber2_extract.batches
from amber2_extract.batches import padding_waste, plan_batches, portions

SIZES = st.lists(st.floats(0.1, 40), max_size=60)


@given(SIZES, st.floats(0, 200))
def test_every_item_is_in_one_batch(sizes: list[float], budget: float) -> None:
    batches = plan_batches(sizes, budget=budget)
    assert sorted(item for batch in batches for item in batch) == list(range(len(sizes)))


@given(SIZES, st.floats(0, 200))
def test_no_batch_of_several_is_above_the_budget(sizes: list[float], budget: float) -> None:
    for batch in plan_batches(sizes, budget=budget):
        assert len(batch) == 1 or len(batch) * max(sizes[item] for item in batch) <= budget


@given(SIZES, st.floats(0, 200))
def test_the_largest_come_first(sizes: list[float], budget: float) -> None:
    order = [sizes[item] for batch in plan_batches(sizes, budget=budget) for item in batch]
    assert order == sorted(sizes, reverse=True)


@given(SIZES)
def test_a_budget_of_zero_makes_batches_of_one(sizes: list[float]) -> None:
    assert all(len(batch) == 1 for batch in plan_batches(sizes, budget=0))


@given(SIZES, st.floats(0, 200))
def test_the_plan_is_a_function_of_sizes_and_budget(sizes: list[float], budget: float) -> None:
    assert plan_batches(sizes, budget=budget) == plan_batches(list(sizes), budget=budget)


def test_equal_sizes_keep_their_order() -> None:
    assert plan_batches([2.0, 3.0, 2.0, 3.0, 2.0], budget=6) == [[1, 3], [0, 2, 4]]


def test_sorted_batches_of_a_corpus_waste_less_than_a_hundredth() -> None:
    """Lengths as IEMOCAP has them: 10,039 utterances of 0.6 to 34 s, 4.5 s on average."""
    lengths = np.clip(np.random.default_rng(0).lognormal(1.27, 0.68, 10_039), 0.585, 34.14)
    sizes = lengths.tolist()
    assert padding_waste(sizes, plan_batches(sizes, budget=120)) < 0.01
    unsorted = [list(range(start, min(start + 16, len(sizes)))) for start in range(0, len(sizes), 16)]
    assert padding_waste(sizes, unsorted) > 0.5


# name → lengths in seconds: of IEMOCAP, MSP-Podcast, CREMA-D and MELD as published, and evenly spread ones
LENGTHS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "iemocap": lambda rng, count: np.clip(rng.lognormal(1.27, 0.68, count), 0.585, 34.14),
    "podcast": lambda rng, count: rng.uniform(2.75, 11, count),
    "crema-d": lambda rng, count: np.clip(rng.normal(2.54, 0.5, count), 1.27, 5),
    "meld": lambda rng, count: np.clip(rng.lognormal(0.9, 0.65, count), 0.2, 41),
    "even": lambda rng, count: rng.uniform(1, 15, count),
}


@pytest.mark.parametrize("corpus", LENGTHS)
@pytest.mark.parametrize("count", [500, 5_000])
def test_at_most_a_hundredth_is_padding_in_few_batches(corpus: str, count: int) -> None:
    sizes = LENGTHS[corpus](np.random.default_rng(0), count).tolist()
    batches = plan_batches(sizes, budget=120)
    assert padding_waste(sizes, batches) <= 0.01
    # No more batches than where each ends before its own padding is above a hundredth.
    assert len(batches) <= len(bounded_one_by_one(sorted(sizes, reverse=True), budget=120))
    assert sum(map(len, batches)) / len(batches) > 5


def bounded_one_by_one(falling: list[float], *, budget: float) -> list[list[float]]:
    """The plain way: a batch ends where the next item would pad it by more than a hundredth."""
    batches: list[list[float]] = []
    for size in falling:
        batch = [*batches[-1], size] if batches else []
        if batch and len(batch) * batch[0] <= budget and sum(batch) >= 0.99 * len(batch) * batch[0]:
            batches[-1] = batch
        else:
            batches.append([size])
    return batches


@given(st.lists(st.floats(0.1, 40), min_size=1, max_size=9), st.floats(1, 100))
def test_with_fewer_batches_there_is_more_padding(sizes: list[float], budget: float) -> None:
    """Against all ways to cut a falling row: what has fewer batches pads more than what was found."""
    falling = sorted(sizes, reverse=True)
    with mock.patch.object(amber2_extract.batches, "FROM_ITEMS", 0):
        found = plan_batches(sizes, budget=budget)
    padded = sum(len(batch) * max(sizes[item] for item in batch) for batch in found)
    for cuts in range(len(found) - 1):
        for places in itertools.combinations(range(1, len(falling)), cuts):
            edges = [0, *places, len(falling)]
            others = [falling[first:end] for first, end in itertools.pairwise(edges)]
            if all(len(other) == 1 or len(other) * other[0] <= budget for other in others):
                assert sum(len(other) * other[0] for other in others) > padded * (1 - 1e-9)


def test_what_pads_little_as_it_is_stays_in_the_fewest_batches() -> None:
    sizes = np.random.default_rng(0).uniform(2.75, 11, 5_000)
    falling, fullest, first = np.sort(sizes)[::-1], 0, 0
    while first < len(falling):
        first += int(120 // falling[first])
        fullest += 1
    assert len(plan_batches(sizes.tolist(), budget=120)) == fullest


def test_waste_is_the_share_of_padding() -> None:
    assert padding_waste([1, 3, 4], [[0, 1], [2]]) == pytest.approx(1 - 8 / 10)
    assert padding_waste([], []) == 0


@given(st.integers(0, 3_000), st.integers(1, 8), st.integers(1, 64))
def test_portions_are_the_batches_in_their_order_and_give_every_worker_some(
    count: int, workers: int, threads: int
) -> None:
    batches = list(range(count))
    found = portions(batches, workers=workers, threads=threads)
    assert [batch for portion in found for batch in portion] == batches
    assert all(len(portion) for portion in found)
    assert len(found) >= min(count, workers) / 2
    # Few batches wait for the last of their portion, and progress is told often.
    assert max(map(len, found), default=0) <= 16 * threads
    if count >= 4 * threads * workers:
        assert min(map(len, found[:-1]), default=4 * threads) >= 4 * threads
