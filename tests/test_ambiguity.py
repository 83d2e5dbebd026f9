"""Ambiguity against scipy and loops, and the bins that utterances fall into by it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from amber2_core.ambiguity import BIN_EDGES, BinEdges, ambiguity, ambiguity_bins
from amber2_core.errors import SettingError

Floats = NDArray[np.float64]


def anywhere(rows: int, classes: int, *, seed: int) -> Floats:
    """Distributions (rows, classes), some of them sharp, no two alike."""
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.6), size=rows)


# vote shares (rows, classes) of four raters: one-hot rows, ties and zeros among them
targets = st.builds(
    lambda rows, classes, seed: np.random.default_rng(seed).multinomial(4, np.full(classes, 1 / classes), rows) / 4,
    st.integers(1, 30), st.integers(2, 9), st.integers(0, 10**6),
)  # fmt: skip


@given(targets)
def test_ambiguity_is_the_entropy_of_scipy_and_of_the_loops(target: Floats) -> None:
    import scipy.stats

    np.testing.assert_allclose(ambiguity(target), scipy.stats.entropy(target, base=2, axis=-1), atol=1e-12)
    expected = [reference.entropy(shares) for shares in target.tolist()]
    np.testing.assert_allclose(ambiguity(target), expected, atol=1e-12)
    np.testing.assert_array_equal(ambiguity(np.stack([target, target])), [ambiguity(target)] * 2)


def test_equal_width_bins_cover_the_whole_range_of_ambiguity() -> None:
    target = [[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.25, 0.25, 0], [0.25, 0.25, 0.25, 0.25]]
    bins, edges = ambiguity_bins(target)
    np.testing.assert_allclose(edges, [0, 0.4, 0.8, 1.2, 1.6, 2])
    assert bins.tolist() == [0, 1, 2, 3, 4]


@given(targets, st.integers(1, 8), st.sampled_from(BIN_EDGES))
def test_every_utterance_falls_into_the_bin_whose_edges_hold_it(target: Floats, count: int, edges: BinEdges) -> None:
    bins, limits = ambiguity_bins(target, count=count, edges=edges)
    bits = ambiguity(target)
    assert len(limits) == count + 1 if edges == "equal-width" else 2 <= len(limits) <= count + 1
    assert ((bins >= 0) & (bins < len(limits) - 1)).all()
    assert (limits[bins] <= bits + 1e-9).all()
    assert (bits <= limits[bins + 1] + 1e-9).all()
    inner = bins < len(limits) - 2
    assert (bits[inner] < limits[bins + 1][inner]).all()


def test_quantile_bins_are_equally_full_where_no_ambiguities_coincide() -> None:
    target = anywhere(500, 6, seed=2)
    bins, edges = ambiguity_bins(target, edges="quantiles")
    assert len(edges) == 6
    assert np.bincount(bins).tolist() == pytest.approx([100] * 5, abs=1)


def test_quantile_bins_that_coincide_become_one() -> None:
    target = np.concatenate([np.tile(np.eye(4)[0], (80, 1)), anywhere(20, 4, seed=4)])
    bins, edges = ambiguity_bins(target, edges="quantiles")
    assert edges[0] == 0
    assert (np.diff(edges) > 0).all()
    assert (bins[:80] == 0).all()


def test_the_order_of_the_classes_does_not_part_equal_ambiguities() -> None:
    alike = np.array(list(itertools.permutations([3 / 7, 2 / 7, 1 / 7, 1 / 7])))
    target = np.concatenate([np.eye(4), alike, np.full((4, 4), 0.25)])
    bins, edges = ambiguity_bins(target, edges="quantiles")
    assert len(edges) == 3
    assert len(set(bins[4:-4].tolist())) == 1


def test_unknown_bin_edges_are_refused() -> None:
    with pytest.raises(SettingError, match=r"Bad bin edges 'log', expected one of \['equal-width', 'quantiles'\]"):
        ambiguity_bins(np.eye(2), edges="log")  # type: ignore[arg-type]
