"""Encoded rows go in as they are finished; after a kill at any moment all rows but the last few are still there.

Beside ``cache.h5``, while it is being made, stands the folder ``cache.h5.parts``: one folder per recipe, in it numbered
files of finished rows, each closed and brought to the disk before it gets its name. Rows are found by the digest of
what they were encoded from, so that it does not matter which utterances, or in what order, a second call asks for.
"""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from amber2_core.cache import sync
from amber2_core.errors import CacheError

from .encoded import Encoded, Pooled, Sequences
from .scratch import Scratch

# A part is written when its rows are this large, or this old: what a kill can cost.
PART_BYTES = 4 * 2**20
PART_SECONDS = 20.0

_log = logging.getLogger(__name__)


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
        self._waiting = _Waiting()
        self._began = time.monotonic()
        self._last = 0
        # of one row; () until there is one
        self.row_shape: tuple[int, ...] = ()
        with self._keeping("write to"):
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
        if not self._waiting.has_room_for(rows):
            self.flush()
        self._waiting.add(digests, rows)
        if self._waiting.nbytes >= PART_BYTES or time.monotonic() - self._began >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring all rows to the disk.

        Raises:
            CacheError: the disk is full, or has gone.
        """
        if self._waiting.digests:
            digests, rows = self._waiting.digests, self._waiting.rows
            with self._keeping("write to"):
                path = self._write(digests, rows)
            self._add(path, digests, rows)
            self._waiting.clear()
        self._began = time.monotonic()

    def fill(
        self, matrix: Scratch, rows: Mapping[str, Sequence[int]], *, frames: Scratch | None = None, offsets: Any = None
    ) -> None:
        """Copy finished rows into `matrix`: what was encoded from `digest` into each of `rows[digest]`.

        Args:
            matrix: (N, D) or (N, layers + 1, D), open for writing.
            rows: digest → rows of `matrix`.
            frames: (ΣT, D); takes the sequences, that of row i from `offsets[i]` on.
            offsets: (N + 1,).

        Raises:
            CacheError: the disk is full, or has gone, or a part is damaged.
        """
        wanted: dict[Path, list[tuple[int, Sequence[int]]]] = {}
        for digest, targets in rows.items():
            path, row = self._places[digest]
            wanted.setdefault(path, []).append((row, targets))
        for path, pairs in wanted.items():
            try:
                with self._keeping("read"):
                    _, part = _read(path)
            except _DamageError as damage:
                line = f"{path} is damaged ({damage}): the same command encodes its rows again"
                raise CacheError(line) from None
            with self._keeping("write to"):
                for row, target in ((row, target) for row, targets in pairs for target in targets):
                    matrix.put(target, part.values[row : row + 1])
                    if frames is not None and part.frames is not None:
                        frames.put(offsets[target], part.frames[row])

    def scratch(self, name: str, shape: tuple[int, ...]) -> Scratch:
        """A matrix in a file among the parts, which goes with them."""
        return Scratch(self._folder / f"{name}.writing", shape)

    def remove(self) -> None:
        """Delete all parts: their rows stand in the cache now."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._places.clear()

    def _take_up(self, path: Path) -> None:
        try:
            digests, rows = _read(path)
        except _DamageError as damage:
            _log.warning("%s is damaged (%s): its rows are encoded again", path, damage)
            path.unlink()
            return
        self._last = max(self._last, int(path.stem))
        self._add(path, digests, rows)

    def _add(self, path: Path, digests: Sequence[str], rows: Encoded) -> None:
        self.row_shape = rows.values.shape[1:]
        self._places.update({digest: (path, row) for row, digest in enumerate(digests)})
        if rows.frames is not None:
            self.bins.update(zip(digests, map(len, rows.frames), strict=True))

    def _write(self, digests: Sequence[str], rows: Encoded) -> Path:
        path = self._folder / f"{self._last + 1:06d}.npz"
        temporary = path.with_suffix(".writing")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, inputs=np.array(digests), values=rows.values, **_as_arrays(rows.frames))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(self._folder)
        self._last += 1
        return path

    @contextmanager
    def _keeping(self, doing: str) -> Iterator[None]:
        """Whatever the disk does inside is one line."""
        try:
            yield
        except OSError as problem:
            reason = f"Cannot {doing} {self._folder}: {problem.strerror or problem}"
            if problem.errno == errno.ENOENT:
                raise CacheError(
                    f"{reason}; the {len(self)} rows finished so far are in that folder: where it comes back, the same "
                    "command goes on from there"
                ) from None
            raise CacheError(
                f"{reason}; the {len(self)} rows finished so far are kept, and the same command goes on from there"
            ) from None


class _Waiting:
    """Rows that are not on the disk yet, in one block of memory that is used again and again.

    Many small arrays that live as long would leave the memory between them in pieces.
    """

    def __init__(self) -> None:
        self.digests: list[str] = []
        self._frames: list[Any] = []
        self._has_frames = False
        self._block: Pooled = np.empty((0,), dtype=np.float32)

    @property
    def rows(self) -> Encoded:
        frames = tuple(self._frames) if self._has_frames else None
        return Encoded(self._block[: len(self.digests)], frames)

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    def has_room_for(self, rows: Encoded) -> bool:
        return not self.digests or len(self.digests) + len(rows) <= len(self._block)

    def add(self, digests: Sequence[str], rows: Encoded) -> None:
        first, last = len(self.digests), len(self.digests) + len(rows)
        if last > len(self._block):
            least = math.ceil(PART_BYTES / max(1, rows.values[0].nbytes))
            self._block = np.empty((max(least, last), *rows.values.shape[1:]), dtype=np.float32)
        self._block[first:last] = rows.values
        self.digests += digests
        if rows.frames is not None:
            self._has_frames = True
            self._frames += rows.frames

    def clear(self) -> None:
        self.digests, self._frames = [], []


def _as_arrays(frames: Sequences | None) -> dict[str, Any]:
    if frames is None:
        return {}
    return {"frames": np.concatenate(frames), "bins": np.array([len(sequence) for sequence in frames])}


class _DamageError(Exception):
    """What is wrong with the contents of a part."""


def _read(path: Path) -> tuple[list[str], Encoded]:
    """Digests and rows of a part; zip's own checksums are verified on the way."""
    data = path.read_bytes()
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as part:
            digests, values = part["inputs"], part["values"]
            frames = None
            if "frames" in part:
                frames = tuple(np.split(part["frames"], np.cumsum(part["bins"])[:-1]))
    except Exception as problem:  # a damaged zip file raises errors of every kind
        raise _DamageError(str(problem) or type(problem).__name__) from None
    if len(digests) != len(values) or (frames is not None and len(frames) != len(values)):
        raise _DamageError(f"{len(digests)} digests for {len(values)} rows")
    return [str(digest) for digest in digests], Encoded(values, frames)
