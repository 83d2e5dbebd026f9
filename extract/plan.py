"""The feature sets that a call asks for, each with its encoder and its recipe."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from amber2_core.errors import ModelError, SettingError, bad_choice
from amber2_core.tables import is_storable_name
from amber2_data.transcripts import REPAIRS, Repair

from .checkpoint import Checkpoint, find_checkpoint
from .encoders import POOLINGS
from .recipe import (
    PRECISIONS,
    SENTIMENTS,
    AudioRecipe,
    EncoderRecipe,
    Layers,
    Precision,
    SentimentRecipe,
    TextRecipe,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A feature set that is asked for."""

    name: str
    checkpoint: Checkpoint
    recipe: EncoderRecipe

    @property
    def stage(self) -> str:
        """What its failures are filed under: ``audio/wav2vec2-base``."""
        return f"{self.recipe.modality}/{self.name}"


def plan_jobs(
    audio_model: str | None,
    text_model: str | None,
    sentiment_model: str | None = None,
    *,
    audio_name: str | None = None,
    text_name: str | None = None,
    layers: Layers = "last",
    frames: int | None = None,
    pooling: str = "mean",
    precision: Precision = "fp32",
    max_seconds: float | None = None,
    repair: Repair | None = None,
    sentiment_labels: str | None = None,
) -> list[Job]:
    """The feature sets that are asked for; audio last, as it takes hours where text takes minutes.

    Raises:
        ModelError: a checkpoint cannot be found, or lacks a file.
        SettingError: a setting has no meaning, or nothing is asked for.
    """
    if max_seconds is not None and not max_seconds > 0:
        raise SettingError(f"Bad max_seconds {max_seconds}, expected more than 0")
    if frames is not None and frames < 1:
        raise SettingError(f"Bad frames {frames}, expected 1 or more")
    if precision not in PRECISIONS:
        raise SettingError(bad_choice("precision", precision, PRECISIONS))
    if pooling not in POOLINGS:
        raise SettingError(bad_choice("pooling", pooling, POOLINGS))
    if repair is not None and repair not in REPAIRS:
        raise SettingError(bad_choice("repair", repair, REPAIRS))
    if sentiment_labels is not None and sentiment_model is None:
        raise SettingError("Sentiment labels without a sentiment model: name it with --sentiment-model")
    for modality, name in (("audio", audio_name), ("text", text_name)):
        if name is not None and not is_storable_name(name):
            raise SettingError(f"Bad {modality} name {name!r}, expected one without '/'")
    # Sets of more than one vector, or of another one, stand beside the plain one.
    parts = (
        "" if pooling == "mean" else pooling,
        "" if layers == "last" else "layers",
        f"frames{frames}" if frames else "",
    )
    ending = "".join(f"-{part}" for part in parts if part)
    settings: dict[str, Any] = {"layers": layers, "frames": frames, "pooling": pooling, "precision": precision}
    jobs = []
    if text_model is not None:
        checkpoint = find_checkpoint(text_model, modality="text")
        text = TextRecipe(
            **checkpoint.identity(), tokenizer_digest=checkpoint.input_digest(), repair=repair, **settings
        )
        jobs.append(Job(text_name or checkpoint.short_name + ending, checkpoint, text))
    if sentiment_model is not None:
        checkpoint = find_checkpoint(sentiment_model, modality="sentiment")
        sentiment = SentimentRecipe(
            **checkpoint.identity(),
            tokenizer_digest=checkpoint.input_digest(),
            labels=",".join(_sentiments_of(checkpoint, sentiment_labels)),
            repair=repair,
            precision=precision,
        )
        jobs.append(Job(checkpoint.short_name, checkpoint, sentiment))
    if audio_model is not None:
        checkpoint = find_checkpoint(audio_model, modality="audio")
        audio = AudioRecipe(
            **checkpoint.identity(),
            preprocessor_digest=checkpoint.input_digest(),
            sampling_rate=checkpoint.sampling_rate(),
            max_seconds=max_seconds,
            **settings,
        )
        jobs.append(Job(audio_name or checkpoint.short_name + ending, checkpoint, audio))
    if not jobs:
        raise SettingError("Nothing to encode: name an audio model, a text model, or a --sentiment-model")
    return jobs


def _sentiments_of(checkpoint: Checkpoint, given: str | None) -> tuple[str, ...]:
    """Which sentiment each output of a classifier is: as is said, else as its config calls them.

    Raises:
        SettingError: what is said is no order of two or three sentiments.
        ModelError: the classifier has another number of outputs, or calls them something else.
    """
    classes = checkpoint.classes()
    named = tuple(name.strip().lower() for name in (classes if given is None else given.split(",")))
    # Negative or positive is not missing: what knows no neutral is a two-class model.
    are_sentiments = sorted(named) in (sorted(SENTIMENTS), ["negative", "positive"])
    if given is not None and not are_sentiments:
        expected = f"{','.join(SENTIMENTS)} or negative,positive, in the order of the model's outputs"
        raise SettingError(f"Bad sentiment labels {given!r}, expected {expected}")
    if not are_sentiments or len(named) != len(classes):
        some = ", ".join(classes[:4]) + (", …" if len(classes) > 4 else "")
        raise ModelError(
            f"Cannot use {checkpoint.name!r} for sentiment: its {len(classes)} outputs are called {some}; if they are "
            "sentiments, say in which order, as with --sentiment-labels negative,neutral,positive"
        )
    if "neutral" not in named:
        _log.warning("sentiment/%s knows no neutral: it has probability 0 everywhere", checkpoint.short_name)
    return named
