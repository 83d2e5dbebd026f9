"""LDDU, latent emotional distribution decomposition with uncertainty perception: its network and its losses.

Huang et al. 2025 (arXiv 2502.13954). Of every modality its frames become one feature of each class (label-wise
attention), and each of these a Gaussian in a latent space, of which mean and spread predict by themselves; a gate of
the features weighs the two. Nothing is sampled, as in the authors' code.

Parameters are a plain dict of tensors named by `Lddu.shapes`. Leading run axes are allowed everywhere: parameters
(*runs, …), data (*runs, batch, …) with 1 where runs read the same rows.

Where the paper leaves a choice, the authors' code decides: encoder layers as BERT's (norms after the sums, GELU), a
classifier of its own for every class, hidden sizes ¾ and ½ of the width, similarities of [μ̂; σ̂] halved so that they
are cosines. Otherwise than there, positions are sinusoidal (sequences have any length), label queries meet the encoded
frames themselves (there both are projected first), dropout is inside of the encoder alone, utterances of the queue are
no anchors of the contrast, the queue is empty at first (there random), and ‖σ‖ and g are calibrated over the classes of
each utterance (there ‖σ‖ over all of a batch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import torch
from torch import Generator, Tensor
from torch.nn.functional import gelu, layer_norm, logsigmoid, normalize

from .divergences import js
from .errors import SettingError
from .fusion import linear, without_score
from .heads import heads_of
from .kinds import DISTRIBUTION, MULTI_LABEL, Kind

Parameters = Mapping[str, Tensor]
Drop = Callable[[Tensor], Tensor]  # what dropout makes of numbers
ABSENT = -1  # in place of the prototype of a feature that is not there


@dataclass(frozen=True)
class Lddu:
    """The shape of a model; the width is a multiple of 4 and of the attention heads. SettingError: it is none."""

    # name and size of each modality's frames
    inputs: tuple[tuple[str, int], ...]
    classes: int
    kind: Kind = DISTRIBUTION
    width: int = 256
    layers: int = 3
    attention_heads: int = 8
    feed_forward: int = 256
    latent: int = 128

    def __post_init__(self) -> None:
        sizes = (self.layers + 1, self.attention_heads, self.feed_forward, self.latent, self.classes - 1)
        if not self.inputs or len(set(self.modalities)) < len(self.inputs) or self.kind not in get_args(Kind):
            raise SettingError(f"Bad modalities or kind in {self}, expected different ones, and {get_args(Kind)}")
        if min(*sizes, *(size for _, size in self.inputs)) < 1:
            raise SettingError(f"Bad sizes in {self}, expected each to be 1 or more, classes 2 or more")
        if self.width < 4 or self.width % 4 or self.width % self.attention_heads:
            raise SettingError(f"Bad width {self.width}, expected a multiple of 4 and of {self.attention_heads} heads")

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.inputs)

    @property
    def heads(self) -> tuple[str, ...]:
        """Its one prediction, of all modalities together."""
        return heads_of(self.modalities)[-1:]

    @property
    def needs(self) -> dict[str, str]:
        """As of `amber2_core.heads.Architecture`."""
        return dict.fromkeys(self.modalities, "frames")

    @property
    def layer_counts(self) -> tuple[int, ...]:
        """As of `amber2_core.heads.Architecture`: no layers are read."""
        return ()

    def nothing(self, like: Tensor) -> dict[str, Any]:
        """What stands for each modality where none of the utterances of `like` (N, …) has it."""
        zeros = {name: like.new_zeros(len(like), 1, size) for name, size in self.inputs}
        return {name: (x, x[..., 0] != 0) for name, x in zeros.items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter of one model, by name."""
        found: dict[str, tuple[int, ...]] = {}
        width, joined = self.width, len(self.inputs)
        for name, size in self.inputs:
            found |= _norm(f"{name}.norm", size) | _layer(f"{name}.projection", size, width)
            for place in range(self.layers):
                found |= self._encoder_layer(f"{name}.encoder.{place}")
            found[f"{name}.queries"] = (self.classes, width)
            for place, (inputs, outputs) in enumerate(pairwise(self._latent_sizes)):
                found |= _layer(f"{name}.latent.{place}", inputs, outputs)
        found |= _layer("gate.hidden", joined * width, width // 2) | _layer("gate.output", width // 2, 1)
        for branch in ("mean", "spread"):
            found |= _layer(f"{branch}.hidden", joined * self.latent, width // 2, self.classes)
            found |= _layer(f"{branch}.output", width // 2, 1, self.classes)
        return found

    @property
    def _latent_sizes(self) -> tuple[int, ...]:
        return (self.width, self.width // 4 * 3, self.width // 2, 2 * self.latent)

    def _encoder_layer(self, name: str) -> dict[str, tuple[int, ...]]:
        width, hidden = self.width, self.feed_forward
        attention = _layer(f"{name}.attention.input", width, 3 * width)
        attention |= _layer(f"{name}.attention.output", width, width) | _norm(f"{name}.attention.norm", width)
        forward = _layer(f"{name}.forward.0", width, hidden) | _layer(f"{name}.forward.1", hidden, width)
        return {**attention, **forward, **_norm(f"{name}.forward.norm", width)}


def initial_parameters(shape: Lddu, generator: Generator | None = None) -> dict[str, Tensor]:
    """Fresh parameters of one model: layers U(±1/√inputs), as `torch.nn.Linear`; norms 1 and 0; queries as Xavier's.

    Drawn in single precision on the CPU, in the order of `Lddu.shapes`.
    """
    parameters, bound = {}, 0.0
    for name, size in shape.shapes.items():
        fresh = torch.zeros(size, dtype=torch.float32, device="cpu")
        if name.endswith((".norm.weight", ".norm.bias")):
            fresh.fill_(float(name.endswith(".weight")))
        elif name.endswith(".queries"):
            edge = math.sqrt(6 / sum(size))
            fresh.uniform_(-edge, edge, generator=generator)
        else:  # a bias comes after its weight, and is drawn like it
            bound = size[-1] ** -0.5 if name.endswith(".weight") else bound
            fresh.uniform_(-bound, bound, generator=generator)
        parameters[name] = fresh
    return parameters


# --- the network ---


class Outputs(NamedTuple):
    """What a model makes of a batch."""

    log_probs: Tensor  # (*runs, batch, C) of the classes, or of each class's presence
    log_rest: Tensor  # (*runs, batch, C) log(1 − p) of presence; of distributions the same as log_probs
    gate: Tensor  # (*runs, batch, C) logits of g
    latent: Tensor  # (*runs, batch, modalities, C, 2·latent) [μ̂; σ̂], each of length 1; 0 of a missing modality
    spread: Tensor  # (*runs, batch, C) ‖σ‖ over all modalities
    there: Tensor  # (…, batch, modalities) which modalities an utterance has


def _kept(x: Tensor) -> Tensor:
    return x


def outputs(
    shape: Lddu, parameters: Parameters, frames: Mapping[str, tuple[Tensor, Tensor]], drop: Drop = _kept
) -> Outputs:
    """Frames (…, batch, T, D_m) and which of them are valid (…, batch, T), by modality → `Outputs`.

    An utterance without valid frames lacks the modality: its features, mean and spread are 0. With probabilities of the
    two branches a_c (of μ) and b_c (of σ), presence is p_c = g_c a_c + (1 − g_c) b_c; a distribution is the same with
    softmax in place of the sigmoid in both branches, divided by its sum.
    """
    there = torch.stack([frames[name][1].any(-1) for name in shape.modalities], dim=-1)
    features, means, spreads = [], [], []
    for place, name in enumerate(shape.modalities):
        absent = ~there[..., place, None, None]
        feature = label_features(shape, parameters, name, *frames[name], drop).masked_fill(absent, 0.0)
        mean, log_variance = _latent(parameters, name, feature).chunk(2, dim=-1)  # (*runs, batch, C, latent)
        features.append(feature)
        means.append(mean.masked_fill(absent, 0.0))
        spreads.append((log_variance / 2).exp().masked_fill(absent, 0.0))
    gate = _applied("gate.output", parameters, _applied("gate.hidden", parameters, torch.cat(features, -1)).relu())
    joined = torch.cat(spreads, dim=-1)
    branches = _branch(parameters, "mean", torch.cat(means, dim=-1)), _branch(parameters, "spread", joined)
    latent = [torch.cat((normalize(m, dim=-1), normalize(s, dim=-1)), -1) for m, s in zip(means, spreads, strict=True)]
    of_gate = gate.squeeze(-1)
    log_probs, log_rest = _weighed(*branches, of_gate, shape.kind)
    return Outputs(log_probs, log_rest, of_gate, torch.stack(latent, dim=-3), joined.norm(dim=-1), there)


def probs(shape: Lddu, parameters: Parameters, frames: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Probabilities (*runs, batch, C) of frames as in `outputs`: a distribution, or of each class's presence."""
    return outputs(shape, parameters, frames).log_probs.exp()


class LdduHeads:
    """A trained model, read and asked as `amber2_core.heads.Heads` are."""

    def __init__(self, architecture: Lddu, parameters: Parameters) -> None:
        self.architecture, self.parameters = architecture, parameters

    def probs(
        self,
        inputs: Mapping[str, tuple[Tensor, Tensor]],
        *,
        present: Mapping[str, Tensor] | None = None,
        log_probs: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Probabilities (batch, C) of its head, as `probs`; `present` has booleans (batch,) of what some lack.

        There is no choice of what outputs mean: `log_probs` is not asked.
        """
        there = {name: valid.new_ones(valid.shape[:-1]) for name, (_, valid) in inputs.items()} | dict(present or {})
        frames = {name: (x, valid & there[name].unsqueeze(-1)) for name, (x, valid) in inputs.items()}
        (head,) = self.architecture.heads
        return {head: probs(self.architecture, self.parameters, frames)}


def label_features(
    shape: Lddu, parameters: Parameters, modality: str, x: Tensor, valid: Tensor, drop: Drop = _kept
) -> Tensor:
    """One modality's feature of each class, Σ_t softmax_t(q_c·x_t/√width) x_t of its encoded frames x.

    Frames (…, batch, T, D), valid (…, batch, T) → (*runs, batch, C, width).
    """
    x = _applied(f"{modality}.projection", parameters, _normed(f"{modality}.norm", parameters, x))
    x = drop(x + positions(x.shape[-2], shape.width).to(x))
    for place in range(shape.layers):
        x = encoder_layer(parameters, f"{modality}.encoder.{place}", x, valid, heads=shape.attention_heads, drop=drop)
    queries = parameters[f"{modality}.queries"].unsqueeze(-3)  # (*runs, 1, C, width)
    scores = queries @ x.mT / math.sqrt(shape.width)  # (*runs, batch, C, T)
    return without_score(scores, ~valid.unsqueeze(-2)).softmax(-1) @ x


def encoder_layer(
    parameters: Parameters, name: str, x: Tensor, valid: Tensor, *, heads: int, drop: Drop = _kept
) -> Tensor:
    """A transformer's layer with norms after the sums and GELU: (*runs, batch, T, width) → the same.

    As `torch.nn.TransformerEncoderLayer(width, heads, activation="gelu", batch_first=True)`.
    """
    joined = _applied(f"{name}.attention.input", parameters, x)
    query, key, value = (_of_heads(part, heads) for part in joined.chunk(3, dim=-1))
    scores = query @ key.mT / math.sqrt(query.shape[-1])  # (*runs, batch, heads, T, T)
    shares = drop(without_score(scores, ~valid[..., None, None, :]).softmax(-1))
    read = (shares @ value).transpose(-3, -2).flatten(-2)
    read = drop(_applied(f"{name}.attention.output", parameters, read))
    x = _normed(f"{name}.attention.norm", parameters, x + read)
    hidden = drop(gelu(_applied(f"{name}.forward.0", parameters, x)))
    return _normed(f"{name}.forward.norm", parameters, x + drop(_applied(f"{name}.forward.1", parameters, hidden)))


def _of_heads(x: Tensor, heads: int) -> Tensor:
    """(*runs, batch, T, width) → (*runs, batch, heads, T, width/heads)."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(-3, -2)


def positions(steps: int, width: int) -> Tensor:
    """sin(t/10000^(2i/width)) and cos of it, in turns (steps, width) (Vaswani et al. 2017, §3.5)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
    angles = torch.arange(steps).unsqueeze(-1) * rates  # (steps, width/2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def _latent(parameters: Parameters, modality: str, x: Tensor) -> Tensor:
    """[μ; log σ²] of a feature."""
    for place in range(2):
        x = _applied(f"{modality}.latent.{place}", parameters, x).relu()
    return _applied(f"{modality}.latent.2", parameters, x)


def _branch(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """Logits (*runs, batch, C) of x (*runs, batch, C, in): every class has layers of its own."""
    x = x.transpose(-3, -2)  # (*runs, C, batch, in)
    for layer, active in ((f"{name}.hidden", True), (f"{name}.output", False)):
        x = linear(x, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"])
        x = x.relu() if active else x
    return x.squeeze(-1).transpose(-2, -1)


def _weighed(mean: Tensor, spread: Tensor, gate: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """log p and log(1 − p) of logits of both branches and of the gate, all (…, C)."""

    def mixed(of_mean: Tensor, of_spread: Tensor) -> Tensor:
        return torch.logaddexp(of_mean + logsigmoid(gate), of_spread + logsigmoid(-gate))

    if kind == MULTI_LABEL:
        return mixed(logsigmoid(mean), logsigmoid(spread)), mixed(logsigmoid(-mean), logsigmoid(-spread))
    log_probs = mixed(mean.log_softmax(-1), spread.log_softmax(-1)).log_softmax(-1)
    return log_probs, log_probs


def _applied(name: str, parameters: Parameters, x: Tensor) -> Tensor:
    """x Wᵀ + b of x (*runs, batch, rows, in) → (*runs, batch, rows, out)."""
    y = linear(x.flatten(-3, -2), parameters[f"{name}.weight"], parameters[f"{name}.bias"])
    return y.reshape(*y.shape[:-2], *x.shape[-3:-1], -1)


def _normed(name: str, parameters: Parameters, x: Tensor) -> Tensor:
    """Layer norm of x (*runs, batch, rows, width)."""
    weight, bias = (parameters[f"{name}.{part}"][..., None, None, :] for part in ("weight", "bias"))
    return layer_norm(x, x.shape[-1:]) * weight + bias


def _layer(name: str, inputs: int, outputs: int, *each: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (*each, outputs, inputs), f"{name}.bias": (*each, outputs)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


# --- losses, one number per run ---


class Queue(NamedTuple):
    """Features of earlier batches, and the prototype that each belongs to."""

    latent: Tensor  # (*runs, K, 2·latent)
    prototype: Tensor  # (*runs, K), or `ABSENT`

    def with_batch(self, latent: Tensor, prototype: Tensor, size: int) -> Queue:
        """The newest `size` features, those of a batch first."""
        newest = prototype.expand(latent.shape[:-1])
        return Queue(
            torch.cat((latent.detach(), self.latent), dim=-2)[..., :size, :],
            torch.cat((newest, self.prototype), dim=-1)[..., :size],
        )


def empty_queue(shape: Lddu, like: Tensor, runs: tuple[int, ...] = ()) -> Queue:
    """Nothing yet, on the device and in the precision of `like`."""
    index = torch.zeros((*runs, 0), dtype=torch.int64, device=like.device)
    return Queue(like.new_zeros((*runs, 0, 2 * shape.latent)), index)


def prototypes(target: Tensor, there: Tensor) -> Tensor:
    """The prototype of every latent feature, its modality × class × whether the class is present.

    Target (…, batch, C), present where above 0, and which modalities are there (…, batch, modalities) →
    (…, batch, modalities, C) of 0 … 2·modalities·C − 1, or `ABSENT`.
    """
    places = torch.arange(there.shape[-1] * target.shape[-1], device=target.device).view(there.shape[-1], -1)
    number = 2 * places + (target > 0).long().unsqueeze(-2)
    return number.masked_fill(~there.unsqueeze(-1), ABSENT)


def terms(found: Outputs, target: Tensor, queue: Queue, *, kind: Kind, temperature: float) -> Iterator[Tensor]:
    """The four parts of the loss, each (*runs): prediction, gate, contrast and calibration.

    Targets (…, batch, C) are distributions: of presence, a class is present where its share is above 0. Of presence the
    first two are binary cross-entropies in nats, means over utterances and classes; of distributions, adapted, they are
    JS in bits of the prediction and of softmax(gate).
    """
    if kind == MULTI_LABEL:
        present = target > 0
        yield -torch.where(present, found.log_probs, found.log_rest).mean((-2, -1))
        yield -torch.where(present, logsigmoid(found.gate), logsigmoid(-found.gate)).mean((-2, -1))
    else:
        yield js(target, found.log_probs).mean(-1)
        yield js(target, found.gate.log_softmax(-1)).mean(-1)
    flat = found.latent.flatten(-4, -2), prototypes(target, found.there).flatten(-3)
    yield contrast(*flat, queue, temperature)
    yield calibration(found.spread, found.gate)


def contrast(latent: Tensor, prototype: Tensor, queue: Queue, temperature: float) -> Tensor:
    """Supervised contrast (Khosla et al. 2020, Eq. 2) of a batch's features with one another and with the queue's.

    −1/|P(a)| Σ_{p∈P(a)} log(exp(s_ap/τ) / Σ_{k≠a} exp(s_ak/τ)), P(a) all others of the anchor's prototype, as a mean
    over the anchors that are there; one without others adds 0. s is half the product of two [μ̂; σ̂], a cosine.

    Latent (*runs, A, 2·latent) and prototypes (…, A), `ABSENT` for what is not there → (*runs).
    """
    prototype = prototype.expand(latent.shape[:-1])
    keys = torch.cat((latent, queue.latent), dim=-2)
    of_keys = torch.cat((prototype, queue.prototype), dim=-1)
    anchors = prototype != ABSENT
    itself = torch.eye(latent.shape[-2], keys.shape[-2], dtype=torch.bool, device=latent.device)
    counts = (of_keys != ABSENT).unsqueeze(-2) & ~itself  # (…, A, K)
    same = counts & (prototype.unsqueeze(-1) == of_keys.unsqueeze(-2)) & anchors.unsqueeze(-1)
    scores = without_score(latent @ keys.mT / (2 * temperature), ~counts)
    log_shares = scores - scores.logsumexp(-1, keepdim=True)
    losses = -torch.where(same, log_shares, 0.0).sum(-1) / same.sum(-1).clamp_min(1)
    return losses.sum(-1) / anchors.sum(-1).clamp_min(1)


def calibration(spread: Tensor, gate: Tensor) -> Tensor:
    """½ KL(u‖v) + ½ KL(v‖u), u = softmax‖σ‖ and v = softmax σ(gate) over classes, in nats, mean over utterances.

    Both (*runs, batch, C) → (*runs).
    """
    log_u, log_v = spread.log_softmax(-1), gate.sigmoid().log_softmax(-1)
    return ((log_u.exp() - log_v.exp()) * (log_u - log_v)).sum(-1).mean(-1) / 2
