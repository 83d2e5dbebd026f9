"""Transcripts as text: what happened to them before they came here is told with a count, and undone on demand alone."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from extraction import Place, counts, of, work_here
from small_corpus import with_utterance
from small_models import save_text

from amber2_core.utterance import Utterance
from amber2_data.transcripts import repaired, transcript_problems, trimmed

DAMAGED = "we do not know the company\x92s voice\x85"
WHOLE = "we do not know the company’s voice…"


def spoken(*transcripts: str) -> list[Utterance]:
    return [Utterance(f"u{number}", None, text) for number, text in enumerate(transcripts)]


def test_every_control_character_of_c1_becomes_what_windows_means_by_its_byte() -> None:
    for byte in range(0x80, 0xA0):
        undefined = byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
        expected = chr(byte) if undefined else bytes([byte]).decode("cp1252")
        assert repaired(f"a{chr(byte)}b", "cp1252") == f"a{expected}b"
    assert repaired(DAMAGED, "cp1252") == WHOLE
    assert repaired(DAMAGED, None) == DAMAGED
    assert repaired(WHOLE, "cp1252") == WHOLE


def test_an_ellipsis_of_windows_at_the_end_is_no_blank() -> None:
    assert trimmed(" \t\u3000Well\x85 \n") == "Well\x85"


@pytest.mark.parametrize(
    ("transcript", "what"),
    [
        (DAMAGED, "hold C1 control characters"),
        ("Well\x85", "hold C1 control characters"),
        ("It\u00e2\u20ac\u2122s you", "hold UTF-8 that was read as another code page"),
        ("Caf\u00c3\u00a9", "hold UTF-8 that was read as another code page"),
        ("one\x07two", "hold control characters"),
        ("lost \ufffd", "hold U+FFFD"),
        ("b'well then'", "are bytes as Python prints them"),
        ('b"it\'s"', "are bytes as Python prints them"),
        ("0.6667", "are bare numbers"),
        ("-3", "are bare numbers"),
        ("nan", "are a program's word for a missing value"),
        ("you &amp; me", "hold HTML entities"),
    ],
)
def test_each_kind_of_damage_is_told_with_a_count_and_an_example(transcript: str, what: str) -> None:
    (problem,) = transcript_problems(spoken("one voice", transcript, transcript))
    assert (problem.file, problem.line) == ("transcripts", None)
    assert problem.what.startswith(f"2 of 3 {what}")
    assert "for one 'u1': " in problem.what


@pytest.mark.parametrize(
    "transcript",
    [
        "",
        "I have 2 of them.",
        "Straße, »Gruß«, Ångström, CAFÉ",
        "À bientôt — ÂME, naïve…",
        "你怎么来了",
        "über b'… what?",
        "Nan is here",
        "“Yes”, she said, & left",
    ],
)
def test_text_of_people_is_no_damage(transcript: str) -> None:
    assert transcript_problems(spoken("one voice", transcript)) == []


@pytest.mark.parametrize(("transcript", "what"), [("", "all are empty"), ("hello", "all are 'hello'")])
def test_transcripts_that_tell_nothing_are_told(transcript: str, what: str) -> None:
    (problem,) = transcript_problems(spoken(transcript, transcript, transcript))
    assert problem.what == f"{what}: text tells nothing of an utterance"
    assert transcript_problems(spoken(transcript)) == []


def test_what_is_repaired_is_no_problem_any_more() -> None:
    assert transcript_problems(spoken(DAMAGED, "one voice"), "cp1252") == []


def test_a_repair_is_in_the_recipe_encodes_what_changes_and_leaves_the_transcript_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work_here(monkeypatch)
    place = Place(tmp_path, count=6)
    save_text(tmp_path / "other", "roberta")
    corpus = with_utterance(place.corpus, 0, transcript=DAMAGED)
    with caplog.at_level(logging.WARNING):
        place.extract(corpus, audio_model=None)
    assert "1 of 6 hold C1 control characters" in caplog.text
    before = place.cache().feature_set("text")
    assert "repair" not in before.recipe
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        summary = place.extract(corpus, audio_model=None, repair="cp1252")
    assert "C1" not in caplog.text
    assert of(summary, "text").encoded == 6
    after = place.cache().feature_set("text")
    assert after.recipe == {**before.recipe, "repair": "cp1252"}
    assert place.cache().utterances.transcript[0] == DAMAGED
    assert counts(place.extract(corpus, audio_model=None, repair="cp1252"), "text") == (0, 6, 0)
    # beside the set that is repaired another one stands that is not, and neither drops the other's rows
    place.extract(corpus, audio_model=None, text_model=str(tmp_path / "other"))
    repaired_set, _ = sorted(place.cache().features, key=lambda features: features.name)
    np.testing.assert_array_equal(repaired_set.values, after.values)
    whole = place.extract(
        with_utterance(place.corpus, 0, transcript=WHOLE), audio_model=None, output=tmp_path / "whole.h5"
    )
    np.testing.assert_array_equal(place.cache("whole.h5").feature_set("text").values, after.values)
    assert of(whole, "text").encoded == 6
