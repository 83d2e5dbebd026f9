"""Products in oneDNN: exact, permitted only where no signal is handled, and unharmed by a storm of signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import pytest
import torch

from amber2_core import onednn
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
    monkeypatch.setattr(onednn, "_error", lambda: 1e-7 if exact else 1e-3)
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


def test_products_and_their_gradients_are_of_single_precision_on_this_machine() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(rows, 384, generator=generator) for rows in (200, 700))

    def products() -> tuple[torch.Tensor, torch.Tensor]:
        with fast_products():
            y = x @ weight.T
            return y, y.T @ x

    found = in_quiet_thread(products)
    assert isinstance(found, tuple)
    y = x.double() @ weight.double().T
    for ours, right in zip(found, (y, y.T @ x.double()), strict=True):
        assert float((ours - right).abs().max() / right.abs().max()) < 1e-5


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


STORM = textwrap.dedent(
    """
    import signal, threading, time, torch
    from amber2_core.onednn import fast_products, take_no_signals

    torch.set_num_threads(2)
    handled = 0

    def handle(number, frame):
        global handled
        handled += 1

    def work():
        take_no_signals()
        x, weight = torch.randn(128, 768), torch.randn(700, 768)
        convolution, states = torch.nn.Conv1d(768, 768, 128, padding=64, groups=16), torch.randn(1, 768, 50)
        end = time.monotonic() + 3
        with fast_products(), torch.no_grad():
            while time.monotonic() < end:
                (x @ weight.T).T @ x
                convolution(states)
                torch.randn(1000).clone()

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        thread.join(0.01)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(handled)
    """
)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that send signals")
def test_a_storm_of_signals_does_not_harm_the_heap() -> None:
    """With torch 2.11 the same work in the main thread ends in "corrupted size vs. prev_size" within a second."""
    done = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
