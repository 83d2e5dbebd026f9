"""Any corpus that a user describes in one table: a CSV file → utterances with their votes.

```
id,audio,text,speaker,session,votes.neutral,votes.happy,votes.angry,votes.sad
a1,wav/a1.wav,"Well, no.",mary,1,2,0,1,0
```
The root is the file itself; recordings are relative to its folder and stay inside it. UTF-8, quoted as in RFC 4180,
separated by comma, semicolon or tab, whichever the header holds. Upper and lower case in these names are the same:

| column | holds |
|---|---|
| `id` | a name of its own for each utterance |
| `audio` (or `wav`, `file`, `path`, `FileName`, `audio_path`) | the recording |
| `text` (or `transcript`, `Utterance`, `raw_text`) | what is said |
| `speaker`, `session` (or `fold`), `dialogue`, `split`, `language` | may be missing, as may all below |
| `start`, `end` | seconds into the recording |

The label stands in one of three forms; an empty cell is nobody's vote:
- `votes.<emotion>`: how many raters chose the emotion, one column for each;
- `ratings`: JSON, a list of labels or of `{"rater": …, "label": …}`;
- `label`: one word. Beside votes or ratings it is the consensus of the corpus, the attribute `consensus`.

Any other column becomes an attribute: numbers if all its cells are numbers or empty, else text.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amber2_core.errors import CorpusError, bad_choice, parse_problem
from amber2_core.utterance import Corpus, LabelDefaults, Rating, Utterance

from ..label_forms import counted_votes, finite_number, listed_ratings, single_label
from ..rows import Row, read_table

ORIGIN = (
    "The root is a CSV file with the columns id, audio, text, and votes.<emotion> (counts), ratings (JSON) or label."
)

SUFFIXES = (".csv", ".tsv")
NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "audio": ("audio", "wav", "file", "path", "filename", "audio_path"),
    "text": ("text", "transcript", "utterance", "raw_text"),
    "speaker": ("speaker",),
    "session": ("session", "fold"),
    "dialogue": ("dialogue",),
    "split": ("split",),
    "language": ("language",),
    "start": ("start",),
    "end": ("end",),
    "ratings": ("ratings",),
    "label": ("label",),
}
REQUIRED = ("id", "audio", "text")
VOTES = "votes."
CONSENSUS = "consensus"  # the attribute that label policies look for

Labels = Callable[[Mapping[str, str]], tuple[Rating, ...]]


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of one manifest mean."""

    role: Mapping[str, str]  # role (a key of NAMES) → column
    votes: Mapping[str, str]  # emotion → column
    others: tuple[str, ...]  # become attributes

    def cell(self, row: Mapping[str, str], role: str) -> str:
        """The cell of a role without surrounding blanks, empty where there is no such column."""
        return row[self.role[role]].strip() if role in self.role else ""


def read(root: Path) -> Corpus:
    """The utterances of a manifest, in its order; the corpus' root is the folder of the file.

    Raises:
        CorpusError: the file is no such table, or a row of it has no meaning; the message names the line.
    """
    if root.is_dir():
        raise CorpusError(f"{root} is a folder. {ORIGIN}")
    if root.suffix.lower() not in SUFFIXES:
        raise CorpusError(f"{bad_choice('manifest suffix', root.suffix, SUFFIXES)}: {root}")
    table = read_table(root, delimiters=",;\t")
    columns = _columns(root, table.header)
    labels = _label_form(columns)
    utterances: list[Utterance] = []
    lines: dict[str, int] = {}
    for row in table.rows:
        try:
            utterance = _utterance(row, columns, labels, root.parent)
            if utterance.id in lines:
                raise ValueError(f"id {utterance.id!r} stands in line {lines[utterance.id]} already")
        except ValueError as error:
            raise CorpusError(parse_problem(root, row.line, str(error))) from None
        lines[utterance.id] = row.line
        utterances.append(utterance)
    if not utterances:
        raise CorpusError(f"No utterance in {root}: the file ends after its header")
    _require_a_recording(root, utterances)
    defaults = _defaults(root, columns, utterances)
    return Corpus("manifest", root.parent, _with_numbers(utterances, columns.others), defaults)


def _columns(path: Path, header: Sequence[str]) -> Columns:
    role: dict[str, str] = {}
    votes: dict[str, str] = {}
    others: list[str] = []
    meanings = {alias: name for name, aliases in NAMES.items() for alias in aliases}
    for column in header:
        meaning = meanings.get(column.lower())
        emotion = column[len(VOTES) :].strip() if column.lower().startswith(VOTES) else ""
        if emotion in votes or meaning in role:
            one = votes.get(emotion) or role[str(meaning)]
            raise CorpusError(parse_problem(path, 1, f"columns {one!r} and {column!r} mean the same: keep one"))
        if emotion:
            votes[emotion] = column
        elif meaning:
            role[meaning] = column
        elif "/" in column or column == ".":  # an HDF5 path, as which the cache would take it
            raise CorpusError(parse_problem(path, 1, f"column {column!r} cannot name an attribute: rename it"))
        elif column:
            others.append(column)
    columns = Columns(role, votes, tuple(others))
    problem = _what_is_unclear(columns)
    if problem:
        raise CorpusError(parse_problem(path, 1, problem))
    return columns


def _what_is_unclear(columns: Columns) -> str:
    """What is missing in a header or said twice in it, empty text if nothing."""
    for needed in REQUIRED:
        if needed not in columns.role:
            return f"no column {needed!r}, expected one of {list(NAMES[needed])}"
    if columns.votes and "ratings" in columns.role:
        return f"columns {VOTES}<emotion> and ratings both hold the votes: keep one form"
    raw = columns.votes or "ratings" in columns.role
    if not raw and "label" not in columns.role:
        return f"no label: expected columns {VOTES}<emotion>, ratings or label"
    if raw and "label" in columns.role and CONSENSUS in columns.others:
        return f"columns 'label' and {CONSENSUS!r} both hold the consensus: keep one"
    return ""


def _utterance(row: Row, columns: Columns, labels: Labels, folder: Path) -> Utterance:
    """The utterance of a row, with its attributes as text; a ValueError says what has no meaning."""

    def cell(role: str) -> str:
        return columns.cell(row.cells, role)

    if not cell("id"):
        raise ValueError("empty id")
    start, end = _seconds("start", cell("start")), _seconds("end", cell("end"))
    if end is not None and end <= (start or 0):
        raise ValueError(f"end {end:g} s is not after start {start or 0:g} s")
    attributes = {column: row.cells[column].strip() for column in columns.others}
    if cell("label") and (columns.votes or "ratings" in columns.role):
        attributes[CONSENSUS] = cell("label")
    return Utterance(
        id=cell("id"),
        audio=_recording(cell("audio"), folder),
        transcript=cell("text"),
        ratings=labels(row.cells),
        speaker=cell("speaker"),
        session=cell("session"),
        dialogue=cell("dialogue"),
        split=cell("split"),
        language=cell("language"),
        start=start,
        duration=None if end is None else end - (start or 0),
        attributes={name: text for name, text in attributes.items() if text},
    )


def _label_form(columns: Columns) -> Labels:
    """The function from the cells of a row to its ratings, for the form that the manifest uses."""
    if columns.votes:
        return lambda cells: counted_votes({emotion: cells[column] for emotion, column in columns.votes.items()})
    if "ratings" in columns.role:
        return lambda cells: listed_ratings(columns.cell(cells, "ratings"))
    return lambda cells: single_label(columns.cell(cells, "label"))


def _recording(text: str, folder: Path) -> str | None:
    """The path of a recording relative to the manifest's folder, which it must not leave."""
    if not text:
        return None
    path = text.replace("\\", "/")
    if posixpath.isabs(path) or re.match(r"[A-Za-z]:", path):
        raise ValueError(f"recording {text!r} is absolute: write it relative to {folder}, where the manifest lies")
    path = posixpath.normpath(path)
    if path.split("/")[0] == "..":
        raise ValueError(f"recording {text!r} climbs out of {folder}: put the manifest above its recordings")
    return path


def _seconds(name: str, text: str) -> float | None:
    if not text:
        return None
    number = finite_number(text)
    if number is None or number < 0:
        raise ValueError(f"{name} {text!r} is not a time in seconds")
    return number


def _require_a_recording(path: Path, utterances: Sequence[Utterance]) -> None:
    """Refuse a manifest whose recordings are all elsewhere; single ones are stage 1's to report."""
    named = [utterance.audio for utterance in utterances if utterance.audio]
    if not named:
        raise CorpusError(f"{path} names no recording: its audio column is empty")
    if not any(os.path.exists(path.parent / audio) for audio in named):
        raise CorpusError(
            f"None of the {len(named):,} recordings of {path} exists, for one {path.parent / named[0]}: "
            "paths are relative to the manifest's folder"
        )


def _defaults(path: Path, columns: Columns, utterances: Sequence[Utterance]) -> LabelDefaults:
    said = dict.fromkeys(rating.label for utterance in utterances for rating in utterance.ratings)
    if not said:
        raise CorpusError(f"No utterance of {path} has a vote")
    in_sessions = all(utterance.session for utterance in utterances)
    return LabelDefaults(emotions=tuple(columns.votes or said), folds="session" if in_sessions else "speaker")


def _with_numbers(utterances: Sequence[Utterance], names: Sequence[str]) -> tuple[Utterance, ...]:
    """The utterances with those attributes as numbers that are a number wherever they are given."""
    numeric = {
        name
        for name in names
        if all(finite_number(str(u.attributes[name])) is not None for u in utterances if name in u.attributes)
    }
    if not numeric:
        return tuple(utterances)
    return tuple(
        replace(u, attributes={name: float(v) if name in numeric else v for name, v in u.attributes.items()})
        for u in utterances
    )
