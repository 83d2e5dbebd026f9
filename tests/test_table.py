"""Tables as files: CSV reads back in full, Markdown and LaTeX escape what they must, the best is marked."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from amber2_report.table import Column, Table, csv_text, latex_text, markdown_text, number_text, p_text

COLUMNS = [
    Column("entry", "system"),
    Column("js", "JS ↓", "score"),
    Column("bc", "BC ↑", "score"),
    Column("interval", "95 % interval", "interval"),
]
NASTY = "a_b & 50% $x$ #1 {y} ~ ^ \\ <b> | `c` *d*"


@pytest.fixture
def table() -> Table:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "entry": ["one", NASTY],
            "js": [0.1931234567890123, 0.216],
            "js_sd": [0.001, 0.0],
            "bc": [0.8, None],
            "interval_low": [-0.01, 0.5],
            "interval_high": [0.002, 1.0],
        }
    )
    return Table("example", "A caption, 100 %", COLUMNS, frame, ["A note."])


def test_csv_holds_every_number_in_full(table: Table) -> None:
    header, *rows = list(csv.reader(io.StringIO(csv_text(table))))
    assert header == ["entry", "js", "js_sd", "bc", "interval_low", "interval_high"]
    assert rows[0] == ["one", "0.1931234567890123", "0.001", "0.8", "-0.01", "0.002"]
    assert rows[1] == [NASTY, "0.216", "0.0", "", "0.5", "1.0"]


def test_the_best_is_the_lowest_divergence_and_ties_by_eye_are_shared() -> None:
    import pandas as pd

    frame = pd.DataFrame({"entry": ["a", "b", "c"], "js": [0.1931, 0.1929, 0.2], "accuracy": [0.5, 0.6, 0.4]})
    columns = [Column("entry", "system"), Column("js", "JS", "score"), Column("accuracy", "ACC", "score")]
    marked = Table("t", "", columns, frame)
    assert [[cell.best for cell in row[1:]] for row in marked.rows] == [[True, False], [True, True], [False, False]]
    for unmarked in (Table("t", "", columns, frame, bold=False), Table("t", "", columns, frame[:1])):
        assert not any(cell.best for row in unmarked.rows for cell in row)


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


def test_every_kind_of_number_is_read_in_its_own_way_and_none_is_a_dash() -> None:
    import pandas as pd

    values = {"change": -0.0105, "p": 0.0004, "share": 2 / 3, "words": 2.0, "interval_low": -1.0, "interval_high": 0.5}
    columns = [Column(kind, kind, kind) for kind in ("change", "p", "share", "words", "interval")]
    first, last = Table("t", "", columns, pd.DataFrame([values, dict.fromkeys(values)])).rows
    assert [cell.text for cell in first] == ["−0.0105", "< 0.001", "67%", "2.0", "[−1.0000, +0.5000]"]
    assert [cell.values for cell in first] == [(-0.0105,), (0.0004,), (2 / 3,), (), (-1.0, 0.5)]
    assert [cell.texts for cell in last] == [("–",)] * 5
    assert p_text(0.0131) == "0.013"
    assert number_text(float("nan")) == "–"
