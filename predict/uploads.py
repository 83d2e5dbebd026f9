"""What is sent to the server: words and a name in the query, a recording as the body, which is kept nowhere."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl

from amber2_core.errors import AudioError
from amber2_data.sound import Excerpt, seconds_of, unpacked
from amber2_data.transcripts import trimmed

from .units import Unit, Windows, cut

# A body that pauses for so long, or takes so long over all, is waited for no more, in seconds.
IDLE_SECONDS, BODY_SECONDS = 15.0, 600.0
# A recording is heard as a whole together with its words up to here; in windows, words would belong to none.
WHOLE_SECONDS = 30.0
MOST_CHARACTERS = 5_000
_NAME = "recording"
_LONGEST_NAME = 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# where the system shows the files that a process has open, each of which can be opened again
_OPEN_FILES = Path("/proc/self/fd")


class RefusedError(Exception):
    """A request that is not answered as it wishes: the status, and one line that says why."""

    def __init__(self, status: int, line: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(line)
        self.status, self.headers = status, dict(headers or {})


@dataclass(frozen=True)
class Limits:
    """What the server takes."""

    # of a body
    megabytes: int = 200
    # of a recording
    seconds: float = 7_200.0
    # requests that are read, wait or are computed
    at_once: int = 16

    @property
    def bytes(self) -> int:
        """Of a body."""
        return self.megabytes * 1_000_000


@dataclass(frozen=True)
class Query:
    """What stands in the query of a request."""

    # None where there are none
    words: str | None = None
    # of the file, for messages
    name: str = _NAME


@dataclass(frozen=True)
class Upload:
    """What is to be predicted of one request."""

    units: tuple[Unit, ...]
    # what the user should know of it
    note: str | None = None


def asked_of(query: bytes) -> Query:
    """The words and the name in a query.

    Raises:
        RefusedError: 400, it cannot be read, names something else, or the words are too many.
    """
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=8)
    except ValueError:
        raise RefusedError(400, "The query cannot be read: percent-encoded UTF-8 is expected") from None
    found = dict(pairs)
    strange = [_shown(name) for name in found if name not in ("text", "name")]
    if strange or len(found) < len(pairs):
        raise RefusedError(400, f"Bad query{f' {strange[0]!r}' if strange else ''}: expected text and name, each once")
    words = trimmed(" ".join(found.get("text", "").split()))
    if len(words) > MOST_CHARACTERS:
        raise RefusedError(400, f"The text has {len(words):,} characters, more than {MOST_CHARACTERS:,}")
    return Query(words or None, _shown(found.get("name", "")) or _NAME)


def check_head(headers: Mapping[str, str], limits: Limits) -> None:
    """Refuse a body before it comes. RefusedError: 413, it is too large; 415, it is a form or JSON."""
    size = int(headers.get("content-length", 0))
    if size > limits.bytes:
        raise RefusedError(413, f"The recording has {size / 1e6:,.0f} MB, more than {limits.megabytes:,}")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/json"):
        line = f"The body is {kind}: send the recording as it is (curl --data-binary @FILE), and words as ?text="
        raise RefusedError(415, line)


@contextmanager
def unnamed_file() -> Iterator[tuple[BinaryIO, Path]]:
    """A file that is gone whatever happens, and where it can be opened again.

    Where the system lets open files be opened again it has no name in any folder, so that nothing is left of it even
    where the process is killed; elsewhere it lies in a folder that nobody else can read.
    """
    if _OPEN_FILES.is_dir():
        with tempfile.TemporaryFile() as file:
            yield file, _OPEN_FILES / str(file.fileno())
    else:
        with tempfile.TemporaryDirectory(prefix="amber2-") as folder:
            path = Path(folder) / _NAME
            with path.open("wb") as file:
                yield file, path


async def received(chunks: AsyncIterator[bytes], file: BinaryIO, limits: Limits) -> int:
    """Write a body into a file as it comes; returns its size in bytes.

    Raises:
        RefusedError: 413, it is larger than it may be; 408, it has stopped arriving, or takes too long over all.
    """
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    file.flush()
                    return size
                size += len(chunk)
                if size > limits.bytes:
                    raise RefusedError(413, f"The recording has more than {limits.megabytes:,} MB")
                file.write(chunk)
    except TimeoutError:
        raise RefusedError(408, "The recording has stopped arriving", {"Connection": "close"}) from None


def upload_of(
    asked: Query,
    recording: Path | None,
    room: tuple[BinaryIO, Path],
    *,
    listens: bool,
    transcribes: bool,
    windows: Windows,
    limits: Limits,
) -> Upload:
    """The units of a request: words alone, a recording as a whole, or its windows.

    Args:
        asked: its query.
        recording: where its body lies; None: there is none.
        room: a file for the samples of what would be decoded from the beginning for each window, and where it lies.
        listens: whether recordings are of any use to the heads; if not, words are all there is.
        transcribes: whether a recogniser hears what has no words.
        windows: how long recordings are cut.
        limits: of their length.

    Raises:
        RefusedError: 400, there is neither a recording nor a word; 413, it is too long; 422, it is no recording.
    """
    if recording is None and asked.words is None:
        raise RefusedError(400, "Nothing to predict: send a recording as the body, or words as ?text=")
    said = "" if asked.words is None else "text"
    unit = Unit(asked.name if recording else "", recording, transcript=asked.words, transcript_from=said)
    if recording is None or not listens:
        return Upload((unit,))
    try:
        seconds = seconds_of(Excerpt(recording))
        if seconds > limits.seconds:
            raise RefusedError(413, f"{asked.name}: is {seconds:,.0f} s long, more than {limits.seconds:,.0f} s")
        if seconds <= max(windows.seconds, 0.0 if asked.words is None else WHOLE_SECONDS):
            return Upload((unit,))
        units = list(cut(unit, windows))
        if unpacked(recording, room[0]):
            room[0].flush()
            units = [replace(one, recording=room[1]) for one in units]
    except AudioError as problem:
        raise RefusedError(422, named(str(problem), recording, asked.name)) from None
    heard = "what a recogniser hears in each is read instead" if transcribes else "voice alone is judged"
    note = f"The words belong to no window of {windows.seconds:g} s: {heard}." if asked.words is not None else None
    return Upload(tuple(units), note)


def named(problem: str, recording: Path | None, name: str) -> str:
    """A line that begins with the name of a file of ours, with the user's name instead."""
    before = "" if recording is None else f"{recording.name}: "
    return f"{name}: {problem.removeprefix(before)}" if before and problem.startswith(before) else problem


def _shown(name: str) -> str:
    return _CONTROL.sub("", name)[:_LONGEST_NAME].strip()
