"""Rows go in, in any order; a matrix that lies in a file, and is read from it a block at a time, comes out."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from amber2_core.features import Rows, blocks


class Scratch:
    """A matrix that need not fit into memory; rows that nobody puts there are NaN.

    Rows are put inside a `with` block and read after it. The file is written and read, not mapped: where its disk is
    full or has gone, that is an OSError, while a mapped file would end the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> None:
        """Nothing is written yet."""
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._path = path
        self._row_bytes = math.prod(shape[1:]) * self.dtype.itemsize
        self._held = np.zeros(shape[0], dtype=np.bool_)
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Make the file.

        Raises:
            OSError: it cannot be made.
        """
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        os.close(self._descriptor)

    def put(self, first: int, rows: npt.NDArray[Any]) -> None:
        """Write rows (rows, …) from row `first` on.

        Raises:
            OSError: the disk is full, or has gone.
        """
        rest = np.ascontiguousarray(rows, dtype=self.dtype).reshape(-1).view(np.uint8).data
        place = first * self._row_bytes
        while rest:
            written = os.pwrite(self._descriptor, rest, place)
            rest, place = rest[written:], place + written
        self._held[first : first + len(rows)] = True

    def copy(self, source: Rows, targets: npt.NDArray[np.intp]) -> None:
        """Put the rows of a matrix on the disk into other places.

        Args:
            source: (rows, …).
            targets: (targets,) the row of `source` that each row is to hold, -1 where none.

        Raises:
            OSError: it cannot be read, or not be written.
        """
        order = np.argsort(targets, kind="stable")
        wanted = targets[order]
        for rows in blocks(source):
            some = slice(*np.searchsorted(wanted, [rows.start, rows.stop]))
            if some.start < some.stop:
                block = source[rows]
                for row, target in zip(wanted[some], order[some], strict=True):
                    self.put(int(target), block[row - rows.start][None])

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows that follow one another.

        Raises:
            OSError: they cannot be read.
        """
        first, last, _ = rows.indices(self.shape[0])
        values = np.full((max(0, last - first), *self.shape[1:]), np.nan, dtype=self.dtype)
        held = np.flatnonzero(self._held[first:last])
        if len(held):
            # What was never written is a hole in the file, or beyond its end.
            stop = int(held[-1]) + 1
            with self._path.open("rb") as file:
                file.seek(first * self._row_bytes)
                if file.readinto(values[:stop].reshape(-1).view(np.uint8).data) < stop * self._row_bytes:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(self._path))
            values[~self._held[first:last]] = np.nan
        return values
