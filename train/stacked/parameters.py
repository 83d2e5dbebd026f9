"""The parameters of many runs as one stack: the heads of all runs of a fold, along a seed axis and a setting axis.

Runs of one seed read the same rows. All layers of a run that read one source, a modality's vectors (its own head, the
fusion's projection, the modality's half of the gate), lie side by side in one weight: `wide.<source>` (seeds, settings,
outputs, D). All else is called as `amber2_core.heads.Heads` calls it, and is computed there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from amber2_core.heads import FUSION_HEAD, Architecture, Heads, Mixing

from .kernels import WideProduct, run_linear
from .optimizer import StackedAdamW


@dataclass(frozen=True)
class Block:
    """A first layer's share of a wide weight: its outputs there, and which of its own columns read the source."""

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
        self._blocks = {f"wide.{source}": _blocks(architecture, source) for source in architecture.sizes}
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
        inputs: Mapping[str, Any],
        *,
        present: Tensor | None = None,
        keep: Tensor | None = None,
        mixing: Mixing | None = None,
        optimizer: StackedAdamW | None = None,
    ) -> Tensor:
        """Inputs (seeds, batch, …) by modality → logits (heads, seeds, settings, batch, classes).

        `present` (heads, seeds, batch) tells who has which head, where some lack a modality; logits of a head that is
        not there mean nothing. `keep` are `dropout_factors`, `mixing` is (seeds, batch). With an optimizer the wide
        products are of its precision, and a backward pass lets it update their weights.
        """
        of_all = {name: _of_all_settings(x) for name, x in inputs.items()}
        masks = None if present is None else dict(zip(self.architecture.modalities, present.unsqueeze(2), strict=False))
        kept = None if keep is None else keep.unsqueeze(2)
        blend = None if mixing is None else Mixing(*(x.unsqueeze(1) for x in mixing))
        wide = partial(self._first_layers, optimizer=optimizer)
        return self._heads.logits(of_all, present=masks, keep=kept, mixing=blend, first_layers=wide)

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
            yield from ((wide, block.outputs) for block in blocks if self._owner(block.weight) == head)
        yield from ((name, slice(None)) for name in self._own_names if self._owner(name) == head)

    def _owner(self, parameter: str) -> str:
        """The head that alone reads a parameter."""
        modalities = self.architecture.modalities
        return next((m for m in modalities if parameter.startswith(f"heads.{m}.")), FUSION_HEAD)

    def _packed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A run's parameters as the stack holds them."""
        wide = {
            name: torch.cat([parameters[block.weight][:, block.columns] for block in blocks])
            for name, blocks in self._blocks.items()
        }
        return {**wide, **{name: parameters[name] for name in self._own_names}}

    def _first_layers(self, vectors: Mapping[str, Tensor], *, optimizer: StackedAdamW | None) -> dict[str, Tensor]:
        """What every layer that reads vectors (seeds, 1 or settings, batch, D) gives, (seeds, settings, batch, …)."""
        given: dict[str, Tensor] = {}
        for source, (wide, blocks) in zip(self.architecture.sizes, self._blocks.items(), strict=True):
            x = vectors[source] if self.architecture.stages else vectors[source].squeeze(1)
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


def _blocks(architecture: Architecture, source: str) -> list[Block]:
    """Every layer that reads the source, in the order of the wide weight's outputs."""
    sizes = architecture.sizes
    blocks, start = [], 0
    for layer in architecture.first_layers:
        if source in layer.reads:
            before = sum(sizes[name] for name in layer.reads[: layer.reads.index(source)])
            columns = slice(before, before + sizes[source])
            blocks.append(Block(layer.name, columns, slice(start, start + layer.outputs)))
            start += layer.outputs
    return blocks


def _of_all_settings(x: Any) -> Any:
    """One axis for all settings, (seeds, batch, …) → (seeds, 1, batch, …); of frames and their mask, of both."""
    return tuple(part.unsqueeze(1) for part in x) if isinstance(x, tuple) else x.unsqueeze(1)


class BestHeads:
    """Keeps, for every run, each head's parameters of the epoch at which its judge scored best.

    Args:
        judges: (heads, settings) the index of the head whose score decides which epoch of a head is kept.
        patience: a head that has not improved for so many epochs has stopped: nothing of it is kept any more. A stopped
            head costs as much as another until all of a stack have stopped.
    """

    def __init__(self, stack: StackedHeads, judges: npt.NDArray[np.intp], *, patience: int | None = None) -> None:
        self.stack, self.judges, self.patience = stack, judges, patience
        runs = (len(judges), stack.seeds, stack.settings)
        self.epoch: npt.NDArray[np.int64] = np.zeros(runs, dtype=np.int64)
        self.dev_js = np.full(runs, np.nan)
        self._score = np.full(runs, np.inf)
        self._stopped = np.zeros(runs, dtype=bool)
        # how many epochs a head was looked at: what a run leaves must not depend on when its neighbours stop
        self.epochs: npt.NDArray[np.int64] = np.zeros(runs, dtype=np.int64)
        self._scores: list[npt.NDArray[np.float64]] = []
        self._kept = {name: parameter.detach().clone() for name, parameter in stack.parameters.items()}

    @property
    def all_stopped(self) -> bool:
        return bool(self._stopped.all())

    @property
    def curves(self) -> npt.NDArray[np.float64]:
        """Dev JS after every epoch (epochs, heads, seeds, settings); of a head, its first `epochs` count."""
        return np.stack(self._scores)

    def keep(self, epoch: int, scores: npt.NDArray[np.float64]) -> None:
        """Take over the heads that got better; scores (heads, seeds, settings)."""
        judged = np.take_along_axis(scores, self.judges[:, None, :], axis=0)
        self._scores.append(scores)
        self.epochs[~self._stopped] = epoch
        better = (judged < self._score) & ~self._stopped
        self._score[better], self.epoch[better], self.dev_js[better] = judged[better], epoch, scores[better]
        if self.patience is not None:
            self._stopped |= epoch - self.epoch >= self.patience
        for head, improved in zip(self.stack.architecture.heads, better, strict=True):
            runs = np.nonzero(improved)  # (seeds, settings)
            for name, rows in self.stack.owned(head):
                _take_over(self._kept[name][:, :, rows], self.stack.parameters[name].detach()[:, :, rows], runs)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the stack every head of its best epoch."""
        for name, parameter in self.stack.parameters.items():
            parameter.copy_(self._kept[name])


def _take_over(kept: Tensor, now: Tensor, runs: tuple[npt.NDArray[np.intp], ...]) -> None:
    """Copy some runs' parameters (seeds, settings, …): on a CPU one by one, which takes a fifth of the time there."""
    if kept.device.type == "cpu":
        for seed, setting in zip(*runs, strict=True):
            kept[seed, setting].copy_(now[seed, setting])
    else:
        places = tuple(torch.from_numpy(of_axis).to(kept.device) for of_axis in runs)
        kept[places] = now[places]
