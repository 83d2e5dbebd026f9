"""Best epochs of a stack: every head's parameters as they were when its judge scored best on dev, and its curve."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .parameters import StackedHeads


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
