"""From a text file to its lines with their numbers, as a stream; what cannot be a text of a release is refused.

UTF-8 with or without byte order mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from amber2_core.errors import CorpusError, parse_problem

# beyond this a line is none: a lost quote or line ending, or an attack
MAX_LINE_BYTES = 4 << 20


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a file, numbers from 1, each line without its ending.

    Raises:
        CorpusError: no such file, or it cannot be read; while the lines are read: not UTF-8, a NUL byte, too long.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(decoded(path, file), start=1):
                yield number, line.rstrip("\r\n")
    except FileNotFoundError:
        raise CorpusError(f"No file {path}") from None
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror}") from error


def decoded(path: Path, file: BinaryIO) -> Iterator[str]:
    """The lines of an open file, with their endings.

    Raises:
        CorpusError: as `text_lines`.
    """
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise CorpusError(parse_problem(path, number, f"longer than {MAX_LINE_BYTES:,} bytes"))
        if b"\0" in raw:
            raise CorpusError(parse_problem(path, number, "a NUL byte: not a text file"))
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(parse_problem(path, number, f"byte {error.start + 1} is not UTF-8: save it so")) from None
