"""Shares of classes (…, classes), rated or predicted: which is the largest, and what sums over classes are made of.

numpy, float64. The label of a target is its largest share, the first of equal ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# the share of a few votes can be off by the rounding of single precision, but two different shares are never this near
SHARE_TOLERANCE = 1e-6


def largest(target: FloatArray) -> NDArray[np.bool_]:
    """Which shares of a target are its largest: (…, classes) → as target; equal are those within `SHARE_TOLERANCE`."""
    return np.asarray(target >= target.max(-1, keepdims=True) - SHARE_TOLERANCE)


def label(target: FloatArray) -> NDArray[np.intp]:
    """The class of the largest share, the first of equal ones: (…, classes) → (…).

    >>> label(np.array([[0.2, 0.4, 0.4], [0.5, 0.3, 0.2]]))
    array([1, 0])
    """
    return np.asarray(largest(target).argmax(-1))


def x_log2_x(x: FloatArray) -> FloatArray:
    """x log₂ x, 0 at 0."""
    return x * np.log2(np.maximum(x, np.finfo(np.float64).tiny))


def sum_over_classes(x: FloatArray) -> FloatArray:
    """(…, classes) → (…). `sum` is made for long rows, einsum adds a few numbers several times faster."""
    return np.asarray(np.einsum("...c->...", x))
