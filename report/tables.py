"""The tables of a group of runs: the paper's, every fold, every setting, versions, and what others published."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from amber2_core.kinds import MULTI_LABEL
from amber2_core.metrics import METRICS, MULTI_LABEL_METRICS
from amber2_core.run_folder import fold_means
from amber2_core.tables import Texts

from .agreement import by_ambiguity, synthetic_targets
from .analysis import bins_of, confusion_counts, confusion_shares, scores_by_bin, vote_shares
from .ensembles import ensemble_notes
from .groups import Entry, Group, slugs
from .measures import measure_tables
from .provenance import remarks, stimulus
from .subsets import subset_tables
from .table import (
    CLASSIFICATION,
    DISTRIBUTION,
    ENTRY,
    SHOWN,
    Column,
    Row,
    Table,
    means_and_sds,
    table_of,
    title_of,
)

# Numbers that others have printed, each under the metric that it measures: NAME, and NAME_sd where a spread was printed
# with it; `note`: what a reader must know of the row
PUBLISHED = Path(__file__).parent / "published.csv"
# SHOWN metrics first, then what was said under other names
AGAINST_PUBLISHED = (*DISTRIBUTION, "js_distance_nats", *CLASSIFICATION, "uar", "macro_f1_threshold")
SPREAD = "Mean ± sd over {seeds} seeds of the mean over {folds} test folds; bold is the best of its column."
CONSTANT = 1e-6  # probabilities that differ by less are the same


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
        rows = [{"entry": entry.label, **_scores(entry.tested, metrics)} for entry in entries]
        notes = [_spread(group), *_head_notes(group), *_expert_notes(group), *coverage_notes(group, entries)]
        notes += [*ensemble_notes(group), *blank_notes(group, metrics)]
        notes += remarks(group.runs) if entries is mains else []
        tables.append(table_of(name, caption, [ENTRY, *_metric_columns(group, metrics)], rows, notes, like=like))
    return tables


def published_tables(group: Group) -> list[Table]:
    """Table 5: our rows, and what others printed for the same corpus, with the traps under it; none if nothing was."""
    printed = pd.read_csv(PUBLISHED)
    theirs = printed[printed["corpus"] == group.corpus].rename(columns={"method": "entry"})
    if not len(theirs):
        return []
    ours = [{"entry": f"{entry.label} (this run)", **_scores(entry.tested, AGAINST_PUBLISHED)} for entry in group.mains]
    notes = [
        _spread(group).partition(";")[0] + ".",
        *coverage_notes(group, group.mains),
        *theirs["note"].dropna().unique(),
        "Printed numbers come from other features, folds and label sets: they orient, they do not compare.",
    ]
    columns = [ENTRY, *(Column(name, title_of(name), "score") for name in AGAINST_PUBLISHED)]
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
            rows.append({"entry": label, "tested_on": tested_on, "n": n, **_scores(entry.tested, SHOWN)})
    columns = [ENTRY, Column("tested_on", "tested on"), Column("n", "n")]
    columns += [Column(name, title_of(name), "score") for name in SHOWN]
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
            **_scores(own, metrics),
        }
        for entry in group.entries
        for fold, own in entry.tested.groupby("fold")
    ]
    columns = [
        ENTRY,
        Column("fold", "fold"),
        Column("n", "n"),
        *_metric_columns(group, metrics),
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
    columns = [ENTRY, Column("ambiguity", "ambiguity, bits"), Column("n", "n"), *_metric_columns(group, METRICS)]
    note = "Mean ± sd over seeds of the metric over the test utterances of all folds in the bin."
    notes = [note, *coverage_notes(group, group.mains)]
    return table_of("ambiguity", "Scores by ambiguity of the raters", columns, rows, notes, bold=False)


def by_table(group: Group, column: str, name: str, values: Texts) -> Table:
    """Scores of the test utterances by what a column (N,) says of each, such as the gender of who speaks."""
    metrics = [metric for metric in (*SHOWN, "uar") if metric in group.metrics]
    target, rows = group.predictions.target, []
    for entry, value in itertools.product(group.mains, sorted(set(values), key=_natural)):
        own = np.flatnonzero((values == value) & entry.there)
        scores = [METRICS[metric](target[own], entry.probs[:, own]) for metric in metrics]
        place = {"entry": entry.label, "group": value or None, "n": len(own)}
        rows.append({**place, **means_and_sds(metrics, scores)})
    columns = [ENTRY, Column("group", column), Column("n", "n"), *_metric_columns(group, metrics)]
    notes = [
        "Mean ± sd over seeds of the metric over the n test utterances of all folds that are of the group. Few "
        "utterances make noisy scores, and whether groups differ is not tested.",
        *coverage_notes(group, group.mains),
    ]
    return table_of(f"by-{name}", f"Scores by {column}", columns, rows, notes, bold=False)


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
    agreement = table_of("agreement", "Synthetic raters against people", columns, rows, notes, bold=False)
    rows = [
        {"entry": entry.label, "n": int(own.drop_duplicates("fold")["n"].sum()), **_scores(own, SHOWN)}
        for entry in group.entries
        if len(own := entry.against_synthetic)
    ]
    learnt = [f"{run.name} learnt {voters} votes" for run in group.runs if (voters := run.settings.get("targets"))]
    notes = [
        "Not the results of these systems, which are scored by people's targets above: here what synthetic raters say "
        f"is the target, on the n test utterances that they rated. {'; '.join(learnt)}.",
        _spread(group).partition(";")[0] + ".",
    ]
    columns = [ENTRY, Column("n", "n"), *_metric_columns(group, SHOWN)]
    return [
        agreement,
        table_of("against-synthetic", "Every head against synthetic raters", columns, rows, notes, bold=False),
    ]


def multi_label_tables(group: Group) -> list[Table]:
    """Systems that predict which classes are present, in metrics of their own; none where there are none."""
    rows: list[Row] = []
    for run in group.runs:
        own = run.tested[run.tested["system"].map(run.kinds.get) == MULTI_LABEL]
        for (system, head), tested in own.groupby(["system", "head"], sort=False):
            label = f"{system} {head}" if len(group.runs) == 1 else f"{run.name}: {system} {head}"
            above = run.arrays.thresholds[str(system)]
            words = f"{above.min():.2f}–{above.max():.2f}" if np.ptp(above) else f"{above.min():.2f}"
            rows.append({"entry": label, "threshold": words, **_scores(tested, list(MULTI_LABEL_METRICS))})
    if not rows:
        return []
    columns = [ENTRY, Column("threshold", "threshold, of dev")]
    columns += [Column(name, title_of(name), "score") for name in MULTI_LABEL_METRICS]
    notes = [
        "A class is present where any counting vote is for it. These systems predict the probability of that, and no "
        "distribution: their scores compare with none of other tables. The threshold of each run is that of the best "
        "macro F1 on dev. Acc is, of the classes of an utterance that are present or predicted so, the share that is "
        "both, as papers on CMU-MOSEI and M3ED print it. Precision, recall and micro F1 are over all classes together.",
        "Mean ± sd over seeds of the mean over test folds; bold is the best of its column.",
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
        row = {"entry": entry.label, "differs_in": "; ".join(changed) or None, **_scores(entry.tested, SHOWN)}
        rows.append({**row, "change": entry.per_seed("js").mean() - base})
    columns = [ENTRY, Column("differs_in", "differs in"), *_metric_columns(group, SHOWN)]
    columns.append(Column("change", "change of JS", "change"))
    notes = [_spread(group), "Whether a change is more than chance: see the differences on test."]
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
            rows.append(dict(zip(varied, setting, strict=True)) | _scores(own, SHOWN) | {"folds_that_chose_it": chosen})
        rows.sort(key=lambda row: np.inf if row["js"] is None else row["js"])
        columns = [*(Column(name, name.replace("_", " ")) for name in varied), *_metric_columns(group, SHOWN)]
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


def coverage_notes(group: Group, entries: Sequence[Entry]) -> list[str]:
    """In words, which heads were scored on fewer utterances than there are, in fewer folds, or not at all."""
    sizes = {fold: len(rows) for fold, rows in group.predictions.folds.items()}
    fewer, notes = [], []
    for entry in entries:
        scored = entry.tested[entry.tested["n"] > 0].drop_duplicates("fold", keep="last")
        count, of = int(scored["n"].sum()), sum(sizes[fold] for fold in scored["fold"])
        if count < of:
            fewer.append(f"{entry.label} {count:,} of {of:,}")
        unscored = entry.tested[entry.tested["n"] == 0]["fold"]
        if len(unscored):
            notes.append(
                f"{entry.label} has no score in fold {', '.join(map(str, sorted(unscored.unique())))}, where no "
                "utterance of train or none of test has its modality, or a prediction, or none of dev to choose its "
                "epoch by; its mean is over the other folds."
            )
        if entry.diverged:
            notes.append(f"{entry.label} diverged at once in some run, and has no mean.")
    notes += constant_notes(group, entries)
    if fewer:
        notes.insert(
            0,
            f"Some utterances lack a modality, or a prediction, and a head is scored on those that have it: "
            f"{', '.join(fewer)}. Scores on different utterances do not compare; the differences on test are on common "
            "ones.",
        )
    return notes


def constant_notes(group: Group, entries: Sequence[Entry]) -> list[str]:
    """In words, which heads predict one and the same for all utterances of a test fold, whatever these are."""
    notes = []
    for entry in entries:
        same = []
        for fold, rows in group.predictions.folds.items():
            probs = entry.probs[:, rows[entry.there[rows]]]  # (seeds, n, C)
            if probs.shape[1] > 1 and (np.ptp(probs, axis=1) < CONSTANT).all(axis=-1).any():
                same.append(fold)
        if same:
            where = "any fold" if len(same) == len(group.predictions.folds) else f"fold {', '.join(map(str, same))}"
            notes.append(
                f"{entry.label} predicts the same for every utterance of {where}, in some run at least: it learnt "
                "nothing that tells them apart, as where features are equal (empty transcripts, constant vectors)."
            )
    return notes


def blank_notes(group: Group, metrics: Iterable[str]) -> list[str]:
    """Why metrics are blank in every row."""
    tested = pd.concat([run.tested for run in group.runs])
    scored = tested[(tested["n"] > 0) & (tested["epoch"] != 0)]
    notes = []
    for name in metrics:
        if name not in scored or not len(scored) or scored[name].notna().any():
            continue
        if name == "r2" and len(group.predictions.emotions) == 2:
            why = "two shares always lie on one line, so that it would be 1 whatever is predicted"
        elif name == "accuracy_untied":
            why = "no test utterance has one largest share"
        else:
            why = "it tells nothing of these emotions and test folds"
        notes.append(f"{METRICS[name].title if name in METRICS else name} is blank: {why}.")
    return notes


def _metric_columns(group: Group, metrics: Iterable[str]) -> list[Column]:
    return [Column(name, title_of(name), "score") for name in metrics if name in group.metrics]


def _scores(rows: pd.DataFrame, metrics: Sequence[str]) -> Row:
    """Over the seeds of some rows of results.csv, of the mean over folds: every metric, and its spread as NAME_sd."""
    table = rows.reindex(columns=["seed", "n", *metrics])
    return means_and_sds(metrics, fold_means(table, metrics))


def _head_notes(group: Group) -> list[str]:
    """That a head was asked for, and which systems have none of that name."""
    if group.head is None:
        return []
    told = {(id(entry.run), entry.system) for entry in group.mains}
    without = [
        entry.label.removesuffix(f" {entry.head}")
        for entry in group.entries
        if (id(entry.run), entry.system) not in told
    ]
    lacking = f"; left out, having none: {', '.join(dict.fromkeys(without))}" if without else ""
    return [f"Systems are told by their head {group.head}, as was asked for{lacking}."]


def _natural(text: str) -> tuple[bool, bool, float, str]:
    """What numbers are sorted by as numbers, before words, and nothing at all after both."""
    try:
        return False, False, float(text), text
    except ValueError:
        return not text, True, 0.0, text


def _expert_notes(group: Group) -> list[str]:
    """What must be said where heads were trained to teach, not to match the raters."""
    first = group.mains[0]
    if not {"lambda_expert", "student"} <= {*first.settings} or first.settings["lambda_expert"].iloc[0] != 0:
        return []
    return [
        f"The heads of {first.system} beside the {first.settings['student'].iloc[0]} head were trained without a rater "
        "loss of their own (lambda expert 0): their scores tell how the student was taught, they are no results for "
        "one modality."
    ]


def _spread(group: Group) -> str:
    seeds = sorted({len(entry.probs) for entry in group.entries if not entry.members})
    return SPREAD.format(seeds=" or ".join(map(str, seeds)), folds=len(group.predictions.folds))
