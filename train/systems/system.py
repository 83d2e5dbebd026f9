"""What a system is to the trainer: a loss over the logits of all heads, and whose dev score decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from ..grid import Setting

# logits (heads, seeds, settings, batch, C), target (seeds, 1, batch, C) and, where some utterances lack a head, who has
# which (heads, seeds, 1, batch), else None → losses (seeds, settings)
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class TrainingStatistics:
    """What a loss may know of the training rows of its fold, in the precision and on the device of training."""

    class_weights: Tensor  # (C,)


class System(Protocol):
    """One way to train the heads. Every system has the same heads; systems differ in what they ask of them."""

    # as given to --system, and in results.csv
    name: str
    # the settings of `grid.LOSS_SETTINGS` that the loss reads
    uses: frozenset[str]

    def loss(self, settings: Sequence[Setting], *, heads: tuple[str, ...], statistics: TrainingStatistics) -> Loss:
        """The loss of runs of these settings, made once and called at every step."""
        ...

    def judge(self, head: str, setting: Setting) -> str:
        """The head whose dev JS decides which epoch of `head` is kept."""
        ...

    def decider(self, setting: Setting) -> str:
        """The head whose dev JS, averaged over seeds, decides between settings."""
        ...
