"""A sweep that can be stopped: the folder beside the run folder that is to be, in which finished tasks are kept.

Beside the run folder `NAME` there is `NAME.unfinished` with `unfinished.json` (the run folder's path, how many tasks of
how many are done, and all that the results depend on), the tasks (`train.tasks`), `log.txt` and a lock. The same
command finds it and goes on; when the run folder is complete, it is removed. A shard of a sweep keeps its tasks in the
same way in `NAME.shard-3-of-16`, which stays until all shards are merged.
"""

from __future__ import annotations

import glob
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amber2_core.errors import RunFolderError, SettingError
from amber2_core.files import lock, write_json
from amber2_core.run_folder import read_settings
from amber2_core.shards import Shard, check_all, shard_of

from .tasks import FinishedTasks

SUFFIX = ".unfinished"
LOCK, LOG, RECORD = "lock", "log.txt", "unfinished.json"
Identity = Mapping[str, Any]  # what is asked for by the name that the user knows it by; JSON values only


def earlier_output(folder: Path, name: str, identity: Identity) -> Path | None:
    """The run folder `folder`/*-`name` that an earlier, interrupted call of the same sweep was to write, if any."""
    for found in sorted(folder.glob(f"*-{glob.escape(name)}{SUFFIX}"), reverse=True):
        try:
            if read_record(found)["identity"] == identity:
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
def unfinished_sweep(
    output: Path, identity: Identity, *, tasks: int, shard: Shard | None = None
) -> Iterator[FinishedTasks]:
    """The finished tasks of a sweep; their folder is gone when the run folder is there, or before any was finished.

    Args:
        output: the run folder that is to be.
        identity: all that the results depend on.
        tasks: how many there are in all, or in the shard.
        shard: the part that they are; None: all.

    Raises:
        RunFolderError: the run folder exists, the place cannot be written, another sweep lies there, or is running; and
            for a KeyboardInterrupt after the first task, to say how to go on.
    """
    check_free(output)
    folder = output.with_name(output.name + SUFFIX) if shard is None else shard.folder(output)
    with _locked(output, folder):
        finished = FinishedTasks(folder)
        # before the record of a sweep there is nothing but the lock, and perhaps what a process that was killed left
        if any(path.name != LOCK and path.suffix != ".writing" for path in folder.iterdir()):
            _check_same(folder, identity)
        _write(finished, output, identity, tasks, shard)
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
            if hopeless or finished.count == 0 < tasks or output.exists():
                shutil.rmtree(folder, ignore_errors=True)
            else:
                _write(finished, output, identity, tasks, shard)


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
    if differs := difference(read_record(folder)["identity"], identity):
        raise RunFolderError(
            f"{folder} holds another sweep: {differs}; finish it with its own command, remove it, or name another "
            "--output"
        )


def difference(one: Identity, other: Identity) -> str:
    """The first thing by which two sweeps differ, in words; "": nothing."""
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            a, b = (json.dumps(some.get(name), ensure_ascii=False) for some in (one, other))
            return f"its {name} is {a}, not {b}"
    return ""


def read_record(folder: Path) -> dict[str, Any]:
    """What a folder of finished tasks says of its sweep.

    Raises:
        RunFolderError: it is none, or damaged.
    """
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["identity"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RunFolderError(f"{folder} is not a sweep that can go on: remove it, or name another --output") from None
    return record


def check_shards(folders: Sequence[Path]) -> tuple[Identity, str]:
    """Check that these are all shards of one sweep, and finished: what its results depend on, and its device.

    Raises:
        SettingError: one is missing, named twice, or one of another number of shards.
        RunFolderError: one is no shard, is of another sweep, or is not finished.
    """
    records = dict[Path, dict[str, Any]]()
    shards = dict[Path, Shard]()
    for folder in folders:
        record = read_record(folder) if (folder / RECORD).is_file() else {}
        if (shard := shard_of(record)) is None:
            raise RunFolderError(f"{folder} is no shard of a sweep: shards are what train-heads --shard writes")
        if folder in shards:
            raise RunFolderError(f"{folder} is named twice: name each shard once")
        if differs := difference(records.get(folders[0], record)["identity"], record["identity"]):
            raise RunFolderError(f"{folders[0]} is of another sweep than {folder}: {differs}")
        records[folder], shards[folder] = record, shard
    check_all(shards, what="sweep")
    for folder, record in records.items():
        if (count := FinishedTasks(folder).count) < record["tasks"]:
            held = f"{folder} is not finished: it holds {count} of {record['tasks']} tasks"
            raise RunFolderError(f"{held}; run {shards[folder]} again, which goes on from there")
    first = folders[0]
    return records[first]["identity"], str(read_settings(first)["device"])


def _write(finished: FinishedTasks, output: Path, identity: Identity, tasks: int, shard: Shard | None) -> None:
    name = "an unfinished sweep" if shard is None else f"{shard} of a sweep"
    what = f"{name}: {finished.count} of {tasks} tasks are done; the same command goes on"
    part = {} if shard is None else {"shard": shard.record}
    record = {"what": what, "run folder": str(output), "tasks": tasks, **part, "identity": identity}
    write_json(finished.folder / RECORD, record)
