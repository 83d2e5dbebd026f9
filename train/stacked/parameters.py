"""The parameters of many runs as one stack: the heads of all runs of a fold, along a seed axis and a setting axis.

Runs of one seed read the same rows. All layers of a run that read one modality (its own head, the fusion's projection,
the modality's half of the gate) lie side by side in one weight: `wide.<modality>` (seeds, settings, outputs, D_m). All
else is called as `amber2_core.heads.Heads` calls it, and is computed there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from amber2_core.heads import FUSION_HEAD, Architecture, Heads

from .kernels import WideProduct, run_linear
from .optimizer import StackedAdamW


@dataclass(frozen=True)
class Block:
    """A first layer's share of a wide weight: its outputs there, and which of its own columns read the modality."""

    layer: str
    columns: slice
    outputs: slice

    @property
    def weight(self) -> str:
        return f"{self.layer}.weight"


class StackedHeads:
    """The heads of (seeds × settings) runs of one architecture.

    Args:
        architecture: of every run.
        initial: the parameters of one run per seed; all settings of a seed start from the same numbers.
        settings: number of runs per seed.
        device, dtype: where and in which precision the parameters live.
    """

    def __init__(
        self,
        architecture: Architecture,
        initial: Sequence[Mapping[str, Tensor]],
        settings: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.architecture = architecture
        self.seeds, self.settings = len(initial), settings
        self._blocks = {f"wide.{modality}": _blocks(architecture, modality) for modality in architecture.modalities}
        wide = {block.weight for blocks in self._blocks.values() for block in blocks}
        self._own_names = [name for name in architecture.shapes if name not in wide]
        starts = [self._packed(parameters) for parameters in initial]
        self.parameters: dict[str, Tensor] = {
            name: torch.stack([start[name] for start in starts])
            .to(device=device, dtype=dtype)
            .unsqueeze(1)
            .repeat(1, settings, *[1] * starts[0][name].ndim)
            .requires_grad_()
            for name in starts[0]
        }
        self._heads = Heads(architecture, self.parameters, linear=run_linear)

    def logits(
        self,
        vectors: Mapping[str, Tensor],
        *,
        present: Tensor | None = None,
        keep: Tensor | None = None,
        optimizer: StackedAdamW | None = None,
    ) -> Tensor:
        """Vectors (seeds, batch, D_m) by modality → logits (heads, seeds, settings, batch, classes).

        `present` (heads, seeds, batch) tells who has which head, where some lack a modality; logits of a head that is
        not there mean nothing. `keep` are `dropout_factors`. With an optimizer the wide products are of its
        precision, and a backward pass lets it update their weights.
        """
        of_all = {name: x.unsqueeze(1) for name, x in vectors.items()}  # one axis for all settings
        masks = None if present is None else dict(zip(self.architecture.modalities, present.unsqueeze(2), strict=False))
        kept = None if keep is None else keep.unsqueeze(2)
        wide = partial(self._first_layers, optimizer=optimizer)
        return self._heads.logits(of_all, present=masks, keep=kept, first_layers=wide)

    def state(self, seed: int, setting: int) -> dict[str, Tensor]:
        """One run's parameters, as `Heads` names them."""
        own = {name: self.parameters[name][seed, setting].detach().clone() for name in self._own_names}
        parts: dict[str, list[Tensor]] = {}
        for wide, blocks in self._blocks.items():  # modalities come in the order of their columns
            weight = self.parameters[wide][seed, setting].detach()
            for block in blocks:
                parts.setdefault(block.weight, []).append(weight[block.outputs])
        return {**own, **{name: torch.cat(some, dim=1) for name, some in parts.items()}}

    @property
    def wide(self) -> frozenset[str]:
        """The names of the wide weights."""
        return frozenset(self._blocks)

    def owned(self, head: str) -> Iterator[tuple[str, slice]]:
        """The parameters that only `head` reads, as (name, rows): what to keep when this head was at its best."""
        for wide, blocks in self._blocks.items():
            yield from ((wide, block.outputs) for block in blocks if _owner(block.weight) == head)
        yield from ((name, slice(None)) for name in self._own_names if _owner(name) == head)

    def _packed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A run's parameters as the stack holds them."""
        wide = {
            name: torch.cat([parameters[block.weight][:, block.columns] for block in blocks])
            for name, blocks in self._blocks.items()
        }
        return {**wide, **{name: parameters[name] for name in self._own_names}}

    def _first_layers(self, vectors: Mapping[str, Tensor], *, optimizer: StackedAdamW | None) -> dict[str, Tensor]:
        """What every layer that reads vectors (seeds, 1, batch, D_m) gives, (seeds, settings, batch, outputs)."""
        given: dict[str, Tensor] = {}
        for modality, (wide, blocks) in zip(self.architecture.modalities, self._blocks.items(), strict=True):
            x = vectors[modality].squeeze(1)
            low = None if optimizer is None else optimizer.low.get(wide)
            learn = None if optimizer is None else optimizer.learner(wide)
            sizes = [block.outputs.stop - block.outputs.start for block in blocks]
            parts = WideProduct.apply(x, self.parameters[wide], low, learn, sizes)  # type: ignore[no-untyped-call]
            for block, part in zip(blocks, parts, strict=True):
                given[block.layer] = given[block.layer] + part if block.layer in given else part
        return given


def dropout_factors(
    share: float, streams: Sequence[Generator], *, heads: int, batch: int, units: int, dtype: torch.dtype
) -> Tensor | None:
    """Inverted dropout of one batch's hidden units, (heads, seeds, batch, units): a share is 0, the rest 1/(1−share).

    Every seed has a random stream of its own; its settings drop the same units. None where nothing is dropped.
    """
    if not share:
        return None
    draws = [[torch.rand(batch, units, generator=stream) for stream in streams] for _ in range(heads)]
    return (torch.stack([torch.stack(of_seeds) for of_seeds in draws]) >= share).to(dtype) / (1 - share)


def _blocks(architecture: Architecture, modality: str) -> list[Block]:
    """Every layer that reads the modality, in the order of the wide weight's outputs."""
    sizes = dict(architecture.inputs)
    blocks, start = [], 0
    for layer in architecture.first_layers:
        if modality in layer.reads:
            before = sum(sizes[name] for name in layer.reads[: layer.reads.index(modality)])
            columns = slice(before, before + sizes[modality])
            blocks.append(Block(layer.name, columns, slice(start, start + layer.outputs)))
            start += layer.outputs
    return blocks


def _owner(parameter: str) -> str:
    """The head that alone reads a parameter."""
    room, name, *_ = parameter.split(".")
    return name if room == "heads" else FUSION_HEAD
