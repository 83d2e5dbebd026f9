"""A speech model goes in; it is changed so that what it pads stays silent where its own code lets padding speak."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor

# Given the valid frames of the batch to come, (batch, frames) bool or None, a block in which the model keeps to them.
Valid = Callable[[Tensor | None], AbstractContextManager[None]]


def keep_padding_silent(model: Any) -> Valid:
    """Zero the padding between the steps of positional convolutions.

    transformers zeroes it before the first step. data2vec-audio has several convolutions in a row, each with a norm
    that makes the padding speak up again; HuBERT may have a batch norm (mHuBERT-147 has) that adds its mean. An
    utterance alone meets zeros beyond its ends at every step, so in a batch it must, too. The setting is each thread's
    own, as threads may share one model.
    """
    place = threading.local()

    def silence(module: Any, arguments: Any, output: Tensor) -> Tensor:
        mask = getattr(place, "mask", None)
        return output if mask is None else output * mask[:, None]  # (batch, channels, frames)

    positions: Any = getattr(getattr(model, "encoder", None), "pos_conv_embed", None)
    steps = [*getattr(positions, "layers", ())]
    if getattr(positions, "batch_norm", None) is not None:
        steps.append(positions.batch_norm)
    for step in steps:
        step.register_forward_hook(silence)

    @contextmanager
    def valid(mask: Tensor | None) -> Iterator[None]:
        place.mask = mask
        try:
            yield
        finally:
            place.mask = None

    return valid
