"""Emo_ent as a system: CB-CE's heads, a rule of train and dev alone, and a file that knows the rule."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from click.testing import CliRunner
from synthetic_data import EMOTIONS, cache_of, fold_in, training_data

from amber2_core.cache import Features, write_cache
from amber2_core.errors import SettingError
from amber2_core.heads_folder import read_heads
from amber2_core.run_folder import read_results
from amber2_train.cli import train_heads
from amber2_train.fold_data import FoldData, Rows
from amber2_train.folds import make_folds
from amber2_train.systems.emo_ent import EmoEnt, EmoEntSettings, FittedEmoEnt
from amber2_train.systems.system import FitOptions, system_of

SMALL: dict[str, Any] = {"hidden": 8, "batch_size": 16, "lr": 0.01}
OPTIONS = FitOptions(epochs=6)


def fold_of(count: int = 150, *, modalities: tuple[str, ...] = ("audio", "text"), **what: Any) -> FoldData:
    data = training_data(count, modalities=modalities, **what)
    return replace(fold_in(data, make_folds("session", data)[0], dtype=torch.float32), emotions=EMOTIONS)


def with_sentiment(fold: FoldData, sentiment: torch.Tensor | None = None) -> FoldData:
    """The fold with a sentiment of all utterances (N, 3), by default one at random."""
    count = len(next(iter(fold.train.features.values())))
    if sentiment is None:
        sentiment = torch.rand(count, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    sides = {"sentiment": sentiment}
    parts: dict[str, Any] = {name: replace(getattr(fold, name), sides=sides) for name in ("train", "dev", "test")}
    return replace(fold, **parts, side_recipes={"sentiment": {"model": "classifier"}})


def fitted(fold: FoldData, seed: int = 0, **values: Any) -> FittedEmoEnt:
    (one,) = EmoEnt().fit(fold, [EmoEntSettings(**{**SMALL, **values})], [seed], OPTIONS)
    assert isinstance(one, FittedEmoEnt)
    return one


@pytest.mark.parametrize("decider", ["text", "sentiment"])
def test_the_fusion_is_the_rule_and_the_other_heads_are_those_of_cb_ce(decider: str) -> None:
    fold = with_sentiment(fold_of())
    one, own = fitted(fold, decider=decider), system_of("cb-ce")
    (heads,) = own.fit(fold, [own.Settings(**SMALL)], [0], OPTIONS)
    probs, expected = one.probs(fold.test), heads.probs(fold.test)
    for head in ("audio", "text"):
        np.testing.assert_array_equal(probs[head], expected[head])
    sentiment = fold.test.side("sentiment", torch.arange(len(fold.test))).tolist()
    flagged = EmoEnt().measures(one, fold.test)["flagged"]
    decided = 0
    for row, p in enumerate(probs["audio"].astype(np.float64).tolist()):
        c = reference.argmax(p)
        least, most = one.rule.entropy[c], one.rule.varentropy[c]
        flag = least is not None and most is not None and reference.nats(p) >= least and reference.varentropy(p) <= most
        assert flagged[row] == flag
        if not flag:
            np.testing.assert_array_equal(probs["fusion"][row], probs["audio"][row])
            continue
        decided += 1
        if decider == "text":
            np.testing.assert_array_equal(probs["fusion"][row], probs["text"][row])
        else:
            chosen = reference.class_of_sentiment(sentiment[row], p, EMOTIONS)
            p[c], p[chosen] = p[chosen], p[c]
            np.testing.assert_allclose(probs["fusion"][row], p, rtol=1e-6)
    assert 0 < decided < len(fold.test)


@pytest.mark.parametrize("part", ["test", "dev", "train"])
def test_labels_of_test_have_no_say_and_those_of_train_and_dev_have(part: str) -> None:
    fold = with_sentiment(fold_of())
    rows = getattr(fold, part)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    changed: dict[str, Any] = {part: replace(rows, targets=rows.targets[order])}
    other = replace(fold, **changed)
    before, after = fitted(fold), fitted(other)
    assert (before.rule == after.rule) == (part == "test")
    if part == "test":
        for head, probs in before.probs(fold.test).items():
            np.testing.assert_array_equal(after.probs(other.test)[head], probs)


def test_thresholds_are_of_train_and_dev_together() -> None:
    """Chosen anew, by hand, from what the heads predict."""
    from amber2_core.handover import chosen_rule

    fold = fold_of()
    one = fitted(fold)
    parts = (fold.train, fold.dev)
    audio = np.concatenate([one.probs(rows)["audio"] for rows in parts])
    target = np.concatenate([rows.targets.numpy() for rows in parts])
    on_dev = [False] * len(fold.train) + [True] * len(fold.dev)
    assert one.rule == chosen_rule("text", EMOTIONS, audio, target, on_dev=on_dev)
    assert one.rule != chosen_rule("text", EMOTIONS, audio, target, on_dev=np.ones(len(on_dev)))


def test_where_the_text_knows_what_the_audio_cannot_the_rule_is_better_than_the_audio() -> None:
    """Half of the utterances sound alike whether angry or sad, happy or neutral; what is said tells."""
    random = np.random.default_rng(0)
    count = 600
    label = random.integers(0, 4, count)
    target = np.eye(4, dtype=np.float32)[label]
    clear = random.uniform(size=count) < 0.5
    alike = (target + target[:, [1, 0, 3, 2]]) / 2
    audio = np.where(clear[:, None], target, alike) + 0.05 * random.normal(size=(count, 4))
    text = target + 0.05 * random.normal(size=(count, 4))
    features = {"audio": torch.tensor(audio).float(), "text": torch.tensor(text).float()}
    places = [torch.arange(*ends) for ends in ((0, 300), (300, 450), (450, 600))]
    train, dev, test = (Rows(features, rows, torch.from_numpy(target)[rows]) for rows in places)
    fold, settings = FoldData(1, train, dev, test, emotions=EMOTIONS), [EmoEntSettings(**{**SMALL, "hidden": 16})]
    (one,) = EmoEnt().fit(fold, settings, [0], FitOptions(epochs=30))
    right = {head: probs.argmax(-1) == label[450:] for head, probs in one.probs(test).items()}
    flagged = EmoEnt().measures(one, test)["flagged"] == 1
    assert right["audio"][clear[450:]].mean() > 0.98
    assert right["audio"].mean() < 0.85
    assert right["text"].mean() > 0.98
    assert not (flagged & clear[450:]).any()
    assert flagged.sum() >= 5
    assert right["fusion"][flagged].mean() > 0.98 > right["audio"][flagged].mean()
    assert right["fusion"].mean() > right["audio"].mean()


def test_settings_that_differ_in_what_decides_share_their_heads() -> None:
    fold = with_sentiment(fold_of())
    settings = [EmoEntSettings(**SMALL, decider=name) for name in ("auto", "text", "sentiment")]
    assert len({EmoEnt().shape(setting) for setting in settings}) == 1
    found: list[Any] = list(EmoEnt().fit(fold, settings, [0, 1], OPTIONS))
    assert [(one.setting.decider, one.seed) for one in found] == [
        (decider, seed) for seed in (0, 1) for decider in ("auto", "text", "sentiment")
    ]
    assert [one.rule.decider for one in found[:3]] == ["sentiment", "text", "sentiment"]
    assert len({id(one.heads) for one in found}) == 2
    auto, text, sentiment = (one.probs(fold.test)["fusion"] for one in found[:3])
    np.testing.assert_array_equal(auto, sentiment)
    assert not np.array_equal(auto, text)


def test_without_a_sentiment_or_the_emotions_for_it_auto_is_the_text() -> None:
    assert fitted(fold_of()).rule.decider == "text"
    other = replace(with_sentiment(fold_of()), emotions=("neutral", "happy", "angry", "fear"))
    assert fitted(other).rule.decider == "text"
    with pytest.raises(SettingError, match="there is no sad among neutral, happy, angry, fear: use --decider text"):
        fitted(other, decider="sentiment")


def test_audio_alone_has_a_fusion_with_a_sentiment() -> None:
    fold = with_sentiment(fold_of(modalities=("audio",)))
    assert EmoEnt().heads(("audio",)) == ("audio", "fusion")
    probs = fitted(fold, decider="sentiment").probs(fold.test)
    assert set(probs) == {"audio", "fusion"}
    assert not np.array_equal(probs["audio"], probs["fusion"])


@pytest.mark.parametrize(
    ("modalities", "decider", "words"),
    [
        (("audio",), "text", "there are no text features: use --decider sentiment"),
        (("audio", "video"), "auto", "there are no text features: use --decider sentiment"),
        (("text",), "sentiment", "there are no audio features"),
        (("text", "video"), "auto", "there are no audio features"),
    ],
)
def test_modalities_that_the_rule_needs_are_missed(modalities: tuple[str, ...], decider: Any, words: str) -> None:
    system = EmoEnt()
    with pytest.raises(SettingError, match=words):
        system.check(EmoEntSettings(decider=decider), system.heads(modalities))


def test_an_utterance_without_audio_is_left_to_the_text_and_one_without_text_to_the_audio() -> None:
    missing = {"audio": range(0, 150, 7), "text": range(1, 150, 7)}
    fold = fold_of(missing=missing)
    one = fitted(fold)
    probs, flagged = one.probs(fold.test), EmoEnt().measures(one, fold.test)["flagged"]
    has_audio, has_text, _ = fold.test.having()
    assert 0 < has_audio.sum() < len(has_audio)
    np.testing.assert_array_equal(probs["fusion"][~has_audio], probs["text"][~has_audio])
    np.testing.assert_array_equal(probs["fusion"][~has_text], probs["audio"][~has_text])
    np.testing.assert_array_equal(np.isnan(flagged), ~has_audio)
    assert not np.isnan(probs["fusion"]).any()


def test_the_history_is_that_of_the_heads_and_has_none_of_the_rule() -> None:
    history = fitted(fold_of()).history
    assert set(history.epoch) == set(history.dev_js) == {"audio", "text"}
    assert history.unjudged == frozenset()


def test_remarks_say_where_the_text_head_decides_and_the_paper_has_a_sentiment() -> None:
    lines = {name: EmoEnt().remarks(EmoEntSettings(decider=name)) for name in ("auto", "text", "sentiment")}
    assert [len(lines[name]) for name in ("auto", "text", "sentiment")] == [2, 2, 1]
    assert lines["text"][1] == "where a sentiment decides in the paper, the text head does"
    assert lines["auto"][1].endswith("unless the cache has a sentiment")


def test_a_file_has_heads_and_rule_and_predicts_alone(tmp_path: Path) -> None:
    fold = with_sentiment(fold_of())
    one = fitted(fold)
    features: dict[str, Any] = {name: {"name": name, "fingerprint": "", "recipe": {}} for name in ("audio", "text")}
    origin = {"system": "emo-ent", "setting": asdict(one.setting), "emotions": EMOTIONS, "policy": {}}
    one.save(tmp_path / "heads.safetensors", {**origin, "features": features})
    read, every = read_heads(tmp_path / "heads.safetensors"), torch.arange(len(fold.test))
    assert read.origin["sentiment"] == {"model": "classifier"}
    assert read.rule == one.rule
    vectors, sentiment = fold.test.vectors(every), fold.test.side("sentiment", every)
    for head, probs in read.probs({**vectors, "sentiment": sentiment}).items():
        np.testing.assert_allclose(probs, one.probs(fold.test)[head], atol=1e-6)
    # without a sentiment the audio decides, of what is unsure too
    there = every % 2 == 0
    some, without = read.probs({**vectors, "sentiment": sentiment}, {"sentiment": there})["fusion"], read.probs(vectors)
    audio = without["audio"]
    assert torch.equal(without["fusion"], audio)
    assert torch.equal(some[~there], audio[~there])
    assert not torch.equal(some, audio)


def test_train_heads_has_its_results_beside_those_of_the_baseline(tmp_path: Path) -> None:
    cache = cache_of(90)
    sentiment = np.random.default_rng(0).dirichlet(np.ones(3), 90).astype(np.float32)
    held = Features("sentiment", "classifier", sentiment, cache.features[0].inputs, {"model": "classifier"})
    write_cache(tmp_path / "made-up.h5", replace(cache, features=(*cache.features, held)))
    command = ["--cache", str(tmp_path / "made-up.h5"), "--system", "emo-ent,cb-ce", "--decider", "text,sentiment"]
    command += ["--hidden", "5", "--epochs", "2", "--seeds", "2", "--output", str(tmp_path / "run")]
    done = CliRunner().invoke(train_heads, command)
    assert done.exit_code == 0, done.output
    rows = [row for row in read_results(tmp_path / "run") if row["split"] == "test"]
    scores = {(row["system"], row["head"], row["fold"], row["seed"]): row["js"] for row in rows}
    assert len(scores) == 2 * 3 * 3 * 2
    for (system, head, fold, seed), js in scores.items():
        if system == "emo-ent" and head != "fusion":
            assert js == pytest.approx(scores["cb-ce", head, fold, seed])
    assert {row["decider"] for row in rows if row["system"] == "emo-ent"} <= {"text", "sentiment"}
