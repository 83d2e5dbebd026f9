"""A run folder's command run again, and how the new run differs from the old one."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from amber2_core.errors import RunFolderError
from amber2_core.run_folder import axes_of, read_results, read_settings, remembered_cache

# A score differs where it is further apart than rounding leaves it: on one kind of device, and across devices.
TOLERANCE = {True: 1e-5, False: 1e-4}
# of settings.json, what no number depends on, and what is compared part by part
_ASIDE = (
    "command", "started_in", "created", "cache", "device", "format_version", "digest", "digests", "versions", "metrics",
)  # fmt: skip
_LINE = 160  # letters of a difference that is worth reading in full
_KEY = ("system", "head", "split", "fold", "seed")

Rows = dict[tuple[Any, ...], Mapping[str, Any]]


def saved_command(folder: Path) -> list[str]:
    """The words after `train-heads` that made a run folder.

    Raises:
        RunFolderError: not a run folder, or it was made from Python and has none.
    """
    command = read_settings(folder).get("command")
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        raise RunFolderError(f"{folder} has no command in its settings.json: it was made from Python, run that again")
    return command[1:]


def saved_cache(folder: Path) -> Path:
    """The cache of a run folder, where it lies now.

    Raises:
        RunFolderError: it is nowhere that the run folder tells of.
    """
    settings = read_settings(folder)
    path, _ = remembered_cache(folder, settings)
    if path is None or not path.is_file():
        started = f" in {settings['started_in']}" if settings.get("started_in") else ""
        raise RunFolderError(
            f"No feature cache at {path}, which {folder} was made from{started}: say where it is now by --cache"
        )
    return path


def from_where_it_began(folder: Path, words: Sequence[str]) -> list[str]:
    """A saved command's words, the files of --grid and --system as they are named from here."""
    base = str(read_settings(folder).get("started_in") or "")
    made, flag = list[str](), ""
    for word in words:
        is_joined = word.startswith(("--grid=", "--system="))
        option, _, value = word.partition("=") if is_joined else (flag, "", word)
        if option in ("--grid", "--system"):
            value = ",".join(_from(base, part, is_class=option == "--system") for part in value.split(","))
        made.append(f"{option}={value}" if is_joined else value)
        flag = word
    return made


def _from(base: str, part: str, *, is_class: bool) -> str:
    """A file, or a file's class, as it is named from here, if it is a file of that folder and not named in full."""
    file = part.rpartition(":")[0] if is_class else part
    is_elsewhere = base != os.getcwd() and file and os.path.isfile(os.path.join(base, file))
    return os.path.join(base, part) if is_elsewhere else part


def differences(old: Path, new: Path) -> tuple[list[str], list[str]]:
    """What of two run folders' data, settings and numbers differs, and what else is worth a line; one line each.

    Raises:
        RunFolderError: one of them is none, or damaged.
    """
    before, after = read_settings(old), read_settings(new)
    found = [*_of_data(before, after), *_of_settings(before, after)]
    is_alike = str(before.get("device")).partition(":")[0] == str(after.get("device")).partition(":")[0]
    axes = [axes_of(settings, list(settings.get("axes") or ())) for settings in (before, after)]
    rows, now = (_by_key(read_results(folder), own) for folder, own in zip((old, new), axes, strict=True))
    found += _of_scores(rows, now, TOLERANCE[is_alike])
    return found, list(_asides(before, after))


def _of_data(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    if before.get("digest") in (None, after["digest"]):
        return
    parts = after["digests"]
    changed = [name for name in parts if before.get("digests", {}).get(name, "") != parts[name]]
    yield f"data: other {', '.join(changed) if 'digests' in before else 'ids, inputs or votes'} (digest)"


def _of_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name in before:
        if name not in _ASIDE and name in after and before[name] != _as_before(before[name], after[name]):
            words = f"settings: {name} was {before[name]}, is {after[name]}"
            yield words if len(words) <= _LINE else f"settings: {name} differs"


def _as_before(before: Any, after: Any) -> Any:
    """A record without the parts that an earlier version did not know of."""
    return {key: after[key] for key in after if key in before} if isinstance(before, dict) else after


def _of_scores(before: Rows, after: Rows, tolerance: float) -> Iterator[str]:
    shared = before.keys() & after.keys()
    for one, other, words in ((before, after, "are not there now"), (after, before, "were not there")):
        if missing := len(one.keys() - other.keys()):
            yield f"results.csv: {missing} of {len(one)} rows {words}"
    chosen = sorted({key[0:1] + key[3:4] for key in shared if before[key]["selected"] != after[key]["selected"]})
    for system, fold in chosen:
        yield f"selection: dev chose another setting of {system} in fold {fold}"
    aside = {*_KEY, "selected"} | {name for key in before for name in key[len(_KEY)]}
    names = dict.fromkeys(name for rows in (before, after) for row in rows.values() for name in row)
    for name in (name for name in names if name not in aside):
        apart = {key: _apart(before[key].get(name), after[key].get(name)) for key in shared if name in before[key]}
        far = [key for key, distance in apart.items() if distance > tolerance]
        if far:
            worst = max(far, key=lambda key: (apart[key], str(key)))
            place = "{}/{} on {}, fold {}, seed {}".format(*worst[: len(_KEY)])
            yield f"{name}: {len(far)} of {len(apart)} rows differ, by {apart[worst]:.2g} at most ({place})"


def _asides(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    if before.get("digest") is None:
        yield "the earlier run has no digest: whether its data was the same, its numbers alone can tell"
    for name, now in after["versions"].items():
        if (was := before.get("versions", {}).get(name)) != now:
            yield f"{name} was {was or 'unknown'}, is {now}"
    if before.get("device") != after["device"]:
        yield f"the device was {before.get('device')}, is {after['device']}"


def _by_key(rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> Rows:
    """Rows by what they are of: system, head, split, fold, seed, and the settings, which end the key by name."""
    return {(*(row[name] for name in _KEY), tuple(axes), *(row.get(name) for name in axes)): row for row in rows}


def _apart(one: Any, other: Any) -> float:
    """How far two cells are apart: 0 where both are missing or no number, infinity where one is, or words differ."""
    numbers = [value for value in (one, other) if isinstance(value, int | float) and not math.isnan(value)]
    if len(numbers) == 2:
        return abs(numbers[0] - numbers[1])
    return 0.0 if not numbers and (one == other or one != one or other != other) else math.inf
