"""The header of a manifest → what each of its columns means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amber2_core.errors import CorpusError, parse_problem
from amber2_core.label_spaces import LABEL_SPACES
from amber2_core.votes import CONSENSUS, OTHER, SAME_WORD, canonical

# role → spellings, in lower case
NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "audio": ("audio", "wav", "file", "path", "filename", "audio_path"),
    "text": ("text", "transcript", "utterance", "raw_text", "transcription", "sentence"),
    "speaker": ("speaker", "speaker_id", "spkrid"),
    "session": ("session", "fold"),
    "dialogue": ("dialogue",),
    "split": ("split", "split_set"),
    "language": ("language",),
    "start": ("start",),
    "end": ("end",),
    "ratings": ("ratings",),
    "label": ("label", "emotion"),
    "raters": ("raters", "num_raters"),
}
REQUIRED = ("id", "audio", "text")
VOTES, DISTRIBUTION = "votes.", "distribution."
# EMO-SUPERB's tables: FileName, the classes, then these
EMO_SUPERB = ("filename", "spkrid", "split_set")
AFTER_CLASSES = ("emoact", "emoval", "emodom", "spkrid", "gender", "split_set")
# columns of these names are a distribution where nothing else is a label
WORDS = {OTHER, *SAME_WORD.values(), *(emotion for space in LABEL_SPACES.values() for emotion in space)}


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of one manifest mean."""

    role: Mapping[str, str]  # role (a key of NAMES) → column
    votes: Mapping[str, str]  # emotion → column of counts
    shares: Mapping[str, str]  # emotion → column of a distribution
    others: tuple[str, ...]  # become attributes
    is_emo_superb: bool = False  # ids are the names of recordings, shares may be smoothed, text may be missing

    def cell(self, row: Mapping[str, str], role: str) -> str:
        """The cell of a role without surrounding blanks, empty where there is no such column."""
        return row[self.role[role]].strip() if role in self.role else ""

    @property
    def has_raw_votes(self) -> bool:
        """Whether the label is more than one word."""
        return bool(self.votes or self.shares or "ratings" in self.role)


def manifest_columns(path: Path, header: Sequence[str]) -> Columns:
    """The meaning of a header.

    Raises:
        CorpusError: something is missing, said twice, or cannot name an attribute.
    """
    role: dict[str, str] = {}
    votes: dict[str, str] = {}
    shares: dict[str, str] = {}
    others: list[str] = []
    meanings = {alias: name for name, aliases in NAMES.items() for alias in aliases}
    for column in header:
        meaning = meanings.get(column.lower())
        prefix = next((p for p in (VOTES, DISTRIBUTION) if column.lower().startswith(p)), "")
        emotion, group = column[len(prefix) :].strip(), votes if prefix == VOTES else shares
        if (prefix and emotion in group) or meaning in role:
            one = group.get(emotion) or role[str(meaning)]
            raise CorpusError(parse_problem(path, 1, f"columns {one!r} and {column!r} mean the same: keep one"))
        if prefix and emotion:
            group[emotion] = column
        elif meaning:
            role[meaning] = column
        elif "/" in column or column == ".":  # an HDF5 path, as which the cache would take it
            raise CorpusError(parse_problem(path, 1, f"column {column!r} cannot name an attribute: rename it"))
        elif column:
            others.append(column)
    emo_superb = set(EMO_SUPERB) <= {column.lower() for column in header}
    if not (votes or shares or "ratings" in role or "label" in role):
        shares = {column: column for column in _class_columns(header, others, emo_superb)}
        others = [column for column in others if column not in shares]
    columns = Columns(role, votes, shares, tuple(others), is_emo_superb=emo_superb and bool(shares))
    problem = _what_is_unclear(columns)
    if problem:
        raise CorpusError(parse_problem(path, 1, problem))
    return columns


def _class_columns(header: Sequence[str], others: Sequence[str], emo_superb: bool) -> list[str]:
    """The columns that hold a distribution under the bare names of its emotions."""
    if not emo_superb:
        found = [column for column in others if canonical(column) in WORDS]
        return found if len(found) > 1 else []
    names = [column.lower() for column in header]
    first = names.index("filename") + 1
    last = min(names.index(name) for name in AFTER_CLASSES if name in names and names.index(name) >= first)
    between = [column for column in header[first:last] if column in others]
    return between if len(between) > 1 else []


def _what_is_unclear(columns: Columns) -> str:
    """What is missing in a header or said twice in it, empty text if nothing."""
    required = ("audio",) if columns.is_emo_superb else REQUIRED
    for needed in required:
        if needed not in columns.role:
            return f"no column {needed!r}, expected one of {list(NAMES[needed])}"
    forms = {
        f"{VOTES}<emotion>": columns.votes,
        f"{DISTRIBUTION}<emotion>": columns.shares,
        "ratings": "ratings" in columns.role,
    }
    said = [name for name, is_there in forms.items() if is_there]
    if len(said) > 1:
        return f"columns {said[0]} and {said[1]} both hold the votes: keep one form"
    if not said and "label" not in columns.role:
        return f"no label: expected columns {VOTES}<emotion>, {DISTRIBUTION}<emotion>, ratings or label"
    for emotions in (columns.votes, columns.shares):
        if len(emotions) == 1:
            return f"votes for one emotion alone, {next(iter(emotions))!r}: expected two or more"
    if said and "label" in columns.role and CONSENSUS in columns.others:
        return f"columns 'label' and {CONSENSUS!r} both hold the consensus: keep one"
    if "raters" in columns.role and not columns.shares:
        return f"column {columns.role['raters']!r} counts the raters of a distribution, and there is none: rename it"
    return ""
