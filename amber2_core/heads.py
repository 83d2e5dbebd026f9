"""Heads: one vector per modality in, logits over the emotions out, of every modality alone and of their fusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator, Tensor, nn

from amber2_core.errors import SettingError, bad_choice
from amber2_core.fusion import FUSIONS, Fusion, fusion_layer, only_present
from amber2_core.linear import Linear

FUSION_HEAD = "fusion"


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a model's heads: runs of equal architecture can be stacked. SettingError for one without meaning."""

    # name and vector size of each modality, two or more; the order is that of heads and of concatenation
    inputs: tuple[tuple[str, int], ...]
    # number of emotions
    classes: int
    fusion: Fusion = "gmu"
    # units of each head's hidden layer
    hidden: int = 256
    # size of the fused vector, where the fusion projects
    fusion_width: int = 256
    # share of each head's hidden units dropped in training
    dropout: float = 0.0

    def __post_init__(self) -> None:
        names = self.modalities
        if len(names) < 2 or len(set(names)) < len(names):
            raise SettingError(f"Bad modalities {list(names)}, expected two or more different ones")
        for name in names:
            if name == FUSION_HEAD or not name.isidentifier() or hasattr(nn.ModuleDict, name):
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
        """The modalities, then "fusion"."""
        return (*self.modalities, FUSION_HEAD)


class Head(nn.Module):
    """Linear(inputs, hidden) → ReLU → dropout → Linear(hidden, classes): vectors (…, batch, inputs) → logits."""

    def __init__(
        self, inputs: int, hidden: int, classes: int, *, dropout: float = 0.0, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.hidden = Linear(inputs, hidden, generator=generator)
        self.dropout = nn.Dropout(dropout)
        self.output = Linear(hidden, classes, generator=generator)

    def forward(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.output(self.dropout(self.hidden(vectors).relu()))
        return logits


class MultimodalHeads(nn.Module):
    """A head per modality and one on their fusion (Eq. 2), sharing nothing: vectors by modality in, logits by head out.

    Parameters are named `heads.<modality or "fusion">.{hidden,output}.{weight,bias}` and `fusion.…` (see
    `amber2_core.fusion`), laid out as in `torch.nn.Linear`. They are drawn from `generator` in the order modality
    heads, fusion layer, fusion head, so that runs of one seed start from the same unimodal heads whatever their fusion.
    Dropout, where there is some, draws from torch's own generator.

    Runs stack without further code: with every entry of their `state_dict` stacked along a first axis,
    `torch.func.functional_call(heads, stacked, vectors)` gives logits (runs, batch, classes), from vectors with a runs
    axis or without.
    """

    def __init__(self, architecture: Architecture, *, generator: Generator | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        shape, inputs = architecture, dict(architecture.inputs)
        self.heads = nn.ModuleDict(
            {
                name: Head(size, shape.hidden, shape.classes, dropout=shape.dropout, generator=generator)
                for name, size in inputs.items()
            }
        )
        self.fusion = fusion_layer(shape.fusion, inputs, width=shape.fusion_width, generator=generator)
        self.heads[FUSION_HEAD] = Head(
            self.fusion.width, shape.hidden, shape.classes, dropout=shape.dropout, generator=generator
        )

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Vectors (…, batch, D_m) by modality → logits (…, batch, classes) by head, in the order of `heads`.

        Where utterances lack a modality, `present` has booleans (…, batch) under its name. What its vectors hold there
        has no influence; its own head's logits are finite and mean nothing; the fusion head uses what is there.
        """
        if present is not None:
            vectors = only_present(vectors, present)
        inputs = {**vectors, FUSION_HEAD: self.fusion(vectors, present)}
        return {name: self.heads[name](inputs[name]) for name in self.architecture.heads}
