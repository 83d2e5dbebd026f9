"""Tables as files: CSV reads back in full, Markdown and LaTeX escape what they must, the best is marked."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from amber2_report.table import (
    Cell,
    Column,
    Interval,
    Number,
    PValue,
    Table,
    csv_text,
    latex_text,
    markdown_text,
    with_best,
)

COLUMNS = [Column("entry", "system"), Column("js", "JS ↓"), Column("bc", "BC ↑"), Column("interval", "95 % interval")]
NASTY = "a_b & 50% $x$ #1 {y} ~ ^ \\ <b> | `c` *d*"


@pytest.fixture
def table() -> Table:
    rows: list[list[Cell]] = [
        ["one", Number(0.1931234567890123, 0.001), Number(0.8), Interval(-0.01, 0.002)],
        [NASTY, Number(0.216, 0.0), Number(None), Interval(0.5, 1.0)],
    ]
    return Table("example", "A caption, 100 %", COLUMNS, with_best(rows, COLUMNS), ["A note."])


def test_csv_holds_every_number_in_full(table: Table) -> None:
    header, *rows = list(csv.reader(io.StringIO(csv_text(table))))
    assert header == ["entry", "js", "js_sd", "bc", "interval_low", "interval_high"]
    assert rows[0] == ["one", "0.1931234567890123", "0.001", "0.8", "-0.01", "0.002"]
    assert rows[1] == [NASTY, "0.216", "0.0", "", "0.5", "1.0"]


def test_the_best_is_the_lowest_divergence_and_ties_by_eye_are_shared() -> None:
    columns = [Column("entry", "system"), Column("js", "JS"), Column("accuracy", "ACC")]
    rows: list[list[Cell]] = [
        ["a", Number(0.1931), Number(0.5)],
        ["b", Number(0.1929), Number(0.6)],
        ["c", Number(0.2), Number(0.4)],
    ]
    marked = with_best(rows, columns)
    assert [[cell.best for cell in row if isinstance(cell, Number)] for row in marked] == [
        [True, False], [True, True], [False, False],
    ]  # fmt: skip
    assert with_best(rows[:1], columns) == [rows[0]]


def test_markdown_keeps_its_columns_whatever_stands_in_a_cell(table: Table) -> None:
    lines = markdown_text(table).splitlines()
    assert lines[2:6] == [
        "| system | JS ↓ | BC ↑ | 95 % interval |",
        "| --- | ---: | ---: | ---: |",
        "| one | **0.193** ± 0.001 | 0.800 | [−0.0100, +0.0020] |",
        r"| a\_b & 50% $x$ \#1 \{y\} \~ ^ \\ \<b\> \| \`c\` \*d\* | 0.216 ± 0.000 | – | [+0.5000, +1.0000] |",
    ]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in lines[2:6])


def test_latex_escapes_its_special_characters(table: Table) -> None:
    text = latex_text(table)
    assert r"one & $\mathbf{0.193} \pm 0.001$ & $0.800$ & $[-0.0100, +0.0020]$ \\" in text
    assert r"a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{} $<$b$>$" in text
    assert r"\caption{A caption, 100 \%}" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    assert text.encode("ascii")


def test_latex_compiles(table: Table, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex on the path")
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{latex_text(table)}\end{{document}}"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_a_small_p_value_is_only_called_small() -> None:
    assert PValue(0.0004).text == "< 0.001"
    assert PValue(0.0131).text == "0.013"


def test_numbers_have_a_true_minus_and_none_is_a_dash() -> None:
    assert Number(-0.0105, digits=4, signed=True).text == "−0.0105"
    assert Number(None).text == "–"
    assert Number(float("nan")).text == "–"
