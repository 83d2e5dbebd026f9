"""Waveforms go in; what the convolutions of a speech encoder make of each comes out, one at a time or all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .pooling import mask_of


class Convolutions:
    """The feature encoder of a transformers speech model.

    Its convolutions pad nothing, so that a frame that an utterance has alone never sees what is padded to it. Where
    they hold a group norm over time (wav2vec2-base among others) its statistics would: it is taken over each
    utterance's own frames. One at a time is what transformers gives to the last bit; all at once is what an
    accelerator needs, whose many units a single utterance of some seconds leaves idle.
    """

    def __init__(self, module: Any) -> None:
        """`module` is called as ever; of its layers, their convolutions' sizes must be known for a batch."""
        self._module = module
        self._layers: Sequence[Any] = list(getattr(module, "conv_layers", ()))
        # Whether all is understood that a batch needs.
        self.can_batch = bool(self._layers) and all(map(_is_plain, self._layers))

    def one_by_one(self, samples: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Waveforms, each (samples,) → (batch, channels, frames), zero beyond the number of frames of each."""
        frames = [self._module(one[None])[0].T for one in samples]  # each (frames, channels)
        return pad_sequence(frames, batch_first=True).transpose(1, 2), [len(frame) for frame in frames]

    def together(self, samples: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """As `one_by_one`."""
        lengths = [len(one) for one in samples]
        hidden = pad_sequence(list(samples), batch_first=True)[:, None]  # (batch, 1, samples)
        for layer in self._layers:
            (kernel,), (stride,) = layer.conv.kernel_size, layer.conv.stride
            lengths = [(length - kernel) // stride + 1 for length in lengths]
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                hidden = layer.activation(_normalized(norm, layer.conv(hidden), lengths))
            else:
                hidden = layer(hidden)
        valid = mask_of(lengths, device=hidden.device)  # (batch, frames)
        return hidden.masked_fill(~valid[:, None], 0), lengths


def _is_plain(layer: Any) -> bool:
    conv, norm = getattr(layer, "conv", None), getattr(layer, "layer_norm", None)
    return (
        isinstance(conv, nn.Conv1d)
        and conv.padding == (0,)
        and conv.dilation == (1,)
        and (norm is None or isinstance(norm, nn.GroupNorm | nn.LayerNorm))
        and hasattr(layer, "activation")
    )


def _normalized(norm: nn.GroupNorm, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
    """(batch, channels, frames), each utterance's own frames normalised by themselves, zeros beyond them."""
    # In float32 at least, as autocast has it, too.
    normalized = torch.zeros_like(hidden, dtype=torch.promote_types(hidden.dtype, torch.float32))
    for row, length in enumerate(lengths):
        normalized[row, :, :length] = norm(hidden[row : row + 1, :, :length])[0]
    return normalized
