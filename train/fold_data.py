"""One fold in tensors: batches of features, whatever a system reads of them, and targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amber2_core.fusion import only_present
from amber2_core.heads import heads_of
from amber2_core.heads_folder import standardised

from .training_data import Fold, TrainingData

Standardisation = Mapping[str, tuple[Tensor, Tensor]]
STATISTICS_ROWS = 4096  # rows averaged at a time: bounds memory


@dataclass(frozen=True, eq=False)
class Sequences:
    """The frames of all utterances behind one another; utterance i owns rows offsets[i]:offsets[i + 1]."""

    values: Tensor  # (ΣT, D)
    offsets: Tensor  # (N + 1,)


@dataclass(frozen=True, eq=False)
class Features:
    """All utterances' features on a device; on a CPU they are the cache file itself, read where they are asked for."""

    values: Mapping[str, Tensor]  # modality → (N, D_m) or (N, layers, D_m), of any precision
    rows: Tensor  # (K,) which of them are the training data's
    frames: Mapping[str, Sequences] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some utterances: features of all that there are, which of them are meant, and their targets."""

    # modality → (N, D_m) or (N, layers, D_m), shared by all parts of all folds
    features: Mapping[str, Tensor]
    index: Tensor  # (n,) rows of the features
    targets: Tensor  # (n, C)
    # modality → mean and sd (D_m,) that vectors are standardised by; empty where features are used as they are
    standardisation: Standardisation = field(default_factory=dict)
    # (heads, N) True where an utterance has the head: its modality's features, or any for the fusion of several, the
    # last; None where nothing is missing
    present: Tensor | None = None
    sequences: Mapping[str, Sequences] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def first(self, count: int) -> Rows:
        """The first of these utterances."""
        return replace(self, index=self.index[:count], targets=self.targets[:count])

    def vectors(self, rows: Tensor) -> dict[str, Tensor]:
        """The last layer's vectors of some of these utterances, (…, batch) of 0 … n−1 → (…, batch, D_m) by modality.

        Zero, also after standardisation, where an utterance lacks the modality.
        """
        chosen = self.index[rows]
        vectors = {}
        for name, x in self.features.items():
            vector = _taken(last_layer(x), chosen).to(self.targets.dtype)
            vectors[name] = standardised(vector, self.standardisation.get(name))
        present = self.presence(rows)
        return vectors if present is None else only_present(vectors, dict(zip(vectors, present, strict=False)))

    def layers(self, modality: str, rows: Tensor) -> Tensor:
        """All layers' vectors as cached, (…, batch) → (…, batch, layers, D_m), NaN where there are none."""
        return _taken(self.features[modality], self.index[rows]).to(self.targets.dtype)

    def frames(self, modality: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences of some utterances (batch,), padded with 0: (batch, T, D), and which are frames (batch, T)."""
        held, chosen = self.sequences[modality], self.index[rows]
        start, lengths = held.offsets[chosen], held.offsets[chosen + 1] - held.offsets[chosen]
        steps = torch.arange(max(1, int(lengths.max())), device=chosen.device)
        valid = steps < lengths.unsqueeze(-1)
        place = torch.where(valid, start.unsqueeze(-1) + steps, 0)
        frames = _taken(held.values, place).to(self.targets.dtype)
        return frames.masked_fill(~valid.unsqueeze(-1), 0.0), valid

    def presence(self, rows: Tensor) -> Tensor | None:
        """Which heads some of these utterances have, (…, batch) of 0 … n−1 → (heads, …, batch); None: all of them."""
        if self.present is None:
            return None
        chosen = self.index[rows]
        return self.present.index_select(1, chosen.flatten()).view(-1, *chosen.shape)

    def having(self) -> npt.NDArray[np.bool_]:
        """Which of these utterances have which head, (heads, n): those of the modalities, the last is the fusion's.

        Of one modality there is no fusion.
        """
        if self.present is None:
            return np.ones((len(heads_of(list(self.features))), len(self)), dtype=bool)
        return np.asarray(self.present[:, self.index].cpu().numpy())

    def having_head(self, head: str) -> npt.NDArray[np.bool_]:
        """Which of these utterances have the head (n,): the modality's of that name, or any modality."""
        having = self.having()
        return np.asarray(dict(zip(self.features, having, strict=False)).get(head, having[-1]))


@dataclass(frozen=True, eq=False)
class FoldData:
    """The three parts of one fold."""

    number: int  # of the fold, part of every run's random stream
    train: Rows  # with the targets that are learnt, which may be of other raters than those of dev and test
    dev: Rows
    test: Rows
    emotions: tuple[str, ...] = ()  # C, as columns of the targets


def fold_data(data: TrainingData, fold: Fold, features: Features, *, standardise: bool = False) -> FoldData:
    """A fold's parts as tensors; standardised by the mean and sd of its train rows where that is asked for."""
    device, every = features.rows.device, len(next(iter(features.values.values())))
    present, having = None, data.presence(fold.train)
    if having is not None:  # of all utterances, not of the training data's alone
        present = torch.zeros(len(having), every, dtype=torch.bool)
        present[:, features.rows.cpu()] = torch.from_numpy(having)
        present = present.to(device)
    standardisation = {}
    if standardise:
        train = features.rows[torch.from_numpy(fold.train).to(device)]
        masks = {} if present is None else dict(zip(features.values, present, strict=False))
        standardisation = train_statistics(features.values, train, masks)

    def part(rows: npt.NDArray[np.intp], whole: npt.NDArray[np.float32] = data.targets) -> Rows:
        targets = torch.from_numpy(whole[rows]).to(device)
        index = features.rows[torch.from_numpy(rows).to(device)]
        return Rows(features.values, index, targets, standardisation, present, features.frames)

    learnt = data.targets if data.learnt_targets is None else data.learnt_targets
    return FoldData(fold.number, part(fold.train, learnt), part(fold.dev), part(fold.test), data.emotions)


def features_on(device: str, data: TrainingData) -> Features:
    """The data's features; an accelerator gets a copy of the rows that are the training data's."""
    values = {name: _tensor(some.values) for name, some in data.inputs.items()}
    frames = {
        name: Sequences(_tensor(some.frames.values), torch.from_numpy(some.frames.offsets))
        for name, some in data.inputs.items()
        if some.frames is not None
    }
    rows = torch.from_numpy(data.rows)
    if device == "cpu":
        return Features(values, rows, frames)
    return Features(
        {name: x[rows].to(device) for name, x in values.items()},
        torch.arange(len(rows), device=device),
        {name: _sequences_of(some, rows, device) for name, some in frames.items()},
    )


def train_statistics(
    features: Mapping[str, Tensor], rows: Tensor, present: Mapping[str, Tensor] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and sd of every dimension over some rows of features (N, D_m); a constant dimension has sd 1.

    `present` has booleans (N,) for each modality that some utterances lack; of these, the others count. Without any
    the mean is 0.
    """
    statistics = {}
    for name, some in features.items():
        x = last_layer(some)
        own = rows if name not in (present or {}) else rows[(present or {})[name][rows]]
        count = max(1, len(own))
        mean = torch.stack([x[part].double().sum(0) for part in torch.split(own, STATISTICS_ROWS)]).sum(0) / count
        squares = [(x[part].double() - mean).square().sum(0) for part in torch.split(own, STATISTICS_ROWS)]
        sd = (torch.stack(squares).sum(0) / count).sqrt()
        constant = sd <= 1e-12 * mean.abs()
        kind = torch.promote_types(x.dtype, torch.float32)
        statistics[name] = (mean.to(kind), torch.where(constant, 1.0, sd).to(kind))
    return statistics


def last_layer(x: Tensor) -> Tensor:
    """(N, D) or (N, layers, D) → (N, D), without a copy."""
    return x if x.ndim == 2 else x[:, -1]


def _taken(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of x (N, …), (…, batch) → (…, batch, …)."""
    return x.index_select(0, rows.flatten()).view(*rows.shape, *x.shape[1:])


def _tensor(values: object) -> Tensor:
    """Features that lie in memory or on the disk, without a copy."""
    return torch.from_numpy(values if isinstance(values, np.ndarray) else values.open())  # type: ignore[attr-defined]


def _sequences_of(frames: Sequences, rows: Tensor, device: str) -> Sequences:
    """The sequences of some utterances behind one another."""
    lengths = (frames.offsets[1:] - frames.offsets[:-1])[rows]
    places = [torch.arange(int(frames.offsets[row]), int(frames.offsets[row + 1])) for row in rows]
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    return Sequences(frames.values[torch.cat(places)].to(device), offsets.to(device))
