"""Every error that a user can cause or must hear of: one base, a handful of children, one line each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

# how the loader of libraries, torch and the system say that memory has run out


class Amber2Error(Exception):
    """A mistake of the user's or of the world's, told in one line: what, where, what next.

    Commands print the line and exit 1; anything else that escapes is a bug of this project.
    """


class CorpusError(Amber2Error):
    """A release is not where it was said to be, or one of its files cannot be parsed."""


class LabelError(Amber2Error):
    """Votes, label space and label policy do not fit together."""


class SettingError(Amber2Error):
    """An option, or a combination of options, has no meaning."""


class ModelError(Amber2Error):
    """An encoder cannot be loaded or used."""


class AudioError(Amber2Error):
    """A recording cannot be read or is of no use to an encoder."""


class CacheError(Amber2Error):
    """A feature cache is missing, damaged, foreign or stale."""


class RunFolderError(Amber2Error):
    """A run folder is missing, damaged, half written or foreign."""


class WorkerError(Amber2Error):
    """A process that computes died, again and again: its memory ran out, or it crashed."""


def bad_choice(what: str, value: object, expected: Iterable[object]) -> str:
    """The line for a value outside a closed set: ``Bad fusion 'sum', expected one of ['gmu', 'concat']``."""
    return f"Bad {what} {str(value)!r}, expected one of {[str(choice) for choice in expected]}"


def parse_problem(path: Path | str, line: int, problem: str) -> str:
    """The line for something that cannot be parsed: ``votes.csv, line 12: expected 22 columns, got 3``."""
    return f"{path}, line {line}: {problem}"
