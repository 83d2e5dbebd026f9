"""The votes of MSP-Podcast, in whichever layout a release has them → the ballot of every turn.

- `labels_detailed.csv` of 1.7 … 1.12: `FileName,EmoDetail`, the latter one string for each rater,
  `WORKER00000001; Other-confused; Concerned,Confused; A:3.0; V:3.0; D:4.0;` (the secondary labels may be missing)
- `labels_detailed.csv` of 1.6 and 2.0: `FileName,WorkerID` (or `Workers`)`,EmoClass_Major,EmoClass_Second,…`
- `labels_detailed.json`: `{file: {worker: {"EmoClass_Major": …, "EmoClass_Second": …, …}}}`
- `labels.txt`: a consensus line `MSP-PODCAST_0001_0139.wav; N; A:2.4; V:4.0; D:2.8;`, a line for each rater as above,
  a blank line

The first that is there, in this order, is read. A rater who stands twice under a turn counts once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from amber2_core.errors import CorpusError
from amber2_core.utterance import Problem, Rating

from .release import Row, json_members, read_table, text_lines

FILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\.wav")
RATER = re.compile(r"[\w.@-]{1,100}")
LAYOUTS = ("labels_detailed.csv", "labels_detailed.json", "labels.txt")
RATER_COLUMNS = ("WorkerID", "Workers", "Worker")
DIMENSION = re.compile(r"[AVD]:\s*(?:-?\d+(?:\.\d+)?|nan)?", flags=re.IGNORECASE)


@dataclass(slots=True)
class Ballot:
    """What everybody said of one turn."""

    ratings: list[Rating] = field(default_factory=list)
    # "WORKER00000001: Concerned,Confused", where a rater gave any
    secondary: list[str] = field(default_factory=list)
    # the code in labels.txt
    consensus: str = ""


class _Vote(NamedTuple):
    line: int
    file: str  # name of the recording
    rater: str
    label: str
    secondary: str


def read_ballots(root: Path, labels: str, problems: list[Problem]) -> dict[str, Ballot]:
    """Stem of a recording → its ballot; what cannot be read of a row or line becomes a problem.

    Raises:
        CorpusError: none of the files is there, or the one that is cannot be read as what it is.
    """
    folder = f"{labels}/" if labels else ""
    place = next((f"{folder}{name}" for name in LAYOUTS if (root / folder / name).is_file()), None)
    if place is None:
        raise CorpusError(f"None of {list(LAYOUTS)} is in {root / labels}: the root is a release of MSP-Podcast")
    ballots: dict[str, Ballot] = {}
    shared: dict[tuple[str, str], Rating] = {}  # one object for equal ticks: a release has a million of them
    for vote in _votes(root, place, ballots, problems):
        wrong = _what_is_wrong(vote)
        if wrong:
            problems.append(Problem(place, vote.line, f"{wrong}; left out"))
            continue
        ballot = ballots.setdefault(vote.file.removesuffix(".wav"), Ballot())
        if any(rating.rater == vote.rater for rating in ballot.ratings):
            what = f"rater {vote.rater} stands twice under {vote.file}; the first one counts"
            problems.append(Problem(place, vote.line, what))
            continue
        tick = (vote.rater, vote.label)
        ballot.ratings.append(shared.get(tick) or shared.setdefault(tick, Rating(*tick, stimulus="audio")))
        if vote.secondary:
            ballot.secondary.append(f"{vote.rater}: {vote.secondary}")
    if not _ends_a_line(root / place):
        problems.append(Problem(place, None, "the last line does not end: is the file cut off?"))
    return {stem: ballot for stem, ballot in ballots.items() if ballot.ratings or ballot.consensus}


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read() in (b"\n", b"\r", b"}")


def _what_is_wrong(vote: _Vote) -> str:
    if not FILE_NAME.fullmatch(vote.file):
        return f"{vote.file[:60]!r} is not the name of a recording"
    if not RATER.fullmatch(vote.rater):
        return f"{vote.rater[:60]!r} is not the name of a rater"
    if not vote.label:
        return f"rater {vote.rater} gives no label"
    return ""


def _votes(root: Path, place: str, ballots: dict[str, Ballot], problems: list[Problem]) -> Iterator[_Vote]:
    path = root / place
    if path.suffix == ".json":
        yield from _json_votes(path, place, problems)
    elif path.suffix == ".txt":
        yield from _text_votes(path, place, ballots, problems)
    else:
        yield from _table_votes(path, place, problems)


def _table_votes(path: Path, place: str, problems: list[Problem]) -> Iterator[_Vote]:
    table = read_table(path, required=["FileName"])
    if "EmoDetail" in table.header:
        for row in table.rows:
            yield from _detail(row.line, row.cells["FileName"].strip(), row.cells["EmoDetail"], place, problems)
        return
    rater = next((column for column in RATER_COLUMNS if column in table.header), None)
    if rater is None or "EmoClass_Major" not in table.header:
        raise CorpusError(f"{path}, line 1: expected columns EmoDetail, or WorkerID and EmoClass_Major")
    yield from (_row_vote(row, rater) for row in table.rows)


def _row_vote(row: Row, rater: str) -> _Vote:
    cells = row.cells
    name, who, label = (cells[column].strip() for column in ("FileName", rater, "EmoClass_Major"))
    return _Vote(row.line, name, who, label, cells.get("EmoClass_Second", "").strip())


def _detail(line: int, file: str, text: str, place: str, problems: list[Problem]) -> Iterator[_Vote]:
    """The vote in `WORKER; primary; secondary; A:3.0; V:3.0; D:4.0;`."""
    rater, *parts = (part.strip() for part in text.strip().rstrip(";").split(";"))
    words = [part for part in parts if not DIMENSION.fullmatch(part)]
    if not parts or not words or len(parts) - len(words) > 3:
        problems.append(Problem(place, line, f"not rater; label; [more;] A:…; V:…; D:…;: {text[:60]!r}; left out"))
        return
    yield _Vote(line, file, rater, words[0], "; ".join(words[1:]))


def _text_votes(path: Path, place: str, ballots: dict[str, Ballot], problems: list[Problem]) -> Iterator[_Vote]:
    file = ""  # whose lines follow
    for number, line in text_lines(path):
        head, _, rest = (part.strip() for part in line.partition(";"))
        if not head and not rest:
            file = ""
        elif head.endswith(".wav"):
            file, stem = head, head.removesuffix(".wav")
            if stem in ballots:
                problems.append(Problem(place, number, f"second block of {stem[:60]}; left out"))
                file = "?"
            elif FILE_NAME.fullmatch(head):
                code, *dimensions = (part.strip() for part in rest.rstrip("; ").split(";"))
                ballots[stem] = Ballot(consensus=code)
                if not all(map(DIMENSION.fullmatch, dimensions)):
                    what = f"not recording; class; A:…; V:…; D:…;: {line[:120]!r}; read up to its class"
                    problems.append(Problem(place, number, what))
            else:
                problems.append(Problem(place, number, f"{head[:60]!r} is not the name of a recording; block left out"))
                file = "?"
        elif not file:
            problems.append(Problem(place, number, f"no recording stands above: {line[:60]!r}; left out"))
        elif file != "?":
            yield from _detail(number, file, line, place, problems)


def _json_votes(path: Path, place: str, problems: list[Problem]) -> Iterator[_Vote]:
    seen: set[str] = set()
    for line, file, raters in json_members(path):
        if file in seen or not isinstance(raters, dict):
            what = "stands twice; the first one counts" if file in seen else "holds no object of raters; left out"
            problems.append(Problem(place, line, f"{file[:60]!r} {what}"))
            continue
        seen.add(file)
        for rater, record in raters.items():
            label = _text(record, "EmoClass_Major")
            if label is None:
                problems.append(Problem(place, line, f"rater {rater[:60]!r} of {file[:60]!r} gives no label; left out"))
            else:
                yield _Vote(line, file, rater.strip(), label, _text(record, "EmoClass_Second") or "")


def _text(record: Any, key: str) -> str | None:
    """A text, or a list of texts, without what no cache could store; None for anything else."""
    value = record.get(key) if isinstance(record, dict) else None
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ",".join(value)
    if not isinstance(value, str) or re.search("[\0\ud800-\udfff]", value):
        return None
    return value.strip() or None
