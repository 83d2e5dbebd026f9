"""Fusion of modalities: one vector per modality in, one fused vector out, for two modalities or more.

h_m (…, batch, D_m) is the vector of modality m, [h_1; …; h_M] all of them side by side. The formulas are functions of
what the linear layers give; the modules below own these layers and call the formulas. No layer here has a bias: the
equations of the gated multimodal unit have none, nor has its authors' code (Arevalo et al. 2017, "Gated Multimodal
Units for Information Fusion"). Leading run axes on the parameters are allowed, as in `amber2_core.linear`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn

from amber2_core.errors import SettingError, bad_choice
from amber2_core.linear import Linear

Fusion = Literal["gmu", "concat", "softmax-gate", "self-gate"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)


def gmu(gates: Tensor, projections: Sequence[Tensor]) -> Tensor:
    """Gated multimodal unit: gates W_z[h_1; …; h_M] and projections W_m h_m (…, batch, width) → (…, batch, width).

    Two modalities share one gate: z = σ(W_z[h_1; h_2]), h = z·tanh(W_1 h_1) + (1−z)·tanh(W_2 h_2). More have one gate
    each, side by side in `gates` (…, batch, M·width), h = Σ_m σ(W_zm[h_1; …; h_M])·tanh(W_m h_m), as in the paper:
    these gates do not sum to one.
    """
    values = [projection.tanh() for projection in projections]
    if len(values) == 2:
        return torch.lerp(values[1], values[0], gates.sigmoid())
    return sum_products(gates.sigmoid().chunk(len(values), dim=-1), values)


def softmax_gate(scores: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """h = Σ_m a_m tanh(W_m h_m), a = softmax over m of one score v·tanh(W_m h_m) per modality, v shared by all.

    Scores (…, batch, 1), values tanh(W_m h_m) (…, batch, width) → (…, batch, width).
    """
    shares = torch.cat(tuple(scores), dim=-1).softmax(-1)  # (…, batch, modalities)
    return sum_products(shares.chunk(len(values), dim=-1), values)


def self_gate(gates: Tensor, joined: Tensor) -> Tensor:
    """σ(W c)·c of the concatenation c = [h_1; …; h_M], gates W c, both (…, batch, ΣD) → (…, batch, ΣD)."""
    return gates.sigmoid() * joined


def sum_products(gates: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Σ_m gate_m · value_m."""
    total = gates[0] * values[0]
    for gate, value in zip(gates[1:], values[1:], strict=True):
        total = total + gate * value
    return total


class FusionLayer(nn.Module):
    """Vectors by modality (…, batch, D_m) → one vector (…, batch, `width`); `inputs` gives every modality's D_m."""

    width: int

    def __init__(self, inputs: Mapping[str, int]) -> None:
        super().__init__()
        self.modalities = tuple(inputs)

    def joined(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """[h_1; …; h_M] (…, batch, ΣD)."""
        return torch.cat([vectors[modality] for modality in self.modalities], dim=-1)


class Concat(FusionLayer):
    """[h_1; …; h_M] as it is; no parameters."""

    def __init__(self, inputs: Mapping[str, int], width: int = 0, *, generator: Generator | None = None) -> None:
        super().__init__(inputs)
        self.width = sum(inputs.values())

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        return self.joined(vectors)


class SelfGate(FusionLayer):
    """`self_gate` and its layer: `gate` (ΣD, ΣD). The fused vector is as wide as the concatenation."""

    def __init__(self, inputs: Mapping[str, int], width: int = 0, *, generator: Generator | None = None) -> None:
        super().__init__(inputs)
        self.width = sum(inputs.values())
        self.gate = Linear(self.width, self.width, bias=False, generator=generator)

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        joined = self.joined(vectors)
        return self_gate(self.gate(joined), joined)


class ProjectedFusion(FusionLayer):
    """A fusion of projections W_m h_m of one width: layers `projection.<modality>` (width, D_m)."""

    def __init__(self, inputs: Mapping[str, int], width: int, *, generator: Generator | None = None) -> None:
        super().__init__(inputs)
        self.width = width
        self.projection = nn.ModuleDict(
            {name: Linear(size, width, bias=False, generator=generator) for name, size in inputs.items()}
        )

    def projected(self, vectors: Mapping[str, Tensor]) -> list[Tensor]:
        """W_m h_m, each (…, batch, width)."""
        return [self.projection[modality](vectors[modality]) for modality in self.modalities]


class GatedMultimodalUnit(ProjectedFusion):
    """`gmu` and its layers: projections and `gate` (width, ΣD), for more than two modalities (M·width, ΣD)."""

    def __init__(self, inputs: Mapping[str, int], width: int, *, generator: Generator | None = None) -> None:
        super().__init__(inputs, width, generator=generator)
        gates = 1 if len(inputs) == 2 else len(inputs)
        self.gate = Linear(sum(inputs.values()), gates * width, bias=False, generator=generator)

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        return gmu(self.gate(self.joined(vectors)), self.projected(vectors))


class SoftmaxGate(ProjectedFusion):
    """`softmax_gate` and its layers: projections and the shared `score` (1, width)."""

    def __init__(self, inputs: Mapping[str, int], width: int, *, generator: Generator | None = None) -> None:
        super().__init__(inputs, width, generator=generator)
        self.score = Linear(width, 1, bias=False, generator=generator)

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        values = [projection.tanh() for projection in self.projected(vectors)]
        return softmax_gate([self.score(value) for value in values], values)


_LAYERS: Mapping[str, type[Concat | SelfGate | GatedMultimodalUnit | SoftmaxGate]] = {
    "gmu": GatedMultimodalUnit,
    "concat": Concat,
    "softmax-gate": SoftmaxGate,
    "self-gate": SelfGate,
}


def fusion_layer(
    fusion: Fusion, inputs: Mapping[str, int], *, width: int = 256, generator: Generator | None = None
) -> FusionLayer:
    """A fresh layer of the named fusion for modalities of the sizes `inputs`; its `width` is what a head then reads.

    `concat` and `self-gate` are as wide as their inputs together, whatever `width`. SettingError for another name.
    """
    if fusion not in _LAYERS:
        raise SettingError(bad_choice("fusion", fusion, FUSIONS))
    return _LAYERS[fusion](inputs, width, generator=generator)
