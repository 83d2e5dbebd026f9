"""The tables of a group of runs: the paper's, every fold, every setting, versions, and what others published."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from amber2_core.distributions import SHARE_TOLERANCE, largest
from amber2_core.kinds import MULTI_LABEL
from amber2_core.metrics import METRICS, MULTI_LABEL_METRICS
from amber2_core.tables import Texts

from .agreement import synthetic_tables
from .analysis import bins_of, confusion_counts, confusion_shares, scores_by_bin, vote_shares
from .ensembles import ensemble_notes
from .groups import Entry, Group, slugs
from .measures import measure_tables
from .notes import blank_notes, coverage_notes, expert_notes, head_notes
from .provenance import remarks, stimulus
from .runs import Floats
from .table import (
    CLASSIFICATION,
    DISTRIBUTION,
    ENTRY,
    SHOWN,
    Column,
    Row,
    Table,
    means_and_sds,
    metric_columns,
    scores_of,
    table_of,
    title_of,
)

# Numbers that others have printed, each under the metric that it measures: NAME, and NAME_sd where a spread was printed
# with it; `note`: what a reader must know of the row
PUBLISHED = Path(__file__).parent / "published.csv"
# SHOWN metrics first, then what was said under other names
AGAINST_PUBLISHED = (*DISTRIBUTION, "js_distance_nats", *CLASSIFICATION, "uar", "macro_f1_threshold")
BEST = "bold is the best of its column."
SUBSET_NOTES = (
    "Majority: one emotion has more than half of the votes; plurality: one has more than any other; all: every test "
    "utterance. Each subset holds the one before. The heads are the same for all three: the subsets differ in what is "
    "tested, not in what was trained on.",
    "Mean ± sd over seeds of the mean over the test folds that have such utterances.",
)


def all_tables(
    group: Group, comparisons: pd.DataFrame, method: str, by: Mapping[str, Texts] | None = None
) -> dict[str, Table]:
    """Every table that a group has, by name; `by`: columns to group the test utterances by."""
    if not group.entries:
        return {table.name: table for table in multi_label_tables(group)}
    tables = [*result_tables(group), *subset_tables(group), *published_tables(group)]
    if len(comparisons):
        tables.append(significance_table(comparisons, method))
    tables += (
        [
            by_table(group, column, name, values)
            for (column, values), name in zip(by.items(), slugs(by).values(), strict=True)
        ]
        if by
        else []
    )
    tables += [*ablation_tables(group), fold_table(group), ambiguity_table(group), *measure_tables(group)]
    tables += [*setting_tables(group), *synthetic_tables(group), *multi_label_tables(group)]
    return {table.name: table for table in tables}


def result_tables(group: Group) -> list[Table]:
    """The paper's Tables 1 to 4 and the table with every metric."""
    heads, mains = sorted(group.entries, key=lambda entry: entry.system == "amber2"), group.mains
    tables = []
    for name, caption, entries, metrics, like in (
        ("heads-distribution", "Every head, distribution metrics", heads, DISTRIBUTION, "Table 1"),
        ("heads-classification", "Every head, classification metrics", heads, CLASSIFICATION, "Table 2"),
        ("systems-distribution", "Systems, distribution metrics", mains, DISTRIBUTION, "Table 3"),
        ("systems-classification", "Systems, classification metrics", mains, CLASSIFICATION, "Table 4"),
        ("all-metrics", "Every head, every metric", heads, group.metrics, ""),
    ):
        rows = [{"entry": entry.label, **scores_of(entry.tested, metrics)} for entry in entries]
        notes = [f"{group.spread}; {BEST}", *head_notes(group), *expert_notes(group), *coverage_notes(group, entries)]
        notes += [*ensemble_notes(group), *blank_notes(group, metrics)]
        notes += remarks(group.runs) if entries is mains else []
        tables.append(table_of(name, caption, [ENTRY, *metric_columns(group.having(metrics))], rows, notes, like=like))
    return tables


def published_tables(group: Group) -> list[Table]:
    """Table 5: our rows, and what others printed for the same corpus, with the traps under it; none if nothing was."""
    printed = pd.read_csv(PUBLISHED)
    theirs = printed[printed["corpus"] == group.corpus].rename(columns={"method": "entry"})
    if not len(theirs):
        return []
    ours = [
        {"entry": f"{entry.label} (this run)", **scores_of(entry.tested, AGAINST_PUBLISHED)} for entry in group.mains
    ]
    notes = [
        f"{group.spread}.",
        *coverage_notes(group, group.mains),
        *theirs["note"].dropna().unique(),
        "Printed numbers come from other features, folds and label sets: they orient, they do not compare.",
    ]
    columns = [ENTRY, *metric_columns(AGAINST_PUBLISHED)]
    rows: list[Row] = [*ours, *theirs.to_dict("records")]
    return [table_of("published", "Beside published numbers", columns, rows, notes, like="Table 5", bold=False)]


def side_by_side(groups: Sequence[Group]) -> Table:
    """The systems of several test sets, which no row of can be compared with another's."""
    rows = []
    for group in groups:
        for entry in group.mains:
            votes = stimulus(entry.run)
            tested_on = f"{group.corpus}, {votes} votes" if votes else group.corpus
            n = len(group.predictions.id)
            label = f"{entry.run.name}: {entry.system} {entry.head}"
            rows.append({"entry": label, "tested_on": tested_on, "n": n, **scores_of(entry.tested, SHOWN)})
    columns = [ENTRY, Column("tested_on", "tested on"), Column("n", "n"), *metric_columns(SHOWN)]
    notes = [
        "Not comparable row by row: rows of different test sets have other utterances, folds or targets. A difference "
        "between them is one of what was asked, not of who answered better.",
        "Mean ± sd over seeds of the mean over test folds.",
    ]
    return table_of("side-by-side", "Different test sets side by side", columns, rows, notes, bold=False)


def fold_table(group: Group) -> Table:
    """What stands behind the means: every fold, over its seeds."""
    metrics = (*SHOWN, "uar", "ece")
    rows = [
        {
            "entry": entry.label,
            "fold": fold,
            "n": own["n"].iloc[0],
            **scores_of(own, metrics),
        }
        for entry in group.entries
        for fold, own in entry.tested.groupby("fold")
    ]
    columns = [
        ENTRY,
        Column("fold", "fold"),
        Column("n", "n"),
        *metric_columns(group.having(metrics)),
    ]
    notes = ["Mean ± sd over seeds.", *coverage_notes(group, group.entries)]
    return table_of("folds", "Every test fold", columns, rows, notes, bold=False)


def ambiguity_table(group: Group) -> Table:
    """The numbers behind Figure 2: every metric in every bin of ambiguity."""
    bins, rows = bins_of(group), []
    for entry in group.mains:
        scores = scores_by_bin(group, entry, bins)
        counts = np.bincount(bins.member[entry.rows], minlength=len(bins.counts))
        for b, count in enumerate(counts):
            place = {"entry": entry.label, "ambiguity": f"{bins.edges[b]:.2f}–{bins.edges[b + 1]:.2f}", "n": count}
            rows.append({**place, **means_and_sds(scores, (of_seeds[:, b] for of_seeds in scores.values()))})
    columns = [ENTRY, Column("ambiguity", "ambiguity, bits"), Column("n", "n"), *metric_columns(group.having(METRICS))]
    note = "Mean ± sd over seeds of the metric over the test utterances of all folds in the bin."
    notes = [note, *coverage_notes(group, group.mains)]
    return table_of("ambiguity", "Scores by ambiguity of the raters", columns, rows, notes, bold=False)


def by_table(group: Group, column: str, name: str, values: Texts) -> Table:
    """Scores of the test utterances by what a column (N,) says of each, such as the gender of who speaks."""
    metrics = group.having((*SHOWN, "uar"))
    target, rows = group.predictions.target, []
    for entry, value in itertools.product(group.mains, sorted(set(values), key=_natural)):
        own = np.flatnonzero((values == value) & entry.there)
        scores = [METRICS[metric](target[own], entry.probs[:, own]) for metric in metrics]
        place = {"entry": entry.label, "group": value or None, "n": len(own)}
        rows.append({**place, **means_and_sds(metrics, scores)})
    columns = [ENTRY, Column("group", column), Column("n", "n"), *metric_columns(metrics)]
    notes = [
        "Mean ± sd over seeds of the metric over the n test utterances of all folds that are of the group. Few "
        "utterances make noisy scores, and whether groups differ is not tested.",
        *coverage_notes(group, group.mains),
    ]
    return table_of(f"by-{name}", f"Scores by {column}", columns, rows, notes, bold=False)


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
    metrics = group.having(SHOWN)
    rows: list[Row] = []
    for entry in group.mains:
        for name, members in found.items():
            scores = _of_folds(group, entry, members, metrics)
            place = {"entry": entry.label, "subset": name, "n": int((members & entry.there).sum())}
            rows.append({**place, **means_and_sds(metrics, scores)})
    columns = [ENTRY, Column("subset", "test utterances"), Column("n", "n"), *metric_columns(metrics)]
    caption = "Scores on utterances with a majority, with a plurality, and on all"
    return [table_of("subsets", caption, columns, rows, SUBSET_NOTES, bold=False)]


def multi_label_tables(group: Group) -> list[Table]:
    """Systems that predict which classes are present, in metrics of their own; none where there are none."""
    rows: list[Row] = []
    for run in group.runs:
        own = run.tested[run.tested["system"].map(run.kinds.get) == MULTI_LABEL]
        for (system, head), tested in own.groupby(["system", "head"], sort=False):
            label = f"{system} {head}" if len(group.runs) == 1 else f"{run.name}: {system} {head}"
            above = run.arrays.thresholds[str(system)]
            words = f"{above.min():.2f}–{above.max():.2f}" if np.ptp(above) else f"{above.min():.2f}"
            rows.append({"entry": label, "threshold": words, **scores_of(tested, list(MULTI_LABEL_METRICS))})
    if not rows:
        return []
    columns = [ENTRY, Column("threshold", "threshold, of dev"), *metric_columns(MULTI_LABEL_METRICS)]
    notes = [
        "A class is present where any counting vote is for it. These systems predict the probability of that, and no "
        "distribution: their scores compare with none of other tables. The threshold of each run is that of the best "
        "macro F1 on dev. Acc is, of the classes of an utterance that are present or predicted so, the share that is "
        "both, as papers on CMU-MOSEI and M3ED print it. Precision, recall and micro F1 are over all classes together.",
        f"Mean ± sd over seeds of the mean over test folds; {BEST}",
    ]
    return [table_of("multi-label", "Which classes are present", columns, rows, notes)]


def confusion_frame(group: Group, entry: Entry) -> pd.DataFrame:
    """The numbers behind the confusion figures: a row for each pair of emotions, of those that `entry` predicts.

    Returns:
        `rated` and `predicted`; `count`, of the utterances with that label those that are predicted so, over all seeds;
        `share`, of the label's utterances; `vote_share`, of a vote for `rated` the probability of `predicted`.
    """
    emotions = group.predictions.emotions
    pairs = pd.MultiIndex.from_product([emotions, emotions], names=["rated", "predicted"])
    parts = {
        "count": confusion_counts(group, entry).astype(np.int64),
        "share": confusion_shares(group, entry),
        "vote_share": vote_shares(group, entry),
    }
    return pd.DataFrame({name: part.ravel() for name, part in parts.items()}, index=pairs).reset_index()


def ablation_tables(group: Group) -> list[Table]:
    """What each other version of the first system differs in, and what that changes; none where there is none."""
    reference, *others = group.mains
    own = reference.chosen
    versions = [entry for entry in others if (chosen := entry.chosen).keys() == own.keys() and chosen != own]
    if not versions:
        return []
    base, rows = reference.per_seed("js").mean(), []
    for entry in (reference, *versions):
        changed = [f"{name} {value}" for name, value in entry.chosen.items() if value != own[name]]
        row = {"entry": entry.label, "differs_in": "; ".join(changed) or None, **scores_of(entry.tested, SHOWN)}
        rows.append({**row, "change": entry.per_seed("js").mean() - base})
    columns = [ENTRY, Column("differs_in", "differs in"), *metric_columns(group.having(SHOWN))]
    columns.append(Column("change", "change of JS", "change"))
    notes = [f"{group.spread}; {BEST}", "Whether a change is more than chance: see the differences on test."]
    notes += coverage_notes(group, [reference, *versions])
    return [table_of("ablation", f"Versions of {reference.label}", columns, rows, notes)]


def setting_tables(group: Group) -> list[Table]:
    """Every setting of a grid on dev, by run and system, the best first."""
    note = (
        "Mean ± sd over seeds of the mean over dev folds. Each fold tests the setting with its own lowest dev JS; no "
        "setting was chosen by test."
    )
    tables = []
    for main in group.mains:
        varied = main.varied
        if not varied:
            continue
        rows: list[Row] = []
        for setting, own in main.dev.groupby(varied, sort=False, dropna=False):
            chosen = own.loc[own["selected"] == 1, "fold"].nunique()
            rows.append(
                dict(zip(varied, setting, strict=True)) | scores_of(own, SHOWN) | {"folds_that_chose_it": chosen}
            )
        rows.sort(key=lambda row: np.inf if row["js"] is None else row["js"])
        columns = [*(Column(name, name.replace("_", " ")) for name in varied), *metric_columns(group.having(SHOWN))]
        columns.append(Column("folds_that_chose_it", "chosen in folds"))
        caption = f"Every setting of {main.label}, on dev"
        tables.append(table_of(f"settings-{group.slugs[main.label]}", caption, columns, rows, [note]))
    return tables


def significance_table(comparisons: pd.DataFrame, method: str) -> Table:
    """Differences with their intervals; and on how many utterances, where that is not the same for all."""
    frame = comparisons.rename(columns={"low": "interval_low", "high": "interval_high"})
    frame["comparison"] = frame["first"] + " − " + frame["second"]
    frame["metric"] = frame["metric"].map(title_of)
    columns = [
        Column("comparison", "comparison"), Column("n", "n"), Column("metric", "metric"),
        Column("difference", "difference", "change"), Column("interval", "95 % interval", "interval"),
        Column("p", "p", "p"), Column("p_holm", "p, Holm", "p"), Column("seeds_agree", "seeds that agree", "share"),
    ]  # fmt: skip
    notes = [method]
    if frame["n"].nunique() > 1:
        notes.append(
            "Where a head predicts fewer utterances, both are scored on the n that both predict, and only there."
        )
    else:
        columns.remove(Column("n", "n"))
    return table_of("significance", "Differences on test", columns, frame.to_dict("records"), notes)


def _natural(text: str) -> tuple[bool, bool, float, str]:
    """What numbers are sorted by as numbers, before words, and nothing at all after both."""
    try:
        return False, False, float(text), text
    except ValueError:
        return not text, True, 0.0, text


def _of_folds(group: Group, entry: Entry, members: npt.NDArray[np.bool_], metrics: list[str]) -> Floats:
    """Metrics on some utterances (N,), averaged over the folds that have any → (metrics, seeds)."""
    target, nothing = group.predictions.target, np.full((len(metrics), len(entry.probs)), np.nan)
    folds = [own for rows in group.predictions.folds.values() if len(own := rows[(members & entry.there)[rows]])]
    if entry.diverged or not folds:
        return nothing
    scores = [[METRICS[name](target[own], entry.probs[:, own]) for name in metrics] for own in folds]
    return np.asarray(np.mean(scores, axis=0))
