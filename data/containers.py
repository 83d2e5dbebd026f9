"""Sound in containers that libsndfile does not read, MP4, Matroska, WebM and AAC among them, by FFmpeg's libraries."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from amber2_core.errors import AudioError

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream
    from av.container import InputContainer

# Begin of a file → FFmpeg's demuxer. FFmpeg never guesses: it would take a damaged WAV or a text for something else,
# and a playlist would have it open other files.
_CONTAINERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb".{4}(ftyp|moov|mdat|wide|free|skip)", re.DOTALL), "mov"),
    (re.compile(rb"\x1aE\xdf\xa3"), "matroska"),
    # ADTS frames: MPEG-1's layers I to III have other bits here
    (re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), "aac"),
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), "avi"),
    (re.compile(rb"FLV\x01"), "flv"),
    (re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), "asf"),
    (re.compile(rb"\x00\x00\x01\xba"), "mpeg"),
    (re.compile(rb"G.{187}G", re.DOTALL), "mpegts"),
    (re.compile(rb"#!AMR"), "amr"),
)
HEAD_BYTES = 256  # enough to tell a container
# Their headers say how long all is; others are measured by their bit rate, which proves nothing.
_PROMISING = ("mov", "matroska")
# A header may promise a little more than there is: durations are rounded, and the last frame may be cut.
_SLACK_SECONDS = Fraction(1, 2)
# Timestamps of one stream that are farther apart than its samples leave a gap; less is rounding (Matroska's are whole
# milliseconds).
_GAP_SECONDS = Fraction(1, 10)
# What a decoder is given before the stretch that is wanted: overlapping windows, a bit reservoir and Opus's 80 ms.
_RUN_UP_SECONDS = 1
# MP4's timestamps count samples, and its index knows them all: there a stretch is found exactly. Elsewhere it is
# decoded from the beginning.
_SEEKABLE = ("mov",)
# Files whose packets have been counted: segments of one recording come one by one.
_REMEMBERED = 16_384

# A WAV file's header, its sample in bytes, and what it can hold of them.
_WAV = struct.Struct("<4sI4s4sIHHIIHH4sI")
_BYTES, _MOST_BYTES = 4, 2**32 - 1024

# Of FFmpeg's sample formats that are whole numbers.
_FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}

_Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Track:
    """The first audio stream of a file, on the clock of the file.

    The clock begins with the earliest stream: where the picture begins before the sound, samples before it are zero,
    so that times of annotations hold. (`ffmpeg video.mp4 sound.wav` writes none: its samples come early by as much.)
    """

    path: Path
    container: str
    # Hz
    samplerate: int
    # until the end of the last packet, as far as timestamps tell
    frames: int
    # s, of the earliest stream, on the clock of the container
    origin: Fraction

    def read(self, first: int, count: int) -> _Waveform:
        """(≤ `count`,) samples from the `first` on, channels averaged; fewer where the packets promised a little more.

        Raises:
            AudioError: they cannot be decoded, or there is much less.
        """
        found = np.zeros(count, np.float32)
        reached = 0
        for place, samples in self._stretch(first, count):
            found[place : place + len(samples)] = samples
            reached = max(reached, place + len(samples))
        return found[:reached]

    @property
    def is_quick(self) -> bool:
        """Whether a stretch is found without all that comes before it."""
        return self.container in _SEEKABLE

    def unpack(self, file: BinaryIO) -> None:
        """Write all samples as a WAV file of 32-bit floats, of which every stretch is found at once.

        Raises:
            AudioError: as `read`, or they are more than a WAV file holds.
        """
        if _BYTES * self.frames > _MOST_BYTES:
            raise AudioError(f"is too long to be unpacked: {self.frames / self.samplerate:,.0f} s")
        reached = 0
        for place, samples in self._stretch(0, self.frames):
            file.seek(_WAV.size + _BYTES * place)
            file.write(samples.tobytes())
            reached = max(reached, place + len(samples))
        size, rate = _BYTES * reached, self.samplerate
        file.seek(0)
        file.write(
            _WAV.pack(
                *(b"RIFF", _WAV.size - 8 + size, b"WAVE"),
                *(b"fmt ", 16, 3, 1, rate, _BYTES * rate, _BYTES, 8 * _BYTES),
                *(b"data", size),
            )
        )

    def _stretch(self, first: int, count: int) -> Iterator[tuple[int, _Waveform]]:
        """Samples of a stretch with their places in it. AudioError: as `read`."""
        reached, last = first, first + count
        with _opened(self.path, self.container) as (container, stream):
            for position, samples in self._decoded(container, stream, first):
                # what comes after a stretch tells that it is whole, and has no sample in it
                begin, end = min(max(position, first), last), min(position + len(samples), last)
                reached = max(reached, end)
                if begin <= end:
                    yield begin - first, samples[begin - position : end - position]
                if position + len(samples) >= last:
                    break
        if last - reached > _GAP_SECONDS * self.samplerate:
            raise AudioError(
                f"is truncated or damaged: it ends at {reached / self.samplerate:.2f} s, its packets promise "
                f"{self.frames / self.samplerate:.2f} s"
            )

    def _decoded(self, container: InputContainer, stream: AudioStream, first: int) -> Iterator[tuple[int, _Waveform]]:
        """Places of frames on the clock, in samples, and their samples, from some place before `first` on."""
        if self.container in _SEEKABLE and first > 2 * _RUN_UP_SECONDS * self.samplerate:
            begin = Fraction(first, self.samplerate) - _RUN_UP_SECONDS + self.origin
            container.seek(int(begin / (stream.time_base or Fraction(1, self.samplerate))), stream=stream)
        expected = 0
        for frame in container.decode(stream):
            if frame.sample_rate != self.samplerate:
                raise AudioError(
                    f"changes its sampling rate from {self.samplerate:,} to {frame.sample_rate:,} Hz midway"
                )
            position = self._position(frame, expected)
            yield position, _mono(frame)
            expected = position + frame.samples

    def _position(self, frame: AudioFrame, expected: int) -> int:
        """Where a frame begins, in samples: after the one before, unless its timestamp leaves a gap."""
        if frame.pts is None or frame.time_base is None:
            return expected
        position = round((frame.pts * frame.time_base - self.origin) * self.samplerate)
        gap = _GAP_SECONDS * self.samplerate if expected else 0
        return expected if abs(position - expected) <= gap else position


def container_of(head: bytes) -> str | None:
    """FFmpeg's name of the container that begins with these `HEAD_BYTES`; None: libsndfile's, or none at all."""
    return next((container for begin, container in _CONTAINERS if begin.match(head)), None)


def decoder() -> str:
    """What decodes containers, as far as it changes samples: the generation of FFmpeg's decoders."""
    import av

    return f"libavcodec {av.library_versions['libavcodec'][0]}"


def open_track(path: Path, container: str) -> Track:
    """The sound of a container; its packets are counted, not decoded.

    Raises:
        AudioError: it holds no sound, is truncated, encrypted or damaged, or of a codec that FFmpeg does not know.
        OSError: the system cannot read it.
    """
    status = path.stat()
    return _measured(path, container, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=_REMEMBERED)
def _measured(path: Path, container: str, _size: int, _changed: int) -> Track:
    with _opened(path, container) as (opened, stream):
        origin = max(Fraction(opened.start_time or 0, 1_000_000), Fraction(0))
        tick = stream.time_base or Fraction(1, stream.rate)
        end = end_of_sound = Fraction(0)
        for packet in opened.demux():
            if packet.stream is stream and packet.has_sidedata("encryption_info"):
                raise AudioError("is encrypted")
            if packet.pts is None or packet.time_base is None:
                continue
            last = (packet.pts + (packet.duration or 0)) * packet.time_base
            end = max(end, last)
            if packet.stream is stream:
                end_of_sound = max(end_of_sound, last)
        if container in _PROMISING:
            _check_whole(Fraction(opened.duration or 0, 1_000_000), end - origin)
            _check_whole((stream.duration or 0) * tick, end_of_sound - (stream.start_time or 0) * tick)
        if tick * stream.rate > 1:  # neither begin nor duration of the last packet is exact
            end_of_sound += 2 * tick
        return Track(path, container, stream.rate, max(0, round((end_of_sound - origin) * stream.rate)), origin)


def _check_whole(promised: Fraction, held: Fraction) -> None:
    if held + _SLACK_SECONDS < promised:
        raise AudioError(
            f"is truncated: its header promises {float(promised):.2f} s, it holds {max(0.0, float(held)):.2f} s"
        )


@contextmanager
def _opened(path: Path, container: str) -> Iterator[tuple[InputContainer, AudioStream]]:
    """A container and its first audio stream; what FFmpeg says of it is one line."""
    import av

    file: BinaryIO
    # By the open file: what FFmpeg takes for a path may be an address.
    with path.open("rb") as file:
        try:
            with av.open(file, "r", format=container) as opened:
                yield opened, _sound_of(opened)
        except av.error.FFmpegError as problem:
            said = problem.strerror or str(problem)
            raise AudioError(f"is truncated or damaged: FFmpeg cannot read it as {container} ({said})") from None


def _sound_of(opened: InputContainer) -> AudioStream:
    if not opened.streams.audio:
        raise AudioError("is a video without sound" if opened.streams.video else "holds no sound")
    stream = opened.streams.audio[0]
    context: Any = stream.codec_context
    if context is None:
        raise AudioError("holds sound of a codec that FFmpeg does not know")
    if context.codec_tag in ("drms", "enca"):
        raise AudioError("is encrypted")
    if not stream.rate:
        raise AudioError("is truncated or damaged: it does not say its sampling rate")
    return stream


def _mono(frame: AudioFrame) -> _Waveform:
    """(samples,), full scale 1."""
    values = frame.to_ndarray()  # (channels, samples), or (1, samples · channels) with the channels side by side
    if not frame.format.is_planar:
        values = values.reshape(frame.samples, -1).T
    if values.dtype == np.uint8:
        values = values.astype(np.int16) - 128
    scaled = values.astype(np.float32) / np.float32(_FULL_SCALE.get(frame.format.name.removesuffix("p"), 1))
    mono: _Waveform = scaled[0] if len(scaled) == 1 else scaled.mean(axis=0, dtype=np.float32)
    return mono
