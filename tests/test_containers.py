"""Sound of videos and of other containers: the right samples at the right time, or one line that says why not."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from media_clips import Floats, tone_and_noise, write_media

from amber2_core.errors import AudioError
from amber2_core.utterance import Corpus, LabelDefaults, Utterance
from amber2_data import containers
from amber2_data.check import check_recordings
from amber2_data.sound import Excerpt, check_excerpt, decode, decoder_of, recordings_among, seconds_of, unpacked
from amber2_extract.recordings import scan_recordings

DEFAULTS = LabelDefaults(emotions=("sad", "happy"))
RATE = 44_100
# suffix, codec, rate, how far the codec is from the samples (relative L2), how many samples come before them
LOSSY = [
    (".m4a", "aac", RATE, 0.1, 0),
    (".mp4", "aac", RATE, 0.1, 0),
    (".mp4", "libmp3lame", RATE, 0.1, 0),
    (".mkv", "aac", RATE, 0.1, 0),
    # ADTS cannot say that the first 1,024 samples are the encoder's own
    (".aac", "aac", RATE, 0.1, 1024),
    (".webm", "libopus", 48_000, 0.1, 0),
    (".mkv", "libopus", 48_000, 0.1, 0),
]
LOSSLESS = [
    (".mkv", "flac"),
    (".mp4", "flac"),
    (".m4a", "alac"),
    (".mkv", "pcm_s16le"),
    (".mov", "pcm_s16le"),
    (".mov", "pcm_s16be"),
    (".mov", "pcm_s24be"),
    (".mov", "pcm_f32le"),
    (".avi", "pcm_s16le"),
]


def read(path: Path, start: float | None = None, duration: float | None = None) -> Floats:
    return decode(Excerpt(path, start, duration))[0]


def far(found: Floats, expected: Floats) -> float:
    count = min(len(found), len(expected))
    assert count >= 0.99 * len(expected)
    return float(np.linalg.norm(found[:count] - expected[:count]) / np.linalg.norm(expected[:count]))


@pytest.mark.parametrize(("suffix", "codec"), LOSSLESS)
@pytest.mark.parametrize("picture", [0.0, 3.0])
def test_a_lossless_codec_gives_back_every_sample(suffix: str, codec: str, picture: float, tmp_path: Path) -> None:
    samples = tone_and_noise(2.5, RATE)
    path = write_media(tmp_path / f"a{suffix}", samples, codec=codec, picture=picture)
    found, rate = decode(Excerpt(path))
    assert rate == RATE
    np.testing.assert_array_equal(found, samples)
    assert seconds_of(Excerpt(path)) == pytest.approx(2.5, abs=2e-3)


@pytest.mark.parametrize(("suffix", "codec", "rate", "error", "before"), LOSSY)
def test_a_lossy_codec_gives_back_the_sound_in_its_place(
    suffix: str, codec: str, rate: int, error: float, before: int, tmp_path: Path
) -> None:
    samples = tone_and_noise(3, rate)
    found = read(write_media(tmp_path / f"a{suffix}", samples, codec=codec, rate=rate))
    assert far(found[before:], samples) < error
    # one sample too early or too late would be seen
    assert far(found[before:], samples) < min(far(found[before + 1 :], samples), far(found[before:], samples[1:]))
    assert 0 <= len(found) - len(samples) - before <= 1152  # the last frame's end, where the container does not cut it


@pytest.mark.parametrize(("suffix", "codec", "rate"), [(".mp4", "libmp3lame", RATE), (".mkv", "libopus", 48_000)])
def test_the_same_stream_in_libsndfiles_own_container_gives_the_same_samples(
    suffix: str, codec: str, rate: int, tmp_path: Path
) -> None:
    samples, own = tone_and_noise(3, rate), ".mp3" if codec == "libmp3lame" else ".ogg"
    expected, _ = soundfile.read(write_media(tmp_path / f"a{own}", samples, codec=codec, rate=rate), dtype="float32")
    found = read(write_media(tmp_path / f"a{suffix}", samples, codec=codec, rate=rate))
    assert decoder_of(tmp_path / f"a{own}") == "" != decoder_of(tmp_path / f"a{suffix}")
    # libsndfile does not cut the encoder's own samples off
    lag = int(np.argmax(np.correlate(expected[: rate + 4096], found[:rate], "valid")))
    assert far(expected[lag:], found) < 1e-3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_where_the_sound_of_a_video_starts_late_samples_keep_to_the_clock_of_the_picture(
    suffix: str, tmp_path: Path
) -> None:
    samples = tone_and_noise(2, RATE)
    codec = "pcm_s16le" if suffix == ".mov" else "flac"
    path = write_media(tmp_path / f"a{suffix}", samples, codec=codec, picture=3, late=0.5)
    found = read(path)
    silent = int(np.argmax(found != 0))
    assert silent == pytest.approx(0.5 * RATE, abs=RATE / 1000)  # clocks of containers count milliseconds
    np.testing.assert_array_equal(found[silent : silent + len(samples)], samples)
    np.testing.assert_array_equal(read(path, 1.0, 0.5), found[RATE : RATE + RATE // 2])
    assert seconds_of(Excerpt(path)) == pytest.approx(2.5, abs=2e-3)
    with pytest.raises(AudioError, match=r"^a\.\w+: is silent: every sample is zero$"):
        read(path, 0.0, 0.4)


@pytest.mark.parametrize(("suffix", "codec"), [*LOSSLESS, (".aac", "aac"), (".webm", "libopus"), (".mkv", "aac")])
def test_a_segment_is_what_the_whole_has_there(suffix: str, codec: str, tmp_path: Path) -> None:
    rate = 48_000
    path = write_media(tmp_path / f"a{suffix}", tone_and_noise(8, rate), codec=codec, rate=rate)
    whole = read(path)
    for start, duration in ((0.0, 0.5), (1.234, 0.1), (3.3333, 2.0), (6.5, None)):
        first = round(start * rate)
        end = None if duration is None else first + round(duration * rate)
        np.testing.assert_array_equal(read(path, start, duration), whole[first:end])


@pytest.mark.parametrize("codec", ["aac", "libopus", "libmp3lame"])
def test_a_segment_of_a_lossy_codec_that_is_sought_is_in_its_place(codec: str, tmp_path: Path) -> None:
    rate = 48_000
    path = write_media(tmp_path / "a.mp4", tone_and_noise(8, rate), codec=codec, rate=rate, picture=8)
    whole = read(path)
    for start in (2.5, 3.3333, 6.1):
        first, count = round(start * rate), rate
        found = read(path, start, 1.0)
        # the noise that AAC leaves to its decoder differs by where decoding began
        assert far(found, whole[first : first + count]) < 0.05
        for wrong in (first - 1, first + 1):
            assert far(found, whole[first : first + count]) < far(found, whole[wrong : wrong + count])


def test_seeking_reads_a_small_part_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_media(tmp_path / "a.m4a", tone_and_noise(30, 16_000), codec="alac", rate=16_000)
    track, decoded = containers.open_track(path, "mov"), []
    real = containers._mono
    monkeypatch.setattr(containers, "_mono", lambda frame: decoded.append(frame.samples) or real(frame))
    track.read(25 * 16_000, 16_000)
    assert sum(decoded) < 4 * 16_000


def test_a_segment_beyond_a_video_is_refused_as_of_any_recording(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", tone_and_noise(2, RATE), codec="flac", picture=4)
    assert len(read(path, 1.5, 0.55)) == RATE // 2
    with pytest.raises(AudioError, match=r"^a\.mp4: ends at 2\.00 s, within the segment from 1 to 3 s$"):
        read(path, 1.0, 2.0)
    with pytest.raises(AudioError, match=r"^a\.mp4: has no sample between 3 s and 4 s: it is 2\.00 s long$"):
        seconds_of(Excerpt(path, 3.0, 1.0))


def mute(path: Path) -> None:
    write_media(path, None, picture=1)


def cut(path: Path) -> None:
    whole = write_media(path, tone_and_noise(3, RATE)).read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])


def cut_after_its_index(path: Path) -> None:
    whole = write_media(path, tone_and_noise(3, RATE), picture=3, settings={"movflags": "faststart"}).read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])


def cut_matroska(path: Path) -> None:
    whole = write_media(path, tone_and_noise(3, RATE), codec="flac", container="matroska").read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])


def encrypted(path: Path) -> None:
    key = "00112233445566778899aabbccddeeff"
    settings = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    write_media(path, tone_and_noise(1, RATE), settings=settings)


def sold_with_a_lock(path: Path) -> None:
    path.write_bytes(write_media(path, tone_and_noise(1, RATE)).read_bytes().replace(b"mp4a", b"drms"))


def of_an_unknown_codec(path: Path) -> None:
    whole = write_media(path, tone_and_noise(1, RATE), codec="flac", container="matroska").read_bytes()
    path.write_bytes(whole.replace(b"A_FLAC", b"A_XLAC"))


def damaged(path: Path) -> None:
    whole = bytearray(write_media(path, tone_and_noise(3, RATE)).read_bytes())
    whole[len(whole) // 3 : len(whole) // 3 + 200] = bytes(200)
    path.write_bytes(whole)


SPOILT = {
    mute: r"is a video without sound",
    cut: r"is truncated or damaged: FFmpeg cannot read it as mov \(Invalid data found when processing input\)",
    cut_after_its_index: r"is truncated: its header promises 3\.00 s, it holds [012]\.\d\d s",
    cut_matroska: r"is truncated: its header promises 3\.00 s, it holds 1\.\d\d s",
    encrypted: r"is encrypted",
    sold_with_a_lock: r"is encrypted",
    of_an_unknown_codec: r"holds sound of a codec that FFmpeg does not know",
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILT.items())
def test_what_cannot_be_read_is_one_line_from_its_header_on(spoil: object, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    spoil(path)  # type: ignore[operator]
    corpus = Corpus("own", tmp_path, (Utterance("a", "a.mp4", "", ()),), DEFAULTS)
    with pytest.raises(AudioError, match=rf"^a\.mp4: {reason}$"):
        seconds_of(Excerpt(path))
    assert check_recordings(corpus).failures["a"] == scan_recordings(corpus).failures[0]


def test_what_is_damaged_within_is_found_by_decoding_it(tmp_path: Path) -> None:
    damaged(tmp_path / "a.m4a")
    assert seconds_of(Excerpt(tmp_path / "a.m4a")) == 3.0
    with pytest.raises(AudioError, match=r"^a\.m4a: is truncated or damaged: FFmpeg cannot read it as mov \(.*\)$"):
        check_excerpt(Excerpt(tmp_path / "a.m4a"), decoded=True)


def test_a_tag_before_aac_is_skipped_and_mp3_is_left_to_libsndfile(tmp_path: Path) -> None:
    plain = write_media(tmp_path / "a.aac", tone_and_noise(1, RATE), container="adts")
    tag = b"ID3\x04\0\0" + bytes([0, 0, 2, 44]) + bytes(300)
    (tmp_path / "tagged.aac").write_bytes(tag + plain.read_bytes())
    np.testing.assert_array_equal(read(tmp_path / "tagged.aac"), read(plain))
    mp3 = io.BytesIO()
    soundfile.write(mp3, tone_and_noise(1, RATE), RATE, format="MP3")
    (tmp_path / "a.mp3").write_bytes(tag + mp3.getvalue())
    assert decoder_of(tmp_path / "a.mp3") == ""


def test_what_the_system_says_while_a_video_is_read_is_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_media(tmp_path / "a.mp4", tone_and_noise(20, RATE), codec="pcm_s16le", container="mov")
    real = Path.open
    containers.open_track(path, "mov")

    class Stale(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 500_000:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return super().read(-1 if size is None else size)

    def opened(self: Path, mode: str = "r") -> Any:
        return Stale(self) if self == path else real(self, mode)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(AudioError, match=r"^a\.mp4: Stale file handle$") as found:
        read(path)
    assert isinstance(found.value.__cause__, OSError)
    assert found.value.__cause__.errno == errno.ESTALE


def test_channels_of_a_video_are_averaged_as_those_of_a_wav_are(tmp_path: Path) -> None:
    import av

    rng = np.random.default_rng(0)
    loudness = np.array([1.0, 0.25], np.float32)
    both = (np.round(rng.uniform(-0.5, 0.5, (RATE, 1)) * 2**13) / 2**13 * loudness).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", both, RATE, subtype="PCM_16")
    whole = (both * 2**15).astype(np.int16)
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(whole.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    np.testing.assert_array_equal(read(tmp_path / "a.mkv"), read(tmp_path / "a.wav"))


def test_eight_bits_are_centred(tmp_path: Path) -> None:
    samples = (np.round(tone_and_noise(1, RATE) * 2**7) / 2**7).astype(np.float32)
    np.testing.assert_array_equal(read(write_media(tmp_path / "a.avi", samples, codec="pcm_u8")), samples)


def test_names_of_recordings_are_found_and_wav_comes_before_video() -> None:
    names = ["b.MP4", "a.mp4", "a.wav", "a.txt", "._c.wav", "d.webm", "d.mkv", "e.csv"]
    assert recordings_among(names) == {"a": "a.wav", "b": "b.MP4", "d": "d.webm"}


def test_another_generation_of_decoders_changes_the_inputs_of_what_it_decodes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", tone_and_noise(1, 16_000), 16_000)
    write_media(tmp_path / "b.m4a", tone_and_noise(1, 16_000), rate=16_000)
    utterances = (
        Utterance("a", "a.wav", "", ()),
        Utterance("a part", "a.wav", "", (), start=0.25, duration=0.5),
        Utterance("b", "b.m4a", "", ()),
        Utterance("b part", "b.m4a", "", (), start=0.25, duration=0.5),
    )
    corpus = Corpus("own", tmp_path, utterances, DEFAULTS)
    now = scan_recordings(corpus)
    assert now.digests[0] == now.sha256[0]
    assert len(set(now.digests)) == 4
    monkeypatch.setattr("amber2_data.sound.decoder", lambda: "libavcodec 999")
    later = scan_recordings(corpus)
    assert [old == new for old, new in zip(now.digests, later.digests, strict=True)] == [True, True, False, False]


# --- unpacked ---


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".webm", "libopus"), (".mkv", "flac"), (".aac", "aac"), (".avi", "pcm_s16le")]
)
def test_what_is_slow_to_look_up_is_unpacked_into_the_same_samples(suffix: str, codec: str, tmp_path: Path) -> None:
    """Also where the sound begins late, and its first samples are zero."""
    path = write_media(tmp_path / f"a{suffix}", tone_and_noise(3.0, 48_000), codec=codec, rate=48_000, late=0.3)
    with (tmp_path / "a.wav").open("wb") as file:
        assert unpacked(path, file)
    expected, rate = decode(Excerpt(path))
    found, found_rate = decode(Excerpt(tmp_path / "a.wav"))
    assert found_rate == rate
    np.testing.assert_array_equal(found, expected)


def test_what_is_looked_up_at_once_is_not_unpacked(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone_and_noise(1.0, RATE), RATE)
    for path in (tmp_path / "a.wav", write_media(tmp_path / "a.m4a", tone_and_noise(1.0, RATE))):
        with io.BytesIO() as file:
            assert not unpacked(path, file)
            assert file.getvalue() == b""


def test_a_container_that_breaks_off_is_not_unpacked(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.webm", tone_and_noise(3.0, 48_000), codec="libopus", rate=48_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"^a\.webm: is truncated"), io.BytesIO() as file:
        unpacked(path, file)
