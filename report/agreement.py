"""How far synthetic raters agree with people: divergences and correlated entropies, over all and by ambiguity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from amber2_core.distributions import ambiguity_bins, bc, entropy, js

from .groups import Group
from .table import ENTRY, SHOWN, Column, Row, Table, metric_columns, scores_of, table_of, title_of

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


def synthetic_tables(group: Group) -> list[Table]:
    """How synthetic raters agree with people, and the scores of every head against them; none where there are none."""
    targets = synthetic_targets(group)
    rows: list[Row] = [
        {"raters": f"of {name}", "ambiguity": what, **asdict(numbers)}
        for name, said in targets.items()
        for what, numbers in by_ambiguity(group.predictions.target, said)
    ]
    if not rows:
        return []
    columns = [
        Column("raters", "synthetic raters"), Column("ambiguity", "ambiguity of people, bits"), Column("n", "n"),
        Column("js", title_of("js"), "score"), Column("bc", title_of("bc"), "score"),
        Column("human_entropy", "entropy of people, bits", "score"),
        Column("synthetic_entropy", "entropy of models, bits", "score"),
        Column("pearson", "entropies, Pearson", "score"), Column("spearman", "entropies, Spearman", "score"),
    ]  # fmt: skip
    columns = columns if len(targets) > 1 else columns[1:]
    notes = [
        "Of the n test utterances that synthetic raters rated, what they say against what people say. Below all stand "
        "the tertiles of people's entropy, fewer where many utterances are equally ambiguous. Within one of these the "
        "entropy of people hardly varies, which lowers correlations."
    ]
    against_people = table_of("agreement", "Synthetic raters against people", columns, rows, notes, bold=False)
    rows = [
        {"entry": entry.label, "n": int(own.drop_duplicates("fold")["n"].sum()), **scores_of(own, SHOWN)}
        for entry in group.entries
        if len(own := entry.against_synthetic)
    ]
    learnt = [f"{run.name} learnt {voters} votes" for run in group.runs if (voters := run.settings.get("targets"))]
    notes = [
        "Not the results of these systems, which are scored by people's targets above: here what synthetic raters say "
        f"is the target, on the n test utterances that they rated. {'; '.join(learnt)}.",
        f"{group.spread}.",
    ]
    columns = [ENTRY, Column("n", "n"), *metric_columns(group.having(SHOWN))]
    return [
        against_people,
        table_of("against-synthetic", "Every head against synthetic raters", columns, rows, notes, bold=False),
    ]
