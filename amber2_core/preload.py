"""What a fork server imports before it forks, and memory that ran out while it did.

Importing it does the work, in a fork server or in a worker that comes from none. multiprocessing's own way to load
modules beforehand ends the server, with a traceback, at whatever is no ImportError, and keeps to itself what is one.
"""

from __future__ import annotations

import importlib
import os

from .devices import is_out_of_memory, watch_loading

_shortage: list[Exception] = []


def check() -> None:
    """Raise in a worker what its fork server ran out of memory with: it has the same limit, and half of the modules."""
    if _shortage:
        raise _shortage[0]


def _load(names: list[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as problem:
            # A library that is broken is met again by the worker that uses it, and told there.
            if is_out_of_memory(problem):
                _shortage.append(problem)
                return


watch_loading()
_load(os.environ.get("AMBER2_PRELOADED", "").split())
