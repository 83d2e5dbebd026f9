"""SAILER on frozen features: soft labels of which annotations are dropped, and utterances mixed with rare ones.

SAILER (arXiv 2505.22133v2), in the reading of it that the paper leaves open: KL(d‖p), its direction not stated there.
Where this is another thing, `Sailer.remarks` says so.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from amber2_core.errors import SettingError

from ..stacked.system import HeadSettings, Loss, StackedSystem
from .system import FoldData, Rows, option, with_default

if TYPE_CHECKING:
    from torch import Generator, Tensor

DropFrom = Literal["majority", "any"]
Reweight = Literal["none", "raw", "corrected"]


@dataclass(frozen=True)
class SailerSettings(HeadSettings):
    """What SAILER adds to soft labels; the defaults are the paper's, where it gives any and frozen features allow it.

    Its 15 epochs are `train-heads --epochs 15`.
    """

    annotation_dropout: float = option(0.2, "Share of an utterance's votes dropped in an epoch.", least=0, below=1)
    drop_from: DropFrom = option("majority", "Votes that may be dropped", choices=get_args(DropFrom))
    mix_probability: float = option(0.5, "Probability that a majority utterance is mixed with a minority one.", least=0)
    majority_classes: int = option(
        0, "Majority classes: so many of the most train votes; 0: all of more than 1/C of them.", least=0
    )
    reweight: Reweight = option(
        "none",
        "Inverse frequencies in the target; predictions then as they are, or divided by the weights",
        choices=get_args(Reweight),
    )
    input_pooling: str = with_default(HeadSettings, "input_pooling", "pointwise-of-mean")
    fusion: str = with_default(HeadSettings, "fusion", "concat")
    lr: float = with_default(HeadSettings, "lr", 5e-4)
    weight_decay: float = with_default(HeadSettings, "weight_decay", 1e-4)


class Sailer(StackedSystem):
    """The sum of the heads' KL(d‖p), d the votes' shares after annotation dropout (§2.2) and mixing (§2.3)."""

    name = "sailer"
    Settings = SailerSettings

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`; in nats.

        With reweight "raw" (§2.4) d∘w takes the place of d, not renormalised, w ∝ 1 / mean training share with sum 1:
        the optimum is p ∝ d∘w. With "corrected" the same loss is that of p ∝ w∘exp(outputs), so that outputs predict
        p_c / w_c, renormalised.
        """
        import torch

        from amber2_core.losses import soft_cross_entropy

        inverse = inverse_shares(fold.train.targets)
        ones = torch.ones_like(inverse)
        weights = torch.stack([ones if one.reweight == "none" else inverse for one in settings])  # (settings, C)
        shifts = torch.stack([inverse if one.reweight == "corrected" else ones for one in settings]).log()

        def losses(outputs: Tensor, target: Tensor, present: Tensor | None, epoch: Tensor) -> Tensor:
            learnt = weights.unsqueeze(-2) * target  # (seeds, settings, batch, C)
            constant = torch.xlogy(learnt, learnt).sum(-1)
            there = len(heads) if present is None else present.sum(0)
            cross = soft_cross_entropy(outputs + shifts.unsqueeze(-2), target, weights, present=present)
            return cross.sum(0) + (there * constant).mean(-1)

        return losses

    def drawn(self, setting: SailerSettings, train: Rows, epoch: int, stream: Generator) -> Rows:
        """Votes are dropped and utterances are mixed anew in every epoch. SettingError: there are no votes."""
        if not setting.annotation_dropout and not setting.mix_probability:
            return train
        import torch

        if train.votes is None:
            raise SettingError("sailer drops single votes, and this data has none")
        majority, found, device = majority_of(train.votes, setting.majority_classes), train, train.votes.device
        if setting.annotation_dropout:
            slots = int(whole_votes(train.votes).sum(-1).max())
            keys = torch.rand(len(train), slots, generator=stream).to(device)
            droppable = majority if setting.drop_from == "majority" else torch.ones_like(majority)
            kept = after_dropout(train.votes, droppable, keys, setting.annotation_dropout)
            lost = (kept != train.votes).any(-1, keepdim=True)
            shares = kept.to(train.targets)
            targets = torch.where(lost, shares / shares.sum(-1, keepdim=True), train.targets)
            found = replace(found, targets=targets, votes=kept)  # type: ignore[type-var]
        if setting.mix_probability:
            draws = torch.rand(len(train), 3, generator=stream).to(device)
            partners, mixed = pairs_of(train.targets, majority, draws, setting.mix_probability)
            share = torch.where(mixed, 0.5, 1.0).to(train.targets)
            targets = found.targets[partners].lerp(found.targets, share.unsqueeze(-1))
            found = found.mixed(partners, dict.fromkeys(train.features, share))
            found = replace(found, targets=targets, votes=None)  # type: ignore[type-var]
        return found

    def shape(self, setting: SailerSettings) -> Hashable:
        own = (setting.annotation_dropout, setting.drop_from, setting.mix_probability, setting.majority_classes)
        return (super().shape(setting), own)

    def check(self, setting: SailerSettings, heads: Sequence[str]) -> None:
        super().check(setting, heads)
        if setting.mix_probability > 1:
            raise SettingError(f"Bad mix-probability {setting.mix_probability:g}, expected a number of at most 1")
        if setting.mix_probability and self.reads(setting, heads[0]) == "frames":
            raise SettingError(
                f"sailer mixes pooled features, and input-pooling {setting.input_pooling} reads frames: "
                "give --mix-probability 0, or --input-pooling pointwise-of-mean"
            )
        if setting.mix_probability and setting.augment != "none":
            raise SettingError(
                f"augment {setting.augment} with sailer: it mixes utterances itself; give --mix-probability 0"
            )

    def remarks(self, setting: SailerSettings) -> Sequence[str]:
        """See `System.remarks`."""
        found = [
            *super().remarks(setting),
            "encoders are frozen, with one vector of each feature set: no fine-tuned WavLM, no learnt sum of layers",
            "only emotion is learnt: no secondary votes, no attributes; dev JS chooses the epoch, not macro-F1",
            f"majority classes are {_majority_words(setting)}, for the paper's neutral, happy, sad and angry",
        ]
        if setting.input_pooling == "pointwise-of-mean":
            found.append("its three pointwise layers act on the mean over frames, of text too, without dropout")
        elif setting.input_pooling == "pointwise":
            found.append("its three pointwise convolutions read text too, without dropout")
        if setting.annotation_dropout:
            found.append(
                "annotation dropout is drawn anew in every epoch: a fifth of an utterance's votes, rounded down, "
                "of fewer than five each with probability 0.2; the last vote stays"
                if setting.annotation_dropout == 0.2
                else f"annotation dropout of {setting.annotation_dropout:g} for the paper's 0.2, drawn in every epoch"
            )
        if setting.mix_probability:
            found.append(
                "for its audio mixing: mixup of features, text included, at a fixed λ = ½, majority with minority "
                f"utterances, with probability {setting.mix_probability:g}, which the paper does not give"
            )
        if setting.reweight == "raw":
            found.append("re-weighted: predictions are p ∝ d∘w, biased as distributions")
        elif setting.reweight == "corrected":
            found.append("re-weighted in training, predictions are p_c / w_c, renormalised")
        return found


def inverse_shares(targets: Tensor) -> Tensor:
    """w_c ∝ 1/q_c of sum 1, q the mean of targets (n, C) → (C,); what has no share is taken to have one utterance's."""
    q = targets.mean(0).clamp_min(1 / len(targets) / targets.shape[1])
    return 1 / q / (1 / q).sum()


def majority_of(votes: Tensor, count: int = 0) -> Tensor:
    """Which classes (C,) are those of the majority: the `count` of most votes (n, C), or with 0 of more than 1/C."""
    import torch

    total = votes.sum(0, dtype=torch.float64)
    if count:
        return torch.zeros_like(total).index_fill_(0, total.argsort(descending=True, stable=True)[:count], 1).bool()
    return total * len(total) > total.sum()


def whole_votes(votes: Tensor) -> Tensor:
    """Votes (n, C) without fractions of one, which are never dropped."""
    return (votes + 1e-4).floor().long()


def after_dropout(votes: Tensor, droppable: Tensor, keys: Tensor, share: float) -> Tensor:
    """What annotation dropout leaves of votes (n, C), of which those for `droppable` classes (C,) may go.

    An utterance of M votes loses k = ⌊share · M⌋ of these, or all there are if fewer: those of the smallest keys. Where
    share · M < 1, it loses each whose key is below the share. One vote always stays.

    Args:
        keys: (n, slots) uniform in [0, 1), a slot for each vote: those for the first class, then for the second, …
    """
    import torch

    whole = whole_votes(votes)
    total = whole.sum(-1, keepdim=True)  # (n, 1)
    slot = torch.arange(keys.shape[1], device=votes.device)
    of_class = (slot >= whole.cumsum(-1).unsqueeze(-1)).sum(-2)  # (n, slots), C where there is no vote
    open_to_all = torch.cat((droppable, droppable.new_zeros(1)))[of_class]
    rank = keys.masked_fill(~open_to_all, 2.0).argsort(dim=-1, stable=True).argsort(dim=-1)
    count = (share * total + 1e-9).floor()
    few = count < 1
    gone = open_to_all & (rank < torch.where(few, total - 1, count.clamp_max(total - 1))) & (~few | (keys < share))
    lost = votes.new_zeros(len(votes), votes.shape[1] + 1).scatter_add_(1, of_class, gone.to(votes))
    return votes - lost[:, :-1]


def pairs_of(targets: Tensor, majority: Tensor, draws: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Whom each utterance is mixed with (n,), itself for most, and whether it is mixed at all (n,).

    An utterance's class is that of the largest share, the first of equals. One of a majority class is mixed with the
    given probability; the other's class is drawn from the minority in proportion to 1 / its utterances, the utterance
    uniformly from its class.

    Args:
        draws: (n, 3) uniform in [0, 1): whether, which class, which utterance.
    """
    import torch

    from amber2_core.losses import one_hot_labels

    labels = one_hot_labels(targets).argmax(-1)
    counts = labels.bincount(minlength=len(majority))
    inverse = torch.where(~majority & (counts > 0), 1 / counts.clamp_min(1).double(), 0.0)
    mixed = majority[labels] & (draws[:, 0] < probability) & (inverse > 0).any()
    bounds = (inverse / inverse.sum().clamp_min(1e-300)).cumsum(0)
    last = (inverse > 0).long().cumsum(0).argmax()
    chosen = torch.searchsorted(bounds, draws[:, 1].double(), right=True).clamp_max(last)  # the class, (n,)
    by_class = labels.argsort(stable=True)
    place = (draws[:, 2].double() * counts[chosen]).long() + (counts.cumsum(0) - counts)[chosen]
    own = torch.arange(len(labels), device=labels.device)
    return torch.where(mixed, by_class[place.clamp_max(len(labels) - 1)], own), mixed


def _majority_words(setting: SailerSettings) -> str:
    if setting.majority_classes:
        return f"the {setting.majority_classes} of most train votes"
    return "those of more than 1/C of the train votes"
