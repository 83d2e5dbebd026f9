"""Linear maps whose parameters may carry leading run axes: vectors and a weight per run in, products per run out."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b: x (…, batch, in), weight (…, out, in), bias (…, out) → (…, batch, out).

    Without leading axes on the weight this is `torch.nn.functional.linear`. With them there is one matrix per run, and
    x has the same leading axes, or none where all runs read the same rows.
    """
    if weight.ndim == 2:
        return functional.linear(x, weight, bias)
    product = x @ weight.mT
    return product if bias is None else product + bias.unsqueeze(-2)


def init_linear(
    inputs: int, outputs: int, *, bias: bool = True, generator: Generator | None = None
) -> tuple[Tensor, Tensor | None]:
    """A fresh weight (outputs, inputs) and bias (outputs,), each U(±1/√inputs): what `torch.nn.Linear` draws.

    Drawn in single precision on the CPU, weight before bias, from `generator`, else from torch's own. A run that owns
    its generator gets the same parameters whatever else is drawn around it, and on whatever device it then trains.
    """
    bound = inputs**-0.5
    weight = torch.empty(outputs, inputs, dtype=torch.float32, device="cpu").uniform_(
        -bound, bound, generator=generator
    )
    if not bias:
        return weight, None
    return weight, torch.empty(outputs, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=generator)


class Linear(nn.Module):
    """`torch.nn.Linear` with parameters from a generator; `torch.func.functional_call` may pass it stacked ones."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, generator: Generator | None = None) -> None:
        super().__init__()
        weight, offset = init_linear(inputs, outputs, bias=bias, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = None if offset is None else nn.Parameter(offset)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
