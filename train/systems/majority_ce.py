"""Majority cross-entropy: every head learns the emotion that most raters named, as single-label work does.

−ln p_c of the class c with the largest share, in nats, unweighted, its mean over the batch. Utterances of which two
shares are the largest have no such class: as is usual (the baseline of the MSP-Podcast challenge of 2025 drops what
raters do not agree on), training leaves them out and the log counts them; `--ties first` gives them the first of these
classes, which is how scores take the label of a tie. Dev and test keep all, and dev JS is of the raters' distributions.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..stacked.system import HeadSettings, Loss, StackedSystem, sum_of_heads
from .system import FoldData, LearnFrom, Rows, option

if TYPE_CHECKING:
    from torch import Tensor

Ties = Literal["drop", "first"]


@dataclass(frozen=True)
class MajoritySettings(HeadSettings):
    """What becomes of ties, beside what heads have."""

    ties: Ties = option("drop", "Train utterances with several largest shares", choices=get_args(Ties))


class MajorityCrossEntropy(StackedSystem):
    """−ln p_c of the class most raters named, summed over the heads."""

    name = "majority-ce"
    Settings = MajoritySettings

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`."""
        from amber2_core.losses import soft_cross_entropy

        return sum_of_heads(soft_cross_entropy)

    def learns_from(self, setting: MajoritySettings) -> LearnFrom:
        """See `System.learns_from`."""
        return "plurality" if (setting.ties, setting.learn_from) == ("drop", "all") else setting.learn_from

    def learnt(self, setting: MajoritySettings, rows: Rows) -> Tensor:
        """The label, one-hot (n, C)."""
        from amber2_core.losses import one_hot_labels

        return one_hot_labels(rows.targets)

    def shape(self, setting: MajoritySettings) -> Hashable:
        """Runs of one stack learn from the same utterances."""
        return (super().shape(setting), setting.ties)
