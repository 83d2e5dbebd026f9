"""The sentiment of transcripts as a feature set: what transformers says, in one order, whatever the batch."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from extraction import Place, counts, deal_singly, work_here
from small_corpus import SENTENCES, with_utterance
from small_models import TEXT_FAMILIES, save_classifier, save_text, vectors

from amber2_core.cache import FeatureCache, read_cache
from amber2_core.errors import ModelError, SettingError
from amber2_extract.batches import Effort
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.encoders.sentiment import SentimentClassifier
from amber2_extract.inspection import describe, read_description
from amber2_extract.plan import plan_jobs
from amber2_extract.recipe import SENTIMENTS, SentimentRecipe

ORDERS = [("negative", "neutral", "positive"), ("POSITIVE", "Neutral", "negative"), ("Positive", "Negative")]
KEPT = ("sentiment", "classifier")


def _expected(transcripts: Sequence[str], model: Any, folder: Path) -> npt.NDArray[np.float64]:
    """What transformers says of each transcript alone, by name in lower case; 0 of a name that is not there."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for transcript in transcripts:
        with torch.no_grad():
            logits = model(**tokenizer(transcript, return_tensors="pt")).logits[0].double()
        shares = [float(logits[place].exp() / logits.exp().sum()) for place in range(len(logits))]
        named = {name.lower(): share for name, share in zip(model.config.id2label.values(), shares, strict=True)}
        rows.append([named.get("negative", 0.0), named.get("neutral", 0.0), named.get("positive", 0.0)])
    return np.array(rows)


def _labels(folder: Path, given: str | None = None) -> str:
    (job,) = plan_jobs(None, None, str(folder), sentiment_labels=given)
    assert isinstance(job.recipe, SentimentRecipe)
    return job.recipe.labels


def _encoder(folder: Path) -> SentimentClassifier:
    labels = _labels(folder).split(",")
    return SentimentClassifier(find_checkpoint(str(folder), modality="sentiment"), labels=labels)


# --- the classifier ---


@pytest.mark.parametrize("classes", ORDERS)
@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_sentiment_is_what_the_classifier_says_of_each_transcript_alone(
    family: str, classes: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_classifier(tmp_path, family, classes)
    encoder = _encoder(tmp_path)
    tokens, _ = encoder.tokenizer.tokens(SENTENCES)
    expected = _expected(SENTENCES, model, tmp_path)
    assert np.ptp(expected, axis=0).max() > 0.05  # transcripts differ
    caplog.clear()
    with caplog.at_level(logging.INFO, "amber2_extract"):
        np.testing.assert_allclose(vectors(encoder, tokens), expected, atol=1e-6)
    assert caplog.messages == []  # in a true batch
    np.testing.assert_allclose(np.concatenate([vectors(encoder, [ids]) for ids in tokens]), expected, atol=1e-6)


def test_a_classifier_that_takes_no_batches_gets_one_transcript_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GPT-2's without a token for padding."""
    model = save_classifier(tmp_path, "bert", ORDERS[0])
    encoder = _encoder(tmp_path)
    output = encoder._output

    def refuse(inputs: Any, *arguments: Any, **settings: Any) -> Any:
        if len(inputs) > 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        return output(inputs, *arguments, **settings)

    monkeypatch.setattr(encoder, "_output", refuse)
    tokens, _ = encoder.tokenizer.tokens(SENTENCES)
    np.testing.assert_allclose(vectors(encoder, tokens), _expected(SENTENCES, model, tmp_path), atol=1e-6)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_long_transcript_is_cut_to_what_the_classifier_takes(family: str, tmp_path: Path) -> None:
    save_classifier(tmp_path, family, ORDERS[0])
    encoder = _encoder(tmp_path)
    (tokens,), (is_cut,) = encoder.tokenizer.tokens(["voice " * 100])
    assert is_cut
    assert len(tokens) == 40
    assert vectors(encoder, [tokens]).sum() == pytest.approx(1, abs=1e-6)


def test_an_encoder_without_a_classifier_on_it_is_refused(tmp_path: Path) -> None:
    save_text(tmp_path, "bert")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"id2label": dict(enumerate(SENTIMENTS)), "label2id": {name: i for i, name in enumerate(SENTIMENTS)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"model\.safetensors lacks .*(classifier|bert)\..*; it does not fit"):
        _encoder(tmp_path)


# --- which output is which ---


@pytest.mark.parametrize(
    ("classes", "given", "labels"),
    [
        (("negative", "neutral", "positive"), None, "negative,neutral,positive"),
        (("POSITIVE", "Neutral", "negative"), None, "positive,neutral,negative"),
        (("Negative", "Positive"), None, "negative,positive"),
        (("LABEL_0", "LABEL_1", "LABEL_2"), "Negative, neutral,positive", "negative,neutral,positive"),
        (("NEG", "NEU", "POS"), "negative,neutral,positive", "negative,neutral,positive"),
        (("LABEL_0", "LABEL_1"), "positive,negative", "positive,negative"),
    ],
)
def test_outputs_are_sentiments_by_their_names_or_as_is_said(
    classes: tuple[str, ...], given: str | None, labels: str, tmp_path: Path
) -> None:
    save_classifier(tmp_path, "bert", classes)
    assert _labels(tmp_path, given) == labels


@pytest.mark.parametrize(
    ("classes", "given"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), None),
        (("LABEL_0", "LABEL_1"), None),
        (("negative", "neutral", "positive", "mixed"), None),
        (("negative", "neutral"), None),
        (("joy", "anger", "fear", "surprise", "love"), None),
        (("negative", "neutral", "positive", "mixed"), "negative,neutral,positive"),
        (("negative", "neutral", "positive"), "negative,positive"),
    ],
)
def test_outputs_that_nobody_can_tell_are_refused_with_their_names(
    classes: tuple[str, ...], given: str | None, tmp_path: Path
) -> None:
    save_classifier(tmp_path, "bert", classes)
    with pytest.raises(ModelError, match=rf"its {len(classes)} outputs are called {classes[0]}, .*--sentiment-labels"):
        _labels(tmp_path, given)


@pytest.mark.parametrize("given", ["negative,neutral", "negative,neutral,good", "", "negative,positive,positive"])
def test_labels_that_are_no_order_of_sentiments_are_refused(given: str, tmp_path: Path) -> None:
    save_classifier(tmp_path, "bert", ORDERS[0])
    with pytest.raises(SettingError, match=r"Bad sentiment labels .*expected negative,neutral,positive or"):
        _labels(tmp_path, given)


def test_labels_of_no_model_are_refused() -> None:
    with pytest.raises(SettingError, match="without a sentiment model: name it with --sentiment-model"):
        plan_jobs(None, "bert", sentiment_labels="negative,positive")


def test_a_classifier_that_knows_no_neutral_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_classifier(tmp_path / "polar", "bert", ORDERS[2])
    _encoder(tmp_path / "polar")
    assert caplog.messages == ["sentiment/polar knows no neutral: it has probability 0 everywhere"]


def test_a_config_whose_outputs_have_no_numbers_is_refused(tmp_path: Path) -> None:
    save_classifier(tmp_path, "bert", ORDERS[0])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": {"a": "negative", "b": "positive"}}))
    with pytest.raises(ModelError, match="expected id2label with 0, 1"):
        _labels(tmp_path)


# --- in a cache ---


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    work_here(monkeypatch)
    place = Place(tmp_path)
    save_classifier(tmp_path / "classifier", "roberta", ORDERS[1])
    return place


def _add(place: Place, **settings: Any) -> Any:
    models = {"audio_model": None, "text_model": None, "sentiment_model": str(place.folder / "classifier")}
    return place.extract(**{**models, **settings})


def _sentiment(cache: FeatureCache) -> Any:
    return cache.feature_set(*KEPT)


def test_a_sentiment_is_added_to_a_cache_and_nothing_else_is_encoded_again(place: Place) -> None:
    place.extract()
    before = place.cache()
    summary = _add(place)
    assert [(features.modality, features.encoded) for features in summary.features] == [("sentiment", 12)]
    after = place.cache()
    assert [(f.modality, f.name) for f in after.features] == [("audio", "wav2vec2"), KEPT, ("text", "bert")]
    for features in before.features:
        np.testing.assert_array_equal(after.feature_set(features.modality).values, features.values)
    assert _sentiment(after).values.shape == (12, 3)
    assert _sentiment(after).values.dtype == np.float32
    assert _sentiment(after).recipe["labels"] == "positive,neutral,negative"
    assert _sentiment(after).recipe["modality"] == "sentiment"
    assert not {"layers", "pooling", "frames"} & set(_sentiment(after).recipe)
    lines = describe(read_description(place.output))
    assert "sentiment/classifier: 12 × 3 float32" in lines
    assert "labels: positive,neutral,negative" in lines
    # and once more: nothing is done
    assert counts(_add(place), "sentiment") == (0, 12, 0)
    again = place.extract(sentiment_model=str(place.folder / "classifier"), layers="all", audio_model=None)
    assert [(one.stage, one.encoded) for one in again.features] == [
        ("text/bert-layers", 12),
        ("sentiment/classifier", 0),
    ]


def test_only_a_transcript_that_has_changed_gets_its_sentiment_again(place: Place) -> None:
    _add(place)
    before = _sentiment(place.cache()).values
    changed = with_utterance(place.corpus, 3, transcript="one voice and another mind")
    assert counts(_add(place, corpus=changed), "sentiment") == (1, 11, 0)
    after = _sentiment(place.cache()).values
    np.testing.assert_array_equal(np.delete(after, 3, axis=0), np.delete(before, 3, axis=0))
    assert not np.array_equal(after[3], before[3])
    # by a call that leaves sentiment out, the row of a transcript that has changed is dropped
    changed = with_utterance(changed, 5, transcript="what do they know")
    place.extract(changed, audio_model=None)
    assert _sentiment(place.cache()).encoded.tolist() == [row != 5 for row in range(12)]


def test_labels_in_another_order_are_another_recipe(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    _add(place)
    before = _sentiment(place.cache()).values
    with caplog.at_level(logging.INFO, "amber2_extract"):
        assert counts(_add(place, sentiment_labels="negative,neutral,positive"), "sentiment") == (12, 0, 0)
    assert (
        "sentiment/classifier is encoded again: labels changed from positive,neutral,negative to "
        "negative,neutral,positive"
    ) in caplog.messages
    np.testing.assert_array_equal(_sentiment(place.cache()).values, before[:, ::-1])


def test_interrupted_a_sentiment_goes_on_where_it_stopped_and_ends_with_the_same_values(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal_singly(monkeypatch)
    batches = Effort(device="cpu", batch_tokens=12)
    _add(place, output=place.folder / "whole.h5", effort=batches)

    def stop(progress: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _add(place, effort=batches, on_progress=stop)
    finished = place.kept()
    assert 0 < finished < len(set(SENTENCES))
    dealt: list[int] = []
    _add(place, effort=batches, on_progress=lambda progress: dealt.append(progress.done))
    assert dealt[-1] == len(set(SENTENCES)) - finished
    whole = _sentiment(read_cache(place.folder / "whole.h5"))
    np.testing.assert_array_equal(_sentiment(place.cache()).values, whole.values)


def test_a_model_under_whose_name_there_is_nothing_is_one_line(place: Place) -> None:
    with pytest.raises(ModelError, match="there is no such folder"):
        _add(place, sentiment_model=str(place.folder / "nothing"))
