"""The table of docs/encoders.md names every architecture of the tests, and no batch of any changes a row unsaid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from encoder_table import BLOCK, HEADER, PAGE, architectures, table
from extraction import work_here


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert tuple(header) == HEADER
    return rows


def _on_the_page() -> list[list[str]]:
    found = BLOCK.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return _rows(found[0])


def test_every_architecture_is_on_the_page_exact_or_one_at_a_time() -> None:
    rows = _on_the_page()
    assert {row[0] for row in rows} == set(architectures())
    assert len({row[1] for row in rows}) >= 20
    for _, _, _, differences, encoded in rows:
        found = [float(one) for one in re.findall(r"\d+e[+-]\d+", differences)]
        is_exact = "takes none" not in differences and max(found) <= 1e-5
        assert encoded == ("in batches" if is_exact else "**one at a time**")


@pytest.mark.thorough
def test_the_page_tells_what_check_encoder_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)
    plain = [[re.sub(r"\d+e[+-]\d+", "", cell) for cell in row] for row in _rows(table())]
    assert plain == [[re.sub(r"\d+e[+-]\d+", "", cell) for cell in row] for row in _on_the_page()]
