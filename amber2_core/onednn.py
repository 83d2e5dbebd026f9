"""Products in single precision on a CPU: torch's second library for them, where it is exact and no signal meets it.

torch hands them to MKL, unless it is allowed to compute in bfloat16; then it asks oneDNN, which does so on some
processors only, and on others computes in single precision, faster than MKL. So the permission is given after a look
at the error that it makes.

While oneDNN before 3.11.2 (torch 2.11 brings 3.10) computes such a product, its stack pointer may point into the heap,
and whatever handles a signal in that thread, be it Ctrl-C or a profiler, writes over what lies there
(https://github.com/uxlfoundation/oneDNN/issues/4845). Convolutions contain these products, permission or not. So what
computes much does it in a thread that takes no signals, and the permission holds in such threads alone.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .devices import _takes_signals, one_dnn_is_exact

# A thread raises these itself, by a fault of its own.
_FAULTS = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGTRAP"}


def take_no_signals() -> None:
    """From now on no signal is handled in this thread, nor in the threads that it starts: other threads do it.

    Where signals are not a thread's (Windows), nothing changes.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [s for s in signal.valid_signals() if _name(s) not in _FAULTS])


@contextmanager
def fast_products() -> Iterator[None]:
    """Within the block fp32 products on the CPU run in oneDNN, if that is exact here and the thread takes no signals.

    The permission is the process's: it ends when the last of several threads leaves.
    """
    if _takes_signals() or not _permission.gives_exact_products():
        yield
        return
    _permission.give()
    try:
        yield
    finally:
        _permission.withdraw()


def _name(number: int) -> str:
    return number.name if isinstance(number, signal.Signals) else ""


class _Permission:
    """torch's permission to compute fp32 products in bfloat16, and how many blocks want it."""

    def __init__(self) -> None:
        self._blocks = 0
        self._before: Any = None
        self._is_exact: bool | None = None
        self._lock = threading.Lock()

    def give(self) -> None:
        with self._lock:
            if self._blocks == 0:
                self._before = _settings().fp32_precision
                _settings().fp32_precision = "bf16"
            self._blocks += 1

    def withdraw(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                _settings().fp32_precision = self._before

    def gives_exact_products(self) -> bool:
        """Whether products of heads and encoders are still of single precision with the permission; tried once."""
        with self._lock:
            if self._is_exact is None:
                self._is_exact = one_dnn_is_exact()
            return self._is_exact


def _settings() -> Any:
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


_permission = _Permission()
