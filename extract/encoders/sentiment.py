"""Frozen classifiers of the sentiment of transcripts: negative, neutral or positive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..checkpoint import Checkpoint
from ..recipe import SENTIMENTS, Precision
from ..rows import Row
from .encoder import load_model
from .text import TextEncoder, Tokenizer


class SentimentClassifier(TextEncoder):
    """A frozen text classifier with its tokenizer.

    `encode` takes token ids of each transcript, at least one; a row is (3,) probabilities in the order of `SENTIMENTS`,
    the softmax over all of the classifier's outputs. A sentiment that is none of its outputs has 0.
    """

    def __init__(self, checkpoint: Checkpoint, *, labels: Sequence[str], **settings: Any) -> None:
        """Load a checkpoint whose outputs are the sentiments `labels`, in that order; the rest as of `Encoder`."""
        self._places = [SENTIMENTS.index(label) for label in labels]
        super().__init__(checkpoint, **settings)

    def _loaded(self, checkpoint: Checkpoint) -> Any:
        return load_model(checkpoint, self.device, classifies=True)

    def _set_up(self, checkpoint: Checkpoint) -> None:
        self.tokenizer = Tokenizer(checkpoint, self._model.base_model)

    @torch.inference_mode()
    def _encode(self, inputs: Sequence[Sequence[int]], precision: Precision) -> list[Row]:
        logits = self._output(inputs, precision).logits.float()  # (batch, outputs)
        sentiment = logits.new_zeros(len(logits), len(SENTIMENTS))
        sentiment[:, self._places] = logits.softmax(-1)
        return [Row(one) for one in sentiment.cpu().numpy()]
