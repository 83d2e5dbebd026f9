"""The heads: of every modality alone and of their fusion, for one model or for many along leading run axes.

A head is Linear(inputs, hidden) → ReLU → dropout → Linear(hidden, classes). Parameters are a plain dict of tensors,
laid out as in `torch.nn.Linear` and named `heads.<modality or "fusion">.{hidden,output}.{weight,bias}` and `fusion.…`
(see `amber2_core.fusion`, and `amber2_core.inputs` for heads that learn what to read). Two feature sets of one modality
are two modalities here, named `audio:<set>`. torch is imported where tensors are made, and no sooner.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

from amber2_core.errors import SettingError, bad_choice
from amber2_core.fusion import FUSIONS, Fusion, Layer, joined, linear, only_present
from amber2_core.inputs import AS_CACHED, LAYER_NORMS, MEAN, POOLINGS, InputStage
from amber2_core.kinds import DISTRIBUTION, Kind

if TYPE_CHECKING:
    from torch import Generator, Tensor

    # vectors (…, batch, size) by source → what each of `Architecture.first_layers` gives before its bias, by name
    FirstLayers = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # as `amber2_core.fusion.linear`

FUSION_HEAD = "fusion"
Activation = Literal["relu", "none"]


class Mixing(NamedTuple):
    """Hidden units of every utterance mixed with those of another of its batch, both (…, batch)."""

    partner: Tensor  # its place in the batch
    share: Tensor  # of the utterance's own units, in [0, 1]


@dataclass(frozen=True)
class Architecture:
    """The shape of a model's heads: runs of equal architecture can be stacked. SettingError for one without meaning."""

    kind: ClassVar[Kind] = DISTRIBUTION
    # name and size of each modality's cached numbers; the order is that of heads and of concatenation
    inputs: tuple[tuple[str, int], ...]
    # number of emotions
    classes: int
    fusion: str = "gmu"
    # units of each head's hidden layer
    hidden: int = 256
    # size of the fused vector, where the fusion projects
    fusion_width: int = 256
    # share of each head's hidden units dropped in training
    dropout: float = 0.0
    # between a head's two layers
    activation: Activation = "relu"
    # learnt pooling of frames, of `amber2_core.inputs.POOLINGS`; "mean": vectors as they are cached
    pooling: str = MEAN
    # how many layers of each modality a learnt sum reads; empty where one layer is read
    layer_counts: tuple[int, ...] = ()
    # of these layers, of `amber2_core.inputs.LAYER_NORMS`
    layer_norm: str = AS_CACHED

    def __post_init__(self) -> None:
        names = self.modalities
        if not names or len(set(names)) < len(names):
            raise SettingError(f"Bad modalities {list(names)}, expected one or more different ones")
        for name in names:
            if name == FUSION_HEAD or not re.fullmatch(r"[^\W\d]\w*(:[^/:]+)?", name):
                raise SettingError(f"Bad modality {name!r}, expected a plain word such as 'audio' that names no fusion")
        if self.fusion not in FUSIONS:
            raise SettingError(bad_choice("fusion", self.fusion, FUSIONS))
        if self.pooling not in (MEAN, *POOLINGS):
            raise SettingError(bad_choice("input pooling", self.pooling, (MEAN, *POOLINGS)))
        if self.layer_norm not in LAYER_NORMS:
            raise SettingError(bad_choice("layer norm", self.layer_norm, LAYER_NORMS))
        if self.activation not in get_args(Activation):
            raise SettingError(bad_choice("activation", self.activation, get_args(Activation)))
        if self.layer_counts and (len(self.layer_counts) != len(names) or self.pooling != MEAN):
            raise SettingError(f"Bad layers in {self}, expected a number of each modality, and no learnt pooling")
        if self.classes < 2:
            raise SettingError(f"Bad number of classes {self.classes}, expected 2 or more")
        if min(self.hidden, self.fusion_width, *(size for _, size in self.inputs)) < 1:
            raise SettingError(f"Bad layer sizes in {self}, expected each to be 1 or more")
        if not 0 <= self.dropout < 1:
            raise SettingError(f"Bad dropout {self.dropout}, expected a number in [0, 1)")

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.inputs)

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the heads: `heads_of` its modalities."""
        return heads_of(self.modalities)

    @cached_property
    def stages(self) -> Mapping[str, InputStage]:
        """Source → what makes its vectors: one for each modality's head, and one for the fusion; none where given."""
        if not self.layer_counts and self.pooling == MEAN:
            return {}
        kind = LAYER_NORMS[self.layer_norm] if self.layer_counts else POOLINGS[self.pooling]
        counts = self.layer_counts or (1,) * len(self.inputs)
        places = [(f"heads.{name}", name) for name in self.modalities]
        if FUSION_HEAD in self.heads:
            places += [(f"fusion.inputs.{name}", self.fusion_source(name)) for name in self.modalities]
        own = zip([prefix for prefix, _ in places], self.inputs * 2, counts * 2, strict=False)
        made = [kind(prefix, size, layers) for prefix, (_, size), layers in own]
        return dict(zip([source for _, source in places], made, strict=True))

    @property
    def needs(self) -> dict[str, str]:
        """Modality → what is read of it: "vector", "layers" or "frames"."""
        return {name: self.stages[name].reads if self.stages else "vector" for name in self.modalities}

    def fusion_source(self, modality: str) -> str:
        """The source of the vectors that the fusion reads of a modality: its own where heads learn what to read."""
        return modality if not self.layer_counts and self.pooling == MEAN else f"fusion/{modality}"

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """The size of each source's vectors: of the modalities, or of the heads' input stages."""
        return {source: stage.size for source, stage in self.stages.items()} or dict(self.inputs)

    @cached_property
    def fused(self) -> Fusion:
        """The fusion for these inputs, which are two or more."""
        return FUSIONS[self.fusion]({m: self.sizes[m] for m in self.modalities}, self.fusion_width)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in the order in which their parameters are drawn: modality heads, fusion, fusion head, inputs.

        Runs of one seed so start from the same modality heads, whatever their fusion.
        """
        own = [layer for name in self.modalities for layer in self._head(name, self.sizes[name], (name,))]
        learnt = [layer for stage in self.stages.values() for layer in stage.layers]
        if FUSION_HEAD not in self.heads:
            return (*own, *learnt)
        read = self.modalities if self.fused.joins else ()
        of_fusion = [*self.fused.layers, *self._head(FUSION_HEAD, self.fused.width, read)]
        sources = [replace(layer, reads=tuple(map(self.fusion_source, layer.reads))) for layer in of_fusion]
        return (*own, *sources, *learnt)

    @property
    def first_layers(self) -> tuple[Layer, ...]:
        """The layers that read sources' vectors themselves."""
        return tuple(layer for layer in self.layers if layer.reads)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter of one model, by name."""
        weights = {f"{layer.name}.weight": (layer.outputs, layer.inputs) for layer in self.layers}
        return weights | {f"{layer.name}.bias": (layer.outputs,) for layer in self.layers if layer.bias}

    def nothing(self, like: Tensor) -> dict[str, Any]:
        """What stands for each modality where none of the utterances of `like` (N, …) has it."""
        found: dict[str, Any] = {}
        for place, (name, size) in enumerate(self.inputs):
            need = self.needs[name]
            middle = {"vector": (), "layers": self.layer_counts[place : place + 1], "frames": (1,)}[need]
            zeros = like.new_zeros(len(like), *middle, size)
            found[name] = (zeros, zeros[..., 0] == 0) if need == "frames" else zeros
        return found

    def _head(self, name: str, inputs: int, reads: tuple[str, ...]) -> tuple[Layer, Layer]:
        return (
            Layer(f"heads.{name}.hidden", inputs, self.hidden, reads, bias=True),
            Layer(f"heads.{name}.output", self.hidden, self.classes, bias=True),
        )


def heads_of(modalities: Sequence[str]) -> tuple[str, ...]:
    """The modalities, then "fusion"; of a single modality there is nothing to fuse, and its own head is all."""
    return (*modalities, FUSION_HEAD) if len(modalities) > 1 else tuple(modalities)


class Heads:
    """A head per modality and one on their fusion (Eq. 2), sharing nothing.

    Args:
        architecture: of every run.
        parameters: by name, each with the same leading run axes, or none.
        linear: what computes the layers after the first ones.
    """

    def __init__(
        self, architecture: Architecture, parameters: Mapping[str, Tensor], *, linear: Linear = linear
    ) -> None:
        self.architecture, self.parameters, self._linear = architecture, parameters, linear

    def logits(
        self,
        inputs: Mapping[str, Any],
        *,
        present: Mapping[str, Tensor] | None = None,
        keep: Tensor | None = None,
        mixing: Mixing | None = None,
        first_layers: FirstLayers | None = None,
    ) -> Tensor:
        """What is read by modality → logits (heads, *runs, batch, classes), in the order of the heads.

        Args:
            inputs: vectors (…, batch, D_m), or what the architecture's stages read: layers (…, batch, layers, D_m), or
                frames (…, batch, T, D_m) with their mask. Leading axes are run axes, 1 or missing where runs read the
                same rows. Zero where an utterance lacks a modality, as `only_present` makes them.
            present: booleans (…, batch) of the modalities that some utterances lack. Their own heads' logits then are
                finite and mean nothing; the fusion head uses what is there.
            keep: factors (heads, …, batch, hidden) of dropout.
            mixing: of the hidden units before their activation (manifold mixup).
            first_layers: what computes the first layers; by default one product each.
        """
        import torch

        shape = self.architecture
        vectors = self.vectors(inputs, present)
        given = (first_layers or self.first_layers)(vectors)
        hidden = [given[f"heads.{name}.hidden"] for name in shape.modalities]
        if FUSION_HEAD in shape.heads:
            hidden.append(self._fusion_hidden(vectors, given, present))
        kept = [None] * len(hidden) if keep is None else keep
        return torch.stack([self._head(*head, mixing) for head in zip(shape.heads, hidden, kept, strict=True)])

    def probs(
        self,
        inputs: Mapping[str, Any],
        *,
        present: Mapping[str, Tensor] | None = None,
        log_probs: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Probabilities (*runs, batch, classes) by head, as of `logits`, whatever vectors hold that are not present.

        `log_probs` makes them of outputs that are no logits, as in `amber2_core.outputs`.
        """
        if present is not None and not self.architecture.stages:
            inputs = only_present(inputs, present)
        outputs = self.logits(inputs, present=present)
        probs = outputs.softmax(-1) if log_probs is None else log_probs(outputs).exp()
        return dict(zip(self.architecture.heads, probs, strict=True))

    def vectors(self, inputs: Mapping[str, Any], present: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """The vectors (*runs, batch, size) of every source, 0 where an utterance lacks the modality."""
        stages = self.architecture.stages
        if not stages:
            return inputs
        modality_of = {source: source.removeprefix("fusion/") for source in stages}
        made = {source: stage.vectors(inputs[modality_of[source]], self.parameters) for source, stage in stages.items()}
        masks = {source: present[m] for source, m in modality_of.items() if present is not None and m in present}
        return only_present(made, masks)

    def first_layers(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the layers that read vectors give before their bias, (*runs, batch, outputs) by name."""
        return {
            layer.name: linear(joined([vectors[m] for m in layer.reads]), self.parameters[f"{layer.name}.weight"])
            for layer in self.architecture.first_layers
        }

    def _fusion_hidden(
        self, vectors: Mapping[str, Tensor], given: Mapping[str, Tensor], present: Mapping[str, Tensor] | None
    ) -> Tensor:
        """The fusion head's hidden layer before its bias."""
        name, fusion = f"heads.{FUSION_HEAD}.hidden", self.architecture.fused
        if fusion.joins:
            return given[name]
        shape = self.architecture
        masks = None if present is None else [present.get(m) for m in shape.modalities]
        own = {m: vectors[shape.fusion_source(m)] for m in shape.modalities}
        fused = fusion.fuse({**self.parameters, **own, **given}, masks)
        return self._linear(fused, self.parameters[f"{name}.weight"], None)

    def _head(self, name: str, hidden: Tensor, keep: Tensor | None, mixing: Mixing | None) -> Tensor:
        """A head from its hidden layer before bias, (*runs, batch, hidden), to logits."""
        own = self.parameters
        active = hidden + own[f"heads.{name}.hidden.bias"].unsqueeze(-2)
        if mixing is not None:
            active = mixed(active, *mixing)
        if self.architecture.activation == "relu":
            active = active.relu()
        if keep is not None:
            active = active * keep
        return self._linear(active, own[f"heads.{name}.output.weight"], own[f"heads.{name}.output.bias"])


def mixed(x: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """λ x_i + (1 − λ) x_j: x (*runs, batch, units), partner j and share λ (*runs, batch), with 1 where runs share."""
    others = x.gather(-2, partner.unsqueeze(-1).expand(x.shape))
    return others.lerp(x, share.unsqueeze(-1).to(x.dtype))


def initial_parameters(architecture: Architecture, generator: Generator | None = None) -> dict[str, Tensor]:
    """Fresh parameters of one model, each U(±1/√inputs), what `torch.nn.Linear` draws, or 0 where a layer says so.

    Drawn in single precision on the CPU, layer by layer, weight before bias, from `generator`, else from torch's own.
    A run that owns its generator gets the same parameters whatever else is drawn around it, and on whatever device it
    then trains.
    """
    import torch

    parameters, shapes = {}, architecture.shapes
    for layer in architecture.layers:
        bound = layer.inputs**-0.5
        for name in (f"{layer.name}.weight", f"{layer.name}.bias")[: 1 + layer.bias]:
            fresh = torch.zeros(shapes[name], dtype=torch.float32, device="cpu")
            if not layer.starts_at_zero:
                fresh.uniform_(-bound, bound, generator=generator)
            parameters[name] = fresh
    return parameters
