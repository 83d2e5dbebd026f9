"""From JSON lines, one object a line, to a table of text cells, as if it had been a CSV file.

A number is its shortest text, null and absent keys are empty cells, true and false are words. An object under `votes`
or `distribution` becomes columns `votes.<emotion>`, `distribution.<emotion>`; a list stays JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amber2_core.errors import CorpusError, parse_problem

from .lines import text_lines
from .rows import MAX_COLUMNS, Row, Table

NESTED = ("votes", "distribution")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # in HDF5


def read_json_lines(path: Path) -> Table:
    """The rows of a file of JSON lines; its header is every key that any line has, in order of appearance.

    Raises:
        CorpusError: no such file, a line is no object of text, numbers and lists, or there are too many keys.
    """
    header: dict[str, None] = {}
    for line, cells in _records(path):
        header.update(dict.fromkeys(cells))
        if len(header) > MAX_COLUMNS:
            raise CorpusError(parse_problem(path, line, f"more than the {MAX_COLUMNS:,} different keys allowed"))
    names = tuple(header)
    return Table(path, names, _rows(path, names))


def _rows(path: Path, header: tuple[str, ...]) -> Iterator[Row]:
    for line, cells in _records(path):
        yield Row(line, {name: cells.get(name, "") for name in header})


def _records(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_unique, parse_constant=_refuse)
            if not isinstance(record, dict):
                raise ValueError(f"a line is one object, not {type(record).__name__}")
            cells = dict(flat_cells(record))
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise CorpusError(parse_problem(path, number, f"not a JSON line: {what[:200]}")) from None
        yield number, cells


def flat_cells(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(column, cell) of a record of JSON values; a ValueError says what no table can hold."""
    for key, value in record.items():
        name = key.strip()
        if isinstance(value, dict):
            if name.lower() not in NESTED:
                raise ValueError(f"{name!r} holds an object, which only {' and '.join(NESTED)} may")
            yield from ((_storable(f"{name}.{inner}"), _cell(name, share)) for inner, share in value.items())
        else:
            yield _storable(name), _cell(name, value)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, dict):
        raise ValueError(f"{name!r} holds an object in an object")
    return _storable(json.dumps(value))


def _storable(text: str) -> str:
    if UNSTORABLE.search(text):
        raise ValueError(f"a NUL or half a surrogate pair in {text[:40]!r}")
    return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return record


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
