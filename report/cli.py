"""The command `report-runs`: run folders in, one folder with a page, tables and figures out."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import click

from amber2_core.command import Command, command_body
from amber2_core.errors import RunFolderError
from amber2_core.files import lock


@contextmanager
def free_name(place: Path, name: str) -> Iterator[Path]:
    """A folder's path that nothing stands under and nobody else writes: `name`, else name-2, name-3, …"""
    for number in itertools.count(1):
        folder = place / (name if number == 1 else f"{name}-{number}")
        held = folder.with_name(f".{folder.name}.lock")
        with ExitStack() as stack:
            stack.callback(_remove_if_empty, place)
            try:
                stack.enter_context(lock(held))
            except BlockingIOError:
                continue  # a command that began in the same second
            except OSError as problem:
                raise RunFolderError(
                    f"Cannot write {folder}: {problem.strerror}; choose another place with --output"
                ) from None
            stack.callback(held.unlink, missing_ok=True)
            if not folder.exists():
                yield folder
                return


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 110})
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to write. [default: ./reports/TIME-RUN]")
@click.option(
    "--cache",
    "caches",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Where a run's feature cache lies now, if it was moved: transcripts, speakers and votes come from it.",
)
@click.option(
    "--head", help="Compare this head of every system, such as audio. [default: its student, else fusion, else its own]"
)
@click.option(
    "--ensemble",
    is_flag=False,
    flag_value="",
    metavar="[LIST]",
    help="Add the mean of the distributions of every seed of the fusion head (or that of --head) of every system of "
    "all runs, or of the systems in LIST. Runs must have one test set; of one system it is the ensemble of its seeds.",
)
@click.option(
    "--by",
    multiple=True,
    metavar="COLUMN",
    help="Scores by a column of utterances.csv, such as gender, speaker or session; may be given several times.",
)
@click.option("--with-audio", is_flag=True, help="Embed recordings in the page; mind the licence of the corpus.")
@click.option("--audio-count", type=click.IntRange(1), default=100, help="Recordings of each preset to embed.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Where the recordings lie. [default: AMBER2_<CORPUS>_ROOT, else ./corpora/<corpus>]",
)
@click.option("--json", "as_json", is_flag=True, help="Print where the report is, and the comparisons, as JSON.")
@command_body
def report_runs(
    *,
    runs: tuple[Path, ...],
    output: Path | None,
    caches: tuple[Path, ...],
    head: str | None,
    ensemble: str | None,
    by: tuple[str, ...],
    with_audio: bool,
    audio_count: int,
    root: Path | None,
    as_json: bool,
) -> None:
    """Turn run folders into what a paper needs: report.html, tables as CSV, Markdown and LaTeX, figures as SVG and PDF.

    Runs that were tested on the same utterances are compared: a paired bootstrap over speakers, Holm-corrected.

    \b
      report-runs runs/20260101-120000-iemocap
      report-runs --output ablation runs/full runs/no-mai
      report-runs --head audio --by gender runs/hubert runs/wavlm
      report-runs runs/hubert runs/wavlm --ensemble=amber2
    """

    import pandas as pd

    from amber2_core.run_folder import shown_name

    from .page import Options, write_report

    systems = None if ensemble is None else [name.strip() for name in ensemble.split(",") if name.strip()]
    options = Options(caches, audio_count if with_audio else 0, root, head, by, ensemble=systems)
    if output is None:
        with free_name(Path("reports"), f"{time.strftime('%Y%m%d-%H%M%S')}-{shown_name(runs[0])[:80]}") as folder:
            report = write_report(runs, folder, options)
    else:
        report = write_report(runs, output, options)
    if as_json:
        compared = pd.concat(
            [
                chapter.comparisons.assign(runs=", ".join(run.name for run in chapter.group.runs), correction="holm")
                for chapter in report.chapters
            ]
        )
        rows = compared.to_json(orient="records", double_precision=15)  # unlike json's own, with null for NaN
        click.echo(json.dumps({"report": click.format_filename(report.page), "comparisons": json.loads(rows)}))
        return
    for chapter in report.chapters:
        for line in chapter.headline:
            click.echo(line.replace("\N{NO-BREAK SPACE}", " "))  # which are for the page
    click.echo(f"report: {click.format_filename(report.page)}")
