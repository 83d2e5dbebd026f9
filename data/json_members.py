"""From a JSON file that holds one large object to its members, one at a time, each with the line it begins on."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amber2_core.errors import CorpusError, parse_problem

CHUNK = 1 << 20  # bytes
MAX_MEMBER = 64 << 20  # characters: a larger one is a damaged file, or an attack
BLANK = re.compile(r"[ \t\r\n]*")


def json_members(path: Path) -> Iterator[tuple[int, str, Any]]:
    """(line, key, value) of every member of the object in a file; memory holds one member at a time.

    Raises:
        CorpusError: no such file; while the members are read: not UTF-8, not JSON, no object, NaN or infinity, a key
            that stands twice in an object inside of a member.
    """
    try:
        with path.open("rb") as file:
            yield from _Members(path, file).read()
    except FileNotFoundError:
        raise CorpusError(f"No file {path}") from None
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror}") from error


class _Members:
    """What has been read of the file but not yet given on."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_unique)
        self._text, self._at, self._line, self._ended = "", 0, 1, False

    def read(self) -> Iterator[tuple[int, str, Any]]:
        """Every member, up to the end of the file."""
        if self._next() != "{":
            raise self._error("not a JSON object")
        self._at += 1
        ended = self._next() == "}"
        while not ended:
            self._next()
            line = self._line
            key, value = self._member()
            yield line, key, value
            separator = self._next()
            if separator not in (",", "}"):
                raise self._error("expected , or } after a member of the object")
            ended = separator == "}"
            self._at += not ended
        self._at += 1
        if self._next():
            raise self._error("something stands after the object")

    def _member(self) -> tuple[str, Any]:
        """The member that begins here; more of the file is read until it is complete."""
        while True:
            try:
                if self._text[self._at : self._at + 1] != '"':
                    raise self._error("expected a key in double quotes")
                key, end = self._json.raw_decode(self._text, self._at)
                colon = _blank(self._text, end)
                if self._text[colon : colon + 1] != ":":
                    raise json.JSONDecodeError("expected a colon", self._text, colon)
                value, end = self._json.raw_decode(self._text, _blank(self._text, colon + 1))
            except json.JSONDecodeError as error:
                if self._ended or len(self._text) - self._at > MAX_MEMBER:
                    self._advance(error.pos)
                    raise self._error(f"not JSON: {error.msg}") from None
                self._more()
            except (ValueError, RecursionError) as error:
                raise self._error(f"not read: {str(error)[:100]}") from None
            else:
                if end < len(self._text) or self._ended:  # a number may go on in the next chunk
                    self._advance(end)
                    return key, value
                self._more()

    def _next(self) -> str:
        """The next character that is not blank, empty text at the end."""
        while True:
            self._advance(_blank(self._text, self._at))
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def _advance(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> None:
        raw = self._file.read(CHUNK)
        self._ended = not raw
        try:
            more = self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError:
            raise CorpusError(f"{self._path}, after line {self._line}: not UTF-8: save it so") from None
        self._text, self._at = self._text[self._at :] + more, 0

    def _error(self, what: str) -> CorpusError:
        return CorpusError(parse_problem(self._path, self._line, what))


def _blank(text: str, at: int) -> int:
    match = BLANK.match(text, at)
    return match.end() if match else at


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return record
