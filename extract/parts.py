"""Encoded rows go in as they are finished; after a kill at any moment all rows but the last few are still there.

Beside ``cache.h5``, while it is being made, stands the folder ``cache.h5.parts``: one folder per recipe, in it numbered
files of finished rows, each closed and brought to the disk before it gets its name. Rows are found by the digest of
what they were encoded from, so that it does not matter which utterances, or in what order, a second call asks for.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.cache import sync
from amber2_core.errors import CacheError

from .encoded import Encoded, Sequences, join

Matrix = npt.NDArray[np.float32]

# A part is written when its rows are this large, or this old: what a kill can cost.
PART_BYTES = 8 * 2**20
PART_SECONDS = 20.0

_LOCK = "lock"
_ATTEMPTS = 100

_log = logging.getLogger(__name__)


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
        if not any(folder.glob("*/*.npz")):
            # Before the lock is let go: who waits for it then finds the folder gone and makes a new one.
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


class Parts:
    """The finished rows of one recipe."""

    def __init__(self, folder: Path, *, anew: bool = False) -> None:
        """Take up what an earlier call left in `folder`; what was not finished, or all of it if `anew`, is removed.

        Raises:
            CacheError: the folder cannot be written.
        """
        self._folder = folder
        self._places: dict[str, tuple[Path, int]] = {}
        # bins of each row's sequence; empty where only vectors are kept
        self.bins: dict[str, int] = {}
        self._waiting: list[tuple[Sequence[str], Encoded]] = []
        self._began = time.monotonic()
        # of one row; () until there is one
        self.row_shape: tuple[int, ...] = ()
        with self._writing():
            if anew and folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob("*.writing"):
                leftover.unlink()
            for path in sorted(folder.glob("*.npz")):
                self._take_up(path)

    def __contains__(self, digest: object) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, digests: Sequence[str], rows: Encoded) -> None:
        """Keep rows; they reach the disk with the next part at the latest.

        Raises:
            CacheError: the disk is full, or has gone.
        """
        self._waiting.append((digests, rows))
        size = sum(given.nbytes for _, given in self._waiting)
        if size >= PART_BYTES or time.monotonic() - self._began >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring all rows to the disk.

        Raises:
            CacheError: the disk is full, or has gone.
        """
        if self._waiting:
            digests = [digest for given, _ in self._waiting for digest in given]
            rows = join([given for _, given in self._waiting])
            with self._writing():
                path = self._write(digests, rows)
            self._add(path, digests, rows)
            self._waiting.clear()
        self._began = time.monotonic()

    def fill(
        self, matrix: Matrix, rows: Mapping[str, Sequence[int]], *, frames: Matrix | None = None, offsets: Any = None
    ) -> None:
        """Copy finished rows into `matrix`: what was encoded from `digest` into each of `rows[digest]`.

        Args:
            matrix: (N, D) or (N, layers + 1, D).
            rows: digest → rows of `matrix`.
            frames: (ΣT, D); takes the sequences, that of row i from `offsets[i]` on.
            offsets: (N + 1,).
        """
        wanted: dict[Path, list[tuple[int, Sequence[int]]]] = {}
        for digest, targets in rows.items():
            path, row = self._places[digest]
            wanted.setdefault(path, []).append((row, targets))
        for path, pairs in wanted.items():
            _, part = _read(path)
            for row, targets in pairs:
                matrix[list(targets)] = part.values[row]
                if frames is not None and part.frames is not None:
                    for target in targets:
                        frames[offsets[target] : offsets[target + 1]] = part.frames[row]

    def matrix(self, name: str, shape: tuple[int, ...]) -> Matrix:
        """An array of NaN that lies in a file among the parts, so that a large one need not fit into memory.

        Raises:
            CacheError: the disk has no room for it.
        """
        path = self._folder / f"{name}.writing"
        with self._writing():
            with path.open("wb") as file:
                size = max(1, 4 * math.prod(shape))
                # All of it now: a mapped file that finds no room later would end the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
            array: Matrix = np.memmap(path, dtype=np.float32, mode="r+", shape=shape)
        array.fill(np.nan)
        return array

    def remove(self) -> None:
        """Delete all parts: their rows stand in the cache now."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._places.clear()

    def _take_up(self, path: Path) -> None:
        try:
            digests, rows = _read(path)
        except Exception as problem:  # a damaged zip file raises errors of every kind
            _log.warning("%s is damaged (%s): its rows are encoded again", path, problem)
            path.unlink()
            return
        self._add(path, digests, rows)

    def _add(self, path: Path, digests: Sequence[str], rows: Encoded) -> None:
        self.row_shape = rows.values.shape[1:]
        self._places.update({digest: (path, row) for row, digest in enumerate(digests)})
        if rows.frames is not None:
            self.bins.update(zip(digests, map(len, rows.frames), strict=True))

    def _write(self, digests: Sequence[str], rows: Encoded) -> Path:
        number = 1 + max((int(path.stem) for path in self._folder.glob("*.npz")), default=0)
        path = self._folder / f"{number:06d}.npz"
        temporary = path.with_suffix(".writing")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, inputs=np.array(digests), values=rows.values, **_as_arrays(rows.frames))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(self._folder)
        return path

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise CacheError(
                f"Cannot write to {self._folder}: {problem.strerror or problem}; the {len(self)} rows finished so far "
                "are kept, and the same command goes on from there"
            ) from None


def _as_arrays(frames: Sequences | None) -> dict[str, Any]:
    if frames is None:
        return {}
    return {"frames": np.concatenate(frames), "bins": np.array([len(sequence) for sequence in frames])}


def _read(path: Path) -> tuple[list[str], Encoded]:
    """Digests and rows of a part; zip's own checksums are verified on the way."""
    with np.load(path, allow_pickle=False) as part:
        digests, values = part["inputs"], part["values"]
        frames = None
        if "frames" in part:
            frames = tuple(np.split(part["frames"], np.cumsum(part["bins"])[:-1]))
    if len(digests) != len(values) or (frames is not None and len(frames) != len(values)):
        raise ValueError(f"{len(digests)} digests for {len(values)} rows")
    return [str(digest) for digest in digests], Encoded(values, frames)


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
