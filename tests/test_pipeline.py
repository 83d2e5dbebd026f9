"""Extraction from end to end: right values, nothing encoded twice, nothing lost, and honest words about changes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from small_corpus import expected_speech, expected_text, with_utterance, write_corpus, write_recording
from small_models import PRELOADED, save_speech, save_text

import amber2_extract.encoders
import amber2_extract.inputs
import amber2_extract.parts
from amber2_core.cache import FeatureCache, read_cache
from amber2_core.errors import AudioError, CacheError, SettingError
from amber2_core.utterance import Corpus, Rating
from amber2_extract.encoding import Progress
from amber2_extract.feature_set import FeatureSummary
from amber2_extract.pipeline import Summary, extract_features
from amber2_extract.work import Effort


class Place:
    """A folder with two models, a corpus and an output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "cache" / "example.h5"
        self.speech_model = save_speech(folder / "wav2vec2", "wav2vec2-group")
        self.text_model = save_text(folder / "bert", "bert")
        self.corpus = write_corpus(folder / "corpus")

    def extract(self, corpus: Corpus | None = None, **settings: Any) -> Summary:
        settings = {"audio_model": str(self.folder / "wav2vec2"), "text_model": str(self.folder / "bert"), **settings}
        return extract_features(corpus or self.corpus, settings.pop("output", self.output), **settings)

    def cache(self) -> FeatureCache:
        return read_cache(self.output)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, loading an encoder is an error."""

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(amber2_extract.encoders.SpeechEncoder, "__init__", refuse)
    monkeypatch.setattr(amber2_extract.encoders.TextEncoder, "__init__", refuse)


def _of(summary: Summary, modality: str) -> FeatureSummary:
    (features,) = [features for features in summary.features if features.modality == modality]
    return features


def _counts(summary: Summary, modality: str) -> tuple[int, int, int]:
    features = _of(summary, modality)
    return features.encoded, features.up_to_date, features.failed


def _values(cache: FeatureCache, modality: str) -> Any:
    return cache.feature_set(modality).values


# --- what a cache holds ---


def test_features_are_what_transformers_gives_for_each_utterance_alone(place: Place) -> None:
    import transformers

    summary = place.extract()
    cache = place.cache()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place.folder / "bert")
    transcripts = [utterance.transcript for utterance in place.corpus.utterances]
    speech, text = _values(cache, "audio"), _values(cache, "text")
    np.testing.assert_allclose(speech, expected_speech(place.corpus, place.speech_model), rtol=0, atol=1e-5)
    np.testing.assert_allclose(text, expected_text(transcripts, place.text_model, tokenizer), rtol=0, atol=1e-5)
    assert _counts(summary, "audio") == _counts(summary, "text") == (12, 0, 0)
    assert summary.written
    assert summary.failures == cache.failures == ()


def test_the_tables_of_the_corpus_stand_beside_them(place: Place) -> None:
    place.extract()
    cache = place.cache()
    assert list(cache.utterances.id) == [utterance.id for utterance in place.corpus.utterances]
    assert cache.corpus == "example"
    assert cache.defaults == place.corpus.defaults
    assert len(cache.ratings) == 36
    assert cache.attributes["valence"][3] == 0.3
    lengths = [soundfile.info(place.corpus.root / str(u.audio)).duration for u in place.corpus.utterances]
    np.testing.assert_allclose(cache.utterances.duration, lengths, rtol=1e-6)
    assert [len(digest) for digest in cache.utterances.audio_sha256] == [64] * 12
    assert list(cache.feature_set("audio").inputs) == list(cache.utterances.audio_sha256)
    assert {"amber2", "torch", "transformers"} <= cache.versions.keys()
    assert cache.summary["features"]["audio/wav2vec2"]["encoded"] == 12


def test_nothing_else_is_left_behind(place: Place) -> None:
    place.extract()
    assert [path.name for path in place.output.parent.iterdir()] == ["example.h5"]


def test_equal_recordings_and_transcripts_are_encoded_once(place: Place) -> None:
    first, second = (place.corpus.root / f"wav/u0{number}.wav" for number in (0, 1))
    second.write_bytes(first.read_bytes())
    summary = place.extract()
    assert (_of(summary, "audio").encoded, _of(summary, "audio").distinct) == (12, 11)
    assert (_of(summary, "text").encoded, _of(summary, "text").distinct) == (12, 6)
    np.testing.assert_array_equal(*_values(place.cache(), "audio")[:2])


def test_excerpts_of_one_recording_are_encoded_each_for_itself(place: Place) -> None:
    corpus = with_utterance(place.corpus, 0, start=0.02, duration=0.05)
    corpus = with_utterance(corpus, 1, audio="wav/u00.wav", start=0.05)
    place.extract(corpus)
    samples, _ = soundfile.read(corpus.root / "wav/u00.wav")
    for name, stretch in (("a", samples[320:1120]), ("b", samples[800:])):
        soundfile.write(corpus.root / f"wav/{name}.wav", stretch, 16_000, subtype="FLOAT")
    cut = with_utterance(with_utterance(place.corpus, 0, audio="wav/a.wav"), 1, audio="wav/b.wav")
    expected = expected_speech(replace(cut, utterances=cut.utterances[:2]), place.speech_model)
    np.testing.assert_allclose(_values(place.cache(), "audio")[:2], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(place.cache().utterances.duration[:2], [0.05, len(samples) / 16_000 - 0.05], rtol=1e-6)


@pytest.mark.parametrize("effort", [Effort(batch_seconds=1, batch_tokens=20), Effort(batch_seconds=1e6)])
def test_neither_batch_size_nor_order_changes_values_or_fingerprint(effort: Effort, place: Place) -> None:
    place.extract(effort=Effort(batch_seconds=0, batch_tokens=0))
    backwards = replace(place.corpus, utterances=place.corpus.utterances[::-1])
    place.extract(backwards, output=place.folder / "other.h5", effort=effort)
    other = read_cache(place.folder / "other.h5")
    for modality in ("audio", "text"):
        one, two = place.cache().feature_set(modality), other.feature_set(modality)
        assert one.fingerprint == two.fingerprint
        np.testing.assert_allclose(one.values, two.values[::-1], rtol=0, atol=1e-4)


def test_the_number_of_threads_changes_nothing_at_all(place: Place) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            place.extract(output=place.folder / f"{threads}.h5")
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    one, three = (read_cache(place.folder / f"{threads}.h5") for threads in (1, 3))
    for modality in ("audio", "text"):
        np.testing.assert_array_equal(_values(one, modality), _values(three, modality))


def test_all_layers_stand_beside_the_last(place: Place) -> None:
    place.extract()
    place.extract(layers="all")
    cache = place.cache()
    assert [(f.modality, f.name, f.values.shape) for f in cache.features] == [
        ("audio", "wav2vec2", (12, 32)),
        ("audio", "wav2vec2-layers", (12, 3, 32)),
        ("text", "bert", (12, 32)),
        ("text", "bert-layers", (12, 3, 32)),
    ]
    for modality, name in (("audio", "wav2vec2"), ("text", "bert")):
        layers = cache.feature_set(modality, f"{name}-layers").values
        np.testing.assert_array_equal(layers[:, -1], cache.feature_set(modality, name).values)


def test_a_cut_is_part_of_the_recipe(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.extract()
    with caplog.at_level(logging.INFO):
        summary = place.extract(max_seconds=0.15)
    assert _counts(summary, "audio") == (12, 0, 0)
    assert _counts(summary, "text") == (0, 12, 0)
    assert "audio/wav2vec2 is encoded again: max_seconds changed from none to 0.15" in caplog.messages


# --- a second call ---


def test_a_second_call_encodes_nothing_and_leaves_the_file_alone(
    place: Place, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    place.extract()
    before = place.output.stat()
    request.getfixturevalue("no_encoder")
    summary = place.extract()
    assert _counts(summary, "audio") == _counts(summary, "text") == (0, 12, 0)
    assert not summary.written
    after = place.output.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_one_changed_recording_is_one_row(place: Place) -> None:
    place.extract()
    before = _values(place.cache(), "audio")
    write_recording(place.corpus.root / "wav/u05.wav", 0.3, seed=99)
    summary = place.extract()
    after = _values(place.cache(), "audio")
    assert _counts(summary, "audio") == (1, 11, 0)
    assert _counts(summary, "text") == (0, 12, 0)
    assert [row for row in range(12) if not np.array_equal(before[row], after[row])] == [5]
    np.testing.assert_allclose(after, expected_speech(place.corpus, place.speech_model), rtol=0, atol=1e-5)


def test_one_changed_transcript_is_one_row(place: Place) -> None:
    place.extract()
    before = _values(place.cache(), "text")
    summary = place.extract(with_utterance(place.corpus, 2, transcript="we heard one voice"))
    after = _values(place.cache(), "text")
    assert _counts(summary, "text") == (1, 11, 0)
    assert _counts(summary, "audio") == (0, 12, 0)
    assert [row for row in range(12) if not np.array_equal(before[row], after[row])] == [2]


def test_utterances_may_come_go_and_change_places(place: Place) -> None:
    place.extract(replace(place.corpus, utterances=place.corpus.utterances[:8]))
    before = _values(place.cache(), "audio")
    order = [11, 7, 0, 9, 3]
    summary = place.extract(replace(place.corpus, utterances=tuple(place.corpus.utterances[row] for row in order)))
    assert _counts(summary, "audio") == (2, 3, 0)
    after = place.cache()
    assert list(after.utterances.id) == [f"u{row:02d}" for row in order]
    np.testing.assert_array_equal(_values(after, "audio")[[1, 2, 4]], before[[7, 0, 3]])


def test_changed_votes_are_written_and_nothing_is_encoded(place: Place, request: pytest.FixtureRequest) -> None:
    place.extract()
    request.getfixturevalue("no_encoder")
    work = place.cache().summary
    summary = place.extract(with_utterance(place.corpus, 4, ratings=(Rating("r9", "sad"),)))
    assert _counts(summary, "audio") == _counts(summary, "text") == (0, 12, 0)
    assert summary.written
    assert len(place.cache().ratings) == 34
    assert place.cache().summary == work


def test_a_changed_model_under_the_same_name_is_encoded_again_and_the_log_says_why(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.extract()
    before = _values(place.cache(), "audio")
    save_speech(place.folder / "wav2vec2", "wav2vec2-group", seed=1)
    with caplog.at_level(logging.INFO):
        summary = place.extract()
    assert _counts(summary, "audio") == (12, 0, 0)
    assert _counts(summary, "text") == (0, 12, 0)
    (line,) = [line for line in caplog.messages if "again" in line]
    assert line.startswith("audio/wav2vec2 is encoded again: weights_digest changed from ")
    assert not np.allclose(_values(place.cache(), "audio"), before)


def test_one_modality_may_be_added_later(place: Place, no_encoder_for_audio: None) -> None:
    place.extract(audio_model=None)
    assert [(f.modality, f.name) for f in place.cache().features] == [("text", "bert")]
    assert set(place.cache().utterances.audio_sha256) == {""}


@pytest.fixture
def no_encoder_for_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text alone reads no recording."""
    monkeypatch.setattr(amber2_extract.audio.soundfile, "SoundFile", None)


def test_what_is_not_asked_for_is_kept(place: Place) -> None:
    place.extract(text_model=None)
    before = place.cache()
    place.extract(audio_model=None)
    after = place.cache()
    np.testing.assert_array_equal(_values(after, "audio"), _values(before, "audio"))
    assert list(after.utterances.audio_sha256) == list(before.utterances.audio_sha256)
    np.testing.assert_array_equal(after.utterances.duration, before.utterances.duration)
    assert list(after.summary["features"]) == ["audio/wav2vec2", "text/bert"]


def test_a_kept_row_whose_transcript_changed_is_dropped_with_a_warning(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.extract()
    changed = with_utterance(place.corpus, 2, transcript="we heard one voice")
    place.extract(changed, text_model=None)
    assert "text/bert: 1 rows are dropped, as what they were encoded from has changed" in caplog.messages
    text = place.cache().feature_set("text")
    assert list(np.flatnonzero(~text.encoded)) == [2]
    assert np.isnan(text.values[2]).all()


def test_force_encodes_everything_again(place: Place) -> None:
    place.extract()
    summary = place.extract(force=True)
    assert _counts(summary, "audio") == _counts(summary, "text") == (12, 0, 0)
    assert summary.written


# --- failures ---


def test_what_cannot_be_encoded_is_listed_and_the_rest_goes_on(place: Place) -> None:
    wav = place.corpus.root / "wav"
    (wav / "u01.wav").unlink()
    (wav / "u03.wav").write_bytes(b"RIFF")
    soundfile.write(wav / "u05.wav", np.zeros(8_000), 16_000)
    soundfile.write(wav / "u07.wav", np.full(399, 0.1), 16_000)
    corpus = with_utterance(place.corpus, 9, audio=None)
    corpus = with_utterance(corpus, 10, transcript="\ud800 is half a character")
    summary = place.extract(corpus)
    assert [(failure.utterance, failure.stage) for failure in summary.failures] == [
        ("u01", "audio/wav2vec2"),
        ("u03", "audio/wav2vec2"),
        ("u05", "audio/wav2vec2"),
        ("u07", "audio/wav2vec2"),
        ("u09", "audio/wav2vec2"),
        ("u10", "text/bert"),
    ]
    reasons = [failure.reason for failure in summary.failures]
    expected = ("No such file", "cannot be decoded", "is silent", "is too short: 399", "has no recording", "Unicode")
    for reason, words in zip(reasons, expected, strict=True):
        assert words in reason
    cache = place.cache()
    assert cache.utterances.transcript[10] == "\ufffd is half a character"
    assert cache.failures == summary.failures
    assert list(np.flatnonzero(~cache.feature_set("audio").encoded)) == [1, 3, 5, 7, 9]
    assert np.isnan(_values(cache, "audio")[[1, 3, 5, 7, 9]]).all()
    assert np.isfinite(_values(cache, "audio")[[0, 2, 4, 6, 8, 10, 11]]).all()


def test_a_known_failure_is_not_tried_again_until_its_file_changes(
    place: Place, request: pytest.FixtureRequest
) -> None:
    soundfile.write(place.corpus.root / "wav/u05.wav", np.zeros(8_000), 16_000)
    first = place.extract()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amber2_extract.encoders.SpeechEncoder, "__init__", None)
        second = place.extract()
    assert _counts(second, "audio") == (0, 11, 1)
    assert second.failures == first.failures
    assert not second.written
    write_recording(place.corpus.root / "wav/u05.wav", 0.2, seed=7)
    third = place.extract()
    assert _counts(third, "audio") == (1, 11, 0)
    assert third.failures == place.cache().failures == ()


def test_not_one_recording_is_an_error_and_nothing_is_written(place: Place) -> None:
    for path in (place.corpus.root / "wav").iterdir():
        path.unlink()
    with pytest.raises(AudioError, match=r"Not one of 12 utterances .* audio/wav2vec2 \(u00: u00\.wav: No such file"):
        place.extract()
    assert not place.output.exists()


def test_nothing_to_encode_and_settings_without_meaning_are_refused(place: Place) -> None:
    with pytest.raises(SettingError, match="Nothing to encode"):
        place.extract(audio_model=None, text_model=None)
    with pytest.raises(SettingError, match="Bad max_seconds -1"):
        place.extract(max_seconds=-1)
    with pytest.raises(SettingError, match="Bad batch_seconds nan"):
        Effort(batch_seconds=float("nan"))


# --- what stands in the way ---


def test_a_cache_of_another_corpus_is_not_overwritten(place: Place) -> None:
    place.extract()
    with pytest.raises(CacheError, match=r"holds the corpus 'example', not 'other'.* --force"):
        place.extract(replace(place.corpus, name="other"))
    place.extract(replace(place.corpus, name="other"), force=True)
    assert place.cache().corpus == "other"


def test_a_damaged_cache_is_not_overwritten(place: Place) -> None:
    place.extract()
    place.output.write_bytes(place.output.read_bytes()[:2000])
    with pytest.raises(CacheError, match=r"truncated or damaged .* --force"):
        place.extract()
    place.extract(force=True)
    assert len(place.cache().utterances) == 12


def test_an_output_that_cannot_be_is_refused_before_anything_is_encoded(place: Place, no_encoder: None) -> None:
    (place.folder / "file").touch()
    with pytest.raises(CacheError, match=r"Cannot write .*file/example\.h5: .*--output"):
        place.extract(output=place.folder / "file" / "example.h5")
    if os.geteuid() != 0:  # root may write everywhere
        (place.folder / "locked").mkdir(mode=0o500)
        with pytest.raises(CacheError, match=r"Cannot write .*: Permission denied"):
            place.extract(output=place.folder / "locked" / "example.h5")


# --- interruptions ---


class _StopError(Exception):
    """Something that comes in between."""


def _interrupted(place: Place, *, after: int, **settings: Any) -> None:
    """Begin an extraction and break it off after some batches of audio."""

    def stop(progress: Progress) -> None:
        if progress.features.startswith("audio") and progress.done >= after:
            raise _StopError

    with pytest.raises(_StopError):
        place.extract(on_progress=stop, **settings)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is a part of its own."""
    monkeypatch.setattr(amber2_extract.parts, "PART_SECONDS", 0.0)


@pytest.mark.parametrize("effort", [Effort(batch_seconds=0), Effort(batch_seconds=1)])
def test_an_interrupted_extraction_goes_on_and_ends_with_the_same_values(
    effort: Effort, place: Place, small_parts: None, caplog: pytest.LogCaptureFixture
) -> None:
    place.extract(output=place.folder / "undisturbed.h5", effort=effort)
    _interrupted(place, after=5, effort=effort)
    assert not place.output.exists()
    with caplog.at_level(logging.INFO):
        summary = place.extract(effort=effort)
    assert 0 < _of(summary, "audio").encoded <= 7
    assert _of(summary, "audio").encoded + _of(summary, "audio").up_to_date == 12
    assert _counts(summary, "text") == (0, 12, 0)
    assert any("are finished already" in line for line in caplog.messages)
    undisturbed = read_cache(place.folder / "undisturbed.h5")
    for modality in ("audio", "text"):
        np.testing.assert_array_equal(_values(place.cache(), modality), _values(undisturbed, modality))


def test_what_was_encoded_before_an_interruption_from_the_keyboard_is_kept(place: Place) -> None:
    """Although no part was due yet."""
    _interrupted(place, after=5)
    assert _of(place.extract(), "audio").encoded <= 7


def test_an_interrupted_change_leaves_the_earlier_cache_readable(place: Place, small_parts: None) -> None:
    place.extract()
    before = place.output.read_bytes()
    save_speech(place.folder / "wav2vec2", "wav2vec2-group", seed=1)
    _interrupted(place, after=5)
    assert place.output.read_bytes() == before


def test_a_damaged_part_is_encoded_again(place: Place, small_parts: None, caplog: pytest.LogCaptureFixture) -> None:
    place.extract(output=place.folder / "undisturbed.h5")
    _interrupted(place, after=6)
    parts = sorted(place.output.parent.glob("example.h5.parts/*/*.npz"), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(parts[-1].read_bytes())
    data[len(data) // 2] ^= 1
    parts[-1].write_bytes(data)
    place.extract()
    assert any("is damaged" in line for line in caplog.messages)
    undisturbed = read_cache(place.folder / "undisturbed.h5")
    np.testing.assert_array_equal(_values(place.cache(), "audio"), _values(undisturbed, "audio"))


def test_parts_of_another_recipe_are_not_taken_up(place: Place, small_parts: None) -> None:
    _interrupted(place, after=6)
    save_speech(place.folder / "wav2vec2", "wav2vec2-group", seed=1)
    assert _counts(place.extract(), "audio") == (12, 0, 0)


def test_a_full_disk_is_one_line_and_loses_nothing(
    place: Place, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def full(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written > 12:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(amber2_extract.parts.os, "fsync", full)
        with pytest.raises(CacheError, match=r"No space left on device; the \d+ rows finished so far are kept"):
            place.extract()
    assert not place.output.exists()
    summary = place.extract()
    assert 0 < _of(summary, "audio").encoded < 12
    assert [path.name for path in place.output.parent.iterdir()] == ["example.h5"]


def _extract_slowly(folder: Path, corpus: Corpus, output: Path, began: Any) -> None:
    """Extract in a process of its own: every batch is a part, and takes a while, so that kills hit the encoding."""
    amber2_extract.parts.PART_SECONDS = 0.0
    encoder: Any = amber2_extract.encoders.SpeechEncoder
    encode = encoder.encode_batch

    def slow(self: Any, waveforms: Any) -> Any:
        time.sleep(0.03)
        return encode(self, waveforms)

    encoder.encode_batch = slow
    began.set()
    extract_features(corpus, output, audio_model=str(folder / "wav2vec2"), text_model=str(folder / "bert"))


def test_headers_of_unchanged_recordings_are_not_read_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.extract()
    before = place.cache()
    changed = place.corpus.root / str(place.corpus.utterances[1].audio)
    samples, rate = soundfile.read(changed)
    soundfile.write(changed, samples[: len(samples) // 2], rate)
    measured: list[Path] = []
    measure = amber2_extract.inputs.seconds_of

    def seconds_of(excerpt: Any) -> float:
        measured.append(excerpt.path)
        return measure(excerpt)

    monkeypatch.setattr(amber2_extract.inputs, "seconds_of", seconds_of)
    place.extract()
    assert measured == [changed]
    after = place.cache()
    assert after.utterances.duration[1] == np.float32(len(samples) // 2 / rate)
    np.testing.assert_array_equal(np.delete(after.utterances.duration, 1), np.delete(before.utterances.duration, 1))


def _count_parts(place: Place) -> int:
    return len(list(place.output.parent.glob("*.parts/*/*.npz")))


def test_killed_twenty_times_it_goes_on_and_ends_with_the_same_values(place: Place) -> None:
    place.corpus = write_corpus(place.folder / "corpus", count=80)
    place.extract(output=place.folder / "undisturbed.h5")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(PRELOADED))
    generator = np.random.default_rng(0)
    stages = {0}
    for _ in range(20):
        began = processes.Event()
        process = processes.Process(target=_extract_slowly, args=(place.folder, place.corpus, place.output, began))
        process.start()
        assert began.wait(timeout=60)
        # After so many further parts, however slow the machine is, and at any moment of what follows.
        enough = max(stages) + generator.integers(0, 4)
        while _count_parts(place) < enough and process.is_alive():
            process.join(timeout=0.01)
        process.join(timeout=generator.uniform(0.0, 0.2))
        process.kill()
        process.join()
        stages.add(_count_parts(place))
        if place.output.exists():
            read_cache(place.output)
    # The kills came at many moments.
    assert len(stages) > 5, stages
    place.extract()
    undisturbed = read_cache(place.folder / "undisturbed.h5")
    for modality in ("audio", "text"):
        np.testing.assert_array_equal(_values(place.cache(), modality), _values(undisturbed, modality))
    assert [path.name for path in place.output.parent.iterdir()] == ["example.h5"]


# --- real recordings ---


def test_real_recordings_are_encoded(place: Place, test_data: Path) -> None:
    clips = [
        *sorted((test_data / "nemo" / "samples").glob("*.wav"))[:3],
        *sorted((test_data / "ravdess").glob("*.wav"))[:3],
    ]
    utterances = tuple(
        replace(utterance, audio=path.name, id=path.stem)
        for utterance, path in zip(place.corpus.utterances, clips, strict=False)
    )
    for path in clips:
        (place.folder / "real").mkdir(exist_ok=True)
        (place.folder / "real" / path.name).symlink_to(path)
    summary = place.extract(replace(place.corpus, root=place.folder / "real", utterances=utterances))
    assert _counts(summary, "audio") == (6, 0, 0)
    values = _values(place.cache(), "audio")
    assert np.isfinite(values).all()
    # six clips, six vectors
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1)
    assert distances[~np.eye(6, dtype=bool)].min() > 1e-3
