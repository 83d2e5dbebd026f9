"""How far synthetic raters agree with people, against scipy."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amber2_report.agreement import agreement, by_ambiguity


def drawn(seed: int, count: int, *, raters: int) -> tuple[np.ndarray, np.ndarray]:
    """Votes of a few people, which tie often, and of models that follow them somewhat."""
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.ones(4), count)
    human = np.stack([random.multinomial(raters, row) for row in p]) / raters
    synthetic = 0.6 * p + 0.4 * random.dirichlet(np.ones(4), count)
    return human.astype(np.float32), synthetic.astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 60), st.integers(1, 6))
def test_agreement_is_that_of_scipy(seed: int, count: int, raters: int) -> None:
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import entropy, pearsonr, spearmanr

    human, synthetic = (x.astype(np.float64) for x in drawn(seed, count, raters=raters))
    found = agreement(human, synthetic)
    bits = [np.round([entropy(row, base=2) for row in x], 9) for x in (human, synthetic)]
    expected = {
        "n": count,
        "js": np.mean([jensenshannon(*pair, base=2) ** 2 for pair in zip(human, synthetic, strict=True)]),
        "bc": np.mean(np.sqrt(human * synthetic).sum(1)),
        "human_entropy": bits[0].mean(),
        "synthetic_entropy": bits[1].mean(),
        "pearson": math.nan if np.ptp(bits[0]) == 0 else pearsonr(*bits).statistic,
        "spearman": math.nan if np.ptp(bits[0]) == 0 else spearmanr(*bits).statistic,
    }
    assert asdict(found) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_models_that_say_what_people_say_agree_in_everything() -> None:
    human, _ = drawn(0, 40, raters=5)
    found = agreement(human, human)
    assert (found.js, found.bc, found.pearson, found.spearman) == pytest.approx((0, 1, 1, 1), abs=1e-6)


def test_tertiles_are_of_peoples_entropy_and_hold_everything_that_models_rated() -> None:
    from scipy.stats import entropy

    human, synthetic = drawn(1, 200, raters=30)
    synthetic[::9] = np.nan
    rows = np.flatnonzero(~np.isnan(synthetic[:, 0]))
    (name, whole), *parts = by_ambiguity(human, synthetic)
    assert (name, whole) == ("all", agreement(human[rows], synthetic[rows]))
    assert [part.n for _, part in parts] == pytest.approx([len(rows) / 3] * 3, abs=3)
    bits = np.array([entropy(row, base=2) for row in human[rows].astype(np.float64)])
    places = [[float(word) for word in label.split("–")] for label, _ in parts]
    for (low, high), (_, part) in zip(places, parts, strict=True):
        own = (bits >= low - 0.006) & (bits <= high + 0.006)
        assert own.sum() >= part.n
        assert low - 0.006 <= part.human_entropy <= high + 0.006
    means = [part.human_entropy for _, part in parts]
    assert means == sorted(means)
    assert sum(part.n * part.js for _, part in parts) / whole.n == pytest.approx(whole.js)


def test_what_has_no_value_is_no_number() -> None:
    certain = np.eye(4)[[0, 1, 2]]
    found = agreement(certain, np.full((3, 4), 0.25))
    assert math.isnan(found.pearson)
    assert math.isnan(found.spearman)
    assert (found.human_entropy, found.synthetic_entropy) == (0, 2)
    assert agreement(certain[:0], certain[:0]).n == 0
    assert math.isnan(agreement(certain[:0], certain[:0]).js)
