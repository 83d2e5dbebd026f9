"""What is read of a language model's answers: what was written there, and nothing else."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amber2_core.votes import LabelPolicy
from amber2_extract.answers import AnswerReader, UnparsableError

EMOTIONS = ("neutral", "happy", "angry", "sad")
READER = AnswerReader(LabelPolicy(EMOTIONS, merge=(("excited", "happy"),)))
# what the words of the tests stand for, told once more
MEANT = {word: word for word in EMOTIONS} | {"happiness": "happy", "anger": "angry", "sadness": "sad"}
MEANT |= {"excited": "happy", "excitement": "happy"}
PAIR = re.compile(r'"([^"\\]*)"\s*:\s*(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')

WORDS = st.sampled_from([*MEANT, "Happiness", " SAD "])
SHARES = st.dictionaries(WORDS, st.floats(0, 100).map(lambda x: round(x, 3)) | st.integers(0, 100), min_size=1)
PROSE = st.text(st.characters(blacklist_characters="{}", blacklist_categories=["Cs"]), max_size=30)


def by_hand(shares: list[tuple[str, float]]) -> list[float]:
    """The distribution of pairs of a word and its share, emotion by emotion."""
    total = sum(share for _, share in shares)
    return [sum(share for word, share in shares if MEANT[word.strip().lower()] == e) / total for e in EMOTIONS]


@given(PROSE, SHARES.filter(lambda shares: sum(shares.values()) > 0), PROSE)
def test_an_object_of_shares_is_read_out_of_any_prose(before: str, shares: dict[str, float], after: str) -> None:
    for text in (json.dumps(shares), json.dumps(shares, indent=2), json.dumps({"why": "x", "shares": shares})):
        found = READER.distribution(f"{before}{text}{after}")
        np.testing.assert_allclose(found, by_hand([*shares.items()]), atol=1e-12)


def test_an_object_that_ends_too_early_is_not_taken_for_the_whole() -> None:
    with pytest.raises(UnparsableError, match="a brace that closes nothing"):
        READER.distribution('{"angry": 1.0}, "sad": 1.0}')


@given(st.data(), SHARES)
def test_a_damaged_answer_gives_what_still_stands_in_it_or_nothing(
    data: st.DataObject, shares: dict[str, float]
) -> None:
    text = json.dumps(shares)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        put = data.draw(st.text('{}[]",:0.5e- ', max_size=2))
        text = text[:at] + put + text[at + data.draw(st.integers(0, 2)) :]
    try:
        found = READER.distribution(text)
    except UnparsableError:
        return
    if text.strip(" .,:[]\"'") in MEANT:
        assert sorted(found) == [0, 0, 0, 1]
    else:
        held = [(word, float(number)) for word, number in PAIR.findall(text)]
        known = [(word, share) for word, share in held if share or word.strip().lower() in MEANT]
        np.testing.assert_allclose(found, by_hand(known), atol=1e-12)


@given(st.text())
@example("not happy")
@example("happy or sad")
@example("{}")
@example("happy: 0.5, sad: 0.5")
def test_free_text_is_one_label_alone_or_nothing(text: str) -> None:
    try:
        found = READER.distribution(text)
    except UnparsableError:
        return
    word = re.sub(r"\W", "", text).lower()
    assert found.tolist() == [float(MEANT[word] == emotion) for emotion in EMOTIONS]


@pytest.mark.parametrize("answer", ["Happiness", ' "happy". ', "**HAPPY**", "excited\n", "(Excitement)"])
def test_a_label_is_folded_as_label_policies_fold_words(answer: str) -> None:
    assert READER.distribution(answer).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "no answer"),
        ("", "no answer"),
        (0.5, "no answer"),
        ("joyful", "no label alone: 'joyful'"),
        ("The speaker is happy.", "no label alone"),
        ('{"label": "happy"}', "no JSON object of shares"),
        ('{"happy": 0.5, "sad": "0.5"}', "no JSON object of shares"),
        ('{"happy": true}', "no JSON object of shares"),
        ('{"happy": 0.5, "fear": 0.5}', "'fear' is not one of"),
        ('{"happy": 0.9, "confidence": 0.7}', "'confidence' is not one of"),
        ('{"happy": -0.1, "sad": 1.1}', "no number of 0 or more"),
        ('{"happy": 0, "sad": 0}', "add up to 0"),
        ('{"happy": 1e308, "sad": 1e308}', "add up to inf"),
        ('{"happy": NaN}', "bad JSON"),
        ('{"happy": 0.5, "happy": 0.1}', "stands twice"),
        ('{"happy": 0.5, "sad": 0.', "bad JSON"),
        ('{"first": {"happy": 1}, "then": {"sad": 0.', "bad JSON"),
        ('{"happy": 1} or {"sad": 1}', "2 different objects"),
        ('{"a": {"happy": 1}, "b": {"sad": 1}}', "2 different objects"),
        ('{"a":' * 5000, "bad JSON"),
        ('{"happy": ' + "9" * 400 + "}", "no number of 0 or more"),
        ('{"happy": ' + "9" * 5000 + "}", "bad JSON"),
    ],
)
def test_whatever_else_is_not_guessed_at(answer: object, why: str) -> None:
    with pytest.raises(UnparsableError, match=re.escape(why)):
        READER.distribution(answer)


def test_what_is_said_twice_is_said_once_and_an_unknown_emotion_may_have_nothing() -> None:
    assert READER.distribution('{"sad": 1} … so: {"sad": 1}').tolist() == [0, 0, 0, 1]
    assert READER.of_shares({"happy": 30, "sad": 10, "fear": 0}).tolist() == [0, 0.75, 0, 0.25]


def test_a_label_keeps_the_word_that_was_said() -> None:
    assert READER.label(" Excited! ") == "Excited"
    with pytest.raises(UnparsableError):
        READER.label('{"happy": 1}')
