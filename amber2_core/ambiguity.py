"""How far the raters of an utterance disagree: targets (…, classes) in, bits or bins of utterances out.

numpy, float64.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import SettingError, bad_choice
from .shares import FloatArray, sum_over_classes, x_log2_x

BinEdges = Literal["equal-width", "quantiles"]
BIN_EDGES: tuple[BinEdges, ...] = get_args(BinEdges)


def ambiguity(target: ArrayLike) -> FloatArray:
    """Entropy of a target in bits, from 0 (all raters agree) to log₂ C (uniform): (…, N, classes) → (…, N).

    >>> ambiguity([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    array([0., 1., 2.])
    """
    return np.maximum(-sum_over_classes(x_log2_x(np.asarray(target, np.float64))), 0.0)


def ambiguity_bins(
    target: ArrayLike, *, count: int = 5, edges: BinEdges = "equal-width"
) -> tuple[NDArray[np.intp], FloatArray]:
    """The bin of each utterance (N,), and the bins' edges in bits (count + 1,), by ambiguity of targets (N, classes).

    Bins are of equal width on [0, log₂ C], or lie between quantiles of the targets at hand; fewer than `count`, then,
    where quantiles coincide. Bin b holds edges[b] ≤ ambiguity < edges[b + 1], the last one its upper edge too.
    SettingError for edges that do not exist.

    >>> ambiguity_bins([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]], count=2)
    (array([0, 1, 1]), array([0., 1., 2.]))
    """
    if edges not in BIN_EDGES:
        raise SettingError(bad_choice("bin edges", edges, BIN_EDGES))
    bits = ambiguity(target).round(9)  # the order of summation must not part equal ambiguities
    steps = np.linspace(0, 1, count + 1)
    if edges == "equal-width":
        limits = np.log2(np.shape(target)[-1]) * steps
    else:
        limits = np.unique(np.quantile(bits, steps, method="nearest")) if len(bits) else np.zeros(1)
        limits = np.repeat(limits, 2) if len(limits) == 1 else limits
    return np.searchsorted(limits[1:-1], bits, side="right"), limits
