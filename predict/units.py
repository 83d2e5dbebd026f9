"""What is to be predicted, one unit a row: recordings, folders and tables of them, whole, in segments or in windows."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amber2_core.errors import AudioError, CorpusError, SettingError, parse_problem
from amber2_data.label_forms import finite_number
from amber2_data.manifest_columns import NAMES
from amber2_data.release import Row, Table, read_json_lines, read_table
from amber2_data.sound import ENCODER_RATE, LEAST_SAMPLES, LONGEST_SECONDS, Excerpt, seconds_of
from amber2_data.table_recordings import Recordings
from amber2_data.transcripts import trimmed

Key = tuple[str, float | None, float | None, str]
TABLES, JSON_LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")
WORDS = ".txt"
# what a folder is searched for
SOUNDS = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".au", ".snd", ".w64", ".rf64", ".caf"),
    *(".sph", ".m4a", ".mp4", ".webm", ".mkv", ".mov", ".avi", ".wma", ".aac"),
)
# a rest that is shorter makes no frame, and so no window of its own
_LEAST_SECONDS = LEAST_SAMPLES / ENCODER_RATE
# of recordings that are in memory together: as files, or, of a stretch, at 48 kHz
_MOST_BYTES, _BYTES_A_SECOND = 1 << 25, 4 * 48_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of a recording with what is said in it; or words alone."""

    # as the user named it; what rows are indexed by
    file: str
    # None: words alone
    recording: Path | None
    # seconds; None: from the beginning, to the end
    start: float | None = None
    end: float | None = None
    # None where it is not known
    transcript: str | None = None
    # text, sidecar or table
    transcript_from: str = ""
    # a last window that is shorter than the others
    is_short: bool = False
    # why there is nothing to predict
    problem: str = ""

    @property
    def key(self) -> Key:
        """What tells it from all others of one call."""
        return self.file, self.start, self.end, self.problem

    @property
    def excerpt(self) -> Excerpt:
        """What is to be decoded of its recording."""
        assert self.recording is not None
        duration = None if self.end is None else self.end - (self.start or 0.0)
        return Excerpt(self.recording, self.start, duration)


@dataclass(frozen=True)
class Windows:
    """How long recordings are cut: windows of some seconds, begun every so many; the last may be shorter."""

    seconds: float
    hop: float

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= LONGEST_SECONDS:
            raise SettingError(f"Bad window {self.seconds:g}, expected more than 0 and at most {LONGEST_SECONDS:g} s")
        if not 0 < self.hop <= self.seconds:
            raise SettingError(f"Bad hop {self.hop:g}, expected more than 0 and at most the window, {self.seconds:g} s")

    def of(self, seconds: float) -> Iterator[tuple[float, float]]:
        """Start and end of every window of a recording; the first that reaches its end is the last.

        A rest of less than 25 ms, of which encoders make no frame, is left out.

        >>> list(Windows(10.0, 5.0).of(17.0))
        [(0.0, 10.0), (5.0, 15.0), (10.0, 17.0)]
        """
        number = 0
        while True:
            start = number * self.hop
            yield start, min(start + self.seconds, seconds)
            number += 1
            if start + self.seconds > seconds - _LEAST_SECONDS:
                return


def units_of(
    inputs: Sequence[str],
    *,
    text: str | None = None,
    windows: Windows | None = None,
    audio_root: Path | None = None,
    columns: dict[str, str] | None = None,
) -> Iterator[Unit]:
    """What files, folders and tables hold, in their order, as it is read; nothing stands twice.

    Args:
        inputs: recordings, ``.txt`` files of words alone, folders that are searched for recordings, and tables
            (.csv, .tsv, .jsonl) with the columns of a manifest, of which `audio` or `text` is enough.
        text: what is said in the only recording, or, without one, all there is; blanks are no words.
        windows: how recordings are cut, those that a table has segments of excepted.
        audio_root: where the recordings of tables lie.
        columns: role → column of tables, as `amber2_data.manifest_columns.named_columns` gives it.

    Raises:
        SettingError: `text` for several recordings, or nothing at all is asked for.
        CorpusError: a folder holds no recording, or a table cannot be read.
    """
    text = trimmed(text or "") or None
    if text is not None and len(inputs) > 1:
        raise SettingError(
            "--text is what is said in one recording: give tables a column, and files a .txt beside them"
        )
    if not inputs:
        if text is None:
            raise SettingError("Nothing to predict: name recordings, folders or tables, or give words with --text")
        return iter([Unit("", None, transcript=text, transcript_from="text")])
    if text is not None and (_is_table(inputs[0]) or os.path.isdir(inputs[0])):
        raise SettingError("--text is what is said in one recording, and this is a folder or a table")
    for one in inputs:
        if _is_table(one) and not os.path.isfile(one):
            raise CorpusError(f"No table {one}: name another")
    return _units(inputs, text, windows, audio_root, columns or {})


def _units(
    inputs: Sequence[str], text: str | None, windows: Windows | None, audio_root: Path | None, columns: dict[str, str]
) -> Iterator[Unit]:
    seen: set[Key] = set()
    is_told = False
    for one in inputs:
        if _is_table(one):
            found: Iterable[Unit] = _of_table(Path(one), audio_root, columns)
        elif os.path.isdir(one):
            found = map(_of_file, _recordings_in(Path(one)))
        else:
            unit = _of_file(one)
            found = [unit if text is None else replace(unit, transcript=text, transcript_from="text")]
        for unit in found:
            parts = list(cut(unit, windows))
            if len(parts) > 1 and unit.transcript is not None and not is_told:
                _log.warning(
                    "%s: the words of a whole recording belong to no window of it; --transcribe hears each", one
                )
                is_told = True
            for part in parts:
                if part.key not in seen:
                    seen.add(part.key)
                    yield part


def batched(units: Iterable[Unit], count: int) -> Iterator[Sequence[Unit]]:
    """Units in their order, so many together, and fewer where their recordings are large."""
    some: list[Unit] = []
    held = 0
    for unit in units:
        size = _bytes(unit)
        if some and (len(some) == count or held + size > _MOST_BYTES):
            yield some
            some, held = [], 0
        some.append(unit)
        held += size
    if some:
        yield some


def _bytes(unit: Unit) -> int:
    """About how large a unit's recording is; 0 where that cannot be told."""
    if unit.recording is None or unit.problem:
        return 0
    if unit.end is not None:
        return round(_BYTES_A_SECOND * (unit.end - (unit.start or 0.0)))
    try:
        return unit.recording.stat().st_size
    except OSError:
        return 0


def _is_table(name: str) -> bool:
    return Path(name).suffix.lower() in (*TABLES, *JSON_LINES)


def _recordings_in(folder: Path) -> Iterator[str]:
    """All recordings below a folder, in order, hidden files excepted. CorpusError: there are none."""
    count = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SOUNDS:
                count += 1
                yield os.path.join(place, name)
    if not count:
        raise CorpusError(f"{folder} holds no recording ({', '.join(SOUNDS[:4])}, …): name another folder")


def _of_file(name: str) -> Unit:
    """A recording with the words of the .txt file beside it; or such a file's words alone."""
    path = Path(name)
    if path.suffix.lower() == WORDS:
        try:
            return Unit(name, None, transcript=_words(path), transcript_from="text")
        except AudioError as problem:
            return Unit(name, None, problem=str(problem))
    beside = path.with_suffix(WORDS)
    if not beside.is_file():
        return Unit(name, path)
    try:
        return Unit(name, path, transcript=_words(beside), transcript_from="sidecar")
    except AudioError as problem:
        return Unit(name, path, problem=str(problem))


def _words(path: Path) -> str:
    """The text of a file, its lines joined by blanks. AudioError: it cannot be read, or is no text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as problem:
        raise AudioError(f"{path.name}: {problem.strerror or problem}") from None
    except UnicodeDecodeError:
        raise AudioError(f"{path.name}: is not text in UTF-8") from None
    return trimmed(" ".join(text.split()))


def _of_table(path: Path, audio_root: Path | None, named: dict[str, str]) -> Iterator[Unit]:
    """The rows of a table; an empty cell of text is no transcript."""
    table: Table = read_json_lines(path) if path.suffix.lower() in JSON_LINES else read_table(path, delimiters=",;\t")
    role = _roles(path, table.header, named)
    place = Recordings(audio_root or path.parent, is_given=audio_root is not None)
    for row in table.rows:
        yield _of_row(path, row, role, place)


def _roles(path: Path, header: Sequence[str], named: dict[str, str]) -> dict[str, str]:
    """Role → column, of the four that matter. CorpusError: neither recordings nor texts, or a column is not there."""
    of_name = {column.lower(): column for column in reversed(header)}
    role: dict[str, str] = {}
    for name in ("audio", "text", "start", "end"):
        if name in named:
            if named[name] not in header:
                raise CorpusError(parse_problem(path, 1, f"no column {named[name]!r}, which --column says is {name}"))
            role[name] = named[name]
        elif found := [of_name[spelling] for spelling in NAMES[name] if spelling in of_name]:
            role[name] = found[0]
    if "audio" not in role and "text" not in role:
        raise CorpusError(
            parse_problem(path, 1, "no column 'audio' and no column 'text': say which by --column audio=…")
        )
    return role


def _of_row(path: Path, row: Row, role: dict[str, str], place: Recordings) -> Unit:
    cells = {name: row.cells[column].strip() for name, column in role.items()}
    words = trimmed(row.cells[role["text"]]) if "text" in role else ""
    file = cells.get("audio", "")
    unit = Unit(file or f"{path}:{row.line}", None, transcript=words or None, transcript_from="table" if words else "")
    if not file:
        return unit if words else replace(unit, problem="neither a recording nor words")
    try:
        start, end = (_seconds(name, cells.get(name, "")) for name in ("start", "end"))
        if end is not None and end <= (start or 0.0):
            raise ValueError(f"end {end:g} s is not after start {start or 0:g} s")
        return replace(unit, recording=place.folder / str(place.find(file)), start=start, end=end)
    except ValueError as problem:
        return replace(unit, problem=parse_problem(path, row.line, str(problem)))


def _seconds(name: str, cell: str) -> float | None:
    """A ValueError says what it is instead of a number of seconds."""
    number = finite_number(cell) if cell else None
    if cell and (number is None or number < 0):
        raise ValueError(f"{name} {cell!r} is no number of seconds")
    return number


def cut(unit: Unit, windows: Windows | None) -> Iterator[Unit]:
    """A unit in windows, where it is a whole recording and longer than one; a problem where its length is not known.

    The words of a whole recording belong to no window of it: windows have none, unless there is but one.
    """
    if windows is None or unit.recording is None or unit.problem or not (unit.start is unit.end is None):
        yield unit
        return
    try:
        seconds = seconds_of(Excerpt(unit.recording))
    except AudioError as problem:
        yield replace(unit, problem=str(problem))
        return
    parts = list(windows.of(seconds))
    if len(parts) > 1:
        unit = replace(unit, transcript=None, transcript_from="")
    for start, end in parts:
        yield replace(unit, start=start, end=end, is_short=end - start < windows.seconds)
