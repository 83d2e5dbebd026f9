"""Things to do go in, in order; what threads make of them comes out, a bounded number ahead of who takes it."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")

# How long a lane waits for room before it looks whether anybody still wants what it made, in seconds.
_PATIENCE = 0.1
_END = object()


def ahead(
    make: Callable[[Given], Made],
    given: Iterable[Given],
    workers: int,
    *,
    threads_each: int = 1,
    on_end: Callable[[], None] = lambda: None,
) -> Generator[Made]:
    """`map` in threads, in order, at most two results for each thread ahead of who takes them.

    Args:
        threads_each: torch's own threads of each worker. Every one would otherwise start as many as there are cores.
        on_end: called when no more is wanted, before what has begun is waited for.
    """
    import torch

    from .onednn import take_no_signals

    def begin() -> None:
        take_no_signals()
        torch.set_num_threads(threads_each)

    threads = torch.get_num_threads()
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(workers, initializer=begin) as pool:
        try:
            for one in given:
                waiting.append(pool.submit(make, one))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            on_end()
            for future in waiting:
                future.cancel()
            # The workers' setting has become that of all threads to come.
            torch.set_num_threads(threads)


def spread(given: Generator[Given], lanes: Sequence[Callable[[Given], Made]]) -> Iterator[Made]:
    """One queue for all lanes: each, in a thread of its own, takes the next thing as soon as it is free.

    What they make comes out in the order in which it is finished, at most two results for each lane ahead of who takes
    them. The first error of a lane is raised here, when the others have finished what they had begun.
    """
    from .onednn import take_no_signals

    made: queue.Queue[object] = queue.Queue(maxsize=2 * len(lanes))
    turn, unwanted = threading.Lock(), threading.Event()

    def hand_over(result: object) -> None:
        while not unwanted.is_set():
            try:
                made.put(result, timeout=_PATIENCE)
            except queue.Full:
                continue
            return

    def run(lane: Callable[[Given], Made]) -> None:
        take_no_signals()
        try:
            while not unwanted.is_set():
                with turn:
                    one = next(given, _END)
                if one is _END:
                    break
                hand_over(lane(one))  # type: ignore[arg-type]
        except BaseException as problem:
            hand_over(_Failure(problem))
        hand_over(_END)

    threads = [threading.Thread(target=run, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            result = made.get()
            if result is _END:
                running -= 1
            elif isinstance(result, _Failure):
                raise result.problem
            else:
                yield result  # type: ignore[misc]
    finally:
        unwanted.set()
        for thread in threads:
            thread.join()
        given.close()


class _Failure:
    """What a lane raised; an exception may be a result like any other."""

    def __init__(self, problem: BaseException) -> None:
        self.problem = problem
