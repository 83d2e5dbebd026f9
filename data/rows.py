"""From a delimited file to its rows, each with the line it begins on.

UTF-8 with or without byte order mark, RFC 4180 quoting, a header first. What cannot be a table is refused with its file
and line; the file is read as a stream.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from amber2_core.errors import CorpusError, parse_problem

from .lines import decoded

# beyond this a file is no table of utterances
MAX_COLUMNS = 4096
DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a table."""

    line: int  # 1-based, where the record begins
    cells: dict[str, str]  # column → text, as it stands


@dataclass(frozen=True, slots=True)
class Table:
    """A header, and the rows below it as they are read."""

    path: Path
    header: tuple[str, ...]
    rows: Iterator[Row]


def read_table(path: Path, *, required: Collection[str] = (), delimiters: str = ",") -> Table:
    """The table in a file whose header holds one of the delimiters; blanks around the names of columns do not count.

    Raises:
        CorpusError: no such file; a column is missing, twice there, or one of more than `MAX_COLUMNS`. While the rows
            are read: not UTF-8, a NUL byte, a quote that never ends, more or fewer cells than columns.
    """
    records = _records(path, delimiters)
    line, cells = next(records, (1, []))
    header = [cell.strip() for cell in cells]
    if len(header) > MAX_COLUMNS:
        raise CorpusError(parse_problem(path, line, f"{len(header):,} columns, more than the {MAX_COLUMNS:,} allowed"))
    missing = [name for name in required if name not in header]
    if missing:
        raise CorpusError(parse_problem(path, line, f"no column {missing[0]!r}; the header must name {list(required)}"))
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise CorpusError(parse_problem(path, line, f"two columns are called {twice[0]!r}"))
    return Table(path, tuple(header), _rows(path, header, records))


def _rows(path: Path, header: list[str], records: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    for line, cells in records:
        if len(cells) != len(header):
            raise CorpusError(parse_problem(path, line, f"expected {len(header)} cells, got {len(cells)}"))
        yield Row(line, dict(zip(header, cells, strict=True)))


def _records(path: Path, delimiters: str) -> Iterator[tuple[int, list[str]]]:
    """All records that are not blank, with the line that each begins on."""
    try:
        with path.open("rb") as file:
            lines = decoded(path, file)
            first = next(lines, "")
            reader = csv.reader(_again(first, lines), delimiter=_delimiter(path, first, delimiters), strict=True)
            begin = 1
            try:
                for cells in reader:
                    if cells:
                        yield begin, cells
                    begin = reader.line_num + 1
            except csv.Error as error:
                raise CorpusError(parse_problem(path, begin, f"not a row of a table: {error}")) from error
    except FileNotFoundError:
        raise CorpusError(f"No file {path}") from None
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror}") from error


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(path: Path, header: str, delimiters: str) -> str:
    """The delimiter of a file: the only one of the candidates that its header holds."""
    held = [delimiter for delimiter in delimiters if delimiter in header] or [delimiters[0]]
    if len(held) > 1:
        names = " and ".join(DELIMITER_NAMES[delimiter] for delimiter in held)
        raise CorpusError(parse_problem(path, 1, f"the header holds {names}: separate columns with one of them"))
    return held[0]
