"""The row store: what encoders have made so far of what is known by its digest, beside the cache that it becomes.

Beside ``cache.h5``, while it is being made, stands the folder ``cache.h5.parts``, which one command holds at a time; in
it a folder for each recipe, and in that two files for each worker that ever wrote there:

```
rows-<worker>.bin    rows behind one another, each its values and then its frames, float32
rows-<worker>.idx    behind each row that is written, 56 bytes: digest (32), place in the .bin (u64), layers (0: a
                     vector), D, bins (u32 each), and the crc32 of all of these and of the row
```
Nothing is ever written over. After a kill at any moment the rows but for the last are whole: what no entry names, and
half an entry, is cut off by the next worker of that number. A row that does not match its checksum is none.
"""

from __future__ import annotations

import glob
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amber2_core.errors import CacheError
from amber2_core.files import behind_links, lock, sync

Floats = npt.NDArray[np.float32]

LOCK = "lock"
_ENTRY = struct.Struct("<32sQIIII")
# How far a row may be from another: infinity and NaN are no numbers to JSON.
_FAR = 1e30

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Row:
    """What an encoder makes of one utterance."""

    # (D,), or (layers + 1, D)
    values: Floats
    # (bins, D), if asked for
    frames: Floats | None = None

    @property
    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor infinity."""
        return bool(np.isfinite(self.values).all()) and (self.frames is None or bool(np.isfinite(self.frames).all()))


def difference(row: Row, alone: Row) -> float:
    """Relative L2 difference of a row of a batch, values and frames, from the row of the same utterance alone.

    Raises:
        ValueError: their shapes differ.
    """
    one, other = _numbers(row), _numbers(alone)
    found = float(np.linalg.norm(one - other) / max(float(np.linalg.norm(other)), 1e-30))
    return found if found < _FAR else _FAR


class Place(NamedTuple):
    """Where a row lies."""

    path: Path
    first: int
    # 0: a vector
    layers: int
    size: int
    bins: int
    crc32: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its values."""
        return (self.layers, self.size) if self.layers else (self.size,)

    @property
    def nbytes(self) -> int:
        """Of its values and its frames."""
        return 4 * self.size * (max(1, self.layers) + self.bins)


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """The folder for work in progress beside `output`, held by this process alone; removed when no row is left in it.

    Where `output` is a symbolic link, that is of what it leads to: writers by other names are kept apart, too.

    Raises:
        CacheError: another process holds it (the line says which), or it cannot be made.
    """
    with ExitStack() as stack:
        try:
            file = behind_links(output)
            folder = file.with_name(f"{file.name}.parts")
            stack.enter_context(lock(folder / LOCK))
        except BlockingIOError as problem:
            raise CacheError(f"{output} is {problem.strerror}: wait for it, or choose another --output") from None
        except OSError as problem:
            place = "choose another place with --output"
            raise CacheError(f"Cannot write {output}: {problem.strerror or problem}; {place}") from None
        try:
            for leftover in file.parent.glob(f".{glob.escape(file.name)}.*.writing"):
                leftover.unlink()  # half a cache, of a process that was killed
            yield folder
        finally:
            # Where the disk has gone, whoever found that out tells of it.
            with suppress(OSError):
                if not any(index.stat().st_size for index in folder.glob("*/*.idx")):
                    # Before the lock is let go: who waits for it then finds the folder gone and makes a new one.
                    shutil.rmtree(folder, ignore_errors=True)


class RowWriter:
    """One worker's own files of a row store."""

    def __init__(self, folder: Path, worker: int) -> None:
        """Go on where the last worker of that number stopped.

        Raises:
            CacheError: the folder cannot be written.
        """
        self._folder = folder
        self._rows, self._index = (folder / f"rows-{worker}.{kind}" for kind in ("bin", "idx"))
        with _told("write to", folder):
            folder.mkdir(parents=True, exist_ok=True)
            for path in (self._rows, self._index):
                path.touch()
            _cut(self._index, self._index.stat().st_size // _ENTRY.size * _ENTRY.size)
            size = self._rows.stat().st_size
            ends = [place.first + place.nbytes for _, place in _entries(self._index)]
            _cut(self._rows, max((end for end in ends if end <= size), default=0))
            sync(folder)

    def add(self, rows: Mapping[str, Row]) -> None:
        """Write rows by digest; they survive this process, and with `sync` the machine.

        Raises:
            CacheError: the disk is full, or has gone.
        """
        with _told("write to", self._folder):
            first = self._rows.stat().st_size
            data, entries = b"", b""
            for digest, row in rows.items():
                layers = 0 if row.values.ndim == 1 else len(row.values)
                bins = 0 if row.frames is None else len(row.frames)
                size = row.values.shape[-1]
                parts = [row.values] if row.frames is None else [row.values, row.frames]
                these = b"".join(np.ascontiguousarray(part, dtype="<f4").tobytes() for part in parts)
                entry = (bytes.fromhex(digest), first + len(data), layers, size, bins)
                data += these
                entries += _ENTRY.pack(*entry, _checksum(*entry, these))
            _append(self._rows, data)
            _append(self._index, entries)

    def sync(self) -> None:
        """Bring what is written to the disk.

        Raises:
            CacheError: the disk is full, or has gone.
        """
        with _told("write to", self._folder):
            for path in (self._rows, self._index):
                sync(path)


class RowStore:
    """The rows of one recipe, whoever wrote them."""

    def __init__(self, folder: Path) -> None:
        """Look at what there is, and at each row whether it is whole; a damaged one is a warning.

        Raises:
            CacheError: it cannot be read.
        """
        self._folder = folder
        self._places: dict[str, Place] = {}
        damaged = 0
        with _told("read", folder):
            for index in sorted(folder.glob("rows-*.idx")):
                for digest, place in _entries(index):
                    if _is_whole(digest, place, _read(place)):
                        self._places[digest] = place
                    else:
                        damaged += 1
        if damaged:
            _log.warning("%s is damaged: %d of its rows are encoded again", folder, damaged)

    def __contains__(self, digest: object) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of the values of one row; () until there is one."""
        return next((place.shape for place in self._places.values()), ())

    def bins(self, digest: str) -> int:
        """Length of a row's frames."""
        return self._places[digest].bins

    def read(self, digest: str) -> Row:
        """A row.

        Raises:
            CacheError: it cannot be read, or has been damaged since.
        """
        place = self._places[digest]
        with _told("read", self._folder):
            data = _read(place)
        if not _is_whole(digest, place, data):
            raise CacheError(f"{place.path} is damaged: the same command encodes what it held again")
        numbers = np.frombuffer(data, dtype="<f4").reshape(-1, place.size)
        values = numbers[: max(1, place.layers)].reshape(place.shape)
        return Row(values, numbers[max(1, place.layers) :] if place.bins else None)

    def remove(self) -> None:
        """Delete all rows: they stand in the cache now."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._places.clear()


def _numbers(row: Row) -> npt.NDArray[np.float64]:
    parts = [row.values] if row.frames is None else [row.values, row.frames]
    return np.concatenate([part.astype(np.float64).ravel() for part in parts])


def _entries(index: Path) -> Iterator[tuple[str, Place]]:
    data, path = index.read_bytes(), index.with_suffix(".bin")
    for at in range(0, len(data) - _ENTRY.size + 1, _ENTRY.size):
        digest, first, layers, size, bins, crc32 = _ENTRY.unpack_from(data, at)
        yield digest.hex(), Place(path, first, layers, size, bins, crc32)


def _read(place: Place) -> bytes:
    with place.path.open("rb") as file:
        # What a damaged entry promises may be more than any memory holds.
        if place.first + place.nbytes > os.fstat(file.fileno()).st_size:
            return b""
        file.seek(place.first)
        return file.read(place.nbytes)


def _is_whole(digest: str, place: Place, data: bytes) -> bool:
    entry = (bytes.fromhex(digest), place.first, place.layers, place.size, place.bins)
    return len(data) == place.nbytes > 0 and _checksum(*entry, data) == place.crc32


def _checksum(digest: bytes, first: int, layers: int, size: int, bins: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(_ENTRY.pack(digest, first, layers, size, bins, 0)))


def _append(path: Path, data: bytes) -> None:
    """By its path, not by an open file: whose folder has gone is to hear of it now, not at the end."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def _cut(path: Path, size: int) -> None:
    if path.stat().st_size > size:
        os.truncate(path, size)


@contextmanager
def _told(doing: str, folder: Path) -> Iterator[None]:
    """Whatever the disk does inside is one line."""
    try:
        yield
    except OSError as problem:
        reason = f"Cannot {doing} {folder}: {problem.strerror or problem}; the rows finished so far are"
        if isinstance(problem, FileNotFoundError):
            raise CacheError(
                f"{reason} in that folder: where it comes back, the same command goes on from there"
            ) from None
        raise CacheError(f"{reason} kept, and the same command goes on from there") from None
