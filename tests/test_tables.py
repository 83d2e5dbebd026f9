"""A corpus as columns: what stands in which row, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from amber2_core.errors import CorpusError
from amber2_core.tables import (
    attribute_columns,
    attribute_of,
    is_storable_name,
    rating_table,
    take,
    utterance_table,
)
from amber2_core.utterance import Corpus, LabelDefaults, Rating, Utterance


def _corpus(*utterances: Utterance) -> Corpus:
    return Corpus("example", Path("root"), utterances, LabelDefaults(("happy", "sad")))


FIRST = Utterance(
    id="a",
    audio="wav/a.wav",
    transcript="Well, no.",
    ratings=(
        Rating("E1", "Happiness"),
        Rating("E1", "Excited"),
        Rating("F1", "sad", source="self", stimulus="audio", weight=0.25),
    ),
    speaker="F1",
    session="1",
    dialogue="x",
    split="train",
    language="en",
    start=1.5,
    duration=2.25,
    attributes={"valence": 3, "consensus": "hap", "mixed": 1.5},
)
SECOND = Utterance(id="b", audio=None, transcript="", attributes={"mixed": "high", "arousal": 4.5})
THIRD = Utterance(id="c", audio="c.wav", transcript="é", ratings=(Rating("anonymous1", "sad", "synthetic", "video"),))
CORPUS = _corpus(FIRST, SECOND, THIRD)


def test_each_utterance_is_a_row() -> None:
    table = utterance_table(CORPUS)
    assert len(table) == 3
    assert list(table.id) == ["a", "b", "c"]
    assert list(table.speaker) == ["F1", "", ""]
    assert list(table.session) == ["1", "", ""]
    assert list(table.dialogue) == ["x", "", ""]
    assert list(table.split) == ["train", "", ""]
    assert list(table.language) == ["en", "", ""]
    assert list(table.transcript) == ["Well, no.", "", "é"]
    assert list(table.audio) == ["wav/a.wav", "", "c.wav"]
    assert list(table.audio_sha256) == ["", "", ""]
    assert table.start.dtype == table.duration.dtype == np.float32
    np.testing.assert_array_equal(table.start, [1.5, np.nan, np.nan])
    np.testing.assert_array_equal(table.duration, [2.25, np.nan, np.nan])


def test_each_tick_is_a_row_in_the_order_of_the_utterances() -> None:
    table = rating_table(CORPUS)
    assert len(table) == 4
    assert [str(column.dtype) for column in (table.utterance, table.weight)] == ["int32", "float32"]
    assert table.utterance.tolist() == [0, 0, 0, 2]
    assert list(table.rater) == ["E1", "E1", "F1", "anonymous1"]
    assert list(table.source) == ["external", "external", "self", "synthetic"]
    assert list(table.stimulus) == ["audiovisual", "audiovisual", "audio", "video"]
    assert list(table.label) == ["Happiness", "Excited", "sad", "sad"]
    assert table.weight.tolist() == [1, 1, 0.25, 1]


def test_a_corpus_without_ratings_has_an_empty_table() -> None:
    table = rating_table(_corpus(SECOND))
    assert len(table) == 0
    dtypes = [str(column.dtype) for column in (table.utterance, table.label, table.weight)]
    assert dtypes == ["int32", "object", "float32"]


def test_attributes_are_numbers_unless_one_of_them_is_text() -> None:
    columns = attribute_columns(CORPUS)
    assert list(columns) == ["valence", "consensus", "mixed", "arousal"]
    assert {name: str(column.dtype) for name, column in columns.items()} == {
        "valence": "float64",
        "consensus": "object",
        "mixed": "object",
        "arousal": "float64",
    }
    np.testing.assert_array_equal(columns["valence"], [3, np.nan, np.nan])
    np.testing.assert_array_equal(columns["arousal"], [np.nan, 4.5, np.nan])
    assert list(columns["consensus"]) == ["hap", "", ""]
    assert list(columns["mixed"]) == ["1.5", "high", ""]
    assert attribute_columns(_corpus(THIRD)) == {}


def test_a_text_attribute_is_empty_where_the_corpus_does_not_give_it() -> None:
    columns = attribute_columns(CORPUS)
    assert list(attribute_of(columns, "consensus", 3)) == ["hap", "", ""]
    assert list(attribute_of(columns, "valence", 3)) == ["", "", ""]
    assert list(attribute_of(columns, "mood", 3)) == ["", "", ""]


def test_a_corpus_without_utterances_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"^No utterance in root: check that it is the root of the corpus 'example'$"):
        utterance_table(_corpus())


def test_one_id_twice_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"^Two utterances of root are called 'a': ids must be unique$"):
        utterance_table(_corpus(FIRST, SECOND, FIRST))


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_that_cannot_be_counted_is_refused(weight: float) -> None:
    bad = Utterance("u", None, "", (Rating("r", "sad"), Rating("s", "sad", weight=weight)))
    with pytest.raises(CorpusError) as caught:
        rating_table(_corpus(FIRST, bad))
    assert str(caught.value) == f"Bad weight {weight} of a rating of 'u', expected 0 or more"


@pytest.mark.parametrize("name", ["", ".", "V/A", "/", "a\0"])
def test_an_attribute_that_a_cache_cannot_name_is_refused_before_anything_is_encoded(name: str) -> None:
    assert not is_storable_name(name)
    with pytest.raises(CorpusError) as caught:
        attribute_columns(_corpus(FIRST, Utterance("u", None, "", attributes={name: 1.0})))
    assert str(caught.value) == f"Bad attribute name {name!r} in root, expected one without '/': rename it"


def test_ordinary_names_can_be_stored() -> None:
    assert all(map(is_storable_name, ["valence", "..", "a.b", "é 1–5", "votes.happy", " "]))


# --- some rows ---


def test_taken_rows_are_the_wanted_ones_in_the_wanted_order() -> None:
    table = take(utterance_table(CORPUS), np.array([2, 0]))
    assert list(table.id) == ["c", "a"]
    assert list(table.transcript) == ["é", "Well, no."]
    np.testing.assert_array_equal(table.start, [np.nan, 1.5])
    assert len(take(table, np.array([], dtype=np.intp))) == 0
