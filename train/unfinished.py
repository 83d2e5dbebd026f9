"""A sweep that can be stopped: the folder beside the run folder that is to be, in which finished tasks are kept.

Beside the run folder `NAME` there is `NAME.unfinished` with `unfinished.json` (the run folder's path, how many tasks of
how many are done, and all that the results depend on), the tasks (`train.tasks`), `log.txt` and a lock. The same
command finds it and goes on; when the run folder is complete, it is removed.
"""

from __future__ import annotations

import glob
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amber2_core.errors import RunFolderError, SettingError
from amber2_core.files import lock, write_json

from .tasks import FinishedTasks

SUFFIX = ".unfinished"
LOCK, LOG = "lock", "log.txt"
Identity = Mapping[str, Any]  # what is asked for by the name that the user knows it by; JSON values only


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


def check_free(output: Path) -> None:
    """Raises RunFolderError where something is called so already."""
    if output.exists():
        raise RunFolderError(f"{output} exists already: name another folder with --output, or remove that one")


@contextmanager
def unfinished_sweep(output: Path, identity: Identity, *, tasks: int) -> Iterator[FinishedTasks]:
    """The finished tasks of a sweep; their folder is gone when the block ends well, or before any was finished.

    Args:
        output: the run folder that is to be.
        identity: all that the results depend on.
        tasks: how many there are in all.

    Raises:
        RunFolderError: the run folder exists, the place cannot be written, another sweep lies there, or is running; and
            for a KeyboardInterrupt after the first task, to say how to go on.
    """
    check_free(output)
    folder = output.with_name(output.name + SUFFIX)
    with _locked(output, folder):
        finished = FinishedTasks(folder)
        # before the record of a sweep there is nothing but the lock, and perhaps what a process that was killed left
        if any(path.name != LOCK and path.suffix != ".writing" for path in folder.iterdir()):
            _check_same(folder, identity)
        _write(finished, output, identity, tasks)
        hopeless = False
        try:
            yield finished
        except SettingError:
            hopeless = True  # the same command would end in the same way
            raise
        except KeyboardInterrupt:
            if not finished.count:
                raise
            raise RunFolderError(
                f"Stopped: {folder} holds {finished.count} of {tasks} tasks; the same command goes on from there"
            ) from None
        finally:
            if hopeless or not finished.count or output.exists():
                shutil.rmtree(folder, ignore_errors=True)
            else:
                _write(finished, output, identity, tasks)


@contextmanager
def _locked(output: Path, folder: Path) -> Iterator[None]:
    """One writer at a time."""
    try:
        with lock(folder / LOCK):
            yield
    except BlockingIOError as problem:
        line = f"{folder} is {problem.strerror}: wait for it, or name another --output"
        raise RunFolderError(line) from None
    except OSError as problem:
        raise RunFolderError(f"Cannot write {output}: {problem.strerror}; choose another place with --output") from None


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


def _write(finished: FinishedTasks, output: Path, identity: Identity, tasks: int) -> None:
    what = f"an unfinished sweep: {finished.count} of {tasks} tasks are done; the same command goes on"
    write_json(finished.folder / "unfinished.json", {"what": what, "run folder": str(output), "identity": identity})
