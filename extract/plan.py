"""The feature sets that a call asks for, each with its encoder and its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amber2_core.errors import SettingError, bad_choice
from amber2_core.tables import is_storable_name
from amber2_data.transcripts import REPAIRS, Repair

from .checkpoint import Checkpoint, find_checkpoint
from .encoders import POOLINGS
from .recipe import PRECISIONS, AudioRecipe, EncoderRecipe, Layers, Precision, TextRecipe


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
    *,
    audio_name: str | None = None,
    text_name: str | None = None,
    layers: Layers = "last",
    frames: int | None = None,
    pooling: str = "mean",
    precision: Precision = "fp32",
    max_seconds: float | None = None,
    repair: Repair | None = None,
) -> list[Job]:
    """The feature sets that are asked for; text first, as it takes minutes where audio takes hours.

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
        raise SettingError("Nothing to encode: name an audio model, a text model, or both")
    return jobs
