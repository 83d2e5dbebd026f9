"""Any corpus that a user describes in one table: a CSV file or JSON lines → utterances with their votes.

```
id,audio,text,speaker,session,votes.neutral,votes.happy,votes.angry,votes.sad
a1,wav/a1.wav,"Well, no.",mary,1,2,0,1,0
```
The root is the file itself; recordings are relative to its folder and stay inside it, or are absolute, which a problem
of the corpus tells. With an audio root (`--audio-root`) they are relative to that, and of a longer path, be it absolute
or of Windows, the longest end counts that is there; where none is as written, one that differs in upper and lower case
alone. A .csv or .tsv file is UTF-8 (or UTF-16 with its mark), quoted as in RFC 4180, separated by comma, semicolon or
tab, whichever the header holds. In a .jsonl file every line is an object with these keys, `votes` and `distribution`
being objects of their own. Upper and lower case of columns are the same:

| column | holds |
|---|---|
| `id` | a name of its own for each utterance; without it, the name of the recording without its suffix |
| `audio` (or `wav`, `file`, `path`, `FileName`, `audio_path`) | the recording |
| `text` (or `transcript`, `transcription`, `Utterance`, `sentence`, `raw_text`) | what is said; may be missing |
| `speaker` (or `speaker_id`, `SpkrID`), `session` (or `fold`) | may be missing, as may all below |
| `dialogue`, `split` (or `Split_Set`), `language` | |
| `start`, `end` | seconds into the recording |
| `stimulus` | what the raters were given: audio, video, audiovisual (what an empty cell says) |

A column of another name gets its role by option: `--column id=filename`. The label stands in one of five forms; an
empty cell is nobody's vote:
- `votes.<emotion>`: how many raters chose the emotion, one column for each;
- `distribution.<emotion>`, or just `<emotion>` where it is one of the field's words: shares that sum to 1, with the
  number of raters in `raters` if it is known;
- `rater.<name>`, or `rater1`, `rater2`, … (`annotator1`, `coder1`): what that rater said, one column for each;
  several words stand between semicolons, commas or bars. `weight.<name>` is what the rater's votes weigh;
- `ratings`: JSON, a list of labels or of `{"rater": …, "label": …}`, perhaps with `"weight"` and `"stimulus"`;
- `label` (or `emotion`): one word. Beside one of the others it is the corpus's consensus, the attribute `consensus`.

The label space is by default that of the columns, in their order; else all words that were said, in lower case,
adjectives for nouns, in the order of the alphabet.

EMO-SUPERB's tables (`FileName,<classes>,[EmoAct,EmoVal,EmoDom,][SpkrID,]Gender,Split_Set`) are read as they are, the
one whose first column has no name among them. Their labels are smoothed with ε = 0.05; where the least share of the
file is just what smoothing leaves of none, the smoothing is undone, and a problem of the corpus says so.

Any other column becomes an attribute: numbers if all its cells are numbers or empty, else text.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from amber2_core.errors import CorpusError, bad_choice, parse_problem
from amber2_core.utterance import STIMULI, Corpus, LabelDefaults, Problem, Rating, Utterance
from amber2_core.votes import CONSENSUS, canonical

from ..label_forms import (
    EMO_SUPERB_EPSILON,
    ROUNDING,
    counted_votes,
    distributed_votes,
    finite_number,
    listed_ratings,
    of_stimulus,
    rater_votes,
    single_label,
    smoothing_floor,
)
from ..manifest_columns import Columns, check_columns, manifest_columns, settled
from ..release import Row, Table, read_json_lines, read_table
from ..table_recordings import Recordings, require_a_recording
from ..transcripts import trimmed

ORIGIN = (
    "The root is a CSV or .jsonl file with the columns id, audio, text, and votes.<emotion> (counts), "
    "distribution.<emotion> (shares), rater.<name> (words), ratings (JSON) or label."
)

TABLES, JSON_LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")
Labels = Callable[[Mapping[str, str]], tuple[Rating, ...]]


def read(root: Path, *, audio_root: Path | None = None, columns: Mapping[str, str] | None = None) -> Corpus:
    """The utterances of a manifest, in its order.

    Args:
        root: the file.
        audio_root: where recordings lie, which becomes the root of the corpus; None: in the folder of the file.
        columns: role → column, as `named_columns` gives it.

    Raises:
        CorpusError: the file is no such table, or a row of it has no meaning; the message names the line.
    """
    place = Recordings(audio_root or root.parent, is_given=audio_root is not None)
    return described_corpus("manifest", root, place, lambda: _table(root), columns)


def _table(root: Path) -> Table:
    if root.is_dir():
        raise CorpusError(f"{root} is a folder. {ORIGIN}")
    suffix = root.suffix.lower()
    if suffix not in (*TABLES, *JSON_LINES):
        raise CorpusError(f"{bad_choice('manifest suffix', root.suffix, (*TABLES, *JSON_LINES))}: {root}")
    return read_json_lines(root) if suffix in JSON_LINES else read_table(root, delimiters=",;\t")


def described_corpus(
    name: str, path: Path, recordings: Recordings, tables: Callable[[], Table], named: Mapping[str, str] | None = None
) -> Corpus:
    """The utterances of a table whose columns are named as in a manifest, in its order, whatever file it is from.

    Args:
        name: of the reader.
        path: what messages name.
        recordings: where they lie, which is the root of the corpus.
        tables: gives the table anew each time.
        named: role → column, where the user says so.

    Raises:
        CorpusError: the columns have no meaning, or a row has none; the message names the line.
    """
    table = tables()
    columns = manifest_columns(path, table.header, named)
    if columns.unsure:
        columns = settled(columns, _are_what_they_say(columns, tables()))
        check_columns(path, columns)
    problems: list[Problem] = []
    labels = _label_form(columns, is_smoothed=columns.is_emo_superb and _is_smoothed(path, tables(), columns, problems))
    utterances: list[Utterance] = []
    lines: dict[str, int] = {}
    for row in table.rows:
        try:
            utterance = _utterance(row, columns, labels, recordings)
            if utterance.id in lines:
                hint = "" if "id" in columns.role else ": names of recordings are ids where no column 'id' is"
                raise ValueError(f"id {utterance.id!r} stands in line {lines[utterance.id]} already{hint}")
        except ValueError as error:
            raise CorpusError(parse_problem(path, row.line, str(error))) from None
        lines[utterance.id] = row.line
        if any("\n" in cell or "\r" in cell for cell in row.cells.values()):
            what = f"a cell of {utterance.id!r} goes on over several lines: is a quote missing?"
            problems.append(Problem(path.name, row.line, what))
        utterances.append(utterance)
    if not utterances:
        raise CorpusError(f"No utterance in {path}: the file ends after its header")
    require_a_recording(path, recordings, utterances)
    absolute = [u.audio for u in utterances if u.audio and os.path.isabs(u.audio)]
    if absolute:
        what = (
            f"{len(absolute):,} recordings are absolute paths, for one {absolute[0]}: they hold on this machine alone, "
            "unless --audio-root says where the recordings lie"
        )
        problems.append(Problem(path.name, None, what))
    if "text" not in columns.role:
        problems.append(Problem(path.name, 1, "no column of transcripts; all of them are empty"))
    defaults = _defaults(path, columns, utterances)
    numbered = _with_numbers(utterances, columns.others)
    return Corpus(name, recordings.folder, numbered, defaults, problems=tuple(problems))


def _are_what_they_say(columns: Columns, table: Table) -> dict[str, bool]:
    """Unsure column → whether its cells are what its name says: a stimulus, a word of a rater's, a share.

    Columns that are called by emotions alone hold shares unless all of their numbers are whole and some row has more
    than one: then they count votes.
    """
    are = dict.fromkeys(columns.unsure, True)
    shares = [column for column in columns.unsure if column in columns.shares.values()]
    raters = set(columns.raters.values())
    are_counts, is_more_than_one = bool(shares), False
    for row in table.rows:
        for column in columns.unsure:
            text = row.cells[column].strip()
            if column in raters:
                are[column] &= finite_number(text) is None
            elif column not in shares:
                are[column] &= text.casefold() in ("", *STIMULI)
        numbers = [number for column in shares if (number := finite_number(row.cells[column].strip())) is not None]
        are_counts &= all(number == int(number) for number in numbers)
        is_more_than_one |= sum(numbers) > 1
    return are | dict.fromkeys(shares, not (are_counts and is_more_than_one))


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


def _utterance(row: Row, columns: Columns, labels: Labels, recordings: Recordings) -> Utterance:
    """The utterance of a row, with its attributes as text; a ValueError says what has no meaning."""

    def cell(role: str) -> str:
        return columns.cell(row.cells, role)

    recording = recordings.find(cell("audio"))
    id_ = cell("id") if "id" in columns.role else posixpath.basename(recording or "")
    if "id" not in columns.role and not columns.is_emo_superb:
        id_ = posixpath.splitext(id_)[0]
    if not id_:
        raise ValueError("empty id" if "id" in columns.role else "no recording, whose name would be the id")
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
        ratings=_of_stimulus(labels(row.cells), cell("stimulus").casefold()),
        speaker="" if columns.is_emo_superb and cell("speaker") == "Unknown" else cell("speaker"),
        session=cell("session"),
        dialogue=cell("dialogue"),
        split=cell("split"),
        language=cell("language"),
        start=start,
        duration=None if end is None else end - (start or 0),
        attributes={name: text for name, text in attributes.items() if text},
    )


def _of_stimulus(ratings: tuple[Rating, ...], stimulus: str) -> tuple[Rating, ...]:
    return tuple(of_stimulus(rating, stimulus) for rating in ratings) if stimulus else ratings


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
    if columns.raters:
        return lambda cells: rater_votes(
            {rater: cells[column] for rater, column in columns.raters.items()},
            {rater: cells[column] for rater, column in columns.weights.items()},
        )
    if "ratings" in columns.role:
        return lambda cells: listed_ratings(columns.cell(cells, "ratings"))
    return lambda cells: single_label(columns.cell(cells, "label"))


def _seconds(name: str, text: str) -> float | None:
    if not text:
        return None
    number = finite_number(text)
    if number is None or number < 0:
        raise ValueError(f"{name} {text!r} is not a time in seconds")
    return number


def _defaults(path: Path, columns: Columns, utterances: Sequence[Utterance]) -> LabelDefaults:
    given = {rating.stimulus for utterance in utterances for rating in utterance.ratings}
    if not given:
        raise CorpusError(f"No utterance of {path} has a vote")
    # where the raters were given several, what most corpora have
    stimulus = next(one for one in ("audiovisual", *STIMULI) if one in given)
    folds: Literal["session", "speaker", "official"] = "speaker"
    if all(utterance.session for utterance in utterances):
        folds = "session"
    elif columns.is_emo_superb and {"train", "test1"} <= {utterance.split.casefold() for utterance in utterances}:
        folds = "official"
    return LabelDefaults(emotions=_emotions(path, columns, utterances, stimulus), stimulus=stimulus, folds=folds)


def _emotions(path: Path, columns: Columns, utterances: Sequence[Utterance], stimulus: str) -> tuple[str, ...]:
    """The emotions in an order that no row decides: that of the columns, else the alphabet's."""
    words = [*(columns.votes or columns.shares)]
    if path.suffix.lower() in JSON_LINES:  # whose columns come in the order of the lines
        words.sort()
    if words:
        first = {canonical(word): word for word in reversed(words)}
        return tuple(first[word] for word in dict.fromkeys(map(canonical, words)))
    ticks = (rating for utterance in utterances for rating in utterance.ratings)
    return tuple(sorted({canonical(rating.label) for rating in ticks if rating.stimulus == stimulus}))


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
