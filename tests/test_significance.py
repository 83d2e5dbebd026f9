"""Significance: scores are those of the tables, intervals those of scipy, and nothing is found where nothing is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import Sketch, write_run

from amber2_core.metrics import METRICS
from amber2_core.run_folder import RunFolder
from amber2_core.tables import texts
from amber2_report.groups import Group, grouped
from amber2_report.runs import read_run
from amber2_report.significance import (
    ALONE,
    COMPARED,
    UNKNOWN,
    Clusters,
    compare,
    drawn_scores,
    holm,
    interval,
    method_in_words,
    smallest_p,
    speaker_clusters,
    widened_draws,
)

Array = npt.NDArray[np.float64]


def clusters_of(group: Group) -> Clusters:
    return speaker_clusters(group.predictions.fold, group.runs[0].utterances["speaker"].to_numpy(object))


def test_every_compared_score_is_that_of_the_metrics(run_folder: Path) -> None:
    (group,) = grouped([read_run(run_folder)])
    found = list(compare(group, clusters_of(group), draws=50).itertuples())
    by_label = {entry.label: entry for entry in group.entries}
    p = group.predictions
    for one in found:
        scores = [
            np.mean(
                [METRICS[one.metric](p.target[p.fold == k], by_label[name].probs[:, p.fold == k]) for k in (1, 2, 3)]
            )
            for name in (one.first, one.second)
        ]
        assert one.difference == pytest.approx(scores[0] - scores[1], abs=1e-9)
    assert [one.metric for one in found[:7]] == list(COMPARED)
    assert {one.second for one in found} == {"cb-ce fusion", "amber2 audio", "amber2 text"}


def test_the_share_of_seeds_that_agree_is_counted(tmp_path: Path) -> None:
    (group,) = grouped([read_run(write_run(tmp_path / "run", Sketch(count=80, seeds=4)))])
    found = compare(group, clusters_of(group), draws=20)
    (one,) = found[(found["metric"] == "js") & (found["second"] == "cb-ce fusion")].itertuples()
    p = group.predictions
    differences = []
    for seed in range(4):
        scores = []
        for name in ("amber2/fusion", "cb-ce/fusion"):
            probs = p.probs[name][seed]
            scores.append(np.mean([METRICS["js"](p.target[p.fold == k], probs[p.fold == k]) for k in (1, 2, 3)]))
        differences.append(scores[0] - scores[1])
    same = [np.sign(d) == np.sign(np.mean(differences)) for d in differences]
    assert one.seeds_agree == np.mean(same)


def with_heads(group: Group, heads: tuple[str, ...]) -> Group:
    """AmbER² alone, with some of its heads."""
    return Group(group.runs, [e for e in group.entries if e.system == "amber2" and e.head in heads])


def only(run: RunFolder, rows: npt.NDArray[np.intp]) -> RunFolder:
    """The run as if it had been tested on some utterances alone."""
    p = run.arrays
    probs = {name: some[:, rows] for name, some in p.probs.items()}
    arrays = replace(p, id=p.id[rows], fold=p.fold[rows], target=p.target[rows], probs=probs)
    return replace(run, arrays=arrays, utterances=run.utterances.iloc[rows])


def test_heads_that_predict_different_utterances_are_compared_on_those_that_both_predict(tmp_path: Path) -> None:
    lacking = {"text": [0, 1, 2, 3, 31, 45, 46], "audio": [5, 50]}
    (group,) = grouped([read_run(write_run(tmp_path / "run", Sketch(lacking=lacking)))])
    found = {(one.second, one.metric): one for one in compare(group, clusters_of(group), draws=500).itertuples()}
    assert {one.n for one in found.values()} == {60, 53, 58}
    for head, missing in lacking.items():
        rows = np.setdiff1d(np.arange(60), missing)
        (some,) = grouped([only(group.runs[0], rows)])
        alone = with_heads(some, ("fusion", head))
        expected = compare(alone, clusters_of(some), draws=500)
        theirs = {one.metric: one for one in expected.itertuples() if one.second == f"amber2 {head}"}
        for metric in COMPARED:
            ours = found[f"amber2 {head}", metric]
            assert ours.n == len(rows)
            for name in ("difference", "low", "high", "p"):
                assert getattr(ours, name) == pytest.approx(getattr(theirs[metric], name), abs=1e-12), (metric, name)
    full = found["cb-ce fusion", "js"]
    by_label = {entry.label: entry for entry in group.entries}
    observed = by_label["amber2 fusion"].per_seed("js").mean() - by_label["cb-ce fusion"].per_seed("js").mean()
    assert full.difference == pytest.approx(observed)


def test_a_fold_whose_utterances_a_head_all_lacks_is_not_drawn_from(tmp_path: Path) -> None:
    (whole,) = grouped([read_run(write_run(tmp_path / "run"))])
    second = np.flatnonzero(whole.predictions.fold == 2).tolist()
    write_run(tmp_path / "less", Sketch(lacking={"text": second}))
    (group,) = grouped([read_run(tmp_path / "less")])
    found = compare(group, clusters_of(group), draws=200)
    found = found[found["second"] == "amber2 text"]
    assert set(found["n"]) == {60 - len(second)}
    assert np.isfinite(found[["difference", "low", "high", "p", "p_holm"]]).all(axis=None)


# --- the bootstrap ---


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
    from scipy import stats

    rng = np.random.default_rng(3)
    cases, rejected = 300, 0
    for case in range(cases):
        sums = null_sums(rng, speakers, folds)
        observed = [ratio_of_sums(fold.sum(0)) for fold in sums]
        drawn = drawn_scores(sums, ratio_of_sums, draws=1_000, seed=case)
        widened = widened_draws(observed, drawn, [speakers] * folds)
        low, high, p = interval(float(np.mean(observed)), widened, folds * (speakers - 1))
        rejected += p < 0.05
        assert (p < 0.05) == (not low <= 0 <= high) or abs(p - 0.05) < 0.005
    low, high = stats.binom.interval(0.99, cases, 0.05)
    assert low <= rejected <= high


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
    for speaker, why in ((["", "", "", "", "", ""], UNKNOWN), (["a", "a", "a", "b", "c", "d"], ALONE)):
        clusters = speaker_clusters(fold, texts(speaker))
        assert not clusters.by_speaker
        assert clusters.sizes == [3, 3]
        said = method_in_words(clusters, 100)
        assert f"other utterances like these: paired bootstrap, 100 draws of the 6 utterances, {why}, with" in said
        assert "widened for the number of utterances (Student's t, 4 degrees of freedom)" in said
        assert "speakers (" not in said


def test_few_speakers_cannot_give_a_small_p() -> None:
    from scipy import stats

    few = speaker_clusters(np.repeat(np.arange(5), 2), texts([f"s{k}" for k in range(10)]))
    assert smallest_p(few, 10_000) == pytest.approx(2 * stats.t.cdf(stats.norm.ppf(1 / 10_001), 5))
    assert smallest_p(few, 10_000) > 0.01


def test_more_draws_are_taken_in_chunks_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = null_sums(np.random.default_rng(5), 6, 2)
    whole = drawn_scores(sums, ratio_of_sums, draws=300, seed=0)
    monkeypatch.setattr("amber2_report.significance.CHUNK", 40)
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
    assert (alone.why_utterances, alone.sizes) == (ALONE, [6, 2])
    assert [len(rows) for rows in alone.rows] == [6, 2]
    assert clusters.of(np.ones(12, dtype=bool)) is clusters
