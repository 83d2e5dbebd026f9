"""The words that a language model is asked in, for a distribution over the classes, or for one rater's label.

Style `aer-llm` (the paper's reference [14], AER-LLM) shows class list, transcript, acoustic description, turns before
the utterance and rated examples, and asks for a JSON object of shares. Style `rater` asks one synthetic rater for one
label. Neither reference prints its prompts in full: these are this project's own words, and so are the five foci.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Style = Literal["aer-llm", "rater"]
STYLES: tuple[Style, ...] = get_args(Style)

AER_LLM = """\
Several people heard the utterance below, and each chose the one emotion that they heard in it. They need not agree. \
Estimate which share of them chose each of these classes:
{classes}

{examples}{context}{utterance}

Answer with one JSON object alone that gives every class its share, a number from 0 to 1; the shares add up to 1:
{form}"""

RATER = """\
You are one of several people who rate the emotion of recorded speech, each for themselves. {task}
{focus}

{context}{utterance}

Which one of these classes fits best?
{classes}

Answer with that one word alone."""

# for an utterance with a recording, and for one without
TASKS = ("Listen to the recording of the utterance below.", "Read the utterance below; there is no recording of it.")
EXAMPLE = "{utterance}\nShares: {shares}"


@dataclass(frozen=True)
class Focus:
    """What a synthetic rater attends to."""

    words: str
    # whether the rater is shown what was said, then and before
    shows_transcript: bool = True


FOCI: Mapping[str, Focus] = {
    "overall": Focus("Go by your overall impression of how the speaker feels."),
    "prosody": Focus(
        "Attend to how it is said: pitch, loudness, tempo, pauses and the quality of the voice. Leave the words aside.",
        shows_transcript=False,
    ),
    "words": Focus("Attend to what is said: the words chosen, and what they tell of the speaker's feelings."),
    "situation": Focus(
        "Imagine the situation: who speaks to whom, what has happened just now, and how somebody in it would feel."
    ),
    "mixed": Focus(
        "Consider that feelings can be mixed or masked: look for one beneath the most obvious, and weigh the two."
    ),
}


@dataclass(frozen=True)
class Turn:
    """What a prompt tells of an utterance."""

    transcript: str
    has_recording: bool
    # what is measured, with its unit → how much
    acoustic: Mapping[str, float]


@dataclass(frozen=True)
class Before:
    """A turn before the utterance in its dialogue."""

    transcript: str
    # None: nobody knows
    is_same_speaker: bool | None


def ask_for_shares(
    turn: Turn,
    emotions: Sequence[str],
    *,
    context: Sequence[Before] = (),
    shots: Sequence[tuple[Turn, Iterable[float]]] = (),
) -> str:
    """The prompt of style `aer-llm`; `shots` are other utterances with their shares (C,), none: zero-shot."""
    examples = [
        EXAMPLE.format(utterance=_utterance(shot), shares=_shares(dict(zip(emotions, shares, strict=True))))
        for shot, shares in shots
    ]
    heading = "Rated utterances of other people, as examples:\n\n"
    return AER_LLM.format(
        classes=_classes(emotions),
        examples=heading + "\n\n".join(examples) + "\n\n" if examples else "",
        context=_context(context),
        utterance="The utterance:\n" + _utterance(turn),
        form=_form(emotions),
    )


def ask_for_label(turn: Turn, emotions: Sequence[str], focus: str, *, context: Sequence[Before] = ()) -> str:
    """The prompt of style `rater`, for a rater of one of the `FOCI`.

    Without a recording there is nothing but the words to go by: they are shown whatever the focus.
    """
    shown = FOCI[focus].shows_transcript or not turn.has_recording
    return RATER.format(
        task=TASKS[0] if turn.has_recording else TASKS[1],
        focus=FOCI[focus].words,
        context=_context(context) if shown else "",
        utterance="The utterance:\n" + (_utterance(turn) if shown else _acoustic(turn) or "(its recording)"),
        classes=_classes(emotions),
    )


def _utterance(turn: Turn) -> str:
    words = f"Transcript: {json.dumps(turn.transcript, ensure_ascii=False)}" if turn.transcript else "Transcript: none"
    return "\n".join(filter(None, (words, _acoustic(turn))))


def _acoustic(turn: Turn) -> str:
    known = "; ".join(f"{name} {value:.4g}" for name, value in turn.acoustic.items())
    return f"Acoustic description: {known}" if known else ""


def _context(turns: Sequence[Before]) -> str:
    who = {True: "same speaker", False: "another speaker", None: "somebody"}
    lines = [f"- {who[turn.is_same_speaker]}: {json.dumps(turn.transcript, ensure_ascii=False)}" for turn in turns]
    return "What was said before it, the last turn last:\n" + "\n".join(lines) + "\n\n" if lines else ""


def _classes(emotions: Sequence[str]) -> str:
    return ", ".join(emotions)


def _shares(shares: Mapping[str, float]) -> str:
    return json.dumps({emotion: round(float(share), 3) for emotion, share in shares.items()}, ensure_ascii=False)


def _form(emotions: Sequence[str]) -> str:
    """The object to fill in; a blank for every share, since any number would suggest itself."""
    return "{" + ", ".join(f"{json.dumps(emotion, ensure_ascii=False)}: …" for emotion in emotions) + "}"
