"""The training loop: one fold's rows and a stack of runs go in, each run's best heads and dev scores come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from amber2_core.divergences import js
from amber2_core.heads import Architecture

from .grid import Setting
from .rows import FoldRows, Rows
from .stack import Dropout, StackedHeads, initial_state
from .systems import registry
from .systems.system import TrainingStatistics

SCORED_ROWS = 2048  # rows scored at a time: bounds memory, changes no number


@dataclass(frozen=True, eq=False)
class Fitted:
    """Trained runs, each head at its best epoch."""

    stack: StackedHeads
    # (heads, seeds, settings) the epoch kept, from 1, and the dev JS there
    epoch: npt.NDArray[np.int64]
    dev_js: npt.NDArray[np.float64]


def fit(
    data: FoldRows,
    settings: Sequence[Setting],
    *,
    seeds: Sequence[int],
    epochs: int = 30,
    dtype: torch.dtype = torch.float32,
) -> Fitted:
    """Train all settings, of equal shape, under every seed on one fold.

    Every run starts from the numbers of its (seed, fold) and meets the rows in the order of its (seed, fold): settings
    are compared like with like, and a run's numbers do not depend on which others are trained with it. After each epoch
    the dev JS of the head that a system names as judge decides whether a head's parameters are kept.

    Args:
        data: rows in memory, in `dtype`, on the device to train on; those of test are not looked at.
        settings: of one `Setting.shape`, each system's side by side.
    """
    shape, train, fold = settings[0], data.train, data.number
    device = train.targets.device
    inputs = tuple((name, x.shape[1]) for name, x in train.features.items())
    architecture = Architecture(inputs, train.targets.shape[1], shape.fusion, shape.hidden, shape.hidden, shape.dropout)
    streams = [random_stream(seed, fold, "parameters") for seed in seeds]
    stack = StackedHeads(
        architecture, [initial_state(architecture, s) for s in streams], len(settings), device=device, dtype=dtype
    )
    order_streams = [random_stream(seed, fold, "order") for seed in seeds]
    dropout_streams = [random_stream(seed, fold, "dropout") for seed in seeds]
    dropout = Dropout(shape.dropout, dropout_streams) if shape.dropout else None
    optimizer = torch.optim.AdamW(
        list(stack.parameters.values()), lr=shape.lr, weight_decay=shape.weight_decay, fused=True
    )
    best = _Best(stack, settings)
    for epoch in range(1, epochs + 1):
        order = torch.stack([torch.randperm(len(train), generator=s) for s in order_streams]).to(device)
        for rows in torch.split(order, shape.batch_size, dim=1):  # (seeds, batch)
            logits = stack.logits(train.vectors(rows), dropout=dropout)  # (heads, seeds, settings, batch, C)
            loss = _loss(logits, train.targets[rows].unsqueeze(1), settings, architecture, data.statistics)
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        best.keep(epoch, dev_js(stack, data.dev))
    optimizer.zero_grad(set_to_none=True)  # what stays of a run is its parameters
    return best.restored()


def random_stream(seed: int, fold: int, purpose: str) -> Generator:
    """The random numbers of one (seed, fold) for one purpose; other runs and purposes never draw from it."""
    entropy = np.random.SeedSequence([seed, fold, *purpose.encode()]).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(entropy) >> 1)


@torch.no_grad()
def predict(stack: StackedHeads, rows: Rows) -> Tensor:
    """Logits (heads, seeds, settings, n, C) of all rows, without dropout."""
    chunks = []
    for some in torch.split(torch.arange(len(rows), device=rows.index.device), SCORED_ROWS):
        vectors = {name: x.expand(stack.seeds, -1, -1) for name, x in rows.vectors(some).items()}
        chunks.append(stack.logits(vectors))
    return torch.cat(chunks, dim=-2)


def dev_js(stack: StackedHeads, dev: Rows) -> npt.NDArray[np.float64]:
    """JS on dev, mean over utterances, (heads, seeds, settings)."""
    log_p = predict(stack, dev).double().log_softmax(-1)
    divergence = js(dev.targets.double(), log_p)  # (heads, seeds, settings, n)
    return np.asarray(divergence.mean(-1).cpu().numpy())


def _loss(
    logits: Tensor,
    target: Tensor,
    settings: Sequence[Setting],
    architecture: Architecture,
    statistics: TrainingStatistics,
) -> Tensor:
    """The loss of every run (seeds, settings), each system's on its own runs."""
    losses, first = [], 0
    for name, alike in groupby(settings, key=lambda setting: setting.system):
        some = list(alike)
        part = logits[:, :, first : first + len(some)]
        losses.append(registry.system(name).loss(part, target, some, heads=architecture.heads, statistics=statistics))
        first += len(some)
    return torch.cat(losses, dim=-1)


class _Best:
    """Keeps, for every run, each head's parameters of the epoch at which its judge scored best."""

    def __init__(self, stack: StackedHeads, settings: Sequence[Setting]) -> None:
        self.stack = stack
        heads = stack.architecture.heads
        self.judges = np.array(
            [[heads.index(registry.system(s.system).judge(head, s)) for s in settings] for head in heads]
        )  # (heads, settings)
        runs = (len(heads), stack.seeds, stack.settings)
        self.epoch = np.zeros(runs, dtype=np.int64)
        self.score = np.full(runs, np.inf)
        self.dev_js = np.full(runs, np.nan)
        self.kept = {name: parameter.detach().clone() for name, parameter in stack.parameters.items()}

    def keep(self, epoch: int, scores: npt.NDArray[np.float64]) -> None:
        """Take over the heads that got better; scores (heads, seeds, settings)."""
        judged = np.take_along_axis(scores, self.judges[:, None, :], axis=0)
        better = judged < self.score
        self.score[better], self.epoch[better], self.dev_js[better] = judged[better], epoch, scores[better]
        for head, improved in zip(self.stack.architecture.heads, better, strict=True):
            seed, setting = (torch.from_numpy(index) for index in np.nonzero(improved))
            if not len(seed):
                continue
            for name, rows in self.stack.owned(head):
                now, kept = self.stack.parameters[name].detach(), self.kept[name]
                kept[seed, setting, rows] = now[seed, setting, rows]

    def restored(self) -> Fitted:
        """The runs with every head at its best epoch."""
        with torch.no_grad():
            for name, parameter in self.stack.parameters.items():
                parameter.copy_(self.kept[name])
        return Fitted(self.stack, self.epoch, self.dev_js)
