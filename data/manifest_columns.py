"""The header of a manifest → what each of its columns means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from amber2_core.errors import CorpusError, SettingError, bad_choice, parse_problem
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
    "stimulus": ("stimulus",),
}
VOTES, DISTRIBUTION, RATER, WEIGHT = "votes.", "distribution.", "rater.", "weight."
PREFIXES = (VOTES, DISTRIBUTION, RATER, WEIGHT)
# one column for each rater, in the words of many a lab
BARE_RATER = re.compile(r"(?:rater|annotator|coder)[ _-]?\d{1,4}", re.IGNORECASE)
# EMO-SUPERB's tables: FileName, the classes, then these
EMO_SUPERB = ("filename", "split_set")
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
    raters: Mapping[str, str] = field(default_factory=dict)  # rater → column of what that rater said
    weights: Mapping[str, str] = field(default_factory=dict)  # rater → column of what that vote weighs
    is_emo_superb: bool = False  # ids are the names of recordings, shares may be smoothed
    # the header alone does not tell: columns whose cells have to be words of raters, a stimulus, or shares
    unsure: tuple[str, ...] = ()

    def cell(self, row: Mapping[str, str], role: str) -> str:
        """The cell of a role without surrounding blanks, empty where there is no such column."""
        return row[self.role[role]].strip() if role in self.role else ""

    @property
    def has_raw_votes(self) -> bool:
        """Whether the label is more than one word."""
        return bool(self.votes or self.shares or self.raters or "ratings" in self.role)


def named_columns(options: Sequence[str]) -> dict[str, str]:
    """What a user says of columns (``id=filename``, ``rater.ann=Ann's label``) → {role: column}.

    Raises:
        SettingError: no such role, or one is named twice.
    """
    named: dict[str, str] = {}
    for option in options:
        role, sign, column = (part.strip() for part in option.partition("="))
        role = role.casefold() if role.casefold() in NAMES else role
        if not sign or not column:
            raise SettingError(f"Bad column {option!r}, expected a role and a column such as id=filename")
        if role not in NAMES and not any(role.startswith(prefix) and role != prefix for prefix in PREFIXES):
            choices = [*NAMES, *(f"{prefix}NAME" for prefix in PREFIXES)]
            raise SettingError(f"{bad_choice('column role', role, choices)}: any other column keeps its own name")
        if role in named:
            raise SettingError(f"Bad column {option!r}: {role!r} is {named[role]!r} already")
        named[role] = column
    return named


def manifest_columns(path: Path, header: Sequence[str], named: Mapping[str, str] | None = None) -> Columns:
    """The meaning of a header.

    Args:
        path: what messages name.
        header: of the table.
        named: role → column, where the user says so; such a column may have a second role by its name.

    Raises:
        CorpusError: something is missing, said twice, or cannot name an attribute.
    """
    names = [column.lower() for column in header]
    if names[:1] == [""] and "filename" not in names and {"spkrid", "split_set"} <= set(names):
        names[0] = "filename"  # EMO-SUPERB's table of NNIME
    role, groups = _as_named(path, header, named or {})
    taken = {*role.values(), *(column for group in groups.values() for column in group.values())}
    said = set(role)
    others: list[str] = []
    meanings = {alias: name for name, aliases in NAMES.items() for alias in aliases}
    for column, name in zip(header, names, strict=True):
        meaning = meanings.get(name)
        prefix = next((p for p in PREFIXES if name.startswith(p)), "")
        word = column[len(prefix) :].strip() if prefix else ""
        if column in taken or meaning in said:
            if meaning and meaning not in role:
                role[meaning] = column
            elif column and column not in taken:
                others.append(column)
            continue
        if (word and word in groups[prefix]) or meaning in role:
            one = groups[prefix][word] if word else role[str(meaning)]
            hint = "keep one" if word else f"keep one, or say which by --column {meaning}={column}"
            raise CorpusError(parse_problem(path, 1, f"columns {one!r} and {column!r} mean the same: {hint}"))
        if word:
            groups[prefix][word] = column
        elif meaning:
            role[meaning] = column
        elif "/" in column or column == ".":  # an HDF5 path, as which the cache would take it
            raise CorpusError(parse_problem(path, 1, f"column {column!r} cannot name an attribute: rename it"))
        elif column:
            others.append(column)
    plain = Columns(role, groups[VOTES], groups[DISTRIBUTION], tuple(others), groups[RATER], groups[WEIGHT])
    columns = _with_unsure(_with_classes(names, header, plain), said)
    check_columns(path, columns)
    return columns


def check_columns(path: Path, columns: Columns) -> None:
    """See that a manifest says what it must, and says it once.

    Raises:
        CorpusError: it does not.
    """
    problem = _what_is_unclear(columns)
    if problem:
        raise CorpusError(parse_problem(path, 1, problem))


def settled(columns: Columns, are: Mapping[str, bool]) -> Columns:
    """The columns once their cells are known.

    Args:
        columns: of a header.
        are: unsure column → whether its cells are what its name says.
    """
    wrong = {column for column, is_right in are.items() if not is_right}
    counts = {emotion: column for emotion, column in columns.shares.items() if column in wrong}
    is_rated = not wrong & set(columns.raters.values())
    role = {name: column for name, column in columns.role.items() if column not in wrong}
    attributes = wrong - set(counts.values())
    return replace(
        columns,
        role=role,
        raters=columns.raters if is_rated else {},
        votes={**columns.votes, **columns.shares} if counts else columns.votes,
        shares={} if counts else columns.shares,
        others=(*columns.others, *sorted(attributes | (set() if is_rated else set(columns.raters.values())))),
        unsure=(),
    )


def _as_named(
    path: Path, header: Sequence[str], named: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What the user says: roles, and by prefix the columns of emotions and raters."""
    role: dict[str, str] = {}
    groups: dict[str, dict[str, str]] = {prefix: {} for prefix in PREFIXES}
    folded = {column.casefold(): column for column in header}
    for name, wanted in named.items():
        column = wanted if wanted in header else folded.get(wanted.casefold())
        if column is None:
            raise CorpusError(parse_problem(path, 1, f"no column {wanted!r} for {name!r}, the header is {[*header]}"))
        prefix = next((p for p in PREFIXES if name.startswith(p)), "")
        (groups[prefix] if prefix else role)[name[len(prefix) :]] = column
    return role, groups


def _with_classes(names: Sequence[str], header: Sequence[str], columns: Columns) -> Columns:
    """The columns with a distribution under the bare names of its emotions, where nothing else is a label."""
    if columns.has_raw_votes or "label" in columns.role:
        return columns
    classes, is_emo_superb = _class_columns(names, header, columns.others)
    return replace(
        columns,
        shares={column: column for column in classes},
        others=tuple(column for column in columns.others if column not in classes),
        is_emo_superb=is_emo_superb,
        unsure=() if is_emo_superb else tuple(classes),
    )


def _class_columns(names: Sequence[str], header: Sequence[str], others: Sequence[str]) -> tuple[list[str], bool]:
    """The columns that hold a distribution under the bare names of its emotions, and whether they are EMO-SUPERB's."""
    if set(EMO_SUPERB) <= set(names):
        first = names.index("filename") + 1
        last = min(names.index(name) for name in AFTER_CLASSES if name in names and names.index(name) >= first)
        between = [column for column in header[first:last] if column in others]
        # without speakers it is the challenge's table, if it is one
        if len(between) > 1 and ("spkrid" in names or all(canonical(column) in WORDS for column in between)):
            return between, True
    found = [column for column in others if canonical(column) in WORDS]
    return (found, False) if len(found) > 1 else ([], False)


def _with_unsure(columns: Columns, said: set[str]) -> Columns:
    """The columns with those marked of which the cells have to tell what they are."""
    unsure = [*columns.unsure]
    if "stimulus" in columns.role and "stimulus" not in said:
        unsure.append(columns.role["stimulus"])
    if not columns.has_raw_votes:
        bare = [column for column in columns.others if BARE_RATER.fullmatch(column)]
        others = tuple(column for column in columns.others if column not in bare)
        columns = replace(columns, raters={column: column for column in bare}, others=others)
        unsure += bare
    rated = {rater: column for rater, column in columns.weights.items() if rater in columns.raters}
    strays = tuple(column for rater, column in columns.weights.items() if rater not in columns.raters)
    return replace(columns, weights=rated, others=(*columns.others, *strays), unsure=tuple(unsure))


def _what_is_unclear(columns: Columns) -> str:
    """What is missing in a header or said twice in it, empty text if nothing."""
    if "audio" not in columns.role:
        return f"no column 'audio', expected one of {[*NAMES['audio']]}, or --column audio=…"
    forms = {
        f"{VOTES}<emotion>": columns.votes,
        f"{DISTRIBUTION}<emotion>": columns.shares,
        f"{RATER}<name>": columns.raters,
        "ratings": "ratings" in columns.role,
    }
    said = [name for name, is_there in forms.items() if is_there]
    if len(said) > 1:
        return f"columns {said[0]} and {said[1]} both hold the votes: keep one form"
    if not said and "label" not in columns.role:
        return (
            f"no label: expected columns {VOTES}<emotion>, {DISTRIBUTION}<emotion>, ratings or label, or "
            f"{RATER}<name> or rater1, rater2, … for what each rater said"
        )
    for emotions in (columns.votes, columns.shares):
        if len(emotions) == 1:
            return f"votes for one emotion alone, {next(iter(emotions))!r}: expected two or more"
    if said and "label" in columns.role and CONSENSUS in columns.others:
        return f"columns 'label' and {CONSENSUS!r} both hold the consensus: keep one"
    if "raters" in columns.role and not columns.shares:
        return f"column {columns.role['raters']!r} counts the raters of a distribution, and there is none: rename it"
    return ""
