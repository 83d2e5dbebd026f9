"""Excerpts of recordings as mono waveforms at the sampling rate of an encoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from amber2_core.errors import AudioError
from amber2_data.sound import Excerpt, Waveform, check_rates, decode

from .recipe import KAISER_BEST, Resampler

if TYPE_CHECKING:
    import torch


def read_waveform(
    excerpt: Excerpt,
    *,
    sampling_rate: int,
    max_seconds: float | None = None,
    resampler: Resampler = KAISER_BEST,
) -> Waveform:
    """Decode an excerpt, mix its channels down and resample it.

    Args:
        excerpt: what to read; what reaches a little beyond the recording ends where the recording ends.
        sampling_rate: Hz of the result.
        max_seconds: what is longer is cut off at the end.
        resampler: how another sampling rate becomes `sampling_rate`.

    Returns:
        (samples,) float32.

    Raises:
        AudioError: with the reason why the excerpt is of no use; the line begins with the file's name. Its cause is
            what the system said, where it is the system that cannot read the file.
    """
    waveform, rate = decode(excerpt, max_seconds=max_seconds)
    try:
        return resample(waveform, old_rate=rate, new_rate=sampling_rate, resampler=resampler)
    except AudioError as problem:
        raise AudioError(f"{excerpt.path.name}: {problem}") from None


def resample(waveform: Waveform, *, old_rate: int, new_rate: int, resampler: Resampler = KAISER_BEST) -> Waveform:
    """(samples,) at `old_rate` Hz → (⌈samples · new_rate / old_rate⌉,) at `new_rate` Hz.

    Raises:
        AudioError: the two rates have almost no common divisor, so that the filter bank would be enormous.
    """
    if old_rate == new_rate:
        return waveform
    check_rates(old_rate, new_rate)
    return _resampling(resampler, old_rate, new_rate)(waveform)


@lru_cache(maxsize=16)
def _resampling(resampler: Resampler, old_rate: int, new_rate: int) -> Callable[[Waveform], Waveform]:
    # Imported here: whoever reads lengths alone never needs torch.
    import torch
    import torchaudio

    # The transform, not torchaudio.functional.resample: same filter, but its taps are computed in double precision.
    transform = torchaudio.transforms.Resample(
        old_rate,
        new_rate,
        resampling_method=resampler.method,
        lowpass_filter_width=resampler.lowpass_filter_width,
        rolloff=resampler.rolloff,
        beta=resampler.beta,
    )

    @torch.inference_mode()
    def resample(waveform: Waveform) -> Waveform:
        resampled: torch.Tensor = transform(torch.from_numpy(waveform))
        return np.asarray(resampled.numpy())

    return resample
