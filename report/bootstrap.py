"""Clusters of utterances and what each adds to a score go in; scores on draws of them, intervals and p-values come out.

What is drawn again, 10,000 times, are speakers, with replacement within each fold (a stratified cluster bootstrap):
utterances of one speaker are not independent. Few speakers make the plain percentile interval too narrow twice over;
both are put right as Hesterberg (2015, "What teachers should know about the bootstrap", §4.3) does: the deviations of a
fold of S speakers are widened by √(S / (S − 1)), and the percentiles are those at which a normal distribution has the
tails of Student's t with Σ_f (S_f − 1) degrees of freedom. With many speakers neither matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from amber2_core.tables import Texts
from amber2_core.votes import codes

from .runs import Floats

DRAWS = 10_000
LEVEL = 0.95
# draws × clusters of weights that are held at once
CHUNK = 4_000_000
Finish = Callable[[Floats], Floats]  # sums over drawn clusters (…, K) → scores (…, scores)


@dataclass(frozen=True, eq=False)
class Clusters:
    """What is drawn: the cluster of every utterance, numbered within its fold."""

    rows: Sequence[npt.NDArray[np.intp]]  # fold → rows of its utterances
    numbers: Sequence[npt.NDArray[np.int64]]  # fold → their clusters, from 0
    sizes: Sequence[int]  # fold → S_f
    by_speaker: bool

    @property
    def freedom(self) -> int:
        """Σ_f (S_f − 1)."""
        return sum(size - 1 for size in self.sizes)

    def of(self, some: npt.NDArray[np.bool_]) -> Clusters:
        """The clusters of some utterances (N,), and the folds that have any; as `speaker_clusters` of these alone."""
        if some.all():
            return self
        folds = [(rows[some[rows]], numbers[some[rows]]) for rows, numbers in zip(self.rows, self.numbers, strict=True)]
        folds = [(rows, numbers) for rows, numbers in folds if len(rows)]
        by_speaker = self.by_speaker and all(len(np.unique(numbers)) > 1 for _, numbers in folds)
        people = [codes(list(map(str, numbers if by_speaker else rows))) for rows, numbers in folds]
        sizes = [len(names) for _, names in people]
        return Clusters([rows for rows, _ in folds], [number for number, _ in people], sizes, by_speaker)


def speaker_clusters(fold: npt.NDArray[np.int64], speaker: Texts) -> Clusters:
    """Speakers within folds (N,). Who is unknown counts as a speaker of his own.

    Where nobody is known, or a fold has but one speaker, single utterances are drawn.
    """
    rows = [np.flatnonzero(fold == number) for number in np.unique(fold)]
    people = [codes([speaker[row] or f"\0{row}" for row in some]) for some in rows]
    by_speaker = any(speaker) and all(len(names) > 1 for _, names in people)
    if not by_speaker:
        people = [codes([str(row) for row in some]) for some in rows]
    return Clusters(rows, [number for number, _ in people], [len(names) for _, names in people], by_speaker)


def drawn_scores(sums: Sequence[Floats], finish: Finish, *, draws: int, seed: int) -> list[Floats]:
    """Scores of every fold on bootstrap draws of its clusters.

    Args:
        sums: fold → (S_f, K), what each cluster adds to the sums that a score is made of.
        finish: from sums over the drawn clusters (…, K) to scores.

    Returns:
        fold → (draws, …).
    """
    rng = np.random.default_rng(seed)
    return [np.concatenate([finish(w @ some) for w in _weights(rng, len(some), draws)]) for some in sums]


def widened_draws(observed: Sequence[Floats], drawn: Sequence[Floats], sizes: Sequence[int]) -> Floats:
    """The mean over folds of scores (draws, …), each fold's deviations from what was observed times √(S / (S − 1))."""
    wide = [
        mean + (some - mean) * np.sqrt(size / (size - 1)) if size > 1 else np.broadcast_to(mean, some.shape)
        for mean, some, size in zip(observed, drawn, sizes, strict=True)
    ]
    return np.asarray(np.mean(wide, axis=0))


def interval(observed: float, drawn: Floats, freedom: int) -> tuple[float, float, float]:
    """The 95 % interval of a difference and its two-sided p-value, from its widened draws (draws,)."""
    if not observed and not drawn.any():
        return 0.0, 0.0, 1.0
    tail = ndtr(stdtrit(freedom, (1 - LEVEL) / 2))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    beyond = int(min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0)))
    return float(low), float(high), _p_value(beyond, len(drawn), freedom)


def smallest_p(clusters: Clusters, draws: int) -> float:
    """What `interval` gives where no draw is on the other side of 0."""
    return _p_value(0, draws, clusters.freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


def _weights(rng: np.random.Generator, size: int, draws: int) -> Iterator[Floats]:
    """How often each of `size` clusters is drawn, in chunks (≤ draws, size)."""
    step = max(1, CHUNK // size)
    for first in range(0, draws, step):
        count = min(step, draws - first)
        yield rng.multinomial(size, np.full(size, 1 / size), size=count).astype(np.float64)


def _p_value(beyond: int, draws: int, freedom: int) -> float:
    """Two-sided, from the number of draws on the other side of 0 (itself counted as one)."""
    share = min((beyond + 1) / (draws + 1), 0.5)
    return float(2 * stdtr(freedom, ndtri(share)))
