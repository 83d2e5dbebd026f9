"""Strictness, sequences, precision, memory and devices: what extract-features does beyond one vector in fp32."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from small_corpus import with_utterance, write_corpus, write_recording
from small_models import save_speech, save_text

import amber2_core.devices
import amber2_extract.encoders
from amber2_core.cache import FeatureCache, read_cache
from amber2_core.errors import CacheError, CorpusError, ModelError
from amber2_core.utterance import Corpus, Rating
from amber2_extract.assembly import sequence_of
from amber2_extract.encoded import Encoded
from amber2_extract.pipeline import Summary, extract_features
from amber2_extract.work import Effort


class Place:
    """A folder with two models, a corpus and an output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "cache" / "example.h5"
        self.speech_model = save_speech(folder / "wav2vec2", "wav2vec2-group")
        save_text(folder / "bert", "bert")
        self.corpus = write_corpus(folder / "corpus")

    def extract(self, corpus: Corpus | None = None, **settings: Any) -> Summary:
        settings = {"audio_model": str(self.folder / "wav2vec2"), "text_model": str(self.folder / "bert"), **settings}
        return extract_features(corpus or self.corpus, settings.pop("output", self.output), **settings)

    def cache(self, name: str = "") -> FeatureCache:
        return read_cache(self.folder / name if name else self.output)

    def parts(self) -> list[Path]:
        return list(self.output.parent.glob("*.parts/*/*.npz"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def _refuse_to_load(*arguments: Any, **settings: Any) -> None:
    raise AssertionError("an encoder was loaded")


# --- what is met before anything is encoded ---


@pytest.mark.parametrize(
    "changes", [{"ratings": (Rating("r1", "sad", weight=float("nan")),)}, {"attributes": {"a/b": 1.0}}]
)
def test_a_corpus_that_no_cache_can_hold_is_met_before_anything_is_encoded(
    changes: Any, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amber2_extract.encoders.SpeechEncoder, "__init__", _refuse_to_load)
    monkeypatch.setattr(amber2_extract.encoders.TextEncoder, "__init__", _refuse_to_load)
    with pytest.raises(CorpusError):
        place.extract(with_utterance(place.corpus, 3, **changes))
    assert not place.output.parent.exists()


# --- strict ---


def test_strict_stops_before_encoding_when_a_recording_cannot_be_read(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.corpus.root / "wav/u03.wav").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(amber2_extract.encoders.SpeechEncoder, "__init__", _refuse_to_load)
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
    assert len(place.parts()) == 2
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
    encode = amber2_extract.encoders.SpeechEncoder.encode_batch

    def narrow(self: Any, inputs: Sequence[Any]) -> Encoded:
        if len(inputs) * max(map(len, inputs)) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encode(self, inputs)

    monkeypatch.setattr(amber2_extract.encoders.SpeechEncoder, "encode_batch", narrow)


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
    assert len(place.parts()) == 1
    assert place.extract().failures == ()


# --- devices ---


def test_several_devices_share_one_queue(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.extract(output=place.folder / "one.h5", effort=Effort(batch_seconds=1, batch_tokens=20))
    several = (torch.device("cpu"), torch.device("cpu"), torch.device("cpu"))
    monkeypatch.setattr(amber2_core.devices, "choose_devices", lambda name: several)
    summary = place.extract(effort=Effort(device="a,b,c", batch_seconds=1, batch_tokens=20))
    assert [features.device for features in summary.features] == ["cpu,cpu,cpu"] * 2
    one, three = place.cache("one.h5"), place.cache()
    for modality in ("audio", "text"):
        np.testing.assert_array_equal(one.feature_set(modality).values, three.feature_set(modality).values)


def test_a_failure_of_one_of_several_devices_ends_the_call(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amber2_core.devices, "choose_devices", lambda name: (torch.device("cpu"),) * 2)
    _narrow(monkeypatch, 4_000)
    with pytest.raises(ModelError, match="too little memory for one utterance alone"):
        place.extract()
