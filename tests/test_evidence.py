"""What stage 1 promises of batches is tried when an encoder starts, and measured on what is encoded."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from extraction import Place, after, deal_singly, of, work_here
from small_corpus import write_recording
from small_models import noise, save_speech, vectors

from amber2_core.errors import CacheError
from amber2_extract.batches import Effort
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.cli import inspect_cache
from amber2_extract.encoders.encoder import Encoder
from amber2_extract.encoders.exactness import trial_lengths
from amber2_extract.encoders.waveform import SpeechEncoder
from amber2_extract.evidence import Evidence, evidence_of, read_evidence, sample, write_evidence
from amber2_extract.recipe import EXACT
from amber2_extract.rows import Row, difference

BATCHES = Effort(batch_seconds=2, batch_tokens=60)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    work_here(monkeypatch)
    return Place(tmp_path)


@pytest.fixture
def sew(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A corpus, and an encoder that batches change, of which its trial tells nothing."""
    save_speech(place.folder / "wav2vec2", "sew")
    monkeypatch.setattr(Encoder, "_error_of_batches", lambda self: 0.0)
    return place


def _batched(place: Place, **settings: Any) -> Any:
    return place.extract(text_model=None, effort=BATCHES, **settings)


# --- the trial ---


@pytest.mark.parametrize(("stride", "period"), [(320, 8), (320, 2), (1, 8), (160, 16), (7, 3)])
def test_lengths_of_the_trial_have_every_remainder_and_both_extremes(stride: int, period: int) -> None:
    lengths = trial_lengths(400, stride, period=period)
    frames = [(length - 400) // stride + 1 for length in lengths]
    assert (min(lengths), max(frames)) == (400, 100)
    assert {count % period for count in frames[1:-1]} == set(range(period))
    remainders = {(length - 400) % stride for length in lengths}
    assert {0, stride - 1} <= remainders
    assert len(remainders) >= min(stride, period)


def test_an_encoder_that_takes_frames_in_pairs_is_found_out_and_encodes_one_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_speech(tmp_path, "sew")
    encoder = SpeechEncoder(find_checkpoint(str(tmp_path), modality="audio"))
    waveforms = noise(0.52, 0.3, 0.32)  # 25, 14 and 15 frames
    alone = [row for one in waveforms for row in encoder.encode([one])]
    batched = encoder._encode(waveforms, "fp32")
    assert max(map(difference, batched, alone)) > 1e-3
    with caplog.at_level(logging.INFO, "amber2_extract"):
        np.testing.assert_array_equal(vectors(encoder, waveforms), [row.values for row in alone])
    assert encoder.is_one_at_a_time
    assert encoder.error_of_batches > 1e-3
    assert caplog.messages == ["SEWModel changes with its batch: utterances are encoded one at a time"]


# --- on what is encoded ---


def test_rows_of_batches_are_encoded_again_alone_and_the_cache_tells_how_far_they_are(place: Place) -> None:
    place.extract(effort=BATCHES)
    stages = place.cache().summary["features"]
    for stage in ("audio/wav2vec2", "text/bert"):
        evidence = evidence_of(stages[stage]["evidence"])
        assert 2 <= evidence.checked <= stages[stage]["distinct"]
        assert evidence.largest <= EXACT["fp32"]
        assert not evidence.singly
    printed = CliRunner().invoke(inspect_cache, [str(place.output)]).output
    assert printed.count("rows of batches encoded again alone, largest relative difference") == 2
    record = json.loads(CliRunner().invoke(inspect_cache, [str(place.output), "--json"]).output)
    assert [one["evidence"] for one in record["features"]] == [
        stages[stage]["evidence"] for stage in ("audio/wav2vec2", "text/bert")
    ]
    assert not any("evidence" in one["recipe"] for one in record["features"])


def test_without_batches_there_is_nothing_to_check(place: Place) -> None:
    place.extract(text_model=None, effort=Effort(batch_seconds=0))
    assert of_cache(place) == Evidence()
    assert (
        "evidence: every utterance was encoded alone" in CliRunner().invoke(inspect_cache, [str(place.output)]).output
    )


def of_cache(place: Place, stage: str = "audio/wav2vec2") -> Evidence:
    return evidence_of(place.cache().summary["features"][stage]["evidence"])


def test_what_the_trial_overlooked_is_found_and_encoded_again_one_at_a_time(
    sew: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        summary = _batched(sew)
    (line,) = [line for line in caplog.messages if "one at a time" in line]
    assert "audio/wav2vec2: one at a time: a row of a batch was" in line
    assert line.endswith("what was encoded is encoded again")
    sew.extract(text_model=None, effort=Effort(batch_seconds=0), output=sew.folder / "alone.h5")
    np.testing.assert_array_equal(sew.values("audio"), sew.values("audio", "alone.h5"))
    evidence = of_cache(sew)
    assert evidence == of(summary, "audio").evidence
    assert evidence.singly
    assert evidence.largest > 1e-3
    assert of(summary, "audio").encoded == 12


def test_an_encoder_that_was_found_out_is_not_tried_in_batches_again(
    sew: Place, caplog: pytest.LogCaptureFixture
) -> None:
    _batched(sew)
    for row in (3, 4):
        write_recording(sew.corpus.root / f"wav/u{row:02d}.wav", 0.3, seed=90 + row)
    caplog.clear()
    before, largest = sew.values("audio"), of_cache(sew).largest
    with caplog.at_level(logging.INFO):
        summary = _batched(sew)
    assert of(summary, "audio").encoded == 2
    assert not any("one at a time" in line for line in caplog.messages)
    assert of_cache(sew).largest == largest
    assert of_cache(sew).singly
    changed = ~(sew.values("audio") == before).all(axis=1)
    assert changed.sum() == 2


def test_killed_at_any_moment_the_same_command_ends_with_the_same_evidence(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal_singly(monkeypatch)
    _batched(place, output=place.folder / "undisturbed.h5")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _batched(place, on_progress=after(4, stop))
    assert 4 <= place.kept() < 11
    _batched(place)
    undisturbed = place.cache("undisturbed.h5").summary["features"]["audio/wav2vec2"]["evidence"]
    assert of_cache(place) == evidence_of(undisturbed)
    np.testing.assert_array_equal(place.values("audio"), place.values("audio", "undisturbed.h5"))


def test_killed_after_it_was_found_out_it_goes_on_one_at_a_time(sew: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    deal_singly(monkeypatch)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _batched(sew, on_progress=after(3, stop))
    _batched(sew)
    sew.extract(text_model=None, effort=Effort(batch_seconds=0), output=sew.folder / "alone.h5")
    np.testing.assert_array_equal(sew.values("audio"), sew.values("audio", "alone.h5"))
    assert of_cache(sew).singly


def test_half_precision_has_a_bound_of_its_own(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _batched(place, precision="bf16")
    assert not any("one at a time" in line for line in caplog.messages)
    assert EXACT["fp32"] < of_cache(place).largest <= EXACT["bf16"]


def test_in_half_precision_an_encoder_that_batches_change_is_found_out_too(
    sew: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _batched(sew, precision="bf16")
    assert of_cache(sew).singly
    assert any("one at a time" in line for line in caplog.messages)


# --- the sample, the difference, the record ---


def test_the_sample_is_one_percent_and_at_least_32_whatever_the_order() -> None:
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(10_000)]
    assert sample(digests) == sample(reversed(digests))
    assert [len(sample(digests[:count])) for count in (0, 5, 32, 33, 3_200, 10_000)] == [0, 5, 32, 32, 32, 100]
    assert sample(digests[:500]) <= set(digests[:500])


def test_the_difference_is_that_of_values_and_frames_together() -> None:
    alone = Row(np.array([3.0, 0.0], np.float32), np.array([[0.0, 4.0]], np.float32))
    other = Row(np.array([3.0, 0.3], np.float32), np.array([[0.4, 4.0]], np.float32))
    assert difference(other, alone) == pytest.approx(0.1)
    assert difference(alone, alone) == 0
    assert difference(alone, Row(alone.values * np.nan, alone.frames)) > 1e9
    with pytest.raises(ValueError, match="shapes"):
        difference(Row(alone.values), alone)


def test_evidence_is_kept_beside_the_rows_and_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    assert read_evidence(tmp_path) == Evidence()
    found = Evidence(40, 2e-7) | Evidence(2, 3e-7, singly=True)
    assert found == Evidence(42, 3e-7, singly=True)
    write_evidence(tmp_path, found)
    assert read_evidence(tmp_path) == found
    assert evidence_of({"checked": 3, "younger": 1}) == Evidence(3)
    (tmp_path / "evidence.json").write_text("{")
    with pytest.raises(CacheError, match=r"Cannot read .*evidence\.json: .*; remove "):
        read_evidence(tmp_path)


@pytest.mark.parametrize(("precision", "largest"), [("fp32", 2e-5), ("bf16", 0.04), ("fp16", 5e-3)])
def test_what_is_beyond_the_bound_of_its_precision_is_against_batches(precision: Any, largest: float) -> None:
    assert Evidence(1, largest).is_against(precision)
    assert not Evidence(1, EXACT[precision]).is_against(precision)
    assert not replace(Evidence(1, largest), singly=True).is_against(precision)
