"""Batches hold every utterance once, stay within their budget, and pad little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
