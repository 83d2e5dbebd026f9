"""Scores by how far the raters agree: on test utterances with a majority, with a plurality, and on all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from amber2_core.distributions import SHARE_TOLERANCE, largest
from amber2_core.metrics import METRICS

from .groups import Entry, Group
from .runs import Floats
from .table import ENTRY, SHOWN, Column, Row, Table, means_and_sds, table_of, title_of

NOTES = (
    "Majority: one emotion has more than half of the votes; plurality: one has more than any other; all: every test "
    "utterance. Each subset holds the one before. The heads are the same for all three: the subsets differ in what is "
    "tested, not in what was trained on.",
    "Mean ± sd over seeds of the mean over the test folds that have such utterances.",
)


def subsets(target: npt.NDArray[np.float32]) -> Mapping[str, npt.NDArray[np.bool_]]:
    """Which targets (N, C) have a majority, which a plurality, and all (N,), each a subset of the next."""
    return {
        "majority": np.asarray(target.max(-1) > 0.5 + SHARE_TOLERANCE),
        "plurality": np.asarray(largest(target).sum(-1) == 1),
        "all": np.ones(len(target), dtype=bool),
    }


def subset_tables(group: Group) -> list[Table]:
    """The main scores on the three subsets, side by side; none where every test utterance has a majority."""
    found = subsets(group.predictions.target)
    if found["majority"].all():
        return []
    metrics = [name for name in SHOWN if name in group.metrics]
    rows: list[Row] = []
    for entry in group.mains:
        for name, members in found.items():
            scores = _scores(group, entry, members, metrics)
            place = {"entry": entry.label, "subset": name, "n": int((members & entry.there).sum())}
            rows.append({**place, **means_and_sds(metrics, scores)})
    columns = [ENTRY, Column("subset", "test utterances"), Column("n", "n")]
    columns += [Column(name, title_of(name), "score") for name in metrics]
    caption = "Scores on utterances with a majority, with a plurality, and on all"
    return [table_of("subsets", caption, columns, rows, NOTES, bold=False)]


def _scores(group: Group, entry: Entry, members: npt.NDArray[np.bool_], metrics: list[str]) -> Floats:
    """Metrics on some utterances (N,), averaged over the folds that have any → (metrics, seeds)."""
    target, nothing = group.predictions.target, np.full((len(metrics), len(entry.probs)), np.nan)
    folds = [own for rows in group.predictions.folds.values() if len(own := rows[(members & entry.there)[rows]])]
    if entry.diverged or not folds:
        return nothing
    scores = [[METRICS[name](target[own], entry.probs[:, own]) for name in metrics] for own in folds]
    return np.asarray(np.mean(scores, axis=0))
