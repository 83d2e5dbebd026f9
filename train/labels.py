"""What a run learns from: the raters' distribution itself, or its largest share alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

from amber2_core.distributions import SHARE_TOLERANCE

Labels = Literal["soft", "hard"]
LABEL_KINDS: tuple[Labels, ...] = get_args(Labels)


def soft(target: Tensor) -> Tensor:
    """The target as the raters gave it."""
    return target


def hard(target: Tensor) -> Tensor:
    """One-hot of the largest share, the first of equals, as the metrics read it: (…, C) → as target."""
    largest = target >= target.amax(-1, keepdim=True) - SHARE_TOLERANCE
    return functional.one_hot(largest.int().argmax(-1), target.shape[-1]).to(target)


LABELS: Mapping[Labels, Callable[[Tensor], Tensor]] = {"soft": soft, "hard": hard}
