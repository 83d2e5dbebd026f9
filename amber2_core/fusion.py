"""Fusion of modalities: one vector per modality in, one fused vector out, for two modalities or more.

h_m (…, batch, D_m) is the vector of modality m, [h_1; …; h_M] all of them side by side. The formulas are functions of
what the linear layers give; the modules below own these layers and call the formulas. No layer here has a bias: the
equations of the gated multimodal unit have none, nor has its authors' code (Arevalo et al. 2017, "Gated Multimodal
Units for Information Fusion"). Leading run axes on the parameters are allowed, as in `amber2_core.linear`.

An utterance may lack a modality. Its vector then is zero (`only_present` sees to that), and `present`, booleans
(…, batch) per modality, tells the gates, which would give it a share of the fused vector: the result is what the fusion
of the other modalities alone would be. In `concat` and `self-gate` its part of the vector is zero.
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
Masks = Sequence[Tensor | None]  # of every modality: True where an utterance has it (…, batch); None: all have


def only_present(vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Vectors (…, batch, D_m) by modality, with zeros in place of whatever stands where an utterance lacks one."""
    return {
        name: x.masked_fill(~present[name].unsqueeze(-1), 0.0) if name in present else x for name, x in vectors.items()
    }


def gmu(gates: Tensor, projections: Sequence[Tensor], present: Masks | None = None) -> Tensor:
    """Gated multimodal unit: gates W_z[h_1; …; h_M] and projections W_m h_m (…, batch, width) → (…, batch, width).

    Two modalities share one gate: z = σ(W_z[h_1; h_2]), h = z·tanh(W_1 h_1) + (1−z)·tanh(W_2 h_2). More have one gate
    each, side by side in `gates` (…, batch, M·width), h = Σ_m σ(W_zm[h_1; …; h_M])·tanh(W_m h_m), as in the paper:
    these gates do not sum to one.

    Of two modalities, the one that is there has the whole unit: z is 1 where the second is missing, 0 where the first
    is. Of more, a missing one adds nothing, as its value tanh(W_m 0) is zero.
    """
    values = [projection.tanh() for projection in projections]
    if len(values) == 2:
        z = gates.sigmoid()
        for mask, share in zip(present or (), (0.0, 1.0), strict=False):
            z = z if mask is None else z.masked_fill(~mask.unsqueeze(-1), share)
        return torch.lerp(values[1], values[0], z)
    return sum_products(gates.sigmoid().chunk(len(values), dim=-1), values)


def softmax_gate(scores: Sequence[Tensor], values: Sequence[Tensor], present: Masks | None = None) -> Tensor:
    """h = Σ_m a_m tanh(W_m h_m), a = softmax over m of one score v·tanh(W_m h_m) per modality, v shared by all.

    Scores (…, batch, 1), values tanh(W_m h_m) (…, batch, width) → (…, batch, width). A missing modality has no share.
    """
    if present is not None:
        scores = [
            score if mask is None else without_score(score, ~mask.unsqueeze(-1))
            for score, mask in zip(scores, present, strict=True)
        ]
    shares = torch.cat(tuple(scores), dim=-1).softmax(-1)  # (…, batch, modalities)
    return sum_products(shares.chunk(len(values), dim=-1), values)


def self_gate(gates: Tensor, joined: Tensor) -> Tensor:
    """σ(W c)·c of the concatenation c = [h_1; …; h_M], gates W c, both (…, batch, ΣD) → (…, batch, ΣD)."""
    return gates.sigmoid() * joined


def without_score(scores: Tensor, absent: Tensor) -> Tensor:
    """Scores that a softmax makes exactly 0 where `absent`; the lowest number, as −∞ for all would make it NaN."""
    return scores.masked_fill(absent, torch.finfo(scores.dtype).min)


def sum_products(gates: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Σ_m gate_m · value_m."""
    total = gates[0] * values[0]
    for gate, value in zip(gates[1:], values[1:], strict=True):
        total = total + gate * value
    return total


class FusionLayer(nn.Module):
    """Vectors by modality (…, batch, D_m) → one vector (…, batch, `width`); `inputs` gives every modality's D_m.

    Where some utterances lack a modality, `present` gives (…, batch) booleans for it, and their vectors are zero.
    """

    width: int

    def __init__(self, inputs: Mapping[str, int]) -> None:
        super().__init__()
        self.modalities = tuple(inputs)

    def joined(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """[h_1; …; h_M] (…, batch, ΣD)."""
        return torch.cat([vectors[modality] for modality in self.modalities], dim=-1)

    def masks(self, present: Mapping[str, Tensor] | None) -> Masks | None:
        """`present` in the order of the modalities."""
        return None if present is None else [present.get(modality) for modality in self.modalities]


class Concat(FusionLayer):
    """[h_1; …; h_M] as it is; no parameters."""

    def __init__(self, inputs: Mapping[str, int], width: int = 0, *, generator: Generator | None = None) -> None:
        super().__init__(inputs)
        self.width = sum(inputs.values())

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.joined(vectors)


class SelfGate(FusionLayer):
    """`self_gate` and its layer: `gate` (ΣD, ΣD). The fused vector is as wide as the concatenation."""

    def __init__(self, inputs: Mapping[str, int], width: int = 0, *, generator: Generator | None = None) -> None:
        super().__init__(inputs)
        self.width = sum(inputs.values())
        self.gate = Linear(self.width, self.width, bias=False, generator=generator)

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Tensor:
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

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Tensor:
        return gmu(self.gate(self.joined(vectors)), self.projected(vectors), self.masks(present))


class SoftmaxGate(ProjectedFusion):
    """`softmax_gate` and its layers: projections and the shared `score` (1, width)."""

    def __init__(self, inputs: Mapping[str, int], width: int, *, generator: Generator | None = None) -> None:
        super().__init__(inputs, width, generator=generator)
        self.score = Linear(width, 1, bias=False, generator=generator)

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Tensor:
        values = [projection.tanh() for projection in self.projected(vectors)]
        return softmax_gate([self.score(value) for value in values], values, self.masks(present))


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
