"""The products that training consists of: the fastest library that is exact, and gradients used where they arise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# what single precision may miss in a product of a few hundred summands, relative to the largest entry; bfloat16 misses
# more than a thousand times as much
FP32_ERROR = 1e-5
Learn = Callable[[int, int, Tensor], None]  # (seed, setting, gradient of that run's weight)
_log = logging.getLogger(__name__)


@contextmanager
def fast_products() -> Iterator[None]:
    """Within the block, products in single precision on a CPU run in oneDNN where that is exact here.

    torch hands single precision to MKL, unless it is allowed to compute in bfloat16; then it asks oneDNN, which does so
    on some processors only, and on all others computes in single precision, about twice as fast as MKL. So the
    permission is given after a look at the error that it makes.
    """
    if not _is_exact("bf16"):
        yield
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@cache
def _is_exact(fp32_precision: str) -> bool:
    """Whether products of the shapes of training are still of single precision under this setting."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 768, generator=generator) for rows in (128, 512))
    stacked = torch.randn(3, 128, 256, generator=generator)
    try:
        settings.fp32_precision = fp32_precision
        found = [x @ weight.T, (x @ weight.T).T @ x, stacked @ stacked.mT]
    finally:
        settings.fp32_precision = before
    d = (x.double(), weight.double(), stacked.double())
    right = [d[0] @ d[1].T, (d[0] @ d[1].T).T @ d[0], d[2] @ d[2].mT]
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, right, strict=True)]
    _log.debug("products by oneDNN: largest relative error %.1e", max(errors))
    return max(errors) < FP32_ERROR


class WideProduct(torch.autograd.Function):
    """x Wᵀ of every seed's rows with the weights of all its settings, cut up by layer; x is data and has no gradient.

    x (seeds, batch, D) and W (seeds, settings, Σ outputs, D) → one (seeds, settings, batch, outputs) for each of
    `sizes`. `low` is W in bfloat16, in which the products are then computed, or None. With `learn`, the gradient of
    each run's weight is handed over as soon as it is computed, while it lies in the processor's cache, and W has no
    `.grad`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, low: Tensor | None, learn: Learn | None, sizes: Sequence[int]
    ) -> tuple[Tensor, ...]:
        factors = weight if low is None else low
        x = x.to(factors.dtype)
        ctx.save_for_backward(x)
        ctx.learn, ctx.shape, ctx.dtype = learn, weight.shape, weight.dtype
        if len(x) == 1:  # a product of two matrices is faster than a batch of one
            product = (x[0] @ factors.flatten(0, 2).mT).unsqueeze(0)
        else:
            product = torch.bmm(x, factors.flatten(1, 2).mT)  # (seeds, batch, settings·Σ outputs)
        by_run = product.to(weight.dtype).view(*product.shape[:2], weight.shape[1], -1).transpose(1, 2)
        return torch.split(by_run, list(sizes), dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        seeds, settings, outputs, size = ctx.shape
        if ctx.learn is None:
            joined = torch.cat(gradients, dim=-1).to(x.dtype)  # (seeds, settings, batch, Σ outputs)
            return None, (joined.mT @ x.unsqueeze(1)).to(ctx.dtype), None, None, None
        piece = torch.empty(outputs, size, dtype=x.dtype)
        full = piece if x.dtype == ctx.dtype else torch.empty(outputs, size, dtype=ctx.dtype)
        for seed in range(seeds):
            for setting in range(settings):
                joined = torch.cat([gradient[seed, setting] for gradient in gradients], dim=-1).to(x.dtype)
                torch.mm(joined.mT, x[seed], out=piece)
                if full is not piece:
                    full.copy_(piece)
                ctx.learn(seed, setting, full)
        return None, None, None, None, None
