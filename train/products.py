"""The products that training consists of: vectors and the weights of many runs in, a layer's output per run out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Learn = Callable[[int, int, Tensor], None]  # (seed, setting, gradient of that run's weight)


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
