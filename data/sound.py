"""Whether a recording can be read, and its samples: what is asked of a corpus before and while it is encoded."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import soundfile

from amber2_core.errors import AudioError

from .containers import HEAD_BYTES, Track, container_of, decoder, open_track

Waveform = npt.NDArray[np.float32]  # (samples,)
Recording: TypeAlias = "soundfile.SoundFile | Track"
Opened = TypeVar("Opened", soundfile.SoundFile, Track)

# Under these names recordings are looked for; of several of one stem, the first.
SUFFIXES = (
    *(".wav", ".flac", ".aif", ".aiff", ".au", ".w64", ".caf", ".ogg", ".oga", ".opus", ".mp3"),
    *(".m4a", ".aac", ".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mka", ".mkv", ".avi", ".flv", ".wma", ".wmv"),
    *(".mpg", ".mpeg", ".ts", ".amr"),
)

# Slower recordings hold no speech; the fastest converters make 768 kHz.
LOWEST_RATE, HIGHEST_RATE = 4_000, 768_000
# Self-attention over ten minutes of speech is 30,000 × 30,000 per head: longer ones would end the process, not fail.
LONGEST_SECONDS = 600.0
# An interval may reach this far beyond its recording: the clocks of annotations are rounded.
OVERHANG_SECONDS = 0.1
# What wav2vec 2.0 and its kin take, and the fewest samples that make a frame of theirs.
ENCODER_RATE, LEAST_SAMPLES = 16_000, 400
# torchaudio's filter bank has about old · new / gcd² taps; 10,007 Hz → 16 kHz, say, would take gigabytes.
_MOST_TAPS = 50_000_000
# A WAV header may overstate its data by some padding; tools that write to a pipe promise 2 or 4 GiB.
_SLACK_BYTES, _STREAM_BYTES = 1024, 0x7FFF_0000
# in the log of libsndfile: what chunks of WAV, AIFF, AU, RF64 and W64 files promise, and what they hold
_SIZES = re.compile(r"^ *(?:data|SSND|Data Size|Riff size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_NO_FILE = "is a folder, a pipe or a device, not a file"
# what files begin with that stand under the name of a recording and are something else
_POINTER = b"version https://git-lfs"
_IMPOSTORS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(re.escape(_POINTER)), "is a Git LFS pointer, not sound: run `git lfs pull` in the clone"),
    (re.compile(rb"(\.\./)*(\.git)?/?annex/objects/"), "is a git-annex pointer, not sound: run `git annex get`"),
    (re.compile(rb"\x00\x05\x16[\x00\x07]"), "is an AppleDouble file, macOS's notes on another file, not sound"),
    (
        re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|!--|\?xml)", re.IGNORECASE),
        "is an HTML or XML page, not sound: the download failed or asked for a login",
    ),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "is a packed archive, not sound: unpack it"),
)


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


def seconds_of(excerpt: Excerpt) -> float:
    """How long an excerpt is, from the file's header alone.

    Raises:
        AudioError: as `decode`, as far as the header tells.
    """
    with _opened(excerpt.path) as recording:
        return float(_stretch(recording, excerpt)[1] / recording.samplerate)


def check_excerpt(
    excerpt: Excerpt,
    *,
    decoded: bool,
    max_seconds: float | None = None,
    sampling_rate: int = ENCODER_RATE,
    least_samples: int = LEAST_SAMPLES,
) -> float:
    """Ask of an excerpt all that stage 1 asks before an encoder gets it.

    Args:
        excerpt: what would be encoded.
        decoded: read all of it, too; else the file's header and size alone.
        max_seconds: what is longer would be cut off at the end.
        sampling_rate: of the encoder, in Hz.
        least_samples: that make a frame of the encoder's.

    Returns:
        Its length in seconds, uncut.

    Raises:
        AudioError: with the reason why it is of no use; the line begins with the file's name.
    """
    with _opened(excerpt.path) as recording:
        rate = recording.samplerate
        first, count = _wanted(recording, excerpt, max_seconds)
        if decoded:  # a header may promise more than there is
            count = len(_read(recording, first, count))
        check_rates(rate, sampling_rate)
        check_samples(-(-count * sampling_rate // rate), least_samples, sampling_rate)
        return float(_stretch(recording, excerpt)[1] / rate)


def can_be_read(path: Path) -> bool:
    """Whether a recording is of use as a whole; all of it is decoded."""
    try:
        check_excerpt(Excerpt(path), decoded=True)
    except AudioError:
        return False
    return True


def decode(excerpt: Excerpt, *, max_seconds: float | None = None) -> tuple[Waveform, int]:
    """Mono samples of an excerpt, and their rate in Hz.

    Args:
        excerpt: what to read; what reaches beyond the recording by no more than `OVERHANG_SECONDS` ends with it.
        max_seconds: what is longer is cut off at the end.

    Raises:
        AudioError: with the reason why the excerpt is of no use; the line begins with the file's name. Its cause is
            what the system said, where it is the system that cannot read the file.
    """
    with _opened(excerpt.path) as recording:
        return _read(recording, *_wanted(recording, excerpt, max_seconds)), recording.samplerate


def unpacked(path: Path, file: BinaryIO) -> bool:
    """Whether a recording is one of which every stretch is decoded from the beginning, and now stands in `file` as WAV.

    The samples are the same; of other recordings nothing is written.

    Raises:
        AudioError: as `decode`.
    """
    with _opened(path) as recording:
        if not isinstance(recording, Track) or recording.is_quick:
            return False
        recording.unpack(file)
        return True


def check_rates(old_rate: int, new_rate: int) -> None:
    """See that one sampling rate can become another.

    Raises:
        AudioError: the two have almost no common divisor, so that the filter bank would be enormous.
    """
    divisor = math.gcd(old_rate, new_rate)
    if old_rate // divisor * (new_rate // divisor) > _MOST_TAPS:
        raise AudioError(
            f"has an odd sampling rate of {old_rate:,} Hz: convert it to {new_rate:,} Hz with an audio tool"
        )


def check_samples(count: int, least: int, sampling_rate: int) -> None:
    """See that there are samples for at least one frame of an encoder.

    Raises:
        AudioError: there are fewer than `least`.
    """
    if count < least:
        raise AudioError(f"is too short: {count} samples at {sampling_rate:,} Hz make no frame, {least} would")


def recordings_among(names: Iterable[str]) -> dict[str, str]:
    """Stem → name of what is called like a recording; of several the first by `SUFFIXES`, hidden files left out."""
    found: dict[str, tuple[int, str]] = {}
    for name in sorted(names):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES and name[0] != ".":
            ranked = (SUFFIXES.index(suffix.lower()), name)
            found[stem] = min(found.get(stem, ranked), ranked)
    return {stem: name for stem, (_, name) in found.items()}


def decoder_of(path: Path) -> str:
    """What decodes a recording, where that may change its samples; empty text for what libsndfile reads.

    Raises:
        AudioError: the system cannot read it; the line begins with the file's name.
    """
    try:
        return decoder() if container_of(_head(path)) else ""
    except OSError as problem:
        raise AudioError(f"{path.name}: {problem.strerror or problem}") from problem


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in place of one that lies in Git LFS."""
    try:
        return path.stat().st_size <= 1024 and _head(path).startswith(_POINTER)
    except OSError:  # whoever reads the recording says what is wrong with it
        return False


@contextmanager
def _opened(path: Path) -> Iterator[Recording]:
    """A recording open for reading; whatever goes wrong inside is an `AudioError` that begins with the file's name."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(_NO_FILE)
        if status.st_size == 0:
            raise AudioError("is empty (0 bytes)")
        if container := container_of(_head(path)):
            yield _in_range(open_track(path, container))
        else:
            with soundfile.SoundFile(os.fsencode(path)) as recording:  # names need not be UTF-8
                _check_whole(_in_range(recording))
                yield recording
    except AudioError as problem:
        raise AudioError(f"{path.name}: {problem}") from None
    except OSError as problem:
        raise AudioError(f"{path.name}: {problem.strerror or problem}") from problem
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as problem:
        raise AudioError(f"{path.name}: {_impostor(path) or _undecodable(problem)}") from None


def _in_range(recording: Opened) -> Opened:
    if not LOWEST_RATE <= recording.samplerate <= HIGHEST_RATE:
        rates = f"{LOWEST_RATE:,} and {HIGHEST_RATE:,} Hz"
        raise AudioError(f"has a sampling rate of {recording.samplerate:,} Hz, expected between {rates}")
    return recording


def _undecodable(problem: Exception) -> str:
    return f"cannot be decoded ({getattr(problem, 'error_string', str(problem)).rstrip('. ')})"


def _impostor(path: Path) -> str:
    """What a file is that is no recording, empty text if that cannot be told."""
    try:
        head = _head(path)
    except OSError:
        return ""
    return next((what for begin, what in _IMPOSTORS if begin.match(head)), "")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if head.startswith(b"ID3") and len(head) == HEAD_BYTES:  # a tag before the sound, MP3 or AAC; 7 bits to a byte
            file.seek(10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10]))))
            return file.read(HEAD_BYTES)
        return head


def _stretch(recording: Recording, excerpt: Excerpt) -> tuple[int, int]:
    """First sample and number of samples of an excerpt, at the recording's own rate."""
    rate, total = recording.samplerate, recording.frames
    start = excerpt.start or 0.0
    first = round(start * rate)
    if total == 0:
        raise AudioError("holds no sample")
    end = total if excerpt.duration is None else first + round(excerpt.duration * rate)
    if first < 0 or end <= first or first >= total:
        raise AudioError(
            f"has no sample between {start:g} s and "
            f"{'its end' if excerpt.duration is None else f'{start + excerpt.duration:g} s'}: "
            f"it is {total / rate:.2f} s long"
        )
    if end - total > OVERHANG_SECONDS * rate:
        raise AudioError(f"ends at {total / rate:.2f} s, within the segment from {start:g} to {end / rate:g} s")
    return first, min(end, total) - first


def _wanted(recording: Recording, excerpt: Excerpt, max_seconds: float | None) -> tuple[int, int]:
    """First sample and number of samples of what is to be encoded of an excerpt."""
    rate = recording.samplerate
    first, count = _stretch(recording, excerpt)
    if max_seconds is not None:
        count = min(count, round(max_seconds * rate))
    if count > LONGEST_SECONDS * rate:
        raise AudioError(
            f"is {count / rate:,.0f} s long, more than {LONGEST_SECONDS:,.0f} s: cut it into utterances, "
            "or use --max-seconds"
        )
    return first, count


def _read(recording: Recording, first: int, count: int) -> Waveform:
    if isinstance(recording, Track):
        waveform: Waveform = recording.read(first, count)
    else:
        waveform = _read_file(recording, first, count)
    _check_waveform(waveform)
    return np.ascontiguousarray(waveform)


def _read_file(recording: soundfile.SoundFile, first: int, count: int) -> Waveform:
    if first:  # some codecs cannot seek, not even to where they are
        recording.seek(first)
    channels = recording.read(count, dtype="float32", always_2d=True)  # (samples, channels)
    waveform: Waveform = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)
    return waveform


def _check_whole(recording: soundfile.SoundFile) -> None:
    """libsndfile reads what is left of a truncated file as if it were all; only its log tells."""
    sizes = _SIZES.search(recording.extra_info)
    if sizes is None:
        return
    promised, held = int(sizes[1]), int(sizes[2])
    if held + _SLACK_BYTES < promised < _STREAM_BYTES:
        raise AudioError(f"is truncated: its header promises {promised:,} bytes of sound, it holds {held:,}")


def _check_waveform(waveform: Waveform) -> None:
    if len(waveform) == 0:
        raise AudioError("holds no sample, although its header promises some")
    if not np.isfinite(waveform).all():
        raise AudioError("holds samples that are not finite (NaN or infinite)")
    if not waveform.any():
        raise AudioError("is silent: every sample is zero")
