"""EMO-SUPERB's probe: linear heads on a learnt sum of layers, class-balanced cross-entropy with smoothed soft labels.

Wu et al. 2024 (arXiv 2402.13018): the softmax-weighted sum of all layers of a frozen encoder, Linear(D, 256), the mean
over time, Linear(256, C), no non-linearity; y' = (1 − ε) y + ε (1 − y)/(C − 1) with ε = 0.05, on it the loss of
`cb-ce`; AdamW at 1e-4, batches of 32. On a cache the mean over time comes first, which commutes with sum and Linear.
Its score, macro F1 of shares above 1/C, is `macro_f1_threshold`.

Deviations: the paper has no fusion, the fusion head here is linear on the concatenation of the modalities' sums; the
epoch kept is that of the lowest dev JS, not of the lowest dev loss; the scores of the layers learn at 30 times the
rate, without decay, or they would hardly leave their start in 30 epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..stacked.system import LAYER_RATE, WEIGHTED, HeadSettings, Loss, StackedSystem, class_balanced
from .system import FoldData, Rows, option, with_default

if TYPE_CHECKING:
    from torch import Tensor

    from amber2_core.heads import Architecture


@dataclass(frozen=True)
class EmoSuperbSettings(HeadSettings):
    """The paper's, and ε."""

    input_layers: str = with_default(HeadSettings, "input_layers", WEIGHTED)
    fusion: str = with_default(HeadSettings, "fusion", "concat")
    lr: float = with_default(HeadSettings, "lr", 1e-4)
    batch_size: int = with_default(HeadSettings, "batch_size", 32)
    smoothing: float = option(0.05, "Share of each label that the other classes are given.", least=0, below=1)


class EmoSuperb(StackedSystem):
    """The loss of `cb-ce` on smoothed labels, of heads without an activation."""

    name = "emo-superb"
    Settings = EmoSuperbSettings

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`."""
        return class_balanced(self.learnt(settings[0], fold.train), fold.emotions)

    def architecture(self, setting: EmoSuperbSettings, fold: FoldData) -> Architecture:
        """See `StackedSystem.architecture`."""
        return replace(super().architecture(setting, fold), activation="none")

    def learnt(self, setting: EmoSuperbSettings, rows: Rows) -> Tensor:
        """The raters' distributions (n, C), smoothed."""
        from amber2_core.losses import smooth_labels

        return smooth_labels(rows.targets, setting.smoothing)

    def remarks(self, setting: EmoSuperbSettings) -> Sequence[str]:
        """See `System.remarks`."""
        return (
            f"emo-superb: its paper has no fusion of modalities, here it is {setting.fusion}",
            "emo-superb: the epoch kept is that of the lowest dev JS, in its paper of the lowest dev loss",
            f"emo-superb: the scores of a sum of layers learn at {LAYER_RATE:g} times the rate, without decay",
        )
