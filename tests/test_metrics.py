"""Metrics against scikit-learn, scipy and loops, on random predictions and in the corners."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from amber2_core import metrics

Floats = NDArray[np.float64]


def rated(rows: int, classes: int, seed: int, raters: int = 4) -> Floats:
    """Vote shares (rows, classes) of a few raters: one-hot rows, ties and zeros among them."""
    shares = np.random.default_rng(seed).dirichlet(np.full(classes, 0.5))
    return np.random.default_rng(seed).multinomial(raters, shares, size=rows) / raters


def predicted(*shape: int, seed: int) -> Floats:
    """Probabilities (…, classes), some of them sharp."""
    return np.random.default_rng(seed + 1).dirichlet(np.full(shape[-1], 0.6), size=shape[:-1])


# loops over utterances, and the names of loops over a fold, by metric
BY_UTTERANCE: dict[str, Callable[..., float]] = {
    "js": reference.js,
    "js_distance_nats": reference.js_distance_nats,
    "bc": reference.bhattacharyya,
    "r2": reference.r2,
    "accuracy": lambda y, p: float(reference.argmax(y) == reference.argmax(p)),
}
BY_FOLD = ("accuracy", "accuracy_untied", "uar", "macro_f1", "weighted_f1", "macro_f1_threshold", "ece")

BALANCED = {"js_balanced": reference.js, "bc_balanced": reference.bhattacharyya}

SKLEARN = {
    "ml_micro_f1": ("f1_score", {"average": "micro"}),
    "ml_macro_f1": ("f1_score", {"average": "macro"}),
    "ml_precision": ("precision_score", {"average": "micro"}),
    "ml_recall": ("recall_score", {"average": "micro"}),
    "ml_accuracy": ("jaccard_score", {"average": "samples"}),
}

samples = st.builds(
    lambda rows, classes, seed: (rated(rows, classes, seed), predicted(rows, classes, seed=seed)),
    st.integers(1, 30), st.integers(2, 9), st.integers(0, 10**6),
)  # fmt: skip


def test_the_published_test_vector_comes_out() -> None:
    scores = metrics.evaluate([[1, 0, 0, 0]], [[0.5, 0.5, 0, 0]])
    expected = {"js": 0.311278, "js_distance_nats": 0.464501, "bc": 0.707107, "r2": 0.333333}
    assert {name: round(float(scores[name]), 6) for name in expected} == expected


@given(samples)
def test_metrics_are_what_the_loops_give(sample: tuple[Floats, Floats]) -> None:
    target, probs = sample
    scores = metrics.evaluate(target, probs)
    assert list(scores) == list(metrics.METRICS)
    pairs = list(zip(target.tolist(), probs.tolist(), strict=True))
    for name, loop in BY_UTTERANCE.items():
        expected = [loop(y, p) for y, p in pairs]
        np.testing.assert_allclose(metrics.UTTERANCE_METRICS[name](target, probs), expected, atol=1e-7, err_msg=name)
        assert scores[name] == pytest.approx(np.mean(expected), abs=1e-7, nan_ok=True), name
    for name in BY_FOLD:
        expected_score = getattr(reference, name)(target.tolist(), probs.tolist())
        assert scores[name] == pytest.approx(expected_score, abs=1e-12, nan_ok=True), name
    for name, of_one in BALANCED.items():
        assert scores[name] == pytest.approx(reference.balanced(of_one)(target.tolist(), probs.tolist())), name


def test_a_class_counts_alike_however_many_utterances_it_labels() -> None:
    target, probs = rated(40, 4, seed=3), predicted(40, 4, seed=3)
    frequent = target.argmax(-1) == np.bincount(target.argmax(-1)).argmax()
    more = np.concatenate([np.arange(40), *[np.flatnonzero(frequent)] * 5])
    for name in BALANCED:
        plain = name.removesuffix("_balanced")
        again = metrics.METRICS[name](target[more], probs[more])
        assert again == pytest.approx(metrics.METRICS[name](target, probs)), name
        assert metrics.METRICS[plain](target[more], probs[more]) != pytest.approx(metrics.METRICS[plain](target, probs))


@given(samples)
def test_a_metric_of_single_utterances_has_their_mean_for_a_score(sample: tuple[Floats, Floats]) -> None:
    for name, metric in metrics.UTTERANCE_METRICS.items():
        assert metrics.METRICS[name](*sample) == pytest.approx(metric(*sample).mean(), abs=1e-12, nan_ok=True), name


@given(samples)
def test_distances_between_distributions_agree_with_scipy(sample: tuple[Floats, Floats]) -> None:
    import scipy.spatial.distance
    import scipy.stats

    target, probs = sample
    bits = scipy.spatial.distance.jensenshannon(target, probs, base=2, axis=-1)
    nats = scipy.spatial.distance.jensenshannon(target, probs, axis=-1)
    np.testing.assert_allclose(metrics.utterance_js(target, probs), bits**2, atol=1e-12)
    np.testing.assert_allclose(metrics.utterance_js_distance_nats(target, probs), nats, atol=1e-7)
    for row, (y, p) in enumerate(zip(target, probs, strict=True)):
        if y.std() > 0 and len(y) > 2:
            variances = y.var() * p.var()
            expected = scipy.stats.pearsonr(y, p).statistic ** 2 * variances / (variances + 1e-10)
            assert metrics.utterance_r2(target, probs)[row] == pytest.approx(expected, abs=1e-9)


@given(samples)
def test_classification_metrics_agree_with_scikit_learn(sample: tuple[Floats, Floats]) -> None:
    import sklearn.metrics

    target, probs = sample
    label, guess = target.argmax(-1), probs.argmax(-1)
    scores = metrics.evaluate(target, probs)
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(label, guess))
    present = np.unique(label)
    recalls = sklearn.metrics.recall_score(label, guess, labels=present, average="macro", zero_division=0)
    assert scores["uar"] == pytest.approx(recalls)
    for average in ("macro", "weighted"):
        expected = sklearn.metrics.f1_score(label, guess, average=average, zero_division=0)
        assert scores[f"{average}_f1"] == pytest.approx(expected), average
    threshold = 1 / target.shape[-1]
    expected = sklearn.metrics.f1_score(target > threshold, probs > threshold, average="macro", zero_division=0)
    assert scores["macro_f1_threshold"] == pytest.approx(expected)
    counts = sklearn.metrics.confusion_matrix(label, guess, labels=range(target.shape[-1]))
    np.testing.assert_array_equal(metrics.confusion(target, probs), counts)


@given(samples)
def test_calibration_error_agrees_with_scikit_learn(sample: tuple[Floats, Floats]) -> None:
    from sklearn.calibration import calibration_curve

    target, probs = sample
    hit, confidence = target.argmax(-1) == probs.argmax(-1), probs.max(-1)
    shares, means = calibration_curve(hit, confidence, n_bins=10)
    sizes = np.histogram(confidence, bins=10, range=(0, 1))[0]  # no confidence lies on an edge
    expected = (sizes[sizes > 0] * np.abs(shares - means)).sum() / len(target)
    assert metrics.ece(target, probs) == pytest.approx(expected)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    below, on_edge, above = ([share, 1 - share - 0.2, 0.2] for share in (0.45, 0.5, 0.55))
    target = [[1, 0, 0], [0, 1, 0]]  # one hit, one miss: within one bin their gaps cancel
    assert metrics.ece(target, [on_edge, below]) == pytest.approx((0.5 - 0.45) / 2)
    assert metrics.ece(target, [on_edge, above]) == pytest.approx((0.5 + 0.55) / 2)


@given(samples)
def test_scores_lie_within_their_bounds(sample: tuple[Floats, Floats]) -> None:
    scores = metrics.evaluate(*sample)
    for name in {*BY_UTTERANCE, *BY_FOLD}:
        assert math.isnan(scores[name]) or 0 <= scores[name] <= 1 + 1e-12, name
    js, bc = (metrics.UTTERANCE_METRICS[name](*sample) for name in ("js", "bc"))
    assert scores["js_distance_nats"] <= math.sqrt(math.log(2)) + 1e-12
    apart = 1 - bc > 1e-6
    ratio = js[apart] / (1 - bc[apart])
    assert ((ratio >= 1 - 1e-6) & (ratio <= 1 / math.log(2) + 1e-6)).all()  # true in base 2 alone


def test_a_perfect_prediction_has_a_perfect_score() -> None:
    target = rated(200, 5, 0)
    scores = metrics.evaluate(target, target)
    known = {*BY_UTTERANCE, *BY_FOLD} - {"r2", "ece"}
    perfect = {name: 0.0 if metrics.METRICS[name].better == "lower" else 1.0 for name in known}
    assert {name: float(scores[name]) for name in perfect} == pytest.approx(perfect)
    varied = target[target.std(-1) > 0]
    assert metrics.r2(varied, varied) == pytest.approx(1, abs=1e-5)


@given(samples)
def test_no_prediction_is_better_than_the_votes_of_raters_who_agree(sample: tuple[Floats, Floats]) -> None:
    target, probs = np.eye(sample[0].shape[-1])[sample[0].argmax(-1)], sample[1]
    perfect, scores = metrics.evaluate(target, target), metrics.evaluate(target, probs)
    for name, metric in metrics.METRICS.items():
        loss = scores[name] - perfect[name] if metric.better == "lower" else perfect[name] - scores[name]
        assert loss >= -1e-9 or np.isnan(loss), name  # r2 is no number of two classes


def test_rounding_puts_no_divergence_below_zero() -> None:
    """Where it did, its root would be NaN."""
    target = rated(500, 5, 1)
    nearly = target * (1 + np.random.default_rng(0).uniform(-1e-12, 1e-12, target.shape))
    assert (metrics.utterance_js(target, nearly) >= 0).all()
    assert metrics.js_distance_nats(target, nearly) == pytest.approx(0, abs=1e-6)


# --- leading axes ---


@given(st.integers(0, 10**6), st.sampled_from([(), (1,), (3,), (2, 3)]))
def test_leading_axes_are_scored_as_one_by_one(seed: int, lead: tuple[int, ...]) -> None:
    target, probs = rated(11, 4, seed), predicted(*lead, 11, 4, seed=seed)
    targets = np.stack([rated(11, 4, seed + run) for run in range(int(np.prod(lead)))]).reshape(*lead, 11, 4)
    for own in (target, targets):
        scores = metrics.evaluate(own, probs)
        for name, score in scores.items():
            assert np.shape(score) == lead, name
            for run in np.ndindex(lead):
                alone = metrics.METRICS[name](own if own.ndim == 2 else own[run], probs[run])
                np.testing.assert_allclose(score[run], alone, atol=1e-12, err_msg=name)


def test_single_precision_scores_like_double() -> None:
    target, probs = rated(300, 6, 3, raters=6), predicted(300, 6, seed=3)
    double, single = metrics.evaluate(target, probs), metrics.evaluate(target.astype("f4"), probs.astype("f4"))
    for name, score in double.items():
        assert single[name].dtype == np.float64
        assert single[name] == pytest.approx(score, abs=1e-6), name


def test_a_target_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target \(3, 4\) and probs \(2, 4\)"):
        metrics.evaluate(np.ones((3, 4)), np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"target \(4,\)"):
        metrics.js(np.ones(4), np.ones((2, 4)))


# --- corners ---


@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_no_utterance_scores_nan_without_a_warning(name: str, recwarn: pytest.WarningsRecorder) -> None:
    assert math.isnan(metrics.METRICS[name](np.empty((0, 4)), np.empty((0, 4))))
    assert np.isnan(metrics.METRICS[name](np.empty((0, 4)), np.empty((2, 0, 4)))).tolist() == [True, True]
    assert not recwarn.list


def test_without_an_untied_target_the_untied_accuracy_is_nan_and_the_rest_is_not() -> None:
    scores = metrics.evaluate([[0.5, 0.5, 0], [0, 0.5, 0.5]], predicted(2, 3, seed=0))
    assert [name for name, score in scores.items() if math.isnan(score)] == ["accuracy_untied"]


def test_r2_is_zero_where_either_side_is_uniform() -> None:
    for classes in (3, 4, 7):
        uniform, other = np.full((1, classes), 1 / classes), predicted(1, classes, seed=1)
        assert metrics.r2(uniform, other) == pytest.approx(0, abs=1e-20)
        assert metrics.r2(other, uniform) == pytest.approx(0, abs=1e-20)


def test_r2_of_two_classes_is_blank_since_any_prediction_would_score_one() -> None:
    target, probs = rated(6, 2, 3), predicted(5, 6, 2, seed=3)
    assert np.isnan(metrics.utterance_r2(target, probs)).all()
    assert metrics.utterance_r2(target, probs).shape == (5, 6)
    assert np.isnan(metrics.r2(target, probs)).tolist() == [True] * 5
    scores = metrics.evaluate(target, probs)
    assert {name for name, score in scores.items() if np.isnan(score).any()} <= {"r2", "accuracy_untied"}
    assert 0 < metrics.r2(np.eye(3)[:2], predicted(2, 3, seed=3)) < 1


def test_of_equal_shares_the_first_is_the_label_even_where_rounding_favours_another() -> None:
    nearly = [[0.1 + 0.2, 0.3, 0.4 - 1e-9, 0.4]]
    assert metrics.utterance_accuracy(nearly, [[0, 0, 1, 0]]).tolist() == [1.0]
    assert metrics.utterance_accuracy(nearly, [[0, 0, 0, 1]]).tolist() == [0.0]
    assert math.isnan(metrics.accuracy_untied(nearly, [[0, 0, 1, 0]]))


@pytest.mark.parametrize("classes", [3, 6, 7, 9])
def test_a_share_of_exactly_one_in_c_is_not_above_it_in_any_precision(classes: int) -> None:
    target = np.full((2, classes), 1 / classes)
    target[0] = np.eye(classes)[0]
    probs = np.tile(np.eye(classes)[0], (2, 1))
    expected = 2 / 3 / classes  # one class of C, found in both rows, rated in one
    assert metrics.macro_f1_threshold(target, probs) == pytest.approx(expected)
    assert metrics.macro_f1_threshold(target.astype("f4"), probs) == pytest.approx(expected)
    assert metrics.macro_f1_threshold(probs, np.full((2, classes), 1 / classes)) == 0


def test_classes_absent_from_targets_count_where_documented() -> None:
    target, probs = np.eye(4)[[0, 0, 1]], np.eye(4)[[0, 2, 1]]
    assert metrics.uar(target, probs) == pytest.approx((1 / 2 + 1) / 2)  # labels 0 and 1
    assert metrics.macro_f1(target, probs) == pytest.approx((2 / 3 + 1 + 0) / 3)  # 2 is predicted, 3 is nowhere
    assert metrics.weighted_f1(target, probs) == pytest.approx((2 * 2 / 3 + 1) / 3)
    assert metrics.macro_f1_threshold(target, probs) == pytest.approx((2 / 3 + 1) / 4)  # all four


def test_a_run_that_diverged_scores_nan_and_leaves_its_neighbours_alone() -> None:
    target, probs = rated(9, 4, 5), predicted(2, 9, 4, seed=5)
    alone = metrics.evaluate(target, probs[0])
    probs[1, 3] = math.nan
    for name, score in metrics.evaluate(target, probs).items():
        assert score[0] == pytest.approx(float(alone[name]), nan_ok=True)
        assert math.isnan(score[1]) or name not in ("js", "js_distance_nats", "bc", "r2", "ece"), name


# --- the module ---


def test_the_examples_in_the_docstrings_are_true() -> None:
    results = doctest.testmod(metrics)
    assert results.attempted >= len(metrics.METRICS) + len(metrics.UTTERANCE_METRICS)
    assert results.failed == 0


# --- presence ---


@given(samples, st.sampled_from([0.01, 0.2, 0.5, 0.99]))
def test_metrics_of_presence_are_those_of_scikit_learn(sample: tuple[Floats, Floats], threshold: float) -> None:
    from sklearn import metrics as oracle

    target, probs = sample
    found = metrics.evaluate(target, probs, threshold)
    assert list(found) == list(metrics.MULTI_LABEL_METRICS)
    rated, said = target > 0, probs > threshold
    for name, (function, words) in SKLEARN.items():
        assert found[name] == pytest.approx(getattr(oracle, function)(rated, said, zero_division=0, **words)), name
    assert found["ml_hamming"] == pytest.approx(oracle.hamming_loss(rated, said))


def test_runs_of_presence_are_scored_together_as_each_alone() -> None:
    target, probs = rated(12, 4, 3), predicted(2, 3, 12, 4, seed=4)
    together = metrics.evaluate(target, probs, 0.3)
    for name, scores in together.items():
        assert scores.shape == (2, 3)
        assert scores[1, 2] == metrics.evaluate(target, probs[1, 2], 0.3)[name]


@pytest.mark.parametrize("name", list(metrics.MULTI_LABEL_METRICS))
def test_presence_of_no_utterance_has_no_score(name: str) -> None:
    assert math.isnan(metrics.MULTI_LABEL_METRICS[name](np.empty((0, 4)), np.empty((0, 4))))


def test_the_threshold_is_that_of_the_best_macro_f1_of_a_hundred() -> None:
    from sklearn.metrics import f1_score

    target, probs = rated(40, 5, 1), np.random.default_rng(0).uniform(size=(40, 5))
    scores = [f1_score(target > 0, probs > t / 100, average="macro", zero_division=0) for t in range(1, 100)]
    threshold, score = metrics.threshold_of(target, probs)
    assert threshold == (1 + int(np.argmax(scores))) / 100
    assert score == pytest.approx(max(scores))
    assert math.isnan(metrics.threshold_of(np.empty((0, 5)), np.empty((0, 5)))[1])
    assert math.isnan(metrics.threshold_of(target, np.where(probs > 0.9, np.nan, probs))[1])
