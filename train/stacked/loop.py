"""The training loop of a stack: runs of one shape, all settings and seeds, on one fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from amber2_core.devices import on
from amber2_core.divergences import js
from amber2_core.errors import SettingError
from amber2_core.heads import Architecture, initial_parameters

from ..systems.system import FitOptions, FoldData, Rows
from .cuda_graph import record_steps
from .optimizer import StackedAdamW
from .parameters import BestHeads, StackedHeads, dropout_factors

# Rows scored at a time, by device: on a CPU what is computed between two products stays in its cache.
SCORED_ROWS = {"cpu": 256, "cuda": 2048}


class Objective(Protocol):
    """What a stack learns, and how it is judged; see `amber2_train.stacked.system.StackedSystem`."""

    name: str

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Callable[..., Tensor]: ...

    def judge(self, head: str, setting: Any) -> str: ...

    def log_probs_of(self, outputs: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained stack, each head at its best epoch, and which that was."""

    stack: StackedHeads
    best: BestHeads


def train(
    system: Objective,
    fold: FoldData,
    settings: Sequence[Any],
    seeds: Sequence[int],
    options: FitOptions,
    *,
    targets: Tensor | None = None,
) -> Trained:
    """Train all settings, of one shape, under every seed on one fold, on targets (n, C) in place of its own.

    Every run starts from the numbers of its (seed, fold) and meets the rows in the order of its (seed, fold): settings
    are compared like with like, and a run's numbers do not depend on which others are trained with it. After each epoch
    the dev JS of the head that the system names as judge decides whether a head's parameters are kept. Rows of test are
    not looked at. Numbers are of the type of the fold's targets.

    Raises:
        SettingError: the system's loss is not one number for each run.
    """
    first, data = settings[0], fold.train
    device, dtype = data.targets.device, data.targets.dtype
    targets = data.targets if targets is None else targets
    stack = new_stack(fold, settings, seeds)
    heads = stack.architecture.heads
    orders = [random_stream(seed, fold.number, "order") for seed in seeds]
    streams = [random_stream(seed, fold.number, "dropout") for seed in seeds]
    optimizer = StackedAdamW(
        stack.parameters, wide=stack.wide, lr=first.lr, weight_decay=first.weight_decay, precision=options.precision
    )
    loss = system.loss(settings, heads=heads, fold=fold)
    judges = np.array([[heads.index(system.judge(head, setting)) for setting in settings] for head in heads])
    best = BestHeads(stack, judges, patience=options.patience)
    epoch, runs = torch.zeros((), device=device), (len(seeds), len(settings))

    def step(rows: Tensor, keep: Tensor | None) -> None:  # (seeds, batch), (heads, seeds, batch, hidden)
        optimizer.zero_grad()
        vectors = data.vectors(rows)  # each (seeds, batch, D)
        present = data.presence(rows)  # (heads, seeds, batch), or None
        # (heads, seeds, settings, batch, C)
        outputs = stack.logits(vectors, present=present, keep=keep, optimizer=optimizer)
        there = None if present is None else present.unsqueeze(2)  # for all settings
        losses = loss(outputs, targets[rows].unsqueeze(1), there, epoch)  # (seeds, settings)
        if losses.shape != runs:
            raise SettingError(
                f"The loss of {system.name} is {tuple(losses.shape)}, expected one number for each run, "
                f"(seeds, settings) = {runs}"
            )
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    take_step = record_steps(step, device)
    for number in range(1, options.epochs + 1):
        epoch.fill_(number)
        order = on(device, torch.stack([torch.randperm(len(data), generator=stream) for stream in orders]))
        for rows in torch.split(order, first.batch_size, dim=1):  # (seeds, batch)
            keep = dropout_factors(
                first.dropout, streams, heads=len(heads), batch=rows.shape[1], units=first.hidden, dtype=dtype
            )
            take_step(rows, keep if keep is None else on(device, keep))
        best.keep(number, dev_js(system, stack, fold.dev, optimizer=optimizer))
        if best.all_stopped:
            break
    best.restore()
    optimizer.zero_grad()  # the stack goes on without its gradients
    return Trained(stack, best)


def new_stack(fold: FoldData, settings: Sequence[Any], seeds: Sequence[int]) -> StackedHeads:
    """Untrained runs of all settings and seeds."""
    first, targets = settings[0], fold.train.targets
    inputs = tuple((name, x.shape[-1]) for name, x in fold.train.features.items())
    shape = Architecture(inputs, targets.shape[1], first.fusion, first.hidden, first.hidden, first.dropout)
    initial = [initial_parameters(shape, random_stream(seed, fold.number, "parameters")) for seed in seeds]
    return StackedHeads(shape, initial, len(settings), device=targets.device, dtype=targets.dtype)


def random_stream(seed: int, fold: int, purpose: str) -> Generator:
    """The random numbers of one (seed, fold) for one purpose; other runs and purposes never draw from it."""
    entropy = np.random.SeedSequence([seed, fold, *purpose.encode()]).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(entropy) >> 1)


@torch.no_grad()
def dev_js(
    system: Objective, stack: StackedHeads, dev: Rows, *, optimizer: StackedAdamW | None = None
) -> npt.NDArray[np.float64]:
    """JS on dev, mean over the utterances that have the head, (heads, seeds, settings); NaN where none has.

    With an optimizer, of its precision.
    """
    index, divergences = torch.arange(len(dev), device=dev.index.device), []
    for some in torch.split(index, SCORED_ROWS[index.device.type]):
        vectors = {name: x.expand(stack.seeds, -1, -1) for name, x in dev.vectors(some).items()}
        present = dev.presence(some)
        masks = None if present is None else present.unsqueeze(1)  # for all seeds
        outputs = stack.logits(vectors, present=masks, optimizer=optimizer)
        log_p = system.log_probs_of(outputs.double()).mT  # (heads, seeds, settings, C, batch)
        divergences.append(js(dev.targets[some].double().mT, log_p, dim=-2))
    divergence = torch.cat(divergences, dim=-1)  # (heads, seeds, settings, n)
    present = dev.presence(index)
    if present is None:
        return np.asarray(divergence.mean(-1).cpu().numpy())
    there = present[:, None, None]
    return np.asarray((divergence.masked_fill(~there, 0.0).sum(-1) / there.sum(-1)).cpu().numpy())
