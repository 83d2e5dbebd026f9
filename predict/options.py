"""The options of commands that predict: which heads, and where their encoders lie."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import click

from amber2_core.command import together


@dataclass(frozen=True)
class HeadsChoice:
    """Which heads predict, and how, by the names that `Predictor.from_pretrained` has for it."""

    heads: str
    device: str = "auto"
    transcribe: str | None = None
    # of a run
    system: str | None = None
    fold: int | None = None
    seed: int | None = None
    ensemble: bool = False
    # where encoders lie now
    audio_model: Sequence[str] = ()
    text_model: Sequence[str] = ()
    sentiment_model: Sequence[str] = ()


_options = together(
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
    """Decorate a command that has --device with the other options of `HeadsChoice`; it gets all of them as `which`."""

    @functools.wraps(body)
    def gathered(**options: Any) -> Any:
        which = HeadsChoice(**{field.name: options.pop(field.name) for field in fields(HeadsChoice)})
        return body(which=which, **options)

    return _options(gathered)
