"""Threads make things ready in order and share one queue; an error, or the end of interest, ends them all."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator, Iterator

import pytest
import torch

from amber2_core.lanes import ahead, spread


def _numbers(count: int, closed: list[bool] | None = None) -> Generator[int]:
    try:
        yield from range(count)
    finally:
        if closed is not None:
            closed.append(True)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_ahead_is_map_in_order() -> None:
    threads = torch.get_num_threads()
    assert list(ahead(lambda number: number * number, range(50), 3)) == [number * number for number in range(50)]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_every_thing_is_made_once_whatever_the_number_of_lanes(lanes: int) -> None:
    closed: list[bool] = []
    made = list(spread(_numbers(200, closed), [lambda number: number + 1] * lanes))
    assert sorted(made) == list(range(1, 201))
    assert closed == [True]


def test_a_slow_lane_does_not_hold_up_a_fast_one() -> None:
    release = threading.Event()
    took: dict[str, int] = {"slow": 0, "fast": 0}

    def slow(number: int) -> str:
        took["slow"] += 1
        assert release.wait(timeout=30)
        return "slow"

    def fast(number: int) -> str:
        took["fast"] += 1
        if took["fast"] == 9:
            release.set()
        return "fast"

    assert sorted(spread(_numbers(10), [slow, fast])) == ["fast"] * 9 + ["slow"]
    assert took == {"slow": 1, "fast": 9}


def test_no_more_is_made_ahead_than_the_bound() -> None:
    """Nobody takes anything: two results wait for each lane, and each holds one more in its hands."""
    begun: list[int] = []
    made = spread(_numbers(1000), [begun.append, begun.append])
    next(made)
    most = 1 + 2 * 2 + 2
    deadline = time.monotonic() + 30
    while len(begun) < most and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(begun) == most
    made.close()  # type: ignore[attr-defined]


def test_an_error_of_a_lane_or_of_what_is_given_is_raised() -> None:
    def fails(number: int) -> int:
        if number == 7:
            raise ValueError("seven")
        return number

    with pytest.raises(ValueError, match="seven"):
        list(spread(_numbers(100), [fails, fails]))

    def given() -> Generator[int]:
        yield 1
        raise KeyError("given")

    with pytest.raises(KeyError, match="given"):
        list(spread(given(), [fails]))


def test_lanes_take_what_threads_made_ready() -> None:
    prepared = ahead(lambda number: (number, threading.get_ident()), range(40), 3)
    results = list(spread(prepared, [lambda pair: (pair, threading.get_ident())] * 2))
    assert sorted(number for (number, _), _ in results) == list(range(40))
    assert not {reader for (_, reader), _ in results} & {lane for _, lane in results}


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals are not a thread's here")
def test_no_signal_is_handled_where_something_is_made() -> None:
    def takes_signals(_: object = None) -> bool:
        return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    assert takes_signals()
    assert list(ahead(takes_signals, range(4), 2)) == [False] * 4
    assert list(spread(_numbers(4), [takes_signals, takes_signals])) == [False] * 4
    assert takes_signals()
