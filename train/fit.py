"""The training loop: one fold's rows and a stack of runs go in, each run's best heads and dev scores come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from amber2_core.devices import on
from amber2_core.divergences import js
from amber2_core.heads import Architecture, initial_parameters

from .grid import Setting
from .interrupts import check_interrupt
from .labels import LABELS, Labels
from .precision import Precision
from .rows import FoldRows, Rows
from .stacked.best_epochs import BestHeads
from .stacked.cuda_graph import record_steps
from .stacked.optimizer import StackedAdamW
from .stacked.parameters import StackedHeads, dropout_factors
from .systems import registry
from .systems.system import Loss, TrainingStatistics

# Rows scored at a time, by device: on a CPU what is computed between two products stays in its cache.
SCORED_ROWS = {"cpu": 256, "cuda": 2048}


@dataclass(frozen=True, eq=False)
class Fitted:
    """Trained runs, each head at its best epoch."""

    stack: StackedHeads
    # (heads, seeds, settings) the epoch kept, from 1, and the dev JS there; 0 and NaN where it never was a number
    epoch: npt.NDArray[np.int64]
    dev_js: npt.NDArray[np.float64]
    # (epochs, heads, seeds, settings) the dev JS after every epoch, and (heads, seeds, settings) how many of them count
    curves: npt.NDArray[np.float64]
    epochs: npt.NDArray[np.int64]


def fit(
    data: FoldRows,
    settings: Sequence[Setting],
    *,
    seeds: Sequence[int],
    epochs: int = 30,
    patience: int | None = None,
    dtype: torch.dtype = torch.float32,
    precision: Precision = "fp32",
) -> Fitted:
    """Train all settings, of equal shape, under every seed on one fold.

    Every run starts from the numbers of its (seed, fold) and meets the rows in the order of its (seed, fold): settings
    are compared like with like, and a run's numbers do not depend on which others are trained with it. After each epoch
    the dev JS of the head that a system names as judge decides whether a head's parameters are kept.

    Args:
        data: rows in memory, in `dtype`, on the device to train on; those of test are not looked at.
        settings: of one `Setting.shape`, each system's side by side.
        patience: a head that has not improved for so many epochs is not looked at again; training ends with the last.
        precision: "bf16" computes the largest products in bfloat16; parameters and moments stay in `dtype`.
            "tf32" is what `products_in` makes of the same products.
    """
    shape, train = settings[0], data.train
    device = train.targets.device
    stack = new_stack(data, settings, seeds, dtype)
    orders = [random_stream(seed, data.number, "order") for seed in seeds]
    streams = [random_stream(seed, data.number, "dropout") for seed in seeds]
    heads, units = len(stack.architecture.heads), shape.hidden
    optimizer = StackedAdamW(
        stack.parameters, wide=stack.wide, lr=shape.lr, weight_decay=shape.weight_decay, precision=precision
    )
    loss = loss_of(settings, stack.architecture.heads, data.statistics)
    best = BestHeads(stack, judges(settings, stack.architecture.heads), patience=patience)

    def step(rows: Tensor, keep: Tensor | None) -> None:  # (seeds, batch), (heads, seeds, batch, hidden)
        optimizer.zero_grad()
        vectors = train.vectors(rows)  # each (seeds, batch, D)
        present = train.presence(rows)  # (heads, seeds, batch), or None
        # (heads, seeds, settings, batch, C)
        logits = stack.logits(vectors, present=present, keep=keep, optimizer=optimizer)
        losses = loss(logits, train.targets[rows].unsqueeze(1), present)  # (seeds, settings)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    take_step = record_steps(step, device)
    for epoch in range(1, epochs + 1):
        order = on(device, torch.stack([torch.randperm(len(train), generator=stream) for stream in orders]))
        for rows in torch.split(order, shape.batch_size, dim=1):  # (seeds, batch)
            batch = rows.shape[1]
            keep = dropout_factors(shape.dropout, streams, heads=heads, batch=batch, units=units, dtype=dtype)
            take_step(rows, keep if keep is None else on(device, keep))
            check_interrupt()
        best.keep(epoch, dev_js(stack, data.dev, optimizer=optimizer))
        if best.all_stopped:
            break
    best.restore()
    optimizer.zero_grad()  # the stack goes on without its gradients
    return Fitted(stack, best.epoch, best.dev_js, best.curves, best.epochs)


def new_stack(data: FoldRows, settings: Sequence[Setting], seeds: Sequence[int], dtype: torch.dtype) -> StackedHeads:
    """Untrained runs of all settings and seeds."""
    shape = settings[0]
    inputs = tuple((name, x.shape[1]) for name, x in data.train.features.items())
    classes = data.train.targets.shape[1]
    architecture = Architecture(inputs, classes, shape.fusion, shape.hidden, shape.hidden, shape.dropout)
    initial = [initial_parameters(architecture, random_stream(seed, data.number, "parameters")) for seed in seeds]
    return StackedHeads(architecture, initial, len(settings), device=data.train.targets.device, dtype=dtype)


def judges(settings: Sequence[Setting], heads: tuple[str, ...]) -> npt.NDArray[np.intp]:
    """(heads, settings) the index of the head whose dev JS decides which epoch of a head is kept."""
    systems = [registry.system(setting.system) for setting in settings]
    of_heads = [[s.judge(head, own) for s, own in zip(systems, settings, strict=True)] for head in heads]
    return np.array([[heads.index(judge) for judge in row] for row in of_heads])


def random_stream(seed: int, fold: int, purpose: str) -> Generator:
    """The random numbers of one (seed, fold) for one purpose; other runs and purposes never draw from it."""
    entropy = np.random.SeedSequence([seed, fold, *purpose.encode()]).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(entropy) >> 1)


def loss_of(
    settings: Sequence[Setting], heads: tuple[str, ...], statistics: Mapping[Labels, TrainingStatistics]
) -> Loss:
    """The loss of every run (seeds, settings), each system's on its own settings and with the labels they want.

    As `System.loss` gives it, but for the third argument, which is as `Rows.presence` gives it.
    """
    parts: list[tuple[int, Callable[[Tensor], Tensor], Loss]] = []
    for (name, labels), alike in groupby(settings, key=lambda setting: (setting.system, setting.labels)):
        some = list(alike)
        loss = registry.system(name).loss(some, heads=heads, statistics=statistics[labels])
        parts.append((len(some), LABELS[labels], loss))

    def losses(logits: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        of_parts = torch.split(logits, [count for count, _, _ in parts], dim=2)
        there = None if present is None else present.unsqueeze(2)  # for all settings
        return torch.cat([f(some, y(target), there) for some, (_, y, f) in zip(of_parts, parts, strict=True)], dim=-1)

    return losses


@torch.no_grad()
def predict(stack: StackedHeads, rows: Rows, *, optimizer: StackedAdamW | None = None) -> Tensor:
    """Logits (heads, seeds, settings, n, C) of all rows, without dropout; with an optimizer, of its precision.

    Those of a head that an utterance has not got (`Rows.presence`) mean nothing.
    """
    chunks = []
    device = rows.index.device
    for some in torch.split(torch.arange(len(rows), device=device), SCORED_ROWS[device.type]):
        vectors = {name: x.expand(stack.seeds, -1, -1) for name, x in rows.vectors(some).items()}
        present = rows.presence(some)
        masks = None if present is None else present.unsqueeze(1)  # for all seeds
        chunks.append(stack.logits(vectors, present=masks, optimizer=optimizer))
    return torch.cat(chunks, dim=-2)


def dev_js(stack: StackedHeads, dev: Rows, *, optimizer: StackedAdamW | None = None) -> npt.NDArray[np.float64]:
    """JS on dev, mean over the utterances that have the head, (heads, seeds, settings); NaN where none has."""
    log_p = predict(stack, dev, optimizer=optimizer).double().mT.log_softmax(-2)
    divergence = js(dev.targets.double().mT, log_p, dim=-2)  # (heads, seeds, settings, n)
    present = dev.presence(torch.arange(len(dev), device=dev.index.device))
    if present is None:
        return np.asarray(divergence.mean(-1).cpu().numpy())
    there = present[:, None, None]
    return np.asarray((divergence.masked_fill(~there, 0.0).sum(-1) / there.sum(-1)).cpu().numpy())
