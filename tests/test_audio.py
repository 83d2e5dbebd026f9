"""Any recording becomes a mono waveform at the encoder's rate, or is refused with the reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from amber2_core.errors import AudioError
from amber2_core.files import sha256_of
from amber2_data.sound import Excerpt, seconds_of
from amber2_extract.audio import read_waveform, resample
from amber2_extract.recipe import Resampler

Samples = npt.NDArray[np.floating[Any]]


def _write(path: Path, samples: Samples, rate: int, **settings: Any) -> Path:
    soundfile.write(path, samples, rate, **settings)
    return path


def _read(path: Path, **settings: Any) -> npt.NDArray[np.float32]:
    start, duration = settings.pop("start", None), settings.pop("duration", None)
    return read_waveform(Excerpt(path, start, duration), sampling_rate=16_000, **settings)


def _tone(frequency: float, rate: int, seconds: float = 1.0) -> npt.NDArray[np.float32]:
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def _decibels(samples: Samples) -> float:
    """Level of the middle of a signal against a sine of amplitude one."""
    middle = np.asarray(samples, dtype=np.float64)[len(samples) // 8 : -(len(samples) // 8)]
    return float(20 * np.log10(np.sqrt(2 * np.mean(middle**2)) + 1e-15))


@pytest.fixture
def speech() -> npt.NDArray[np.float32]:
    """One second that stays below full scale."""
    return np.clip(np.random.default_rng(0).standard_normal(16_000) * 0.1, -0.9, 0.9).astype(np.float32)


# --- decoding ---


@pytest.mark.parametrize(
    ("suffix", "subtype", "error"),
    [
        ("wav", "PCM_16", 2**-15),
        ("wav", "PCM_U8", 2**-7),
        ("wav", "PCM_24", 2**-23),
        ("wav", "FLOAT", 0),
        ("wav", "DOUBLE", 0),
        ("flac", "PCM_16", 2**-15),
    ],
)
def test_samples_are_what_was_written(
    suffix: str, subtype: str, error: float, speech: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    waveform = _read(_write(tmp_path / f"a.{suffix}", speech, 16_000, subtype=subtype))
    assert waveform.dtype == np.float32
    assert np.abs(waveform - speech).max() <= error


def test_a_file_is_read_by_its_content_not_by_its_suffix(tmp_path: Path) -> None:
    tone = _tone(440, 16_000)
    mislabelled = _write(tmp_path / "a.mp3", tone, 16_000).rename(tmp_path / "a.wav")
    assert np.corrcoef(_read(mislabelled)[: len(tone)], tone)[0, 1] > 0.999


@pytest.mark.parametrize("channels", [2, 8])
def test_channels_are_averaged(channels: int, speech: npt.NDArray[np.float32], tmp_path: Path) -> None:
    weights = np.arange(channels) / channels
    path = _write(tmp_path / "a.wav", speech[:, None] * weights, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(_read(path), speech * weights.mean(), atol=1e-7)


def test_an_excerpt_is_a_stretch_of_the_recording(speech: npt.NDArray[np.float32], tmp_path: Path) -> None:
    path = _write(tmp_path / "a.wav", speech, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(_read(path, start=0.25, duration=0.5), speech[4_000:12_000])
    np.testing.assert_array_equal(_read(path, start=0.9, duration=0.19), speech[14_400:])
    np.testing.assert_array_equal(_read(path, max_seconds=0.1), speech[:1_600])
    np.testing.assert_array_equal(_read(path, start=0.5, max_seconds=0.1), speech[8_000:9_600])
    assert seconds_of(Excerpt(path)) == 1
    assert seconds_of(Excerpt(path, 0.25)) == 0.75
    assert seconds_of(Excerpt(path, 0.75, 0.3)) == 0.25


@pytest.mark.parametrize(("start", "duration"), [(0.9, 0.21), (0.5, 8.0), (None, 1.2)])
def test_an_excerpt_that_reaches_beyond_the_recording_is_refused(
    start: float | None, duration: float, speech: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    path = _write(tmp_path / "a.wav", speech, 16_000)
    with pytest.raises(AudioError, match=r"^a\.wav: ends at 1\.00 s, within the segment from "):
        _read(path, start=start, duration=duration)
    with pytest.raises(AudioError, match="within the segment"):
        seconds_of(Excerpt(path, start, duration))


@pytest.mark.parametrize(("start", "duration"), [(1.0, None), (2.5, 1.0), (-0.5, None), (0.5, 0.0)])
def test_an_excerpt_outside_the_recording_is_refused(
    start: float, duration: float | None, speech: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    path = _write(tmp_path / "a.wav", speech, 16_000)
    with pytest.raises(AudioError, match=r"^a\.wav: has no sample between .* it is 1\.00 s long$"):
        _read(path, start=start, duration=duration)
    with pytest.raises(AudioError, match=r"has no sample between"):
        seconds_of(Excerpt(path, start, duration))


# --- what is refused ---


def _nothing(path: Path, speech: Samples) -> None:
    path.write_bytes(b"")


def _prose(path: Path, speech: Samples) -> None:
    path.write_text("This is not a recording. " * 50)


def _beginning(head: bytes) -> Any:
    return lambda path, speech: path.write_bytes(head.ljust(1000, b" "))


def _truncated(path: Path, speech: Samples) -> None:
    _write(path, speech, 16_000)
    path.write_bytes(path.read_bytes()[:16_000])


def _header_only(path: Path, speech: Samples) -> None:
    _write(path, speech[:0], 16_000)


def _truncated_flac(path: Path, speech: Samples) -> None:
    soundfile.write(path, speech, 16_000, format="FLAC")
    path.write_bytes(path.read_bytes()[:16_000])


def _silence(path: Path, speech: Samples) -> None:
    _write(path, np.zeros_like(speech), 16_000)


def _with(value: float) -> Any:
    def spoil(path: Path, speech: Samples) -> None:
        spoiled = speech.copy()
        spoiled[777] = value
        _write(path, spoiled, 16_000, subtype="FLOAT")

    return spoil


def _at_rate(rate: int) -> Any:
    return lambda path, speech: _write(path, speech[:500], rate)


def _ten_hours(path: Path, speech: Samples) -> None:
    """A header that promises ten hours, and a file full of holes."""
    _write(path, speech, 16_000)
    with path.open("r+b") as file:
        header = bytearray(file.read(44))
        size = 36_000 * 16_000 * 2
        header[40:44] = size.to_bytes(4, "little")
        header[4:8] = (size + 36).to_bytes(4, "little")
        file.seek(0)
        file.write(header)
        file.truncate(size + 44)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_nothing, r"is empty \(0 bytes\)"),
        (_prose, r"cannot be decoded \(.*[Ff]ormat.*\)"),
        (
            _beginning(b"version https://git-lfs.github.com/spec/v1\noid sha256:"),
            "is a Git LFS pointer, .* `git lfs pull`.*",
        ),
        (_beginning(b"../.git/annex/objects/x/y"), "is a git-annex pointer, not sound: .*"),
        (_beginning(b"\xef\xbb\xbf\n<!DOCTYPE html><html>"), "is an HTML or XML page, not sound: .*"),
        (_beginning(b"<?xml version='1.0'?><Error>"), "is an HTML or XML page, not sound: .*"),
        (_beginning(b"\0\x05\x16\x07\0\x02\0\0Mac OS X"), "is an AppleDouble file, .*"),
        (_beginning(b"PK\x03\x04"), "is a packed archive, not sound: unpack it"),
        (_beginning(b"\0\0\0\x20ftypisom"), r"is truncated or damaged: FFmpeg cannot read it as mov \(.*\)"),
        (_truncated, "is truncated: its header promises 32,000 bytes of sound, it holds 15,956"),
        (_truncated_flac, r"cannot be decoded \(.*flac.*\)"),
        (_header_only, "holds no sample"),
        (_silence, "is silent: every sample is zero"),
        (_with(np.nan), r"holds samples that are not finite \(NaN or infinite\)"),
        (_with(np.inf), r"holds samples that are not finite \(NaN or infinite\)"),
        (_at_rate(1), "has a sampling rate of 1 Hz, expected between 4,000 and 768,000 Hz"),
        (_at_rate(10_007), "has an odd sampling rate of 10,007 Hz: convert it to 16,000 Hz with an audio tool"),
        (_ten_hours, "is 36,000 s long, more than 600 s: cut it into utterances, or use --max-seconds"),
    ],
)
def test_what_is_of_no_use_is_refused_with_the_reason(
    spoil: Any, reason: str, speech: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    path = tmp_path / "a.wav"
    spoil(path, speech)
    with pytest.raises(AudioError, match=rf"^a\.wav: {reason}$"):
        _read(path)


def test_a_long_recording_can_be_cut(speech: npt.NDArray[np.float32], tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    _ten_hours(path, speech)
    np.testing.assert_allclose(_read(path, max_seconds=1), speech, atol=2**-15)
    np.testing.assert_allclose(_read(path, start=0.5, duration=0.5), speech[8_000:], atol=2**-15)


def test_a_missing_file_a_folder_and_a_forbidden_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"^a\.wav: No such file or directory$"):
        _read(tmp_path / "a.wav")
    (tmp_path / "b.wav").mkdir()
    with pytest.raises(AudioError, match=r"^b\.wav: is a folder, a pipe or a device"):
        _read(tmp_path / "b.wav")
    with pytest.raises(OSError, match="is a folder, a pipe or a device"):
        sha256_of(tmp_path / "b.wav")
    if os.geteuid() != 0:  # root may read everything
        (tmp_path / "c.wav").touch(mode=0o000)
        with pytest.raises(AudioError, match=r"^c\.wav: "):
            _read(tmp_path / "c.wav")


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "RF64", "W64"])
def test_a_file_whose_end_is_missing_is_refused_whatever_its_format(
    kind: str, speech: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    path = _write(tmp_path / "a.wav", speech, 16_000, format=kind, subtype="PCM_16")
    np.testing.assert_allclose(_read(path), speech, atol=2**-15)
    path.write_bytes(path.read_bytes()[:16_000])
    with pytest.raises(AudioError, match=r"^a\.wav: is truncated: its header promises 32,\d+ bytes of sound"):
        seconds_of(Excerpt(path))


def test_a_codec_that_cannot_seek_is_read_from_its_beginning(speech: npt.NDArray[np.float32], tmp_path: Path) -> None:
    path = _write(tmp_path / "a.wav", speech, 16_000, subtype="GSM610")
    expected, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_array_equal(_read(path), expected)
    with pytest.raises(AudioError, match=r"^a\.wav: cannot be decoded \(Seek attempted on unseekable file type\)$"):
        _read(path, start=0.5)


def test_a_stream_whose_header_could_not_know_its_length_is_read(
    speech: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    """As sox and ffmpeg write it to a pipe."""
    path = _write(tmp_path / "a.wav", speech, 16_000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    np.testing.assert_allclose(_read(path), speech, atol=2**-15)


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- resampling ---


def test_a_tone_above_the_new_band_is_suppressed() -> None:
    resampled = resample(_tone(9_000, 44_100), old_rate=44_100, new_rate=16_000)
    assert _decibels(resampled) < -110


def test_torchaudios_default_filter_would_let_it_through() -> None:
    """Why the parameters are ours, and part of the recipe."""
    default = Resampler(method="sinc_interp_hann", lowpass_filter_width=6, rolloff=0.99)
    assert _decibels(resample(_tone(9_000, 44_100), old_rate=44_100, new_rate=16_000, resampler=default)) > -20


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("frequency", [100, 3_000])
def test_a_tone_in_the_band_keeps_frequency_phase_and_level(rate: int, frequency: int) -> None:
    resampled = resample(_tone(frequency, rate), old_rate=rate, new_rate=16_000)
    assert _decibels(resampled - _tone(frequency, 16_000)) < -80


def test_resampling_agrees_with_a_long_polyphase_filter_of_scipy() -> None:
    import scipy.signal

    generator = np.random.default_rng(0)
    spectrum = np.fft.rfft(generator.standard_normal(48_000))
    # noise up to 7 kHz, which both filters pass
    spectrum[7_000:] = 0
    waveform = np.fft.irfft(spectrum).astype(np.float32)
    filter_: Any = scipy.signal.firwin(6_001, 1 / 3, window=("kaiser", 14.0))
    expected = scipy.signal.resample_poly(waveform.astype(np.float64), 1, 3, window=filter_)
    resampled = resample(waveform, old_rate=48_000, new_rate=16_000)
    assert resampled.shape == expected.shape
    assert _decibels(resampled - expected) - _decibels(expected) < -80


def test_the_same_rate_changes_nothing() -> None:
    waveform = _tone(440, 16_000)
    assert resample(waveform, old_rate=16_000, new_rate=16_000) is waveform


@given(
    rate=st.sampled_from([8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000]),
    length=st.integers(1, 5_000),
)
@settings(max_examples=40, deadline=None)
def test_a_resampled_waveform_lasts_as_long(rate: int, length: int) -> None:
    resampled = resample(np.ones(length, dtype=np.float32), old_rate=rate, new_rate=16_000)
    assert len(resampled) == -(-length * 16_000 // rate)


# --- real recordings ---


def test_real_recordings_at_24_and_48_khz_are_read(test_data: Path) -> None:
    recordings = [*sorted((test_data / "nemo" / "samples").glob("*.wav"))[:4], *(test_data / "ravdess").glob("*.wav")]
    assert len(recordings) > 4
    for path in recordings:
        waveform = _read(path)
        rate = soundfile.info(path).samplerate
        assert rate in (24_000, 48_000)
        assert len(waveform) == pytest.approx(16_000 * seconds_of(Excerpt(path)), abs=1)
        samples, _ = soundfile.read(path, always_2d=True)
        mono = samples.mean(axis=1)
        assert np.sqrt(np.mean(waveform**2)) == pytest.approx(np.sqrt(np.mean(mono**2)), rel=0.1)
