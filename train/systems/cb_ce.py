"""CB-CE, the paper's baseline: every head alone on class-balanced cross-entropy with the soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..stacked.system import Loss, StackedSystem, class_balanced
from .system import FoldData


class ClassBalancedCrossEntropy(StackedSystem):
    """The sum of the heads' class-balanced cross-entropies; each head keeps its own best epoch."""

    name = "cb-ce"

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`."""
        return class_balanced(self.learnt(settings[0], fold.train), fold.emotions)
