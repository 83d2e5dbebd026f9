"""Many models as one: the heads of all runs of a fold, stacked along a seed axis and a setting axis.

Runs of one seed read the same rows. All linear layers of a run that read one modality (its own head, the fusion's
projection, the modality's half of the gate) lie side by side in one weight: `wide.<modality>` (seeds, settings,
outputs, D_m). What follows reads what differs by run. Each computes what `amber2_core.heads.MultimodalHeads` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from amber2_core.fusion import Masks, gmu, self_gate, softmax_gate
from amber2_core.heads import FUSION_HEAD, Architecture, MultimodalHeads

from .optimizer import StackedAdamW
from .products import ClassScores, RunLinear, WideProduct

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Block:
    """One layer's share of a wide product: which parameter it is, and which of its columns read the modality."""

    parameter: str  # as MultimodalHeads names it
    columns: slice
    outputs: slice  # of the wide product
    head: str  # the head that owns the parameter


class StackedHeads:
    """The heads of (seeds × settings) runs of one architecture.

    Args:
        architecture: of every run.
        initial: one `MultimodalHeads` state per seed; all settings of a seed start from the same numbers.
        settings: number of runs per seed.
        device, dtype: where and in which precision the parameters live.
    """

    def __init__(
        self,
        architecture: Architecture,
        initial: Sequence[StateDict],
        settings: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.architecture = architecture
        self.seeds, self.settings = len(initial), settings
        self._blocks = {modality: _blocks(architecture, modality) for modality in architecture.modalities}
        self._own_names = [name for name in initial[0] if not self._is_wide(name)]
        starts = [self._packed(state) for state in initial]
        self.parameters: StateDict = {
            name: torch.stack([start[name] for start in starts])
            .to(device=device, dtype=dtype)
            .unsqueeze(1)
            .repeat(1, settings, *[1] * starts[0][name].ndim)
            .requires_grad_()
            for name in starts[0]
        }

    def logits(
        self,
        vectors: Mapping[str, Tensor],
        *,
        present: Tensor | None = None,
        keep: Tensor | None = None,
        optimizer: StackedAdamW | None = None,
    ) -> Tensor:
        """Vectors (seeds, batch, D_m) by modality → logits (heads, seeds, settings, batch, classes).

        `present` (heads, seeds, batch) tells who has which head, where some lack a modality: its vectors are zero for
        them, and its head's logits mean nothing. `keep` are the factors of `Dropout`. With an optimizer the wide
        products are of its precision, and a backward pass lets it update their weights.
        """
        shape = self.architecture
        pieces = {m: self._wide(m, vectors[m], optimizer) for m in shape.modalities}
        hidden = {m: pieces[m][f"heads.{m}.hidden.weight"] for m in shape.modalities}
        masks = None if present is None else list(present[:-1].unsqueeze(2))  # each (seeds, 1, batch)
        hidden[FUSION_HEAD] = self._fusion_hidden(vectors, pieces, masks)
        kept = [None] * len(shape.heads) if keep is None else keep
        return torch.stack([self._head(name, hidden[name], some) for name, some in zip(shape.heads, kept, strict=True)])

    def state(self, seed: int, setting: int) -> StateDict:
        """One run's parameters under the names of `MultimodalHeads`."""
        own = {name: self.parameters[name][seed, setting].detach().clone() for name in self._own_names}
        wide: StateDict = {}
        for modality in self.architecture.modalities:
            weight = self.parameters[f"wide.{modality}"][seed, setting].detach()
            for block in self._blocks[modality]:
                part = weight[block.outputs]
                earlier = wide.get(block.parameter)
                # modalities come in the order of their columns
                wide[block.parameter] = part.clone() if earlier is None else torch.cat((earlier, part), dim=1)
        return {**own, **wide}

    @property
    def wide(self) -> frozenset[str]:
        """The names of the wide weights."""
        return frozenset(f"wide.{modality}" for modality in self.architecture.modalities)

    def owned(self, head: str) -> Iterator[tuple[str, slice]]:
        """The parameters that only `head` reads, as (name, rows): what to keep when this head was at its best."""
        for modality in self.architecture.modalities:
            for block in self._blocks[modality]:
                if block.head == head:
                    yield f"wide.{modality}", block.outputs
        for name in self._own_names:
            if name.startswith(f"heads.{head}.") or (head == FUSION_HEAD and name.startswith("fusion.")):
                yield name, slice(None)

    def _is_wide(self, name: str) -> bool:
        return any(block.parameter == name for blocks in self._blocks.values() for block in blocks)

    def _packed(self, state: StateDict) -> StateDict:
        """A run's parameters as the stack holds them."""
        wide = {
            f"wide.{modality}": torch.cat([state[b.parameter][:, b.columns] for b in blocks])
            for modality, blocks in self._blocks.items()
        }
        return {**wide, **{name: state[name] for name in self._own_names}}

    def _wide(self, modality: str, x: Tensor, optimizer: StackedAdamW | None) -> StateDict:
        """The product of every layer that reads a modality, by parameter, each (seeds, settings, batch, outputs)."""
        name = f"wide.{modality}"
        low = None if optimizer is None else optimizer.low.get(name)
        learn = None if optimizer is None else optimizer.learner(name)
        blocks = self._blocks[modality]
        sizes = [block.outputs.stop - block.outputs.start for block in blocks]
        parts = WideProduct.apply(x, self.parameters[name], low, learn, sizes)  # type: ignore[no-untyped-call]
        return {block.parameter: part for block, part in zip(blocks, parts, strict=True)}

    def _fusion_hidden(
        self, vectors: Mapping[str, Tensor], pieces: Mapping[str, StateDict], present: Masks | None
    ) -> Tensor:
        """The fusion head's hidden layer before its bias, (seeds, settings, batch, hidden)."""
        kind, modalities = self.architecture.fusion, self.architecture.modalities
        name = f"heads.{FUSION_HEAD}.hidden.weight"
        if kind == "concat":
            return _sum(pieces[m][name] for m in modalities)
        fused = self._fused(vectors, pieces, present)
        hidden: Tensor = RunLinear.apply(fused, self.parameters[name])  # type: ignore[no-untyped-call]
        return hidden

    def _fused(self, vectors: Mapping[str, Tensor], pieces: Mapping[str, StateDict], present: Masks | None) -> Tensor:
        """The fused vector (seeds, settings, batch, width)."""
        kind, modalities = self.architecture.fusion, self.architecture.modalities
        if kind == "self-gate":
            gates = _sum(pieces[m]["fusion.gate.weight"] for m in modalities)
            return self_gate(gates, torch.cat([vectors[m] for m in modalities], dim=-1).unsqueeze(1))
        projections = [pieces[m][f"fusion.projection.{m}.weight"] for m in modalities]
        if kind == "gmu":
            return gmu(_sum(pieces[m]["fusion.gate.weight"] for m in modalities), projections, present)
        values = [projection.tanh() for projection in projections]
        scores = [value @ self.parameters["fusion.score.weight"].mT for value in values]
        return softmax_gate(scores, values, present)

    def _head(self, name: str, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """A head from its hidden layer before bias (seeds, settings, batch, hidden) to (seeds, settings, batch, C)."""
        own = self.parameters
        active = (hidden + own[f"heads.{name}.hidden.bias"].unsqueeze(-2)).relu()
        if keep is not None:
            active = active * keep.unsqueeze(1)
        scores = ClassScores.apply(  # type: ignore[no-untyped-call]
            active, own[f"heads.{name}.output.weight"], own[f"heads.{name}.output.bias"]
        )  # (seeds, settings, classes, batch)
        logits: Tensor = scores.mT
        return logits


class Dropout:
    """Inverted dropout with a random stream of each seed's own; the settings of a seed drop the same units."""

    def __init__(
        self,
        share: float,
        streams: Sequence[Generator],
        *,
        heads: int,
        units: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.share, self.streams = share, streams
        self.heads, self.units, self.dtype = heads, units, dtype

    def draw(self, batch: int) -> Tensor | None:
        """The factors of one batch's hidden units, (heads, seeds, batch, units): a share is 0, the rest 1/(1−share).

        None where nothing is dropped.
        """
        if not self.share:
            return None
        size = (batch, self.units)
        draws = torch.stack(
            [torch.stack([torch.rand(size, generator=stream) for stream in self.streams]) for _ in range(self.heads)]
        )
        return (draws >= self.share).to(self.dtype) / (1 - self.share)


def initial_state(architecture: Architecture, stream: Generator) -> StateDict:
    """A fresh run's parameters, drawn from its own stream."""
    return dict(MultimodalHeads(architecture, generator=stream).state_dict())


def _blocks(architecture: Architecture, modality: str) -> list[Block]:
    """Every layer that reads the modality, in the order of the wide product's outputs."""
    sizes = dict(architecture.inputs)
    before = list(sizes)[: list(sizes).index(modality)]
    first = sum(sizes[name] for name in before)
    whole, part = slice(0, sizes[modality]), slice(first, first + sizes[modality])
    width, joined = architecture.fusion_width, sum(sizes.values())
    gates = width if len(sizes) == 2 else len(sizes) * width
    readers = {
        "gmu": [(f"fusion.projection.{modality}.weight", whole, width), ("fusion.gate.weight", part, gates)],
        "softmax-gate": [(f"fusion.projection.{modality}.weight", whole, width)],
        "concat": [(f"heads.{FUSION_HEAD}.hidden.weight", part, architecture.hidden)],
        "self-gate": [("fusion.gate.weight", part, joined)],
    }[architecture.fusion]
    layers = [(f"heads.{modality}.hidden.weight", whole, architecture.hidden, modality)]
    layers += [(*reader, FUSION_HEAD) for reader in readers]
    blocks, start = [], 0
    for parameter, columns, outputs, head in layers:
        blocks.append(Block(parameter, columns, slice(start, start + outputs), head))
        start += outputs
    return blocks


def _sum(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total = total + part
    return total
