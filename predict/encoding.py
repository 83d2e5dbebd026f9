"""The encoders that heads were trained on: found, held against the recipe of the heads, and run on new speech."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

from amber2_core.errors import AudioError, ModelError, SettingError
from amber2_data.sound import Waveform
from amber2_data.transcripts import repaired
from amber2_extract.audio import resample
from amber2_extract.batches import Effort, plan_batches
from amber2_extract.checkpoint import Checkpoint, find_checkpoint
from amber2_extract.plan import Job
from amber2_extract.recipe import (
    PREPROCESSING_VERSION,
    AudioRecipe,
    EncoderRecipe,
    Resampler,
    SentimentRecipe,
    TextRecipe,
    differences,
)
from amber2_extract.rows import Row
from amber2_extract.worker import NO_TOKEN, NOT_FINITE, Halving, load_encoder

# what of a recipe tells where a checkpoint came from, not what is in it
_WHENCE = ("model", "revision")
_KINDS: Mapping[str, type[EncoderRecipe]] = {kind.modality: kind for kind in (AudioRecipe, TextRecipe, SentimentRecipe)}

Given = TypeVar("Given")
Made = TypeVar("Made")


def plan_encodings(
    features: Mapping[str, Mapping[str, Any]],
    *,
    audio_models: Sequence[str] = (),
    text_models: Sequence[str] = (),
    sentiment_models: Sequence[str] = (),
) -> dict[str, Job]:
    """The encoder of each feature set that heads read, seen to be the one that they were trained on.

    Args:
        features: feature set → its name and recipe, as heads record them.
        audio_models: where their speech encoders lie, ids or folders; none: the ids that the recipes name.
        text_models: where their text encoders lie.
        sentiment_models: where their classifier of sentiment lies.

    Raises:
        ModelError: an encoder is not to be found, or another one lies there; the line says in what it differs.
        SettingError: a model is named for what the heads do not read.
    """
    given = {"audio": audio_models, "text": text_models, "sentiment": sentiment_models}
    modalities = {name: str(own["recipe"].get("modality")) for name, own in features.items()}
    for modality, models in given.items():
        if models and modality not in modalities.values():
            raise SettingError(f"--{modality}-model names an encoder, and these heads read no {modality}")
    return {
        name: _job(name, str(own["name"]), own["recipe"], given.get(modalities[name], ()))
        for name, own in features.items()
    }


def _job(key: str, name: str, record: Mapping[str, Any], models: Sequence[str]) -> Job:
    """Of the checkpoint among `models` that the recipe is of, else of the one that it names."""
    recipe = recipe_of(key, record)
    differing = []
    for place in models or [_named(key, recipe)]:
        checkpoint = find_checkpoint(place, modality=recipe.modality)
        now = _as_it_lies(recipe, checkpoint)
        changes = differences(_without_whence(recipe.record()), _without_whence(now.record()))
        if not changes:
            return Job(name, checkpoint, now)
        differing.append(f"{place}: {changes[0]}")
    raise ModelError(
        f"These heads were trained on {recipe.model} for {key}, and another encoder lies at {'; at '.join(differing)}"
    )


def recipe_of(key: str, record: Mapping[str, Any]) -> EncoderRecipe:
    """A recipe from its JSON values.

    Raises:
        ModelError: nothing here makes features by such a recipe.
    """
    values = {name: value for name, value in record.items() if name != "modality"}
    kind = _KINDS.get(str(record.get("modality")))
    known = {} if kind is None else {field.name: field for field in fields(kind)}
    if kind is None or not known.keys() >= values.keys():
        what = "its features were imported" if kind is None or "model" not in values else "its recipe is another's"
        raise ModelError(f"These heads read {key} features that nothing here can make: {what}")
    try:
        if "resampler" in values:
            values["resampler"] = Resampler(**values["resampler"])
        return kind(**values)
    except TypeError as problem:
        raise ModelError(f"These heads read {key} features by a recipe that is not whole ({problem})") from None


def _named(key: str, recipe: EncoderRecipe) -> str:
    """The id that a recipe names; a folder of the user's is known by its last name alone."""
    if recipe.revision:
        return f"{recipe.model}@{recipe.revision}"
    modality = recipe.modality
    raise ModelError(
        f"These heads were trained on an encoder from a folder called {recipe.model} for {key}: say where it lies "
        f"by --{modality}-model"
    )


def _as_it_lies(recipe: EncoderRecipe, checkpoint: Checkpoint) -> EncoderRecipe:
    """The recipe by which a checkpoint, as it is now, would make features under the same settings."""
    found: dict[str, Any] = {**checkpoint.identity(), "preprocessing_version": PREPROCESSING_VERSION}
    if isinstance(recipe, AudioRecipe):
        beside: dict[str, Any] = {
            "preprocessor_digest": checkpoint.input_digest(),
            "sampling_rate": checkpoint.sampling_rate(),
        }
        return replace(recipe, **found, **beside)
    return replace(recipe, **found, tokenizer_digest=checkpoint.input_digest())


def _without_whence(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _WHENCE}


@dataclass(frozen=True, slots=True)
class Sound:
    """A waveform as it was recorded."""

    samples: Waveform
    sampling_rate: int  # Hz

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sampling_rate


class Encoding:
    """One encoder on its device, for threads to share: what it gives is what `extract-features` would cache.

    Batches change no row, or are not made (see `amber2_extract.encoders`).
    """

    def __init__(self, job: Job, device: str) -> None:
        """Load the encoder. ModelError: it cannot be loaded."""
        self.recipe = job.recipe
        self._encoder = load_encoder(job, device)
        self._encode = Halving(self._encoder)
        self._device = self._encoder.device.type
        # Tokenizers, and streams of an accelerator, are not for several threads at once.
        self._alone: AbstractContextManager[Any] = nullcontext() if self._device == "cpu" else threading.Lock()
        self._tokenizing = threading.Lock()

    def prepared(self, sound: Sound) -> Any:
        """What the speech encoder takes of a sound.

        Raises:
            AudioError: it is of no use, too short for one.
        """
        assert isinstance(self.recipe, AudioRecipe)
        samples, rate, most = sound.samples, sound.sampling_rate, self.recipe.max_seconds
        if most is not None:
            samples = samples[: round(most * rate)]
        waveform = resample(samples, old_rate=rate, new_rate=self.recipe.sampling_rate, resampler=self.recipe.resampler)
        self._encoder.check(waveform)
        return self._encoder.prepare(waveform)

    def tokens(self, transcripts: Sequence[str]) -> list[Any]:
        """What the text encoder takes of transcripts; an empty list of what gives no token."""
        with self._tokenizing:
            known: list[Any] = self._encoder.tokenizer.tokens(
                [repaired(transcript, self.recipe.repair) for transcript in transcripts]  # type: ignore[union-attr]
            )[0]
        return known

    def batches(self, inputs: Mapping[int, Any]) -> list[list[tuple[int, Any]]]:
        """Inputs by their places, those of similar size together."""
        budget = Effort().budget(self.recipe.modality, self._device)
        if isinstance(self.recipe, AudioRecipe):
            budget *= self.recipe.sampling_rate
        pairs = list(inputs.items())
        return [[pairs[k] for k in some] for some in plan_batches([len(one) for _, one in pairs], budget=budget)]

    def encoded(self, batch: Sequence[tuple[int, Any]]) -> list[tuple[int, Row | str]]:
        """The row of each input, or why there is none."""
        good = [pair for pair in batch if len(pair[1])]
        with self._alone:
            rows = self._encode([one for _, one in good]) if good else []
        found: dict[int, Row | str] = dict.fromkeys((place for place, _ in batch), NO_TOKEN)
        for (place, _), row in zip(good, rows, strict=True):
            found[place] = row if row.is_finite else NOT_FINITE
        return list(found.items())


class Encodings:
    """All encoders that heads read, and the threads that work for them."""

    def __init__(self, jobs: Mapping[str, Job], *, device: str, threads: int | None = None) -> None:
        """Load them.

        Args:
            jobs: feature set → its encoder, as `plan_encodings` gives it.
            device: one device.
            threads: that read recordings and, on a processor, encode; None: as many as torch has.

        Raises:
            ModelError: one cannot be loaded.
        """
        import torch

        self._of = {name: Encoding(job, device) for name, job in jobs.items()}
        count = threads or torch.get_num_threads()
        # Each thread of a processor encodes a batch of its own, which gives the same values however many there are.
        each = 1 if device == "cpu" else torch.get_num_threads()
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(each,))

    def in_threads(self, make: Callable[[Given], Made], given: Iterable[Given]) -> Iterable[Made]:
        """`map` in the threads, in order."""
        return self._pool.map(make, given)

    def rows(
        self, sounds: Sequence[Sound | None], transcripts: Sequence[str | None], *, threaded: bool = True
    ) -> tuple[dict[str, list[Row | None]], dict[int, str]]:
        """Feature set → rows of N utterances, None where there is nothing to encode; and why some cannot be encoded."""
        run: Callable[..., Iterable[Any]] = self.in_threads if threaded else map
        found: dict[str, list[Row | None]] = {name: [None] * len(sounds) for name in self._of}
        problems: dict[int, str] = {}
        # Words first: there are few batches of them, which threads encode while others prepare what is heard.
        words_first = sorted(self._of.items(), key=lambda pair: isinstance(pair[1].recipe, AudioRecipe))
        pending = []
        for name, encoding in words_first:
            given = _inputs(encoding, sounds, transcripts, run)
            problems |= {place: one for place, one in given.items() if isinstance(one, str)}
            inputs = {place: one for place, one in given.items() if not isinstance(one, str)}
            pending.append((name, run(encoding.encoded, encoding.batches(inputs))))
        for name, results in pending:
            for place, row in itertools.chain.from_iterable(results):
                if isinstance(row, str):
                    problems.setdefault(place, row)
                else:
                    found[name][place] = row
        return found, problems


def _inputs(
    encoding: Encoding,
    sounds: Sequence[Sound | None],
    transcripts: Sequence[str | None],
    run: Callable[..., Iterable[Any]],
) -> dict[int, Any]:
    """What an encoder takes of the utterances that have it, by their places; or, as text, why that is nothing."""
    if isinstance(encoding.recipe, AudioRecipe):
        heard = {place: sound for place, sound in enumerate(sounds) if sound is not None}
        return dict(zip(heard, run(partial(_or_why, encoding), heard.values()), strict=True))
    said = {place: words for place, words in enumerate(transcripts) if words is not None}
    return dict(zip(said, encoding.tokens(list(said.values())), strict=True)) if said else {}


def _or_why(encoding: Encoding, sound: Sound) -> Any:
    """What an encoder takes of a sound, or, as text, why that is nothing."""
    try:
        return encoding.prepared(sound)
    except AudioError as problem:
        return str(problem)
