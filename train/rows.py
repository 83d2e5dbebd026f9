"""One fold in tensors: the training data and a fold's row numbers go in, batches of features and targets come out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amber2_core.fusion import only_present
from amber2_core.heads_folder import standardised
from amber2_core.losses import class_balanced_weights

from .folds import Fold
from .labels import LABEL_KINDS, LABELS, Labels
from .systems.system import TrainingStatistics
from .targets import TrainingData

Inputs = Literal["raw", "standardized"]
Standardisation = Mapping[str, tuple[Tensor, Tensor]]
STATISTICS_ROWS = 4096  # rows averaged at a time: bounds memory


@dataclass(frozen=True, eq=False)
class Rows:
    """Some utterances: features of all that there are, which of them are meant, and their targets."""

    features: Mapping[str, Tensor]  # modality → (N, D_m), shared by all parts of all folds
    index: Tensor  # (n,) rows of the features
    targets: Tensor  # (n, C)
    # modality → mean and sd (D_m,) that batches are standardised by; empty where features are used as they are
    standardisation: Standardisation = field(default_factory=dict)
    # (heads, N) True where an utterance has the head: its modality's features, or any for the last, the fusion; None
    # where nothing is missing
    present: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def vectors(self, rows: Tensor) -> dict[str, Tensor]:
        """Features of some of these utterances, (…, batch) of 0 … n−1 → (…, batch, D_m) by modality.

        Zero, also after standardisation, where an utterance lacks the modality.
        """
        chosen = self.index[rows]
        vectors = {
            name: standardised(x.index_select(0, chosen.flatten()), self.standardisation.get(name)).view(
                *chosen.shape, -1
            )
            for name, x in self.features.items()
        }
        present = self.presence(rows)
        return vectors if present is None else only_present(vectors, dict(zip(vectors, present, strict=False)))

    def presence(self, rows: Tensor) -> Tensor | None:
        """Which heads some of these utterances have, (…, batch) of 0 … n−1 → (heads, …, batch); None: all of them."""
        if self.present is None:
            return None
        chosen = self.index[rows]
        return self.present.index_select(1, chosen.flatten()).view(-1, *chosen.shape)

    def having(self) -> npt.NDArray[np.bool_]:
        """Which of these utterances have which head, (heads, n)."""
        if self.present is None:
            return np.ones((len(self.features) + 1, len(self)), dtype=bool)
        return np.asarray(self.present[:, self.index].cpu().numpy())


@dataclass(frozen=True, eq=False)
class FoldRows:
    """The three parts of one fold, and what a loss may know of the first."""

    number: int  # of the fold, part of every run's random stream
    train: Rows
    dev: Rows
    test: Rows
    # kind of labels → what is known of the train rows under it
    statistics: Mapping[Labels, TrainingStatistics]


def fold_rows(
    data: TrainingData,
    fold: Fold,
    *,
    inputs: Inputs = "raw",
    labels: Collection[Labels] = LABEL_KINDS[:1],
    device: str = "cpu",
    features: Mapping[str, Tensor] | None = None,
) -> FoldRows:
    """A fold's parts as tensors; standardised by the mean and sd of its train rows where that is asked for.

    `features` are the data's `features_on` the device, where several folds share them.
    """
    features = features_on(device, data) if features is None else features
    train_index = torch.from_numpy(fold.train).to(device)
    standardisation = {}
    if inputs == "standardized":
        having = {name: torch.from_numpy(mask).to(device) for name, mask in data.present.items()}
        standardisation = train_statistics(features, train_index, having)
    present = presence(data, fold, device=device)

    def part(rows: npt.NDArray[np.intp]) -> Rows:
        targets = torch.from_numpy(data.targets[rows]).to(device)
        return Rows(features, torch.from_numpy(rows).to(device), targets, standardisation, present)

    train = part(fold.train)
    statistics = {
        kind: TrainingStatistics(class_balanced_weights(LABELS[kind](train.targets))) for kind in sorted(labels)
    }
    return FoldRows(fold.number, train, part(fold.dev), part(fold.test), statistics)


def features_on(device: str, data: TrainingData) -> dict[str, Tensor]:
    """The features of all utterances, (N, D_m) by modality; on a CPU they are not copied."""
    return {name: torch.from_numpy(x).to(device) for name, x in data.features.items()}


def train_statistics(
    features: Mapping[str, Tensor], rows: Tensor, present: Mapping[str, Tensor] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and sd of every dimension over some rows of features (N, D_m); a constant dimension has sd 1.

    `present` has booleans (N,) for each modality that some utterances lack; of these, the others count. Without any
    the mean is 0.
    """
    statistics = {}
    for name, x in features.items():
        own = rows if name not in (present or {}) else rows[(present or {})[name][rows]]
        count = max(1, len(own))
        mean = torch.stack([x[some].double().sum(0) for some in torch.split(own, STATISTICS_ROWS)]).sum(0) / count
        squares = [(x[some].double() - mean).square().sum(0) for some in torch.split(own, STATISTICS_ROWS)]
        sd = (torch.stack(squares).sum(0) / count).sqrt()
        constant = sd <= 1e-12 * mean.abs()
        statistics[name] = (mean.to(x.dtype), torch.where(constant, 1.0, sd).to(x.dtype))
    return statistics


def presence(data: TrainingData, fold: Fold, *, device: str = "cpu") -> Tensor | None:
    """(heads, N) which utterances have which head in a fold, the fusion last; None where nothing is missing.

    A modality that no train row has is missing from the whole fold, since nothing could be learnt of it; who has no
    other has no fusion either.
    """
    if not data.present:
        return None
    every = np.ones(len(data), dtype=bool)
    masks = np.stack([data.present.get(name, every) for name in data.features])  # (modalities, N)
    masks &= masks[:, fold.train].any(axis=1, keepdims=True)
    return torch.from_numpy(np.concatenate([masks, masks.any(axis=0, keepdims=True)])).to(device)
