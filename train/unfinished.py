"""A sweep that can be stopped: what is asked for goes in, the folder with its finished stacks comes out.

Beside the run folder `NAME` that is to be, `NAME.unfinished` holds `unfinished.json` (the run folder's path, how many
stacks of how many are done, and all that the results depend on), the stacks (`train.parts`) and `log.txt`. The same
command finds it and goes on; when the run folder is complete, it is removed.
"""

from __future__ import annotations

import fcntl
import glob
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amber2_core.errors import RunFolderError, SettingError

from .parts import Parts

SUFFIX = ".unfinished"
Identity = Mapping[str, Any]  # what is asked for by the name that the user knows it by; JSON values only


@dataclass(frozen=True)
class Unfinished:
    """A sweep under way."""

    output: Path  # the run folder that is to be
    folder: Path
    parts: Parts

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


def earlier_output(folder: Path, name: str, identity: Identity) -> Path | None:
    """The run folder `folder`/*-`name` that an earlier, interrupted call of the same sweep was to write, if any."""
    for found in sorted(folder.glob(f"*-{glob.escape(name)}{SUFFIX}"), reverse=True):
        try:
            if _read(found)["identity"] == identity:
                return found.with_name(found.name.removesuffix(SUFFIX))
        except RunFolderError:
            continue
    return None


def new_output(folder: Path, name: str) -> Path:
    """A run folder called for the time and a name, that neither exists nor is being written."""
    moment = time.strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        output = folder / f"{moment}{f'-{number}' if number > 1 else ''}-{name}"
        if not output.exists() and not output.with_name(output.name + SUFFIX).exists():
            break
    return output


@contextmanager
def unfinished_sweep(output: Path, identity: Identity, *, stacks: int) -> Iterator[Unfinished]:
    """A folder for the finished stacks of a sweep; gone when the block ends well, or before any was finished.

    Args:
        output: the run folder that is to be.
        identity: all that the results depend on.
        stacks: how many there are in all.

    Raises:
        RunFolderError: the run folder exists, the place cannot be written, another sweep lies there, or is running; and
            for a KeyboardInterrupt after the first stack, to say how to go on.
    """
    if output.exists():
        raise RunFolderError(f"{output} exists already: name another folder with --output, or remove that one")
    folder = output.with_name(output.name + SUFFIX)
    with _locked(output, folder):
        parts = Parts(folder)
        if any(folder.iterdir()):
            _check_same(folder, identity)
        _write(folder, output, identity, stacks)
        hopeless = False
        try:
            yield Unfinished(output, folder, parts)
        except SettingError:
            hopeless = True  # the same command would end in the same way
            raise
        except KeyboardInterrupt:
            if not parts.count:
                raise
            raise RunFolderError(
                f"Stopped: {folder} holds {parts.count} of {stacks} stacks; the same command goes on from there"
            ) from None
        finally:
            if hopeless or not parts.count or output.exists():
                shutil.rmtree(folder, ignore_errors=True)
            else:
                _write(folder, output, identity, stacks)


@contextmanager
def _locked(output: Path, folder: Path) -> Iterator[None]:
    """One writer at a time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as problem:
        raise RunFolderError(f"Cannot write {output}: {problem.strerror}; choose another place with --output") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        line = f"{folder} is being written by another train-heads: wait for it, or name another --output"
        raise RunFolderError(line) from None
    try:
        yield
    finally:
        os.close(descriptor)


def _check_same(folder: Path, identity: Identity) -> None:
    """Raises RunFolderError that names what differs from the sweep in the folder."""
    there = _read(folder)["identity"]
    for name in dict.fromkeys([*there, *identity]):
        if there.get(name) != identity.get(name):
            before, now = (json.dumps(some.get(name), ensure_ascii=False) for some in (there, identity))
            raise RunFolderError(
                f"{folder} holds another sweep: its {name} is {before}, not {now}; finish it with its own command, "
                f"remove it, or name another --output"
            )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "unfinished.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["identity"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RunFolderError(f"{folder} is not a sweep that can go on: remove it, or name another --output") from None
    return record


def _write(folder: Path, output: Path, identity: Identity, stacks: int) -> None:
    record = {
        "what": f"an unfinished sweep: {Parts(folder).count} of {stacks} stacks are done; the same command goes on",
        "run folder": str(output),
        "identity": identity,
    }
    writing = folder / "unfinished.json.writing"
    try:
        writing.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(writing, folder / "unfinished.json")
    except OSError as problem:
        raise RunFolderError(f"Cannot write {output}: {problem.strerror}; choose another place with --output") from None
