"""What went wrong with one recording goes in; an error comes out where all recordings are out of reach."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from amber2_core.errors import CorpusError

# Said of a whole file system, never of one file that is missing or damaged.
_GONE = {
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENODEV,
    errno.ENXIO,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.ESHUTDOWN,
}


def check_reach(folder: Path, problem: Exception) -> None:
    """See that the folder of a recording that cannot be read is still there: a single file may well be missing.

    Args:
        folder: held recordings, or the folders of recordings, when last seen; a disk that was unmounted leaves an
            empty one.
        problem: of reading the recording; an `AudioError` names what the system said as its cause.

    Raises:
        CorpusError: the folder, or the disk it lies on, has gone.
    """
    said = problem if isinstance(problem, OSError) else problem.__cause__
    try:
        if isinstance(said, OSError) and said.errno in _GONE:
            raise said
        with os.scandir(folder) as entries:
            reason = "" if next(entries, None) else "it is empty now"
    except OSError as gone:
        reason = gone.strerror or str(gone)
    if reason:
        raise CorpusError(
            f"Cannot read the recordings in {folder} any more: {reason}; what is encoded so far is kept, and the same "
            "command goes on when they are back"
        )
