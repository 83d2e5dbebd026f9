"""M3ED: the annotations of a release, beside recordings cut by utterance → Chinese dialogues with three real raters.

```
<root>/
├── annotation.json                       {movie: {clip: {"Dialog": {utterance: {…, "EmoAnnotation": {…}}}}}}
├── splitInfo/movie_list_train.txt        also _val and _test: one movie a line; may be missing
└── wav/<utterance>.wav                   or wav/<movie>/<utterance>.wav; .mp4 and others are read, too
```
https://github.com/AIM3-RUC/RUCM3ED, given for research to those who ask. An utterance:
```
"A_1_1": {"StartTime": "00:00:05:12", "EndTime": "00:00:07:03", "Text": "…", "Speaker": "A", "EmoAnnotation":
  {"EmoAnnotator1": "Happy", "EmoAnnotator2": "Happy,Surprise", "EmoAnnotator3": "Neutral", "final_mul_emo": "…",
   "final_main_emo": "Happy"}}
```
Each annotator is a rater, who may tick several emotions; `final_main_emo` is the consensus. Raters saw and heard the
scene.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amber2_core.errors import CorpusError
from amber2_core.utterance import Corpus, LabelDefaults, Problem, Rating, Utterance
from amber2_core.votes import CONSENSUS

from ..release import first_of, json_members, text_lines
from ..sound import recordings_among

ORIGIN = "The root is a folder with M3ED's annotation.json and wav/, see https://github.com/AIM3-RUC/RUCM3ED."

ANNOTATIONS, AUDIO = "annotation.json", "wav"
SPLITS = {"train": "train", "val": "dev", "test": "test"}
EMOTIONS = ("Neutral", "Happy", "Sad", "Anger", "Surprise", "Disgust", "Fear")
DEFAULTS = LabelDefaults(
    emotions=("neutral", "happy", "sad", "angry", "surprise", "disgust", "fear"),
    stimulus="audiovisual",
    keep="any-vote",
    folds="speaker",
)
RATER = re.compile(r"EmoAnnotator(\d{1,2})")
RATERS = 3
SUMMARIES = ("final_mul_emo", "final_main_emo")
NAME = re.compile(r"[\w.-]{1,200}")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def read(root: Path) -> Corpus:
    """The utterances of the annotations, in their order.

    Raises:
        CorpusError: there are no annotations, they are no JSON of that shape, or no recording is there. What concerns
            an utterance alone becomes a problem of the corpus.
    """
    problems: list[Problem] = []
    splits = _splits(root, problems)
    recordings = _recordings(root)
    utterances: dict[str, Utterance] = {}
    for line, movie, clips in json_members(root / ANNOTATIONS):
        try:
            entries = list(_entries(movie, clips))
        except ValueError as error:
            problems.append(Problem(ANNOTATIONS, line, f"movie {movie[:60]!r}: {error}; left out"))
            continue
        for clip, name, entry in entries:
            try:
                if name in utterances:
                    raise ValueError("the name stands there already")
                wrong: list[str] = []
                utterances[name] = _utterance(movie, clip, name, entry, splits.get(movie, ""), recordings, wrong)
                problems += [Problem(ANNOTATIONS, line, f"{name}: {what}") for what in wrong]
            except ValueError as error:
                problems.append(Problem(ANNOTATIONS, line, f"utterance {name[:60]!r} of {movie}: {error}; left out"))
    if not utterances:
        raise CorpusError(f"No utterance in {root / ANNOTATIONS}{first_of(problems)}. {ORIGIN}")
    silent = [name for name, utterance in utterances.items() if utterance.audio is None]
    if len(silent) == len(utterances):
        raise CorpusError(
            f"No recording of an utterance in {root / AUDIO}: cut the videos into <utterance>.mp4 or .wav"
        )
    if silent:
        what = f"{len(silent):,} of {len(utterances):,} utterances have no recording, for one {silent[0]}"
        problems.append(Problem(AUDIO, None, what))
    extra = recordings.keys() - utterances.keys()
    if extra:
        what = f"{len(extra):,} recordings are annotated by nobody, for one {min(extra)}; left out"
        problems.append(Problem(AUDIO, None, what))
    return Corpus("m3ed", root, tuple(utterances.values()), DEFAULTS, problems=tuple(problems))


def _entries(movie: str, clips: Any) -> Iterator[tuple[str, str, Any]]:
    """(clip, name, entry) of the utterances of a movie; a ValueError says what is not as it should be."""
    if not NAME.fullmatch(movie) or not isinstance(clips, dict):
        raise ValueError("not the name of a movie with an object of clips")
    for clip, content in clips.items():
        dialogue = content.get("Dialog") if isinstance(content, dict) else None
        if not isinstance(dialogue, dict) or not NAME.fullmatch(clip):
            raise ValueError(f"clip {clip[:60]!r} has no object Dialog")
        yield from ((clip, name, entry) for name, entry in dialogue.items())


def _utterance(
    movie: str, clip: str, name: str, entry: Any, split: str, recordings: dict[str, str], wrong: list[str]
) -> Utterance:
    annotation = entry.get("EmoAnnotation") if isinstance(entry, dict) else None
    if not isinstance(annotation, dict) or not NAME.fullmatch(name):
        raise ValueError("no name, or no object EmoAnnotation")
    ratings: list[Rating] = []
    for key, ticked in annotation.items():
        match = RATER.fullmatch(key)
        if not match:
            if key not in SUMMARIES:
                wrong.append(f"unknown key {key[:40]!r} in EmoAnnotation; left out")
            continue
        for label in filter(None, map(str.strip, re.split("[,;/]", _text(key, ticked)))):
            rating = Rating(f"annotator{match[1]}", label)
            if label not in EMOTIONS:
                wrong.append(f"unknown label {label[:40]!r} of {key}; kept as it is")
            if rating not in ratings:
                ratings.append(rating)
    raters = len({rating.rater for rating in ratings})
    if raters != RATERS:
        wrong.append(f"{raters} raters, expected {RATERS}")
    speaker = _text("Speaker", entry.get("Speaker"))
    attributes = {
        CONSENSUS: _text("final_main_emo", annotation.get("final_main_emo")),
        "start_time": _text("StartTime", entry.get("StartTime")),
        "end_time": _text("EndTime", entry.get("EndTime")),
    }
    return Utterance(
        id=name,
        audio=recordings.get(name),
        transcript=_text("Text", entry.get("Text")),
        ratings=tuple(ratings),
        speaker=f"{movie}_{speaker}" if speaker else "",
        dialogue=clip,
        split=split,
        language="zh",
        attributes={key: value for key, value in attributes.items() if value or key == CONSENSUS},
    )


def _text(name: str, value: Any) -> str:
    """A text, empty for null; a ValueError for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str) or UNSTORABLE.search(value):
        raise ValueError(f"{name} is no text")
    return value.strip()


def _splits(root: Path, problems: list[Problem]) -> dict[str, str]:
    """Movie → split."""
    splits: dict[str, str] = {}
    for name, split in SPLITS.items():
        file = f"splitInfo/movie_list_{name}.txt"
        if not (root / file).is_file():
            problems.append(Problem(file, None, "missing; the movies of this split are not known"))
            continue
        for number, line in text_lines(root / file):
            movie = line.strip()
            if splits.setdefault(movie, split) != split:
                problems.append(Problem(file, number, f"{movie[:60]!r} is of {splits[movie]} already, which counts"))
    return splits


def _recordings(root: Path) -> dict[str, str]:
    """Utterance → its recording relative to the root."""
    found: dict[str, str] = {}
    for folder, _, names in sorted(os.walk(root / AUDIO)):
        inside = Path(folder).relative_to(root).as_posix()
        for stem, name in recordings_among(names).items():
            found.setdefault(stem, f"{inside}/{name}")
    return found
