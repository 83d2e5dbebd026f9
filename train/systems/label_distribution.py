"""Label-distribution learning: heads learn the raters' distribution by its plain KL divergence or cross-entropy.

KL(y‖p) = CE(y, p) − H(y), and H(y) is of the raters alone: both have the gradient p − y of the logits, so that `ldl-kl`
and `ldl-ce` give the same model. There are two names since papers report either; a difference between them needs class
weights, smoothing or another way to select (SAILER, arXiv 2505.22133, cites that soft cross-entropy beats KL). Both are
in nats, 0 ln 0 = 0, the mean over the batch by N: `KLDivLoss(reduction="mean")` would divide by the classes as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..stacked.system import Loss, StackedSystem, sum_of_heads
from .system import FoldData


class KullbackLeibler(StackedSystem):
    """Σ_c y_c ln (y_c / p_c), summed over the heads."""

    name = "ldl-kl"

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`."""
        from amber2_core.losses import soft_cross_entropy

        return sum_of_heads(partial(soft_cross_entropy, above_entropy=True))


class CrossEntropy(StackedSystem):
    """−Σ_c y_c ln p_c, summed over the heads: the models of `ldl-kl`."""

    name = "ldl-ce"
    same_as = "ldl-kl"

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`."""
        from amber2_core.losses import soft_cross_entropy

        return sum_of_heads(soft_cross_entropy)

    def remarks(self, setting: Any) -> Sequence[str]:
        """See `System.remarks`."""
        return ("ldl-ce has the gradient of ldl-kl, p − y, and so the same models: read one of the two",)
