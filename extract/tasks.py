"""Names of encoders and settings go in; the feature sets that are asked for come out, each with its recipe."""

from __future__ import annotations

from dataclasses import dataclass

from amber2_core.errors import SettingError, bad_choice
from amber2_core.tables import is_storable_name

from .checkpoint import Checkpoint, find_checkpoint
from .recipe import PRECISIONS, AudioRecipe, EncoderRecipe, Layers, Precision, TextRecipe


@dataclass(frozen=True)
class Task:
    """One feature set that is asked for."""

    name: str
    checkpoint: Checkpoint
    recipe: EncoderRecipe


def plan_tasks(
    audio_model: str | None,
    text_model: str | None,
    *,
    audio_name: str | None = None,
    text_name: str | None = None,
    layers: Layers = "last",
    frames: int | None = None,
    precision: Precision = "fp32",
    max_seconds: float | None = None,
) -> tuple[Task, ...]:
    """Text first: it takes minutes where audio takes hours, and so all that can be wrong is met early.

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
    for modality, name in (("audio", audio_name), ("text", text_name)):
        if name is not None and not is_storable_name(name):
            raise SettingError(f"Bad {modality} name {name!r}, expected one without '/'")
    tasks = []
    if text_model is not None:
        checkpoint = find_checkpoint(text_model, modality="text")
        recipe: EncoderRecipe = TextRecipe.of(checkpoint, layers=layers, frames=frames, precision=precision)
        tasks.append(Task(text_name or _name(checkpoint, recipe), checkpoint, recipe))
    if audio_model is not None:
        checkpoint = find_checkpoint(audio_model, modality="audio")
        recipe = AudioRecipe.of(checkpoint, layers=layers, frames=frames, precision=precision, max_seconds=max_seconds)
        tasks.append(Task(audio_name or _name(checkpoint, recipe), checkpoint, recipe))
    if not tasks:
        raise SettingError("Nothing to encode: name an audio model, a text model, or both")
    return tuple(tasks)


def _name(checkpoint: Checkpoint, recipe: EncoderRecipe) -> str:
    """The encoder's, and what is more than one vector per utterance: such sets stand beside the plain one."""
    layers = "-layers" if recipe.layers == "all" else ""
    frames = f"-frames{recipe.frames}" if recipe.frames is not None else ""
    return f"{checkpoint.short_name}{layers}{frames}"
