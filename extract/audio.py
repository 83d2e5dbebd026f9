"""Recordings and excerpts of them as mono waveforms at the sampling rate of an encoder."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import soundfile

from amber2_core.errors import AudioError

from .recipe import KAISER_BEST, Resampler

if TYPE_CHECKING:
    import torch

Waveform = npt.NDArray[np.float32]  # (samples,)

# Slower recordings hold no speech; the fastest converters make 768 kHz.
LOWEST_RATE, HIGHEST_RATE = 4_000, 768_000
# Self-attention over ten minutes of speech is 30,000 × 30,000 per head: longer ones would end the process, not fail.
LONGEST_SECONDS = 600.0
# torchaudio's filter bank has about old · new / gcd² taps; 10,007 Hz → 16 kHz, say, would take gigabytes.
_MOST_TAPS = 50_000_000
# A WAV header may overstate its data by some padding; tools that write to a pipe promise 2 or 4 GiB.
_SLACK_BYTES, _STREAM_BYTES = 1024, 0x7FFF_0000
_NO_FILE = "is a folder, a pipe or a device, not a file"


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A stretch of a recording."""

    path: Path
    # seconds; None: from the beginning
    start: float | None = None
    # seconds; None: to the end
    duration: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the recording."""
        return self.start is None and self.duration is None


def read_waveform(
    excerpt: Excerpt,
    *,
    sampling_rate: int,
    max_seconds: float | None = None,
    resampler: Resampler = KAISER_BEST,
) -> Waveform:
    """Decode an excerpt, mix its channels down and resample it.

    Args:
        excerpt: what to read; a duration that reaches beyond the recording ends where the recording ends.
        sampling_rate: Hz of the result.
        max_seconds: what is longer is cut off at the end.
        resampler: how another sampling rate becomes `sampling_rate`.

    Returns:
        (samples,) float32.

    Raises:
        AudioError: with the reason why the excerpt is of no use; the line begins with the file's name. Its cause is
            what the system said, where it is the system that cannot read the file.
    """
    waveform, rate = _decode(excerpt, max_seconds)
    try:
        return resample(waveform, old_rate=rate, new_rate=sampling_rate, resampler=resampler)
    except AudioError as problem:
        raise AudioError(f"{excerpt.path.name}: {problem}") from None


def seconds_of(excerpt: Excerpt) -> float:
    """How long an excerpt is, from the file's header alone.

    Raises:
        AudioError: as `read_waveform`, as far as the header tells.
    """
    with _opened(excerpt.path) as recording:
        return float(_stretch(recording, excerpt)[1] / recording.samplerate)


def resample(waveform: Waveform, *, old_rate: int, new_rate: int, resampler: Resampler = KAISER_BEST) -> Waveform:
    """(samples,) at `old_rate` Hz → (⌈samples · new_rate / old_rate⌉,) at `new_rate` Hz.

    Raises:
        AudioError: the two rates have almost no common divisor, so that the filter bank would be enormous.
    """
    if old_rate == new_rate:
        return waveform
    divisor = math.gcd(old_rate, new_rate)
    if old_rate // divisor * (new_rate // divisor) > _MOST_TAPS:
        raise AudioError(
            f"has an odd sampling rate of {old_rate:,} Hz: convert it to {new_rate:,} Hz with an audio tool"
        )
    return _resampling(resampler, old_rate, new_rate)(waveform)


def _decode(excerpt: Excerpt, max_seconds: float | None) -> tuple[Waveform, int]:
    """Mono samples of an excerpt, and their rate in Hz."""
    with _opened(excerpt.path) as recording:
        rate = recording.samplerate
        first, count = _stretch(recording, excerpt)
        if max_seconds is not None:
            count = min(count, round(max_seconds * rate))
        if count > LONGEST_SECONDS * rate:
            raise AudioError(
                f"is {count / rate:,.0f} s long, more than {LONGEST_SECONDS:,.0f} s: cut it into utterances, "
                "or use --max-seconds"
            )
        recording.seek(first)
        channels = recording.read(count, dtype="float32", always_2d=True)  # (samples, channels)
        waveform: Waveform = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)
        _check_samples(waveform)
        return np.ascontiguousarray(waveform), rate


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """A recording open for reading; whatever goes wrong inside is an `AudioError` that begins with the file's name."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(_NO_FILE)
        if status.st_size == 0:
            raise AudioError("is empty (0 bytes)")
        with soundfile.SoundFile(os.fsencode(path)) as recording:  # names need not be UTF-8
            if not LOWEST_RATE <= recording.samplerate <= HIGHEST_RATE:
                rates = f"{LOWEST_RATE:,} and {HIGHEST_RATE:,} Hz"
                raise AudioError(f"has a sampling rate of {recording.samplerate:,} Hz, expected between {rates}")
            _check_whole(recording)
            yield recording
    except AudioError as problem:
        raise AudioError(f"{path.name}: {problem}") from None
    except OSError as problem:
        raise AudioError(f"{path.name}: {problem.strerror or problem}") from problem
    except (soundfile.SoundFileError, RuntimeError, TypeError) as problem:
        reason = getattr(problem, "error_string", str(problem)).rstrip(". ")
        raise AudioError(f"{path.name}: cannot be decoded ({reason})") from None


def _stretch(recording: soundfile.SoundFile, excerpt: Excerpt) -> tuple[int, int]:
    """First sample and number of samples of an excerpt, at the recording's own rate."""
    rate, total = recording.samplerate, recording.frames
    first = 0 if excerpt.start is None else round(excerpt.start * rate)
    count = total - first if excerpt.duration is None else min(round(excerpt.duration * rate), total - first)
    if total == 0:
        raise AudioError("holds no sample")
    if first < 0 or count <= 0:
        raise AudioError(
            f"has no sample between {excerpt.start or 0:g} s and "
            f"{'its end' if excerpt.duration is None else f'{(excerpt.start or 0) + excerpt.duration:g} s'}: "
            f"it is {total / rate:.2f} s long"
        )
    return first, count


def _check_whole(recording: soundfile.SoundFile) -> None:
    """libsndfile reads what is left of a truncated WAV file as if it were all; only its log tells."""
    sizes = re.search(r"^data *: (\d+) \(should be (\d+)\)", recording.extra_info, re.MULTILINE)
    if sizes is None:
        return
    promised, held = int(sizes[1]), int(sizes[2])
    if held + _SLACK_BYTES < promised < _STREAM_BYTES:
        raise AudioError(f"is truncated: its header promises {promised:,} bytes of sound, it holds {held:,}")


def _check_samples(waveform: Waveform) -> None:
    if len(waveform) == 0:
        raise AudioError("holds no sample, although its header promises some")
    if not np.isfinite(waveform).all():
        raise AudioError("holds samples that are not finite (NaN or infinite)")
    if not waveform.any():
        raise AudioError("is silent: every sample is zero")


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
