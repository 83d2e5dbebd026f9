"""Fusions of modalities: their formulas, and one class each for the layers that a formula needs.

h_m (…, batch, D_m) is the vector of modality m, [h_1; …; h_M] all of them side by side, for two modalities or more. The
layers of gates have no bias: the equations of the gated multimodal unit have none, nor has its authors' code (Arevalo
et al. 2017, "Gated Multimodal Units for Information Fusion"). Leading run axes are allowed everywhere.

An utterance may lack a modality. Its vector then is zero (`only_present` sees to that), and its mask tells the gates,
which would give it a share of the fused vector: the result is what the fusion of the other modalities alone would be.
In `concat` and `self-gate` its part of the vector is zero.

A new fusion is a class here and a line in `FUSIONS`. torch is imported where tensors are joined, and no sooner: the
names are needed where nothing is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Masks = Sequence[Tensor | None]  # of every modality: True where an utterance has it (…, batch); None: all have


# --- formulas ---


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b: x (…, batch, in), weight (…, out, in), bias (…, out) → (…, batch, out).

    Leading axes of the weight are runs, one matrix each; x has the same ones, or fewer where runs read the same rows.
    """
    product = x @ weight.mT
    return product if bias is None else product + bias.unsqueeze(-2)


def joined(vectors: Sequence[Tensor]) -> Tensor:
    """[h_1; …; h_M] (…, batch, ΣD)."""
    import torch

    return vectors[0] if len(vectors) == 1 else torch.cat(tuple(vectors), dim=-1)


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
        return values[1].lerp(values[0], z)
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
    shares = joined(scores).softmax(-1)  # (…, batch, modalities)
    return sum_products(shares.chunk(len(values), dim=-1), values)


def self_gate(gates: Tensor, joined: Tensor) -> Tensor:
    """σ(W c)·c of the concatenation c = [h_1; …; h_M], gates W c, both (…, batch, ΣD) → (…, batch, ΣD)."""
    return gates.sigmoid() * joined


def without_score(scores: Tensor, absent: Tensor) -> Tensor:
    """Scores that a softmax makes exactly 0 where `absent`; the lowest number, as −∞ for all would make it NaN."""
    import torch

    return scores.masked_fill(absent, torch.finfo(scores.dtype).min)


def sum_products(gates: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Σ_m gate_m · value_m."""
    total = gates[0] * values[0]
    for gate, value in zip(gates[1:], values[1:], strict=True):
        total = total + gate * value
    return total


def self_attention(
    x: Tensor, into: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor], *, heads: int, valid: Tensor | None = None
) -> Tensor:
    """Multi-head self-attention among tokens x (…, batch, tokens, width) → as x, of every run.

    Args:
        into: weight (…, 3·width, width) and bias of queries, keys and values, laid out as `torch.nn.MultiheadAttention`
            does.
        out: weight (…, width, width) and bias.
        heads: by which the width can be divided.
        valid: (…, batch, tokens) those that are looked at; None: all.
    """
    three = of_tokens(x, *into)
    split = three.reshape(*three.shape[:-1], 3, heads, -1).movedim(-3, 0)  # (3, …, batch, tokens, heads, size)
    q, k, v = (part.transpose(-3, -2) for part in split)  # each (…, batch, heads, tokens, size)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if valid is not None:
        scores = without_score(scores, ~valid[..., None, None, :])
    return of_tokens((scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2), *out)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """(1 + g)·(x − mean)/√(var + 1e-5) + b over the width of tokens x (…, batch, tokens, width); g, b (…, width)."""
    from torch.nn import functional

    normed = functional.layer_norm(x, x.shape[-1:])
    return normed + normed * gain[..., None, None, :] + bias[..., None, None, :]


def of_tokens(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` of every token: x (…, batch, tokens, in), weight (…, out, in) → (…, batch, tokens, out)."""
    product = linear(x.flatten(-3, -2), weight, bias)
    return product.reshape(*product.shape[:-2], *x.shape[-3:-1], product.shape[-1])


# --- fusions ---


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer: the parameter `<name>.weight` (outputs, inputs) and, with a bias, `<name>.bias` (outputs,)."""

    name: str
    inputs: int
    outputs: int
    # the modalities whose vectors, side by side, it reads; none where it reads what other layers make of them
    reads: tuple[str, ...] = ()
    bias: bool = False
    # its weight starts from 0, and not from random numbers
    starts_at_zero: bool = False


class Fusion:
    """A fusion of modalities of the given vector sizes: the layers that it needs, and what it makes of them."""

    # whether the fused vector is [h_1; …; h_M] as it is: the fusion's head then reads the modalities' vectors itself
    joins = False
    # named `fusion.…`, in the order in which their parameters are drawn
    layers: tuple[Layer, ...] = ()

    def __init__(self, sizes: Mapping[str, int], width: int) -> None:
        self.sizes = dict(sizes)
        # size of the fused vector: the one asked for, or that of the vectors together
        self.width = width

    def fuse(self, x: Mapping[str, Tensor], present: Masks | None = None) -> Tensor:
        """The fused vector (…, batch, width), of what is there by name; not asked of one that joins.

        Args:
            x: under a modality's name its vectors h_m (…, batch, D_m), zero where an utterance lacks it; under a
                layer's, what it gives (…, batch, outputs), if it reads modalities; under a parameter's, the parameter.
            present: None where all have all; else a mask (…, batch) of each modality, in the order of `sizes`, True
                where an utterance has it, or None where all do. Of an utterance that has none, the result is zero.
        """
        raise NotImplementedError

    def layer(self, name: str, outputs: int, *modalities: str) -> Layer:
        """A layer that reads these modalities' vectors side by side."""
        return Layer(f"fusion.{name}", sum(self.sizes[m] for m in modalities), outputs, modalities)


class Concat(Fusion):
    """[h_1; …; h_M] as it is, whatever width is asked for; no layers."""

    joins = True

    def __init__(self, sizes: Mapping[str, int], width: int) -> None:
        super().__init__(sizes, sum(sizes.values()))


class SelfGate(Concat):
    """`self_gate` and its layer: `gate` (ΣD, ΣD)."""

    joins = False

    def __init__(self, sizes: Mapping[str, int], width: int) -> None:
        super().__init__(sizes, width)
        self.layers = (self.layer("gate", self.width, *sizes),)

    def fuse(self, x: Mapping[str, Tensor], present: Masks | None = None) -> Tensor:
        return self_gate(x["fusion.gate"], joined([x[m] for m in self.sizes]))


class GatedMultimodalUnit(Fusion):
    """`gmu` and its layers: `projection.<modality>` (width, D_m), and `gate` (width, ΣD), for three (3·width, ΣD)."""

    def __init__(self, sizes: Mapping[str, int], width: int) -> None:
        super().__init__(sizes, width)
        gates = 1 if len(sizes) == 2 else len(sizes)
        projections = [self.layer(f"projection.{m}", width, m) for m in sizes]
        self.layers = (*projections, self.layer("gate", gates * width, *sizes))

    def fuse(self, x: Mapping[str, Tensor], present: Masks | None = None) -> Tensor:
        return gmu(x["fusion.gate"], [x[f"fusion.projection.{m}"] for m in self.sizes], present)


class SoftmaxGate(Fusion):
    """`softmax_gate` and its layers: `projection.<modality>` (width, D_m) and the shared `score` (1, width)."""

    def __init__(self, sizes: Mapping[str, int], width: int) -> None:
        super().__init__(sizes, width)
        self.layers = (*(self.layer(f"projection.{m}", width, m) for m in sizes), Layer("fusion.score", width, 1))

    def fuse(self, x: Mapping[str, Tensor], present: Masks | None = None) -> Tensor:
        values = [x[f"fusion.projection.{m}"].tanh() for m in self.sizes]
        scores = [linear(value, x["fusion.score.weight"]) for value in values]
        return softmax_gate(scores, values, present)


class Leg:
    """A leg of deep fusion: Linear → ReLU → Linear → two encoder layers of transformers, without dropout.

    An encoder layer is `torch.nn.TransformerEncoderLayer` with its defaults, norm after each part, ReLU between the
    feed-forward layers (which have twice the width here); tokens have no positions. Gains of norms are kept less 1.
    """

    def __init__(self, name: str, inputs: int, width: int, reads: tuple[str, ...] = ()) -> None:
        self.name = name
        # four heads, where the width can be divided by four
        self.heads = math.gcd(4, width)
        self.encoders = (f"{name}.encoder1", f"{name}.encoder2")
        wide = [(f"{name}.in", inputs, width, reads), (f"{name}.out", width, width, ())]
        self.layers = tuple(Layer(*layer, bias=True) for layer in wide) + tuple(
            layer for encoder in self.encoders for layer in self._encoder(encoder, width)
        )

    def tokens(
        self, first: Tensor, parameters: Mapping[str, Tensor], valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Its first layer's outputs before bias (…, batch, tokens, width) → h1, h2, those of its encoder layers."""
        hidden = (first + parameters[f"{self.name}.in.bias"][..., None, None, :]).relu()
        x = of_tokens(hidden, *_pair(parameters, f"{self.name}.out"))
        h1 = self._encoded(x, self.encoders[0], parameters, valid)
        return h1, self._encoded(h1, self.encoders[1], parameters, valid)

    def _encoder(self, name: str, width: int) -> tuple[Layer, ...]:
        return (
            Layer(f"{name}.attention.in", width, 3 * width, bias=True),
            Layer(f"{name}.attention.out", width, width, bias=True),
            Layer(f"{name}.norm1", 1, width, bias=True, starts_at_zero=True),
            Layer(f"{name}.feed.in", width, 2 * width, bias=True),
            Layer(f"{name}.feed.out", 2 * width, width, bias=True),
            Layer(f"{name}.norm2", 1, width, bias=True, starts_at_zero=True),
        )

    def _encoded(self, x: Tensor, name: str, parameters: Mapping[str, Tensor], valid: Tensor | None) -> Tensor:
        attention_in, attention_out, norm1, feed_in, feed_out, norm2 = (
            _pair(parameters, f"{name}.{part}")
            for part in ("attention.in", "attention.out", "norm1", "feed.in", "feed.out", "norm2")
        )
        attended = self_attention(x, attention_in, attention_out, heads=self.heads, valid=valid)
        x = layer_norm(x + attended, norm1[0].squeeze(-1), norm1[1])
        return layer_norm(x + of_tokens(of_tokens(x, *feed_in).relu(), *feed_out), norm2[0].squeeze(-1), norm2[1])


class Deep(Fusion):
    """Deep fusion of MEDUSA (its code, net/leg.py and net/skeleton.py): a leg for each modality and two joint ones.

    A modality's leg gives h1, h2 and h3 = h2's mean. The first joint leg reads the h1 of all along time and gives f2,
    the second the h2 of all and f2, and gives their mean f3. The fused vector is [h3 of every modality; f3], which the
    fusion head's first layer reads. Modalities are vectors here, so a modality's leg sees one token, the joint ones M
    and 2M: attention over modalities, and not over time. A missing modality is no token, and its h3 is zero.
    """

    def __init__(self, sizes: Mapping[str, int], width: int) -> None:
        super().__init__(sizes, (len(sizes) + 1) * width)
        self._legs = [Leg(f"fusion.leg.{m}", size, width, (m,)) for m, size in sizes.items()]
        self._joint = [Leg(f"fusion.{name}", width, width) for name in ("joint1", "joint2")]
        self.layers = tuple(layer for leg in (*self._legs, *self._joint) for layer in leg.layers)

    def fuse(self, x: Mapping[str, Tensor], present: Masks | None = None) -> Tensor:
        import torch

        own = [leg.tokens(x[f"{leg.name}.in"].unsqueeze(-2), x) for leg in self._legs]
        h1, h2 = (torch.cat(some, dim=-2) for some in zip(*own, strict=True))  # (…, batch, M, width)
        valid = _there(present)
        _, f2 = _joint(self._joint[0], h1, x, valid)
        twice = None if valid is None else torch.cat((valid, valid), dim=-1)
        _, last = _joint(self._joint[1], torch.cat((h2, f2), dim=-2), x, twice)  # (…, batch, 2M, width)
        every = last.new_ones(last.shape[-2:-1], dtype=torch.bool) if twice is None else twice
        shares = every / every.sum(-1, keepdim=True).clamp_min(1)
        f3 = (shares.to(last.dtype).unsqueeze(-1) * last).sum(-2)
        h3 = h2 if valid is None else h2.masked_fill(~valid.unsqueeze(-1), 0.0)
        return torch.cat((h3.flatten(-2), f3), dim=-1)


def _joint(leg: Leg, x: Tensor, parameters: Mapping[str, Tensor], valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """A leg of tokens that other legs made."""
    return leg.tokens(of_tokens(x, parameters[f"{leg.name}.in.weight"]), parameters, valid)


def _there(present: Masks | None) -> Tensor | None:
    """Which modalities there are (…, batch, M); None: all."""
    import torch

    some = next((mask for mask in present or () if mask is not None), None)
    if some is None:
        return None
    masks = [torch.ones_like(some) if mask is None else mask for mask in present or ()]
    return torch.stack(masks, dim=-1)


def _pair(parameters: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return parameters[f"{name}.weight"], parameters[f"{name}.bias"]


FUSIONS: Mapping[str, type[Fusion]] = {
    "gmu": GatedMultimodalUnit,
    "concat": Concat,
    "softmax-gate": SoftmaxGate,
    "self-gate": SelfGate,
    "deep": Deep,
}
