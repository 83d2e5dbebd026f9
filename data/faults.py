"""The problems of a release → the first of them, for the line that says why nothing of it is left."""

from __future__ import annotations

from collections.abc import Sequence

from amber2_core.utterance import Problem


def first_of(problems: Sequence[Problem]) -> str:
    """`` (votes.csv, line 3: …, and 5 more)``, empty text where there is none; those of a line go before."""
    if not problems:
        return ""
    first = next((problem for problem in problems if problem.line is not None), problems[0])
    place = first.file if first.line is None else f"{first.file}, line {first.line}"
    more = f", and {len(problems) - 1:,} more" if len(problems) > 1 else ""
    return f" ({place}: {first.what}{more})"
