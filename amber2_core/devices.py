"""Devices by name: the one that is meant, tensors on their way to it, memory, and in how many digits it multiplies."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .errors import SettingError, bad_choice

KINDS = ("cpu", "cuda", "mps")
_WORDS = {"cpu": ("cpu",), "cuda": ("cuda", "cuda:N"), "mps": ("mps",)}
_SEVERAL = "cuda:0,cuda:1,…"
# What torch and the libraries below it say where there is no exception of its own for it.
_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "STATUS_ALLOC_FAILED",
    # cuDNN's, where none of its ways finds room to work in
    "unable to find an engine",
)


def choose_device(name: str, kinds: Sequence[str] = KINDS, *, or_else: Sequence[str] = ()) -> torch.device:
    """The device of that name, of one of the kinds; ``auto`` is a GPU of theirs where there is one, else the CPU.

    `or_else` are other words that whoever calls understands, for the error's line.

    Raises:
        SettingError: no such device exists, here or at all, or it is of another kind.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None and accelerator.type in kinds else torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind not in kinds or not re.fullmatch(r"(cpu|mps|cuda(:\d+)?)", name):
        words = ("auto", *(word for each in kinds for word in _WORDS[each]), *or_else)
        raise SettingError(bad_choice("device", name, words))
    count = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "cuda" and int(number or 0) >= count:
        found = f"{count} CUDA device{'s' * (count > 1)}" if count else "no CUDA device"
        raise SettingError(f"Bad device {name!r}: torch finds {found} here; use --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise SettingError(f"Bad device {name!r}: this machine has none; use --device cpu")
    return torch.device(name)


def choose_devices(names: str) -> tuple[torch.device, ...]:
    """The devices of one name, or of several with commas between them: GPUs that share the work.

    Raises:
        SettingError: no such device exists, one is named twice, or several are not all GPUs.
    """
    devices = tuple(choose_device(name.strip(), or_else=(_SEVERAL,)) for name in names.split(","))
    if len(devices) > 1 and any(device.type != "cuda" or device.index is None for device in devices):
        raise SettingError(f"Bad device {names!r}: several must be GPUs with their numbers, as in cuda:0,cuda:1")
    if len(set(devices)) < len(devices):
        raise SettingError(f"Bad device {names!r}: one is named twice")
    return devices


def on(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor of the processor's on a device; on CUDA, nobody waits for the copy."""
    if device.type == "cuda":
        # torch keeps pinned memory from being used again until the copy out of it is done.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_out_of_memory(problem: RuntimeError) -> bool:
    """Whether an error of torch's says that memory has run out."""
    return isinstance(problem, torch.OutOfMemoryError) or any(words in str(problem) for words in _OUT_OF_MEMORY)


@contextmanager
def exact_fp32(device: torch.device) -> Iterator[None]:
    """On CUDA, products and convolutions in fp32 proper: TensorFloat-32 would keep three digits of them.

    The permission is the process's, not the thread's: it comes back when the last of several threads leaves.
    """
    with _exact.on(device):
        yield


@contextmanager
def tensor_float_32(device: torch.device) -> Iterator[None]:
    """On CUDA, products and convolutions in TensorFloat-32: three digits of the factors, several times as fast.

    For the whole process; not while a thread is within `exact_fp32`.
    """
    with _fast.on(device):
        yield


class _Fp32:
    """What the process computes fp32 in, "ieee" or "tf32", while blocks want it, and how many do."""

    def __init__(self, precision: str) -> None:
        self._wanted = (precision,) * len(_operations())
        self._blocks = 0
        self._before: tuple[str, ...] = ()
        self._lock = threading.Lock()

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        if device.type != "cuda":
            yield
            return
        self._begin()
        try:
            yield
        finally:
            self._end()

    def _begin(self) -> None:
        with self._lock:
            if self._blocks == 0:
                self._before = tuple(operation.fp32_precision for operation in _operations())
                _set(self._wanted)
            self._blocks += 1

    def _end(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                _set(self._before)


def _operations() -> tuple[Any, Any, Any]:
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def _set(precisions: tuple[str, ...]) -> None:
    """Set the precision of products, convolutions and recurrent layers.

    torch has two ways of saying so, and refuses to compute where they say different things: both are set.
    """
    products, convolutions, _ = precisions
    torch.backends.cuda.matmul.allow_tf32 = products == "tf32"
    torch.backends.cudnn.allow_tf32 = convolutions == "tf32"
    for operation, precision in zip(_operations(), precisions, strict=True):
        operation.fp32_precision = precision


_exact, _fast = _Fp32("ieee"), _Fp32("tf32")
