"""The command of prediction: predict-emotion."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from amber2_core.command import INCOMPLETE, SHOWN, Command, command_body
from amber2_data.cli import table_options

from .options import HeadsChoice, heads_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .units import Unit


@click.command(cls=Command)
@click.argument("inputs", metavar="[FILE|FOLDER|TABLE]...", nargs=-1)
@heads_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, mps, cuda, cuda:N, or cuda:0,cuda:1.")
@click.option("--text", help="What is said in the only FILE; without one, all there is.")
@table_options
@click.option(
    "--window", type=click.FloatRange(min=0, min_open=True), help="Cut recordings into windows of so many seconds."
)
@click.option(
    "--hop",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds from one window to the next. [default: the window]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file of rows that ends in .jsonl, .csv or .parquet. [default: JSON lines on standard output]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["full", "hf"]),
    default="full",
    show_default=True,
    help="Of JSON lines: all that is known, or lists of labels with scores, as audio classification has them.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on where a call stopped that wrote the same --output, and try its errors again.",
)
@command_body
def predict_emotion(
    inputs: tuple[str, ...],
    which: HeadsChoice,
    text: str | None,
    audio_root: Path | None,
    columns: tuple[str, ...],
    window: float | None,
    hop: float | None,
    output: Path | None,
    form: Literal["full", "hf"],
    resume: bool,
) -> int | None:
    """Predict how raters would judge new speech: a distribution over emotions for each FILE, segment or window.

    FILE is a recording, or a .txt file of words alone; a FOLDER is searched for recordings; a TABLE (.csv, .tsv,
    .jsonl) names recordings, words, and perhaps start and end of segments, as a manifest does. What is said stands in a
    table's column, or beside the recording in a file of the same name that ends in .txt, or --transcribe hears it.

    A recording that is of no use is one row with an error; the exit code then is 3. Interrupted at any moment, the same
    command with --resume goes on where it stopped, and tries again what ended in an error.

    \b
      predict-emotion --heads heads/ talk.wav --text "I never said that."
      predict-emotion --heads runs/mine calls/ --window 10 --hop 5 --output calls.parquet --resume
    """
    from amber2_core.errors import SettingError
    from amber2_data.manifest_columns import named_columns

    from .pipeline import predict_to
    from .table import rows_beside
    from .units import Windows, units_of

    if hop is not None and window is None:
        raise SettingError("--hop without --window: say how long windows are")
    if resume and output is None:
        raise SettingError("--resume without --output: what was printed is not known")
    windows = None if window is None else Windows(window, window if hop is None else hop)
    units = units_of(inputs, text=text, windows=windows, audio_root=audio_root, columns=named_columns(columns))
    if output is None:
        return _printed(which, units, form)
    done = predict_to(output, which, units, windows=windows, format=form, resume=resume)
    kept = f", {done.kept:,} of them of an earlier call" if done.kept else ""
    again = ", which --resume tries again" if rows_beside(output) else ""
    click.echo(f"{output}: {done.rows:,} rows{kept}, {done.errors:,} errors{again}")
    return INCOMPLETE if done.errors else None


def _printed(which: HeadsChoice, units: Iterable[Unit], form: Literal["full", "hf"]) -> int | None:
    """Rows as lines on standard output, as they come."""
    from .pipeline import predict_units
    from .table import line_of

    errors = 0
    with closing(predict_units(which, units)) as pairs:
        for _, row in pairs:
            click.echo(line_of(row, form))
            if row["error"] is not None:
                errors += 1
                if errors <= SHOWN:
                    reason = row["error"].removeprefix(f"{Path(row['file']).name}: ")
                    click.echo(f"failed: {row['file']}: {reason}", err=True)
    return INCOMPLETE if errors else None
