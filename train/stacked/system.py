"""Systems that train by gradient, all settings and seeds of one shape as one stack: give a loss, the rest is here."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from amber2_core.fusion import FUSIONS

from ..systems.system import FitOptions, Fitted, FoldData, History, Rows, System, option

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from amber2_core.heads import Architecture

    from .loop import Trained

Labels = Literal["soft", "hard"]
# outputs (heads, seeds, settings, batch, …), target (seeds, 1, batch, C), who has which head (heads, seeds, 1, batch)
# or None where all have all, and the epoch, a number on the device, from 1 → losses (seeds, settings)
Loss = Callable[["Tensor", "Tensor", "Tensor | None", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class StackedSettings:
    """The shape of the heads and how AdamW trains them."""

    labels: Labels = option(
        "soft", "The raters' distribution, or its largest share alone, one-hot", choices=get_args(Labels)
    )
    fusion: str = option("gmu", "Fusion layer", choices=tuple(FUSIONS))
    hidden: int = option(256, "Units of each head's hidden layer and of the fused vector.", least=1)
    dropout: float = option(0.0, "Share of hidden units dropped in training.", least=0, below=1)
    # AdamW at a constant rate, no clipping
    lr: float = option(3e-4, "Learning rate of AdamW.", above=0)
    weight_decay: float = option(1e-2, "Weight decay of AdamW.", least=0)
    batch_size: int = option(128, "Utterances in a step.", least=1)


class StackedSystem(System):
    """A system of a head per modality and one on their fusion (Eq. 2), trained by AdamW on its `loss`."""

    Settings: type = StackedSettings

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """The loss of runs of these settings, made once and called at every step."""
        raise NotImplementedError

    def judge(self, head: str, setting: Any) -> str:
        """The head whose dev JS decides which epoch of `head` is kept."""
        return head

    def log_probs_of(self, outputs: Tensor) -> Tensor:
        """Log-probabilities (…, C) of a head's outputs (…, C)."""
        return outputs.log_softmax(-1)

    def shape(self, setting: Any) -> Hashable:
        """Runs train in one stack where these are equal."""
        return tuple(getattr(setting, name) for name in StackedSettings.__dataclass_fields__)

    def learnt(self, setting: Any, target: Tensor) -> Tensor:
        """What is learnt of targets (…, C): these, or with labels "hard" their label, one-hot."""
        from amber2_core.losses import one_hot_labels

        return one_hot_labels(target) if setting.labels == "hard" else target

    def fit(
        self, fold: FoldData, settings: Sequence[Any], seeds: Sequence[int], options: FitOptions
    ) -> Iterator[Fitted]:
        from .loop import train

        for targets, alike in self._by_targets(fold, settings):
            trained = train(self, fold, alike, seeds, options, targets=targets)
            for s, seed in enumerate(seeds):
                for k, setting in enumerate(alike):
                    yield self._fitted(trained, fold, setting, seed, s, k)

    def _by_targets(self, fold: FoldData, settings: Sequence[Any]) -> list[tuple[Tensor, list[Any]]]:
        """The settings that learn the same targets of train (n, C) together: one stack has the same for all."""
        groups: list[tuple[Tensor, list[Any]]] = []
        for setting in settings:
            targets = self.learnt(setting, fold.train.targets)
            for known, alike in groups:
                if known is targets or known.equal(targets):
                    alike.append(setting)
                    break
            else:
                groups.append((targets, [setting]))
        return groups

    def _fitted(self, trained: Trained, fold: FoldData, setting: Any, seed: int, s: int, k: int) -> FittedHeads:
        heads, best = trained.stack.architecture.heads, trained.best
        on_dev = dict(zip(heads, fold.dev.having(), strict=True))
        history = History(
            dev_js={h: best.curves[: best.epochs[i, s, k], i, s, k].tolist() for i, h in enumerate(heads)},
            epoch={h: int(best.epoch[i, s, k]) for i, h in enumerate(heads)},
            unjudged=frozenset(h for h in heads if not on_dev[self.judge(h, setting)].any()),
        )
        return FittedHeads(self, setting, seed, history, trained.stack.architecture, trained.stack.state(s, k), fold)


@dataclass(frozen=True, eq=False)
class FittedHeads:
    """One trained run, each head at its best epoch."""

    system: StackedSystem
    setting: Any
    seed: int
    history: History
    architecture: Architecture
    state: Mapping[str, Tensor]
    fold: FoldData

    def probs(self, rows: Rows) -> dict[str, npt.NDArray[np.float32]]:
        """See `Fitted`; computed where the rows lie."""
        import torch

        from amber2_core.heads import Heads

        from .loop import SCORED_ROWS

        model, names = Heads(self.architecture, self.state), self.architecture.heads
        index, parts = torch.arange(len(rows), device=rows.index.device), []
        with torch.no_grad():
            for some in torch.split(index, SCORED_ROWS[index.device.type]):
                present = rows.presence(some)
                masks = None if present is None else dict(zip(names[:-1], present, strict=False))
                log_probs = self.system.log_probs_of(model.logits(rows.vectors(some), present=masks))
                parts.append(log_probs.exp().float().cpu())
        probs = torch.cat(parts, dim=1).numpy()  # (heads, n, C)
        for head, own, having in zip(names, probs, rows.having(), strict=True):
            own[~having | (self.history.epoch[head] == 0)] = float("nan")
        return dict(zip(names, probs, strict=True))

    def save(self, path: Path, origin: Mapping[str, Any]) -> None:
        """See `Fitted`."""
        from amber2_core.heads import Heads
        from amber2_core.heads_folder import TrainedHeads

        having = dict(zip(self.architecture.modalities, self.fold.train.having(), strict=False))
        own = type(self.system).log_probs_of
        record = {
            **origin,
            "outputs": "softmax" if own is StackedSystem.log_probs_of else f"{own.__module__}.{own.__qualname__}",
            "epochs": dict(self.history.epoch),
            "missing": {name: int((~own).sum()) for name, own in having.items() if not own.all()},
            "untrained": [name for name, own in having.items() if not own.any()],
        }
        statistics = {m: (mean.cpu(), sd.cpu()) for m, (mean, sd) in self.fold.train.standardisation.items()}
        TrainedHeads(Heads(self.architecture, self.state), tuple(origin["emotions"]), statistics, record).write(path)
