"""What a worker process of prediction does: it loads heads and encoders once, and makes the units it is dealt rows.

Importing this module loads neither torch nor transformers: the conductor only names its functions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from amber2_extract.plan import Job
from amber2_extract.worker import PRELOADED as ENCODERS
from amber2_extract.worker import REST_SECONDS, Seat, give_back
from amber2_extract.worker import survey as devices_of

from .table import Row
from .units import Unit

if TYPE_CHECKING:
    from .predictor import Predictor

PRELOADED = (*ENCODERS, "amber2_predict.predictor")


@dataclass(frozen=True)
class Request:
    """Which heads and encoders are wanted; see `amber2_predict.predictor.Predictor.from_pretrained`."""

    heads: str
    device: str = "auto"
    audio_models: tuple[str, ...] = ()
    text_models: tuple[str, ...] = ()
    # of a run: system, fold, seed, ensemble
    choice: Mapping[str, Any] = field(default_factory=dict)
    transcribe: str | None = None


@dataclass(frozen=True)
class Survey:
    """What the conductor must know before units are dealt."""

    heads: tuple[str, ...]
    emotions: tuple[str, ...]
    # of the weights
    digest: str
    jobs: Mapping[str, Job]
    seats: tuple[Seat, ...]


def survey(request: Request) -> Survey:
    """Find heads, their encoders, and devices.

    Raises:
        RunFolderError, ModelError, SettingError: as `amber2_predict.predictor.Predictor.from_pretrained`.
    """
    from .encoding import plan_encodings
    from .found_heads import digest_of, find_heads

    found = find_heads(request.heads, **request.choice)
    jobs = plan_encodings(found.config["features"], audio_models=request.audio_models, text_models=request.text_models)
    machine = devices_of(next(iter(jobs.values())), request.device, ())
    seats = tuple(Seat(number, device, machine.threads) for number, device in enumerate(machine.devices))
    return Survey(found.heads, found.emotions, digest_of(found), jobs, seats)


class Desk:
    """A predictor on its device."""

    def __init__(self, seat: Seat, shared: tuple[Request, Mapping[str, Job]]) -> None:
        """Load everything. Raises: as `survey`."""
        from .found_heads import find_heads
        from .predictor import Predictor
        from .transcriber import Transcriber

        request, jobs = shared
        found = find_heads(request.heads, **request.choice)
        transcriber = None if request.transcribe is None else Transcriber(request.transcribe, device=seat.device)
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
