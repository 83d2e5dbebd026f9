"""What a head makes its vector of: cached vectors as they are, a learnt sum of layers, or a learnt pooling of frames.

Where something is learnt, every head has an input stage of its own for each modality that it reads, so that heads share
no parameter: `heads.<modality>.…` reads for the modality's head, `fusion.inputs.<modality>.…` for the fusion. Leading
run axes are allowed everywhere: parameters (*runs, …), data (*runs, …) with 1 where runs read the same rows. A new
pooling is a class here and a line in `POOLINGS`. torch is imported where tensors are computed, and no sooner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from amber2_core.fusion import Layer, without_score

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION_WIDTH = 128  # units of the attention's hidden layer
POINTWISE_WIDTH = 256  # of each of the pointwise convolutions
LEAST_VARIANCE = 1e-5
NORM_EPSILON = 1e-5  # beside the variance of a layer's dimensions


# --- formulas ---


def weighted_layers(x: Tensor, scores: Tensor) -> Tensor:
    """h = Σ_l softmax(a)_l h_l: x (*runs, batch, layers, D), a (*runs, 1, layers) → (*runs, batch, D).

    The learnt layer sum of speech probes (s3prl, EMO-SUPERB): a = 0 at the start, no normalisation of its own.
    """
    shares = scores.softmax(-1)  # (*runs, 1, layers)
    layers_first = x.transpose(-3, -2).flatten(-2)  # (*runs, layers, batch·D)
    summed = _of_all_runs(shares, layers_first).squeeze(-2)  # (*runs, batch·D)
    return summed.reshape(*summed.shape[:-1], x.shape[-3], x.shape[-1])


def attentive_statistics(x: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
    """[μ; σ] of frames x (*runs, batch, T, D) by scores e (*runs, batch, T) → (*runs, batch, 2D).

    α = softmax_t(e) over the valid frames (*runs, batch, T); μ = Σ α x, σ = √max(Σ α x² − μ², 1e-5). Attentive
    statistics pooling (Okabe et al. 2018) in the form of the baseline of the MSP-Podcast challenge of 2025. Cached
    frames may be means of several: σ then lacks the variance within these.
    """
    import torch

    shares = without_score(scores, ~valid).softmax(-1)
    mean, square = _weighted_mean(shares, x), _weighted_mean(shares, x.square())
    return torch.cat((mean, (square - mean.square()).clamp_min(LEAST_VARIANCE).sqrt()), dim=-1)


def linear_of_frames(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b of every frame: x (*runs, batch, T, D), weight (*runs, out, D) → (*runs, batch, T, out)."""
    product = _of_all_runs(weight, x.flatten(-3, -2).mT) + bias.unsqueeze(-1)  # (*runs, out, batch·T)
    return product.reshape(*product.shape[:-1], *x.shape[-3:-1]).movedim(-3, -1)


def _of_all_runs(rows: Tensor, x: Tensor) -> Tensor:
    """rows (*runs, r, k) times x (*runs, k, n), as one product where the runs of the last axis share x.

    A product with an expanded factor would copy x for every run.
    """
    if rows.ndim > 2 and x.ndim == rows.ndim and x.shape[-3] == 1:
        product = rows.flatten(-3, -2) @ x.squeeze(-3)
        return product.reshape(*rows.shape[:-1], x.shape[-1])
    return rows @ x


def _weighted_mean(shares: Tensor, x: Tensor) -> Tensor:
    """Σ_t α_t x_t: shares (*runs, batch, T), x (*runs, batch, T, D) → (*runs, batch, D)."""
    if shares.ndim > 2 and x.ndim == shares.ndim + 1 and x.shape[-4] == 1:
        return (shares.transpose(-3, -2) @ x.squeeze(-4)).transpose(-3, -2)
    return (shares.unsqueeze(-2) @ x).squeeze(-2)


# --- stages ---


class InputStage:
    """What makes one head's vector of one modality's cached numbers (D each): the layers that it needs, and its size.

    Args:
        prefix: of the names of its layers.
        size: D.
        layers: how many layers there are, where they are read.
    """

    # of what is cached
    reads: Literal["vector", "layers", "frames"] = "frames"

    def __init__(self, prefix: str, size: int, layers: int = 1) -> None:
        self.prefix, self.size = prefix, size
        self.layers: tuple[Layer, ...] = ()

    def vectors(self, x: Any, parameters: Mapping[str, Tensor]) -> Tensor:
        """Vectors (*runs, batch, size) of what is read: numbers, or (frames, which are valid)."""
        raise NotImplementedError


class WeightedLayers(InputStage):
    """`weighted_layers` of all layers (*runs, batch, layers, D), its scores `layers.weight` (1, layers) from 0."""

    reads = "layers"

    def __init__(self, prefix: str, size: int, layers: int = 1) -> None:
        super().__init__(prefix, size)
        self.layers = (Layer(f"{prefix}.layers", layers, 1, starts_at_zero=True),)

    def vectors(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return weighted_layers(x, parameters[f"{self.prefix}.layers.weight"])


class NormedLayers(WeightedLayers):
    """The same of layers that are each normalised over their dimensions first, (h − mean) / √(variance + 1e-5).

    s3prl's `normalize`, which takes every frame's vector; here it is the frames' mean, a named deviation, since the
    norm of a mean is not the mean of norms. Layers of encoders whose states are not normed themselves (those with
    "stable layer norm") differ in scale; standardising each by its train rows is the other remedy.
    """

    def vectors(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        from torch.nn.functional import layer_norm

        return super().vectors(layer_norm(x, x.shape[-1:], eps=NORM_EPSILON), parameters)


class Attentive(InputStage):
    """`attentive_statistics` of frames, e_t = v·tanh(W x_t + b); `attention` (128, D) with bias, `score` (1, 128).

    v starts from 0, as mean and standard deviation: from N(0, 1), as the baseline has it, one random frame would win.
    """

    def __init__(self, prefix: str, size: int, layers: int = 1) -> None:
        super().__init__(prefix, 2 * size)
        self.layers = (
            Layer(f"{prefix}.attention", size, ATTENTION_WIDTH, bias=True),
            Layer(f"{prefix}.score", ATTENTION_WIDTH, 1, starts_at_zero=True),
        )

    def vectors(self, x: tuple[Tensor, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        frames, valid = x
        weight, bias = (parameters[f"{self.prefix}.attention.{name}"] for name in ("weight", "bias"))
        hidden = linear_of_frames(frames, weight, bias).tanh()  # (*runs, batch, T, 128)
        scores = hidden @ parameters[f"{self.prefix}.score.weight"].unsqueeze(-3).mT  # (*runs, batch, T, 1)
        return attentive_statistics(frames, scores.squeeze(-1), valid)


class Pointwise(InputStage):
    """Three pointwise convolutions of width 256, ReLU after the first two, then the mean over the valid frames.

    The speech part of SAILER (arXiv 2505.22133, §2.1), without its dropout.
    """

    def __init__(self, prefix: str, size: int, layers: int = 1) -> None:
        super().__init__(prefix, POINTWISE_WIDTH)
        sizes = (size, POINTWISE_WIDTH, POINTWISE_WIDTH)
        self.layers = tuple(Layer(f"{prefix}.conv{k}", n, POINTWISE_WIDTH, bias=True) for k, n in enumerate(sizes))

    def vectors(self, x: tuple[Tensor, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        values, valid = x
        for k, layer in enumerate(self.layers):
            values = linear_of_frames(values.relu() if k else values, *self._weights(layer, parameters))
        shares = valid / valid.sum(-1, keepdim=True).clamp_min(1)
        return _weighted_mean(shares.to(values.dtype), values)

    def _weights(self, layer: Layer, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return parameters[f"{layer.name}.weight"], parameters[f"{layer.name}.bias"]


class PointwiseOfMean(Pointwise):
    """The same layers on the cached mean, where there are no frames: their ReLU then comes after the mean."""

    reads = "vector"

    def vectors(self, x: Any, parameters: Mapping[str, Tensor]) -> Tensor:
        return super().vectors((x.unsqueeze(-2), x.new_ones((*x.shape[:-1], 1)).bool()), parameters)


AS_CACHED = "none"
# what a learnt sum makes of its layers before it adds them
LAYER_NORMS: Mapping[str, type[InputStage]] = {AS_CACHED: WeightedLayers, "pooled": NormedLayers}
MEAN = "mean"
# learnt poolings of frames; the mean over frames is what vectors are
POOLINGS: Mapping[str, type[InputStage]] = {
    "attentive": Attentive,
    "pointwise": Pointwise,
    "pointwise-of-mean": PointwiseOfMean,
}
