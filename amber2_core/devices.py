"""Devices by name, tensors on their way to them, memory that ran out, and what a process computes fp32 in.

Importing this module loads no torch: its functions do.
"""

from __future__ import annotations

import functools
import logging
import mmap
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import SettingError, bad_choice

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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
    # oneDNN's, which says no more, on processors
    "could not create a memory",
    "could not create a primitive",
    "could not execute a primitive",
    # C++'s, the thread library's, the loader's
    "bad_alloc",
    "can't start new thread",
    "failed to map segment",
    "annot allocate",
    "cannot change memory protections",
    "cannot create shared object descriptor",
    "cannot map zero-fill pages",
)
# bytes: OpenBLAS's buffer and stack for each of its threads, 40 MB as seen, and the libraries beside it, 40 MB
_PER_THREAD, _BESIDES = 2**20 * 48, 2**20 * 64

# What single precision may miss in a product of some hundred summands, relative to the largest entry; bfloat16 misses
# more than a thousand times as much.
FP32_ERROR = 1e-5
_log = logging.getLogger(__name__)


def choose_device(name: str, kinds: Sequence[str] = KINDS, *, or_else: Sequence[str] = ()) -> torch.device:
    """The device of that name, of one of the kinds; ``auto`` is a GPU of theirs where there is one, else the CPU.

    `or_else` are other words that whoever calls understands, for the error's line.

    Raises:
        SettingError: no such device exists, here or at all, or it is of another kind.
    """
    import torch

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


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error of Python's, of torch's or of the libraries below them says that memory has run out."""
    kinds = (RuntimeError, ImportError, OSError)  # torch.OutOfMemoryError is a RuntimeError that says "out of memory"
    return isinstance(problem, MemoryError) or (
        isinstance(problem, kinds) and any(words in str(problem) for words in _OUT_OF_MEMORY)
    )


def memory_in_words(problem: BaseException) -> str:
    """What ran out, as it was said, and what needs less: ``can't start new thread; raise the limit of memory, …``."""
    lines = [line.strip() for line in str(problem).splitlines()]
    telling = [line for line in lines if any(words in line for words in _OUT_OF_MEMORY)]
    said = next(iter([*telling, *filter(None, lines)]), type(problem).__name__)
    return f"{said}; raise the limit of memory (ulimit -v, a job's), or let fewer workers run: OMP_NUM_THREADS=1"


@functools.cache
def watch_loading() -> None:
    """Where memory is limited: from now on this process loads numpy's and scipy's libraries only if they have room.

    The OpenBLAS in them may ask for its buffers for ever where it gets none, and in a fork server no signal ends that:
    what has no room is a MemoryError.
    """
    if has_limit():
        sys.addaudithook(_see_room)


def has_limit() -> bool:
    """Whether the memory that this process may ask for is limited, as by ``ulimit -v``."""
    try:
        import resource
    except ImportError:
        return False
    limits = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return any(limit != resource.RLIM_INFINITY for limit in limits)


def _see_room(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook, which can never be taken away; libraries have a file, modules in Python none."""
    if event != "import" or not args[1] or not re.search(r"[\\/](numpy[\\/]_core|scipy)[\\/]", args[1]):
        return
    said = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    threads = int(said) if said.isdecimal() else os.cpu_count() or 1
    try:
        mmap.mmap(-1, _BESIDES + _PER_THREAD * min(threads, os.cpu_count() or 1)).close()
    except OSError:
        raise MemoryError(f"not enough memory to load {args[0]}") from None


def set_arithmetic(device: torch.device, *, tf32: bool = False, threads: int | None = None) -> None:
    """Settle, for the whole process, what fp32 is computed in, and by how many of torch's own threads.

    On CUDA products, convolutions and recurrent layers keep all digits of fp32, or, with `tf32`, three of their factors
    at several times the speed. On a CPU products run in oneDNN where that is exact, if this thread handles no signal,
    as in a worker: torch hands them to MKL unless it is allowed to compute in bfloat16; then it asks oneDNN, which does
    so on some processors only, and on others computes in single precision, faster than MKL.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        _set("tf32" if tf32 else "ieee")
    elif device.type == "cpu" and not _takes_signals() and one_dnn_is_exact():
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]


def one_dnn_is_exact() -> bool:
    """Whether products of heads and encoders are of single precision with the permission to use bfloat16."""
    import torch

    return bool(torch.backends.mkldnn.is_available()) and _error() < FP32_ERROR  # type: ignore[no-untyped-call]


def _error() -> float:
    """The largest error of some products with the permission, relative to the largest entry."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 768, generator=generator) for rows in (128, 512))
    stacked = torch.randn(3, 128, 256, generator=generator)
    bias = torch.randn(512, generator=generator)
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        found = _products(x, weight, stacked, bias)
    finally:
        settings.fp32_precision = before
    right = _products(x.double(), weight.double(), stacked.double(), bias.double())
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, right, strict=True))
    _log.debug("products by oneDNN: largest relative error %.1e", error)
    return error


def _products(x: Tensor, weight: Tensor, stacked: Tensor, bias: Tensor) -> list[Tensor]:
    """x Wᵀ, its weight's gradient, a linear layer of one row and of all, a batch of products."""
    from torch.nn.functional import linear

    y = x @ weight.T
    layers = [linear(rows, weight, bias) for rows in (x[:1], x)]
    return [y, y.T @ x, *layers, stacked @ stacked.mT]


def _takes_signals() -> bool:
    """Whether this thread may be made to handle a signal; oneDNN's products would not survive it."""
    return hasattr(signal, "pthread_sigmask") and signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def _set(precision: str) -> None:
    """Set the precision of products, convolutions and recurrent layers on CUDA, "ieee" or "tf32".

    torch has two ways of saying so, and refuses to compute where they say different things: both are set.
    """
    import torch

    cudnn: Any = torch.backends.cudnn
    torch.backends.cuda.matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    for operation in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn):
        operation.fp32_precision = precision
