"""MSP-Podcast: a release from 1.6 to 2.0 → turns of podcasts with every rater's primary label.

```
<root>/
├── Audios/MSP-PODCAST_0001_0008.wav       or Audio/
├── Labels/                                or labels/, label/
│   ├── labels_consensus.csv               FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set
│   └── labels_detailed.csv                or labels_detailed.json, or labels.txt (see amber2_data.podcast_votes)
├── Transcripts/MSP-PODCAST_0001_0008.txt  missing for some
└── Partitions.txt                         or Partition.txt: "Train; MSP-PODCAST_0001_0008.wav"
```
https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html, given to those who sign its licence. The
consensus file is spelled `labels_concensus.csv` up to 1.9. Splits are called train, dev, test1, test2, test3 here;
test3 has no labels. A rater's secondary labels are kept as text in the attribute `secondary`; they are votes where a
label policy merges them. The consensus X (no agreement) becomes an empty attribute, the speaker Unknown an empty
speaker. Raters heard the voice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from amber2_core.errors import CorpusError
from amber2_core.utterance import Corpus, LabelDefaults, Problem, Utterance
from amber2_core.votes import CONSENSUS, SECONDARY

from ..label_forms import finite_number
from ..podcast_votes import FILE_NAME, Ballot, read_ballots
from ..release import first_of, read_table, text_lines

ORIGIN = "The root is a release of MSP-Podcast, as the MSP Lab of UT Dallas hands it out to those who sign."

DEFAULTS = LabelDefaults(
    emotions=("neutral", "happy", "sad", "angry", "disgust", "fear", "surprise", "contempt"),
    stimulus="audio",
    keep="any-vote",
    folds="stratified",
)
AUDIOS, LABELS, TRANSCRIPTS = ("Audios", "Audio", "audios"), ("Labels", "labels", "label", "Label"), "Transcripts"
CONSENSUS_FILES = ("labels_consensus.csv", "labels_concensus.csv")
PARTITION_FILES = ("Partitions.txt", "Partition.txt", "partitions.txt")
CODES = {
    "A": "Angry",
    "S": "Sad",
    "H": "Happy",
    "U": "Surprise",
    "F": "Fear",
    "D": "Disgust",
    "C": "Contempt",
    "N": "Neutral",
    "O": "Other",
    "X": "",
    "": "",
}
NUMBERS = {"EmoAct": "activation", "EmoVal": "valence", "EmoDom": "dominance"}
SPLITS = {
    "train": "train",
    "development": "dev",
    "validation": "dev",
    "test1": "test1",
    "test2": "test2",
    "test3": "test3",
}
UNLABELLED = "test3"
LEAST_RATERS = 5  # of a turn in any release
# turns → release, as far as it is told by their number
VERSIONS = {151_654: "1.11", 207_136: "1.12", 264_705: "2.0"}
PODCAST = re.compile(r"(MSP-PODCAST_\d+)_")


@dataclass(slots=True)
class _Turn:
    """What the consensus and partition files say of a turn."""

    speaker: str
    split: str
    attributes: dict[str, float | str]


def read(root: Path) -> Corpus:
    """The turns of a release, in the order of its consensus file.

    Raises:
        CorpusError: there are no labels, no recordings, or a table cannot be read as one. What concerns a row or a turn
            alone becomes a problem of the corpus.
    """
    problems: list[Problem] = []
    labels = _folder(root, LABELS) or ""
    turns = _consensus(root, labels, problems)
    _add_partitions(root, labels, turns, problems)
    ballots = read_ballots(root, labels, problems)
    unknown = [stem for stem in ballots if stem not in turns]
    if unknown and turns:
        what = f"{len(unknown):,} rated turns are in no consensus or partition file, for one {unknown[0]}; kept"
        problems.append(Problem(labels or ".", None, what))
    turns.update({stem: _Turn("", "", {CONSENSUS: CODES.get(ballots[stem].consensus, "")}) for stem in unknown})
    if not ballots:
        raise CorpusError(f"Nobody rated a turn in {root / labels}{first_of(problems)}. {ORIGIN}")
    problems += _too_few_raters(labels, turns, ballots)
    recordings = _recordings(root, turns, problems)
    transcripts = dict(_transcripts(root, turns, problems))
    utterances = tuple(
        _utterance(stem, turns.pop(stem), ballots.pop(stem, None), recordings.get(stem), transcripts.pop(stem, ""))
        for stem in list(turns)
    )
    version = VERSIONS.get(len(utterances), "")
    return Corpus("msp_podcast", root, utterances, DEFAULTS, version, tuple(problems))


def _utterance(stem: str, turn: _Turn, ballot: Ballot | None, recording: str | None, transcript: str) -> Utterance:
    podcast = PODCAST.match(stem)
    secondary = {SECONDARY: "; ".join(ballot.secondary)} if ballot and ballot.secondary else {}
    return Utterance(
        id=stem,
        audio=recording,
        transcript=transcript,
        ratings=tuple(ballot.ratings) if ballot else (),
        speaker=turn.speaker,
        dialogue=podcast[1] if podcast else "",
        split=turn.split,
        language="en",
        attributes={**turn.attributes, **secondary},
    )


def _too_few_raters(labels: str, turns: Mapping[str, _Turn], ballots: Mapping[str, Ballot]) -> Iterator[Problem]:
    counts = {stem: len(ballots[stem].ratings) if stem in ballots else 0 for stem in turns}
    for few, what in (
        ([s for s, n in counts.items() if not n and turns[s].split != UNLABELLED], "are rated by nobody"),
        ([s for s, n in counts.items() if 0 < n < LEAST_RATERS], f"have fewer than {LEAST_RATERS} raters"),
    ):
        if few:
            yield Problem(labels or ".", None, f"{len(few):,} of {len(turns):,} turns {what}, for one {few[0]}")


def _folder(root: Path, names: Iterable[str]) -> str | None:
    """The first of some folders that is there; None where none is."""
    return next((name for name in names if (root / name).is_dir()), None)


def _file(root: Path, labels: str, names: Iterable[str]) -> str | None:
    """The first of some files that is there, in the folder of labels or above it, relative to the root."""
    places = [f"{folder}{name}" for name in names for folder in (f"{labels}/" if labels else "", "")]
    return next((place for place in places if (root / place).is_file()), None)


def _consensus(root: Path, labels: str, problems: list[Problem]) -> dict[str, _Turn]:
    """Stem of a recording → what the consensus file says of it."""
    file = _file(root, labels, CONSENSUS_FILES)
    if file is None:
        problems.append(Problem(f"{labels or '.'}/{CONSENSUS_FILES[0]}", None, "missing; no speakers, no consensus"))
        return {}
    turns: dict[str, _Turn] = {}
    shared: dict[str, str] = {}  # one object for each speaker and gender
    table = read_table(root / file, required=["FileName", "EmoClass"])
    for row in table.rows:
        name, code = row.cells["FileName"].strip(), row.cells["EmoClass"].strip()
        stem = name.removesuffix(".wav")
        if not FILE_NAME.fullmatch(name):
            problems.append(Problem(file, row.line, f"{name[:60]!r} is not the name of a recording; row left out"))
            continue
        if stem in turns:
            problems.append(Problem(file, row.line, f"second row for {stem}; the first one counts"))
            continue
        consensus = CODES.get(code, code if code in CODES.values() else None)
        if consensus is None:
            problems.append(Problem(file, row.line, f"class {code[:20]!r} is not one of {[*CODES][:-1]}; left empty"))
        attributes: dict[str, float | str] = {CONSENSUS: consensus or ""}
        for column, attribute in NUMBERS.items():
            text = row.cells.get(column, "").strip()
            number = finite_number(text)
            if number is not None:
                attributes[attribute] = number
            elif text and text.casefold() != "nan":
                problems.append(Problem(file, row.line, f"{text[:20]!r} in column {column} is no number; left out"))
        gender = row.cells.get("Gender", "").strip()
        if gender and gender != "Unknown":
            attributes["gender"] = shared.setdefault(gender, gender)
        speaker = row.cells.get("SpkrID", "").strip()
        speaker = "" if speaker == "Unknown" else shared.setdefault(speaker, speaker)
        split = _split(row.cells.get("Split_Set", ""), file, row.line, problems)
        turns[stem] = _Turn(speaker, split, attributes)
    return turns


def _split(text: str, file: str, line: int, problems: list[Problem]) -> str:
    name = text.strip().casefold()
    if name and name not in SPLITS:
        problems.append(Problem(file, line, f"unknown partition {text[:20]!r}; kept as it is"))
    return SPLITS.get(name, name)


def _add_partitions(root: Path, labels: str, turns: dict[str, _Turn], problems: list[Problem]) -> None:
    """Take splits, and turns without labels, from the partition file; where both say one, the consensus file counts."""
    file = _file(root, labels, PARTITION_FILES)
    if file is None:
        return
    conflicts = 0
    for number, line in text_lines(root / file):
        split, _, name = (part.strip() for part in line.partition(";"))
        name = name.rstrip("; ")
        if not line.strip():
            continue
        if not FILE_NAME.fullmatch(name):
            problems.append(Problem(file, number, f"not partition; recording: {line[:60]!r}; left out"))
            continue
        stem, known = name.removesuffix(".wav"), _split(split, file, number, problems)
        turn = turns.setdefault(stem, _Turn("", known, {CONSENSUS: ""}))
        conflicts += bool(turn.split and turn.split != known)
        turn.split = turn.split or known
    if conflicts:
        what = f"{conflicts:,} turns are in another partition than the consensus file says, which counts"
        problems.append(Problem(file, None, what))


def _recordings(root: Path, turns: Mapping[str, _Turn], problems: list[Problem]) -> dict[str, str]:
    """Stem → path of its recording relative to the root."""
    folder = _folder(root, AUDIOS)
    if folder is None:
        raise CorpusError(f"No folder {AUDIOS[0]} in {root}. {ORIGIN}")
    with os.scandir(root / folder) as entries:
        found = {e.name[:-4] for e in entries if e.name.endswith(".wav") and e.name[0] != "."}
    missing = [stem for stem in turns if stem not in found]
    if len(missing) == len(turns):
        raise CorpusError(f"Not one of {len(turns):,} turns has its recording in {root / folder}. {ORIGIN}")
    if missing:
        what = f"{len(missing):,} of {len(turns):,} turns have no recording, for one {missing[0]}"
        problems.append(Problem(folder, None, what))
    extra = sum(stem not in turns for stem in found)
    if extra:
        problems.append(Problem(folder, None, f"{extra:,} recordings are in no label or partition file; left out"))
    return {stem: f"{folder}/{stem}.wav" for stem in turns if stem in found}


def _transcripts(root: Path, turns: Mapping[str, _Turn], problems: list[Problem]) -> Iterator[tuple[str, str]]:
    try:
        with os.scandir(root / TRANSCRIPTS) as entries:
            held = {e.name[:-4] for e in entries if e.name.endswith(".txt") and e.name[0] != "."}
    except OSError as error:
        problems.append(Problem(TRANSCRIPTS, None, f"no such folder ({error.strerror}); no turn has a transcript"))
        return
    missing = [stem for stem in turns if stem not in held]
    if missing:
        what = f"{len(missing):,} of {len(turns):,} turns have no transcript, for one {missing[0]}"
        problems.append(Problem(TRANSCRIPTS, None, what))
    for stem in turns:
        if stem not in held:
            continue
        try:
            words = " ".join(line.strip() for _, line in text_lines(root / TRANSCRIPTS / f"{stem}.txt"))
        except CorpusError as error:
            what = str(error).partition(": ")[2] or str(error)
            problems.append(Problem(f"{TRANSCRIPTS}/{stem}.txt", None, f"{what}; the turn has no transcript"))
        else:
            yield stem, words.strip()
