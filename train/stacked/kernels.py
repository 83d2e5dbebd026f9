"""The matrix products that training consists of, for many runs at once, and how bfloat16 is rounded and multiplied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Learn = Callable[[int, int, Tensor], None]  # (seed, setting, gradient of that run's weight, overwritten thereafter)


def rounded(x: Tensor, factors: torch.dtype) -> Tensor:
    """x rounded to bfloat16, as a tensor of `factors`."""
    return x.bfloat16().to(factors)


def low_factors(like: Tensor) -> torch.dtype:
    """In which type numbers rounded to bfloat16 are multiplied where `like` lies.

    Processors without bfloat16 products emulate them, many times slower than single precision. There the rounded
    numbers are multiplied in single precision: the same result to rounding, at its speed.
    """
    return torch.bfloat16 if like.device.type != "cpu" or multiplies_bfloat16() else like.dtype


def multiplies_bfloat16() -> bool:
    """Whether this processor has products in bfloat16 (AVX-512 BF16, AMX, ARM's BF16), as it says itself.

    Timing one would tell the same but for noise, and the last digits of every result would hang on that.
    """
    return any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)


class WideProduct(torch.autograd.Function):
    """x Wᵀ of every seed's rows with the weights of all its settings, cut up by layer.

    x (seeds, batch, D) and W (seeds, settings, Σ outputs, D) → one (seeds, settings, batch, outputs) for each of
    `sizes`. x is data and has no gradient; where runs learn what to read, x is (seeds, settings, batch, D) and has one.
    `low` is W `rounded` to bfloat16, as all factors and products then are, or None. With `learn`, the gradient
    of each run's weight is handed over as soon as it is computed, while it lies in the processor's cache, and W has no
    `.grad`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, low: Tensor | None, learn: Learn | None, sizes: Sequence[int]
    ) -> tuple[Tensor, ...]:
        to_low = _as_it_is if low is None else partial(rounded, factors=low.dtype)
        factors, x = weight if low is None else low, to_low(x)
        ctx.save_for_backward(x, *([factors] if ctx.needs_input_grad[0] else []))
        ctx.learn, ctx.to_low, ctx.sizes, ctx.shape, ctx.dtype = learn, to_low, sizes, weight.shape, weight.dtype
        parts = _run_by_run(x, factors, sizes) if x.device.type == "cpu" else _all_at_once(x, factors, sizes)
        return tuple(to_low(part).to(weight.dtype) for part in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *factors = ctx.saved_tensors
        seeds, settings, outputs, size = ctx.shape
        of_x = None
        if ctx.learn is None or factors:
            joined = ctx.to_low(torch.cat(gradients, dim=-1))  # (seeds, settings, batch, Σ outputs)
            if factors:  # before the weights are updated
                of_x = ctx.to_low(joined @ factors[0]).to(ctx.dtype)
        if ctx.learn is None:
            rows = x if factors else x.unsqueeze(1)
            return of_x, ctx.to_low(joined.mT @ rows).to(ctx.dtype), None, None, None
        piece, full = (torch.empty(outputs, size, dtype=dtype) for dtype in (x.dtype, ctx.dtype))
        places = torch.split(piece, list(ctx.sizes))
        for seed in range(seeds):
            for setting in range(settings):
                for part, place in zip(gradients, places, strict=True):
                    torch.mm(ctx.to_low(part[seed, setting]).mT, _of_run(x, seed, setting), out=place)
                gradient = ctx.to_low(piece)
                ctx.learn(seed, setting, gradient if gradient.dtype == ctx.dtype else full.copy_(gradient))
        return of_x, None, None, None, None


def _run_by_run(x: Tensor, factors: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """The wide product's parts, each as one piece of memory: what a processor computes then stays in its cache."""
    seeds, settings = factors.shape[:2]
    parts = [torch.empty(seeds, settings, x.shape[-2], size, dtype=x.dtype) for size in sizes]
    for seed in range(seeds):
        for setting in range(settings):
            for part, layer in zip(parts, torch.split(factors[seed, setting], list(sizes)), strict=True):
                torch.mm(_of_run(x, seed, setting), layer.mT, out=part[seed, setting])
    return parts


def _all_at_once(x: Tensor, factors: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """The same with one call."""
    rows = x.unsqueeze(1) if x.ndim == 3 else x
    return torch.split(rows @ factors.mT, list(sizes), dim=-1)


def _of_run(x: Tensor, seed: int, setting: int) -> Tensor:
    """A run's rows (batch, D), where settings share them or not."""
    return x[seed] if x.ndim == 3 else x[seed, setting]


def run_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`amber2_core.fusion.linear` of every run, quicker: with a bias, as a layer over the few classes has it."""
    if bias is None:
        return RunLinear.apply(x, weight)  # type: ignore[no-any-return, no-untyped-call]
    return ClassScores.apply(x, weight, bias).mT  # type: ignore[no-any-return, no-untyped-call]


class RunLinear(torch.autograd.Function):
    """h Wᵀ of every run, h (…, batch, inputs) and W (…, outputs, inputs) → (…, batch, outputs).

    autograd's own gradient of W would come transposed, and be turned round once more to lie as W does.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return hidden @ weight.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        return gradient @ weight, gradient.mT @ hidden


class ClassScores(torch.autograd.Function):
    """W h + b of every run with classes first, where losses want them: h (…, batch, hidden) → (…, classes, batch).

    Over the few classes, autograd's own products for h Wᵀ would take three times as long.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return (weight @ hidden.mT).add_(bias.unsqueeze(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        return gradient.mT @ weight, gradient @ hidden, gradient.sum(-1)


def _as_it_is(x: Tensor) -> Tensor:
    return x
