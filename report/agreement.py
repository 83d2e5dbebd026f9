"""How far synthetic raters agree with people: divergences and correlated entropies, over all and by ambiguity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from amber2_core.distributions import ambiguity_bins, bc, entropy, js

from .groups import Group

TERTILES = 3


@dataclass(frozen=True)
class Agreement:
    """Of n utterances that both rated; NaN where it has no value."""

    n: int
    js: float  # mean, bits
    bc: float  # mean
    human_entropy: float  # mean, bits
    synthetic_entropy: float
    # of the two entropies over utterances: whether models are undecided where people are
    pearson: float
    spearman: float


def agreement(human: npt.ArrayLike, synthetic: npt.ArrayLike) -> Agreement:
    """Agreement of two distributions (n, C) of each utterance; of ties in entropy Spearman's ρ takes the mean rank."""
    y, q = np.asarray(human, np.float64), np.asarray(synthetic, np.float64)
    if not len(y):
        return Agreement(0, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan)
    ours, theirs = (entropy(p).round(9) for p in (y, q))  # the order of summation must not part equal ambiguities
    ranks = [pd.Series(bits).rank().to_numpy(np.float64) for bits in (ours, theirs)]
    return Agreement(
        n=len(y),
        js=float(js(y, q).mean()),
        bc=float(bc(y, q).mean()),
        human_entropy=float(ours.mean()),
        synthetic_entropy=float(theirs.mean()),
        pearson=pearson(ours, theirs),
        spearman=pearson(ranks[0], ranks[1]),
    )


def pearson(x: npt.NDArray[np.floating[Any]], y: npt.NDArray[np.floating[Any]]) -> float:
    """Pearson's r of two (n,); NaN where one of them does not vary."""
    if len(x) < 2 or not np.ptp(x) or not np.ptp(y):
        return np.nan
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def by_ambiguity(human: npt.NDArray[np.float32], synthetic: npt.NDArray[np.float32]) -> Iterator[tuple[str, Agreement]]:
    """(what, agreement) of all (N, C) that synthetic raters rated (no NaN), and of each tertile of people's entropy.

    Tertiles are of the utterances that both rated; fewer where quantiles coincide, as with few raters.
    """
    rows = np.flatnonzero(~np.isnan(synthetic).any(axis=1))
    human, synthetic = human[rows], synthetic[rows]
    yield "all", agreement(human, synthetic)
    member, edges = ambiguity_bins(human, count=TERTILES, edges="quantiles")
    for b in range(len(edges) - 1):
        own = member == b
        yield f"{edges[b]:.2f}–{edges[b + 1]:.2f}", agreement(human[own], synthetic[own])


def synthetic_targets(group: Group) -> dict[str, npt.NDArray[np.float32]]:
    """Name of a run → (N, C) what its synthetic raters say, of the runs that have any; runs with the same once."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    for run in group.runs:
        said = run.arrays.synthetic
        if said is not None and not any(np.array_equal(said, other, equal_nan=True) for other in found.values()):
            found[run.name] = said
    return found
