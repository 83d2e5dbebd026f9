"""CB-CE, the baseline: every head alone on class-balanced cross-entropy with the soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from amber2_core.heads import FUSION_HEAD
from amber2_core.losses import class_balanced_cross_entropy

from .system import Loss, TrainingStatistics

if TYPE_CHECKING:
    from ..grid import Setting


class ClassBalancedCrossEntropy:
    """The sum of the heads' class-balanced cross-entropies; each head keeps its own best epoch."""

    name = "cb-ce"
    uses: frozenset[str] = frozenset()

    def loss(self, settings: Sequence[Setting], *, heads: tuple[str, ...], statistics: TrainingStatistics) -> Loss:
        """See `System.loss`. The heads share no parameter, so their sum trains each as if it were alone."""

        def losses(logits: Tensor, target: Tensor, present: Tensor | None) -> Tensor:
            return class_balanced_cross_entropy(logits, target, statistics.class_weights, present=present).sum(0)

        return losses

    def judge(self, head: str, setting: Setting) -> str:
        return head

    def decider(self, setting: Setting) -> str:
        return FUSION_HEAD
