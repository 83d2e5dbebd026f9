"""Transcripts as text: what was damaged on the way into a file that is valid all the same, told with counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from amber2_core.utterance import Problem, Utterance

# cp1252: C1 control characters become what they were in Windows' code page
Repair = Literal["cp1252"]
REPAIRS: tuple[Repair, ...] = get_args(Repair)
PLACE = "transcripts"

_BLANKS = "".join(character for character in map(chr, range(0x3001)) if character.isspace() and character != "\x85")
_C1 = re.compile("[\x80-\x9f]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BYTES = re.compile(r"""b(['"]).*\1""", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_NOTHING = re.compile(r"nan|NaN|NAN|null|<NA>|#N/A|None")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{1,7}|#x[0-9a-f]{1,6});", re.IGNORECASE)
# what UTF-8 of accented letters and of typographic marks begins with, read as cp1252 or Latin-1, and what follows
_MOJIBAKE = re.compile("[ÂÃâ][^\x00-\x7f]{1,2}")


def repaired(text: str, repair: Repair | None) -> str:
    r"""A transcript with one kind of damage undone; None leaves it as it is.

    Five bytes of cp1252 stand for nothing: their control characters stay.

    >>> repaired("the company\x92s", "cp1252")
    'the company’s'
    """
    return text if repair is None else _C1.sub(lambda match: _of_cp1252(match[0]), text)


def trimmed(text: str) -> str:
    r"""A text without surrounding blanks; U+0085 is one of them to Python, and is cp1252's ellipsis here."""
    return text.strip(_BLANKS)


def transcript_problems(utterances: Sequence[Utterance], repair: Repair | None = None) -> list[Problem]:
    """What is wrong with the transcripts of a corpus as text, each kind once, with a count and an example.

    Args:
        utterances: of the corpus.
        repair: what is undone before they are used, and so is no problem any more.
    """
    problems = []
    spoken = [(utterance.id, trimmed(repaired(utterance.transcript, repair))) for utterance in utterances]
    for is_damaged, what in _KINDS:
        found = [(id_, text) for id_, text in spoken if is_damaged(text)]
        if found:
            id_, text = found[0]
            share = f"{len(found):,} of {len(spoken):,}"
            problems.append(Problem(PLACE, None, f"{share} {what}, for one {id_!r}: {_shown(text)}"))
    return [*problems, *_without_content([text for _, text in spoken])]


def _without_content(texts: Sequence[str]) -> list[Problem]:
    different = set(texts)
    if len(texts) < 2 or len(different) > 1:
        return []
    what = f"all are {_shown(texts[0])}" if texts[0] else "all are empty"
    return [Problem(PLACE, None, f"{what}: text tells nothing of an utterance")]


def _of_cp1252(control: str) -> str:
    try:
        return control.encode("latin-1").decode("cp1252")
    except UnicodeDecodeError:
        return control


def _is_mojibake(text: str) -> bool:
    return any(_is_utf8(match[0]) for match in _MOJIBAKE.finditer(text))


def _is_utf8(text: str) -> bool:
    """Whether the first characters, as bytes of cp1252 or Latin-1, are one character of UTF-8."""
    raw = b"".join(_byte(character) for character in text)
    for size in (2, 3):
        try:
            if len(raw) >= size and len(raw[:size].decode()) == 1:
                return True
        except UnicodeDecodeError:
            continue
    return False


def _byte(character: str) -> bytes:
    for codec in ("cp1252", "latin-1"):
        try:
            return character.encode(codec)
        except UnicodeEncodeError:
            continue
    return b"?"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


_KINDS: tuple[tuple[Callable[[str], object], str], ...] = (
    (
        _C1.search,
        "hold C1 control characters, cp1252 read as Latin-1 (extract-features --repair-text cp1252 undoes it)",
    ),
    (_is_mojibake, "hold UTF-8 that was read as another code page"),
    (_CONTROL.search, "hold control characters"),
    (lambda text: "\ufffd" in text, "hold U+FFFD, the mark of characters that are lost"),
    (_BYTES.fullmatch, "are bytes as Python prints them, b'…', not text"),
    (_NUMBER.fullmatch, "are bare numbers"),
    (_NOTHING.fullmatch, "are a program's word for a missing value"),
    (_ENTITY.search, "hold HTML entities"),
)
