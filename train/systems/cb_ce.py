"""CB-CE, the paper's baseline: every head alone on class-balanced cross-entropy with the soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..stacked.system import Loss, StackedSystem
from .system import FoldData

if TYPE_CHECKING:
    from torch import Tensor


class ClassBalancedCrossEntropy(StackedSystem):
    """The sum of the heads' class-balanced cross-entropies; each head keeps its own best epoch."""

    name = "cb-ce"

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`. The heads share no parameter, so their sum trains each as if it were alone."""
        from amber2_core.losses import class_balanced_cross_entropy, class_balanced_weights

        weights = class_balanced_weights(self.learnt(settings[0], fold.train), fold.emotions)  # (C,)

        def losses(outputs: Tensor, target: Tensor, present: Tensor | None, epoch: Tensor) -> Tensor:
            return class_balanced_cross_entropy(outputs, target, weights, present=present).sum(0)

        return losses
