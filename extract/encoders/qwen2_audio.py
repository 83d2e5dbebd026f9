"""The frozen tower of Qwen2-Audio, a Whisper whose attention looks at what is valid alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .whisper import WhisperEncoder


class Qwen2AudioEncoder(WhisperEncoder):
    """The encoder of speech of Qwen2-Audio (Chu et al. 2024, arXiv 2407.10759, §2).

    Under the mask that its own model gives it, a window as trained and one that fits differ only at the last place. Its
    last hidden states are means of two places, normalised; so that all layers have the same places, those of the other
    layers are means of two here.
    """

    def _valid_places(self, samples: int) -> int:
        return max(1, super()._valid_places(samples) // 2)

    def _attention_mask(self, hidden: Tensor, samples: Sequence[int]) -> Tensor | None:
        from transformers.masking_utils import create_bidirectional_mask

        valid = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        for row, one in enumerate(samples):
            valid[row, : super()._valid_places(one)] = 1
        mask: Any = create_bidirectional_mask(config=self._model.config, inputs_embeds=hidden, attention_mask=valid)
        return mask  # type: ignore[no-any-return]

    def _finished(self, states: Sequence[Tensor]) -> Sequence[Tensor]:
        halved = [self._model.avg_pooler(state.transpose(1, 2)).transpose(1, 2) for state in states]
        return super()._finished(halved)
