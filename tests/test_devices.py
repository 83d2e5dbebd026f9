"""Devices by name, copies to them, and the precision of their products."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from amber2_core.devices import choose_device, choose_devices, is_out_of_memory, on
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
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


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


def test_tensorfloat_is_off_or_on_inside_and_as_it_was_after_the_last_of_several_threads() -> None:
    """In processes of their own: the permission is the process's."""
    lines = f"""
import os, sys, traceback
import torch
from amber2_core.devices import exact_fp32, tensor_float_32
{STATE}
def check(permission):
    exec(permission)
    before = state()
    first, second = exact_fp32(torch.device("cuda")), exact_fp32(torch.device("cuda"))
    with exact_fp32(torch.device("cpu")):
        assert state() == before
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert state() == ("ieee",) * 3, state()
    assert agree() == (False, False), agree()
    second.__exit__(None, None, None)
    assert state() == before, (before, state())
    agree()
    with tensor_float_32(torch.device("cuda")):
        assert state() == ("tf32",) * 3, state()
        assert agree() == (True, True), agree()
    assert state() == before, (before, state())
    agree()
for name, permission in {PERMISSIONS!r}.items():
    child = os.fork()
    if child == 0:
        try:
            check(permission)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(name)
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_copied_to_cuda_is_pinned_and_to_others_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unpinned copy that nobody waits for would be of memory that may be another's by then."""
    said: list[Any] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: said.append("pinned") or tensor)
    monkeypatch.setattr(Tensor, "to", lambda tensor, *device, **settings: said.append((*device, settings)) or tensor)
    for name in ("cuda:1", "mps", "cpu"):
        on(torch.device(name), torch.zeros(2))
    cuda, mps, cpu = map(torch.device, ("cuda:1", "mps", "cpu"))
    assert said == ["pinned", (cuda, {"non_blocking": True}), (mps, {}), (cpu, {})]
