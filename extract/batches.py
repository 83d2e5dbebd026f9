"""Batches that pad little: how large they may be, what goes into each, and in which portions workers get them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from amber2_core.engine import ENGINES
from amber2_core.errors import SettingError, bad_choice
from amber2_core.ray_engine import Place

from .recipe import Modality

Batch = TypeVar("Batch")
Sizes = npt.NDArray[np.float64]

ROWS = ("driver", "shared")
# Of all that is computed, so much may be padding: more batches cost less, until an accelerator waits for its kernels
# to be sent.
MOST_PADDING = 0.01
# Of fewer all is over in seconds, whatever is padded; they stay in the fewest batches.
FROM_ITEMS = 500
# of the range of prices, in powers of ten: the price that is found is within .4 % of the right one
_HALVINGS = 12

# A worker's threads wait for one another at the end of each portion: batches for each of them, at least and at most.
_LEAST, _MOST = 4, 16
# Portions for each worker, where there are batches enough, so that all end at about the same time.
_TURNS = 8
# Seconds and tokens of a batch where nobody says, on a processor and on an accelerator. A processor gains nothing from
# batches of audio, and would compute their padding.
_BUDGETS: dict[Modality, tuple[float, float]] = {
    "audio": (0.0, 120.0),
    "text": (1024.0, 16384.0),
    "sentiment": (1024.0, 16384.0),
}


@dataclass(frozen=True)
class Effort:
    """How to encode; nothing here changes the numbers."""

    # auto | cpu | cuda | cuda:N | cuda:0,cuda:1 | mps
    device: str = "auto"
    # seconds of audio, and tokens, per batch, padding included; 0: one at a time; None: as suits the device
    batch_seconds: float | None = None
    batch_tokens: int | None = None
    # local: on this machine; ray: on the cluster at an address, see `amber2_core.ray_engine.machines`
    engine: str = "local"
    ray_address: str | None = None
    gpus_per_worker: float = 1.0
    # who writes what workers on a cluster make: driver, this process; shared, they themselves, to a folder that all see
    rows: str = "driver"

    def __post_init__(self) -> None:
        for name, known in (("engine", ENGINES), ("rows", ROWS)):
            if getattr(self, name) not in known:
                raise SettingError(bad_choice(name, getattr(self, name), known))
        if self.engine == "local" and self.rows == "shared":
            raise SettingError("--rows shared without --engine ray: leave it out, or give both")
        if not 0 < self.gpus_per_worker < math.inf:
            raise SettingError(f"Bad gpus_per_worker {self.gpus_per_worker}, expected more than 0")
        for name in ("batch_seconds", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise SettingError(f"Bad {name} {value}, expected a number from 0 on")

    def budget(self, modality: Modality, device: str) -> float:
        """Most seconds of audio, or tokens, in a batch for a device."""
        given = self.batch_seconds if modality == "audio" else self.batch_tokens
        return _BUDGETS[modality][device != "cpu"] if given is None else given


@dataclass(frozen=True)
class Seat:
    """What one worker has to itself: its number, its device, and the threads that encode, or decode for a GPU."""

    number: int
    device: str
    threads: int


@dataclass(frozen=True)
class Survey:
    """What must be known before batches can be planned."""

    # one for each worker, and where in a cluster it is; none: on this machine
    seats: tuple[Seat, ...]
    places: tuple[Place, ...] = ()
    # tokens of each transcript, and which had to be cut to the model's limit; nothing of recordings
    tokens: tuple[int, ...] = ()
    cut: tuple[bool, ...] = ()

    @property
    def devices(self) -> str:
        """For people: ``cuda:0,cuda:1``, or on a cluster ``64 × cuda:0``."""
        names = [seat.device for seat in self.seats]
        return f"{len(names)} × {names[0]}" if self.places else ",".join(names)


def one_at_a_time(effort: Effort) -> Effort:
    """The same without batches."""
    return replace(effort, batch_seconds=0, batch_tokens=0)


def plan_batches(sizes: Sequence[float], *, budget: float) -> list[list[int]]:
    """Group items of similar size, the largest first, so that a batch that does not fit is met at once.

    As few batches as the budget allows, where that pads no more than `MOST_PADDING` or there is little to do; else
    the fewest, nearly, that pad no more. The plan depends on the sizes and the budget alone, equal sizes keep their
    order, and so an interrupted extraction meets the same batches again.

    Args:
        sizes: of each item, in seconds or tokens.
        budget: most of items × largest size in one batch, padding included; 0 makes batches of one. An item above the
            budget has a batch of its own.

    Returns:
        Indices into `sizes`, each in exactly one batch.
    """
    order = sorted(range(len(sizes)), key=lambda item: -sizes[item])
    falling = np.array([sizes[item] for item in order], dtype=np.float64)
    return [order[first:end] for first, end in itertools.pairwise(_edges(falling, budget))]


def _edges(falling: Sizes, budget: float) -> list[int]:
    """Where the batches of sizes in falling order begin, and the end of the last.

    Edges that are best for a price of a batch are found exactly (`_priced`); the higher the price, the fewer batches
    and the more padding: the highest that pads little enough is found by halving.
    """
    edges = _fullest(falling, budget)
    if len(falling) < FROM_ITEMS or _padding(falling, edges) <= MOST_PADDING:
        return edges
    low, high = 1e-6 * float(falling[0]), budget
    edges = _priced(falling, budget, low)
    for _ in range(_HALVINGS):
        price = math.sqrt(low * high)
        found = _priced(falling, budget, price)
        if _padding(falling, found) <= MOST_PADDING:
            low, edges = price, found
        else:
            high = price
    return edges


def _fullest(falling: Sizes, budget: float) -> list[int]:
    """As many in each batch as the budget allows."""
    edges = [0]
    while edges[-1] < len(falling):
        largest, rest = float(falling[edges[-1]]), len(falling) - edges[-1]
        edges.append(edges[-1] + _most_in(largest, rest, budget))
    return edges


def _priced(falling: Sizes, budget: float, price: float) -> list[int]:
    """The edges of least padded size + price × batches: with the best of every rest, the best of the whole."""
    best, following = np.zeros(len(falling) + 1), np.zeros(len(falling), dtype=np.int64)
    for first in range(len(falling) - 1, -1, -1):
        largest = float(falling[first])
        most = _most_in(largest, len(falling) - first, budget)
        costs = np.arange(1, most + 1) * largest + best[first + 1 : first + most + 1]
        count = int(costs.argmin()) + 1
        best[first], following[first] = costs[count - 1] + price, first + count
    edges = [0]
    while edges[-1] < len(falling):
        edges.append(int(following[edges[-1]]))
    return edges


def _most_in(largest: float, rest: int, budget: float) -> int:
    """How many of the rest a batch may hold that begins with the largest."""
    most = rest if largest * rest <= budget else int(budget / largest)
    return max(1, most if most * largest <= budget else most - 1)


def _padding(falling: Sizes, edges: Sequence[int]) -> float:
    padded = float(np.diff(edges) @ falling[edges[:-1]])
    return 1 - float(falling.sum()) / padded if padded > 0 else 0.0


def portions(batches: Sequence[Batch], *, workers: int, threads: int) -> list[Sequence[Batch]]:
    """The batches in their order, as many together as keep the threads of each of the workers busy."""
    most = max(1, math.ceil(len(batches) / workers))
    some = min(most, max(_LEAST * threads, min(_MOST * threads, math.ceil(most / _TURNS))))
    return [batches[first : first + some] for first in range(0, len(batches), some)]


def padding_waste(sizes: Sequence[float], batches: Sequence[Sequence[int]]) -> float:
    """The share of what is computed that is padding, in [0, 1)."""
    useful = sum(sizes[item] for batch in batches for item in batch)
    padded = sum(len(batch) * max(sizes[item] for item in batch) for batch in batches)
    return 1 - useful / padded if padded > 0 else 0.0
