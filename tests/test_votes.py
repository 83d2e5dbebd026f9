"""Votes to label distributions: every policy worked out by hand, and by loops in exact fractions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amber2_core.errors import LabelError
from amber2_core.tables import AttributeColumns, RatingTable, attribute_columns, rating_table, take, texts
from amber2_core.utterance import Corpus, LabelDefaults, Rating, Source, Stimulus, Utterance
from amber2_core.votes import (
    VOTERS,
    LabelPolicy,
    Targets,
    Voters,
    canonical,
    codes,
    counted_votes,
    label_distributions,
    label_words,
)

FOUR = ("neutral", "happy", "angry", "sad")


def _columns(*utterances: Utterance) -> tuple[RatingTable, AttributeColumns, int]:
    corpus = Corpus("example", Path("root"), utterances, LabelDefaults(FOUR))
    return rating_table(corpus), attribute_columns(corpus), len(utterances)


def _targets(utterances: Sequence[Utterance], policy: LabelPolicy) -> Targets:
    return label_distributions(*_columns(*utterances), policy)


def _utterance(number: int, consensus: str, *ratings: Rating) -> Utterance:
    return Utterance(f"u{number}", None, "", ratings, attributes={"consensus": consensus})


# --- worked out by hand ---

BY_HAND = (
    # a rater with two ticks, and a self-report
    _utterance(
        0,
        "neutral",
        Rating("E1", "Neutral"),
        Rating("E1", "Anger"),
        Rating("E2", "Neutral"),
        Rating("E3", "Happiness"),
        Rating("F1", "Sadness", source="self"),
    ),
    # a word that IEMOCAP's users merge
    _utterance(
        1,
        "Excited",
        Rating("E1", "Excited"),
        Rating("E2", "Happiness"),
        Rating("E3", "Happiness"),
        Rating("E3", "Excited"),
    ),
    # a tie, without consensus
    _utterance(2, "", Rating("E1", "Anger"), Rating("E2", "Sadness")),
    # nothing inside the four words
    _utterance(3, "Frustration", Rating("E1", "Frustration"), Rating("E2", "Other-confused")),
    # a self-report alone
    _utterance(4, "sad", Rating("F1", "Sadness", source="self")),
    # three stimuli, and a rater that is no person
    _utterance(
        5,
        "happy",
        Rating("anonymous1", "neutral", stimulus="audio"),
        Rating("anonymous2", "neutral", stimulus="audio"),
        Rating("anonymous3", "sad", stimulus="audio"),
        Rating("anonymous1", "sad", stimulus="video"),
        Rating("anonymous2", "neutral", stimulus="video"),
        Rating("anonymous1", "happy"),
        Rating("model", "sad", source="synthetic"),
    ),
    # a distribution in place of votes
    _utterance(
        6,
        " HAPPINESS",
        Rating("distribution", "happy", weight=0.6),
        Rating("distribution", "angry", weight=0.3),
        Rating("distribution", "sad", weight=0.1),
    ),
    # a first tick outside the four words
    _utterance(
        7,
        "angry",
        Rating("E1", "Frustration"),
        Rating("E1", "Anger"),
        Rating("E2", "Anger"),
        Rating("E3", "Sadness"),
    ),
    # more than half for one word
    _utterance(8, "Neutral", Rating("E1", "Neutral"), Rating("E2", "neutral "), Rating("E3", "ANGER")),
)

MERGED: dict[str, Any] = {"merge": (("excited", "happy"),)}
# policy; row → votes for neutral, happy, angry, sad (and other); how many of the 9 have no counting vote, how many of
# the others are not kept; ratings of another stimulus (5), of other raters, outside the space, beside the first
CASES: dict[str, tuple[dict[str, Any], dict[int, list[float]], tuple[int, int], tuple[int, int, int, int]]] = {
    "the default": (
        {},
        {
            0: [2, 1, 1, 0],  # both ticks of E1, not the self-report
            1: [0, 2, 0, 0],  # not the two ticks for excited
            2: [0, 0, 1, 1],
            5: [0, 1, 0, 0],  # what was given to voice and face together
            6: [0, 0.6, 0.3, 0.1],
            7: [0, 0, 2, 1],
            8: [2, 0, 1, 0],
        },
        (2, 0),
        (5, 3, 5, 0),
    ),
    "raters=all": (
        {"raters": "all"},
        {
            0: [2, 1, 1, 1],
            1: [0, 2, 0, 0],
            2: [0, 0, 1, 1],
            4: [0, 0, 0, 1],
            5: [0, 1, 0, 0],  # still not what no person said
            6: [0, 0.6, 0.3, 0.1],
            7: [0, 0, 2, 1],
            8: [2, 0, 1, 0],
        },
        (1, 0),
        (5, 1, 5, 0),
    ),
    "multi-label=split": (
        {"multi_label": "split"},
        {
            0: [1.5, 1, 0.5, 0],
            1: [0, 1.5, 0, 0],  # half of E3's vote was for excited
            2: [0, 0, 1, 1],
            5: [0, 1, 0, 0],
            6: [0, 0.2, 0.1, 1 / 30],  # a third of each share: the same distribution
            7: [0, 0, 1.5, 1],
            8: [2, 0, 1, 0],
        },
        (2, 0),
        (5, 3, 5, 0),
    ),
    "multi-label=first": (
        {"multi_label": "first"},
        {
            0: [2, 1, 0, 0],
            1: [0, 2, 0, 0],
            2: [0, 0, 1, 1],
            5: [0, 1, 0, 0],
            6: [0, 0.6, 0, 0],
            7: [0, 0, 1, 1],  # E1's first tick is frustration
            8: [2, 0, 1, 0],
        },
        (2, 0),
        (5, 3, 5, 4),
    ),
    "out-of-space=other": (
        {"out_of_space": "other"},
        {
            0: [2, 1, 1, 0, 0],
            1: [0, 2, 0, 0, 2],
            2: [0, 0, 1, 1, 0],
            3: [0, 0, 0, 0, 2],
            5: [0, 1, 0, 0, 0],
            6: [0, 0.6, 0.3, 0.1, 0],
            7: [0, 0, 2, 1, 1],
            8: [2, 0, 1, 0, 0],
        },
        (1, 0),
        (5, 3, 0, 0),
    ),
    "merge": (
        MERGED,
        {
            0: [2, 1, 1, 0],
            1: [0, 4, 0, 0],
            2: [0, 0, 1, 1],
            5: [0, 1, 0, 0],
            6: [0, 0.6, 0.3, 0.1],
            7: [0, 0, 2, 1],
            8: [2, 0, 1, 0],
        },
        (2, 0),
        (5, 3, 3, 0),
    ),
    "merge and split": (
        {**MERGED, "multi_label": "split"},
        {
            0: [1.5, 1, 0.5, 0],
            1: [0, 3, 0, 0],  # one vote of each rater
            2: [0, 0, 1, 1],
            5: [0, 1, 0, 0],
            6: [0, 0.2, 0.1, 1 / 30],
            7: [0, 0, 1.5, 1],
            8: [2, 0, 1, 0],
        },
        (2, 0),
        (5, 3, 3, 0),
    ),
    "keep=plurality": (
        {"keep": "plurality"},
        {
            0: [2, 1, 1, 0],
            1: [0, 2, 0, 0],
            5: [0, 1, 0, 0],
            6: [0, 0.6, 0.3, 0.1],
            7: [0, 0, 2, 1],
            8: [2, 0, 1, 0],
        },
        (2, 1),  # the tie
        (5, 3, 5, 0),
    ),
    "keep=plurality with other": (
        {"keep": "plurality", "out_of_space": "other"},
        {
            0: [2, 1, 1, 0, 0],
            3: [0, 0, 0, 0, 2],
            5: [0, 1, 0, 0, 0],
            6: [0, 0.6, 0.3, 0.1, 0],
            7: [0, 0, 2, 1, 1],
            8: [2, 0, 1, 0, 0],
        },
        (1, 2),  # u1 is a tie of happy and other
        (5, 3, 0, 0),
    ),
    "keep=majority": (
        {"keep": "majority"},
        {
            1: [0, 2, 0, 0],
            5: [0, 1, 0, 0],
            6: [0, 0.6, 0.3, 0.1],
            7: [0, 0, 2, 1],
            8: [2, 0, 1, 0],
        },
        (2, 2),  # u0 has half its votes for neutral, no more
        (5, 3, 5, 0),
    ),
    "keep=consensus": (
        {"keep": "consensus"},
        {
            0: [2, 1, 1, 0],
            5: [0, 1, 0, 0],
            6: [0, 0.6, 0.3, 0.1],
            7: [0, 0, 2, 1],
            8: [2, 0, 1, 0],
        },
        (2, 2),  # u1's consensus is excited, u2 has none; u4's is sad, but nobody else said so
        (5, 3, 5, 0),
    ),
    "keep=consensus and merge": (
        {**MERGED, "keep": "consensus"},
        {
            0: [2, 1, 1, 0],
            1: [0, 4, 0, 0],
            5: [0, 1, 0, 0],
            6: [0, 0.6, 0.3, 0.1],
            7: [0, 0, 2, 1],
            8: [2, 0, 1, 0],
        },
        (2, 1),
        (5, 3, 3, 0),
    ),
    "keep=consensus with other": (
        {"keep": "consensus", "out_of_space": "other"},
        {
            0: [2, 1, 1, 0, 0],
            1: [0, 2, 0, 0, 2],
            3: [0, 0, 0, 0, 2],
            5: [0, 1, 0, 0, 0],
            6: [0, 0.6, 0.3, 0.1, 0],
            7: [0, 0, 2, 1, 1],
            8: [2, 0, 1, 0, 0],
        },
        (1, 1),  # no consensus is not a consensus on something else
        (5, 3, 0, 0),
    ),
    "stimulus=audio": (
        {"stimulus": "audio", "emotions": ("sad", "neutral")},
        {5: [1, 2]},
        (8, 0),
        (28, 0, 0, 0),
    ),
    "stimulus=video": (
        {"stimulus": "video", "emotions": ("neutral", "sad")},
        {5: [1, 1]},
        (8, 0),
        (29, 0, 0, 0),
    ),
    "two emotions, by their nouns": (
        {"emotions": ("Sadness", "anger")},
        {0: [0, 1], 2: [1, 1], 6: [0.1, 0.3], 7: [1, 2], 8: [0, 1]},
        (4, 0),
        (5, 3, 14, 0),
    ),
}


@pytest.mark.parametrize(("settings", "votes", "dropped", "ignored"), CASES.values(), ids=CASES)
def test_each_policy_gives_the_votes_worked_out_by_hand(
    settings: dict[str, Any],
    votes: dict[int, list[float]],
    dropped: tuple[int, int],
    ignored: tuple[int, int, int, int],
) -> None:
    policy = LabelPolicy(**{"emotions": FOUR, **settings})
    targets = _targets(BY_HAND, policy)
    expected = np.array(list(votes.values()))
    assert targets.rows.tolist() == list(votes)
    np.testing.assert_allclose(targets.votes, expected, rtol=1e-6)  # the weights of shares are float32
    np.testing.assert_allclose(targets.soft_labels, expected / expected.sum(axis=1, keepdims=True), rtol=1e-6)
    assert targets.emotions == policy.classes
    assert targets.dropped == dict(zip(("no counting vote", f"not keep={policy.keep}"), dropped, strict=True))
    assert targets.ignored == {
        "other stimulus": ignored[0],
        f"not raters={policy.raters}": ignored[1],
        "of weight 0": 0,
        "outside the label space": ignored[2],
        f"not multi-label={policy.multi_label}": ignored[3],
    }


def test_whole_votes_are_counted_exactly() -> None:
    # Eq. 1: y_c = n_c / N, to the last bit
    words = {"u0": "neutral neutral sad", "u1": "happy angry sad sad sad neutral sad", "u2": "angry"}
    utterances = [
        Utterance(name, None, "", tuple(Rating(f"r{k}", word) for k, word in enumerate(said.split())))
        for name, said in words.items()
    ]
    targets = _targets(utterances, LabelPolicy(FOUR))
    for row, said in enumerate(words.values()):
        counted = Counter(said.split())
        assert targets.soft_labels[row].tolist() == [counted[word] / counted.total() for word in FOUR]


@pytest.mark.parametrize(
    ("keep", "shares", "kept"),
    [
        ("plurality", [("happy", 0.1), ("happy", 0.2), ("sad", 0.3)], False),  # 0.1 + 0.2 is not 0.3 in a computer
        ("plurality", [("happy", 0.1), ("happy", 0.2), ("sad", 0.31)], True),
        ("majority", [("happy", 0.1), ("happy", 0.2), ("sad", 0.3)], False),
        ("majority", [("sad", 0.1), ("sad", 0.2), ("happy", 0.3)], False),
        ("majority", [("happy", 0.3), ("sad", 0.3), ("sad", 0.01)], True),
    ],
)
def test_shares_that_differ_by_rounding_alone_are_a_tie(keep: Any, shares: list[tuple[str, float]], kept: bool) -> None:
    sure = [_utterance(k, "", Rating("r", word)) for k, word in enumerate(("happy", "sad"))]
    doubtful = _utterance(2, "", *(Rating(f"r{k}", word, weight=share) for k, (word, share) in enumerate(shares)))
    targets = _targets([*sure, doubtful], LabelPolicy(("happy", "sad"), keep=keep))
    assert targets.rows.tolist() == ([0, 1, 2] if kept else [0, 1])


def test_a_tick_of_weight_zero_is_nobodys() -> None:
    ratings = (Rating("r", "sad", weight=0), Rating("r", "happy"), Rating("s", "sad"), Rating("s", "happy"))
    for multi_label, expected in (("pooled", [2, 1]), ("split", [1.5, 0.5]), ("first", [1, 1])):
        targets = _targets(
            [_utterance(0, "", *ratings)],
            LabelPolicy(("happy", "sad"), multi_label=multi_label),  # type: ignore[arg-type]
        )
        assert targets.votes.tolist() == [expected]
        assert targets.ignored["of weight 0"] == 1


def test_raters_of_one_name_are_one_within_an_utterance_and_a_source_only() -> None:
    utterances = [
        _utterance(0, "", Rating("r", "happy"), Rating("r", "sad", source="self")),
        _utterance(1, "", Rating("r", "sad")),
    ]
    targets = _targets(utterances, LabelPolicy(("happy", "sad"), raters="all", multi_label="split"))
    assert targets.votes.tolist() == [[1, 1], [0, 1]]


def _with_secondary(text: str, *ratings: Rating) -> Utterance:
    return replace(_utterance(0, "", *ratings), attributes={"secondary": text})


@pytest.mark.parametrize(
    ("text", "votes"),
    [
        ("r: sad,happy", [1, 2]),  # happy is his primary label
        ("r: sad; Sadness ,, sad; s: happy", [2, 2]),  # what he ticked is no second tick, in whatever form
        ("s: happy; a bit; r: bored", [2, 1]),  # a rater's words may hold what parts raters
        ("s: t: happy,happy", [2, 1]),  # t rated nothing
    ],
)
def test_secondary_labels_are_ticks_unless_the_rater_ticked_them_already(text: str, votes: list[float]) -> None:
    ratings = (Rating("r", "Happiness"), Rating("s", "sad"))
    targets = _targets([_with_secondary(text, *ratings)], LabelPolicy(("happy", "sad"), secondary="merge"))
    assert targets.votes.tolist() == [votes]


def test_a_secondary_label_has_the_weight_stimulus_and_source_of_its_raters_primary_one() -> None:
    ratings = (Rating("r", "happy", weight=0.5), Rating("s", "sad", source="self"), Rating("t", "sad"))
    utterance = _with_secondary("r: sad; s: happy", *ratings)
    policy = LabelPolicy(("happy", "sad"), secondary="merge")
    assert _targets([utterance], policy).votes.tolist() == [[0.5, 1.5]]
    assert _targets([utterance], replace(policy, raters="all")).votes.tolist() == [[1.5, 2.5]]


def test_secondary_labels_that_are_not_there_or_are_nobodys_are_refused_in_one_line() -> None:
    policy = LabelPolicy(("happy", "sad"), secondary="merge")
    people = (Rating("r", "happy"), Rating("s", "sad"))
    with pytest.raises(LabelError, match=r"^Bad secondary 'merge': this corpus has no secondary labels.*drop$"):
        _targets([_utterance(0, "", *people)], policy)
    with pytest.raises(LabelError, match=r"^Bad attribute 'secondary' 'q: sad', expected RATER: words of one of"):
        _targets([_with_secondary("q: sad", *people)], policy)


def test_a_corpus_brings_its_own_policy() -> None:
    defaults = LabelDefaults(("neutral", "happy"), "video", (("excited", "happy"),), "consensus", "session")
    assert LabelPolicy.of_corpus(defaults) == LabelPolicy(
        ("neutral", "happy"), stimulus="video", merge=(("excited", "happy"),), keep="consensus"
    )


@pytest.mark.parametrize(
    ("forms", "word"),
    [
        (["Anger", "angry", " ANGRY "], "angry"),
        (["Happiness", "Happy"], "happy"),
        (["Sadness", "sad"], "sad"),
        (["Disgusted", "disgust"], "disgust"),
        (["Fearful", "FEAR"], "fear"),
        (["Surprised", "surprise"], "surprise"),
        (["Contemptuous", "contempt"], "contempt"),
        (["Frustration", "frustrated"], "frustrated"),
        (["Excitement", "excited"], "excited"),
        (["Other-Confused"], "other-confused"),
    ],
)
def test_forms_of_one_word_are_one_word(forms: list[str], word: str) -> None:
    assert {canonical(form) for form in forms} == {word}


def test_words_are_numbered_in_order_of_appearance_and_ranked_by_frequency() -> None:
    numbers, words = codes(texts(["b", "a", "b", "c"]))
    assert (numbers.tolist(), words) == ([0, 1, 0, 2], ["b", "a", "c"])
    assert label_words(["sad", "happy", "happy"]) == ["happy", "sad"]


# --- against loops, in exact fractions ---

# a rater's word → the word that is meant
MEANING = {
    "happy": "happy",
    "Happiness": "happy",
    "sad": "sad",
    " Sadness": "sad",
    "angry": "angry",
    "neutral": "neutral",
    "Excited": "excited",
    "Frustration": "frustrated",
    "Other-bored": "other-bored",
}


@dataclass
class Expected:
    """What the loops find."""

    votes: dict[int, list[Fraction]]
    dropped: tuple[int, int]
    counting: int
    by_raters: int


def _votes_of(utterance: Utterance, policy: LabelPolicy, sources: Collection[str]) -> tuple[list[Fraction], int, int]:
    """Votes for each class, how many ticks count, and how many were looked at."""
    merge = dict(policy.merge)
    ballots: dict[tuple[str, str], list[Rating]] = {}
    for rating in utterance.ratings:
        if rating.stimulus == policy.stimulus and rating.source in sources and rating.weight > 0:
            ballots.setdefault((rating.source, rating.rater), []).append(rating)
    votes, counting = [Fraction(0)] * (len(policy.emotions) + (policy.out_of_space == "other")), 0
    for ticks in ballots.values():
        share = Fraction(1, len(ticks)) if policy.multi_label == "split" else Fraction(1)
        for tick in ticks[:1] if policy.multi_label == "first" else ticks:
            word = MEANING[tick.label]
            word = merge.get(word, word)
            if word in policy.emotions:
                votes[policy.emotions.index(word)] += Fraction(tick.weight) * share
            elif policy.out_of_space == "other":
                votes[-1] += Fraction(tick.weight) * share
            else:
                continue
            counting += 1
    return votes, counting, sum(map(len, ballots.values()))


def _loops(utterances: Sequence[Utterance], policy: LabelPolicy) -> Expected:
    sources = ("external", "self") if policy.raters == "all" else ("external",)
    expected, silent, left, counting, by_raters = dict[int, list[Fraction]](), 0, 0, 0, 0
    for row, utterance in enumerate(utterances):
        votes, count, looked_at = _votes_of(utterance, policy, sources)
        counting += count
        by_raters += looked_at
        if not sum(votes):
            silent += 1
        elif _is_kept(votes, str(utterance.attributes.get("consensus", "")), policy):
            expected[row] = votes
        else:
            left += 1
    return Expected(expected, (silent, left), counting, by_raters)


def _is_kept(votes: list[Fraction], consensus: str, policy: LabelPolicy) -> bool:
    if policy.keep == "consensus":
        word = MEANING.get(consensus, "")
        word = dict(policy.merge).get(word, word)
        return word in policy.emotions or (policy.out_of_space == "other" and word != "")
    if policy.keep == "plurality":
        return votes.count(max(votes)) == 1
    if policy.keep == "majority":
        return 2 * max(votes) > sum(votes)
    return True


def _refusal(utterances: Sequence[Utterance], policy: LabelPolicy, expected: Expected) -> str | None:
    """What the line says that refuses these utterances, if one should."""
    stimuli = [rating.stimulus for utterance in utterances for rating in utterance.ratings]
    if not stimuli:
        return "The corpus holds no ratings"
    if policy.stimulus not in stimuli:
        return f"Bad stimulus '{policy.stimulus}'"
    if policy.keep == "consensus" and not any(utterance.attributes.get("consensus") for utterance in utterances):
        return "Bad keep 'consensus'"
    if not expected.by_raters:
        return f"No rating of stimulus={policy.stimulus} is by raters={policy.raters}"
    if not expected.votes:
        return "No utterance has a label"
    for name, column in zip(policy.classes, zip(*expected.votes.values(), strict=True), strict=True):
        if not sum(column):
            return "No kept utterance has a vote outside" if name == "other" else f"has a vote for '{name}'"
    return None


RATINGS = st.builds(
    Rating,
    rater=st.sampled_from(["r1", "r2", "r3"]),
    label=st.sampled_from(list(MEANING)),
    source=st.sampled_from(["external", "external", "external", "self", "synthetic"]),
    stimulus=st.sampled_from(["audiovisual", "audiovisual", "audio"]),
    weight=st.sampled_from([1.0, 1.0, 0.5, 0.25, 0.0]),
)
CONSENSUS = st.sampled_from(["", *MEANING])
UTTERANCES = st.lists(
    st.builds(lambda ratings, consensus: _utterance(0, consensus, *ratings), st.lists(RATINGS, max_size=6), CONSENSUS),
    min_size=1,
    max_size=8,
)
POLICIES = st.builds(
    LabelPolicy,
    emotions=st.sampled_from([("happy", "sad"), ("sad", "neutral", "happy")]),
    stimulus=st.sampled_from(["audiovisual", "audiovisual", "audio"]),
    raters=st.sampled_from(["external", "all"]),
    multi_label=st.sampled_from(["pooled", "split", "first"]),
    out_of_space=st.sampled_from(["drop", "other"]),
    merge=st.sampled_from([(), (("excited", "happy"),), (("excited", "happy"), ("frustrated", "sad"))]),
    keep=st.sampled_from(["consensus", "plurality", "majority", "any-vote"]),
)


# what every policy finds something in, so that laws are not tried on nothing
SURE = tuple(
    _utterance(0, word, *(Rating("r9", word, stimulus=stimulus) for stimulus in ("audiovisual", "audio")))
    for word in ("happy", "sad", "neutral", "Other-bored")
)


@settings(max_examples=300)
@given(UTTERANCES, POLICIES, st.booleans())
def test_targets_are_those_of_the_loops(utterances: list[Utterance], policy: LabelPolicy, sure: bool) -> None:
    utterances = [*utterances, *SURE] if sure else utterances
    expected = _loops(utterances, policy)
    refusal = _refusal(utterances, policy, expected)
    if refusal is not None:
        with pytest.raises(LabelError) as caught:
            _targets(utterances, policy)
        assert refusal in str(caught.value)
        return
    targets = _targets(utterances, policy)
    assert targets.rows.tolist() == list(expected.votes)
    np.testing.assert_allclose(
        targets.votes, [[float(n) for n in votes] for votes in expected.votes.values()], rtol=1e-12
    )
    np.testing.assert_allclose(
        targets.soft_labels,
        [[float(n / sum(votes)) for n in votes] for votes in expected.votes.values()],
        rtol=1e-12,
    )
    assert tuple(targets.dropped.values()) == expected.dropped
    assert sum(len(utterance.ratings) for utterance in utterances) - sum(targets.ignored.values()) == expected.counting


@settings(max_examples=200)
@given(UTTERANCES, POLICIES, st.sampled_from(VOTERS))
def test_the_votes_of_people_of_models_and_of_both_are_those_of_the_loops(
    utterances: list[Utterance], policy: LabelPolicy, voters: Voters
) -> None:
    ratings, _, count = _columns(*utterances)
    people = ["external", "self"] if policy.raters == "all" else ["external"]
    sources = {"human": people, "synthetic": ["synthetic"], "combined": [*people, "synthetic"]}[voters]
    expected = [[float(n) for n in _votes_of(one, policy, sources)[0]] for one in utterances]
    np.testing.assert_allclose(counted_votes(ratings, count, policy, voters), expected, rtol=1e-12)


# --- laws ---


@given(UTTERANCES, POLICIES)
def test_rows_sum_to_one_and_every_utterance_is_kept_or_dropped(
    utterances: list[Utterance], policy: LabelPolicy
) -> None:
    utterances = [*utterances, *SURE]
    targets = _targets(utterances, policy)
    assert targets.soft_labels.shape == (len(targets.rows), len(policy.classes))
    np.testing.assert_allclose(targets.soft_labels.sum(axis=1), 1, rtol=1e-12)
    assert (targets.soft_labels >= 0).all()
    assert sum(targets.dropped.values()) + len(targets.rows) == len(utterances)


@given(UTTERANCES, POLICIES, st.permutations(["r1", "r2", "r3", "r9"]), st.data())
def test_the_order_of_raters_and_utterances_in_the_table_does_not_matter(
    utterances: list[Utterance], policy: LabelPolicy, people: list[str], data: st.DataObject
) -> None:
    ratings, attributes, count = _columns(*utterances, *SURE)
    turn = data.draw(st.permutations(range(count)))
    keys = [(turn[row], people.index(rater)) for row, rater in zip(ratings.utterance, ratings.rater, strict=True)]
    order = sorted(range(len(ratings)), key=keys.__getitem__)  # stable: a rater's ticks stay in their order
    targets = label_distributions(ratings, attributes, count, policy)
    shuffled = label_distributions(take(ratings, np.array(order, dtype=np.intp)), attributes, count, policy)
    assert shuffled.rows.tolist() == targets.rows.tolist()
    np.testing.assert_allclose(shuffled.votes, targets.votes, rtol=1e-12)
    assert (shuffled.dropped, shuffled.ignored) == (targets.dropped, targets.ignored)


@given(UTTERANCES, POLICIES)
def test_merging_a_word_is_renaming_it_beforehand(utterances: list[Utterance], policy: LabelPolicy) -> None:
    def renamed(word: str) -> str:
        return "happy" if word == "Excited" else word

    merged = _targets([*utterances, *SURE], replace(policy, merge=(("Excitement", "happy"),)))
    spelled = [
        replace(
            utterance,
            ratings=tuple(replace(rating, label=renamed(rating.label)) for rating in utterance.ratings),
            attributes={"consensus": renamed(str(utterance.attributes["consensus"]))},
        )
        for utterance in [*utterances, *SURE]
    ]
    plain = _targets(spelled, replace(policy, merge=()))
    assert plain.rows.tolist() == merged.rows.tolist()
    np.testing.assert_array_equal(plain.votes, merged.votes)
    assert (plain.dropped, plain.ignored) == (merged.dropped, merged.ignored)


@given(UTTERANCES, POLICIES)
def test_pooled_votes_are_as_many_as_counting_ticks(utterances: list[Utterance], policy: LabelPolicy) -> None:
    whole = [
        replace(utterance, ratings=tuple(replace(rating, weight=1.0) for rating in utterance.ratings))
        for utterance in [*utterances, *SURE]
    ]
    targets = _targets(whole, replace(policy, multi_label="pooled", keep="any-vote"))
    ticks = sum(len(utterance.ratings) for utterance in whole)
    assert targets.votes.sum() == ticks - sum(targets.ignored.values())


@given(UTTERANCES, POLICIES)
def test_a_split_ballot_is_one_vote_at_most(utterances: list[Utterance], policy: LabelPolicy) -> None:
    targets = _targets([*utterances, *SURE], replace(policy, multi_label="split", keep="any-vote"))
    for row, votes in zip(targets.rows, targets.votes, strict=True):
        ratings = [*utterances, *SURE][row].ratings
        raters = {(r.source, r.rater) for r in ratings if r.stimulus == policy.stimulus and r.source != "synthetic"}
        assert votes.sum() <= len(raters) + 1e-12


def test_votes_outside_the_space_join_an_other_that_is_one_of_its_emotions() -> None:
    people = [Rating(f"r{k}", word) for k, word in enumerate(("sad", "OTHER", "bored", "awed", "happy"))]
    policy = LabelPolicy(("sad", "Other", "happy"), out_of_space="other")
    assert policy.classes == ("sad", "Other", "happy")
    targets = _targets((_utterance(0, "", *people),), policy)
    np.testing.assert_array_equal(targets.votes, [[1, 3, 1]])
    dropped = _targets((_utterance(0, "", *people),), LabelPolicy(("sad", "Other", "happy")))
    np.testing.assert_array_equal(dropped.votes, [[1, 1, 1]])


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"stimulus": "radio"}, "Bad stimulus 'radio', expected one of ['audio', 'video', 'audiovisual']"),
        ({"raters": "self"}, "Bad raters 'self', expected one of ['external', 'all']"),
        ({"multi_label": "last"}, "Bad multi-label 'last', expected one of ['pooled', 'split', 'first']"),
        ({"out_of_space": "keep"}, "Bad out-of-space 'keep', expected one of ['drop', 'other']"),
        ({"keep": "all"}, "Bad keep 'all', expected one of ['consensus', 'plurality', 'majority', 'any-vote']"),
        ({"secondary": "keep"}, "Bad secondary 'keep', expected one of ['drop', 'merge']"),
        ({"emotions": ("sad",)}, "Bad emotions ['sad'], expected at least two"),
        ({"emotions": ()}, "Bad emotions [], expected at least two"),
        ({"emotions": ("sad", "happy", "Sadness")}, "Bad emotions ['sad', 'happy', 'Sadness']: 'sad' is named twice"),
        (
            {"merge": (("excited", "joy"),)},
            "Bad merge 'excited' into 'joy', expected one of ['neutral', 'happy', 'angry', 'sad']",
        ),
        (
            {"merge": (("excited", "happy"), ("Excitement", "sad"))},
            "Bad merge: 'excited' is merged twice",
        ),
    ],
)
def test_a_policy_without_meaning_is_refused(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(LabelError) as caught:
        LabelPolicy(**{"emotions": FOUR, **settings})
    assert str(caught.value) == line


def _said(*words: str, source: Source = "external", stimulus: Stimulus = "audiovisual") -> tuple[Utterance, ...]:
    """One utterance for each word, with one rater."""
    return tuple(Utterance(f"u{k}", None, "", (Rating("r", word, source, stimulus),)) for k, word in enumerate(words))


REFUSED: dict[str, tuple[tuple[Utterance, ...], Mapping[str, Any], str]] = {
    "no rating": (
        (Utterance("u", None, ""),),
        {},
        "The corpus holds no ratings: there is nothing to train on",
    ),
    "another stimulus": (
        _said("happy", "sad", stimulus="video"),
        {},
        "Bad stimulus 'audiovisual', expected one of ['video']: no rater was given that",
    ),
    "self-reports alone": (
        _said("happy", "sad", source="self"),
        {},
        "No rating of stimulus=audiovisual is by raters=external: choose other --raters or --stimulus",
    ),
    "synthetic raters alone": (
        _said("happy", "sad", source="synthetic"),
        {"raters": "all"},
        "No rating of stimulus=audiovisual is by raters=all: choose other --raters or --stimulus",
    ),
    "other words": (
        _said("hap", "neu", "hap"),
        {},
        "No utterance has a label under emotions ['happy', 'sad'], keep=any-vote: raters said ['hap', 'neu']",
    ),
    "an emotion that nobody has": (
        _said("happy", "happy", "angry"),
        {},
        "No kept utterance has a vote for 'sad': leave it out of --emotions (raters said ['happy', 'angry'])",
    ),
    "nothing for other": (
        _said("happy", "sad"),
        {"out_of_space": "other"},
        "No kept utterance has a vote outside ['happy', 'sad']: use --out-of-space drop",
    ),
    "no consensus": (
        _said("happy", "sad"),
        {"keep": "consensus"},
        "Bad keep 'consensus': this corpus has no consensus labels of its own; choose another --keep",
    ),
    "ties alone": (
        (_utterance(0, "", Rating("r", "happy"), Rating("s", "sad")),),
        {"keep": "plurality"},
        "No utterance has a label under emotions ['happy', 'sad'], keep=plurality: raters said ['happy', 'sad']",
    ),
}


@pytest.mark.parametrize(("utterances", "settings", "line"), REFUSED.values(), ids=REFUSED)
def test_votes_that_give_no_targets_are_refused(
    utterances: tuple[Utterance, ...], settings: Mapping[str, Any], line: str
) -> None:
    with pytest.raises(LabelError) as caught:
        _targets(utterances, LabelPolicy(("happy", "sad"), **settings))
    assert str(caught.value) == line


# --- real votes ---


@pytest.mark.parametrize("stimulus", ["audio", "video", "audiovisual"])
def test_real_votes_become_their_shares(test_data: Path, stimulus: Stimulus) -> None:
    with np.load(test_data / "crema_d_features.npz", allow_pickle=False) as release:
        emotions, counts = tuple(map(str, release["emotions"])), release[f"votes_{stimulus}"]
    rows, classes = np.nonzero(counts)
    times = counts[rows, classes].astype(int)
    size = times.sum()
    ratings = RatingTable(
        utterance=np.repeat(rows, times).astype(np.int32),
        rater=texts([f"anonymous{number}" for number in range(size)]),
        source=texts(["external"] * size),
        stimulus=texts([stimulus] * size),
        label=texts(np.repeat(np.array(emotions, dtype=object)[classes], times).tolist()),
        weight=np.ones(size, dtype=np.float32),
    )
    targets = label_distributions(ratings, {}, len(counts), LabelPolicy(emotions, stimulus=stimulus))
    np.testing.assert_array_equal(targets.soft_labels, counts / counts.sum(axis=1, keepdims=True))
