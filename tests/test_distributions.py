"""Distributions against scipy and loops: the label among near-equal shares, entropy and its bins, JS, BC, Eq. 5."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from amber2_core import distributions
from amber2_core.distributions import (
    BIN_EDGES,
    SHARE_TOLERANCE,
    BinEdges,
    ambiguity_bins,
    entropy,
    expert_weights,
    label,
    largest,
    sum_over_classes,
    x_log2_x,
)
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


@given(targets)
def test_entropy_is_that_of_scipy_and_of_the_loops(target: Floats) -> None:
    import scipy.stats

    np.testing.assert_allclose(entropy(target), scipy.stats.entropy(target, base=2, axis=-1), atol=1e-12)
    expected = [reference.entropy(shares) for shares in target.tolist()]
    np.testing.assert_allclose(entropy(target), expected, atol=1e-12)
    np.testing.assert_array_equal(entropy(np.stack([target, target])), [entropy(target)] * 2)


def test_equal_width_bins_cover_the_whole_range_of_entropy() -> None:
    target = [[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.25, 0.25, 0], [0.25, 0.25, 0.25, 0.25]]
    bins, edges = ambiguity_bins(target)
    np.testing.assert_allclose(edges, [0, 0.4, 0.8, 1.2, 1.6, 2])
    assert bins.tolist() == [0, 1, 2, 3, 4]


@given(targets, st.integers(1, 8), st.sampled_from(BIN_EDGES))
def test_every_utterance_falls_into_the_bin_whose_edges_hold_it(target: Floats, count: int, edges: BinEdges) -> None:
    bins, limits = ambiguity_bins(target, count=count, edges=edges)
    bits = entropy(target)
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


def test_bins_of_equal_width_hold_their_lower_edge_whatever_its_rounding() -> None:
    eight_of_32 = np.repeat([1 / 8, 0], [8, 24])  # 3 of 5 bits, which 5 · linspace(0, 1, 6)[3] exceeds by a hair
    assert ambiguity_bins(eight_of_32[None])[0] == 3


@given(targets, st.integers(0, 10**6))
def test_js_and_bc_are_those_of_the_loops(target: Floats, seed: int) -> None:
    other = anywhere(*target.shape, seed=seed)
    pairs = list(zip(target.tolist(), other.tolist(), strict=True))
    np.testing.assert_allclose(distributions.js(target, other), [reference.js(*p) for p in pairs], atol=1e-12)
    np.testing.assert_allclose(distributions.bc(target, other), [reference.bhattacharyya(*p) for p in pairs])
    np.testing.assert_array_equal(distributions.js(target[0], other[:, None])[:, 0], distributions.js(target[0], other))


@given(targets, st.integers(1, 4), st.floats(0, 50))
def test_expert_weights_are_equation_5_of_the_loops(target: Floats, experts: int, kappa: float) -> None:
    probs = np.stack([anywhere(*target.shape, seed=seed) for seed in range(experts)])
    weights = expert_weights(distributions.js(target, probs), kappa)
    for row, y in enumerate(target.tolist()):
        np.testing.assert_allclose(weights[:, row], reference.expert_weights(y, probs[:, row].tolist(), kappa))


def test_an_absent_expert_has_no_weight_and_without_any_there_is_none() -> None:
    divergence = np.array([[0.1, math.nan, 0.4, math.nan], [0.3, 0.9, math.nan, math.nan]])
    kappa = np.array([2.0, 50.0, 1e6, 1.0])  # one per utterance
    weights = expert_weights(divergence, kappa)
    np.testing.assert_allclose(weights[:, 0], np.array([1, math.exp(-0.4)]) / (1 + math.exp(-0.4)))
    np.testing.assert_array_equal(weights[:, 1:], [[0, 1, math.nan], [1, 0, math.nan]])


@given(targets, st.integers(2, 4))
def test_disagreement_is_the_mean_of_the_pairs_that_are_there(target: Floats, count: int) -> None:
    probs = [anywhere(*target.shape, seed=seed) for seed in range(count)]
    probs[0][0] = math.nan
    for row, found in enumerate(distributions.disagreement(probs)):
        there = [p[row].tolist() for p in probs if not math.isnan(p[row, 0])]
        pairs = [reference.js(p, q) for p, q in itertools.combinations(there, 2)]
        assert found == pytest.approx(np.mean(pairs) if pairs else math.nan, abs=1e-12, nan_ok=True)


def test_scoring_reading_and_writing_need_no_torch() -> None:
    code = (
        "import sys, amber2_core.cache, amber2_core.distributions, amber2_core.files, amber2_core.metrics;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
