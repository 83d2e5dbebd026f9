"""Systems that train by gradient, all settings and seeds of one shape as one stack: give a loss, the rest is here."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from amber2_core.errors import SettingError
from amber2_core.fusion import FUSIONS
from amber2_core.inputs import AS_CACHED, LAYER_NORMS, MEAN, POOLINGS

from ..systems.system import FitOptions, Fitted, FoldData, History, LearnFrom, Need, Rows, System, option

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Generator, Tensor

    from amber2_core.heads import Architecture, Mixing

    from .loop import Trained

Labels = Literal["soft", "hard"]
# outputs (heads, seeds, settings, batch, …), target (seeds, 1, batch, C), who has which head (heads, seeds, 1, batch)
# or None where all have all, and the epoch, a number on the device, from 1 → losses (seeds, settings)
Loss = Callable[["Tensor", "Tensor", "Tensor | None", "Tensor"], "Tensor"]


LAST, WEIGHTED = "last", "weighted"
# times the learning rate: what the scores of a learnt layer sum learn at, or they would hardly leave 0 in 30 epochs
LAYER_RATE = 30.0


@dataclass(frozen=True)
class BareSettings:
    """The shape of the heads, what they read, and how AdamW trains them."""

    input_layers: str = option(
        LAST, "Layer of the encoders that heads read, of a cache made with --layers all: last, a number, weighted."
    )
    input_pooling: str = option(
        MEAN, "Vectors as cached, or learnt pooling of cached frames", choices=(MEAN, *POOLINGS)
    )
    layer_norm: str = option(
        AS_CACHED,
        "Layers of a learnt sum as cached, or each one's pooled vector normalised over its dimensions",
        choices=tuple(LAYER_NORMS),
    )
    fusion: str = option("gmu", "Fusion layer", choices=tuple(FUSIONS))
    hidden: int = option(256, "Units of each head's hidden layer and of the fused vector.", least=1)
    dropout: float = option(0.0, "Share of hidden units dropped in training.", least=0, below=1)
    # AdamW at a constant rate, no clipping
    lr: float = option(3e-4, "Learning rate of AdamW.", above=0)
    weight_decay: float = option(1e-2, "Weight decay of AdamW.", least=0)
    batch_size: int = option(128, "Utterances in a step.", least=1)


@dataclass(frozen=True)
class HeadSettings(BareSettings):
    """The same, and which utterances heads learn from."""

    learn_from: LearnFrom = option(
        "all",
        "Train utterances to learn from: all; those with one largest share; with more than half",
        choices=get_args(LearnFrom),
    )


@dataclass(frozen=True)
class StackedSettings(HeadSettings):
    """Those of systems that learn the raters' distribution or its label."""

    labels: Labels = option(
        "soft", "The raters' distribution, or its largest share alone, one-hot", choices=get_args(Labels)
    )


class StackedSystem(System):
    """A system of a head per modality and one on their fusion (Eq. 2), trained by AdamW on its `loss`."""

    Settings: type = StackedSettings

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """The loss of runs of these settings, made once and called at every step."""
        raise NotImplementedError

    def judge(self, head: str, setting: Any) -> str:
        """The head whose dev JS decides which epoch of `head` is kept."""
        return head

    def outputs_mean(self, setting: Any) -> str:
        """What a head's outputs are, of `amber2_core.outputs.OUTPUTS`: a file of heads tells it."""
        return "softmax"

    def log_probs_of(self, outputs: Tensor, setting: Any) -> Tensor:
        """Log-probabilities (…, C) of a head's outputs (…, C); one of a system's own is known to it alone.

        Runs of one `shape` are asked for together, by the setting of one of them: what this depends on belongs there.
        """
        from amber2_core.outputs import OUTPUTS

        return OUTPUTS[self.outputs_mean(setting)](outputs)

    def shape(self, setting: Any) -> Hashable:
        """Runs train in one stack where these are equal."""
        shared = StackedSettings.__dataclass_fields__
        return tuple(getattr(setting, name) for name in shared if hasattr(setting, name))

    def check(self, setting: Any, heads: Sequence[str]) -> None:
        """See `System.check`."""
        if setting.input_layers not in (LAST, WEIGHTED) and not setting.input_layers.isdecimal():
            raise SettingError(f"Bad input-layers {setting.input_layers!r}, expected last, weighted or a number from 0")
        if setting.input_layers != LAST and setting.input_pooling != MEAN:
            raise SettingError(
                f"input-pooling {setting.input_pooling} with input-layers {setting.input_layers}: frames are cached of "
                "the last layer alone"
            )
        if setting.layer_norm != AS_CACHED and setting.input_layers != WEIGHTED:
            raise SettingError(
                f"layer-norm {setting.layer_norm} with input-layers {setting.input_layers}: what is normalised are the "
                "layers of a sum; use --input-layers weighted"
            )

    def reads(self, setting: Any, modality: str) -> Need:
        """What its input layers and pooling say."""
        if setting.input_pooling != MEAN:
            return POOLINGS[setting.input_pooling].reads
        if setting.input_layers.isdecimal():
            return int(setting.input_layers)
        return "layers" if setting.input_layers == WEIGHTED else "vector"

    def architecture(self, setting: Any, fold: FoldData) -> Architecture:
        """The shape of the heads for the features and classes of a fold."""
        from amber2_core.heads import Architecture

        features = fold.train.features
        counts = tuple(x.shape[1] for x in features.values()) if setting.input_layers == WEIGHTED else ()
        return Architecture(
            tuple((name, x.shape[-1]) for name, x in features.items()),
            fold.train.targets.shape[1],
            setting.fusion,
            setting.hidden,
            setting.hidden,
            setting.dropout,
            pooling=setting.input_pooling,
            layer_counts=counts,
            layer_norm=setting.layer_norm,
        )

    def learns_from(self, setting: Any) -> LearnFrom:
        """See `System.learns_from`."""
        chosen: LearnFrom = getattr(setting, "learn_from", "all")
        return chosen

    def learnt(self, setting: Any, rows: Rows) -> Tensor:
        """What is learnt of some rows of train (n, …): their targets, or with labels "hard" their label, one-hot."""
        from amber2_core.losses import one_hot_labels

        return one_hot_labels(rows.targets) if getattr(setting, "labels", "soft") == "hard" else rows.targets

    def drawn(self, setting: Any, train: Rows, epoch: int, stream: Generator) -> Rows:
        """The rows that a run meets in an epoch, by its seed's random numbers: as many under every seed."""
        return train

    def mixing(self, setting: Any, batch: int, streams: Sequence[Generator]) -> Mixing | None:
        """How hidden units and targets of a batch are mixed, both (seeds, batch), by each seed's random numbers."""
        return None

    def rate(self, setting: Any, epoch: int) -> float:
        """How many times the learning rate an epoch has."""
        return 1.0

    def rates(self, setting: Any, parameters: Sequence[str]) -> Mapping[str, float]:
        """Parameter → how many times the learning rate it learns at, without decay, of those that differ."""
        return {name: LAYER_RATE for name in parameters if name.endswith(".layers.weight")}

    def fit(
        self, fold: FoldData, settings: Sequence[Any], seeds: Sequence[int], options: FitOptions
    ) -> Iterator[Fitted]:
        from .loop import train

        fold = _learnt_from(fold, self.learns_from(settings[0]))
        for alike in self._by_targets(fold, settings):
            trained = train(self, fold, alike, seeds, options)
            for s, seed in enumerate(seeds):
                for k, setting in enumerate(alike):
                    yield self._fitted(trained, fold, setting, seed, s, k)

    def _by_targets(self, fold: FoldData, settings: Sequence[Any]) -> list[list[Any]]:
        """The settings that learn the same targets of train (n, C) together: one stack has the same for all."""
        groups: list[tuple[Tensor, list[Any]]] = []
        for setting in settings:
            targets = self.learnt(setting, fold.train)
            for known, alike in groups:
                if known is targets or known.equal(targets):
                    alike.append(setting)
                    break
            else:
                groups.append((targets, [setting]))
        return [alike for _, alike in groups]

    def _fitted(self, trained: Trained, fold: FoldData, setting: Any, seed: int, s: int, k: int) -> FittedHeads:
        heads, best = trained.stack.architecture.heads, trained.best
        on_dev = dict(zip(heads, fold.dev.having(), strict=True))
        history = History(
            dev_js={h: best.curves[: best.epochs[i, s, k], i, s, k].tolist() for i, h in enumerate(heads)},
            epoch={h: int(best.epoch[i, s, k]) for i, h in enumerate(heads)},
            unjudged=frozenset(h for h in heads if not on_dev[self.judge(h, setting)].any()),
        )
        return FittedHeads(self, setting, seed, history, trained.stack.architecture, trained.stack.state(s, k), fold)


def sum_of_heads(loss: Callable[..., Tensor]) -> Loss:
    """The sum of every head's own loss, of a function of (outputs, target, present=…) → (heads, …).

    The heads share no parameter, so their sum trains each as if it were alone.
    """
    return lambda outputs, target, present, epoch: loss(outputs, target, present=present).sum(0)


def class_balanced(targets: Tensor, emotions: Sequence[str]) -> Loss:
    """The sum of the heads' class-balanced cross-entropies, of weights from all that is learnt in a fold (n, C)."""
    from amber2_core.losses import class_balanced_cross_entropy, class_balanced_weights

    return sum_of_heads(partial(class_balanced_cross_entropy, weights=class_balanced_weights(targets, emotions)))


def _learnt_from(fold: FoldData, which: LearnFrom) -> FoldData:
    """A fold whose train has only the utterances of which raters agree so far; dev and test stay as they are."""
    if which == "all":
        return fold
    from dataclasses import replace

    import torch

    from amber2_core.distributions import agreed

    kept = torch.from_numpy(agreed(fold.train.targets.cpu().numpy(), which))
    if not kept.any():
        raise SettingError(f"learn-from {which}: raters agree so far on no train utterance of fold {fold.number}")
    rows = torch.nonzero(kept).flatten().to(fold.train.index.device)
    return replace(fold, train=fold.train.some(rows))  # type: ignore[type-var]


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
        """See `Fitted`."""
        outputs = self.outputs(rows)
        log_probs = {head: self.system.log_probs_of(own, self.setting) for head, own in outputs.items()}
        found = {head: own.exp().float().numpy() for head, own in log_probs.items()}
        for head, own in outputs.items():
            found[head][own.isnan().any(-1).numpy()] = float("nan")
        return found

    def outputs(self, rows: Rows) -> dict[str, Tensor]:
        """Head → what it gives (n, C), on the CPU, computed where the rows lie; a row of NaN where it gives nothing."""
        import torch

        from amber2_core.heads import Heads

        from .loop import SCORED_ROWS, needs_of

        model, names = Heads(self.architecture, self.state), self.architecture.heads
        needs = needs_of(self.system, self.setting, self.fold)
        index, parts = torch.arange(len(rows), device=rows.index.device), []
        with torch.no_grad():
            for some in torch.split(index, SCORED_ROWS[index.device.type]):
                present = rows.presence(some)
                masks = None if present is None else dict(zip(names[:-1], present, strict=False))
                parts.append(model.logits(rows.inputs(some, needs), present=masks).cpu())
        outputs = dict(zip(names, torch.cat(parts, dim=1), strict=True))
        for (head, own), having in zip(outputs.items(), rows.having(), strict=True):
            own[torch.from_numpy(~having | (self.history.epoch[head] == 0))] = torch.nan
        return outputs

    def save(self, path: Path, origin: Mapping[str, Any]) -> None:
        """See `Fitted`."""
        from amber2_core.heads import Heads
        from amber2_core.heads_folder import TrainedHeads

        from ..fold_data import read_statistics
        from .loop import needs_of

        needs = needs_of(self.system, self.setting, self.fold)
        having = dict(zip(self.architecture.modalities, self.fold.train.having(), strict=False))
        own, known = type(self.system).log_probs_of, self.system.outputs_mean(self.setting)
        record = {
            "outputs": known if own is StackedSystem.log_probs_of else f"{own.__module__}.{own.__qualname__}",
            "reads": needs,
            "epochs": dict(self.history.epoch),
            "missing": {name: int((~own).sum()) for name, own in having.items() if not own.all()},
            "untrained": [name for name, own in having.items() if not own.any()],
            **origin,  # last: what is made of the heads may predict in another way
        }
        standardisation = self.fold.train.standardisation
        own_statistics = {m: read_statistics(standardisation[m], needs[m]) for m in standardisation}
        statistics = {m: (own[0].cpu(), own[1].cpu()) for m, own in own_statistics.items() if own is not None}
        TrainedHeads(Heads(self.architecture, self.state), tuple(origin["emotions"]), statistics, record).write(path)
