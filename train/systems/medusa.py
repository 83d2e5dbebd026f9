"""MEDUSA on frozen vectors: deep fusion, soft labels, manifold mixup and two stages of training.

The challenge system of emopodntua/medusa@812e4d3, as its code has it (the paper was read in notes alone), without its
faults: there one update is made in an epoch, and the optimiser is begun anew in every one of stage 2.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amber2_core.errors import SettingError

from ..stacked.system import Loss, StackedSettings, StackedSystem
from .system import FoldData, Rows, option, with_default

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from amber2_core.heads import Mixing

MIXUP_SHAPE = 0.2  # α of λ ~ Beta(α, α)
STAGE_TWO_RATE = 0.1  # times the learning rate
AMBIGUOUS = 8  # one ambiguous utterance for so many agreed ones in stage 2


@dataclass(frozen=True)
class MedusaSettings(StackedSettings):
    """Switches of MEDUSA, which do not depend on one another; lr is the house's, for heads of a tenth of its size."""

    mixup: float = option(0.3, "Probability that a batch's hidden units are mixed.", least=0)
    stage_one_epochs: int = option(4, "Epochs with class weights on all of train, before balanced ones.", least=0)
    fusion: str = with_default(StackedSettings, "fusion", "deep")
    batch_size: int = with_default(StackedSettings, "batch_size", 32)


class Medusa(StackedSystem):
    """The sum of the heads' −Σ_c w_c y_c ln p_c, with w_c = √(N / (C f_c)) in stage 1 and 1 in stage 2."""

    name = "medusa"
    Settings = MedusaSettings

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`; in nats, mean over the utterances of a batch."""
        import torch

        from amber2_core.losses import root_inverse_weights, soft_cross_entropy

        first = settings[0]
        weights = root_inverse_weights(self.learnt(first, fold.train))  # (C,)

        def losses(outputs: Tensor, target: Tensor, present: Tensor | None, epoch: Tensor) -> Tensor:
            now = torch.where(epoch <= first.stage_one_epochs, weights, 1.0)
            return soft_cross_entropy(outputs, target, now, present=present).sum(0)

        return losses

    def drawn(self, setting: MedusaSettings, train: Rows, epoch: int, stream: Generator) -> Rows:
        """All of train in stage 1; in stage 2 a seed's balanced utterances and ambiguous ones of this epoch."""
        if epoch <= setting.stage_one_epochs:
            return train
        import torch

        # one subset for all epochs of a seed: from the beginning of a stream that its seed alone tells
        fixed = torch.Generator().manual_seed(stream.initial_seed() ^ 1)
        keys = (torch.rand(len(train), generator=each).to(train.index.device) for each in (fixed, stream))
        return train.some(balanced(train.targets, *keys))

    def mixing(self, setting: MedusaSettings, batch: int, streams: Sequence[Generator]) -> Mixing | None:
        """Manifold mixup: each seed's batch with the probability, λ ~ Beta(.2, .2) of each utterance."""
        if not setting.mixup:
            return None
        import torch

        from amber2_core.heads import Mixing

        partners, shares = zip(*(_mixed_batch(setting.mixup, batch, stream) for stream in streams), strict=True)
        return Mixing(torch.stack(partners), torch.stack(shares))

    def rate(self, setting: MedusaSettings, epoch: int) -> float:
        """A tenth in stage 2."""
        return 1.0 if epoch <= setting.stage_one_epochs else STAGE_TWO_RATE

    def shape(self, setting: MedusaSettings) -> Hashable:
        return (super().shape(setting), setting.mixup, setting.stage_one_epochs)

    def check(self, setting: MedusaSettings, heads: Sequence[str]) -> None:
        super().check(setting, heads)
        if setting.mixup > 1:
            raise SettingError(f"Bad mixup {setting.mixup:g}, expected a probability of at most 1")

    def remarks(self, setting: MedusaSettings) -> Sequence[str]:
        """See `System.remarks`."""
        found = [
            *super().remarks(setting),
            "one vector of each feature set: its attention is over feature sets, not over time and tokens",
            f"legs {setting.hidden} wide with 4 heads and {2 * setting.hidden} feed-forward units, without dropout, "
            "for 512, 1 and 2,048; initial weights are uniform, as everywhere here",
            f"learning rate {setting.lr:g} for 1e-5; AdamW goes on from stage to stage, and dev JS chooses the epoch",
            "gains of layer norms decay towards 1, and not towards 0",
            "only emotion is learnt: no attributes; one model of a seed, without its meta-classifier and soup",
            "each feature set has a head of its own beside the fusion's, trained with the same loss",
        ]
        if setting.fusion != "deep":
            found.append(f"fusion {setting.fusion} for its deep fusion")
        return found


def balanced(targets: Tensor, fixed: Tensor, fresh: Tensor) -> Tensor:
    """Rows (m,) of stage 2: of agreed utterances as many in each class, and an eighth as many ambiguous ones.

    Agreed: one class has the largest share (n, C). Each class that any agreed utterance has gives as many as the
    smallest has, those of the smallest keys `fixed` (n,); ambiguous ones are those of the smallest keys `fresh` (n,).
    """
    import torch

    from amber2_core.distributions import SHARE_TOLERANCE

    top, label = targets.topk(2, dim=-1)
    agreed = top[:, 0] - top[:, 1] > SHARE_TOLERANCE
    classes = [torch.nonzero(agreed & (label[:, 0] == c)).flatten() for c in range(targets.shape[1])]
    held = [rows for rows in classes if len(rows)]
    size = min(map(len, held), default=0)
    chosen = [rows[fixed[rows].argsort()[:size]] for rows in held]
    ambiguous = torch.nonzero(~agreed).flatten()
    count = len(ambiguous) if not held else size * len(held) // AMBIGUOUS
    return torch.cat((*chosen, ambiguous[fresh[ambiguous].argsort()[:count]]))


def _mixed_batch(probability: float, batch: int, stream: Generator) -> tuple[Tensor, Tensor]:
    """Partners and shares (batch,) of one seed's batch; with share 1 of all it is not mixed."""
    import numpy as np
    import torch

    mixes = torch.rand((), generator=stream) < probability
    partner = torch.randperm(batch, generator=stream)
    # torch draws no Beta from a generator
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=stream)))
    share = torch.from_numpy(random.beta(MIXUP_SHAPE, MIXUP_SHAPE, batch)).float()
    return partner, torch.where(mixes, share, 1.0)
