"""What `train-heads` shows: a bar while it trains, one table when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .run import Report

# the metrics of the paper's tables, with the direction that is better; all others are in results.csv
SHOWN = {"js": "↓", "bc": "↑", "r2": "↑", "macro_f1": "↑", "weighted_f1": "↑", "accuracy": "↑", "uar": "↑", "ece": "↓"}


@contextmanager
def progress() -> Iterator[Callable[[int, int], None]]:
    """A progress bar over runs on a terminal; elsewhere nothing, the log has a line per fold."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("runs"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_table(report: Report) -> None:
    """Mean ± sd over seeds of the fold mean, on test, per system and head; then what dev chose and where it all is."""
    table = Table(title="test, mean ± sd over seeds of the mean over folds", title_justify="left", box=None)
    table.add_column("system")
    table.add_column("head")
    for metric, better in SHOWN.items():
        table.add_column(f"{metric} {better}", justify="right", no_wrap=True)
    for system, heads in report.table.items():
        for head, metrics in heads.items():
            table.add_row(system, head, *(_cell(**metrics[metric]) for metric in SHOWN))
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a table in a file or a pipe is not cut
    console.print(table)
    for system, folds in report.selected.items():
        points = {fold: " ".join(f"{name} {value}" for name, value in point.items()) for fold, point in folds.items()}
        chosen = "; ".join(f"fold {fold}: {point}" for fold, point in points.items() if point)
        if chosen:
            _print_plainly(console, f"{system}, chosen on dev: {chosen}")
    _print_plainly(console, f"run folder: {report.folder}")


def _print_plainly(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cell(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"
