"""AmbER²: the student learns from the raters and from the experts, each weighed by its agreement with the raters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amber2_core.losses import amber_loss

from .system import TrainingStatistics

if TYPE_CHECKING:
    from ..grid import Setting


class Amber2:
    """λ_RAI·RAI + λ_MAI·MAI + λ_E·Σ JS(y‖p_m), Eqs. 3–6; the student's dev JS decides everything."""

    name = "amber2"
    uses = frozenset({"lambda_rai", "lambda_mai", "lambda_expert", "kappa", "student", "loss", "weight_gradient"})

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        settings: Sequence[Setting],
        *,
        heads: tuple[str, ...],
        statistics: TrainingStatistics,
    ) -> Tensor:
        """See `System.loss`. Settings of one student, distance and weight gradient are computed together."""
        losses, first = [], 0
        for (student, distance, weight_gradient), alike in groupby(
            settings, key=lambda s: (s.student, s.loss, s.weight_gradient)
        ):
            some = list(alike)
            last = first + len(some)

            def column(name: str, some: list[Setting] = some) -> Tensor:
                return torch.tensor([getattr(s, name) for s in some], dtype=logits.dtype, device=logits.device)

            losses.append(
                amber_loss(
                    logits[:, :, first:last],
                    target,
                    student=heads.index(student),
                    lambda_rai=column("lambda_rai"),
                    lambda_mai=column("lambda_mai"),
                    lambda_expert=column("lambda_expert"),
                    kappa=column("kappa"),
                    distance=distance,
                    weight_gradient=weight_gradient,
                )
            )
            first = last
        return torch.cat(losses, dim=-1)

    def judge(self, head: str, setting: Setting) -> str:
        return setting.student

    def decider(self, setting: Setting) -> str:
        return setting.student
