"""AmbER²: a student that learns from the raters and from experts, each weighed by its agreement with the raters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, get_args

from amber2_core.errors import SettingError, bad_choice
from amber2_core.heads import FUSION_HEAD

from ..stacked.system import Loss, StackedSettings, StackedSystem
from .system import FoldData, option

if TYPE_CHECKING:
    from torch import Tensor

    from .system import Floats

# distances of the rater-ambiguity loss → the functions of `amber2_core.divergences`; nothing here loads torch
DISTANCES: Mapping[str, str] = {
    "js": "js",
    "kl": "kl",
    "soft-ce": "cross_entropy",
}
WeightGradient = Literal["detach", "flow"]
ExpertGradient = Literal["all", "own"]


@dataclass(frozen=True)
class Amber2Settings(StackedSettings):
    """λ_RAI, λ_MAI, λ_E and κ of Eqs. 5 and 6, and what ablations change; the defaults are the paper's."""

    lambda_rai: float = option(1.0, "Weight of the rater-ambiguity loss.", least=0)
    lambda_mai: float = option(0.5, "Weight of the modality-ambiguity loss.", least=0)
    lambda_expert: float = option(0.0, "Weight of the experts' own rater loss; 0 is the paper's Eq. 6.", least=0)
    kappa: float = option(4.0, "Sharpness of the expert weights; 0 weighs all alike.", least=0)
    student: str = option(FUSION_HEAD, "The head that the others teach: fusion, audio, text.")
    loss: str = option("js", "Distance in the rater-ambiguity loss", choices=tuple(DISTANCES))
    weight_gradient: WeightGradient = option(
        "detach", "Expert weights as constants, or with their gradient", choices=get_args(WeightGradient)
    )
    expert_gradient: ExpertGradient = option(
        "all", "What experts learn from: all terms, or their own rater loss alone", choices=get_args(ExpertGradient)
    )


class Amber2(StackedSystem):
    """λ_RAI·RAI + λ_MAI·MAI + λ_E·Σ JS(y‖p_m), Eqs. 3–6; the student's dev JS decides everything."""

    name = "amber2"
    Settings = Amber2Settings

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`. Settings of one student, distance and gradient are computed together."""
        import torch

        groups = [list(alike) for _, alike in groupby(settings, key=_kind)]
        parts = [_loss_of(some, heads, fold.train.targets) for some in groups]
        sizes = [len(some) for some in groups]

        def losses(outputs: Tensor, target: Tensor, present: Tensor | None, epoch: Tensor) -> Tensor:
            of_parts = torch.split(outputs, sizes, dim=2)
            return torch.cat([part(some, target, present) for part, some in zip(parts, of_parts, strict=True)], dim=-1)

        return losses

    def judge(self, head: str, setting: Amber2Settings) -> str:
        return setting.student

    def chooses(self, setting: Amber2Settings) -> str:
        return setting.student

    def check(self, setting: Amber2Settings, heads: Sequence[str]) -> None:
        super().check(setting, heads)
        if len(heads) < 3:
            raise SettingError(
                f"amber2 weighs experts of two modalities or more against each other, and there is {heads[0]} alone: "
                "train with --system cb-ce, or with features of another modality"
            )
        if setting.student not in heads:
            raise SettingError(bad_choice("student", setting.student, heads))
        if setting.expert_gradient == "own":
            if setting.lambda_expert == 0:
                raise SettingError("expert-gradient own with lambda-expert 0: the experts would never train")
            if setting.weight_gradient == "flow":
                raise SettingError(
                    "expert-gradient own with weight-gradient flow: the weights' gradient runs into them"
                )
        if setting.lambda_rai == setting.lambda_mai == setting.lambda_expert == 0:
            raise SettingError("lambda-rai, lambda-mai and lambda-expert are all 0: nothing would be trained")

    def expert_weights(
        self, setting: Amber2Settings, probs: Mapping[str, Floats], target: Floats
    ) -> Mapping[str, Floats]:
        """u_m = softmax_m(−κ JS(p_m‖y)) of every expert (Eq. 5)."""
        from amber2_core.distributions import expert_weights, js

        experts = {head: js(target, some) for head, some in probs.items() if head != setting.student}
        return dict(zip(experts, expert_weights(list(experts.values()), setting.kappa), strict=True))


def _kind(setting: Amber2Settings) -> tuple[str, ...]:
    """What runs must have in common to be computed together; all else is a number per run."""
    return (setting.student, setting.loss, setting.weight_gradient, setting.expert_gradient)


def _loss_of(settings: Sequence[Amber2Settings], heads: Sequence[str], like: Tensor) -> Any:
    """The loss of runs of one kind; `like` tells device and precision."""
    import torch

    from amber2_core import divergences
    from amber2_core.losses import amber_loss

    first = settings[0]

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(setting, name) for setting in settings], dtype=like.dtype, device=like.device)

    rai, mai, expert, kappa = map(column, ("lambda_rai", "lambda_mai", "lambda_expert", "kappa"))

    def losses(logits: Tensor, target: Tensor, present: Tensor | None) -> Tensor:
        return amber_loss(
            logits,
            target,
            student=list(heads).index(first.student),
            lambda_rai=rai,
            lambda_mai=mai,
            lambda_expert=expert,
            kappa=kappa,
            distance=getattr(divergences, DISTANCES[first.loss]),
            weight_gradient=first.weight_gradient,
            stop_expert_gradient=first.expert_gradient == "own",
            present=present,
        )

    return losses
