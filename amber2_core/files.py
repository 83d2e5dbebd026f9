"""Files and folders that stand under their names only when they are complete, and locks that keep writers apart.

What is here raises OSError; a command's own words for it are its caller's. Whatever a writer or a library makes of
permissions, files and folders end with those that the user's umask gives.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

# how flock, and the sync of a folder, say that a file system has no such thing
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_ATTEMPTS = 100
_LONGEST = 230  # bytes of a name that leave room for what marks a file that is being written; 255 are allowed

_log = logging.getLogger(__name__)


def cache_folder(named: Path | None = None) -> Path:
    """Where caches lie: in the folder that is named, else in AMBER2_CACHE_DIR, else in ./cache."""
    return named or Path(os.environ.get("AMBER2_CACHE_DIR") or "cache")


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hex.

    Raises:
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        # To open a pipe is to wait for its other end.
        raise OSError(errno.EINVAL, "is a folder, a pipe or a device, not a file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file under; when the block ends well, and the disk has it, it is called `path`.

    An older file keeps the name until then. Whatever goes wrong, nothing of the new one is left. Where `path` is a
    symbolic link, that is of the file that it leads to, and the link stays. A writer that chooses
    names by their endings, as `numpy.savez` does, is to be given an open file.

    Raises:
        OSError: the folder cannot be made or written, the disk is full, …; FileExistsError where the folder is a file.
    """
    path = behind_links(path)
    writing = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writing.touch(exist_ok=False)
        mode = writing.stat().st_mode
        yield writing
        _permit(writing, mode)
        sync(writing)
        os.replace(writing, path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            writing.unlink()


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """A folder to write in; when the block ends well, and the disk has all of it, it is called `path`, else it is gone.

    Raises:
        FileExistsError: something is called so already.
        OSError: the place cannot be written, the disk is full, …
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    path = behind_links(path)
    writing = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writing.mkdir()
        mode = writing.stat().st_mode & 0o666
        yield writing
        for entry in [*writing.rglob("*"), writing]:
            if entry.is_file():
                _permit(entry, mode)
            sync(entry)
        writing.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def behind_links(path: Path) -> Path:
    """What a symbolic link leads to, also where nothing is there yet; any other path as it is.

    Where something stands under several names, this is the one to lock.
    """
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, complete or not at all. OSError: as `written_whole`.

    What is not a character, such as a byte of a file's name that is not UTF-8, is written as its escape, ``\\udce9``,
    which JSON reads back as it was.
    """
    with written_whole(path) as writing:
        writing.write_bytes(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, complete or not at all; a path whose bytes are no UTF-8 reads back as it is.

    Raises:
        OSError: as `written_whole`.
        ValueError: it holds NaN or infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    if not _is_unicode(text):
        text = json.dumps(value, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno not in _NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file, which is made with its folder where it is missing; only one process can hold it at a time.

    The hold is the operating system's and ends with the process, however that ends. The file stays, and says who held
    it last; a holder that is through with the folder may remove it as a whole inside the block. Where the file system
    has no locks, the work goes on, with a warning that the user must see to it now.

    Raises:
        BlockingIOError: another process holds it; `strerror` is "being written by process 12 on node3".
        OSError: the file cannot be made.
    """
    descriptor = _locked(path)
    try:
        yield
    finally:
        os.close(descriptor)


class Sink(io.FileIO):
    """A file for HDF5 to write to, which on its own crashes, or fills the screen, when the disk is full.

    It hides failures from its writer until the end of its `with` block, which then raises the first.

    Raises:
        OSError: at the end of the block: the disk is full, the network has gone, …
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of the data, or nothing more once something failed; the writer always hears that all went well."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.failure is None:
                rest = rest[super().write(rest) :]
        except OSError as failure:
            self.failure = failure
        return size

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file."""
        try:
            return super().truncate(size)
        except OSError as failure:
            self.failure = self.failure or failure
            return size or 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        super().__exit__(kind, error, at)
        # what the writer made of the failure afterwards is of no interest; an interruption by the user is
        if self.failure is not None and (error is None or isinstance(error, Exception)):
            raise self.failure


def _is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8: bytes of a path that are none stand in it as halves of letters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _beside(path: Path) -> Path:
    name = os.fsdecode(os.fsencode(path.name)[:_LONGEST])
    return path.with_name(f".{name}.{uuid4().hex[:8]}.writing")


def _permit(file: Path, mode: int) -> None:
    """Undo what a library that makes its files for the user alone did to one."""
    if (file.stat().st_mode ^ mode) & 0o777:
        file.chmod(mode & 0o777)


def _locked(path: Path) -> int:
    """A descriptor of a lock file, locked, that says who holds it."""
    while True:
        descriptor = _lock_file(path)
        try:
            _flock(descriptor, path)
        except OSError as problem:
            holder = _holder(descriptor) if isinstance(problem, BlockingIOError) else ""
            os.close(descriptor)
            if holder:
                raise BlockingIOError(problem.errno, f"being written by {holder}", str(path)) from None
            raise
        if _is_same_file(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
            return descriptor
        os.close(descriptor)  # its last holder removed the folder between the opening and the locking


def _flock(descriptor: int, path: Path) -> None:
    try:
        import fcntl  # Windows has none

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ImportError) as problem:
        if isinstance(problem, OSError) and problem.errno not in _NO_LOCKS:
            raise
        _log.warning("%s: no locks on this file system; see to it that no second command writes there", path.parent)


def _lock_file(path: Path) -> int:
    """A descriptor of the lock file, made where there is none. Written to, because NFS locks nothing else."""
    attempts = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileExistsError, FileNotFoundError):
            # a holder that finishes removes the folder, perhaps in the midst of this
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
