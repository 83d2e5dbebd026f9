"""What `train-heads` shows: a bar while it trains, one table when it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from amber2_core.kinds import DISTRIBUTION, MULTI_LABEL, Kind
from amber2_core.metrics import METRICS_OF
from amber2_core.run_folder import Summary

from .plan import Plan
from .results import Report

LONGEST = 1000  # characters of a line, whatever systems are called


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
    console = Console()
    parts = [(report.table, "test, mean ± sd over seeds of the mean over folds")]
    if report.against_synthetic:
        parts.append((report.against_synthetic, "against synthetic raters, on those of test that they rated"))
    tables = []
    for summary, title in parts:
        for kind, of in ((DISTRIBUTION, ""), (MULTI_LABEL, "which classes are present: ")):
            own = {s: heads for s, heads in summary.items() if report.kinds.get(s, DISTRIBUTION) == kind}
            tables += [_table(own, of + title, kind)] if own else []
    for table in tables:
        whole = console.measure(table, options=console.options.update(width=LONGEST)).maximum
        console.width = max(console.width, whole)  # long lines rather than names and numbers that are cut
        console.print(table)
    for system, folds in report.selected.items():
        points = {fold: " ".join(f"{name} {value}" for name, value in point.items()) for fold, point in folds.items()}
        chosen = "; ".join(f"fold {fold}: {point}" for fold, point in points.items() if point)
        if chosen:
            _print_plainly(console, f"{system}, chosen on dev: {chosen}")
    for system, weights in report.weights.items():
        shares = ", ".join(f"{expert} {weight:.3f}" for expert, weight in weights.items())
        _print_plainly(console, f"{system}, mean expert weight: {shares}")
    _print_plainly(console, f"run folder: {report.folder}")


def _table(summary: Summary, title: str, kind: Kind) -> Table:
    """The metrics of a kind that are printed, a row for each system and head."""
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("system")
    table.add_column("head")
    known = METRICS_OF[kind]
    shown = sorted((name for name, metric in known.items() if metric.printed), key=lambda name: known[name].printed)
    for name in shown:
        table.add_column(f"{name} {known[name].arrow}", justify="right", no_wrap=True)
    for system, heads in summary.items():
        for head, metrics in heads.items():
            table.add_row(system, head, *(_cell(**metrics[name]) for name in shown))
    return table


def print_differences(again: Path, found: Sequence[str], besides: Sequence[str]) -> None:
    """How the run that was shown differs from the one whose command it repeats."""
    console = Console()
    what = f"{len(found)} differences from {again}" if found else f"data, settings and numbers are those of {again}"
    for line in (what, *found, *besides):
        _print_plainly(console, f"again: {line}")


def print_plan(plan: Plan, *, as_json: bool) -> None:
    """What would be trained, in how many tasks, and what it would cost here."""
    if as_json:
        counts = {"runs": plan.runs, "tasks": plan.tasks, "at_once": plan.at_once}
        costs = {**counts, "bytes": plan.bytes, "seconds": plan.seconds}
        click.echo(json.dumps({**costs, "settings": plan.systems}))
        return
    console = Console()
    for system, count in plan.systems.items():
        times = f"{count} settings x {plan.folds} folds x {plan.seeds} seeds = {count * plan.folds * plan.seeds} runs"
        _print_plainly(console, f"{system}: {times}")
    _print_plainly(
        console,
        f"in all {plan.runs} runs of {plan.epochs} epochs in {plan.tasks} tasks, {plan.at_once} at a time: "
        f"about {_duration(plan.seconds)} and {plan.bytes / 2**30:.1f} GiB of memory here (measured over a few steps); "
        "nothing was trained",
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _print_plainly(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cell(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"
