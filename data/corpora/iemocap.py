"""IEMOCAP: the full release → acted and improvised turns with every external rating and self-report.

```
<root>/                                          IEMOCAP_full_release, or the folder that holds it
└── Session1 … Session5/
    ├── dialog/EmoEvaluation/Ses01F_impro01.txt  ratings; the sub-folders there hold other formats and are not read
    ├── dialog/transcriptions/Ses01F_impro01.txt
    └── sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav     16 kHz mono
```
https://sail.usc.edu/iemocap, given to those who sign its licence. 151 dialogues, 10,039 turns, ten speakers. A block of
the evaluation, its fields separated by tabs:
```
[6.2901 - 8.2357]   Ses01F_impro01_F000   neu   [2.5000, 2.5000, 2.5000]     times, turn, consensus, V A D
C-E2:   Neutral;   ()                                                       an external rater
C-F1:   Neutral; Anger;   ()                                                the speaker's own report, two ticks
A-E3:   val 3; act 2; dom  2;   ()                                          not read: means stand above
```
The consensus `xxx` (raters did not agree) becomes an empty attribute. Speakers are the session and the letter of the
turn (Ses01F); the letter of the dialogue says who wore the markers. All raters saw and heard the actors.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amber2_core.errors import CorpusError
from amber2_core.utterance import Corpus, LabelDefaults, Problem, Rating, Utterance
from amber2_core.votes import CONSENSUS

from ..release import first_of, text_lines

ORIGIN = "The root is IEMOCAP_full_release, as https://sail.usc.edu/iemocap hands it out to those who sign."
RELEASE = "IEMOCAP_full_release"

DEFAULTS = LabelDefaults(
    emotions=("neutral", "happy", "angry", "sad"),
    stimulus="audiovisual",
    merge=(("excited", "happy"),),
    keep="consensus",
    folds="session",
)
WORDS = {
    "neu": "Neutral",
    "hap": "Happiness",
    "exc": "Excited",
    "ang": "Anger",
    "sad": "Sadness",
    "fru": "Frustration",
    "sur": "Surprise",
    "fea": "Fear",
    "dis": "Disgust",
    "oth": "Other",
}
NO_CONSENSUS = "xxx"
# of the full release, session by session: turns, and those whose consensus is one of the default emotions
TURNS = {"Session1": 1819, "Session2": 1811, "Session3": 2136, "Session4": 2103, "Session5": 2170}
FOUR_EMOTIONS = {"Session1": 1085, "Session2": 1023, "Session3": 1151, "Session4": 1031, "Session5": 1241}
COUNTED = frozenset({"Neutral", "Happiness", "Excited", "Anger", "Sadness"})

DIALOGUE = re.compile(r"Ses0([1-5])[FM]_(?:impro|script)\d\d(?:_\d)?[a-z]?")
TURN = re.compile(rf"({DIALOGUE.pattern})_([FM])\d{{3}}")
NUMBER = r"-?\d{1,6}(?:\.\d{1,6})?"
HEAD = re.compile(
    rf"\[({NUMBER}) - ({NUMBER})\]\t(\S+)\t(\w+)\t\[({NUMBER}), ({NUMBER}), ({NUMBER})\]\s*", flags=re.ASCII
)
RATER = re.compile(r"C-([EFM]\d{1,2}):", flags=re.ASCII)
COLUMNS = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"
SPOKEN = re.compile(rf"(\S+) \[{NUMBER}-{NUMBER}\]: ?(.*)", flags=re.ASCII)
UNTIMED = re.compile(r"[FM](?:\s*[:;]|\s)")  # "M: sorry": turns that were never cut out
UNLABELLED = re.compile(r"[FM]XX\d+$")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Turn:
    """A block of an evaluation while it is read."""

    id: str
    line: int
    consensus: str
    numbers: dict[str, float | str]
    ratings: list[Rating] = field(default_factory=list)


def read(root: Path) -> Corpus:
    """The turns of a release, or of some of its sessions, in the order of its evaluations.

    Raises:
        CorpusError: no session, no turn or no recording at all is there, or a file is no text. What concerns a line, a
            turn or a dialogue alone becomes a problem of the corpus.
    """
    if not _sessions(root) and (root / RELEASE).is_dir():
        root = root / RELEASE
    sessions = _sessions(root)
    if not sessions:
        raise CorpusError(f"No folder Session1 … Session5 in {root}. {ORIGIN}")
    problems: list[Problem] = []
    utterances: list[Utterance] = []
    for session in sessions:
        for dialogue in _dialogues(root, session, problems):
            utterances += _read_dialogue(root, session, dialogue, problems)
    if not utterances:
        raise CorpusError(f"No turn is rated in Session*/dialog/EmoEvaluation of {root}{first_of(problems)}. {ORIGIN}")
    if not any(utterance.audio for utterance in utterances):
        raise CorpusError(f"No recording of a rated turn in Session*/sentences/wav of {root}. {ORIGIN}")
    problems += _missing_turns(utterances)
    return Corpus("iemocap", root, tuple(utterances), DEFAULTS, problems=tuple(problems))


def _sessions(root: Path) -> list[str]:
    return [session for session in TURNS if (root / session).is_dir()]


def _dialogues(root: Path, session: str, problems: list[Problem]) -> list[str]:
    folder = f"{session}/dialog/EmoEvaluation"
    try:
        names = sorted(entry.name for entry in os.scandir(root / folder) if not entry.is_dir())
    except OSError as error:
        raise CorpusError(f"No folder {folder} in {root} ({error.strerror}). {ORIGIN}") from None
    found = []
    for name in names:
        stem, suffix = os.path.splitext(name)
        match = DIALOGUE.fullmatch(stem)
        if name.startswith(".") or suffix != ".txt":  # AppleDouble files and other leftovers of archives
            continue
        if match and f"Session{match[1]}" == session:
            found.append(stem)
        else:
            problems.append(Problem(f"{folder}/{name}", None, f"not named as a dialogue of {session}; left out"))
    return found


def _read_dialogue(root: Path, session: str, dialogue: str, problems: list[Problem]) -> Iterator[Utterance]:
    file = f"{session}/dialog/EmoEvaluation/{dialogue}.txt"
    turns: dict[str, _Turn] = {}
    for turn in _turns(root, file, dialogue, problems):
        if turn.id in turns:
            what = f"second block of {turn.id}, the first is in line {turns[turn.id].line}; left out"
            problems.append(Problem(file, turn.line, what))
        else:
            turns[turn.id] = turn
    words = _transcripts(root, f"{session}/dialog/transcriptions/{dialogue}.txt", problems)
    recordings = _recordings(root, f"{session}/sentences/wav/{dialogue}", turns, problems)
    unsaid = [turn for turn in turns if turn not in words]
    if words and unsaid:
        place = f"{session}/dialog/transcriptions/{dialogue}.txt"
        problems.append(Problem(place, None, f"no transcript of {len(unsaid):,} rated turns, for one {unsaid[0]}"))
    for turn in turns.values():
        speaker = f"Ses0{session[-1]}{turn.id[-4]}"
        yield Utterance(
            id=turn.id,
            audio=recordings.get(turn.id),
            transcript=words.get(turn.id, ""),
            ratings=tuple(turn.ratings),
            speaker=speaker,
            session=session,
            dialogue=dialogue,
            language="en",
            attributes={CONSENSUS: turn.consensus, **turn.numbers},
        )


def _turns(root: Path, file: str, dialogue: str, problems: list[Problem]) -> Iterator[_Turn]:
    """The blocks of an evaluation; lines that belong to none become problems."""
    turn: _Turn | None = None
    skipped = False  # whether the lines up to the next head belong to a block that is left out
    for number, line in text_lines(root / file):
        if line[:2] in ("C-", "A-") and line.rstrip().count("\t") > 2:
            what = f"more than three fields: does another line go on in this one? {line[:120]!r}"
            problems.append(Problem(file, number, what))
        if line.startswith("["):
            if turn:
                yield turn
            try:
                turn, skipped = _head(line, number, dialogue), False
            except ValueError as error:
                problems.append(Problem(file, number, f"{error}; the turn is left out"))
                turn, skipped = None, True
        elif line.startswith("C-") and (turn or skipped):
            if turn:
                problems += [Problem(file, number, what) for what in _tick(turn, line)]
        elif line.strip() and not (line.startswith("A-") and (turn or skipped)) and line.strip() != COLUMNS:
            problems.append(Problem(file, number, f"not a line of an evaluation: {line[:60]!r}; left out"))
    if turn:
        yield turn


def _head(line: str, number: int, dialogue: str) -> _Turn:
    """The turn that begins; a ValueError says what does not fit."""
    match = HEAD.fullmatch(line)
    if not match:
        raise ValueError("not [start - end], turn, emotion, [V, A, D], separated by tabs")
    start, end, turn, code, *means = match.groups()
    place = TURN.fullmatch(turn)
    if not place or place[1] != dialogue:
        raise ValueError(f"{turn!r} is not the name of a turn of {dialogue}")
    if code not in WORDS and code != NO_CONSENSUS:
        raise ValueError(f"{code!r} is not one of {[*WORDS, NO_CONSENSUS]}")
    if float(end) <= float(start):
        raise ValueError(f"the turn ends at {end} s, before it starts at {start} s")
    names = ("turn_start", "turn_end", "valence", "activation", "dominance")
    numbers: dict[str, float | str] = {n: float(v) for n, v in zip(names, (start, end, *means), strict=True)}
    return _Turn(turn, number, WORDS.get(code, ""), numbers)


def _tick(turn: _Turn, line: str) -> Iterator[str]:
    """Add the ratings of a C- line to its turn; yields what is wrong with it."""
    who, ticked, *_ = [cell.strip() for cell in line.split("\t")] + [""]
    match = RATER.fullmatch(who)
    if not match or not ticked.endswith(";"):
        yield f"not C-rater:, labels;, (comment), separated by tabs: {line[:60]!r}; left out"
        return
    rater = match[1]
    for label in filter(None, map(str.strip, ticked.split(";"))):
        rating = Rating(rater, label, source="external" if rater.startswith("E") else "self")
        if rating in turn.ratings:
            yield f"rater {rater} gives the label {label!r} twice; it counts once"
            continue
        if label not in WORDS.values():
            yield f"unknown label {label[:60]!r} of rater {rater}; kept as it is"
        turn.ratings.append(rating)


def _transcripts(root: Path, file: str, problems: list[Problem]) -> dict[str, str]:
    """Turn → what is said."""
    if not (root / file).is_file():
        problems.append(Problem(file, None, "missing; the turns of this dialogue have no transcript"))
        return {}
    words: dict[str, str] = {}
    for number, line in text_lines(root / file):
        match = SPOKEN.fullmatch(line)
        if match and match[1] in words:
            problems.append(Problem(file, number, f"second transcript of {match[1]}; the first one counts"))
        elif match and not UNLABELLED.search(match[1]):
            words[match[1]] = match[2].strip()
        elif not match and line.strip() and not UNTIMED.match(line):
            problems.append(Problem(file, number, f"not turn [start-end]: words; left out: {line[:60]!r}"))
    return words


def _recordings(root: Path, folder: str, turns: Mapping[str, _Turn], problems: list[Problem]) -> dict[str, str]:
    """Turn → path of its recording relative to the root."""
    try:
        names = {entry.name for entry in os.scandir(root / folder)}
    except OSError as error:
        what = f"no such folder ({error.strerror}); {len(turns):,} turns have no recording"
        problems.append(Problem(folder, None, what))
        return {}
    missing = [turn for turn in turns if f"{turn}.wav" not in names]
    if missing:
        problems.append(Problem(folder, None, f"{len(missing):,} rated turns have no recording, for one {missing[0]}"))
    extra = {name for name in names if name.endswith(".wav") and name[0] != "."} - {f"{turn}.wav" for turn in turns}
    if extra:
        what = f"{len(extra):,} recordings are rated by nobody, for one {min(extra)}; left out"
        problems.append(Problem(folder, None, what))
    return {turn: f"{folder}/{turn}.wav" for turn in turns if f"{turn}.wav" in names}


def _missing_turns(utterances: Sequence[Utterance]) -> Iterator[Problem]:
    """Sessions whose counts are not those of the full release."""
    turns = Counter(utterance.session for utterance in utterances)
    emotions = Counter(u.session for u in utterances if u.attributes[CONSENSUS] in COUNTED)
    for session in TURNS:
        found, in_four = turns[session], emotions[session]
        if (found, in_four) != (TURNS[session], FOUR_EMOTIONS[session]):
            what = (
                f"{found:,} rated turns, {in_four:,} of them neutral, happy, excited, angry or sad by consensus; "
                f"the full release has {TURNS[session]:,} and {FOUR_EMOTIONS[session]:,}"
            )
            _log.warning("%s: %s", session, what)
            yield Problem(session, None, what)
