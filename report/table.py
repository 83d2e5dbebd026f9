"""One table: a pandas frame with its numbers in full, how its columns are read, and it in CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pandas as pd

from amber2_core.metrics import metric_of
from amber2_core.run_folder import Floats, fold_means, mean_and_sd

DIGITS = 3
MISSING = "–"
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "²": "$^2$",
    "√": r"$\surd$", "−": "$-$", "κ": r"$\kappa$", "λ": r"$\lambda$", "±": r"$\pm$", "<": "$<$", ">": "$>$",
    "–": "--", "·": r"$\cdot$", "†": r"\dag{}", "≤": r"$\le$", "×": r"$\times$", "ρ": r"$\rho$",
}  # fmt: skip

# score: 0.193 ± 0.001, its spread in NAME_sd where there is one; change: +0.0105; interval: [−0.0100, +0.0020], its
# ends in NAME_low and NAME_high; p: 0.013 or < 0.001; share: 80%; words: as they are
Kind = Literal["words", "score", "change", "interval", "p", "share"]


Row = dict[Any, Any]
# what the main tables show
DISTRIBUTION = ("js", "bc", "r2")
CLASSIFICATION = ("macro_f1", "weighted_f1", "accuracy")
SHOWN = (*DISTRIBUTION, *CLASSIFICATION)


@dataclass(frozen=True)
class Column:
    """A column: its name in the frame and in CSV, its title elsewhere, and how it is read."""

    name: str
    title: str
    kind: Kind = "words"


ENTRY = Column("entry", "system, head")


@dataclass(frozen=True)
class Cell:
    """What stands in one place: words, or one or two numbers (a spread beside it, the ends of an interval)."""

    kind: Kind
    texts: tuple[str, ...]
    values: tuple[float, ...] = ()  # in full; none for words, and where a number is missing
    best: bool = False

    @property
    def text(self) -> str:
        """As it is read."""
        return f"[{', '.join(self.texts)}]" if self.kind == "interval" else " ± ".join(self.texts)


@dataclass(frozen=True, eq=False)
class Table:
    """A table with a caption; `name` is that of its files."""

    name: str
    caption: str
    columns: Sequence[Column]
    frame: pd.DataFrame
    notes: Sequence[str] = ()  # lines that must stand under it
    like: str = ""  # which table of the paper it is laid out like; for the page alone
    bold: bool = True  # whether the best of each metric is marked

    @cached_property
    def rows(self) -> list[list[Cell]]:
        """The cells, row by row."""
        return [list(row) for row in zip(*map(self._cells, self.columns), strict=True)]

    def _cells(self, column: Column) -> list[Cell]:
        ends = {"score": ("", "_sd"), "interval": ("_low", "_high")}.get(column.kind, ("",))
        parts = [self.frame[name] for end in ends if (name := column.name + end) in self.frame]
        if column.kind == "words":
            return [Cell("words", (MISSING if pd.isna(value) else str(value),)) for value in parts[0].tolist()]
        cells = []
        for values in zip(*(part.astype(float).tolist() for part in parts), strict=True):
            there = tuple(value for value in values if math.isfinite(value))
            cells.append(Cell(column.kind, tuple(_read(value, column.kind) for value in there) or (MISSING,), there))
        return self._with_best(column, cells) if self.bold and metric_of(column.name) else cells

    def _with_best(self, column: Column, cells: list[Cell]) -> list[Cell]:
        """The cells with the best number marked, and those that read the same."""
        values = [cell.values[0] for cell in cells if cell.values]
        if len(values) < 2:
            return cells
        metric = metric_of(column.name)
        best = number_text(min(values) if metric and metric.better == "lower" else max(values))
        return [Cell(cell.kind, cell.texts, cell.values, best=cell.texts[0] == best) for cell in cells]


def table_of(
    name: str, caption: str, columns: Sequence[Column], rows: Sequence[Row], notes: Sequence[str], *, like: str = "",
    bold: bool = True,
) -> Table:  # fmt: skip
    """A table of the columns' own parts of some rows; a spread that nothing has is left out."""
    frame = pd.DataFrame(rows)
    ends = ("", "_sd", "_low", "_high")
    wanted = [part for column in columns for end in ends if (part := column.name + end) in frame]
    frame = frame[[part for part in wanted if not part.endswith("_sd") or frame[part].notna().any()]]
    return Table(name, caption, columns, frame, notes, like, bold)


def means_and_sds(names: Iterable[str], of_seeds: Iterable[Floats]) -> Row:
    """Of values over seeds (seeds,), each under its name: the mean, and the sd as NAME_sd."""
    row: Row = {}
    for name, values in zip(names, of_seeds, strict=True):
        found = mean_and_sd(values)
        row |= {name: found["mean"], f"{name}_sd": found["sd"]}
    return row


def scores_of(rows: pd.DataFrame, metrics: Sequence[str]) -> Row:
    """Over the seeds of some rows of results.csv, of the mean over folds: every metric, and its spread as NAME_sd."""
    table = rows.reindex(columns=["seed", "n", *metrics])
    return means_and_sds(metrics, fold_means(table, metrics))


def metric_columns(metrics: Iterable[str]) -> list[Column]:
    """A column of scores for each metric."""
    return [Column(name, title_of(name), "score") for name in metrics]


def title_of(metric: str) -> str:
    """How a metric is called in a table's head, with the direction that is better."""
    found = metric_of(metric)
    return f"{found.title} {found.arrow}" if found else metric


def number_text(value: float | None, digits: int = DIGITS, signed: bool = False) -> str:
    """A number as it is read, with a true minus sign; – where there is none.

    >>> number_text(-0.0105), number_text(0.25, 2, True), number_text(None)
    ('−0.011', '+0.25', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:+.{digits}f}".replace("-", "−") if signed else f"{value:.{digits}f}".replace("-", "−")


def p_text(p: float) -> str:
    """A p-value; below 0.001 only that is said."""
    return "< 0.001" if p < 0.001 else number_text(p)


def csv_text(table: Table) -> str:
    """The frame: numbers in full; a spread and the ends of an interval have columns of their own."""
    return table.frame.to_csv(index=False, lineterminator="\n")


def markdown_text(table: Table) -> str:
    """A table of GitHub's Markdown under its caption, its notes below."""
    lines = [[_markdown(column.title) for column in table.columns]]
    lines.append(["---" if column.kind == "words" else "---:" for column in table.columns])
    lines += [[_markdown_cell(cell) for cell in row] for row in table.rows]
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"**{_markdown(table.caption)}**\n\n{body}" + "".join(f"\n{_markdown(note)}\n" for note in table.notes)


def latex_text(table: Table, prefix: str = "") -> str:
    """A LaTeX table for the package booktabs; its label is its name, with a prefix where several chapters have one."""
    titles = [_latex(column.title) for column in table.columns]
    words = pd.DataFrame([[_latex_cell(cell) for cell in row] for row in table.rows], columns=titles)
    text = words.style.hide(axis="index").to_latex(
        column_format="".join("l" if column.kind == "words" else "r" for column in table.columns),
        position_float="centering",
        hrules=True,
        caption=_latex(table.caption),
        label=f"tab:{prefix}{table.name}",
    )
    notes = "".join(rf"\par\smallskip\footnotesize {_latex(note)}" + "\n" for note in table.notes)
    return "% needs \\usepackage{booktabs}\n" + text.replace(r"\end{table}", notes + r"\end{table}")


def _read(value: float, kind: Kind) -> str:
    match kind:
        case "change" | "interval":
            return number_text(value, DIGITS + 1, signed=True)
        case "p":
            return p_text(value)
        case "share":
            return f"{value:.0%}"
        case _:
            return number_text(value)


def _markdown(text: str) -> str:
    """Text that Markdown and HTML inside of it leave as it is."""
    for character in "\\`*_{}[]<>|#~":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _markdown_cell(cell: Cell) -> str:
    if cell.kind == "words":
        return _markdown(cell.text)
    return cell.text.replace(cell.texts[0], f"**{cell.texts[0]}**", 1) if cell.best else cell.text


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _latex_cell(cell: Cell) -> str:
    if not cell.values:
        return _latex(cell.text)
    number = cell.texts[0]
    text = cell.text.replace(number, rf"\mathbf{{{number}}}", 1) if cell.best else cell.text
    return f"${text.replace('−', '-').replace('±', chr(92) + 'pm').replace('%', chr(92) + '%')}$"
