"""Writes sound and videos in the containers and codecs of FFmpeg."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

FRAMES_PER_SECOND = 25


def tone_and_noise(seconds: float, rate: int, *, seed: int = 0) -> Floats:
    """Sound of which no stretch is like another, exact in 16 bits."""
    times = np.arange(round(seconds * rate)) / rate
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 150 * times) * times)
    sound = sweep + 0.02 * np.random.default_rng(seed).standard_normal(len(times))
    return (np.round(sound * 2**15) / 2**15).astype(np.float32)


def write_media(
    path: Path,
    samples: Floats | None,
    *,
    codec: str = "aac",
    rate: int = 44_100,
    container: str | None = None,
    picture: float = 0.0,
    late: float = 0.0,
    settings: dict[str, str] | None = None,
) -> Path:
    """Encode mono sound, or none.

    Args:
        path: whose suffix says the container, unless that is given.
        samples: at `rate` Hz.
        codec: FFmpeg's name of an encoder.
        rate: Hz.
        container: FFmpeg's name of a muxer.
        picture: seconds of a grey picture beside the sound, from 0 on.
        late: seconds at which the sound begins.
        settings: of the muxer.
    """
    import av

    with av.open(str(path), "w", format=container, options=settings or {}) as file:
        if picture:
            video = file.add_stream("libvpx" if path.suffix == ".webm" else "mpeg4", rate=FRAMES_PER_SECOND)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        if samples is not None:
            sound = file.add_stream(codec, rate=rate, layout="mono")
            context = sound.codec_context
            size = context.frame_size or 1024
            resampler = av.AudioResampler(format=context.format.name, layout="mono", rate=rate, frame_size=size)
        if picture:
            for number in range(round(picture * FRAMES_PER_SECOND)):
                image = av.VideoFrame.from_ndarray(np.full((96, 64), 128, np.uint8), format="yuv420p")
                image.pts = number
                file.mux(video.encode(image))
            file.mux(video.encode(None))
        if samples is not None:
            for first in range(0, len(samples), size):
                part = av.AudioFrame.from_ndarray(samples[None, first : first + size], format="flt", layout="mono")
                part.sample_rate, part.time_base, part.pts = rate, Fraction(1, rate), first + round(late * rate)
                for ready in resampler.resample(part):
                    file.mux(sound.encode(ready))
            for ready in resampler.resample(None):
                file.mux(sound.encode(ready))
            file.mux(sound.encode(None))
    return path
