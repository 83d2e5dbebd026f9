"""Recipes: all that the numbers of a feature set depend on, whose fingerprint is the key of the cache.

Batch size, order, device and number of workers are not in a recipe: they must not change the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from amber2_core.cache import fingerprint
from amber2_data.transcripts import Repair

Modality = Literal["audio", "text", "sentiment"]
# what is made of transcripts
OF_TRANSCRIPTS: tuple[Modality, ...] = ("text", "sentiment")
# the columns of a sentiment
SENTIMENTS = ("negative", "neutral", "positive")
Layers = Literal["last", "all"]
# how attention is computed; None leaves it to transformers, which prefers sdpa
Attention = Literal["eager", "sdpa"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
# windows as a model was trained with, or as long as an utterance, rounded up to a second
Window = Literal["trained", "fit"]
# of products and convolutions; norms, softmax, sums and what is stored are fp32 in any case
Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# How far a row of a batch may be from the same utterance encoded alone, relative L2. In half precision each product is
# rounded to 8 or 11 bits, in another order in a batch than alone: four times the distance between 1 and the next number
# (2⁻⁷, 2⁻¹⁰). Encoders of 12 layers differ by 3e-3 to 5e-3 in bf16; one that sees its padding, by 5e-2 and more.
EXACT: Mapping[Precision, float] = {"fp32": 1e-5, "bf16": 4 * 2**-7, "fp16": 4 * 2**-10}

# Raised whenever decoding, normalising or pooling starts to give other numbers than before.
PREPROCESSING_VERSION = 1


@dataclass(frozen=True)
class Resampler:
    """The band-limited interpolation of `torchaudio.transforms.Resample`; the defaults are resampy's "kaiser_best".

    torchaudio's own defaults let a 9 kHz tone at 44.1 kHz through at −17 dB; these suppress it by 147 dB.
    """

    method: str = "sinc_interp_kaiser"
    lowpass_filter_width: int = 64
    rolloff: float = 0.9475937167399596
    beta: float = 14.769656459379492


KAISER_BEST = Resampler()


@dataclass(frozen=True, kw_only=True)
class _ModelRecipe:
    """What all that a pretrained model makes depends on."""

    modality: ClassVar[Modality]

    # id on the hub or name of the folder, and the hub's commit
    model: str
    revision: str
    weights_digest: str
    config_digest: str
    precision: Precision = "fp32"
    preprocessing_version: int = PREPROCESSING_VERSION

    def record(self) -> dict[str, Any]:
        """The recipe as JSON values, as it stands in a feature cache.

        What is None is left out: a setting of later versions, None by default, leaves older caches valid.
        """
        settings = {name: value for name, value in asdict(self).items() if value is not None}
        return {"modality": self.modality, **settings}

    @property
    def fingerprint(self) -> str:
        """sha256 of the recipe."""
        return fingerprint(self.record())


@dataclass(frozen=True, kw_only=True)
class _EncoderRecipe(_ModelRecipe):
    """What audio and text encoders have in common: they give hidden states."""

    # the last hidden state, or all of them: the encoder's input and each layer's output
    layers: Layers = "last"
    # over valid frames or tokens only
    pooling: str = "mean"
    # the last hidden state pooled to at most so many bins beside its mean; None: the mean alone
    frames: int | None = None
    # one hidden state instead of the last: 0 is the input of the first layer, n the output of the n-th
    layer: int | None = None
    attention: Attention | None = None

    @property
    def of_encoder(self) -> dict[str, Any]:
        """What an encoder is told beside its checkpoint and the precision."""
        names = ("layers", "layer", "frames", "pooling", "attention")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class AudioRecipe(_EncoderRecipe):
    """What the features of a speech encoder depend on."""

    modality: ClassVar[Modality] = "audio"

    preprocessor_digest: str
    # Hz
    sampling_rate: int
    resampler: Resampler = KAISER_BEST
    # None: however long
    max_seconds: float | None = None
    # of what hears in windows of a fixed length
    window: Window | None = None
    # the kind of model of which this is the tower that hears, where it is an audio-language model
    tower: str | None = None

    @property
    def of_encoder(self) -> dict[str, Any]:
        """As of any encoder, and the window of one that has any."""
        return super().of_encoder | ({} if self.window is None else {"window": self.window})


@dataclass(frozen=True, kw_only=True)
class TextRecipe(_EncoderRecipe):
    """What the features of a text encoder depend on."""

    modality: ClassVar[Modality] = "text"

    tokenizer_digest: str
    # damage of the transcripts that is undone before they are encoded; None: they are encoded as they are
    repair: Repair | None = None


@dataclass(frozen=True, kw_only=True)
class SentimentRecipe(_ModelRecipe):
    """What the sentiment of transcripts depends on; the most tokens follow from tokenizer and config."""

    modality: ClassVar[Modality] = "sentiment"
    # there is no sequence of it
    frames: ClassVar[None] = None

    tokenizer_digest: str
    # which sentiment each of the classifier's outputs is: ``positive,neutral,negative``
    labels: str
    # as of a text encoder
    repair: Repair | None = None

    @property
    def of_encoder(self) -> dict[str, Any]:
        """What a classifier is told beside its checkpoint and the precision."""
        return {"labels": self.labels.split(",")}


EncoderRecipe = AudioRecipe | TextRecipe | SentimentRecipe


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """One phrase per setting that two recipes (as JSON values) do not share, in order of the setting's name.

    Example:
        >>> differences({"precision": "fp32"}, {"precision": "bf16"})
        ('precision changed from fp32 to bf16',)
    """
    old, new = dict(settings(before)), dict(settings(after))
    return tuple(
        f"{name} changed from {_shown(old.get(name))} to {_shown(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def settings(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a recipe by its full name: ``resampler.beta``."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    text = "none" if value is None or value == "" else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
