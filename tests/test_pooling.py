"""Pooling is the mean over the valid places, whatever stands at the others."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amber2_extract.pooling import binned, mask_of, masked_mean

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def _slow_means(hidden: list[list[list[float]]], lengths: list[int]) -> list[list[float]]:
    means = []
    for states, length in zip(hidden, lengths, strict=True):
        total = [0.0] * len(states[0])
        for place in range(length):
            for dimension, value in enumerate(states[place]):
                total[dimension] += value
        means.append([value / length for value in total])
    return means


@given(LENGTHS, st.integers(0, 2**31))
def test_the_mean_is_that_of_a_slow_loop(lengths: list[int], seed: int) -> None:
    hidden = torch.randn(len(lengths), max(lengths), 3, generator=torch.Generator().manual_seed(seed))
    pooled = masked_mean(hidden, mask_of(lengths))
    torch.testing.assert_close(pooled, torch.tensor(_slow_means(hidden.tolist(), lengths)), rtol=1e-5, atol=1e-6)


@given(LENGTHS, st.sampled_from([math.nan, math.inf, 1e30]))
def test_what_stands_at_invalid_places_does_not_count(lengths: list[int], junk: float) -> None:
    hidden = torch.randn(len(lengths), max(lengths), 3)
    mask = mask_of(lengths)
    expected = masked_mean(hidden, mask)
    hidden[~mask] = junk
    torch.testing.assert_close(masked_mean(hidden, mask), expected, rtol=0, atol=0)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**31))
def test_bins_are_the_means_of_stretches_of_nearly_equal_length(places: int, most: int, seed: int) -> None:
    states = torch.randn(places, 3, generator=torch.Generator().manual_seed(seed))
    bins = binned(states, most)
    count = min(places, most)
    edges = [k * places // count for k in range(count + 1)]
    lengths = [last - first for first, last in pairwise(edges)]
    assert max(lengths) - min(lengths) <= 1
    expected = torch.stack([states[first:last].mean(dim=0) for first, last in pairwise(edges)])
    torch.testing.assert_close(bins, expected, rtol=1e-5, atol=1e-6)
    weighted = (bins * torch.tensor(lengths)[:, None]).sum(dim=0) / places
    torch.testing.assert_close(weighted, states.mean(dim=0), rtol=1e-5, atol=1e-6)


def test_a_mask_is_true_at_the_first_places() -> None:
    assert mask_of([1, 3]).tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(precision: torch.dtype) -> None:
    """2,049 ones are 2,048 in float16, and fewer in bfloat16."""
    pooled = masked_mean(torch.ones(1, 4_099, 2, dtype=precision), mask_of([4_099]))
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == [[1, 1]]
