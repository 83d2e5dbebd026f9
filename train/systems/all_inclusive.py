"""The all-inclusive rule: class-balanced cross-entropy learnt from every utterance that has a vote, agreed on or not.

Chou et al. 2024 train with every utterance that raters heard, and score on the subsets where a majority, a plurality or
just anybody agrees. As the baseline `cb-ce`, with soft labels and no choice of utterances: it needs a label policy that
keeps any vote (`--keep any-vote`), and `--learn-from` has no say in it. What others learn from is `--learn-from`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..stacked.system import BareSettings, Loss, StackedSystem, class_balanced
from .system import FoldData


class AllInclusive(StackedSystem):
    """The loss of `cb-ce`, of all there is."""

    name = "all-inclusive"
    Settings = BareSettings
    keeps = "any-vote"

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`."""
        return class_balanced(self.learnt(settings[0], fold.train), fold.emotions)
