"""Scores of predicted against rated distributions, probs (…, N, classes) against target (N, classes), one per run.

numpy, float64. Leading axes of `probs` (runs, seeds) are scored together, so a score has the shape `probs.shape[:-2]`;
`target` may carry leading axes of its own. Nothing is normalised or clipped into shape: NaN in, NaN out. Where there is
no utterance to average over, a score is NaN. The label of a target is its largest share, the first of equal ones, and
shares within 1e-6 of each other are equal. The predicted class is the argmax, the first of equals.

Of systems that predict which classes are present there are metrics of their own (`MULTI_LABEL_METRICS`). A class is
present in a target where any vote is for it, its share above 0, and predicted so where its probability is above a
threshold, which is chosen on dev.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import distributions
from .distributions import SHARE_TOLERANCE, FloatArray, label, largest, sum_over_classes
from .kinds import Kind

Score = Callable[[ArrayLike, ArrayLike], FloatArray]

CALIBRATION_BINS = 10
# so many classes does it take for a correlation over classes to tell anything
R2_CLASSES = 3


@dataclass(frozen=True)
class Metric:
    """A score of test folds, how tables call it, and which way is better."""

    score: Score
    title: str
    better: Literal["lower", "higher"]
    # its place, from 1, among those that `train-heads` prints; 0: it is in results.csv and in reports alone
    printed: int = 0

    def __call__(self, target: ArrayLike, probs: ArrayLike) -> FloatArray:
        """Target (…, N, classes) and probabilities (…, N, classes) → (…)."""
        return self.score(target, probs)

    @property
    def arrow(self) -> str:
        """Down where lower is better, up where higher is."""
        return "↓" if self.better == "lower" else "↑"


# one utterance each: (…, N, classes) → (…, N)


def utterance_js(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """JS(y‖p), base 2, in [0, 1].

    >>> utterance_js([[1, 0, 0, 0]], [[0.5, 0.5, 0, 0]]).round(6)
    array([0.311278])
    """
    return distributions.js(*_arrays(target, probs))


def utterance_js_distance_nats(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """√JS with JS in nats, at most √ln 2 = 0.8326. Some papers print it under the name of JS.

    >>> utterance_js_distance_nats([[1, 0, 0, 0]], [[0.5, 0.5, 0, 0]]).round(6)
    array([0.464501])
    """
    distance: FloatArray = np.sqrt(np.log(2.0) * utterance_js(target, probs))
    return distance


def utterance_bc(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Bhattacharyya coefficient Σ_c √(y_c p_c), in [0, 1].

    >>> utterance_bc([[1, 0, 0, 0]], [[0.5, 0.5, 0, 0]]).round(6)
    array([0.707107])
    """
    return distributions.bc(*_arrays(target, probs))


def utterance_r2(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Squared Pearson correlation over the classes, cov² / (var·var + 1e-10) with ddof 0; 0 where either is uniform.

    NaN for fewer than three classes: two points lie on one line, so it would be 1 whatever is predicted.

    >>> utterance_r2([[1, 0, 0, 0]], [[0.5, 0.5, 0, 0]]).round(6)
    array([0.333333])
    """
    y, p = _arrays(target, probs)
    if y.shape[-1] < R2_CLASSES:
        return np.full(np.broadcast_shapes(y.shape[:-1], p.shape[:-1]), np.nan)
    y = y - y.mean(-1, keepdims=True)
    p = p - p.mean(-1, keepdims=True)
    classes = y.shape[-1]
    covariance = sum_over_classes(y * p) / classes
    variances = sum_over_classes(y * y) * sum_over_classes(p * p) / classes**2
    squared_correlation: FloatArray = covariance**2 / (variances + 1e-10)
    return squared_correlation


def utterance_accuracy(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """1 where the predicted class is the label, else 0.

    >>> utterance_accuracy([[0.5, 0.5, 0], [0, 0, 1]], [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]])
    array([1., 0.])
    """
    y, p = _arrays(target, probs)
    hits: FloatArray = np.equal(label(y), p.argmax(-1)).astype(np.float64)
    return hits


# one test fold each: (…, N, classes) → (…)


def js(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Mean Jensen–Shannon divergence, base 2: what the tables of AmbER² hold.

    >>> js([[1, 0, 0, 0], [0, 0, 0.5, 0.5]], [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]).round(6)
    np.float64(0.155639)
    """
    return _mean(utterance_js(target, probs))


def js_distance_nats(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Mean of √JS in nats: what some papers print as JS (it is not the root of the mean).

    >>> js_distance_nats([[1, 0, 0, 0], [0, 0, 0.5, 0.5]], [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]).round(6)
    np.float64(0.232251)
    """
    return _mean(utterance_js_distance_nats(target, probs))


def js_balanced(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """JS averaged over the utterances of each label, then over the classes that are some utterance's label.

    A frequent class counts no more than a rare one; the label is that of the module.

    >>> js_balanced([[1, 0, 0], [1, 0, 0], [0, 1, 0]], [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0]]).round(6)
    np.float64(0.155639)
    """
    return _balanced_mean(target, utterance_js(target, probs))


def bc(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Mean Bhattacharyya coefficient.

    >>> bc([[1, 0, 0, 0], [0, 0, 0.5, 0.5]], [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]).round(6)
    np.float64(0.853553)
    """
    return _mean(utterance_bc(target, probs))


def bc_balanced(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Bhattacharyya coefficient, averaged as `js_balanced`.

    >>> bc_balanced([[1, 0, 0], [1, 0, 0], [0, 1, 0]], [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0]]).round(6)
    np.float64(0.853553)
    """
    return _balanced_mean(target, utterance_bc(target, probs))


def r2(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Mean over utterances of the squared Pearson correlation over classes; NaN for fewer than three classes.

    >>> r2([[1, 0, 0, 0], [0, 0, 0.5, 0.5]], [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]).round(6)
    np.float64(0.666667)
    """
    return _mean(utterance_r2(target, probs))


def accuracy(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Share of utterances whose predicted class is the label.

    >>> accuracy([[0.5, 0.5, 0], [0, 0, 1]], [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]])
    np.float64(0.5)
    """
    return _mean(utterance_accuracy(target, probs))


def accuracy_untied(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Accuracy over the utterances whose target has one largest share; NaN if there are none.

    >>> accuracy_untied([[0.5, 0.5, 0], [0, 0, 1]], [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]])
    np.float64(0.0)
    """
    y, p = _arrays(target, probs)
    untied = largest(y).sum(-1) == 1
    hits = utterance_accuracy(y, p)
    return _ratio((hits * untied).sum(-1), np.broadcast_to(untied, hits.shape).sum(-1), np.nan)


def uar(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Unweighted average recall of the predicted class, over the classes that are some utterance's label.

    A class that labels none has no recall: it is left out, and not taken for 0.

    >>> uar([[1, 0, 0], [1, 0, 0], [0, 1, 0]], [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]])
    np.float64(0.75)
    """
    counts = confusion(target, probs)
    labelled = counts.sum(-1)
    recall = _ratio(_hits(counts), labelled, 0.0)
    return _ratio(recall.sum(-1), (labelled > 0).sum(-1), np.nan)


def macro_f1(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """F1 of the predicted class, averaged over the classes that occur as a label or as a prediction.

    scikit-learn's `f1_score(…, average="macro", zero_division=0)` with its default labels.

    >>> macro_f1([[1, 0, 0], [1, 0, 0], [0, 1, 0]], [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]]).round(6)
    np.float64(0.666667)
    """
    f1, occurs, _ = _f1(confusion(target, probs))
    return _ratio(f1.sum(-1), occurs.sum(-1), np.nan)


def weighted_f1(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """F1 of the predicted class, averaged over the classes by how many utterances they label.

    >>> weighted_f1([[1, 0, 0], [1, 0, 0], [0, 1, 0]], [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]).round(6)
    np.float64(0.533333)
    """
    f1, _, labelled = _f1(confusion(target, probs))
    return _ratio((f1 * labelled).sum(-1), labelled.sum(-1), np.nan)


def macro_f1_threshold(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Multi-label macro F1 of EMO-SUPERB: a class is present where its share is above 1/C; mean over all C classes.

    A class that is present in no target and no prediction counts as F1 = 0 (`zero_division=0`). A target's share must
    exceed 1/C by 1e-6, so that one vote of C does not become more than that by being stored in single precision.

    >>> macro_f1_threshold([[0.5, 0.5, 0], [0, 0, 1]], [[0.6, 0.2, 0.2], [0.2, 0.4, 0.4]]).round(6)
    np.float64(0.666667)
    """
    y, p = _arrays(target, probs)
    classes = y.shape[-1]
    rated, predicted = y > 1 / classes + SHARE_TOLERANCE, p > 1 / classes
    hits = np.count_nonzero(rated & predicted, axis=-2)
    f1 = _ratio(2 * hits, np.count_nonzero(rated, axis=-2) + np.count_nonzero(predicted, axis=-2), 0.0)
    return _mean(f1) if y.shape[-2] else np.full(f1.shape[:-1], np.nan)


def ece(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Expected calibration error Σ_b n_b/N |accuracy_b − confidence_b| of the predicted class.

    Confidence is the largest probability; bins b are ten of equal width, (0, .1], (.1, .2], … (Guo et al. 2017).

    >>> ece([[1, 0], [1, 0], [0, 1]], [[0.75, 0.25], [0.75, 0.25], [0.75, 0.25]]).round(6)
    np.float64(0.083333)
    """
    y, p = _arrays(target, probs)
    confidence = p.max(-1)
    gap = utterance_accuracy(y, p) - confidence
    inner_edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bins = np.broadcast_to(np.searchsorted(inner_edges, confidence), gap.shape)
    sums = _grouped_sums(bins, CALIBRATION_BINS, gap)
    return _ratio(np.abs(sums).sum(-1), np.full(gap.shape[:-1], gap.shape[-1]), np.nan)


# one test fold each, of presence: target (…, N, classes) and predicted (…, N, classes), present where above 0 → (…)


def ml_accuracy(target: ArrayLike, predicted: ArrayLike) -> FloatArray:
    """Of the classes that are present or predicted so, the share that is both: mean over utterances, 0 without any.

    What papers on CMU-MOSEI and M3ED print as Acc, LDDU among them (by its public code); it is not the share of
    utterances whose whole set is right. scikit-learn's `jaccard_score(…, average="samples", zero_division=0)`.

    >>> ml_accuracy([[1, 0, 0], [0.5, 0.5, 0]], [[1, 0, 0], [1, 0, 1]]).round(6)
    np.float64(0.666667)
    """
    rated, found = _present(target, predicted)
    either = np.count_nonzero(rated | found, axis=-1)
    return _mean(_ratio(np.count_nonzero(rated & found, axis=-1), either, 0.0))


def ml_micro_f1(target: ArrayLike, predicted: ArrayLike) -> FloatArray:
    """F1 over all classes of all utterances together.

    >>> ml_micro_f1([[1, 0, 0], [0.5, 0.5, 0]], [[1, 0, 0], [1, 0, 1]]).round(6)
    np.float64(0.666667)
    """
    hits, rated, found = _pooled(target, predicted)
    return _ratio(2 * hits, rated + found, _where_empty(target))


def ml_macro_f1(target: ArrayLike, predicted: ArrayLike) -> FloatArray:
    """F1 of each class, averaged over all classes; 0 for one that is present in no target and no prediction.

    >>> ml_macro_f1([[1, 0, 0], [0.5, 0.5, 0]], [[1, 0, 0], [1, 0, 1]]).round(6)
    np.float64(0.333333)
    """
    rated, found = _present(target, predicted)
    whole = np.count_nonzero(rated, axis=-2) + np.count_nonzero(found, axis=-2)
    return _mean(_ratio(2 * np.count_nonzero(rated & found, axis=-2), whole, _where_empty(target)))


def ml_precision(target: ArrayLike, predicted: ArrayLike) -> FloatArray:
    """Of all that is predicted present, over all classes together, the share that is.

    >>> ml_precision([[1, 0, 0], [0.5, 0.5, 0]], [[1, 0, 0], [1, 0, 1]]).round(6)
    np.float64(0.666667)
    """
    hits, _, found = _pooled(target, predicted)
    return _ratio(hits, found, _where_empty(target))


def ml_recall(target: ArrayLike, predicted: ArrayLike) -> FloatArray:
    """Of all that is present, over all classes together, the share that is predicted so.

    >>> ml_recall([[1, 0, 0], [0.5, 0.5, 0]], [[1, 0, 0], [1, 0, 1]]).round(6)
    np.float64(0.666667)
    """
    hits, rated, _ = _pooled(target, predicted)
    return _ratio(hits, rated, _where_empty(target))


def ml_hamming(target: ArrayLike, predicted: ArrayLike) -> FloatArray:
    """Share of classes of utterances that are predicted wrongly, present or absent.

    >>> ml_hamming([[1, 0, 0], [0.5, 0.5, 0]], [[1, 0, 0], [1, 0, 1]]).round(6)
    np.float64(0.333333)
    """
    rated, found = _present(target, predicted)
    return _mean((rated != found).mean(-1))


# by their names in results.csv, in its order
METRICS: Mapping[str, Metric] = {
    "js": Metric(js, "JS", "lower", printed=1),
    "js_balanced": Metric(js_balanced, "JS balanced", "lower"),
    "js_distance_nats": Metric(js_distance_nats, "√JS, nats", "lower"),
    "bc": Metric(bc, "BC", "higher", printed=2),
    "bc_balanced": Metric(bc_balanced, "BC balanced", "higher"),
    "r2": Metric(r2, "R²", "higher", printed=3),
    "accuracy": Metric(accuracy, "ACC", "higher", printed=6),
    "accuracy_untied": Metric(accuracy_untied, "ACC untied", "higher"),
    "uar": Metric(uar, "UAR", "higher", printed=7),
    "macro_f1": Metric(macro_f1, "F1", "higher", printed=4),
    "weighted_f1": Metric(weighted_f1, "W-F1", "higher", printed=5),
    "macro_f1_threshold": Metric(macro_f1_threshold, "F1 > 1/C", "higher"),
    "ece": Metric(ece, "ECE", "lower", printed=8),
}
# the same of systems that predict presence: these take predictions that are 1 where a class is predicted present
MULTI_LABEL_METRICS: Mapping[str, Metric] = {
    "ml_accuracy": Metric(ml_accuracy, "Acc, Jaccard", "higher", printed=1),
    "ml_micro_f1": Metric(ml_micro_f1, "micro F1", "higher", printed=2),
    "ml_macro_f1": Metric(ml_macro_f1, "macro F1", "higher", printed=3),
    "ml_precision": Metric(ml_precision, "P, micro", "higher", printed=4),
    "ml_recall": Metric(ml_recall, "R, micro", "higher", printed=5),
    "ml_hamming": Metric(ml_hamming, "Hamming loss", "lower", printed=6),
}
METRICS_OF: Mapping[Kind, Mapping[str, Metric]] = {"distribution": METRICS, "multi-label": MULTI_LABEL_METRICS}
# metrics that are means over utterances, before the mean: of these the significance tests draw utterances again
UTTERANCE_METRICS: Mapping[str, Score] = {
    "js": utterance_js,
    "js_distance_nats": utterance_js_distance_nats,
    "bc": utterance_bc,
    "r2": utterance_r2,
    "accuracy": utterance_accuracy,
}


def metric_of(name: str) -> Metric | None:
    """The metric of that name, of whatever kind; None: there is none."""
    return next((metrics[name] for metrics in METRICS_OF.values() if name in metrics), None)


def metrics_of_kinds(kinds: Collection[str]) -> list[str]:
    """The names of all metrics of some kinds, in the order of results.csv."""
    return [name for kind, metrics in METRICS_OF.items() if kind in kinds for name in metrics]


def present(probs: ArrayLike, threshold: float) -> FloatArray:
    """1 where a class is predicted present, its probability above the threshold, else 0."""
    return np.greater(np.asarray(probs, np.float64), threshold).astype(np.float64)


def threshold_of(target: ArrayLike, probs: ArrayLike) -> tuple[float, float]:
    """The threshold 0.01, 0.02, … 0.99 of the best macro F1, the lowest of equals, and that F1.

    Of no utterance, and where a probability is NaN, the F1 is NaN.

    >>> threshold_of([[1, 0], [1, 1]], [[0.9, 0.2], [0.8, 0.3]])
    (0.2, 1.0)
    """
    y, p = _arrays(target, probs)
    grid = np.arange(1, 100) / 100
    scores = [float(ml_macro_f1(y, p > threshold)) for threshold in grid]
    best = int(np.argmax(scores))
    return float(grid[best]), math.nan if np.isnan(p).any() else scores[best]


def evaluate(target: ArrayLike, probs: ArrayLike, threshold: float | None = None) -> dict[str, FloatArray]:
    """Every metric by name, in the order of `METRICS`, or, with a threshold, of `MULTI_LABEL_METRICS`.

    >>> evaluate([[1, 0, 0, 0]], [[0.5, 0.5, 0, 0]])["bc"].round(6)
    np.float64(0.707107)
    """
    y, p = _arrays(target, probs)
    if threshold is None:
        return {name: metric(y, p) for name, metric in METRICS.items()}
    return {name: metric(y, present(p, threshold)) for name, metric in MULTI_LABEL_METRICS.items()}


def confusion(target: ArrayLike, probs: ArrayLike) -> FloatArray:
    """Counts of utterances by label and predicted class → (…, classes, classes).

    >>> confusion([[1, 0], [1, 0], [0, 1]], [[0.6, 0.4], [0.2, 0.8], [0.2, 0.8]])
    array([[1., 1.],
           [0., 1.]])
    """
    y, p = _arrays(target, probs)
    classes = y.shape[-1]
    cell = label(y) * classes + p.argmax(-1)
    return _grouped_sums(cell, classes**2).reshape(*cell.shape[:-1], classes, classes)


def _arrays(target: ArrayLike, probs: ArrayLike) -> tuple[FloatArray, FloatArray]:
    y, p = np.asarray(target, np.float64), np.asarray(probs, np.float64)
    if y.ndim < 2 or p.ndim < 2 or y.shape[-2:] != p.shape[-2:]:
        raise ValueError(f"Bad shapes: target {y.shape} and probs {p.shape}, expected (…, N, classes) alike")
    return y, p


def _present(target: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which classes are present, and which predicted so, both (…, N, classes)."""
    y, p = _arrays(target, predicted)
    return y > 0, p > 0


def _pooled(target: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """How many classes of all utterances are both, present, and predicted so, all (…)."""
    rated, found = _present(target, predicted)
    hits, of_rated, of_found = (np.count_nonzero(x, axis=(-2, -1)) for x in (rated & found, rated, found))
    return hits, of_rated, of_found


def _where_empty(target: ArrayLike) -> float:
    """What a ratio of nothing is: 0, but NaN where there is no utterance."""
    return 0.0 if np.shape(target)[-2] else np.nan


def _mean(x: FloatArray) -> FloatArray:
    """Mean over the last axis; NaN, without a warning, where it is empty."""
    mean: FloatArray = x.mean(-1) if x.shape[-1] else np.full(x.shape[:-1], np.nan)[()]
    return mean


def _balanced_mean(target: ArrayLike, values: FloatArray) -> FloatArray:
    """Mean over the labels that occur of the mean of values (…, N) over the utterances of each → (…)."""
    y = np.asarray(target, np.float64)
    labels = np.broadcast_to(label(y), values.shape)
    sums, labelled = (_grouped_sums(labels, y.shape[-1], some) for some in (values, None))
    return _ratio(_ratio(sums, labelled, 0.0).sum(-1), (labelled > 0).sum(-1), np.nan)


def _ratio(part: FloatArray, whole: NDArray[Any], otherwise: float) -> FloatArray:
    """part / whole, and `otherwise` where whole is 0."""
    ratio: FloatArray = np.divide(part, whole, out=np.full(np.shape(part), otherwise), where=np.asarray(whole) > 0)[()]
    return ratio


def _grouped_sums(group: NDArray[np.intp], groups: int, values: FloatArray | None = None) -> FloatArray:
    """Sums of values (…, N), or counts, by group number (…, N) → (…, groups)."""
    lead = group.shape[:-1]
    runs = int(np.prod(lead))
    index = group.reshape(runs, -1) + groups * np.arange(runs)[:, None]
    weights = None if values is None else values.ravel()
    return np.bincount(index.ravel(), weights, runs * groups).reshape(*lead, groups).astype(np.float64)


def _hits(counts: FloatArray) -> FloatArray:
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _f1(counts: FloatArray) -> tuple[FloatArray, NDArray[np.bool_], FloatArray]:
    """F1 of each class, whether it occurs at all, and how many utterances it labels, all (…, classes)."""
    labelled, predicted = counts.sum(-1), counts.sum(-2)
    return _ratio(2 * _hits(counts), labelled + predicted, 0.0), labelled + predicted > 0, labelled
