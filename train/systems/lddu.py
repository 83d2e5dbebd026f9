"""LDDU: a Gaussian of every class in every modality, predicting by its mean and by its spread, trained on frames."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from amber2_core.errors import SettingError
from amber2_core.heads import heads_of
from amber2_core.kinds import DISTRIBUTION, MULTI_LABEL, Kind

from ..stacked.system import HeadSettings
from .system import FitOptions, FoldData, History, Need, Rows, System, option, with_default

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Generator, Tensor

    from amber2_core.lddu import Lddu

SCORED_ROWS = 64  # bounds memory: of each there are all frames
ADAPTED = (
    "Adapted to distributions: softmax and JS stand where the paper has, for labels that are present or absent, the "
    "sigmoid and binary cross-entropy (--lddu-mode multi-label)."
)


@dataclass(frozen=True)
class LdduSettings:
    """Sizes of the network and weights of its losses; the defaults are those of the paper and its authors' code."""

    lddu_mode: Kind = option(
        DISTRIBUTION, "What is predicted: shares of votes, or which classes are present", choices=get_args(Kind)
    )
    lddu_width: int = option(256, "Size of frames' and classes' features in LDDU.", least=4)
    lddu_layers: int = option(3, "Layers of each modality's encoder in LDDU.", least=1)
    lddu_attention_heads: int = option(8, "Attention heads of an encoder's layer in LDDU.", least=1)
    lddu_feed_forward: int = option(256, "Hidden units of an encoder's layer in LDDU.", least=1)
    lddu_latent: int = option(128, "Dimensions of LDDU's Gaussians.", least=1)
    lambda_gate: float = option(0.3, "Weight of the loss of LDDU's gate.", least=0)
    lambda_contrast: float = option(1.0, "Weight of LDDU's contrastive loss.", least=0)
    lambda_calibration: float = option(0.3, "Weight of LDDU's calibration of spread and gate.", least=0)
    contrast_temperature: float = option(0.07, "Temperature of LDDU's contrastive loss.", above=0)
    contrast_queue: int = option(8192, "Earlier features that LDDU's contrastive loss compares with.", least=0)
    dropout: float = with_default(HeadSettings, "dropout", 0.3)
    lr: float = with_default(HeadSettings, "lr", 2e-4)
    weight_decay: float = with_default(HeadSettings, "weight_decay", 1e-2)
    batch_size: int = with_default(HeadSettings, "batch_size", 64)


class LatentDistributions(System):
    """LDDU (Huang et al. 2025), of one modality or several; `amber2_core.lddu` has its formulas.

    Loss = prediction + λ_gate·gate + λ_contrast·contrast + λ_calibration·calibration, AdamW at a constant rate. Runs
    train one by one, each by its own random numbers, in single precision whatever --precision says of large products.
    The epoch is kept that is best on dev: by JS of distributions; of presence by macro F1 at the threshold that makes
    it largest there (the authors' code chooses the threshold on test, by micro F1).
    """

    name = "lddu"
    Settings = LdduSettings
    why_frames = "on pooled vectors label-wise attention would be constant"

    def heads(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """Its one prediction, of all modalities together."""
        return heads_of(modalities)[-1:]

    def kind(self, setting: LdduSettings) -> Kind:
        return setting.lddu_mode

    def reads(self, setting: LdduSettings, modality: str) -> Need:
        return "frames"

    def remarks(self, setting: LdduSettings) -> Sequence[str]:
        return (ADAPTED,) if setting.lddu_mode == DISTRIBUTION else ()

    def check(self, setting: LdduSettings, heads: Sequence[str]) -> None:
        """SettingError: sizes that do not go together."""
        if setting.lddu_width % setting.lddu_attention_heads or setting.lddu_width % 4:
            raise SettingError(
                f"Bad lddu-width {setting.lddu_width}, expected a multiple of 4 and of lddu-attention-heads "
                f"{setting.lddu_attention_heads}"
            )

    def fit(
        self, fold: FoldData, settings: Sequence[LdduSettings], seeds: Sequence[int], options: FitOptions
    ) -> Iterator[FittedLddu]:
        for setting in settings:
            for seed in seeds:
                yield Training(setting, seed, fold).run(options)


class Training:
    """One run: its model, and how it learns."""

    def __init__(self, setting: LdduSettings, seed: int, fold: FoldData) -> None:
        from amber2_core.lddu import empty_queue, initial_parameters

        from ..stacked.loop import random_stream
        from ..stacked.optimizer import StackedAdamW

        self.setting, self.seed, self.fold, self.shape = setting, seed, fold, _shape(setting, fold)
        like = fold.train.targets
        fresh = initial_parameters(self.shape, random_stream(seed, fold.number, "parameters"))
        self.parameters = {name: x.to(like).requires_grad_() for name, x in fresh.items()}
        self.queue = empty_queue(self.shape, like)
        self.order = random_stream(seed, fold.number, "order")
        self.drop = Dropout(setting.dropout, random_stream(seed, fold.number, "dropout"), like.device)
        self.optimizer = StackedAdamW(
            self.parameters, wide=frozenset(), lr=setting.lr, weight_decay=setting.weight_decay
        )

    def run(self, options: FitOptions) -> FittedLddu:
        """Train; the parameters of the epoch that is best on dev."""
        scores, kept, best = list[Judged](), 0, (UNJUDGED, self._copy())
        for number in range(1, options.epochs + 1):
            self.epoch()
            scores.append(_judged(self.shape, self.parameters, self.fold.dev))
            if scores[-1].loss < best[0].loss:
                kept, best = number, (scores[-1], self._copy())
            if options.patience is not None and number - kept >= options.patience:
                break
        head = heads_of(self.shape.modalities)[-1]
        unjudged = frozenset[str]() if self.fold.dev.having()[-1].any() else frozenset({head})
        curves = {head: [score.loss for score in scores]} if self.shape.kind == DISTRIBUTION else {}
        history = History(curves, {head: kept}, unjudged)
        return FittedLddu(self.setting, self.seed, history, self.shape, best[1], self.fold, best[0].threshold)

    def epoch(self) -> None:
        """All rows of train once, in an order of its own."""
        import torch

        from amber2_core.devices import on

        train = self.fold.train
        order = on(train.targets.device, torch.randperm(len(train), generator=self.order))
        for rows in torch.split(order, self.setting.batch_size):
            self.optimizer.zero_grad()
            sum(self.weighted_terms(rows)).backward()  # type: ignore[union-attr]
            self.optimizer.step()

    def weighted_terms(self, rows: Tensor) -> list[Tensor]:
        """The parts of the loss of some rows of train (batch,), whose features join the queue."""
        from amber2_core.lddu import outputs, prototypes, terms

        setting, train = self.setting, self.fold.train
        target, frames = train.targets[rows], _frames(self.shape, train, rows)
        found = outputs(self.shape, self.parameters, frames, self.drop)
        parts = terms(found, target, self.queue, kind=self.shape.kind, temperature=setting.contrast_temperature)
        weights = (1.0, setting.lambda_gate, setting.lambda_contrast, setting.lambda_calibration)
        weighted = [weight * part for weight, part in zip(weights, parts, strict=True)]
        joining = found.latent.flatten(-4, -2), prototypes(target, found.there).flatten(-3)
        self.queue = self.queue.with_batch(*joining, setting.contrast_queue)
        return weighted

    def _copy(self) -> dict[str, Tensor]:
        return {name: x.detach().clone() for name, x in self.parameters.items()}


class Dropout:
    """Inverted dropout, by a run's random numbers: drawn where it computes, so otherwise on a GPU than on a CPU."""

    def __init__(self, share: float, stream: Generator, device: torch.device) -> None:
        import torch

        self.share = share
        self.stream = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=stream)))

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        if not self.share:
            return x
        keep = torch.rand(x.shape, generator=self.stream, device=x.device) >= self.share
        return x * keep / (1 - self.share)


class Judged(NamedTuple):
    """How a model does on dev."""

    loss: float  # JS, or −F1
    threshold: float = 0.5  # of presence


UNJUDGED = Judged(math.inf)


@dataclass(frozen=True, eq=False)
class FittedLddu:
    """A trained run of its best epoch."""

    setting: LdduSettings
    seed: int
    history: History
    shape: Lddu
    parameters: Mapping[str, Tensor]
    fold: FoldData
    threshold: float  # of presence

    def probs(self, rows: Rows) -> dict[str, npt.NDArray[np.float32]]:
        """See `Fitted`."""
        ((head, epoch),) = self.history.epoch.items()
        found = _probs(self.shape, self.parameters, rows)
        found[~rows.having()[-1] | (epoch == 0)] = float("nan")
        return {head: found}

    def save(self, path: Path, origin: Mapping[str, Any]) -> None:
        """See `Fitted`; `architecture` are the fields of `amber2_core.lddu.Lddu`, `probs` there predicts.

        Beside it stands the `threshold` of presence.
        """
        from amber2_core.heads_folder import write_heads

        from ..fold_data import read_statistics

        tensors: dict[str, Tensor] = dict(self.parameters)
        record: dict[str, Any] = {"model": "amber2_core.lddu", "architecture": asdict(self.shape), "reads": self._reads}
        if self.shape.kind == MULTI_LABEL:
            record["threshold"] = self.threshold
        for modality, statistics in self.fold.train.standardisation.items():
            mean, sd = read_statistics(statistics, "frames") or statistics
            tensors |= {f"inputs.{modality}.mean": mean, f"inputs.{modality}.sd": sd}
        write_heads(path, tensors, {**origin, **record, "epochs": dict(self.history.epoch)})

    @property
    def _reads(self) -> dict[str, Need]:
        return dict.fromkeys(self.shape.modalities, "frames")


def _shape(setting: LdduSettings, fold: FoldData) -> Lddu:
    from amber2_core.lddu import Lddu

    return Lddu(
        tuple((name, x.shape[-1]) for name, x in fold.train.features.items()),
        fold.train.targets.shape[-1],
        setting.lddu_mode,
        width=setting.lddu_width,
        layers=setting.lddu_layers,
        attention_heads=setting.lddu_attention_heads,
        feed_forward=setting.lddu_feed_forward,
        latent=setting.lddu_latent,
    )


def _frames(shape: Lddu, rows: Rows, some: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    return rows.inputs(some, dict.fromkeys(shape.modalities, "frames"))


def _probs(shape: Lddu, parameters: Mapping[str, Tensor], rows: Rows) -> npt.NDArray[np.float32]:
    """Probabilities (n, C) of all rows."""
    import torch

    from amber2_core.lddu import probs

    index = torch.arange(len(rows), device=rows.index.device)
    with torch.no_grad():
        parts = [probs(shape, parameters, _frames(shape, rows, some)) for some in torch.split(index, SCORED_ROWS)]
    return torch.cat(parts).float().cpu().numpy()


def _judged(shape: Lddu, parameters: Mapping[str, Tensor], dev: Rows) -> Judged:
    """Over the utterances that have any of the modalities; NaN where none has."""
    from amber2_core.metrics import js, threshold_of

    there = dev.having()[-1]
    target, found = dev.targets.cpu().numpy()[there], _probs(shape, parameters, dev)[there]
    if shape.kind == DISTRIBUTION:
        return Judged(float(js(target, found)))
    threshold, score = threshold_of(target, found)
    return Judged(-score, threshold)
