"""Label spaces by name, merges, and what of a corpus's own policy stands when the user changes a part of it."""

from __future__ import annotations

import pytest

from amber2_core.errors import LabelError, SettingError
from amber2_core.label_spaces import LABEL_SPACES, parse_emotions, parse_merge, policy_changes, policy_of
from amber2_core.utterance import LabelDefaults
from amber2_core.votes import LabelPolicy, canonical
from amber2_data.corpora import crema_d, iemocap

IEMOCAP = iemocap.DEFAULTS


@pytest.mark.parametrize(("name", "size"), [(name, int(name.rpartition("-")[2])) for name in LABEL_SPACES])
def test_a_named_space_has_the_number_of_emotions_in_its_name(name: str, size: int) -> None:
    space = parse_emotions(name)
    assert len({canonical(emotion) for emotion in space}) == len(space) == size
    assert parse_emotions(f" {name.upper()} ") == space
    assert space[0] == "neutral"


def test_corpora_default_to_their_spaces() -> None:
    assert LABEL_SPACES["iemocap-4"] == IEMOCAP.emotions
    assert LABEL_SPACES["crema-d-6"] == crema_d.DEFAULTS.emotions


def test_a_list_is_a_space_of_its_own() -> None:
    assert parse_emotions("calm, tense ,neutral") == ("calm", "tense", "neutral")


@pytest.mark.parametrize("text", ["iemocap-5", "", "sad,", ",", "neutral"])
def test_what_is_no_space_names_those_there_are(text: str) -> None:
    with pytest.raises(SettingError, match=r"Bad emotions .* expected at least two, or one of \['iemocap-4', 'iem"):
        parse_emotions(text)


def test_merges_are_pairs_or_none() -> None:
    assert parse_merge("none") == ()
    assert parse_merge("excited=happy, calm = neutral") == (("excited", "happy"), ("calm", "neutral"))
    for text in ("excited", "=happy", "excited=", "", "a=b,"):
        with pytest.raises(SettingError, match=r"Bad merge .* expected none or a list such as excited=happy"):
            parse_merge(text)


# options; the merges and emotions that come of them. IEMOCAP's own: four emotions, excited counts for happy
CASES: list[tuple[dict[str, str | None], tuple[tuple[str, str], ...], int]] = [
    ({}, (("excited", "happy"),), 4),
    ({"emotions": "iemocap-4"}, (("excited", "happy"),), 4),
    ({"emotions": "iemocap-9"}, (), 9),  # excited is an emotion of its own
    ({"emotions": "neutral,angry,sad"}, (), 3),  # there is no happy to merge into
    ({"emotions": "Happiness,Anger"}, (("excited", "happy"),), 2),  # nouns are the same words
    ({"merge": "none"}, (), 4),
    ({"merge": "frustrated=angry"}, (("frustrated", "angry"),), 4),
    ({"merge": "Sadness=angry"}, (("Sadness", "angry"),), 3),  # the merged word leaves the corpus's own space
    ({"merge": "sad=sad"}, (("sad", "sad"),), 4),
    ({"emotions": "iemocap-9", "merge": "excited=happy"}, (("excited", "happy"),), 9),  # said, so done
    ({"emotions": None, "merge": None, "keep": None}, (("excited", "happy"),), 4),
]


@pytest.mark.parametrize(("options", "merge", "size"), CASES, ids=str)
def test_the_corpuss_merges_stand_as_far_as_they_fit(
    options: dict[str, str | None], merge: tuple[tuple[str, str], ...], size: int
) -> None:
    policy = policy_of(IEMOCAP, options)
    assert (policy.merge, len(policy.emotions), policy.keep) == (merge, size, "consensus")


def test_a_merged_word_leaves_the_corpuss_own_space_and_its_votes_count_for_the_other() -> None:
    policy = policy_of(LabelDefaults(("fear", "happy", "sad")), {"merge": "fear=sad"})
    assert policy.emotions == ("happy", "sad")
    with pytest.raises(LabelError, match=r"Bad merge 'sad' into 'fear', expected one of \['happy'\]|at least two"):
        policy_of(LabelDefaults(("fear", "happy", "sad")), {"merge": "fear=sad,sad=fear"})


def test_no_option_gives_the_corpuss_own_policy() -> None:
    assert policy_of(IEMOCAP, {}) == LabelPolicy.of_corpus(IEMOCAP)


def test_every_option_is_a_field_of_the_policy() -> None:
    options = {
        "emotions": "calm,tense",
        "stimulus": "video",
        "raters": "all",
        "multi_label": "split",
        "out_of_space": "other",
        "merge": "warm=calm",
        "keep": "majority",
        "secondary": "merge",
    }
    policy = policy_of(LabelDefaults(("a", "b")), options)
    assert policy == LabelPolicy(
        ("calm", "tense"), "video", "all", "split", "other", (("warm", "calm"),), "majority", "merge"
    )
    assert policy_changes({"device": "cpu", "keep": "plurality"}) == {"keep": "plurality"}


def test_a_value_outside_of_its_choices_is_refused() -> None:
    with pytest.raises(LabelError, match="Bad keep 'best', expected one of"):
        policy_of(IEMOCAP, {"keep": "best"})
