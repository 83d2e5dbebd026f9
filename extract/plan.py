"""The feature sets that a call asks for, each with its encoder and its recipe."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from amber2_core import engine
from amber2_core.errors import ModelError, SettingError, bad_choice
from amber2_core.tables import is_storable_name
from amber2_data.transcripts import REPAIRS, Repair

from .checkpoint import Checkpoint, find_checkpoint, own_sampling_rate
from .encoders import AUDIO_LANGUAGE, AUDIO_POOLINGS, TEXT_POOLINGS, WINDOWS
from .recipe import (
    ATTENTIONS,
    PRECISIONS,
    SENTIMENTS,
    Attention,
    AudioRecipe,
    EncoderRecipe,
    Layers,
    Precision,
    SentimentRecipe,
    TextRecipe,
    Window,
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

    def seconds_computed(self, seconds: float) -> float:
        """What the encoder computes of so many seconds of a recording: whole windows, where it hears in such.

        Raises:
            ModelError: the length of its windows is not known.
        """
        assert isinstance(self.recipe, AudioRecipe)
        seconds = min(seconds, self.recipe.max_seconds or math.inf)
        if self.recipe.window is None:
            return seconds
        whole, rest = divmod(seconds, window := self.checkpoint.window_seconds())
        last = 0.0 if not rest else window if self.recipe.window == "trained" else math.ceil(rest)
        return whole * window + last


def plan_jobs(
    audio_model: str | None,
    text_model: str | None,
    sentiment_model: str | None = None,
    *,
    audio_name: str | None = None,
    text_name: str | None = None,
    layers: Layers = "last",
    layer: int | None = None,
    frames: int | None = None,
    audio_pooling: str = "mean",
    text_pooling: str = "auto",
    window: Window | None = None,
    attention: Attention | None = None,
    precision: Precision = "fp32",
    max_seconds: float | None = None,
    repair: Repair | None = None,
    sentiment_labels: str | None = None,
) -> list[Job]:
    """The feature sets that are asked for; audio last, as it takes hours where text takes minutes.

    Args:
        audio_model: id or folder of a speech encoder; None leaves audio out.
        text_model: id or folder of a text encoder; None leaves text out.
        sentiment_model: id or folder of a text classifier; None leaves sentiments out.
        audio_name: what the cache calls the speech features; None: as the encoder is called.
        text_name: what the cache calls the text features.
        layers: the last hidden state, or all of them.
        layer: one hidden state instead of the last: 0 is the input of the first layer, n the output of the n-th.
        frames: beside the vector, the hidden state that it is made of pooled to at most so many bins.
        audio_pooling: how the hidden states of a recording become one vector, see `AUDIO_POOLINGS`.
        text_pooling: those of a transcript, see `TEXT_POOLINGS`; ``auto``: as the checkpoint says for
            sentence-transformers, else the mean.
        window: of an encoder that hears in windows, ``trained`` or ``fit``; None: as it was trained.
        attention: how attention is computed, ``eager`` or ``sdpa``; None leaves it to transformers.
        precision: of products and convolutions; what is stored is fp32.
        max_seconds: longer utterances are cut off at the end.
        repair: damage of transcripts that is undone before they are encoded; the cache keeps them as they are.
        sentiment_labels: which sentiment each output of the classifier is, ``negative,neutral,positive``, for one
            whose config does not say; ``negative,positive`` where it knows no neutral, which then has 0.

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
    for modality, pooling, poolings in (
        ("audio", audio_pooling, [*AUDIO_POOLINGS]),
        ("text", text_pooling, ["auto", *TEXT_POOLINGS]),
    ):
        if pooling not in poolings:
            raise SettingError(bad_choice(f"{modality} pooling", pooling, poolings))
    if layer is not None and (layer < 0 or layers == "all"):
        raise SettingError(f"Bad layer {layer}, expected 0 or more, and not all layers beside it")
    if attention is not None and attention not in ATTENTIONS:
        raise SettingError(bad_choice("attention", attention, ATTENTIONS))
    if repair is not None and repair not in REPAIRS:
        raise SettingError(bad_choice("repair", repair, REPAIRS))
    if sentiment_labels is not None and sentiment_model is None:
        raise SettingError("Sentiment labels without a sentiment model: name it with --sentiment-model")
    for modality, name in (("audio", audio_name), ("text", text_name)):
        if name is not None and not is_storable_name(name):
            raise SettingError(f"Bad {modality} name {name!r}, expected one without '/'")
    settings: dict[str, Any] = {
        "layers": layers,
        "layer": layer,
        "frames": frames,
        "attention": attention,
        "precision": precision,
    }
    jobs = []
    if text_model is not None:
        checkpoint = find_checkpoint(text_model, modality="text")
        text = TextRecipe(
            **checkpoint.identity(),
            tokenizer_digest=checkpoint.input_digest(),
            repair=repair,
            pooling=_text_pooling(checkpoint, text_pooling),
            **settings,
        )
        jobs.append(Job(text_name or checkpoint.short_name + _ending(text), checkpoint, text))
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
            sampling_rate=_sampling_rate(checkpoint),
            max_seconds=max_seconds,
            pooling=audio_pooling,
            window=_window(checkpoint, window),
            tower=checkpoint.model_type if checkpoint.model_type in AUDIO_LANGUAGE else None,
            **settings,
        )
        jobs.append(Job(audio_name or checkpoint.short_name + _ending(audio), checkpoint, audio))
    if not jobs:
        raise SettingError("Nothing to encode: name an audio model, a text model, or a --sentiment-model")
    return jobs


def _ending(recipe: AudioRecipe | TextRecipe) -> str:
    """What a name ends with: sets of more than one vector, or of another one, stand beside the plain one."""
    parts = (
        "" if recipe.pooling == "mean" else recipe.pooling,
        "fit" if isinstance(recipe, AudioRecipe) and recipe.window == "fit" else "",
        "" if recipe.layers == "last" else "layers",
        "" if recipe.layer is None else f"layer{recipe.layer}",
        f"frames{recipe.frames}" if recipe.frames else "",
    )
    return "".join(f"-{part}" for part in parts if part)


def _sampling_rate(checkpoint: Checkpoint) -> int:
    """Hz; a file of the user's is imported by a worker, as it may import torch."""
    return engine.call(own_sampling_rate, checkpoint) if checkpoint.is_own else checkpoint.sampling_rate()


def _text_pooling(checkpoint: Checkpoint, asked: str) -> str:
    """What is asked for; auto: as the checkpoint says for sentence-transformers, else the mean."""
    if asked != "auto":
        return asked
    own = checkpoint.pooling()
    if own not in ("", *TEXT_POOLINGS):
        _log.warning("text/%s is made for pooling by %s, which there is none of: its mean", checkpoint.short_name, own)
    elif own not in ("", "mean"):
        _log.info("text/%s is pooled as its checkpoint says: %s", checkpoint.short_name, own)
        return own
    return "mean"


def _window(checkpoint: Checkpoint, asked: Window | None) -> Window | None:
    """What is asked for, else the window that the model was trained with; None where it has none.

    Raises:
        SettingError: the model knows no such window.
    """
    known = WINDOWS.get(checkpoint.model_type, ())
    if asked is not None and asked not in known:
        what = f"{checkpoint.name!r} knows {' and '.join(known)}" if known else f"{checkpoint.name!r} has no windows"
        raise SettingError(f"Bad window {asked!r}: {what}; leave --window out")
    return asked or (known[0] if known else None)


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
