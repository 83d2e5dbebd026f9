"""The thread that predicts for all who wait: whose turn it is, what goes wrong for whom, and what signals meet."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from amber2_core.errors import AudioError, ModelError
from amber2_predict.table import Row
from amber2_predict.turns import EndedError, Rows, Turns
from amber2_predict.units import Unit


def units(name: str, count: int) -> list[Unit]:
    return [Unit(f"{name}{k}", None, transcript=name) for k in range(count)]


class Slow:
    """Makes rows of names, each portion when it is let through."""

    def __init__(self) -> None:
        self.portions: list[list[str]] = []
        self.free = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)

    def __call__(self, some: Sequence[Unit]) -> list[Row]:
        self.portions.append([unit.file for unit in some])
        self.asked.release()
        self.free.acquire()
        return [{"file": unit.file} for unit in some]


def turns_of(rows: Rows, at_once: int = 2) -> Turns:
    return Turns(lambda: (rows, at_once))


def test_whoever_comes_later_gets_a_turn_before_a_long_job_is_done() -> None:
    slow = Slow()
    turns = turns_of(slow)
    long = turns.ask(units("a", 7))
    slow.asked.acquire()
    short, other = turns.ask(units("b", 1)), turns.ask(units("c", 2))
    slow.free.release(10)
    for order in (long, short, other):
        order.outcome.result(30)
    assert slow.portions == [["a0", "a1"], ["a2", "b0"], ["c0", "a3"], ["c1", "a4"], ["a5", "a6"]]
    assert [row["file"] for row in long.rows] == [f"a{k}" for k in range(7)]
    assert [row["file"] for row in other.rows] == ["c0", "c1"]
    turns.close()
    assert turns.join()


def test_nothing_more_is_done_for_whoever_has_gone() -> None:
    slow = Slow()
    turns = turns_of(slow)
    long = turns.ask(units("a", 100))
    slow.asked.acquire()
    assert long.outcome.cancel()
    slow.free.release(10)
    turns.ask(units("b", 1)).outcome.result(30)
    assert slow.portions == [["a0", "a1"], ["b0"]]
    turns.close()


def test_what_goes_wrong_is_told_to_its_own_and_all_others_get_their_rows() -> None:
    gate = threading.Event()

    def rows(some: Sequence[Unit]) -> list[Row]:
        gate.wait()
        if any(unit.file == "b0" for unit in some):
            raise AudioError("b0: has an odd sampling rate")
        return [{"file": unit.file} for unit in some]

    turns = turns_of(rows, at_once=8)
    orders = [turns.ask(units(name, 2)) for name in "abc"]
    gate.set()
    with pytest.raises(AudioError, match="odd sampling rate"):
        orders[1].outcome.result(30)
    for order, name in ((orders[0], "a"), (orders[2], "c")):
        order.outcome.result(30)
        assert [row["file"] for row in order.rows] == [f"{name}0", f"{name}1"]
    turns.close()


def test_at_the_end_all_who_wait_hear_of_it_whatever_is_under_way() -> None:
    slow = Slow()
    turns = turns_of(slow)
    orders = [turns.ask(units(name, 5)) for name in "abc"]
    slow.asked.acquire()
    turns.close()
    for order in (*orders, turns.ask(units("d", 1))):
        with pytest.raises(EndedError):
            order.outcome.result(0)
    slow.free.release(10)
    assert turns.join()
    assert len(slow.portions) == 1


def test_what_cannot_be_loaded_is_told_to_whoever_loads() -> None:
    def load() -> Any:
        raise ModelError("no encoder lies there")

    with pytest.raises(ModelError, match="no encoder lies there"):
        Turns(load)


def test_neither_the_thread_nor_what_it_starts_takes_signals() -> None:
    def blocked(_: Any = None) -> set[int]:
        return set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))

    def rows(some: Sequence[Unit]) -> list[Row]:
        with ThreadPoolExecutor(1) as pool:
            (deeper,) = pool.map(blocked, [None])
        return [{"masks": [blocked(), deeper]} for _ in some]

    before = blocked()
    turns = turns_of(rows)
    order = turns.ask(units("a", 1))
    order.outcome.result(30)
    for mask in order.rows[0]["masks"]:
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGALRM} <= mask
    assert blocked() == before
    turns.close()
