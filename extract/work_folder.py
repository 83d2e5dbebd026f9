"""The path of an output goes in; a folder beside it for work in progress, which one process alone holds, comes out."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from amber2_core.errors import CacheError

_LOCK = "lock"
_ATTEMPTS = 100


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """The folder for work in progress beside `output`, held by this process alone; removed when nothing is left in it.

    The hold is the operating system's lock on a file: it ends with the process, however that ends.

    Raises:
        CacheError: another process holds it (the line says which), or it cannot be made.
    """
    folder = output.with_name(f"{output.name}.parts")
    try:
        lock = _locked(folder, output)
    except OSError as problem:
        place = "choose another place with --output"
        raise CacheError(f"Cannot write {output}: {problem.strerror or problem}; {place}") from None
    try:
        yield folder
    finally:
        # Where the disk has gone, whoever found that out tells of it.
        with suppress(OSError):
            if not any(folder.glob("*/*.npz")):
                # Before the lock is let go: who waits for it then finds the folder gone and makes a new one.
                shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path, output: Path) -> int:
    """A descriptor of the folder's lock file, locked."""
    while True:
        descriptor = _lock_file(folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            line = f"{output} is being written by {holder}: wait for it, or choose another --output"
            raise CacheError(line) from None
        if _is_same_file(descriptor, folder / _LOCK):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
            return descriptor
        # Its last holder removed the folder between the opening and the locking.
        os.close(descriptor)


def _lock_file(folder: Path) -> int:
    """A descriptor of the lock file, made where there is none."""
    attempts = 0
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileExistsError, FileNotFoundError):
            # A holder that finishes removes the folder, perhaps in the midst of this.
            attempts += 1
            if attempts == _ATTEMPTS:
                raise


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """Who holds the lock. A holder writes its name right after it has locked: it is given a moment to do so."""
    for _ in range(_ATTEMPTS):
        try:
            record: dict[str, Any] = json.loads(os.pread(descriptor, 1000, 0))
            return f"process {record['process']} on {record['host']}"
        except (ValueError, KeyError):
            time.sleep(0.01)
    return "another process"
