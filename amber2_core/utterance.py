"""What a corpus is to this project: utterances with the raw votes of their raters, before any label policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Source = Literal["external", "self", "synthetic"]
Stimulus = Literal["audio", "video", "audiovisual"]
SOURCES: tuple[Source, ...] = get_args(Source)
STIMULI: tuple[Stimulus, ...] = get_args(Stimulus)


@dataclass(frozen=True, slots=True)
class Rating:
    """One tick of one rater. A rater who ticks two labels gives two ratings under the same `rater`."""

    # unique within one utterance and stimulus; anonymous raters are numbered ("anonymous1", "anonymous2", …)
    rater: str
    # the corpus's own word, untranslated ("Happiness", "Other-confused"); letters are spelled out by the reader
    label: str
    source: Source = "external"
    stimulus: Stimulus = "audiovisual"
    # 1 for a person's tick; the share of a label where a release gives distributions instead of votes
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Utterance:
    """One turn of speech with its transcript and the votes on it."""

    id: str
    # path of the recording, relative to the corpus root, with forward slashes; None where there is none
    audio: str | None
    transcript: str
    ratings: tuple[Rating, ...] = ()
    # empty text where the release says nothing
    speaker: str = ""
    session: str = ""
    dialogue: str = ""
    # the release's own partition ("train", "dev", "test1", …)
    split: str = ""
    # BCP 47, as far as known
    language: str = ""
    # seconds into the recording; None means from its beginning
    start: float | None = None
    # seconds; None means to the recording's end
    duration: float | None = None
    # other facts of the release: valence, activation, dominance, consensus label, …
    attributes: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a release that a reader could not use, and what it did about it."""

    # relative to the corpus root
    file: str
    # 1-based; None where the file as a whole is meant
    line: int | None
    what: str


@dataclass(frozen=True, slots=True)
class LabelDefaults:
    """How a corpus is labelled when the user does not say otherwise (see `amber2_core.votes.LabelPolicy`)."""

    # the ordered label space; the order decides ties of the largest share
    emotions: tuple[str, ...]
    stimulus: Stimulus = "audiovisual"
    # pairs (word, emotion): votes for the word count for the emotion
    merge: tuple[tuple[str, str], ...] = ()
    keep: Literal["consensus", "plurality", "majority", "any-vote"] = "any-vote"
    # the fold protocol of `train-heads --folds`
    folds: Literal["session", "speaker", "stratified", "official"] = "speaker"


@dataclass(frozen=True, slots=True)
class Corpus:
    """A release as its reader found it."""

    # the name of its reader, as given to --corpus
    name: str
    root: Path
    utterances: tuple[Utterance, ...]
    defaults: LabelDefaults
    # as far as the release tells
    version: str = ""
    problems: tuple[Problem, ...] = ()
