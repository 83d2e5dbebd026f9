"""Systems as a user writes them into a file of their own: one gives a loss, the others are fitted in their own way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amber2_core.heads_folder import write_heads
from amber2_core.kinds import MULTI_LABEL, Kind
from amber2_core.metrics import threshold_of
from amber2_train.stacked.system import Loss, StackedSettings, StackedSystem
from amber2_train.systems.system import FitOptions, FoldData, History, Need, Rows, System, option


@dataclass(frozen=True)
class FlattenedSettings(StackedSettings):
    """Of `Flattened`."""

    flatness: float = option(0.5, "Share of the uniform distribution in what is learnt.", least=0, below=1)


class Flattened(StackedSystem):
    """Cross-entropy with targets that are mixed with the uniform distribution."""

    name = "flattened"
    Settings = FlattenedSettings

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        share = torch.tensor([setting.flatness for setting in settings]).view(-1, 1, 1)  # (settings, 1, 1)

        def losses(outputs: Tensor, target: Tensor, present: Tensor | None, epoch: Tensor) -> Tensor:
            flat = (1 - share) * target + share / target.shape[-1]
            return -(flat * outputs.log_softmax(-1)).sum((0, -1)).mean(-1)

        return losses


@dataclass(frozen=True)
class PriorSettings:
    """Of `Prior` and what derives from it."""

    prior_votes: float = option(0.0, "Votes that every class is given beforehand.", least=0)


@dataclass(frozen=True)
class FittedPrior:
    """A distribution, whatever is asked, and what was read to find it."""

    setting: PriorSettings
    seed: int
    prior: npt.NDArray[np.float32]
    heads: tuple[str, ...]
    read: Mapping[str, Tensor]
    history: History = field(default_factory=History)

    def probs(self, rows: Rows) -> dict[str, npt.NDArray[np.float32]]:
        return {head: np.tile(self.prior, (len(rows), 1)) for head in self.heads}

    def save(self, path: Path, origin: Mapping[str, Any]) -> None:
        write_heads(path, {"prior": torch.from_numpy(self.prior), **self.read}, origin)


class Prior(System):
    """The mean of the train rows' targets: without a gradient, without epochs."""

    name = "prior"
    Settings = PriorSettings

    def fit(
        self, fold: FoldData, settings: Sequence[Any], seeds: Sequence[int], options: FitOptions
    ) -> Iterator[FittedPrior]:
        for setting in settings:
            votes = fold.train.targets.sum(0).numpy() + setting.prior_votes
            for seed in seeds:
                yield FittedPrior(
                    setting, seed, votes / votes.sum(), self.heads(tuple(fold.train.features)), self.read(fold.train)
                )

    def read(self, rows: Rows) -> dict[str, Tensor]:
        """What it looks at, to be kept beside the distribution."""
        return {}


class Layered(Prior):
    """One that reads all layers of the audio."""

    name = "layered"

    def reads(self, setting: Any, modality: str) -> Need:
        return "layers" if modality == "audio" else "vector"

    def read(self, rows: Rows) -> dict[str, Tensor]:
        return {"layers": rows.layers("audio", torch.arange(len(rows)))}


class Framed(Prior):
    """One that reads the frames of the text."""

    name = "framed"

    def reads(self, setting: Any, modality: str) -> Need:
        return "frames" if modality == "text" else "vector"

    def read(self, rows: Rows) -> dict[str, Tensor]:
        frames, valid = rows.frames("text", torch.arange(len(rows)))
        return {"frames": frames, "valid": valid}


class Forgetful(Prior):
    """One that leaves a run out."""

    name = "forgetful"

    def fit(self, *arguments: Any) -> Iterator[FittedPrior]:
        yield from list(super().fit(*arguments))[1:]


class Nameless:
    """No system at all."""


class Elsewhere(Prior):
    """One whose heads are not what is asked to choose."""

    name = "elsewhere"

    def heads(self, modalities: Sequence[str]) -> tuple[str, ...]:
        return ("early", "late")


class Slashed(Prior):
    """One whose name no file can have."""

    name = "my prior/1"


class Trebled(Prior):
    """One that predicts three times a distribution."""

    name = "trebled"

    def fit(self, *arguments: Any) -> Iterator[FittedPrior]:
        yield from (replace(one, prior=3 * one.prior) for one in super().fit(*arguments))


class Narrow(Prior):
    """One that predicts a class too few."""

    name = "narrow"

    def fit(self, *arguments: Any) -> Iterator[FittedPrior]:
        yield from (replace(one, prior=one.prior[:-1]) for one in super().fit(*arguments))


@dataclass(frozen=True)
class ColumnSettings:
    """Of `Column`."""

    js: int = option(3, "Called as a score is.")


class Column(Prior):
    """One whose setting is a column of results.csv already."""

    name = "column"
    Settings = ColumnSettings


@dataclass(frozen=True)
class SwitchSettings:
    """Of `Switch`."""

    epochs: int = option(3, "Called as an option is.")


class Switch(Prior):
    """One whose setting is an option of the command already."""

    name = "switch"
    Settings = SwitchSettings


class Scalar(Flattened):
    """One whose loss is a single number for all runs."""

    name = "scalar"

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        losses = super().loss(settings, heads=heads, fold=fold)
        return lambda *inputs: losses(*inputs).mean()


class Sharpened(Flattened):
    """One whose settings learn different targets, and whose outputs are no logits of a softmax."""

    name = "sharpened"

    def learnt(self, setting: Any, rows: Rows) -> Tensor:
        power = rows.targets ** (1 - setting.flatness)
        return power / power.sum(-1, keepdim=True)

    def log_probs_of(self, outputs: Tensor, setting: Any) -> Tensor:
        squares = outputs.square() + 1e-6
        return (squares / squares.sum(-1, keepdim=True)).log()


@dataclass(frozen=True)
class RatesSettings:
    """Of `Rates` and what derives from it."""

    nearest: int = option(3, "Train utterances that are asked.", least=1)


@dataclass(frozen=True)
class FittedRates:
    """Train utterances to ask, and above what share of them a class is present."""

    setting: RatesSettings
    seed: int
    train: Rows
    threshold: float | None = None
    history: History = field(default_factory=History)

    def probs(self, rows: Rows) -> dict[str, npt.NDArray[np.float32]]:
        known, asked = (some.vectors(torch.arange(len(some)))["audio"] for some in (self.train, rows))
        nearest = torch.cdist(asked, known).topk(self.setting.nearest, largest=False).indices
        return {"fusion": (self.train.targets > 0).float()[nearest].mean(1).numpy()}

    def save(self, path: Path, origin: Mapping[str, Any]) -> None:
        write_heads(path, {"targets": self.train.targets}, origin)


class Rates(System):
    """How many of the nearest train utterances have a class: it predicts presence."""

    name = "rates"
    Settings = RatesSettings

    def kind(self, setting: Any) -> Kind:
        return MULTI_LABEL

    def heads(self, modalities: Sequence[str]) -> tuple[str, ...]:
        return ("fusion",)

    def fit(
        self, fold: FoldData, settings: Sequence[Any], seeds: Sequence[int], options: FitOptions
    ) -> Iterator[FittedRates]:
        for setting in settings:
            one = FittedRates(setting, 0, fold.train)
            threshold, _ = threshold_of(fold.dev.targets.numpy(), one.probs(fold.dev)["fusion"])
            yield from (replace(one, seed=seed, threshold=threshold) for seed in seeds)


class Unsure(Rates):
    """One that never says above what a class is present."""

    name = "unsure"

    def fit(self, *arguments: Any) -> Iterator[FittedRates]:
        yield from (replace(one, threshold=None) for one in super().fit(*arguments))


@dataclass(frozen=True)
class FittedSums(FittedRates):
    """Counts, and no shares."""

    def probs(self, rows: Rows) -> dict[str, npt.NDArray[np.float32]]:
        return {head: 2 * some for head, some in super().probs(rows).items()}


class Sums(Rates):
    """One whose probabilities are above 1."""

    name = "sums"

    def fit(self, *arguments: Any) -> Iterator[FittedRates]:
        yield from (FittedSums(one.setting, one.seed, one.train, one.threshold) for one in super().fit(*arguments))


class Undecided(Rates):
    """One that would be chosen by a metric of the other kind."""

    name = "undecided"

    def decides(self, setting: Any) -> str:
        return "js"
