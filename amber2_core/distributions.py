"""Distributions over classes (…, classes), rated or predicted: label, entropies, ambiguity bins, divergences, Eq. 5.

numpy, float64, one number per distribution; nothing here loads torch. What training differentiates stands, in torch
and of log-probabilities, in `amber2_core.divergences` and `amber2_core.losses`. Nothing is normalised: NaN in, NaN out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import SettingError, bad_choice

FloatArray = NDArray[np.float64]
BinEdges = Literal["equal-width", "quantiles"]
Agreement = Literal["plurality", "majority"]
BIN_EDGES: tuple[BinEdges, ...] = get_args(BinEdges)

# the share of a few votes can be off by the rounding of single precision, but two different shares are never this near
SHARE_TOLERANCE = 1e-6


def largest(target: ArrayLike) -> NDArray[np.bool_]:
    """Which shares of a target are its largest: (…, classes) → as target; equal are those within `SHARE_TOLERANCE`."""
    y = np.asarray(target, np.float64)
    return np.asarray(y >= y.max(-1, keepdims=True) - SHARE_TOLERANCE)


def label(target: ArrayLike) -> NDArray[np.intp]:
    """The class of the largest share, the first of equal ones: (…, classes) → (…).

    >>> label([[0.2, 0.4, 0.4], [0.5, 0.3, 0.2]])
    array([1, 0])
    """
    return np.asarray(largest(target).argmax(-1))


def agreed(target: ArrayLike, by: Agreement) -> NDArray[np.bool_]:
    """On which targets raters agree so far: one share is the largest, or more than half: (…, classes) → (…).

    >>> agreed([[0.2, 0.4, 0.4], [0.4, 0.35, 0.25], [0.6, 0.4, 0]], "plurality")
    array([False,  True,  True])
    >>> agreed([[0.2, 0.4, 0.4], [0.4, 0.35, 0.25], [0.6, 0.4, 0]], "majority")
    array([False, False,  True])
    """
    y = np.asarray(target, np.float64)
    return np.asarray(y.max(-1) > 0.5 + SHARE_TOLERANCE if by == "majority" else largest(y).sum(-1) == 1)


def entropy(p: ArrayLike) -> FloatArray:
    """H(p) = −Σ p log₂ p in bits, (…, classes) → (…); of a target: its ambiguity, 0 (all agree) to log₂ C (uniform).

    >>> entropy([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    array([0., 1., 2.])
    """
    return np.maximum(-sum_over_classes(x_log2_x(np.asarray(p, np.float64))), 0.0)


def varentropy(p: ArrayLike) -> FloatArray:
    """V(p) = Σ p (ln p + H)², H = −Σ p ln p, in nats²: how unevenly a distribution is spread, (…, classes) → (…).

    0 where all classes that have a share have the same.

    >>> varentropy([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.9, 0.1, 0, 0]]).round(6)
    array([0.      , 0.      , 0.434502])
    """
    p = np.asarray(p, np.float64)
    ln_p = np.log(np.where(p == 0, 1.0, p))
    return sum_over_classes(p * (ln_p - sum_over_classes(p * ln_p)[..., None]) ** 2)


def ambiguity_bins(
    target: ArrayLike, *, count: int = 5, edges: BinEdges = "equal-width"
) -> tuple[NDArray[np.intp], FloatArray]:
    """The bin of each utterance (N,), and the bins' edges in bits (count + 1,), by the entropy of targets (N, classes).

    Bins are of equal width on [0, log₂ C], or lie between quantiles of the targets at hand; fewer than `count`, then,
    where quantiles coincide. Bin b holds edges[b] ≤ entropy < edges[b + 1], the last one its upper edge too.
    SettingError for edges that do not exist.

    >>> ambiguity_bins([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]], count=2)
    (array([0, 1, 1]), array([0., 1., 2.]))
    """
    if edges not in BIN_EDGES:
        raise SettingError(bad_choice("bin edges", edges, BIN_EDGES))
    bits = entropy(target).round(9)  # the order of summation must not part equal ambiguities
    steps = np.linspace(0, 1, count + 1)
    if edges == "equal-width":
        limits = np.log2(np.shape(target)[-1]) * steps
    else:
        limits = np.unique(np.quantile(bits, steps, method="nearest")) if len(bits) else np.zeros(1)
        limits = np.repeat(limits, 2) if len(limits) == 1 else limits
    return np.searchsorted(limits[1:-1].round(9), bits, side="right"), limits


def js(p: ArrayLike, q: ArrayLike) -> FloatArray:
    """JS(p‖q) = ½ KL(p‖m) + ½ KL(q‖m), m = (p + q) / 2, in bits, in [0, 1]: two of (…, classes) → (…).

    >>> js([1, 0, 0, 0], [0.5, 0.5, 0, 0]).round(6)
    np.float64(0.311278)
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    summands = 0.5 * (x_log2_x(p) + x_log2_x(q)) - x_log2_x(0.5 * (p + q))
    return np.maximum(sum_over_classes(summands), 0.0)  # rounding may leave −1e-17


def bc(p: ArrayLike, q: ArrayLike) -> FloatArray:
    """Bhattacharyya coefficient Σ_c √(p_c q_c), in [0, 1]: two of (…, classes) → (…).

    >>> bc([1, 0, 0, 0], [0.5, 0.5, 0, 0]).round(6)
    np.float64(0.707107)
    """
    return sum_over_classes(np.sqrt(np.asarray(p, np.float64) * np.asarray(q, np.float64)))


def expert_weights(divergence: ArrayLike, kappa: ArrayLike) -> FloatArray:
    """u_m = softmax_m(−κ D_m) (Eq. 5), per utterance: D (experts, …), κ a number or (…) → as D.

    An expert that is not there (NaN) has weight 0, the others share its part; NaN where none is there.

    >>> expert_weights([[0.0, 0.25], [0.25, np.nan]], 4 * np.log(3)).round(6)
    array([[0.75, 1.  ],
           [0.25, 0.  ]])
    """
    distance = np.asarray(divergence, np.float64)
    there = ~np.isnan(distance)
    powers = np.where(there, np.exp(-np.asarray(kappa) * (distance - np.where(there, distance, np.inf).min(0))), 0.0)
    return _ratio(powers, np.asarray(powers.sum(0)))


def disagreement(probs: Sequence[ArrayLike]) -> FloatArray:
    """Mean JS over the pairs of several distributions that are there (not NaN), in bits: each (…, classes) → (…).

    NaN where fewer than two are there.

    >>> disagreement([[1, 0], [0, 1], [0, 1]]).round(6)
    np.float64(0.666667)
    """
    pairs = np.stack([js(p, q) for p, q in itertools.combinations(probs, 2)])
    there = ~np.isnan(pairs)
    return _ratio(np.where(there, pairs, 0.0).sum(0), np.asarray(there.sum(0)))


def x_log2_x(x: FloatArray) -> FloatArray:
    """x log₂ x, 0 at 0."""
    return x * np.log2(np.maximum(x, np.finfo(np.float64).tiny))


def sum_over_classes(x: FloatArray) -> FloatArray:
    """(…, classes) → (…). `sum` is made for long rows, einsum adds a few numbers several times faster."""
    return np.asarray(np.einsum("...c->...", x))


def _ratio(part: FloatArray, whole: NDArray[Any]) -> FloatArray:
    """part / whole, NaN where whole is 0."""
    ratio: FloatArray = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)[()]
    return ratio
