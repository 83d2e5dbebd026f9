"""Shares of classes: the label among near-equal shares, and sums over classes against the plain ones."""

from __future__ import annotations

import numpy as np
import reference
from hypothesis import given
from hypothesis import strategies as st

from amber2_core.shares import SHARE_TOLERANCE, label, largest, sum_over_classes, x_log2_x

votes = st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any), min_size=1, max_size=9)


@given(votes)
def test_the_label_is_the_first_of_the_largest_shares_in_single_precision_too(counts: list[list[int]]) -> None:
    shares = np.array(counts) / np.sum(counts, axis=-1, keepdims=True)
    expected = [reference.argmax(row) for row in counts]
    for stored in (shares, shares.astype(np.float32).astype(np.float64)):
        assert label(stored).tolist() == expected
        assert largest(stored).tolist() == [[vote == max(row) for vote in row] for row in counts]


def test_shares_are_equal_within_the_tolerance_and_not_beyond_it() -> None:
    assert label(np.array([0.5 - SHARE_TOLERANCE / 2, 0.5])) == 0
    assert label(np.array([0.5 - 2 * SHARE_TOLERANCE, 0.5])) == 1


def test_zero_times_its_logarithm_is_zero_and_nan_stays_nan() -> None:
    assert x_log2_x(np.array([0.0, 0.25, 1.0])).tolist() == [0.0, -0.5, 0.0]
    assert np.isnan(x_log2_x(np.array([np.nan]))).all()


def test_sums_over_classes_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, 5, 7))
    np.testing.assert_allclose(sum_over_classes(values), values.sum(-1), atol=1e-14)
