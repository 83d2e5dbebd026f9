"""Products in oneDNN: permitted only where they are exact and no signal is handled."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest
import torch

from amber2_core import devices, onednn
from amber2_core.onednn import fast_products, take_no_signals


def permission() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


def in_quiet_thread(work: Callable[[], object]) -> object:
    found = []

    def run() -> None:
        take_no_signals()
        found.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def within() -> str:
    with fast_products():
        return permission()


@pytest.mark.parametrize("exact", [True, False])
def test_it_computes_only_where_it_is_exact_and_only_within_the_block(
    monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    monkeypatch.setattr(onednn._permission, "_is_exact", None)
    monkeypatch.setattr(devices, "_error", lambda: 1e-7 if exact else 1e-3)
    before = permission()
    assert in_quiet_thread(within) == ("bf16" if exact and torch.backends.mkldnn.is_available() else before)  # type: ignore[no-untyped-call]
    assert permission() == before


def test_a_thread_that_takes_signals_keeps_torchs_own_library() -> None:
    assert within() == permission()


def test_the_permission_ends_when_the_last_of_several_threads_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn._permission, "_is_exact", True)
    before = permission()
    inside, leave = threading.Event(), threading.Event()

    def longer() -> None:
        take_no_signals()
        with fast_products():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=longer)
    thread.start()
    assert inside.wait(30)
    assert in_quiet_thread(within) == "bf16"
    assert permission() == "bf16"
    leave.set()
    thread.join()
    assert permission() == before


def test_faults_of_the_thread_itself_are_still_reported() -> None:
    if not hasattr(signal, "pthread_sigmask"):
        pytest.skip("signals are not a thread's here")

    def blocked() -> set[int]:
        return set(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    found = in_quiet_thread(blocked)
    assert isinstance(found, set)
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGALRM} <= found
    assert not found & {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS}
    assert signal.SIGINT not in blocked()
