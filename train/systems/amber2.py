"""AmbER²: the student learns from the raters and from the experts, each weighed by its agreement with the raters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amber2_core.losses import amber_loss

from .system import Loss, TrainingStatistics

if TYPE_CHECKING:
    from ..grid import Setting


class Amber2:
    """λ_RAI·RAI + λ_MAI·MAI + λ_E·Σ JS(y‖p_m), Eqs. 3–6; the student's dev JS decides everything."""

    name = "amber2"
    uses = frozenset(
        {
            "lambda_rai", "lambda_mai", "lambda_expert", "kappa", "student", "loss", "weight_gradient",
            "expert_gradient",
        }
    )  # fmt: skip

    def loss(self, settings: Sequence[Setting], *, heads: tuple[str, ...], statistics: TrainingStatistics) -> Loss:
        """See `System.loss`. Settings of one student, distance and gradient are computed together."""
        groups = [list(alike) for _, alike in groupby(settings, key=_kind)]
        parts = [_loss_of(some, heads, statistics.class_weights) for some in groups]
        sizes = [len(some) for some in groups]

        def losses(logits: Tensor, target: Tensor, present: Tensor | None) -> Tensor:
            of_parts = torch.split(logits, sizes, dim=2)
            return torch.cat([part(some, target, present) for part, some in zip(parts, of_parts, strict=True)], dim=-1)

        return losses

    def judge(self, head: str, setting: Setting) -> str:
        return setting.student

    def decider(self, setting: Setting) -> str:
        return setting.student


def _kind(setting: Setting) -> tuple[str, ...]:
    """What runs must have in common to be computed together; all else is a number per run."""
    return (setting.student, setting.loss, setting.weight_gradient, setting.expert_gradient)


def _loss_of(settings: Sequence[Setting], heads: tuple[str, ...], like: Tensor) -> Loss:
    """The loss of runs of one kind; `like` tells device and precision."""
    first = settings[0]

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(setting, name) for setting in settings], dtype=like.dtype, device=like.device)

    rai, mai, expert, kappa = map(column, ("lambda_rai", "lambda_mai", "lambda_expert", "kappa"))

    def losses(logits: Tensor, target: Tensor, present: Tensor | None) -> Tensor:
        return amber_loss(
            logits,
            target,
            student=heads.index(first.student),
            lambda_rai=rai,
            lambda_mai=mai,
            lambda_expert=expert,
            kappa=kappa,
            distance=first.loss,
            weight_gradient=first.weight_gradient,
            stop_expert_gradient=first.expert_gradient == "own",
            present=present,
        )

    return losses
