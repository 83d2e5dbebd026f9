"""What makes an utterance of a batch come out as it does alone: masks, means, convolutions, and padding kept silent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from amber2_core.devices import on

# Given the valid frames of the batch to come, (batch, frames) bool or None, a block in which the model keeps to them.
Valid = Callable[[Tensor | None], AbstractContextManager[None]]


def mask_of(lengths: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """(batch, longest) bool, True at the first `lengths[i]` places of row i."""
    places = torch.arange(max(lengths), device=device)
    return places < on(torch.device(device), torch.tensor(lengths))[:, None]


def masked_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the valid places: Σ_t mask_t · h_t / Σ_t mask_t.

    Args:
        hidden: (batch, places, dimensions); what stands at invalid places, even NaN, does not count.
        mask: (batch, places) bool, at least one True in each row; None where all places are valid.

    Returns:
        (batch, dimensions), in float32 whatever the precision of `hidden`.
    """
    if mask is None:
        return hidden.float().mean(dim=1)
    valid = mask[..., None]  # (batch, places, 1)
    total = torch.where(valid, hidden, 0).sum(dim=1, dtype=torch.float32)  # (batch, dimensions)
    return total / valid.sum(dim=1)


def mean_and_deviation(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean and standard deviation over the valid places, μ ‖ √(Σ_t mask_t (h_t − μ)² / Σ_t mask_t).

    The deviation is that of these very places, not an estimate of others': of a single one it is 0. Arguments as of
    `masked_mean`; (batch, 2 · dimensions), in float32.
    """
    mean = masked_mean(hidden, mask)  # (batch, dimensions)
    return torch.cat([mean, masked_mean((hidden.float() - mean[:, None]).square(), mask).sqrt()], dim=1)


def first_place(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """What stands at the first place, such as [CLS]; arguments and result as of `masked_mean`."""
    return hidden[:, 0].float()


def last_place(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """What stands at the last valid place, which has seen all others in a causal model; as `masked_mean`."""
    if mask is None:
        return hidden[:, -1].float()
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, mask.sum(dim=1) - 1].float()


def binned(states: Tensor, most: int) -> Tensor:
    """A sequence in at most `most` bins: the means of stretches that differ by one place at most in length.

    Bin k of K holds the places ⌊kT/K⌋ to ⌊(k+1)T/K⌋; a sequence that is short enough stays as it is.

    Args:
        states: (T, dimensions).
        most: K.

    Returns:
        (min(T, K), dimensions) in float32.
    """
    places = len(states)
    if places <= most:
        return states.float()
    edges = torch.arange(most + 1, device=states.device) * places // most
    place = torch.arange(places, device=states.device)
    inside = (place >= edges[:-1, None]) & (place < edges[1:, None])  # (bins, places)
    # A product, not a scattered sum: its order is fixed on every device.
    return (inside / inside.sum(dim=1, keepdim=True)) @ states.float()


def trial_lengths(least: int, stride: int, *, period: int = 8, most: int = 100) -> list[int]:
    """Lengths of the inputs with which batches are tried: the shortest, the longest, and all remainders between.

    A frame is made of `stride` places, and a model may take frames together: SEW in pairs, others in fours or eights.
    Between the extremes are lengths of as many frames as follow one another as `period` says, from 4 on, each with
    another remainder of the stride.

    Args:
        least: places that make one frame.
        stride: places from one frame to the next.
        period: how many frames a model may take together.
        most: frames of the longest.
    """
    between = [
        least + frames * stride + (frames % period) * (stride - 1) // max(1, period - 1)
        for frames in range(4, 4 + period)
    ]
    return [least, *between, least + (most - 1) * stride]


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
