"""One table, whatever it is written in: cells with numbers in full go in; CSV, Markdown and LaTeX come out."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

# how a metric is called in a table's head, with the direction that is better
METRIC_TITLES = {
    "js": "JS ↓",
    "js_distance_nats": "√JS, nats ↓",
    "bc": "BC ↑",
    "r2": "R² ↑",
    "accuracy": "ACC ↑",
    "accuracy_untied": "ACC untied ↑",
    "uar": "UAR ↑",
    "macro_f1": "F1 ↑",
    "weighted_f1": "W-F1 ↑",
    "macro_f1_threshold": "F1 > 1/C ↑",
    "ece": "ECE ↓",
}
LOWER_IS_BETTER = frozenset(name for name, title in METRIC_TITLES.items() if title.endswith("↓"))
DIGITS = 3
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "²": "$^2$",
    "√": r"$\surd$", "−": "$-$", "κ": r"$\kappa$", "λ": r"$\lambda$", "±": r"$\pm$", "<": "$<$", ">": "$>$",
    "–": "--", "·": r"$\cdot$", "†": r"\dag{}", "≤": r"$\le$", "×": r"$\times$",
}  # fmt: skip


@dataclass(frozen=True)
class Number:
    """A number in full, its spread where it has one, and whether it is the best of its column."""

    value: float | None
    sd: float | None = None
    best: bool = False
    digits: int = DIGITS
    signed: bool = False

    @property
    def text(self) -> str:
        """As it is read: 0.193, +0.010, –."""
        return number_text(self.value, self.digits, self.signed)

    @property
    def sd_text(self) -> str:
        return "" if self.sd is None else number_text(self.sd, self.digits)


@dataclass(frozen=True)
class Interval:
    """The two ends of an interval."""

    low: float
    high: float

    @property
    def texts(self) -> tuple[str, str]:
        return number_text(self.low, DIGITS + 1, True), number_text(self.high, DIGITS + 1, True)


@dataclass(frozen=True)
class PValue:
    """A p-value; below 0.001 only that is said."""

    value: float

    @property
    def text(self) -> str:
        return "< 0.001" if self.value < 0.001 else number_text(self.value, DIGITS)


Cell = str | Number | Interval | PValue


@dataclass(frozen=True)
class Column:
    """A column: its name in CSV, and its title elsewhere."""

    name: str
    title: str


@dataclass(frozen=True)
class Table:
    """A table with a caption; `name` is that of its files."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    # lines that must stand under it
    notes: Sequence[str] = field(default_factory=tuple)
    # which table of the paper it is laid out like; for the page alone, a reader's own paper counts for itself
    like: str = ""


def number_text(value: float | None, digits: int = DIGITS, signed: bool = False) -> str:
    """A number as it is read, with a true minus sign; – where there is none.

    >>> number_text(-0.0105), number_text(0.25, 2, True), number_text(None)
    ('−0.011', '+0.25', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.{digits}f}".replace("-", "−") if signed else f"{value:.{digits}f}".replace("-", "−")


def with_best(rows: Sequence[Sequence[Cell]], columns: Sequence[Column]) -> list[list[Cell]]:
    """The rows with the best number of each metric's column marked, and those that read the same."""
    marked = [list(row) for row in rows]
    for place, column in enumerate(columns):
        numbers = [row[place] for row in rows]
        values = [n.value for n in numbers if isinstance(n, Number) and n.value is not None]
        if column.name not in METRIC_TITLES or len(values) < 2:
            continue
        best = number_text(min(values) if column.name in LOWER_IS_BETTER else max(values))
        for row in marked:
            cell = row[place]
            if isinstance(cell, Number) and cell.text == best:
                row[place] = Number(cell.value, cell.sd, True, cell.digits, cell.signed)
    return marked


def csv_text(table: Table) -> str:
    """Numbers in full; a spread and the ends of an interval have columns of their own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    kinds = [_kind([row[place] for row in table.rows]) for place in range(len(table.columns))]
    writer.writerow(
        [
            name + end
            for column, kind in zip(table.columns, kinds, strict=True)
            for name in [column.name]
            for end in kind
        ]
    )
    for row in table.rows:
        writer.writerow(
            [part for cell, kind in zip(row, kinds, strict=True) for part in _parts(cell, len(kind))],
        )
    return out.getvalue()


def markdown_text(table: Table) -> str:
    """A table of GitHub's Markdown under its caption, its notes below."""
    numeric = [not isinstance(table.rows[0][k], str) if table.rows else False for k in range(len(table.columns))]
    lines = [f"**{_markdown(table.caption)}**", "", _pipe([_markdown(column.title) for column in table.columns])]
    lines.append(_pipe(["---:" if right else "---" for right in numeric]))
    lines += [_pipe([_markdown_cell(cell) for cell in row]) for row in table.rows]
    lines += [f"\n{_markdown(note)}" for note in table.notes]
    return "\n".join(lines) + "\n"


def latex_text(table: Table) -> str:
    """A LaTeX table for the package booktabs."""
    align = "".join("r" if table.rows and not isinstance(cell, str) else "l" for cell in (table.rows or [[]])[0])
    rows = [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in table.rows]
    notes = [r"\par\smallskip\footnotesize " + _latex(note) for note in table.notes]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{align or 'l' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(_latex(column.title) for column in table.columns) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def _kind(cells: Sequence[Cell]) -> tuple[str, ...]:
    """What the names of a column's CSV columns end with."""
    if any(isinstance(cell, Interval) for cell in cells):
        return ("_low", "_high")
    return ("", "_sd") if any(isinstance(cell, Number) and cell.sd is not None for cell in cells) else ("",)


def _parts(cell: Cell, count: int) -> list[str]:
    match cell:
        case Interval():
            parts = [repr(cell.low), repr(cell.high)]
        case Number():
            parts = ["" if x is None else repr(float(x)) for x in (cell.value, cell.sd)]
        case PValue():
            parts = [repr(cell.value)]
        case _:
            parts = [cell]
    return (parts + [""] * count)[:count]


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(cell: Cell) -> str:
    match cell:
        case Number():
            text = f"**{cell.text}**" if cell.best else cell.text
            return f"{text} ± {cell.sd_text}" if cell.sd_text else text
        case Interval():
            return f"[{cell.texts[0]}, {cell.texts[1]}]"
        case PValue():
            return cell.text
        case _:
            return _markdown(cell)


def _markdown(text: str) -> str:
    """Text that Markdown and HTML inside of it leave as it is."""
    for character in "\\`*_{}[]<>|#~":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _latex_cell(cell: Cell) -> str:
    match cell:
        case Number() if cell.value is not None:
            plain = cell.text.replace("−", "-")
            number = rf"\mathbf{{{plain}}}" if cell.best else plain
            return f"${number} \\pm {cell.sd_text}$" if cell.sd_text else f"${number}$"
        case Interval():
            return f"$[{', '.join(cell.texts)}]$".replace("−", "-")
        case PValue():
            return f"${cell.text}$"
        case Number():
            return "--"
        case _:
            return _latex(cell)


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
