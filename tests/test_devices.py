"""Devices by name, copies to them, and the precision of their products."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amber2_core import devices
from amber2_core.devices import choose_device, choose_devices, has_limit, is_out_of_memory, on, set_arithmetic
from amber2_core.errors import SettingError


def test_devices_have_names() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(SettingError, match="Bad device 'gpu', expected one of"):
        choose_device("gpu")
    with pytest.raises(SettingError, match=r"Bad device 'cuda:99': torch finds .* here; use --device cpu"):
        choose_device("cuda:99")


def test_a_stage_takes_devices_of_some_kinds_alone() -> None:
    with pytest.raises(SettingError, match=r"Bad device 'mps', expected one of \['auto', 'cpu', 'cuda', 'cuda:N'\]"):
        choose_device("mps", ("cpu", "cuda"))
    assert choose_device("auto", ("cpu",)) == torch.device("cpu")
    for name in ("cuda:", "cuda:x", "cuda:-1", "cpu:0", ""):
        with pytest.raises(SettingError, match="expected one of"):
            choose_device(name, ("cpu", "cuda"))


def test_several_devices_are_gpus_each_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_devices("cuda:0, cuda:1") == (torch.device("cuda:0"), torch.device("cuda:1"))
    assert choose_devices("cpu") == (torch.device("cpu"),)
    with pytest.raises(SettingError, match=r"Bad device 'gpu', expected one of \[.*'cuda:0,cuda:1,…'\]"):
        choose_devices("gpu")
    with pytest.raises(SettingError, match="torch finds 2 CUDA devices here"):
        choose_devices("cuda:0,cuda:2")
    with pytest.raises(SettingError, match="several must be GPUs with their numbers"):
        choose_devices("cuda:0,cpu")
    with pytest.raises(SettingError, match="one is named twice"):
        choose_devices("cuda:1,cuda:1")


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert is_out_of_memory(RuntimeError("can't start new thread"))
    assert is_out_of_memory(ImportError("libtorch_cpu.so: failed to map segment from shared object"))
    assert is_out_of_memory(ImportError("conversion.so: cannot create shared object descriptor"))
    assert is_out_of_memory(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ImportError("No module named 'torch'"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("library", ["numpy", "scipy.linalg"])
def test_a_library_that_has_no_room_for_its_buffers_is_not_loaded_and_does_not_spin(library: str) -> None:
    """80 MB are enough for the library itself, and not for what OpenBLAS asks for when it is loaded."""
    script = f"""if True:
        import resource, sys
        from amber2_core.devices import watch_loading
        if {library!r} != "numpy":
            import numpy
        own = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + 80 * 2**20,) * 2)
        watch_loading()
        try:
            import {library}
        except MemoryError as problem:
            print(problem)
        """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"not enough memory to load {library.partition('.')[0]}.")


def test_nothing_is_watched_where_memory_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert not has_limit()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**30 if kind == resource.RLIMIT_AS else -1, -1))
    assert has_limit()


# However the user has given the permission: in the words of before torch 2.9, or in those of since, or in both.
PERMISSIONS = {
    "torch's own": "",
    "to products": "torch.backends.cuda.matmul.allow_tf32 = True",
    "to nobody": "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False",
    "to products, in the new words": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "to all, in the new words": "torch.backends.fp32_precision = 'tf32'",
    "to nobody, in the new words": "torch.backends.fp32_precision = 'ieee'",
    "as the guides say": "torch.set_float32_matmul_precision('high')",
}
STATE = """
def state():
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
def agree():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32  # an error where the words differ
"""


IN_CHILDREN = """
import os, sys, traceback
def in_children(check, cases):
    for case in cases:
        child = os.fork()
        if child == 0:
            try:
                check(case)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(str(case))
"""


def run(lines: str) -> None:
    """In a process of its own: settings are the process's."""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_process_computes_fp32_on_cuda_as_it_was_told_last() -> None:
    run(f"""
import torch
from amber2_core.devices import set_arithmetic
{STATE}{IN_CHILDREN}
def check(permission):
    exec(permission)
    before = state()
    set_arithmetic(torch.device("cpu"), tf32=True)
    assert state() == before, state()
    for tf32, word in ((False, "ieee"), (True, "tf32"), (False, "ieee")):
        set_arithmetic(torch.device("cuda"), tf32=tf32)
        assert state() == (word,) * 3, state()
        assert agree() == (tf32, tf32), agree()
in_children(check, {list(PERMISSIONS.values())!r})
""")


@pytest.fixture
def products() -> Iterator[Any]:
    """torch's settings of products on the CPU, and its threads, as they were before when the test is done."""
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, threads = settings.fp32_precision, torch.get_num_threads()
    yield settings
    settings.fp32_precision = before
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("error", "word"), [(1e-7, "bf16"), (1e-3, "none")])
def test_products_on_a_cpu_run_in_onednn_where_that_is_exact_and_no_signal_is_handled(
    monkeypatch: pytest.MonkeyPatch, products: Any, error: float, word: str
) -> None:
    if not (hasattr(signal, "pthread_sigmask") and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        pytest.skip("without signals of threads, or without oneDNN")
    monkeypatch.setattr(devices, "_error", lambda: error)
    products.fp32_precision = "none"
    set_arithmetic(torch.device("cpu"))
    assert products.fp32_precision == "none"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        set_arithmetic(torch.device("cpu"))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert products.fp32_precision == word


def test_looking_at_the_error_of_onednn_leaves_torch_as_it_was(products: Any) -> None:
    before = products.fp32_precision
    assert 0 <= devices._error() < 1
    assert products.fp32_precision == before


def test_a_process_has_the_threads_that_it_was_told(products: Any) -> None:
    before = torch.get_num_threads()
    set_arithmetic(torch.device("cpu"))
    assert torch.get_num_threads() == before
    set_arithmetic(torch.device("cpu"), threads=before + 2)
    assert torch.get_num_threads() == before + 2


def test_importing_devices_loads_no_torch() -> None:
    run("import sys, amber2_core.devices; assert 'torch' not in sys.modules")


def test_what_is_copied_to_cuda_is_pinned_and_to_others_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unpinned copy that nobody waits for would be of memory that may be another's by then."""
    said: list[Any] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: said.append("pinned") or tensor)
    monkeypatch.setattr(Tensor, "to", lambda tensor, *device, **settings: said.append((*device, settings)) or tensor)
    for name in ("cuda:1", "mps", "cpu"):
        on(torch.device(name), torch.zeros(2))
    cuda, mps, cpu = map(torch.device, ("cuda:1", "mps", "cpu"))
    assert said == ["pinned", (cuda, {"non_blocking": True}), (mps, {}), (cpu, {})]
