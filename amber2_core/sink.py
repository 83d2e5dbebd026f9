"""A file for HDF5 to write to: on its own HDF5 crashes, or fills the screen, when the disk is full."""

from __future__ import annotations

import io
from types import TracebackType
from typing import Any


class Sink(io.FileIO):
    """An open file that hides failures from its writer until the end of its `with` block, which then raises the first.

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
