"""Prediction, straight down: units of what a user names, dealt to workers, rows as they come, one file of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amber2_core import engine
from amber2_core.errors import RunFolderError, SettingError
from amber2_extract.batches import Seat
from amber2_extract.crew import survey as devices_of
from amber2_extract.plan import Job
from amber2_extract.worker import PRELOADED as ENCODERS
from amber2_extract.worker import REST_SECONDS, give_back

from .options import HeadsChoice
from .table import Format, Row, Unfinished, check_output, finish, keys_of, rows_beside, unfinished
from .units import Unit, Windows, batched

# what a fork server loads for the workers
PRELOADED = (*ENCODERS, "amber2_predict.predictor")
# Units dealt together: a worker's threads wait for one another at the end of each portion.
_PORTION = 256
_LINE_SECONDS = 30.0

if TYPE_CHECKING:
    from .predictor import Predictor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """What the conductor must know before units are dealt."""

    heads: tuple[str, ...]
    emotions: tuple[str, ...]
    # of the weights
    digest: str
    jobs: Mapping[str, Job]
    seats: tuple[Seat, ...]


@dataclass(frozen=True)
class Summary:
    """What one call of `predict_to` did."""

    output: Path
    rows: int
    errors: int
    # rows that an interrupted call had left
    kept: int = 0


def predict_units(
    which: HeadsChoice, units: Iterable[Unit], *, found: Survey | None = None
) -> Generator[tuple[Unit, Row]]:
    """Units with their rows, as workers finish them: in order on one device.

    Raises:
        RunFolderError, ModelError, SettingError: as `amber2_predict.predictor.Predictor.from_pretrained`.
        WorkerError: a worker died twice on the same recordings.
    """
    known = found or looked_up(which)
    results = engine.deal(
        predict,
        batched(units, _PORTION),
        setup=Desk,
        workers=known.seats,
        shared=(which, known.jobs),
    )
    with closing(results):
        for some, rows in results:
            yield from zip(some, rows, strict=True)


def looked_up(which: HeadsChoice) -> Survey:
    """What is known of heads and encoders, without loading torch here. Raises: as `predict_units`."""
    engine.prepare(*PRELOADED)
    return engine.call(survey, which)


def predict_to(
    output: Path,
    which: HeadsChoice,
    units: Iterable[Unit],
    *,
    windows: Windows | None = None,
    format: Format = "full",
    resume: bool = False,
) -> Summary:
    """Predict, and write a file of rows: JSON lines, CSV or Parquet, as its suffix says.

    The file stands under its name when it is complete. Until then rows are kept beside it, and with `resume` the same
    call goes on after the last of them: no row is there twice, and none is missing. What ended in an error is tried
    again, and rows stay beside a complete file while it has any.

    Args:
        output: ends in .jsonl, .csv or .parquet.
        which: heads and encoders.
        units: as `amber2_predict.units.units_of` gives them.
        windows: how the units were cut; rows of other windows are refused.
        format: of JSON lines: all that is known, or lists of labels with scores.
        resume: go on where an interrupted call stopped.

    Raises:
        SettingError: the output is there already, or rows are there of other heads, encoders or windows.
        RunFolderError: it cannot be written; and as `predict_units`.
    """
    check_output(output, format)
    if output.exists() and not (resume and rows_beside(output)):
        return _as_it_is(output, units, resume=resume)
    known = looked_up(which)
    with unfinished(output, _identity(which, known, windows), resume=resume) as held:
        kept = len(held)
        if kept:
            _log.info("%s: %d rows are there already", output, kept)
        left = (unit for unit in units if not held.has(unit.key))
        _add_all(held, predict_units(which, left, found=known))
        finish(output, held, known.heads, known.emotions, format)
        return Summary(output, len(held), held.errors, kept)


def _add_all(held: Unfinished, pairs: Iterator[tuple[Unit, Row]]) -> None:
    """Keep rows as they come, and say from time to time how many there are."""
    began = said = time.monotonic()
    for count, (unit, row) in enumerate(pairs, start=1):
        held.add(unit.key, row)
        if time.monotonic() - said >= _LINE_SECONDS:
            said = time.monotonic()
            _log.info("%d rows, %.1f a second", count, count / (said - began))


def _as_it_is(output: Path, units: Iterable[Unit], *, resume: bool) -> Summary:
    """What stands under the name already, seen to hold all that is asked for."""
    if not resume:
        raise RunFolderError(f"{output} exists already: name another --output, or remove that one")
    there, errors = keys_of(output)
    missing = [unit for unit in units if (unit.file, unit.start or 0.0) not in there]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SettingError(f"{output} is complete without a row of {missing[0].file}{more}: name another --output")
    return Summary(output, len(there), errors, len(there))


def _identity(which: HeadsChoice, known: Survey, windows: Windows | None) -> Mapping[str, Any]:
    """What rows depend on beside their unit."""
    return {
        "heads": known.digest,
        "windows": None if windows is None else [windows.seconds, windows.hop],
        "transcribe": which.transcribe,
    }


# --- in a worker ---


def survey(which: HeadsChoice) -> Survey:
    """Find heads, their encoders, and devices.

    Raises:
        RunFolderError, ModelError, SettingError: as `amber2_predict.predictor.Predictor.from_pretrained`.
    """
    from .prediction import digest_of
    from .predictor import find_encoders, find_heads

    found = find_heads(which)
    jobs = find_encoders(found, which)
    seats = devices_of(next(iter(jobs.values())), which.device, ()).seats
    return Survey(found.heads, found.emotions, digest_of(found), jobs, seats)


class Desk:
    """A predictor on its device."""

    def __init__(self, seat: Seat, shared: tuple[HeadsChoice, Mapping[str, Job]]) -> None:
        """Load everything. Raises: as `survey`."""
        from .chosen import choose
        from .predictor import Predictor, find_heads
        from .transcriber import Transcriber

        which, jobs = shared
        logging.getLogger(choose.__module__).setLevel(logging.WARNING)  # the survey told already what is chosen
        found = find_heads(which)
        transcriber = None if which.transcribe is None else Transcriber(which.transcribe, device=seat.device)
        self.predictor: Predictor = Predictor(
            found, jobs, device=seat.device, threads=seat.threads, transcriber=transcriber
        )
        self._rested = time.monotonic()

    def rest(self) -> None:
        """From time to time, bring memory back to the system."""
        if time.monotonic() - self._rested >= REST_SECONDS:
            give_back()
            self._rested = time.monotonic()


def predict(desk: Desk, units: Sequence[Unit]) -> list[Row]:
    """A row of each unit, in order."""
    rows = list(desk.predictor.rows(units))
    desk.rest()
    return rows
