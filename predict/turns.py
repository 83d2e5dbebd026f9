"""Prediction for many who wait: one thread computes, and takes units of each of them in turn.

A recording of an hour is many units, so whoever asks for one utterance meanwhile waits for a portion, not for all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from amber2_core.engine import signals_blocked

from .table import Row
from .units import Unit

Rows = Callable[[Sequence[Unit]], Iterable[Row]]
# How long the thread may take to end, in seconds.
_PATIENCE = 5.0


class EndedError(Exception):
    """No more is computed: the process ends."""


class Order:
    """What one asks for, and how far it is."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self.units = tuple(units)
        # of the units, in order, as they come
        self.rows: list[Row] = []
        # done when all rows are there; cancelled when nobody waits for them
        self.outcome: Future[None] = Future()
        self._taken = 0

    def take(self) -> Unit:
        """The next unit."""
        self._taken += 1
        return self.units[self._taken - 1]

    @property
    def has_more(self) -> bool:
        """Whether units are left to take that somebody waits for."""
        return self._taken < len(self.units) and not self.outcome.done()

    def add(self, row: Row) -> None:
        """Keep the row of the unit that comes next."""
        self.rows.append(row)
        if len(self.rows) == len(self.units):
            self.end(None)

    def end(self, problem: BaseException | None) -> None:
        """Tell who waits, if anybody does."""
        with suppress(InvalidStateError):
            if problem is None:
                self.outcome.set_result(None)
            else:
                self.outcome.set_exception(problem)


class Turns:
    """The thread that computes, and the orders that wait for it.

    Everything that multiplies runs in it, or in threads that it starts: they take no signals, which oneDNN would not
    survive (see `amber2_core.engine`).
    """

    def __init__(self, load: Callable[[], tuple[Rows, int]]) -> None:
        """Start the thread, and wait until it has loaded what predicts.

        Args:
            load: called in the thread; gives what makes rows of units, in order, and how many units it is best at.

        Raises:
            Exception: what `load` raised.
        """
        self._waiting: deque[Order] = deque()
        self._current: list[Order] = []
        self._changed = threading.Condition()
        self._is_over = False
        loaded: Future[None] = Future()
        with signals_blocked():
            self._thread = threading.Thread(target=self._run, args=(load, loaded), daemon=True)
            self._thread.start()
        loaded.result()

    def ask(self, units: Iterable[Unit]) -> Order:
        """Put units at the end of the queue."""
        order = Order(units)
        with self._changed:
            if self._is_over:
                order.end(EndedError())
            else:
                self._waiting.append(order)
                self._changed.notify()
        return order

    def close(self) -> None:
        """Tell all who wait that there will be nothing, and take no more orders."""
        with self._changed:
            self._is_over = True
            for order in (*self._waiting, *self._current):
                order.end(EndedError())
            self._waiting.clear()
            self._changed.notify()

    def join(self) -> bool:
        """Whether the thread has ended, after a while: it goes on with what it has begun."""
        self._thread.join(_PATIENCE)
        return not self._thread.is_alive()

    def _run(self, load: Callable[[], tuple[Rows, int]], loaded: Future[None]) -> None:
        try:
            rows, most = load()
        except BaseException as problem:
            loaded.set_exception(problem)
            return
        loaded.set_result(None)
        while some := self._taken(most):
            _predict(rows, some)

    def _taken(self, most: int) -> list[tuple[Order, Unit]]:
        """The next portion, a unit of each order in turn; none when all is over."""
        some: list[tuple[Order, Unit]] = []
        with self._changed:
            self._current = []
            while not some and not self._is_over:
                while self._waiting and len(some) < most:
                    order = self._waiting.popleft()
                    if order.has_more:
                        some.append((order, order.take()))
                        self._waiting.append(order)
                if not some:
                    self._changed.wait()
            self._current = [order for order, _ in some]
        return some


def _predict(rows: Rows, some: Sequence[tuple[Order, Unit]]) -> None:
    """Give each order its rows. What goes wrong in company is tried again alone, and told to its own."""
    try:
        found = list(rows([unit for _, unit in some]))
    except Exception as problem:
        if len(some) == 1:
            some[0][0].end(problem)
            return
        for one in some:
            if not one[0].outcome.done():
                _predict(rows, [one])
        return
    for (order, _), row in zip(some, found, strict=True):
        order.add(row)
