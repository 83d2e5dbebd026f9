"""Batches go in; what an encoder makes of them comes out, in pieces where the whole does not fit into its memory."""

from __future__ import annotations

import ctypes
import logging
import math
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from amber2_core.devices import is_out_of_memory
from amber2_core.errors import ModelError

from .encoded import Encoded, join

_log = logging.getLogger(__name__)


class BatchEncoder(Protocol):
    """What has a device and encodes batches of things that have a length."""

    device: torch.device

    def encode_batch(self, inputs: Sequence[Any]) -> Encoded:
        """One row per input."""


class Halving:
    """An encoder that halves what does not fit, and remembers what did not."""

    def __init__(self, encoder: BatchEncoder) -> None:
        self._encoder = encoder
        # the largest batch that may fit, padding included, in samples or tokens
        self._most = math.inf

    def __call__(self, inputs: Sequence[Any]) -> Encoded:
        """Encode a batch.

        Raises:
            ModelError: a single utterance does not fit, or the device lacks an operation.
        """
        if len(inputs) == 1 or _size(inputs) <= self._most:
            encoded = self._tried(inputs)
            if encoded is not None:
                return encoded
        half = (len(inputs) + 1) // 2
        return join([self(inputs[:half]), self(inputs[half:])])

    def _tried(self, inputs: Sequence[Any]) -> Encoded | None:
        """None where it does not fit; outside of the handler, so that the error no longer holds what it had begun."""
        device = self._encoder.device
        try:
            return self._encoder.encode_batch(inputs)
        except NotImplementedError as problem:
            if device.type != "mps":
                raise
            line = str(problem).split(". ")[0]
            raise ModelError(
                f"{line}: set PYTORCH_ENABLE_MPS_FALLBACK=1 in the environment, or use --device cpu"
            ) from problem
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
        if len(inputs) == 1:
            raise ModelError(
                f"{device} has too little memory for one utterance alone ({len(inputs[0]):,} samples or tokens): use "
                "--max-seconds, --precision bf16 or another --device; what is encoded so far is kept"
            )
        half = (len(inputs) + 1) // 2
        self._most = min(self._most, _size(inputs[:half]), _size(inputs) - 1)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif device.type == "mps":
            torch.mps.empty_cache()
        _log.info(
            "%s ran out of memory with a batch of %d: it is halved, and so are others as large", device, len(inputs)
        )
        return None


def give_back() -> None:
    """Give memory that is free, but lies between what is not, back to the system, where the C library can (glibc's).

    Without it a process that encodes for hours grows: what small things outlive a batch keep the room between them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _size(inputs: Sequence[Any]) -> int:
    return len(inputs) * max(len(one) for one in inputs)
