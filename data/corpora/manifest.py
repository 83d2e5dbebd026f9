"""Any corpus that a user describes in one table: a CSV file or JSON lines → utterances with their votes.

```
id,audio,text,speaker,session,votes.neutral,votes.happy,votes.angry,votes.sad
a1,wav/a1.wav,"Well, no.",mary,1,2,0,1,0
```
The root is the file itself; recordings are relative to its folder and stay inside it. A .csv or .tsv file is UTF-8,
quoted as in RFC 4180, separated by comma, semicolon or tab, whichever the header holds. In a .jsonl file every line is
an object with these keys, `votes` and `distribution` being objects of their own. Upper and lower case are the same:

| column | holds |
|---|---|
| `id` | a name of its own for each utterance |
| `audio` (or `wav`, `file`, `path`, `FileName`, `audio_path`) | the recording |
| `text` (or `transcript`, `transcription`, `Utterance`, `sentence`, `raw_text`) | what is said |
| `speaker` (or `speaker_id`, `SpkrID`), `session` (or `fold`) | may be missing, as may all below |
| `dialogue`, `split` (or `Split_Set`), `language` | |
| `start`, `end` | seconds into the recording |

The label stands in one of four forms; an empty cell is nobody's vote:
- `votes.<emotion>`: how many raters chose the emotion, one column for each;
- `distribution.<emotion>`, or just `<emotion>` where it is one of the field's words: shares that sum to 1, with the
  number of raters in `raters` if it is known;
- `ratings`: JSON, a list of labels or of `{"rater": …, "label": …}`;
- `label` (or `emotion`): one word. Beside one of the others it is the corpus's consensus, the attribute `consensus`.

EMO-SUPERB's tables (`FileName,<classes>,[EmoAct,EmoVal,EmoDom,]SpkrID,Gender,Split_Set`) are read as they are, without
id and text. Their labels are smoothed with ε = 0.05; where the least share of the file is just what smoothing leaves of
none, the smoothing is undone, and a problem of the corpus says so.

Any other column becomes an attribute: numbers if all its cells are numbers or empty, else text.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from amber2_core.errors import CorpusError, bad_choice, parse_problem
from amber2_core.utterance import Corpus, LabelDefaults, Problem, Rating, Utterance
from amber2_core.votes import CONSENSUS

from ..label_forms import (
    EMO_SUPERB_EPSILON,
    ROUNDING,
    counted_votes,
    distributed_votes,
    finite_number,
    listed_ratings,
    single_label,
    smoothing_floor,
)
from ..manifest_columns import Columns, manifest_columns
from ..release import Row, Table, read_json_lines, read_table
from ..transcripts import trimmed

ORIGIN = (
    "The root is a CSV or .jsonl file with the columns id, audio, text, and votes.<emotion> (counts), "
    "distribution.<emotion> (shares), ratings (JSON) or label."
)

TABLES, JSON_LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")
Labels = Callable[[Mapping[str, str]], tuple[Rating, ...]]


def read(root: Path) -> Corpus:
    """The utterances of a manifest, in its order; the corpus' root is the folder of the file.

    Raises:
        CorpusError: the file is no such table, or a row of it has no meaning; the message names the line.
    """
    return described_corpus("manifest", root, root.parent, lambda: _table(root))


def _table(root: Path) -> Table:
    if root.is_dir():
        raise CorpusError(f"{root} is a folder. {ORIGIN}")
    suffix = root.suffix.lower()
    if suffix not in (*TABLES, *JSON_LINES):
        raise CorpusError(f"{bad_choice('manifest suffix', root.suffix, (*TABLES, *JSON_LINES))}: {root}")
    return read_json_lines(root) if suffix in JSON_LINES else read_table(root, delimiters=",;\t")


def described_corpus(name: str, path: Path, folder: Path, tables: Callable[[], Table]) -> Corpus:
    """The utterances of a table whose columns are named as in a manifest, in its order, whatever file it is from.

    Args:
        name: of the reader.
        path: what messages name.
        folder: the root of the corpus; recordings are relative to it and stay inside it.
        tables: gives the table anew each time.

    Raises:
        CorpusError: the columns have no meaning, or a row has none; the message names the line.
    """
    table = tables()
    columns = manifest_columns(path, table.header)
    problems: list[Problem] = []
    labels = _label_form(columns, is_smoothed=columns.is_emo_superb and _is_smoothed(path, tables(), columns, problems))
    utterances: list[Utterance] = []
    lines: dict[str, int] = {}
    for row in table.rows:
        try:
            utterance = _utterance(row, columns, labels, folder)
            if utterance.id in lines:
                raise ValueError(f"id {utterance.id!r} stands in line {lines[utterance.id]} already")
        except ValueError as error:
            raise CorpusError(parse_problem(path, row.line, str(error))) from None
        lines[utterance.id] = row.line
        if any("\n" in cell or "\r" in cell for cell in row.cells.values()):
            what = f"a cell of {utterance.id!r} goes on over several lines: is a quote missing?"
            problems.append(Problem(path.name, row.line, what))
        utterances.append(utterance)
    if not utterances:
        raise CorpusError(f"No utterance in {path}: the file ends after its header")
    _require_a_recording(path, folder, utterances)
    if "text" not in columns.role:
        problems.append(Problem(path.name, 1, "no column of transcripts; all of them are empty"))
    defaults = _defaults(path, columns, utterances)
    numbered = _with_numbers(utterances, columns.others)
    return Corpus(name, folder, numbered, defaults, problems=tuple(problems))


def _is_smoothed(path: Path, table: Table, columns: Columns, problems: list[Problem]) -> bool:
    """Whether the least share in a table of EMO-SUPERB's is just what smoothing leaves of none."""
    floor = smoothing_floor(len(columns.shares))
    least = 1.0
    for row in table.rows:
        shares = [finite_number(row.cells[column].strip()) for column in columns.shares.values()]
        least = min([least, *(share for share in shares if share is not None)])
    if abs(least - floor) > ROUNDING:
        return False
    what = f"labels are smoothed with ε = {EMO_SUPERB_EPSILON:g} over {len(columns.shares)} classes; undone"
    problems.append(Problem(path.name, None, what))
    return True


def _utterance(row: Row, columns: Columns, labels: Labels, folder: Path) -> Utterance:
    """The utterance of a row, with its attributes as text; a ValueError says what has no meaning."""

    def cell(role: str) -> str:
        return columns.cell(row.cells, role)

    recording = _recording(cell("audio"), folder)
    id_ = posixpath.basename(recording or "") if columns.is_emo_superb and "id" not in columns.role else cell("id")
    if not id_:
        raise ValueError("empty id")
    start, end = _seconds("start", cell("start")), _seconds("end", cell("end"))
    if end is not None and end <= (start or 0):
        raise ValueError(f"end {end:g} s is not after start {start or 0:g} s")
    attributes = {column: row.cells[column].strip() for column in columns.others}
    if cell("label") and columns.has_raw_votes:
        attributes[CONSENSUS] = cell("label")
    return Utterance(
        id=id_,
        audio=recording,
        transcript=trimmed(row.cells[columns.role["text"]]) if "text" in columns.role else "",
        ratings=labels(row.cells),
        speaker="" if columns.is_emo_superb and cell("speaker") == "Unknown" else cell("speaker"),
        session=cell("session"),
        dialogue=cell("dialogue"),
        split=cell("split"),
        language=cell("language"),
        start=start,
        duration=None if end is None else end - (start or 0),
        attributes={name: text for name, text in attributes.items() if text},
    )


def _label_form(columns: Columns, *, is_smoothed: bool) -> Labels:
    """The function from the cells of a row to its ratings, for the form that the manifest uses."""
    if columns.votes:
        return lambda cells: counted_votes({emotion: cells[column] for emotion, column in columns.votes.items()})
    if columns.shares:
        return lambda cells: distributed_votes(
            {emotion: cells[column] for emotion, column in columns.shares.items()},
            raters=columns.cell(cells, "raters"),
            is_smoothed=is_smoothed,
        )
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


def _require_a_recording(path: Path, folder: Path, utterances: Sequence[Utterance]) -> None:
    """Refuse a manifest whose recordings are all elsewhere; single ones are stage 1's to report."""
    named = [utterance.audio for utterance in utterances if utterance.audio]
    if not named:
        raise CorpusError(f"{path} names no recording: its audio column is empty")
    if not any(os.path.exists(folder / audio) for audio in named):
        raise CorpusError(
            f"None of the {len(named):,} recordings of {path} exists, for one {folder / named[0]}: "
            "paths are relative to the manifest's folder"
        )


def _defaults(path: Path, columns: Columns, utterances: Sequence[Utterance]) -> LabelDefaults:
    said = dict.fromkeys(rating.label for utterance in utterances for rating in utterance.ratings)
    if not said:
        raise CorpusError(f"No utterance of {path} has a vote")
    folds: Literal["session", "speaker", "official"] = "speaker"
    if all(utterance.session for utterance in utterances):
        folds = "session"
    elif columns.is_emo_superb and {"train", "test1"} <= {utterance.split.casefold() for utterance in utterances}:
        folds = "official"
    return LabelDefaults(emotions=tuple(columns.votes or columns.shares or said), folds=folds)


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
