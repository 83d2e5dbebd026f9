"""What systems measure of an utterance beside its distribution, such as its vacuity, and what that tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from amber2_core.distributions import entropy
from amber2_core.metrics import utterance_js

from .groups import FUSION, Entry, Group, main_head
from .runs import Floats
from .table import Column, Row, Table, means_and_sds, table_of

NOTES = (
    "Mean of the measure, and Spearman's rank correlation with the entropy of the raters and with the JS of the head, "
    "over the test utterances of all folds that are measured; mean ± sd over seeds. A measure of doubt that is worth "
    "its name rises with both.",
)


@dataclass(frozen=True, eq=False)
class Measure:
    """One measure of one system of one run."""

    label: str
    entry: Entry  # the system's fusion head, else its main one
    values: Floats  # (seeds, N), NaN: not measured


def measures(group: Group) -> list[Measure]:
    """All that the runs of a group have; they are named by their run only where there are several."""
    found = []
    for run in group.runs:
        for name, values in run.arrays.measures.items():
            system, _, word = name.partition("/")
            heads = {entry.head: entry for entry in group.entries if entry.run is run and entry.system == system}
            entry = heads.get(FUSION) or heads[main_head(list(heads.values()))]
            label = f"{system} {word}" if len(group.runs) == 1 else f"{run.name}: {system} {word}"
            found.append(Measure(label, entry, values))
    return found


def measure_tables(group: Group) -> list[Table]:
    """Whether measures rise with the raters' ambiguity and with the error; none where nothing is measured."""
    target, rows = group.predictions.target, list[Row]()
    for measure in measures(group):
        error = utterance_js(target, measure.entry.probs)  # (seeds, N)
        of_seeds = [
            [np.nanmean(own) if (~np.isnan(own)).any() else np.nan for own in measure.values],
            [spearman(own, entropy(target)) for own in measure.values],
            [spearman(own, js) for own, js in zip(measure.values, error, strict=True)],
        ]
        place = {"entry": measure.label, "head": measure.entry.head, "n": int((~np.isnan(measure.values)).all(0).sum())}
        rows.append({**place, **means_and_sds(("mean", "with_entropy", "with_js"), map(np.array, of_seeds))})
    columns = [
        Column("entry", "system, measure"), Column("head", "head"), Column("n", "n"), Column("mean", "mean", "score"),
        Column("with_entropy", "ρ with rated entropy", "score"), Column("with_js", "ρ with JS", "score"),
    ]  # fmt: skip
    return [table_of("measures", "Measures of single utterances", columns, rows, NOTES, bold=False)] if rows else []


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation of two (N,), over where both are numbers; NaN where either does not vary.

    Numbers that agree to nine digits are a tie: the order of summation must not part equal ambiguities.

    >>> spearman(np.array([1, 2, 3, 4]), np.array([10, 40, np.nan, 90]))
    1.0
    """
    ranks = pd.DataFrame({"a": a, "b": b}).round(9).dropna().rank()
    return float(ranks.corr().to_numpy()[0, 1])
