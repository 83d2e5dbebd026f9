"""The contract of a system: what stage 2 asks of anything that it trains or scores.

A system's `Settings` are its axes on a grid, its options of `train-heads` and its columns of results.csv. What all
systems share stays outside of them: folds, targets, selection on dev, the test looked at once, results, report.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from amber2_core.heads import FUSION_HEAD

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..fold_data import FoldData, Rows

    Floats = npt.NDArray[np.floating[Any]]

# What a system reads of a modality: one vector of an utterance, all layers' vectors, or the sequence of its frames.
Need = Literal["vector", "layers", "frames"]
Precision = Literal["fp32", "tf32", "bf16"]


def option(
    default: float | int | str,
    what: str,
    *,
    choices: Sequence[str] = (),
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Any:
    """A field of a system's `Settings`: its default, the help of its option, and what values it takes.

    Numbers are of the default's kind, int or float, at least `least`, above `above` and below `below`; words are one
    of `choices`, any where there are none.
    """
    limits = {"least": least, "above": above, "below": below}
    return field(default=default, metadata={"what": what, "choices": tuple(choices), **limits})


@dataclass(frozen=True)
class FitOptions:
    """How every setting of a sweep is trained."""

    epochs: int = 30
    # epochs without a better one after which a head is not looked at any more; None: never
    patience: int | None = None
    # of the largest products; parameters and moments are in single precision
    precision: Precision = "fp32"


@dataclass(frozen=True)
class History:
    """How one run trained."""

    # head → the dev JS after every epoch, as training saw it
    dev_js: Mapping[str, Sequence[float]] = field(default_factory=dict)
    # head → the epoch kept, from 1; 0: none, since its dev score never was a number
    epoch: Mapping[str, int] = field(default_factory=dict)
    # heads whose epoch nobody could choose, as no dev utterance has the head that decides
    unjudged: frozenset[str] = frozenset()


class Fitted(Protocol):
    """One setting under one seed, trained."""

    @property
    def setting(self) -> Any:
        """Of the system's `Settings`."""

    @property
    def seed(self) -> int: ...

    @property
    def history(self) -> History: ...

    def probs(self, rows: Rows) -> Mapping[str, npt.NDArray[np.float32]]:
        """Head → predicted distributions (n, C); a row of NaN where the head predicts nothing."""

    def save(self, path: Path, origin: Mapping[str, Any]) -> None:
        """Write it into one file that predicts alone (`amber2_core.heads_folder`).

        `origin` is what the trainer knows of it: system and setting, fold, seed, emotions, label policy, features with
        their recipes, versions.
        """


class System(Protocol):
    """One way to predict raters' distributions. Own ones derive from this, or from `amber2_train.stacked.system`."""

    # as given to --system, and in results.csv
    name: str
    # a frozen dataclass of `option`s
    Settings: type

    def fit(
        self, fold: FoldData, settings: Sequence[Any], seeds: Sequence[int], options: FitOptions
    ) -> Iterator[Fitted]:
        """Every setting under every seed, in any order; of one `shape`. The rows of `fold.test` have no say."""
        ...

    def reads(self, setting: Any, modality: str) -> Need:
        """What it needs of the cache."""
        return "vector"

    def heads(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """The names of what it predicts; one named for a modality predicts for the utterances that have it."""
        return (*modalities, FUSION_HEAD)

    def chooses(self, setting: Any) -> str:
        """The head whose dev JS, averaged over seeds, decides between settings."""
        return FUSION_HEAD

    def shape(self, setting: Any) -> Hashable:
        """What is equal for settings that are fitted together."""
        whole: Hashable = setting
        return whole

    def check(self, setting: Any, heads: Sequence[str]) -> None:
        """Raises SettingError for values that do not go together."""

    def expert_weights(self, setting: Any, probs: Mapping[str, Floats], target: Floats) -> Mapping[str, Floats]:
        """How much each expert counted, (seeds, n) by head, from probabilities (seeds, n, C); none without experts."""
        return {}
