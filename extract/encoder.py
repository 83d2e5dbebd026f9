"""A batch goes in; pooled hidden states of a frozen transformers model come out, whatever else is in the batch."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from amber2_core.devices import is_out_of_memory

from .checkpoint import Checkpoint
from .encoded import Encoded, Pooled, join
from .loading import load_model
from .pooling import binned, mask_of, masked_mean
from .recipe import Layers, Precision

# How far a row of a batch may be from the same utterance encoded alone, relative L2.
EXACT = 1e-5

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

_log = logging.getLogger(__name__)


class Encoder:
    """What encoders of speech and text have in common: how a batch is run, pooled, and tried for exactness."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layers: Layers = "last",
        frames: int | None = None,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        """Load a checkpoint.

        Raises:
            ModelError: it cannot be loaded, or is no encoder of this kind.
        """
        self.device = torch.device(device)
        self.layers = layers
        self.frames = frames
        self.precision = precision
        self._batches_are_exact: bool | None = None
        self._trying = threading.Lock()
        self._model = load_model(checkpoint, self.device)
        self._set_up(checkpoint)

    def _set_up(self, checkpoint: Checkpoint) -> None:
        """Load what turns raw input into the model's, and see that the model takes it."""
        raise NotImplementedError

    def encode(self, inputs: Sequence[Any]) -> Pooled:
        """Encode a batch; each row is what its utterance gives alone.

        Returns:
            (batch, D), or (batch, layers + 1, D): the mean of the hidden states over the valid places.
        """
        return self.encode_batch(inputs).values

    def encode_batch(self, inputs: Sequence[Any]) -> Encoded:
        """As `encode`, with the sequences if `frames` are asked for."""
        if len(inputs) == 1 or self._is_exact():
            return self._encode(inputs, self.precision)
        return join([self._encode([one], self.precision) for one in inputs])

    def _encode(self, inputs: Sequence[Any], precision: Precision) -> Encoded:
        raise NotImplementedError

    def _probe(self) -> Sequence[Any]:
        """A small batch of very different lengths."""
        raise NotImplementedError

    def _half(self, precision: Precision) -> AbstractContextManager[object]:
        """torch's autocast: half precision for products and convolutions; the device decides on the rest."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_HALF[precision])

    def _pooled(self, output: Any, lengths: Sequence[int]) -> Encoded:
        """Pool a model's output over the first `lengths[i]` places of each row."""
        last = output.last_hidden_state  # (batch, places, D)
        # Some models normalise once more after their last layer: what counts as its output is the last hidden state.
        states = (last,) if self.layers == "last" else (*output.hidden_states[:-1], last)
        if len(lengths) == 1:
            # Nothing is padded.
            lengths = [last.shape[1]]
            means = [state.float().mean(dim=1) for state in states]
        else:
            mask = mask_of(lengths, device=self.device)
            means = [masked_mean(state, mask) for state in states]
        pooled = means[0] if self.layers == "last" else torch.stack(means, dim=1)
        frames = None
        if self.frames is not None:
            bins = [binned(row[:length], self.frames) for row, length in zip(last, lengths, strict=True)]
            # One copy from the device: each would wait for all that the device still has to do.
            together = torch.cat(bins).cpu().numpy()
            frames = tuple(np.split(together, np.cumsum([len(one) for one in bins])[:-1]))
        return Encoded(np.asarray(pooled.cpu().numpy()), frames)

    def _is_exact(self) -> bool:
        """Whether batches give what their items give alone: tried out in fp32, when the first batch comes."""
        with self._trying:
            if self._batches_are_exact is None:
                self._batches_are_exact = self._error_of_a_batch() <= EXACT
                while not self._batches_are_exact and self._go_another_way():
                    self._batches_are_exact = self._error_of_a_batch() <= EXACT
                if not self._batches_are_exact:
                    model = type(self._model).__name__
                    _log.info("%s changes with its batch: utterances are encoded one at a time", model)
        return self._batches_are_exact

    def _go_another_way(self) -> bool:
        """Go over to a slower way of running batches, if there is one."""
        return False

    def _error_of_a_batch(self) -> float:
        """The largest relative L2 error of a row."""
        probe = self._probe()
        alone = np.stack([self._encode([item], "fp32").values.ravel() for item in probe])
        try:
            together = self._encode(probe, "fp32").values.reshape(len(probe), -1)
        except RuntimeError as problem:
            if is_out_of_memory(problem):
                raise
            # Its output has other lengths than its convolutions gave.
            return math.inf
        return float((np.linalg.norm(together - alone, axis=1) / np.linalg.norm(alone, axis=1)).max())
