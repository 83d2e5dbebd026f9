"""The commands of prediction: predict-emotion, serve-emotion, and export-heads, which makes what both can load."""

from __future__ import annotations

import json
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

_SECONDS = click.FloatRange(min=0, min_open=True)


@click.command(cls=Command)
@click.argument("inputs", metavar="[FILE|FOLDER|TABLE]...", nargs=-1)
@heads_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, mps, cuda, cuda:N, or cuda:0,cuda:1.")
@click.option("--text", help="What is said in the only FILE; without one, all there is.")
@table_options
@click.option("--window", type=_SECONDS, help="Cut recordings into windows of so many seconds.")
@click.option(
    "--hop",
    type=_SECONDS,
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


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 110})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--system", help="System of the run. [default: of those that can, the one with the lowest dev JS]")
@click.option("--fold", type=click.IntRange(1), help="Models of this fold alone.")
@click.option("--seed", type=click.IntRange(0), help="Models of this seed alone.")
@click.option(
    "--ensemble",
    is_flag=True,
    help="All models of these folds and seeds, whose prediction is the mean. [default: the one with the lowest dev JS]",
)
@click.option("--onnx", is_flag=True, help="Write the heads as a graph, too, compared with onnxruntime to 1e-5.")
@click.option("--push", metavar="ID", help="Bring the folder to the Hugging Face hub, as owner/name; new ones private.")
@click.option("--public", is_flag=True, help="What --push makes is public. See the licences of corpus and encoders.")
@click.option("--json", "as_json", is_flag=True, help="Print config.json, and where the folder is, as JSON.")
@command_body
def export_heads(
    *,
    run: Path,
    output: Path,
    system: str | None,
    fold: int | None,
    seed: int | None,
    ensemble: bool,
    onnx: bool,
    push: str | None,
    public: bool,
    as_json: bool,
) -> None:
    """Make a folder of a run's trained heads that predicts without cache and run: weights, config, and a card.

    It is read back before it stands under its name. predict-emotion takes it, or the id that it was pushed to.
    """
    from amber2_core.errors import SettingError

    from .export import export_heads
    from .hub import check_id
    from .hub import push as pushed

    if onnx:
        from .graph import check_extra

        check_extra()
    if push is not None:
        check_id(push)
    elif public:
        raise SettingError("--public without --push: name the id that is to be public, or leave it out")
    chosen = export_heads(run, output, system=system, fold=fold, seed=seed, ensemble=ensemble, onnx=onnx)
    address = None if push is None else pushed(output, push, public=public)
    config = chosen.heads.config
    if as_json:
        click.echo(json.dumps({"folder": str(output), "pushed": address, **config}, indent=2, ensure_ascii=False))
        return
    first, count = chosen.models[0], len(chosen.models)
    which = f"fold {first.fold}, seed {first.seed}" if count == 1 else f"{count} models"
    click.echo(f"{output}: {config['system']}, {which}, head {chosen.heads.head}, {' '.join(chosen.heads.emotions)}")
    if address:
        click.echo(address)


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
