"""`--precision`: its name goes in; what is rounded, and in how many digits products are computed, comes out."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch

from amber2_core.devices import exact_fp32, tensor_float_32
from amber2_core.errors import SettingError

from .stacked import kernels

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_log = logging.getLogger(__name__)


def check_precision(precision: Precision, device: str) -> None:
    """Raises SettingError where a device has no products of that precision."""
    if precision == "tf32" and device == "cpu":
        raise SettingError("Bad precision 'tf32' on a CPU: only GPUs have it; use --precision fp32 or --device cuda")


def warn_of_precision(precision: Precision, device: str) -> None:
    """Log where a precision saves no time."""
    if precision == "bf16" and device == "cpu" and not kernels.multiplies_bfloat16():
        _log.warning(
            "this processor does not multiply bfloat16: --precision bf16 rounds like one that does, but is not faster "
            "than fp32"
        )


def products_in(precision: Precision, device: str) -> AbstractContextManager[None]:
    """On CUDA, all products within keep the digits of fp32, unless TensorFloat-32 was asked for."""
    return (tensor_float_32 if precision == "tf32" else exact_fp32)(torch.device(device))
