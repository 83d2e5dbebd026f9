"""The tables of a run folder: rows of named values ↔ a CSV file, every number the same; and rows → columns."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import RunFolderError, parse_problem

Row = Mapping[str, Any]  # one row of a table
Columns = dict[str, npt.NDArray[Any]]  # a tidy table: name → (rows,); `pandas.DataFrame(columns)` takes it as it is


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write at least one row, all with the names of the first; None is an empty cell, numbers stand in full."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a file: whole numbers as int, other numbers as float, "" as None, the rest as text.

    Raises:
        RunFolderError: one of `columns` is not there, or the file is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as problem:
        raise RunFolderError(f"{path} is damaged ({problem}): train again") from None
    missing = [name for name in columns if name not in header]
    if missing:
        raise RunFolderError(f"{path} has no column {missing[0]!r}: it was not written by train-heads")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            cut_off = parse_problem(path, line, f"expected {len(header)} columns, got {len(row)}")
            raise RunFolderError(f"{cut_off}: train again")
    return [{name: _value(text) for name, text in zip(header, row, strict=True)} for row in rows]


def columns_of(rows: Sequence[Row]) -> Columns:
    """Rows as columns: numbers where all that is there is numbers, else words."""
    table: Columns = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        if all(isinstance(value, int) for value in values):
            table[name] = np.array(values, dtype=np.int64)
        elif all(isinstance(value, int | float | None) for value in values):
            table[name] = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        else:
            table[name] = np.array(["" if value is None else str(value) for value in values], dtype=object)
    return table


def _value(text: str | None) -> Any:
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
