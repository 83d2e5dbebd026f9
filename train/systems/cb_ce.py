"""CB-CE, the paper's baseline: every head alone on class-balanced cross-entropy with the soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..stacked.system import Loss, StackedSystem, sum_of_heads
from .system import FoldData


class ClassBalancedCrossEntropy(StackedSystem):
    """The sum of the heads' class-balanced cross-entropies; each head keeps its own best epoch."""

    name = "cb-ce"

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`."""
        from amber2_core.losses import class_balanced_cross_entropy, class_balanced_weights

        weights = class_balanced_weights(self.learnt(settings[0], fold.train), fold.emotions)  # (C,)
        return sum_of_heads(partial(class_balanced_cross_entropy, weights=weights))
