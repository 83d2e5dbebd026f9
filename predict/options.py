"""The options of commands that predict: which heads, and where their encoders lie."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import click


@dataclass(frozen=True)
class HeadsChoice:
    """What `heads_options` were given, by the names that `Predictor.from_pretrained` has for it."""

    heads: str
    transcribe: str | None
    system: str | None
    fold: int | None
    seed: int | None
    ensemble: bool
    audio_model: tuple[str, ...]
    text_model: tuple[str, ...]
    sentiment_model: tuple[str, ...]


_OPTIONS = (
    click.option(
        "--heads",
        required=True,
        help="Trained heads: an exported folder, a run folder, one heads file, or an id of the hub.",
    ),
    click.option(
        "--transcribe",
        metavar="MODEL",
        help="Recogniser for what has no transcript: an id of the hub, or a folder. [default: none, audio alone]",
    ),
    click.option("--system", help="Of a run with several systems, the one that predicts."),
    click.option("--fold", type=int, help="Of a run, the models of this fold."),
    click.option("--seed", type=int, help="Of a run, the models of this seed."),
    click.option("--ensemble", is_flag=True, help="Of a run, all models that are left. [default: the best on dev]"),
    click.option(
        "--audio-model", multiple=True, help="Where the heads' speech encoder lies now. [default: as they name it]"
    ),
    click.option(
        "--text-model", multiple=True, help="Where the heads' text encoder lies now. [default: as they name it]"
    ),
    click.option(
        "--sentiment-model",
        multiple=True,
        help="Where the heads' classifier of sentiment lies now. [default: as they name it]",
    ),
)


def heads_options(body: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with the options that say which heads predict; it gets them as one argument, `which`."""

    @functools.wraps(body)
    def gathered(**options: Any) -> Any:
        which = HeadsChoice(**{field.name: options.pop(field.name) for field in fields(HeadsChoice)})
        return body(which=which, **options)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered
