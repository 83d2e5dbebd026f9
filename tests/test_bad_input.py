"""Every kind of odd recording and transcript, from end to end: each is a right value, or a listed failure."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import tokenizers
import torch
from click.testing import CliRunner
from small_models import SPEECH_FAMILIES, TEXT_FAMILIES, save_speech, save_text
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing
from tokenizers.trainers import BpeTrainer

from amber2_core.cache import FeatureCache, read_cache
from amber2_core.utterance import Corpus, LabelDefaults, Utterance
from amber2_data.check import check_recordings
from amber2_data.corpora.registry import read_corpus
from amber2_extract.cli import extract_features as command
from amber2_extract.encoders.encoder import silence
from amber2_extract.pipeline import extract_features

Samples = npt.NDArray[np.float64]

RATE, SECONDS = 16_000, 0.4


def _speech(rate: int = RATE, *, seconds: float = SECONDS) -> Samples:
    """Tones of the same pitch at any sampling rate."""
    time = np.arange(round(rate * seconds)) / rate
    tones = sum(np.sin(2 * np.pi * pitch * time + pitch) / (1 + place) for place, pitch in enumerate((210, 630, 1_900)))
    return 0.2 * tones * np.hanning(len(time))


def _silent_ten_hours(path: Path) -> None:
    """FLAC writes an hour of silence in kilobytes."""
    with soundfile.SoundFile(path, "w", 8_000, 1, format="FLAC") as file:
        for _ in range(600):
            file.write(np.zeros(60 * 8_000, dtype=np.int16))


def _write(subtype: str, **settings: Any) -> Callable[[Path], None]:
    return lambda path: soundfile.write(path, _speech(), RATE, subtype=subtype, **settings)


def _cut_off(path: Path) -> None:
    soundfile.write(path, _speech(), RATE)
    path.write_bytes(path.read_bytes()[:5_000])


def _spoilt(path: Path) -> None:
    samples = _speech()
    samples[100] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def _flac_cut_off(path: Path) -> None:
    soundfile.write(path, _speech(seconds=2), RATE, format="FLAC")
    path.write_bytes(path.read_bytes()[:9_000])


def _beginning(head: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(head.ljust(500, b" "))


def _half_silent(path: Path) -> None:
    samples = _speech()
    samples[: len(samples) // 2] = 0
    soundfile.write(path, samples, RATE)


def _in_channels(count: int) -> Callable[[Path], None]:
    """Each channel has a loudness of its own; on average it is 1."""
    loudness = 2 * np.arange(1, count + 1) / (count + 1)
    return lambda path: soundfile.write(path, _speech()[:, None] * loudness, RATE, subtype="FLOAT")


def _at_rate(rate: int) -> Callable[[Path], None]:
    return lambda path: soundfile.write(path, _speech(rate), rate, subtype="FLOAT")


def _as_mp3(path: Path) -> None:
    soundfile.write(path, _speech(), RATE, format="MP3")


def _as_meant(path: Path) -> Samples:
    return _speech()


def _as_bytes(path: Path) -> Samples:
    """What the bytes of a WAV file of integers say, by the standard library."""
    with wave.open(str(path)) as file:
        width, data = file.getsampwidth(), np.frombuffer(file.readframes(file.getnframes()), dtype=np.uint8)
    if width == 1:
        return data / 128.0 - 1
    high = data.reshape(-1, width)[:, ::-1].astype(np.int64)  # (samples, bytes), the highest first
    whole = sum(high[:, place] << (8 * (width - 1 - place)) for place in range(width))
    return (whole - (whole >> (8 * width - 1) << 8 * width)) / 2.0 ** (8 * width - 1)


# name → how it is written, what it says, and how near its vector must come
GOOD: dict[str, tuple[Callable[[Path], None], Callable[[Path], Samples], float]] = {
    "8 bit": (_write("PCM_U8"), _as_bytes, 1e-5),
    "16 bit": (_write("PCM_16"), _as_bytes, 1e-5),
    "24 bit": (_write("PCM_24"), _as_bytes, 1e-5),
    "float": (_write("FLOAT"), _as_meant, 1e-5),
    "double": (_write("DOUBLE"), _as_meant, 1e-5),
    "stereo": (_in_channels(2), _as_meant, 1e-5),
    "8 channels": (_in_channels(8), _as_meant, 1e-5),
    "44.1 kHz": (_at_rate(44_100), _as_meant, 1e-2),
    "192 kHz": (_at_rate(192_000), _as_meant, 1e-2),
}
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no byte": (Path.touch, "is empty (0 bytes)"),
    "truncated": (_cut_off, "is truncated: its header promises 12,800 bytes of sound, it holds 4,956"),
    "1 Hz": (
        lambda path: soundfile.write(path, _speech()[:500], 1),
        "has a sampling rate of 1 Hz, expected between 4,000 and 768,000 Hz",
    ),
    "all zero": (lambda path: soundfile.write(path, np.zeros(RATE), RATE), "is silent: every sample is zero"),
    "not a number": (_spoilt, "holds samples that are not finite (NaN or infinite)"),
    "ten hours": (
        _silent_ten_hours,
        "is 36,000 s long, more than 600 s: cut it into utterances, or use --max-seconds",
    ),
    "text": (
        lambda path: path.write_text("This is not a recording. " * 50),
        "cannot be decoded (Format not recognised)",
    ),
    "a folder": (Path.mkdir, "is a folder, a pipe or a device, not a file"),
    "a pipe": (os.mkfifo, "is a folder, a pipe or a device, not a file"),
    "399 samples": (
        lambda path: soundfile.write(path, _speech()[2_000:2_399], RATE),
        "is too short: 399 samples at 16,000 Hz make no frame, 400 would",
    ),
    "a header": (lambda path: soundfile.write(path, _speech()[:0], RATE), "holds no sample"),
    "truncated flac": (
        _flac_cut_off,
        "cannot be decoded (Error : flac decoder lost sync)",
    ),
    "LFS pointer": (
        _beginning(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        "is a Git LFS pointer, not sound: run `git lfs pull` in the clone",
    ),
    "annex pointer": (
        _beginning(b"/annex/objects/SHA256E-s1--0.wav"),
        "is a git-annex pointer, not sound: run `git annex get`",
    ),
    "HTML page": (
        _beginning(b"\n<!DOCTYPE html><html><title>Log in</title>"),
        "is an HTML or XML page, not sound: the download failed or asked for a login",
    ),
    "._float": (
        _beginning(b"\0\x05\x16\x07\0\x02\0\0Mac OS X"),
        "is an AppleDouble file, macOS's notes on another file, not sound",
    ),
    "zip": (_beginning(b"PK\x03\x04"), "is a packed archive, not sound: unpack it"),
    "mp4": (
        _beginning(b"\0\0\0\x20ftypisom"),
        "is truncated or damaged: FFmpeg cannot read it as mov (Invalid data found when processing input)",
    ),
    "10,007 Hz": (
        lambda path: soundfile.write(path, _speech(10_007), 10_007),
        "has an odd sampling rate of 10,007 Hz: convert it to 16,000 Hz with an audio tool",
    ),
}

FORMATS = ("AIFF", "AU", "CAF", "FLAC", "MP3", "OGG", "RF64", "W64", "WAV")


def _write_odd_ones(folder: Path) -> set[str]:
    """Further recordings, whole, halved and of a header alone, of every format, of which only one thing is asked."""
    names = set()
    for kind in FORMATS:
        file = io.BytesIO()
        soundfile.write(file, _speech(), RATE, format=kind)
        whole = file.getvalue()
        for what, size in (("all", len(whole)), ("half", len(whole) // 2), ("head", 40)):
            (folder / f"{what} of {kind}.wav").write_bytes(whole[:size])
            names.add(f"{what} of {kind}")
    return names


# name → the segment of a recording of 0.4 s, and why it is of no use, if it is
SEGMENTS: dict[str, tuple[str, float, float, str]] = {
    "in the middle": ("float", 0.1, 0.3, ""),
    "a little beyond": ("float", 0.1, 0.49, ""),
    "far beyond": ("float", 0.1, 5.0, "ends at 0.40 s, within the segment from 0.1 to 5 s"),
    "behind it": ("float", 1.0, 2.0, "has no sample between 1 s and 2 s: it is 0.40 s long"),
    "of the silent half": ("half silent", 0.0, 0.2, "is silent: every sample is zero"),
}


@dataclass(frozen=True)
class Heard:
    cache: FeatureCache
    model: Any
    # of the recordings
    folder: Path
    # of which nobody knows whether they can be read
    odd: set[str]


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    """A corpus of every kind of recording, encoded by the command in a process of its own, and the encoder."""
    folder = tmp_path_factory.mktemp("recordings")
    model = save_speech(folder / "wav2vec2", "wav2vec2-group")
    (folder / "wav").mkdir()
    written = {name: kind[0] for name, kind in (*GOOD.items(), *BAD.items())}
    for name, write in {**written, "mislabelled mp3": _as_mp3, "half silent": _half_silent}.items():
        write(folder / f"wav/{name}.wav")
    odd = _write_odd_ones(folder / "wav")
    names = [path.stem for path in sorted((folder / "wav").iterdir())]
    rows = [f'"{name}","wav/{name}.wav",we know,1,2,,' for name in [*names, "missing"]]
    rows += [f"{name},wav/{of}.wav,we know,1,2,{start},{end}" for name, (of, start, end, _) in SEGMENTS.items()]
    (folder / "corpus.csv").write_text("\n".join(["id,audio,text,votes.neutral,votes.happy,start,end", *rows]))
    options = ["--corpus=manifest", f"--root={folder / 'corpus.csv'}", "--modality=audio", "--device=cpu"]
    options += [f"--audio-model={folder / 'wav2vec2'}", f"--output={folder / 'corpus.h5'}"]
    call = [sys.executable, "-c", "from amber2_extract.cli import extract_features; extract_features()", *options]
    # A pipe that nobody writes to would keep whoever opens it waiting for good.
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    return Heard(read_cache(folder / "corpus.h5"), model, folder / "wav", odd)


def _row(cache: FeatureCache, name: str) -> Any:
    return cache.feature_set("audio").values[list(cache.utterances.id).index(name)]


def _expected(model: Any, samples: Samples) -> Any:
    normal = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.no_grad():
        return model(torch.tensor(normal, dtype=torch.float32)[None]).last_hidden_state[0].mean(dim=0).numpy()


@pytest.mark.parametrize("name", GOOD)
def test_a_recording_of_any_kind_is_encoded_as_what_it_sounds_like(name: str, heard: Heard) -> None:
    cache, model = heard.cache, heard.model
    _, says, tolerance = GOOD[name]
    row, expected = _row(cache, name), _expected(model, says(heard.folder / f"{name}.wav"))
    np.testing.assert_allclose(row, expected, rtol=0, atol=tolerance)
    # As far as that goes, another recording would be another vector.
    assert np.abs(expected - _expected(model, _speech()[::-1])).max() > 10 * tolerance


def test_an_mp3_that_is_called_wav_is_encoded_as_the_mp3_it_is(heard: Heard) -> None:
    cache = heard.cache
    assert np.isfinite(_row(cache, "mislabelled mp3")).all()
    # It begins with silence of the coder's, and is as long as the coder's frames.
    assert cache.utterances.duration[list(cache.utterances.id).index("mislabelled mp3")] == pytest.approx(0.4, abs=0.2)


def test_a_recording_at_192_khz_is_resampled_not_relabelled(heard: Heard) -> None:
    from scipy.signal import resample_poly

    cache, model = heard.cache, heard.model
    lowered = resample_poly(_speech(192_000), 1, 12)
    assert np.abs(_row(cache, "192 kHz") - _expected(model, lowered)).max() < 1e-2
    assert cache.utterances.duration[list(cache.utterances.id).index("192 kHz")] == pytest.approx(SECONDS)


@pytest.mark.parametrize("name", BAD)
def test_a_recording_of_no_use_is_a_listed_failure_with_its_reason(name: str, heard: Heard) -> None:
    cache = heard.cache
    reasons = {failure.utterance: failure.reason for failure in cache.failures}
    assert reasons[name].removeprefix(f"{name}.wav: ").removesuffix(".") == BAD[name][1]
    assert np.isnan(_row(cache, name)).all()


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_segment_is_encoded_where_its_recording_has_it(name: str, heard: Heard) -> None:
    of, start, end, reason = SEGMENTS[name]
    reasons = {failure.utterance: failure.reason for failure in heard.cache.failures}
    assert reasons.get(name, "") == (f"{of}.wav: {reason}" if reason else "")
    if not reason:
        samples = _speech()[round(start * RATE) : round(end * RATE)]
        np.testing.assert_allclose(_row(heard.cache, name), _expected(heard.model, samples), rtol=0, atol=1e-5)


def test_check_corpus_fails_what_extraction_fails_in_the_same_words(heard: Heard) -> None:
    corpus = read_corpus("manifest", heard.folder.parent / "corpus.csv")
    failures = {failure.utterance: failure.reason for failure in heard.cache.failures}
    assert len(corpus.utterances) >= 60
    assert len(failures) >= 35
    check = check_recordings(corpus, decoded=True)
    assert check.failures == failures
    lengths = dict(zip(heard.cache.utterances.id, heard.cache.utterances.duration, strict=True))
    for utterance, seconds in zip(corpus.utterances, check.seconds, strict=True):
        assert (seconds is None) == (utterance.id in failures)
        assert seconds is None or seconds == pytest.approx(lengths[utterance.id])
    cut = check_recordings(corpus, max_seconds=1).failures
    assert "ten hours" in failures.keys() - cut.keys()
    # what headers, sizes and first bytes do not tell is in the samples alone
    unheard = failures.keys() - check_recordings(corpus).failures.keys() - heard.odd
    assert unheard == {"all zero", "not a number", "truncated flac", "of the silent half"}


def test_nothing_else_fails(heard: Heard) -> None:
    cache = heard.cache
    segments = {name for name, (*_, reason) in SEGMENTS.items() if reason}
    assert {failure.utterance for failure in cache.failures} - heard.odd == {*BAD, "missing", *segments}
    assert all(np.isfinite(_row(cache, f"all of {kind}")).all() for kind in FORMATS)
    assert np.isfinite(cache.feature_set("audio").values[cache.feature_set("audio").encoded]).all()


def test_ten_hours_can_be_cut(tmp_path: Path) -> None:
    save_speech(tmp_path / "wav2vec2", "wav2vec2-group")
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 8_000, 1, format="FLAC") as file:
        file.write(_speech(8_000))
        for _ in range(600):
            file.write(np.zeros(60 * 8_000, dtype=np.int16))
    soundfile.write(tmp_path / "short.flac", _speech(8_000), 8_000)
    utterances = tuple(Utterance(name, f"{name}.flac", "") for name in ("long", "short"))
    corpus = Corpus("example", tmp_path, utterances, LabelDefaults(("neutral",)))
    models = {"audio_model": str(tmp_path / "wav2vec2"), "text_model": None}
    summary = extract_features(corpus, tmp_path / "c.h5", **models, max_seconds=SECONDS)  # type: ignore[arg-type]
    assert not summary.failures
    long, short = read_cache(tmp_path / "c.h5").feature_set("audio").values
    np.testing.assert_allclose(long, short, rtol=0, atol=1e-5)


# --- transcripts ---

TRANSCRIPTS = {
    "empty": "",
    "blank": " \t\n",
    "emoji": "I am so happy for you 😀👩‍👩‍👧‍👦🏳️‍🌈!",
    "only emoji": "😢",
    "100,000 words": "we do not know " * 25_000,
    "another script": "我们不知道 что они слышали",
    "controls": "we\x00do\x1bnot\u200bknow\ufeff",
    "half a character": "we \ud83d know",
}


def _save_bytes_bert(folder: Path) -> Any:
    """A RoBERTa with a tokenizer of its own kind: pairs of bytes, so that an emoji is spelled, not unknown."""

    import transformers

    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=ByteLevel.alphabet())
    tokenizer.train_from_iterator(["we do not know what the raters heard 😀"] * 3, trainer)
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), specials, strict=True))
    fast: Any = transformers.PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, model_max_length=40, **names, cls_token="<s>", sep_token="</s>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    model = TEXT_FAMILIES["roberta"](tokenizer.get_vocab_size()).eval()
    with silence():
        model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("save", [lambda folder: save_text(folder, "bert"), _save_bytes_bert], ids=["words", "bytes"])
def test_a_transcript_of_any_kind_is_a_right_value_or_a_listed_failure(save: Any, tmp_path: Path) -> None:
    import transformers

    model = save(tmp_path / "bert")
    utterances = tuple(Utterance(name, None, transcript) for name, transcript in TRANSCRIPTS.items())
    corpus = Corpus("example", tmp_path, utterances, LabelDefaults(("neutral",)))
    summary = extract_features(corpus, tmp_path / "c.h5", audio_model=None, text_model=str(tmp_path / "bert"))
    assert [(failure.utterance, failure.reason) for failure in summary.failures] == [
        ("half a character", "its transcript is not valid Unicode")
    ]
    cache = read_cache(tmp_path / "c.h5")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "bert")
    sizes = {
        name: len(tokenizer(text)["input_ids"]) for name, text in TRANSCRIPTS.items() if name != "half a character"
    }
    assert sizes["100,000 words"] >= 100_000
    assert summary.features[0].truncated == sum(size > 40 for size in sizes.values())
    for row, (name, transcript) in zip(cache.feature_set("text").values, TRANSCRIPTS.items(), strict=True):
        if name == "half a character":
            assert np.isnan(row).all()
            continue
        tokens = tokenizer(transcript, return_tensors="pt", truncation=True, max_length=40)["input_ids"]
        with torch.no_grad():
            expected = model(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0].mean(dim=0).numpy()
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5, err_msg=name)


def test_bytes_tell_one_emoji_from_another(tmp_path: Path) -> None:
    _save_bytes_bert(tmp_path / "bert")
    utterances = tuple(Utterance(emoji, None, f"we know {emoji}") for emoji in "😀😢")
    corpus = Corpus("example", tmp_path, utterances, LabelDefaults(("neutral",)))
    extract_features(corpus, tmp_path / "c.h5", audio_model=None, text_model=str(tmp_path / "bert"))
    happy, sad = read_cache(tmp_path / "c.h5").feature_set("text").values
    assert np.abs(happy - sad).max() > 1e-3


def test_a_table_that_is_not_utf_8_is_one_line_that_names_its_line(tmp_path: Path) -> None:
    table = tmp_path / "corpus.csv"
    table.write_bytes("id,audio,text,label\na,a.wav,we know,sad\nb,b.wav,café,sad\n".encode("latin-1"))
    save_text(tmp_path / "bert", "bert")
    options = ["--corpus=manifest", f"--root={table}", "--modality=text", f"--text-model={tmp_path / 'bert'}"]
    done = CliRunner().invoke(command, [*options, f"--output={tmp_path / 'c.h5'}"])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {table}, line 3: ")
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.thorough
def test_every_family_that_is_known_hears_the_same_recording(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _speech(192_000)[:, None] * np.ones(8), 192_000, subtype="PCM_24")
    corpus = Corpus("example", tmp_path, (Utterance("a", "a.wav", ""),), LabelDefaults(("neutral",)))
    for family in SPEECH_FAMILIES:
        model = save_speech(tmp_path / family, family)
        models = {"audio_model": str(tmp_path / family), "text_model": None}
        extract_features(corpus, tmp_path / f"{family}.h5", **models)  # type: ignore[arg-type]
        (row,) = read_cache(tmp_path / f"{family}.h5").feature_set("audio").values
        assert np.abs(row - _expected(model, _speech())).max() < 2e-2, family
