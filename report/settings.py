"""Rows of results.csv go in; what was set in them, what varied, what dev chose and what sets runs apart come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amber2_core.run_folder import EARLIER_AXES

from .groups import Entry
from .runs import Row, Run


def setting_of(row: Row) -> dict[str, Any]:
    """What was set in a run of results.csv, without what the system does not look at."""
    return {name: value for name, value in row.items() if name in EARLIER_AXES and value is not None}


def by_setting(rows: Sequence[Row]) -> dict[tuple[tuple[str, Any], ...], list[Row]]:
    """Rows by setting, in their order."""
    found: dict[tuple[tuple[str, Any], ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(setting_of(row).items()), []).append(row)
    return found


def varied_settings(rows: Sequence[Row]) -> list[str]:
    """The settings that take several values in these rows."""
    names = dict.fromkeys(name for row in rows for name in setting_of(row))
    return [name for name in names if len({row[name] for row in rows}) > 1]


def chosen_settings(entry: Entry) -> dict[str, str]:
    """The settings that were tested, in words; several where folds chose differently."""
    words: dict[str, dict[str, None]] = {}
    for row in entry.tested:
        for name, value in setting_of(row).items():
            words.setdefault(name, {})[str(value)] = None
    return {name: " or ".join(sorted(values)) for name, values in words.items()}


def run_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What differs between runs: setting → its words in each run."""
    words: dict[str, list[str]] = {}
    for place, run in enumerate(runs):
        for row in run.rows:
            for name, value in setting_of(row).items():
                seen = words.setdefault(name, [""] * len(runs))
                if str(value) not in seen[place].split(", "):
                    seen[place] = f"{seen[place]}, {value}".lstrip(", ")
    return {name: values for name, values in words.items() if len(set(values)) > 1}
