"""The bootstrap agrees with scipy's, and finds nothing where there is nothing, few speakers or many."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amber2_core.tables import texts
from amber2_report.bootstrap import drawn_scores, holm, interval, smallest_p, speaker_clusters, widened_draws

Array = npt.NDArray[np.float64]


def ratio_of_sums(sums: Array) -> Array:
    """The mean over utterances of drawn clusters, from (…, 2) sums and counts."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def null_sums(rng: np.random.Generator, speakers: int, folds: int) -> list[Array]:
    """Differences of two systems that do not differ, but differ by speaker: fold → (S, 2) sums and counts."""
    counts = rng.integers(20, 60, size=(folds, speakers))
    means = rng.normal(0, 0.05, size=counts.shape) + rng.normal(0, 0.2, size=counts.shape) / np.sqrt(counts)
    return [np.stack([m * n, n], axis=-1) for m, n in zip(means, counts, strict=True)]


def test_the_draws_have_the_distribution_of_scipys_bootstrap() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    folds = null_sums(rng, speakers=7, folds=3)
    drawn = np.mean(drawn_scores(folds, ratio_of_sums, draws=20_000, seed=1), axis=0)

    def statistic(*samples: Array, axis: int = -1) -> Array:
        index = [sample.astype(np.intp) for sample in samples]
        scores = [ratio_of_sums(fold[rows].sum(axis=-2)) for fold, rows in zip(folds, index, strict=True)]
        return np.asarray(np.mean(scores, axis=0))

    theirs = stats.bootstrap(
        [np.arange(7.0)] * 3, statistic, n_resamples=20_000, vectorized=True, method="percentile",
        rng=np.random.default_rng(2),
    )  # fmt: skip
    assert drawn.std(ddof=1) == pytest.approx(theirs.standard_error, rel=0.02)
    low, high = np.quantile(drawn, [0.025, 0.975])
    width = high - low
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


@pytest.mark.parametrize(("speakers", "folds"), [(18, 5), (2, 5)], ids=["91 actors", "five dyads"])
def test_systems_that_do_not_differ_are_told_apart_in_one_case_of_twenty(speakers: int, folds: int) -> None:
    rng = np.random.default_rng(3)
    cases, rejected = 500, 0
    for case in range(cases):
        sums = null_sums(rng, speakers, folds)
        observed = [ratio_of_sums(fold.sum(0)) for fold in sums]
        drawn = drawn_scores(sums, ratio_of_sums, draws=2_000, seed=case)
        widened = widened_draws(observed, drawn, [speakers] * folds)
        low, high, p = interval(float(np.mean(observed)), widened, folds * (speakers - 1))
        rejected += p < 0.05
        assert (p < 0.05) == (not low <= 0 <= high) or abs(p - 0.05) < 0.005
    # 99 % of binomial outcomes around 5 % of 500 lie within 13 and 39
    assert 13 <= rejected <= 39


def test_a_difference_of_every_speaker_is_found() -> None:
    rng = np.random.default_rng(4)
    sums = [fold + fold[:, 1:] * [0.2, 0.0] for fold in null_sums(rng, 18, 5)]
    observed = [ratio_of_sums(fold.sum(0)) for fold in sums]
    widened = widened_draws(observed, drawn_scores(sums, ratio_of_sums, draws=5_000, seed=0), [18] * 5)
    low, high, p = interval(float(np.mean(observed)), widened, 85)
    assert 0 < low < np.mean(observed) < high
    assert p < 0.001


def test_a_system_compared_with_its_own_copy_differs_by_nothing() -> None:
    assert interval(0.0, np.zeros(1000), 20) == (0.0, 0.0, 1.0)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_stays_between_the_raw_p_and_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= c <= min(1.0, p * len(p_values)) + 1e-12 for p, c in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_speakers_are_drawn_where_they_are_known_and_utterances_where_they_are_not() -> None:
    fold = np.array([1, 1, 1, 2, 2, 2])
    known = speaker_clusters(fold, texts(["a", "b", "a", "c", "", "d"]))
    assert known.by_speaker
    assert known.sizes == [2, 3]  # who is unknown is a speaker of his own
    for speaker in (["", "", "", "", "", ""], ["a", "a", "a", "b", "c", "d"]):
        unknown = speaker_clusters(fold, texts(speaker))
        assert not unknown.by_speaker
        assert unknown.sizes == [3, 3]


def test_few_speakers_cannot_give_a_small_p() -> None:
    from scipy import stats

    few = speaker_clusters(np.repeat(np.arange(5), 2), texts([f"s{k}" for k in range(10)]))
    assert smallest_p(few, 10_000) == pytest.approx(2 * stats.t.cdf(stats.norm.ppf(1 / 10_001), 5))
    assert smallest_p(few, 10_000) > 0.01


def test_more_draws_are_taken_in_chunks_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = null_sums(np.random.default_rng(5), 6, 2)
    whole = drawn_scores(sums, ratio_of_sums, draws=300, seed=0)
    monkeypatch.setattr("amber2_report.bootstrap.CHUNK", 40)
    for a, b in zip(whole, drawn_scores(sums, ratio_of_sums, draws=300, seed=0), strict=True):
        np.testing.assert_allclose(a, b)


def test_where_missing_utterances_leave_a_fold_one_speaker_utterances_are_drawn() -> None:
    fold, speaker = np.repeat([1, 2], 6), texts(list("aabbcc") + list("ddeeff"))
    clusters = speaker_clusters(fold, speaker)
    some = np.array([True] * 9 + [False] * 3)
    fewer = clusters.of(some)
    assert (fewer.by_speaker, fewer.sizes) == (True, [3, 2])
    assert [numbers.tolist() for numbers in fewer.numbers] == [[0, 0, 1, 1, 2, 2], [0, 0, 1]]
    alone = clusters.of(np.array([True] * 8 + [False] * 4))
    assert (alone.by_speaker, alone.sizes) == (False, [6, 2])
    assert [len(rows) for rows in alone.rows] == [6, 2]
    assert clusters.of(np.ones(12, dtype=bool)) is clusters
