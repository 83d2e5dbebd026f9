"""`--precision`: its name goes in; what is rounded, and in how many digits products are computed, comes out."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch
from torch import Tensor

from amber2_core.devices import exact_fp32, tensor_float_32
from amber2_core.errors import SettingError

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_log = logging.getLogger(__name__)


def rounded(x: Tensor, factors: torch.dtype) -> Tensor:
    """x rounded to bfloat16, as a tensor of `factors`."""
    return x.bfloat16().to(factors)


def low_factors(like: Tensor) -> torch.dtype:
    """In which type numbers rounded to bfloat16 are multiplied where `like` lies.

    Processors without bfloat16 products emulate them, many times slower than single precision. There the rounded
    numbers are multiplied in single precision: the same result to rounding, at its speed.
    """
    return torch.bfloat16 if like.device.type != "cpu" or _multiplies_bfloat16() else like.dtype


def check_precision(precision: Precision, device: str) -> None:
    """Raises SettingError where a device has no products of that precision."""
    if precision == "tf32" and device == "cpu":
        raise SettingError("Bad precision 'tf32' on a CPU: only GPUs have it; use --precision fp32 or --device cuda")


def warn_of_precision(precision: Precision, device: str) -> None:
    """Log where a precision saves no time."""
    if precision == "bf16" and device == "cpu" and not _multiplies_bfloat16():
        _log.warning(
            "this processor does not multiply bfloat16: --precision bf16 rounds like one that does, but is not faster "
            "than fp32"
        )


def products_in(precision: Precision, device: str) -> AbstractContextManager[None]:
    """On CUDA, all products within keep the digits of fp32, unless TensorFloat-32 was asked for."""
    return (tensor_float_32 if precision == "tf32" else exact_fp32)(torch.device(device))


def _multiplies_bfloat16() -> bool:
    """Whether this processor has products in bfloat16 (AVX-512 BF16, AMX, ARM's BF16), as it says itself.

    Timing one would tell the same but for noise, and the last digits of every result would hang on that.
    """
    return any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)
