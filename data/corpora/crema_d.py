"""CREMA-D: a release folder → clips of acted speech with the votes on voice, face and both.

```
<root>/
├── AudioWAV/1001_DFA_ANG_XX.wav            actor _ sentence _ acted emotion _ level; 16 kHz mono, in Git LFS
├── processedResults/tabulatedVotes.csv     votes, one row per stimulus and clip
└── VideoDemographics.csv                   age, sex, race and ethnicity of the actors (may be missing)
```
https://github.com/CheyneyComputerScience/CREMA-D, Open Database License 1.0. 91 actors, 12 sentences, 7,442 clips.
Every clip was rated three times by other people: voice alone (audio), face alone (video), voice and face (audiovisual).
The table gives counts, so raters are anonymous. Every clip that has votes is an utterance; one whose recording is not
there fails where sound is asked for.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from amber2_core.errors import CorpusError
from amber2_core.utterance import STIMULI, Corpus, LabelDefaults, Problem, Rating, Stimulus, Utterance

from ..label_forms import anonymous_ratings
from ..release import Row, first_of, read_table
from ..sound import can_be_read, is_pointer

ORIGIN = "The root is a clone of https://github.com/CheyneyComputerScience/CREMA-D with its Git LFS files."

AUDIO = "AudioWAV"
VOTES = "processedResults/tabulatedVotes.csv"
ACTORS = "VideoDemographics.csv"

DEFAULTS = LabelDefaults(
    emotions=("neutral", "happy", "angry", "sad", "disgust", "fear"), stimulus="audio", keep="any-vote", folds="speaker"
)
# columns of the votes table → label
COLUMNS = {"A": "angry", "D": "disgust", "F": "fear", "H": "happy", "N": "neutral", "S": "sad"}
# the row name is mode · 100,000 + number of the clip
MODES: dict[str, Stimulus] = {"1": "audio", "2": "video", "3": "audiovisual"}
ACTED = {"ANG": "angry", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified"}
SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
CLIP = re.compile(rf"(\d{{4}})_({'|'.join(SENTENCES)})_({'|'.join(ACTED)})_({'|'.join(LEVELS)})")

SILENT = "1076_MTI_SAD_XX"  # in the release, and left out; a clip that has been mended is read
SAME_BYTES = (  # in the release
    ("1006_TIE_HAP_XX", "1006_TIE_NEU_XX"),
    ("1013_WSI_DIS_XX", "1013_WSI_SAD_XX"),
    ("1017_IWW_ANG_XX", "1017_IWW_FEA_XX"),
)
COUNT = re.compile(r"[0-9]{1,3}")
ROW_NAME = re.compile(r"([123])[0-9]{5}")

Votes = dict[str, dict[Stimulus, tuple[Rating, ...]]]


def read(root: Path) -> Corpus:
    """The clips of a release, or of a part of it, in the order of their names.

    Raises:
        CorpusError: a file is missing, cannot be parsed as a table, or no recording has votes. What concerns a row or a
            recording alone becomes a problem of the corpus.
    """
    problems: list[Problem] = []
    recordings = _recordings(root, problems)
    votes = _votes(root, problems)
    actors = _actors(root, problems)
    unrated = sorted(recordings.keys() - votes.keys())
    problems += [Problem(recordings[clip], None, f"no votes on it in {VOTES}; left out") for clip in unrated]
    if not recordings.keys() & votes.keys():
        raise CorpusError(f"No recording in {root / AUDIO} has votes in {root / VOTES}{first_of(problems)}. {ORIGIN}")
    unheard = sorted(votes.keys() - recordings.keys() - {SILENT})
    if unheard:
        what = f"{len(unheard):,} of {len(votes):,} clips with votes have no recording, for one {unheard[0]}"
        problems.append(Problem(AUDIO, None, what))
    utterances = tuple(
        _utterance(clip, recordings.get(clip), votes[clip], actors)
        for clip in sorted(votes)
        if clip in recordings or clip != SILENT
    )
    problems += _same_recordings(root, recordings)
    return Corpus("crema_d", root, utterances, DEFAULTS, problems=tuple(problems))


def _recordings(root: Path, problems: list[Problem]) -> dict[str, str]:
    """Clip → path of its recording relative to the root."""
    found: dict[str, str] = {}
    pointers = 0
    try:
        entries = sorted(os.scandir(root / AUDIO), key=lambda entry: entry.name)
    except OSError as error:
        raise CorpusError(f"No folder {AUDIO} in {root} ({error.strerror}). {ORIGIN}") from None
    for entry in entries:
        clip, suffix = os.path.splitext(entry.name)
        if entry.name.startswith(".") or suffix.lower() != ".wav":
            continue
        file = f"{AUDIO}/{entry.name}"
        if not CLIP.fullmatch(clip):
            problems.append(Problem(file, None, "not named actor_sentence_emotion_level; left out"))
        elif is_pointer(root / file):
            pointers += 1
            found[clip] = file
        elif clip == SILENT and not can_be_read(root / file):
            problems.append(Problem(file, None, "known to hold no sound in the release; left out"))
        else:
            found[clip] = file
    if pointers:
        what = f"{pointers:,} recordings are Git LFS pointers, not sound: run `git lfs pull` in the clone"
        if len(found) == pointers:
            raise CorpusError(f"{root / AUDIO}: {what}")
        problems.append(Problem(AUDIO, None, what))
    return found


def _votes(root: Path, problems: list[Problem]) -> Votes:
    """Clip → stimulus → ratings."""
    if not (root / VOTES).is_file():
        raise CorpusError(f"No file {VOTES} in {root}. {ORIGIN}")
    votes: Votes = defaultdict(dict)
    for row in read_table(root / VOTES, required=["", *COLUMNS, "fileName", "numResponses"]).rows:
        try:
            clip, stimulus, counts = _tally(row)
        except ValueError as error:
            problems.append(Problem(VOTES, row.line, f"{error}; row left out"))
            continue
        if stimulus in votes[clip]:
            problems.append(Problem(VOTES, row.line, f"second row for {clip}, {stimulus}; the first one counts"))
        else:
            votes[clip][stimulus] = anonymous_ratings(counts, stimulus=stimulus)
    return votes


def _tally(row: Row) -> tuple[str, Stimulus, dict[str, int]]:
    """The clip, the stimulus and the votes of a row; a ValueError says what does not fit."""
    clip, name, total = row.cells["fileName"], row.cells[""], row.cells["numResponses"]
    if not CLIP.fullmatch(clip):
        raise ValueError(f"{clip!r} is not the name of a clip")
    mode = ROW_NAME.fullmatch(name)
    if not mode:
        raise ValueError(f"row name {name!r} is not a mode 1, 2 or 3 and five digits")
    wrong = next((column for column in (*COLUMNS, "numResponses") if not COUNT.fullmatch(row.cells[column])), None)
    if wrong:
        raise ValueError(f"{row.cells[wrong]!r} in column {wrong} is not a count")
    counts = {label: int(row.cells[column]) for column, label in COLUMNS.items()}
    if sum(counts.values()) != int(total):
        raise ValueError(f"the votes sum to {sum(counts.values())}, numResponses says {total}")
    return clip, MODES[mode[1]], counts


def _actors(root: Path, problems: list[Problem]) -> dict[str, dict[str, float | str]]:
    """Actor → what is known of the person."""
    if not (root / ACTORS).is_file():
        problems.append(Problem(ACTORS, None, "missing; age, sex, race and ethnicity of the actors are unknown"))
        return {}
    known: dict[str, dict[str, float | str]] = {}
    for row in read_table(root / ACTORS, required=["ActorID", "Age", "Sex", "Race", "Ethnicity"]).rows:
        facts: dict[str, float | str] = {name: row.cells[name.title()] for name in ("sex", "race", "ethnicity")}
        if COUNT.fullmatch(row.cells["Age"]):
            facts["age"] = float(row.cells["Age"])
        else:
            problems.append(Problem(ACTORS, row.line, f"age {row.cells['Age']!r} is not a number; left out"))
        known[row.cells["ActorID"]] = facts
    return known


def _utterance(
    clip: str,
    recording: str | None,
    votes: Mapping[Stimulus, tuple[Rating, ...]],
    actors: Mapping[str, Mapping[str, float | str]],
) -> Utterance:
    actor, sentence, acted, level = clip.split("_")
    return Utterance(
        id=clip,
        audio=recording,
        transcript=SENTENCES[sentence],
        ratings=tuple(rating for stimulus in STIMULI for rating in votes.get(stimulus, ())),
        speaker=actor,
        language="en",
        attributes={
            "acted_emotion": ACTED[acted],
            "acted_level": LEVELS[level],
            "sentence": sentence,
            **actors.get(actor, {}),
        },
    )


def _same_recordings(root: Path, recordings: Mapping[str, str]) -> Iterator[Problem]:
    for pair in SAME_BYTES:
        files = [recordings[clip] for clip in pair if clip in recordings]
        if len(files) == 2 and (root / files[0]).read_bytes() == (root / files[1]).read_bytes():
            yield Problem(files[1], None, f"the same bytes as {files[0]}, with other votes; both kept")
