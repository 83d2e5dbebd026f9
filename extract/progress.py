"""How far an encoding is goes in; words about it come out, in a line every half minute where there is no terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from .encoding import Progress

LINE_SECONDS = 30.0

_log = logging.getLogger(__name__)


class ProgressLines:
    """Says how far the encoding is, in a line of the log, as often as it is time for one."""

    def __init__(self, *, every: float = LINE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every
        self._clock = clock
        self._said = clock()

    def __call__(self, progress: Progress) -> None:
        """Take notice of a batch that is done."""
        if self._clock() - self._said >= self._every:
            self._said = self._clock()
            _log.info("%s: %s", progress.features, describe(progress))


def describe(progress: Progress) -> str:
    """Utterances, hours, speed against real time, padding and time left.

    Example:
        >>> describe(Progress("audio/hubert", 120, 400, 900.0, 3600.0, 0.25, 60.0, 0.005))
        '120 of 400, 0.25 of 1.00 h, 15.0 times real time, 0.5 % padding, 3 min left'
    """
    words = [f"{progress.done:,} of {progress.total:,}"]
    if progress.seconds_total > 0:
        words.append(f"{progress.seconds_done / 3600:.2f} of {progress.seconds_total / 3600:.2f} h")
        if progress.elapsed > 0:
            words.append(f"{progress.seconds_done / progress.elapsed:.1f} times real time")
    words.append(f"{100 * progress.padding:.1f} % padding")
    if progress.share > 0:
        words.append(f"{_duration(progress.elapsed * (1 - progress.share) / progress.share)} left")
    return ", ".join(words)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
