"""One fold in tensors: batches of features, whatever a system reads of them, and targets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amber2_core.errors import SettingError
from amber2_core.heads import heads_of
from amber2_core.heads_folder import standardised

from .systems.system import Need
from .training_data import Fold, TrainingData

Standardisation = Mapping[str, tuple[Tensor, Tensor]]
STATISTICS_ROWS = 4096  # rows averaged at a time: bounds memory


@dataclass(frozen=True, eq=False)
class Sequences:
    """The frames of all utterances behind one another; utterance i owns rows offsets[i]:offsets[i + 1]."""

    values: Tensor  # (ΣT, D)
    offsets: Tensor  # (N + 1,)
    longest: int  # of all utterances' sequences


@dataclass(frozen=True, eq=False)
class Features:
    """All utterances' features on a device; on a CPU they are the cache file itself, read where they are asked for."""

    values: Mapping[str, Tensor]  # modality → (N, D_m) or (N, layers, D_m), of any precision
    rows: Tensor  # (K,) which of them are the training data's
    frames: Mapping[str, Sequences] = field(default_factory=dict)
    sides: Mapping[str, Tensor] = field(default_factory=dict)  # key → (N, D)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Utterances whose features are those of two, h = λ h_i + (1 − λ) h_j."""

    partners: Tensor  # (n,) j, rows of the features
    # modality → (n,) λ; 1: the utterance as it is
    shares: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some utterances: features of all that there are, which of them are meant, and their targets."""

    # modality → (N, D_m) or (N, layers, D_m), shared by all parts of all folds
    features: Mapping[str, Tensor]
    index: Tensor  # (n,) rows of the features
    targets: Tensor  # (n, C)
    # modality → mean and sd, (D_m,) or (layers, D_m), of the train rows; empty where features are used as they are
    standardisation: Standardisation = field(default_factory=dict)
    # (heads, N) True where an utterance has the head: its modality's features, or any for the fusion of several, the
    # last; None where nothing is missing
    present: Tensor | None = None
    sequences: Mapping[str, Sequences] = field(default_factory=dict)
    # (n, C) the votes that targets are made of
    votes: Tensor | None = None
    # what systems read beside the modalities, by key; see `side`
    sides: Mapping[str, Tensor] = field(default_factory=dict)
    mixture: Mixture | None = None

    def __len__(self) -> int:
        return len(self.index)

    def first(self, count: int) -> Rows:
        """The first of these utterances."""
        return self.some(torch.arange(min(count, len(self)), device=self.index.device))

    def some(self, rows: Tensor) -> Rows:
        """Some of these utterances (m,) of 0 … n−1, in that order."""
        mixture = self.mixture
        if mixture is not None:
            mixture = Mixture(mixture.partners[rows], {m: x[rows] for m, x in mixture.shares.items()})
        votes = None if self.votes is None else self.votes[rows]
        return replace(self, index=self.index[rows], targets=self.targets[rows], votes=votes, mixture=mixture)

    def mixed(self, partners: Tensor, shares: Mapping[str, Tensor]) -> Rows:
        """These utterances with the features of two: `partners` (n,) of 0 … n−1, shares (n,) by modality.

        A modality that the partner lacks is the utterance's own; one that the utterance lacks it lacks all the same.
        """
        others = self.index[partners]
        if self.present is not None:
            there = dict(zip(self.features, self.present[:, others], strict=False))
            shares = {m: share.masked_fill(~there[m], 1.0) for m, share in shares.items()}
        return replace(self, mixture=Mixture(others, shares))

    def joined(self, others: Sequence[Any]) -> Rows:
        """These utterances, and after them those of other parts of the same train rows."""
        parts: list[Rows] = [self, *others]
        votes, mixture = [part.votes for part in parts if part.votes is not None], None
        if any(part.mixture is not None for part in parts):
            mixtures = [part.mixture or part.unmixed() for part in parts]
            shares = {m: torch.cat([some.shares[m] for some in mixtures]) for m in self.features}
            mixture = Mixture(torch.cat([some.partners for some in mixtures]), shares)
        return replace(
            self,
            index=torch.cat([part.index for part in parts]),
            targets=torch.cat([part.targets for part in parts]),
            votes=torch.cat(votes) if len(votes) == len(parts) else None,
            mixture=mixture,
        )

    def unmixed(self) -> Mixture:
        """These utterances as they are, as a mixture."""
        return Mixture(self.index, dict.fromkeys(self.features, torch.ones_like(self.targets[:, 0])))

    def inputs(self, rows: Tensor, needs: Mapping[str, Need]) -> dict[str, Any]:
        """What is needed of some of these utterances (…, batch) by modality, standardised, 0 where there is none.

        Of a "vector", or of one layer by its number, (…, batch, D_m); of "layers" (…, batch, layers, D_m); of "frames"
        (…, batch, T, D_m) and which are frames (…, batch, T).
        """
        present = self.presence(rows)
        masks = {} if present is None else dict(zip(self.features, present, strict=False))
        found: dict[str, Any] = {}
        for name, need in needs.items():
            statistics = read_statistics(self.standardisation.get(name), need)
            if need == "frames":
                frames, valid = self.frames(name, rows)
                own = frames if statistics is None else standardised(frames, statistics) * valid.unsqueeze(-1)
                found[name] = own, valid
            else:
                x = standardised(self._mixed(name, rows, need), statistics)
                if name in masks:
                    mask = masks[name].view(*rows.shape, *[1] * (x.ndim - rows.ndim))
                    x = x.masked_fill(~mask, 0.0)
                found[name] = x
        return found

    def vectors(self, rows: Tensor) -> dict[str, Tensor]:
        """The last layer's vectors of some of these utterances, (…, batch) of 0 … n−1 → (…, batch, D_m) by modality.

        Zero, also after standardisation, where an utterance lacks the modality.
        """
        return self.inputs(rows, dict.fromkeys(self.features, "vector"))

    def layers(self, modality: str, rows: Tensor) -> Tensor:
        """All layers' vectors as cached, (…, batch) → (…, batch, layers, D_m), NaN where there are none."""
        return _taken(self.features[modality], self.index[rows]).to(self.targets.dtype)

    def frames(self, modality: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences of some utterances (…, batch), padded with 0: (…, batch, T, D), and which are frames (…, batch, T).

        SettingError: the utterances are mixtures, of which there are no sequences.
        """
        if self.mixture is not None:
            raise SettingError("frames cannot be mixed: choose --input-pooling mean, or no mixing and no augmentation")
        held, chosen = self.sequences[modality], self.index[rows]
        start, lengths = held.offsets[chosen], held.offsets[chosen + 1] - held.offsets[chosen]
        # on an accelerator nobody waits for the longest of a batch
        longest = int(lengths.max()) if chosen.device.type == "cpu" else held.longest
        steps = torch.arange(max(1, longest), device=chosen.device)
        valid = steps < lengths.unsqueeze(-1)
        place = torch.where(valid, start.unsqueeze(-1) + steps, 0)
        frames = _taken(held.values, place).to(self.targets.dtype)
        return frames.masked_fill(~valid.unsqueeze(-1), 0.0), valid

    def side(self, key: str, rows: Tensor) -> Tensor:
        """What a system reads beside the modalities, (…, batch) → (…, batch, D), NaN where there is none.

        `key` is the modality of the feature set, or `modality:name` where a name was asked for.
        """
        return _taken(self.sides[key], self.index[rows]).to(self.targets.dtype)

    def _mixed(self, modality: str, rows: Tensor, need: Need) -> Tensor:
        """Vectors or layers of some utterances, mixed where these are mixtures."""
        x = self.features[modality] if need == "layers" else layer_of(self.features[modality], need)
        own = _taken(x, self.index[rows]).to(self.targets.dtype)
        if self.mixture is None:
            return own
        share = self.mixture.shares[modality][rows].view(*rows.shape, *[1] * (own.ndim - rows.ndim))
        blend = _taken(x, self.mixture.partners[rows]).to(own).lerp(own, share.to(own))
        return torch.where(share == 1, own, blend)  # of a partner that is not there, anything may stand in its place

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
    # key of what is read beside the modalities → its recipe
    side_recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


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
        votes = None if data.votes is None else torch.from_numpy(data.votes[rows]).to(device)
        index = features.rows[torch.from_numpy(rows).to(device)]
        return Rows(features.values, index, targets, standardisation, present, features.frames, votes, features.sides)

    recipes = {key: some.recipe for key, some in data.sides.items()}
    learnt = data.targets if data.learnt_targets is None else data.learnt_targets
    parts = (part(fold.train, learnt), part(fold.dev), part(fold.test))
    return FoldData(fold.number, *parts, data.emotions, recipes)


def features_on(device: str, data: TrainingData) -> Features:
    """The data's features; an accelerator gets a copy of the rows that are the training data's."""
    values = {name: _tensor(some.values) for name, some in data.inputs.items()}
    sides = {key: _tensor(some.values) for key, some in data.sides.items()}
    frames = {
        name: Sequences(_tensor(some.frames.values), torch.from_numpy(offsets), int(np.diff(offsets).max(initial=0)))
        for name, some in data.inputs.items()
        if some.frames is not None
        for offsets in [some.frames.offsets]
    }
    rows = torch.from_numpy(data.rows)
    if device == "cpu":
        return Features(values, rows, frames, sides)
    return Features(
        {name: x[rows].to(device) for name, x in values.items()},
        torch.arange(len(rows), device=device),
        {name: _sequences_of(some, rows, device) for name, some in frames.items()},
        {key: x[rows].to(device) for key, x in sides.items()},
    )


def train_statistics(
    features: Mapping[str, Tensor], rows: Tensor, present: Mapping[str, Tensor] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and sd of every dimension over some rows of features (N, …, D_m); a constant dimension has sd 1.

    `present` has booleans (N,) for each modality that some utterances lack; of these, the others count. Without any
    the mean is 0.
    """
    statistics = {}
    for name, x in features.items():
        own = rows if name not in (present or {}) else rows[(present or {})[name][rows]]
        count = max(1, len(own))
        mean = torch.stack([x[part].double().sum(0) for part in torch.split(own, STATISTICS_ROWS)]).sum(0) / count
        squares = [(x[part].double() - mean).square().sum(0) for part in torch.split(own, STATISTICS_ROWS)]
        sd = (torch.stack(squares).sum(0) / count).sqrt()
        constant = sd <= 1e-12 * mean.abs()
        kind = torch.promote_types(x.dtype, torch.float32)
        statistics[name] = (mean.to(kind), torch.where(constant, 1.0, sd).to(kind))
    return statistics


def read_statistics(statistics: tuple[Tensor, Tensor] | None, need: Need) -> tuple[Tensor, Tensor] | None:
    """Mean and sd, (D,) or (layers, D) as the features are, of what is needed of them."""
    if statistics is None or need == "layers" or statistics[0].ndim == 1:
        return statistics
    layer = need if isinstance(need, int) else -1
    return statistics[0][layer], statistics[1][layer]


def layer_of(x: Tensor, need: Need = "vector") -> Tensor:
    """(N, D) or (N, layers, D) → the last layer's (N, D), or that of a number, without a copy."""
    return x if x.ndim == 2 else x[:, need if isinstance(need, int) else -1]


def _taken(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of x (N, …), (…, batch) → (…, batch, …)."""
    return x.index_select(0, rows.flatten()).view(*rows.shape, *x.shape[1:])


def _tensor(values: object) -> Tensor:
    """Features that lie in memory or on the disk, without a copy."""
    with warnings.catch_warnings():
        # What workers of a cluster share cannot be written to, and nobody does.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(values if isinstance(values, np.ndarray) else values.open())  # type: ignore[attr-defined]


def _sequences_of(frames: Sequences, rows: Tensor, device: str) -> Sequences:
    """The sequences of some utterances behind one another."""
    lengths = (frames.offsets[1:] - frames.offsets[:-1])[rows]
    places = [torch.arange(int(frames.offsets[row]), int(frames.offsets[row + 1])) for row in rows]
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    return Sequences(frames.values[torch.cat(places)].to(device), offsets.to(device), frames.longest)
