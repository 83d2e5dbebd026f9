"""The text files of a release: lines, delimited tables, JSON lines and large JSON objects, and what is wrong with them.

All are UTF-8 with or without byte order mark, or UTF-16 with one, and read as streams. What cannot be such a file is
refused with its name and line.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from amber2_core.errors import CorpusError, parse_problem
from amber2_core.utterance import Problem

# beyond this a line is none: a lost quote or line ending, or an attack
MAX_LINE_BYTES = 4 << 20
# beyond this a file is no table of utterances
MAX_COLUMNS = 4096
DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}
NESTED = ("votes", "distribution")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # in HDF5
CHUNK = 1 << 20  # bytes
MAX_MEMBER = 64 << 20  # characters: a larger one is a damaged file, or an attack
BLANK = re.compile(r"[ \t\r\n]*")


def first_of(problems: Sequence[Problem]) -> str:
    """`` (votes.csv, line 3: …, and 5 more)``, empty text where there is none; those of a line go before."""
    if not problems:
        return ""
    first = next((problem for problem in problems if problem.line is not None), problems[0])
    place = first.file if first.line is None else f"{first.file}, line {first.line}"
    more = f", and {len(problems) - 1:,} more" if len(problems) > 1 else ""
    return f" ({place}: {first.what}{more})"


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a file, numbers from 1, each line without its ending.

    Raises:
        CorpusError: no such file, or it cannot be read; while the lines are read: not UTF-8, a NUL byte, too long.
    """
    with _opened(path) as file:
        for number, line in enumerate(_decoded(path, file), start=1):
            yield number, line.rstrip("\r\n")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise CorpusError(f"No file {path}") from None
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror}") from error


def _decoded(path: Path, file: BinaryIO) -> Iterator[str]:
    """The lines of an open file, with their endings."""
    if _codec(file) == "utf-16":
        yield from _decoded_wide(path, file)
        return
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise CorpusError(parse_problem(path, number, f"longer than {MAX_LINE_BYTES:,} bytes"))
        if b"\0" in raw:
            raise CorpusError(parse_problem(path, number, "a NUL byte: not a text file, or UTF-16 without its mark"))
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(parse_problem(path, number, f"byte {error.start + 1} is not UTF-8: save it so")) from None


def _codec(file: BinaryIO) -> str:
    """How an open file is encoded, by its first bytes: spreadsheets save "Unicode text" as UTF-16."""
    mark = file.read(2)
    file.seek(0)
    return "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _decoded_wide(path: Path, file: BinaryIO) -> Iterator[str]:
    number = 1
    lines = io.TextIOWrapper(file, encoding="utf-16", newline="\n")
    try:
        while line := lines.readline(MAX_LINE_BYTES // 2 + 1):
            if len(line) > MAX_LINE_BYTES // 2:
                raise CorpusError(parse_problem(path, number, f"longer than {MAX_LINE_BYTES:,} bytes"))
            if "\0" in line:
                raise CorpusError(parse_problem(path, number, "a NUL byte: not a text file"))
            yield line
            number += 1
    except UnicodeError as error:
        reason = getattr(error, "reason", None) or str(error)
        raise CorpusError(parse_problem(path, number, f"not UTF-16, as it begins: {reason}")) from None
    finally:
        lines.detach()


# --- delimited tables, quoted as in RFC 4180, a header first ---


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
    with _opened(path) as file:
        lines = _decoded(path, file)
        first = next(lines, "")
        reader = csv.reader(chain([first], lines), delimiter=_delimiter(path, first, delimiters), strict=True)
        begin = 1
        try:
            for cells in reader:
                if cells:
                    yield begin, cells
                begin = reader.line_num + 1
        except csv.Error as error:
            raise CorpusError(parse_problem(path, begin, f"not a row of a table: {error}")) from error


def _delimiter(path: Path, header: str, delimiters: str) -> str:
    """The delimiter of a file: the only one of the candidates that its header holds."""
    held = [delimiter for delimiter in delimiters if delimiter in header] or [delimiters[0]]
    if len(held) > 1:
        names = " and ".join(DELIMITER_NAMES[delimiter] for delimiter in held)
        raise CorpusError(parse_problem(path, 1, f"the header holds {names}: separate columns with one of them"))
    return held[0]


# --- JSON lines, as if they had been a delimited table ---


def read_json_lines(path: Path) -> Table:
    """The rows of a file of JSON lines, one object a line; its header is every key of any line, in order of appearance.

    A number is its shortest text, null and absent keys are empty cells, true and false are words. An object under
    `votes` or `distribution` becomes columns `votes.<emotion>`, `distribution.<emotion>`; a list stays JSON.

    Raises:
        CorpusError: no such file, a line is no object of text, numbers and lists, or there are too many keys.
    """
    header: dict[str, None] = {}
    for line, cells in _json_records(path):
        header.update(dict.fromkeys(cells))
        if len(header) > MAX_COLUMNS:
            raise CorpusError(parse_problem(path, line, f"more than the {MAX_COLUMNS:,} different keys allowed"))
    rows = (Row(line, {name: cells.get(name, "") for name in header}) for line, cells in _json_records(path))
    return Table(path, tuple(header), rows)


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
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
    if isinstance(value, dict):
        raise ValueError(f"{name!r} holds an object in an object")
    return _storable(value if isinstance(value, str) else json.dumps(value))


def _storable(text: str) -> str:
    if UNSTORABLE.search(text):
        raise ValueError(f"a NUL or half a surrogate pair in {text[:40]!r}")
    return text


# --- one large JSON object ---


def json_members(path: Path) -> Iterator[tuple[int, str, Any]]:
    """(line it begins on, key, value) of every member of the object in a file; memory holds one member at a time.

    Raises:
        CorpusError: no such file; while the members are read: not UTF-8, not JSON, no object, NaN or infinity, a key
            that stands twice in an object inside of a member.
    """
    with _opened(path) as file:
        yield from _members(path, file)


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[int, str, Any]]:
    scan = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=refuse_constant).raw_decode
    utf8 = codecs.getincrementaldecoder(_codec(file))()
    text, at, line, mark, ended = "", 0, 1, "", False  # what is not given on begins at `at`, after that mark
    while mark != "}":
        try:
            begin = _blank(text, at) if mark else _after(text, at, "{")[1]
            member, (after, end) = [], _after(text, begin, '"' if mark else '"}')
            if after == '"':
                key, end = scan(text, begin)
                value, end = scan(text, _after(text, end, ":")[1])
                after, end = _after(text, end, ",}")  # only then a number does not go on in the next chunk
                member = [(line + text.count("\n", at, begin), key, value)]
        except json.JSONDecodeError as error:
            if ended or len(text) - at > MAX_MEMBER:
                is_object = mark or text[_blank(text, at) :][:1] == "{"
                what = f"not JSON: {error.msg}" if is_object else "not a JSON object"
                raise CorpusError(parse_problem(path, line + text.count("\n", at, error.pos), what)) from None
            more, ended = _chunk(path, line, file, utf8, max(CHUNK, len(text) - at))
            text, at = text[at:] + more, 0
        except (ValueError, RecursionError) as error:
            place = line + text.count("\n", at, begin)
            raise CorpusError(parse_problem(path, place, f"not read: {str(error)[:100]}")) from None
        else:
            yield from member
            line, at, mark = line + text.count("\n", at, end), end, after
    while not ended and _blank(text, at) == len(text):
        line += text.count("\n", at)
        (text, ended), at = _chunk(path, line, file, utf8, CHUNK), 0
    if _blank(text, at) < len(text):
        place = line + text.count("\n", at, _blank(text, at))
        raise CorpusError(parse_problem(path, place, "something stands after the object"))


def _chunk(path: Path, line: int, file: BinaryIO, utf8: codecs.IncrementalDecoder, size: int) -> tuple[str, bool]:
    """The next characters of a file, and whether it ended."""
    raw = file.read(size)
    try:
        return utf8.decode(raw, final=not raw), not raw
    except UnicodeDecodeError:
        raise CorpusError(f"{path}, after line {line}: not UTF-8: save it so") from None


def _blank(text: str, at: int) -> int:
    """The place of the next character that is not blank."""
    match = BLANK.match(text, at)
    return match.end() if match else at


def _after(text: str, at: int, marks: str) -> tuple[str, int]:
    """The next character that is not blank, which must be one of some marks, and the place of the one after it."""
    at = _blank(text, at)
    if at == len(text) or text[at] not in marks:
        raise json.JSONDecodeError(f"expected {' or '.join(marks)}", text, at)
    return text[at], _blank(text, at + 1)


def refuse_constant(constant: str) -> None:
    """What to make of NaN and Infinity where JSON is read: a ValueError."""
    raise ValueError(f"{constant} is no number of JSON")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a ValueError where a key stands in it twice."""
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return record
