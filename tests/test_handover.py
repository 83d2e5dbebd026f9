"""Emo_ent's rule against loops: spread, thresholds, what a sentiment decides, and what is predicted then."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from amber2_core.distributions import varentropy
from amber2_core.errors import SettingError
from amber2_core.handover import STEPS, Rule, chosen_rule, exchanged, sentiment_classes

Floats = NDArray[np.float64]
EMOTIONS = ("neutral", "happy", "angry", "sad")


def drawn(n: int, *, seed: int, sharpness: float = 1.0) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Distributions of the audio and votes of three raters, both (n, 4), and which utterances are of dev."""
    random = np.random.default_rng(seed)
    audio = random.dirichlet(np.full(4, sharpness), size=n)
    return audio, random.multinomial(3, random.dirichlet(np.ones(4), size=n)) / 3, random.uniform(size=n) < 0.5


# --- varentropy ---


@given(st.integers(2, 9), st.integers(0, 10**6))
def test_varentropy_is_the_variance_of_the_surprise(classes: int, seed: int) -> None:
    p = np.random.default_rng(seed).multinomial(6, np.full(classes, 1 / classes), size=20) / 6
    found = varentropy(p)
    for row, value in zip(p, found, strict=True):
        own = row[row > 0]
        surprise = -np.log(own)
        assert value == pytest.approx(np.average(surprise**2, weights=own) - np.average(surprise, weights=own) ** 2)
        assert value == pytest.approx(reference.varentropy(row.tolist()), abs=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.6, 0.9, 0.999])
def test_varentropy_of_two_classes_is_in_closed_form(share: float) -> None:
    expected = share * (1 - share) * math.log(share / (1 - share)) ** 2
    assert varentropy([share, 1 - share]) == pytest.approx(expected)
    assert varentropy([share, 1 - share, 0.0]) == pytest.approx(expected)


# --- thresholds ---


def missed_on_dev(p: list[list[float]], y: list[list[float]], on_dev: NDArray[np.bool_], c: int) -> list[list[float]]:
    """The distributions of dev that wrongly say c."""
    pairs = zip(p, y, on_dev, strict=True)
    return [own for own, rated, dev in pairs if dev and reference.argmax(own) == c != reference.argmax(rated)]


def precision(
    p: list[list[float]], y: list[list[float]], c: int, least: float | None, most: float | None
) -> tuple[float, int]:
    """That of a pair of thresholds; nudged, as sums in another order may move what stands on a threshold."""
    if least is None or most is None:
        return 0.0, 0
    return reference.precision_of_flags(p, y, c, least - 1e-12, most + 1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_find_wrong_predictions_more_precisely_than_any_other_pair(seed: int) -> None:
    audio, target, on_dev = drawn(24, seed=seed, sharpness=0.8)
    rule = chosen_rule("text", EMOTIONS, audio, target, on_dev=on_dev)
    p, y = audio.tolist(), target.tolist()
    for c in range(4):
        if not (missed := missed_on_dev(p, y, on_dev, c)):
            assert rule.entropy[c] is None
            continue
        best = max(
            precision(p, y, c, least, most)[0]
            for least in reference.steps([*map(reference.nats, missed)], 0.65, 0.85, STEPS)[::9]
            for most in reference.steps([*map(reference.varentropy, missed)], 0.15, 0.35, STEPS)[::9]
        )
        assert precision(p, y, c, rule.entropy[c], rule.varentropy[c])[0] >= best


def test_of_equals_the_pair_that_flags_most_is_taken_and_every_step_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """With so few steps that a loop can try them all."""
    monkeypatch.setattr("amber2_core.handover.STEPS", 6)
    compared = 0
    for seed in range(20):
        audio, target, on_dev = drawn(60, seed=seed, sharpness=2.0)
        rule = chosen_rule("text", EMOTIONS, audio, target, on_dev=on_dev)
        p, y = audio.tolist(), target.tolist()
        for c in range(4):
            if not (missed := missed_on_dev(p, y, on_dev, c)):
                continue
            best, chosen = (0.0, 0), list[float]()
            for least in reference.steps([*map(reference.nats, missed)], 0.65, 0.85, 6):
                for most in reference.steps([*map(reference.varentropy, missed)], 0.15, 0.35, 6):
                    score = precision(p, y, c, least, most)
                    if score[0] > 0 and score > best:
                        best, chosen = score, [least, most]
            if not chosen:
                assert rule.entropy[c] is None
            else:
                assert [rule.entropy[c], rule.varentropy[c]] == pytest.approx(chosen)
                compared += 1
    assert compared > 40


def test_a_class_that_is_never_wrong_on_dev_is_never_left_to_the_text() -> None:
    audio, _, on_dev = drawn(40, seed=1)
    target = np.eye(4)[audio.argmax(-1)]  # nothing is wrong
    rule = chosen_rule("text", EMOTIONS, audio, target, on_dev=on_dev)
    assert rule.entropy == rule.varentropy == (None,) * 4
    assert not rule.flags(audio).any()


def test_utterances_without_audio_have_no_say() -> None:
    audio, target, on_dev = drawn(60, seed=3)
    expected = chosen_rule("text", EMOTIONS, audio, target, on_dev=on_dev)
    with_holes = np.insert(audio, [0, 20, 60], np.nan, axis=0)
    more = np.insert(target, [0, 20, 60], [0, 0, 0, 1.0], axis=0)
    assert chosen_rule("text", EMOTIONS, with_holes, more, on_dev=np.insert(on_dev, [0, 20, 60], True)) == expected


def test_flags_stand_where_entropy_is_high_and_varentropy_low() -> None:
    uniform, sharp, between = [0.26, 0.25, 0.25, 0.24], [0.97, 0.01, 0.01, 0.01], [0.5, 0.3, 0.1, 0.1]
    audio = np.array([uniform, sharp, between, uniform[::-1], [np.nan] * 4])
    h, v = reference.nats(between), reference.varentropy(between)
    always = Rule("text", EMOTIONS, (h - 1e-9,) + (None,) * 3, (v + 1e-9,) + (None,) * 3)
    assert always.flags(audio).tolist() == [True, False, True, False, False]
    stricter = Rule("text", EMOTIONS, (h - 1e-9,) + (None,) * 3, (v - 1e-9,) + (None,) * 3)
    assert stricter.flags(audio).tolist() == [True, False, False, False, False]
    spread = Rule("text", EMOTIONS, (h + 1e-9,) + (None,) * 3, (v + 1e-9,) + (None,) * 3)
    assert spread.flags(audio).tolist() == [True, False, False, False, False]


# --- what the text decides ---


@given(st.integers(0, 10**6))
def test_a_sentiment_decides_for_the_class_that_a_loop_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    emotions = (*random.permutation([*EMOTIONS, "fear"]),)
    sentiment, audio = random.dirichlet(np.ones(3), 30), random.dirichlet(np.ones(5), 30)
    expected = [
        reference.class_of_sentiment(s, p, emotions) for s, p in zip(sentiment.tolist(), audio.tolist(), strict=True)
    ]
    assert sentiment_classes(sentiment, audio, emotions).tolist() == expected
    sentiment[3] = np.nan
    assert sentiment_classes(sentiment, audio, emotions)[3] == -1


@given(st.integers(0, 10**6))
def test_exchanging_shares_keeps_a_distribution_whose_largest_share_is_the_class(seed: int) -> None:
    random = np.random.default_rng(seed)
    p, classes = random.dirichlet(np.ones(4), 30), random.integers(0, 4, 30)
    found = exchanged(p, classes)
    assert found.argmax(-1).tolist() == classes.tolist()
    np.testing.assert_array_equal(np.sort(found, axis=-1), np.sort(p, axis=-1))
    assert ((found != p).sum(-1) == np.where(p.argmax(-1) == classes, 0, 2)).all()


def test_the_text_decides_where_it_is_asked_and_there() -> None:
    spread, sharp, none = [0.26, 0.25, 0.25, 0.24], [0.97, 0.01, 0.01, 0.01], [np.nan] * 4
    audio = np.array([spread, sharp, spread, none], np.float32)
    text = np.array([[0.1, 0.7, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], none, [0.4, 0.3, 0.2, 0.1]], np.float32)
    rule = Rule("text", EMOTIONS, (1.0,) * 4, (0.1,) * 4)
    found, decided = rule.applied({"audio": audio, "text": text})
    np.testing.assert_array_equal(found, np.stack([text[0], audio[1], audio[2], text[3]]))
    np.testing.assert_array_equal(decided, [1, 0, 0, np.nan])
    sentiment = np.array([[0.2, 0.1, 0.7], [0.2, 0.1, 0.7], [np.nan] * 3, [0.2, 0.1, 0.7]])
    found, decided = Rule("sentiment", EMOTIONS, (1.0,) * 4, (0.1,) * 4).applied({"audio": audio}, sentiment)
    np.testing.assert_array_equal(found[:3], [audio[0][[1, 0, 2, 3]], audio[1], audio[2]])
    assert np.isnan(found[3]).all()
    np.testing.assert_array_equal(decided, [1, 0, 0, np.nan])


@settings(max_examples=30)
@given(st.sampled_from(["text", "sentiment"]), st.integers(0, 10**6))
def test_what_is_predicted_is_a_distribution_and_the_decider_has_its_largest_share(decider: str, seed: int) -> None:
    audio, target, on_dev = drawn(200, seed=seed)
    random = np.random.default_rng(seed)
    text, sentiment = random.dirichlet(np.ones(4), 200), random.dirichlet(np.ones(3), 200)
    rule = chosen_rule(decider, EMOTIONS, audio, target, on_dev=on_dev)  # type: ignore[arg-type]
    found, decided = rule.applied({"audio": audio, "text": text}, sentiment)
    np.testing.assert_allclose(found.sum(-1), 1)
    own = sentiment_classes(sentiment, audio, EMOTIONS) if decider == "sentiment" else text.argmax(-1)
    np.testing.assert_array_equal(found.argmax(-1), np.where(decided == 1, own, audio.argmax(-1)))
    np.testing.assert_array_equal(decided == 1, rule.flags(audio))


@settings(max_examples=50)
@given(st.sampled_from(["text", "sentiment"]), st.booleans(), st.integers(0, 10**6))
def test_of_tensors_it_predicts_the_same_whatever_is_missing(decider: str, has_text: bool, seed: int) -> None:
    audio, target, on_dev = drawn(80, seed=seed)
    random = np.random.default_rng(seed)
    rule = chosen_rule(decider, EMOTIONS, audio, target, on_dev=on_dev)  # type: ignore[arg-type]
    # of the utterances by which the thresholds were chosen, some stand on one
    audio, text, sentiment = (random.dirichlet(np.ones(classes), 300) for classes in (4, 4, 3))
    for some, first in ((audio, 0), (text, 50), (sentiment, 100)):
        some[first : first + 100] = np.nan
    given = {"audio": audio, **({"text": text} if has_text else {})}
    expected, decided = rule.applied(given, sentiment)
    tensors = {head: torch.from_numpy(p) for head, p in given.items()}
    found = rule.of_tensors(tensors, torch.from_numpy(sentiment) if decider == "sentiment" else None)
    np.testing.assert_array_equal(found, expected)
    assert (decided == 1).any() or not (has_text or decider == "sentiment") or rule.entropy == (None,) * 4


def test_a_rule_is_json_and_back() -> None:
    import json

    rule = Rule("sentiment", EMOTIONS, (1.0, None, 0.5, 1.25), (0.1, None, 0.25, 0.5))
    assert Rule.of_record(json.loads(json.dumps(asdict(rule)))) == rule


def test_a_sentiment_needs_the_emotions_that_it_decides_for() -> None:
    with pytest.raises(SettingError, match="there is no sad among neutral, happy, angry: use --decider text"):
        Rule("sentiment", EMOTIONS[:3], (None,) * 3, (None,) * 3)
    Rule("text", EMOTIONS[:3], (None,) * 3, (None,) * 3)
