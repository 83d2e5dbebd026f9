"""The heads: of every modality alone and of their fusion, for one model or for many along leading run axes.

A head is Linear(inputs, hidden) → ReLU → dropout → Linear(hidden, classes). Parameters are a plain dict of tensors,
laid out as in `torch.nn.Linear` and named `heads.<modality or "fusion">.{hidden,output}.{weight,bias}` and `fusion.…`
(see `amber2_core.fusion`). torch is imported where tensors are made, and no sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from amber2_core.errors import SettingError, bad_choice
from amber2_core.fusion import FUSIONS, Fusion, Layer, joined, linear, only_present

if TYPE_CHECKING:
    from torch import Generator, Tensor

    # vectors (…, batch, D_m) by modality → what each of `Architecture.first_layers` gives before its bias, by name
    FirstLayers = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # as `amber2_core.fusion.linear`

FUSION_HEAD = "fusion"


@dataclass(frozen=True)
class Architecture:
    """The shape of a model's heads: runs of equal architecture can be stacked. SettingError for one without meaning."""

    # name and vector size of each modality; the order is that of heads and of concatenation
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

    def __post_init__(self) -> None:
        names = self.modalities
        if not names or len(set(names)) < len(names):
            raise SettingError(f"Bad modalities {list(names)}, expected one or more different ones")
        for name in names:
            if name == FUSION_HEAD or not name.isidentifier():
                raise SettingError(f"Bad modality {name!r}, expected a plain word such as 'audio' that names no fusion")
        if self.fusion not in FUSIONS:
            raise SettingError(bad_choice("fusion", self.fusion, FUSIONS))
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
    def fused(self) -> Fusion:
        """The fusion for these inputs, which are two or more."""
        return FUSIONS[self.fusion](dict(self.inputs), self.fusion_width)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in the order in which their parameters are drawn: modality heads, fusion, fusion head.

        Runs of one seed so start from the same modality heads, whatever their fusion.
        """
        own = [layer for name, size in self.inputs for layer in self._head(name, size, (name,))]
        if FUSION_HEAD not in self.heads:
            return tuple(own)
        read = self.modalities if self.fused.joins else ()
        return (*own, *self.fused.layers, *self._head(FUSION_HEAD, self.fused.width, read))

    @property
    def first_layers(self) -> tuple[Layer, ...]:
        """The layers that read modalities' vectors themselves."""
        return tuple(layer for layer in self.layers if layer.reads)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter of one model, by name."""
        weights = {f"{layer.name}.weight": (layer.outputs, layer.inputs) for layer in self.layers}
        return weights | {f"{layer.name}.bias": (layer.outputs,) for layer in self.layers if layer.bias}

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
        vectors: Mapping[str, Tensor],
        *,
        present: Mapping[str, Tensor] | None = None,
        keep: Tensor | None = None,
        first_layers: FirstLayers | None = None,
    ) -> Tensor:
        """Vectors (…, batch, D_m) by modality → logits (heads, *runs, batch, classes), in the order of the heads.

        Args:
            vectors: leading axes are run axes, 1 or missing where runs read the same rows. Zero where an utterance
                lacks a modality, as `only_present` makes them.
            present: booleans (…, batch) of the modalities that some utterances lack. Their own heads' logits then are
                finite and mean nothing; the fusion head uses what is there.
            keep: factors (heads, …, batch, hidden) of dropout.
            first_layers: what computes the first layers; by default one product each.
        """
        import torch

        shape = self.architecture
        given = (first_layers or self.first_layers)(vectors)
        hidden = [given[f"heads.{name}.hidden"] for name in shape.modalities]
        if FUSION_HEAD in shape.heads:
            hidden.append(self._fusion_hidden(vectors, given, present))
        kept = [None] * len(hidden) if keep is None else keep
        return torch.stack([self._head(*head) for head in zip(shape.heads, hidden, kept, strict=True)])

    def probs(self, vectors: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Probabilities (*runs, batch, classes) by head, as of `logits`, whatever vectors hold that are not present."""
        vectors = vectors if present is None else only_present(vectors, present)
        return dict(zip(self.architecture.heads, self.logits(vectors, present=present).softmax(-1), strict=True))

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
        masks = None if present is None else [present.get(m) for m in self.architecture.modalities]
        fused = fusion.fuse({**self.parameters, **vectors, **given}, masks)
        return self._linear(fused, self.parameters[f"{name}.weight"], None)

    def _head(self, name: str, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """A head from its hidden layer before bias, (*runs, batch, hidden), to logits."""
        own = self.parameters
        active = (hidden + own[f"heads.{name}.hidden.bias"].unsqueeze(-2)).relu()
        if keep is not None:
            active = active * keep
        return self._linear(active, own[f"heads.{name}.output.weight"], own[f"heads.{name}.output.bias"])


def initial_parameters(architecture: Architecture, generator: Generator | None = None) -> dict[str, Tensor]:
    """Fresh parameters of one model, each U(±1/√inputs): what `torch.nn.Linear` draws.

    Drawn in single precision on the CPU, layer by layer, weight before bias, from `generator`, else from torch's own.
    A run that owns its generator gets the same parameters whatever else is drawn around it, and on whatever device it
    then trains.
    """
    import torch

    parameters, shapes = {}, architecture.shapes
    for layer in architecture.layers:
        bound = layer.inputs**-0.5
        for name in (f"{layer.name}.weight", f"{layer.name}.bias")[: 1 + layer.bias]:
            fresh = torch.empty(shapes[name], dtype=torch.float32, device="cpu")
            parameters[name] = fresh.uniform_(-bound, bound, generator=generator)
    return parameters
