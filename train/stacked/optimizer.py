"""AdamW for a stack of runs, which takes gradients whole, or run by run as they become known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .kernels import Learn, low_factors, rounded

if TYPE_CHECKING:
    from ..systems.system import Precision

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True, eq=False)
class _Piece:
    """A parameter, or one run's part of it, with its moments and the number of its step, from 1."""

    parameter: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor
    rate: float = 1.0  # times the learning rate
    decay: bool = True


class StackedAdamW:
    """torch's AdamW at its defaults of β and ε.

    Args:
        parameters: (seeds, settings, …) by name.
        wide: names of the large ones. On a CPU they are updated run by run, while a run's gradient still lies in the
            processor's cache; all others, and on other devices all, by `step`, from their `.grad`.
        rates: name → how many times the learning rate a parameter learns at, of those that differ; without decay.
        precision: for "bf16" there is a copy of the wide ones, `rounded` to bfloat16, up to date after every step.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        wide: frozenset[str],
        lr: float,
        weight_decay: float,
        rates: Mapping[str, float] | None = None,
        precision: Precision = "fp32",
    ) -> None:
        # `lr` may be changed between steps
        self.lr, self.weight_decay = lr, weight_decay
        self._masters = {name: parameters[name].detach() for name in wide if precision == "bf16"}
        self.low = {name: rounded(master, low_factors(master)) for name, master in self._masters.items()}
        in_pieces = {name for name in wide if parameters[name].device.type == "cpu"}
        self._pieces: dict[str, list[list[_Piece]]] = {}
        self._under_way = torch.ones(())  # the number of the step that the pieces learn in
        self._whole: list[_Piece] = []
        for name, parameter in parameters.items():
            mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
            if name in in_pieces:
                data = parameter.detach()
                seeds, settings = parameter.shape[:2]
                self._pieces[name] = [
                    [_Piece(data[s, k], mean[s, k], square[s, k], self._under_way) for k in range(settings)]
                    for s in range(seeds)
                ]
            else:
                steps, rate = torch.zeros((), device=parameter.device), (rates or {}).get(name, 1.0)
                self._whole.append(_Piece(parameter, mean, square, steps, rate, decay=name not in (rates or {})))

    def learner(self, name: str) -> Learn | None:
        """What takes the gradients of a parameter run by run; None for one that `step` updates."""
        return partial(self._learn, name) if name in self._pieces else None

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for piece in self._whole:
            piece.parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update all other parameters that have a gradient; with that the step has ended."""
        moved = [(piece, gradient) for piece in self._whole if (gradient := piece.parameter.grad) is not None]
        if moved:
            torch._foreach_add_([piece.steps for piece, _ in moved], 1)
            for kind in dict.fromkeys((piece.rate, piece.decay) for piece, _ in moved):
                alike = [pair for pair in moved if (pair[0].rate, pair[0].decay) == kind]
                self._update([piece for piece, _ in alike], [gradient for _, gradient in alike])
        self._under_way += 1
        for name, low in self.low.items():
            if name not in self._pieces:
                _store(low, self._masters[name])

    @torch.no_grad()
    def _learn(self, name: str, seed: int, setting: int, gradient: Tensor) -> None:
        piece = self._pieces[name][seed][setting]
        self._update([piece], [gradient])
        if name in self.low:
            _store(self.low[name][seed, setting], piece.parameter)

    def _update(self, pieces: list[_Piece], gradients: list[Tensor]) -> None:
        # what torch.optim.AdamW(fused=True) calls: for one run's part the way there takes a tenth of the time
        torch._fused_adamw_(
            [piece.parameter for piece in pieces],
            gradients,
            [piece.mean for piece in pieces],
            [piece.square for piece in pieces],
            [],
            [piece.steps for piece in pieces],
            lr=self.lr * pieces[0].rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self.weight_decay if pieces[0].decay else 0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )


def _store(low: Tensor, master: Tensor) -> None:
    """Put the master's numbers, rounded to bfloat16, into its copy."""
    low.copy_(master if low.dtype == torch.bfloat16 else master.bfloat16())
