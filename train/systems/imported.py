"""Predictions made elsewhere, which import-predictions brought into the cache, scored beside what is trained here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amber2_core.errors import SettingError
from amber2_core.features import Side
from amber2_core.heads import FUSION_HEAD
from amber2_core.votes import canonical

from .system import FitOptions, FoldData, History, Rows, System

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PREDICTION = "prediction"


@dataclass(frozen=True)
class ImportedSettings:
    """None: nothing is trained."""


class Imported(System):
    """The feature set `prediction/NAME` of the cache as the one head `fusion`, the same under every seed.

    Its emotions are found among the run's by their names, as label policies compare words, and the shares of these
    renormalised; of an emotion that it lacks the share is 0. Where none of the run's emotions has a share, or an
    utterance has no prediction, nothing is predicted: it does not count in the scores, and is never replaced.
    """

    Settings = ImportedSettings

    def __init__(self, predictions: str) -> None:
        self.predictions = predictions
        self.name = f"imported-{predictions}"

    @property
    def side(self) -> Side:
        """Of the cache, what it reads."""
        return Side(PREDICTION, self.predictions)

    def sides(self, setting: Any) -> Sequence[Side]:
        """See `System.sides`."""
        return (self.side,)

    def heads(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """Whatever the modalities are: nobody knows what was heard or read."""
        return (FUSION_HEAD,)

    def fit(
        self, fold: FoldData, settings: Sequence[Any], seeds: Sequence[int], options: FitOptions
    ) -> Iterator[FittedPredictions]:
        """See `System.fit`.

        Raises:
            SettingError: the predictions know none of the run's emotions.
        """
        theirs = [canonical(emotion) for emotion in fold.side_recipes[self.side.key].get("emotions", ())]
        place = {emotion: column for column, emotion in enumerate(theirs)}
        columns = tuple(place.get(canonical(emotion), -1) for emotion in fold.emotions)
        if max(columns) < 0:
            known = f"{list(fold.emotions)}, they are of {theirs}"
            raise SettingError(f"The predictions {self.predictions!r} are of none of {known}: choose other --emotions")
        for setting in settings:
            for seed in seeds:
                yield FittedPredictions(setting, seed, self.side.key, columns)


@dataclass(frozen=True)
class FittedPredictions:
    """Where each of the run's emotions stands among those of the predictions."""

    setting: ImportedSettings
    seed: int
    key: str
    columns: tuple[int, ...]  # C, -1: nowhere
    history: History = field(default_factory=History)  # no epochs

    def probs(self, rows: Rows) -> Mapping[str, npt.NDArray[np.float32]]:
        """See `Fitted.probs`."""
        import numpy as np
        import torch

        side = rows.side(self.key, torch.arange(len(rows), device=rows.index.device)).double().cpu().numpy()  # (n, E)
        shares = np.where(np.array(self.columns) < 0, 0.0, side[:, list(self.columns)])  # (n, C)
        total = shares.sum(axis=1, keepdims=True)
        predicted = np.divide(shares, total, out=np.full_like(shares, np.nan), where=total > 0)
        return {FUSION_HEAD: predicted.astype(np.float32)}

    def save(self, path: Path, origin: Mapping[str, Any]) -> None:
        """What stands in place of weights: `columns` (C,). No new speech can be predicted from it."""
        import torch

        from amber2_core.heads_folder import write_heads

        write_heads(path, {"columns": torch.tensor(self.columns)}, origin)
