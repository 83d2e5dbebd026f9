"""What a cache cannot hold is said before anything is encoded, and transcripts are mended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amber2_core.errors import CorpusError
from amber2_core.utterance import Corpus, LabelDefaults, Rating, Utterance
from amber2_extract.blank import blank_cache, storable

UTTERANCE = Utterance("u1", "u1.wav", "one voice", (Rating("r1", "sad"),), attributes={"note": "calm"})


def _corpus(**changes: Any) -> Corpus:
    return Corpus("example", Path("/corpus"), (replace(UTTERANCE, **changes),), LabelDefaults(("sad", "happy")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": "u\0"}, r"Bad id 'u\\x00' in /corpus"),
        ({"speaker": "\udc80"}, "Bad speaker"),
        ({"ratings": (Rating("r1", "s\0d"),)}, "Bad label"),
        ({"ratings": (Rating("r1", "sad", weight=-1.0),)}, "Bad weight -1.0"),
        ({"attributes": {"note": "\ud800"}}, "Bad note"),
        ({"attributes": {"a/b": 1.0}}, "Bad attribute name 'a/b'"),
    ],
)
def test_what_cannot_be_stored_is_refused(changes: Any, words: str) -> None:
    with pytest.raises(CorpusError, match=words):
        blank_cache(_corpus(**changes))


def test_a_transcript_is_mended() -> None:
    assert storable("a\ud800b\0c") == "a\ufffdb\ufffdc"
    assert storable("🎙️ naïve") == "🎙️ naïve"
    assert list(blank_cache(_corpus(transcript="a\0b")).utterances.transcript) == ["a\ufffdb"]


def test_the_tables_of_the_corpus_are_in_it() -> None:
    blank = blank_cache(_corpus())
    assert (blank.corpus, len(blank.ratings), blank.features) == ("example", 1, ())
    assert list(blank.attributes["note"]) == ["calm"]
    assert "amber2" in blank.versions
