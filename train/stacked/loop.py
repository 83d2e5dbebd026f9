"""The training loop of a stack: runs of one shape, all settings and seeds, on one fold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from amber2_core.devices import on
from amber2_core.divergences import js
from amber2_core.errors import SettingError
from amber2_core.heads import Architecture, Mixing, initial_parameters, mixed

from ..systems.system import FitOptions, FoldData, Need, Rows
from .cuda_graph import record_steps
from .optimizer import StackedAdamW
from .parameters import BestHeads, StackedHeads, dropout_factors

# Rows scored at a time, by device: on a CPU what is computed between two products stays in its cache.
SCORED_ROWS = {"cpu": 256, "cuda": 2048}
# what a run's random numbers are drawn for, each from a stream of its own
PURPOSES = ("order", "dropout", "rows", "mixing")


class Objective(Protocol):
    """What a stack is, learns, and is judged by; see `amber2_train.stacked.system.StackedSystem`."""

    name: str

    def architecture(self, setting: Any, fold: FoldData) -> Architecture: ...

    def reads(self, setting: Any, modality: str) -> Need: ...

    def learnt(self, setting: Any, rows: Rows) -> Tensor: ...

    def drawn(self, setting: Any, train: Rows, epoch: int, stream: Generator) -> Rows: ...

    def mixing(self, setting: Any, batch: int, streams: Sequence[Generator]) -> Mixing | None: ...

    def rate(self, setting: Any, epoch: int) -> float: ...

    def rates(self, setting: Any, parameters: Sequence[str]) -> Mapping[str, float]: ...

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Callable[..., Tensor]: ...

    def judge(self, head: str, setting: Any) -> str: ...

    def log_probs_of(self, outputs: Tensor, setting: Any) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained stack, each head at its best epoch, and which that was."""

    stack: StackedHeads
    best: BestHeads


def train(
    system: Objective, fold: FoldData, settings: Sequence[Any], seeds: Sequence[int], options: FitOptions
) -> Trained:
    """Train all settings, of one shape and on the same targets, under every seed on one fold.

    Every run starts from the numbers of its (seed, fold) and meets the rows in the order of its (seed, fold): settings
    are compared like with like, and a run's numbers do not depend on which others are trained with it. After each epoch
    the dev JS of the head that the system names as judge decides whether a head's parameters are kept. Rows of test are
    not looked at. Numbers are of the type of the fold's targets.

    Raises:
        SettingError: the system's loss is not one number for each run.
    """
    first, dtype = settings[0], fold.train.targets.dtype
    device = fold.train.targets.device
    stack = new_stack(system, fold, settings, seeds)
    heads, needs = stack.architecture.heads, needs_of(system, first, fold)
    streams = {purpose: [random_stream(seed, fold.number, purpose) for seed in seeds] for purpose in PURPOSES}
    optimizer = StackedAdamW(
        stack.parameters,
        wide=stack.wide,
        lr=first.lr,
        weight_decay=first.weight_decay,
        rates=system.rates(first, list(stack.parameters)),
        precision=options.precision,
    )
    loss = system.loss(settings, heads=heads, fold=fold)
    judges = np.array([[heads.index(system.judge(head, setting)) for setting in settings] for head in heads])
    best = BestHeads(stack, judges, patience=options.patience)
    epoch, runs = torch.zeros((), device=device), (len(seeds), len(settings))

    def step(rows: Tensor, keep: Tensor | None, partner: Tensor | None, share: Tensor | None) -> None:
        # (seeds, batch), (heads, seeds, batch, hidden), and twice (seeds, batch)
        optimizer.zero_grad()
        inputs = data.inputs(rows, needs)  # each (seeds, batch, …)
        present = data.presence(rows)  # (heads, seeds, batch), or None
        mixing = None if partner is None or share is None else Mixing(partner, share)
        # (heads, seeds, settings, batch, C)
        outputs = stack.logits(inputs, present=present, keep=keep, mixing=mixing, optimizer=optimizer)
        target = targets[rows]  # (seeds, batch, C)
        if mixing is not None:
            target = mixed(target, *mixing)
        there = None if present is None else present.unsqueeze(2)  # for all settings
        losses = loss(outputs, target.unsqueeze(1), there, epoch)  # (seeds, settings)
        if losses.shape != runs:
            raise SettingError(
                f"The loss of {system.name} is {tuple(losses.shape)}, expected one number for each run, "
                f"(seeds, settings) = {runs}"
            )
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    data, targets, take_step = fold.train, system.learnt(first, fold.train), record_steps(step, device)
    for number in range(1, options.epochs + 1):
        epoch.fill_(number)
        drawn = [system.drawn(first, fold.train, number, stream) for stream in streams["rows"]]
        if any(rows is not fold.train for rows in drawn):
            data = drawn[0].joined(drawn[1:])
            targets = system.learnt(first, data)
            take_step = record_steps(step, device)
        if (rate := first.lr * system.rate(first, number)) != optimizer.lr:
            optimizer.lr, take_step = rate, record_steps(step, device)
        for rows in _batches(drawn, first.batch_size, streams["order"], device):
            keep = dropout_factors(
                first.dropout,
                streams["dropout"],
                heads=len(heads),
                batch=rows.shape[1],
                units=first.hidden,
                dtype=dtype,
            )
            mixing = system.mixing(first, rows.shape[1], streams["mixing"])
            take_step(rows, *(x if x is None else on(device, x) for x in (keep, *(mixing or (None, None)))))
        best.keep(number, dev_js(system, first, stack, fold.dev, needs, optimizer=optimizer))
        if best.all_stopped:
            break
    best.restore()
    optimizer.zero_grad()  # the stack goes on without its gradients
    return Trained(stack, best)


def _batches(drawn: Sequence[Rows], size: int, streams: Sequence[Generator], device: torch.device) -> Iterator[Tensor]:
    """An epoch's batches (seeds, batch): each seed's rows, which may be its own, in an order of its own."""
    orders = [torch.randperm(len(rows), generator=stream) for rows, stream in zip(drawn, streams, strict=True)]
    if any(rows is not drawn[0] for rows in drawn):  # they stand behind one another
        orders = [order + k * len(order) for k, order in enumerate(orders)]
    yield from torch.split(on(device, torch.stack(orders)), size, dim=1)


def new_stack(system: Objective, fold: FoldData, settings: Sequence[Any], seeds: Sequence[int]) -> StackedHeads:
    """Untrained runs of all settings and seeds."""
    targets = fold.train.targets
    shape = system.architecture(settings[0], fold)
    initial = [initial_parameters(shape, random_stream(seed, fold.number, "parameters")) for seed in seeds]
    return StackedHeads(shape, initial, len(settings), device=targets.device, dtype=targets.dtype)


def needs_of(system: Objective, setting: Any, fold: FoldData) -> dict[str, Need]:
    """What a setting reads of each modality."""
    return {modality: system.reads(setting, modality) for modality in fold.train.features}


def random_stream(seed: int, fold: int, purpose: str) -> Generator:
    """The random numbers of one (seed, fold) for one purpose; other runs and purposes never draw from it."""
    entropy = np.random.SeedSequence([seed, fold, *purpose.encode()]).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(entropy) >> 1)


@torch.no_grad()
def dev_js(
    system: Objective,
    setting: Any,
    stack: StackedHeads,
    dev: Rows,
    needs: Mapping[str, Need],
    *,
    optimizer: StackedAdamW | None = None,
) -> npt.NDArray[np.float64]:
    """JS on dev, mean over the utterances that have the head, (heads, seeds, settings); NaN where none has.

    `setting` is one of the stack's. With an optimizer, of its precision.
    """
    index, divergences = torch.arange(len(dev), device=dev.index.device), []
    for some in torch.split(index, SCORED_ROWS[index.device.type]):
        inputs = dev.inputs(some.unsqueeze(0), needs)
        inputs = {name: _for_all_seeds(x, stack.seeds) for name, x in inputs.items()}
        present = dev.presence(some)
        masks = None if present is None else present.unsqueeze(1)  # for all seeds
        outputs = stack.logits(inputs, present=masks, optimizer=optimizer)
        log_p = system.log_probs_of(outputs.double(), setting).mT  # (heads, seeds, settings, C, batch)
        divergences.append(js(dev.targets[some].double().mT, log_p, dim=-2))
    divergence = torch.cat(divergences, dim=-1)  # (heads, seeds, settings, n)
    present = dev.presence(index)
    if present is None:
        return np.asarray(divergence.mean(-1).cpu().numpy())
    there = present[:, None, None]
    return np.asarray((divergence.masked_fill(~there, 0.0).sum(-1) / there.sum(-1)).cpu().numpy())


def _for_all_seeds(x: Any, seeds: int) -> Any:
    """(1, batch, …) → (seeds, batch, …) without a copy; of frames and their mask, of both."""
    parts = [part.expand(seeds, *[-1] * (part.ndim - 1)) for part in (x if isinstance(x, tuple) else (x,))]
    return tuple(parts) if isinstance(x, tuple) else parts[0]
