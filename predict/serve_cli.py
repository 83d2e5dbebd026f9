"""The command `serve-emotion`: a page to speak to, and the same predictions as JSON for programs."""

from __future__ import annotations

import click

from amber2_core.command import Command, command_body

from .options import HeadsChoice, heads_options

_SECONDS = click.FloatRange(min=0, min_open=True)


@click.command(cls=Command)
@heads_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, mps, cuda or cuda:N.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; there is no password.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8571, show_default=True, help="Port to listen on; 0: any free one."
)
@click.option(
    "--window", type=_SECONDS, default=10.0, show_default=True, help="Seconds of the windows of long recordings."
)
@click.option("--hop", type=_SECONDS, help="Seconds from one window to the next. [default: half the window]")
@click.option(
    "--max-mb", type=click.IntRange(1), default=200, show_default=True, help="Largest recording that is taken."
)
@click.option(
    "--max-seconds", type=_SECONDS, default=7200.0, show_default=True, help="Longest recording that is taken."
)
@click.option(
    "--at-once",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Requests that are read, wait or are computed at most; others are told to come again.",
)
@command_body
def serve_emotion(
    *,
    which: HeadsChoice,
    host: str,
    port: int,
    window: float,
    hop: float | None,
    max_mb: int,
    max_seconds: float,
    at_once: int,
) -> None:
    """Serve a page on which one records or uploads speech, types what is said, and sees how raters would judge it.

    Programs ask POST /predict, whose body is a recording and whose query holds the words (?text=), and get the rows of
    predict-emotion as JSON. Nothing that is sent is kept. Ctrl-C ends the server.

    \b
      serve-emotion --heads heads/
      curl --data-binary @talk.wav "http://127.0.0.1:8571/predict?text=I+never+said+that."
    """
    from .server import check_extra, serve
    from .units import Windows
    from .uploads import Limits

    check_extra()
    windows = Windows(window, window / 2 if hop is None else hop)
    limits = Limits(max_mb, max_seconds, at_once)
    serve(which, host=host, port=port, windows=windows, limits=limits, ready=click.echo)
