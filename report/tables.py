"""From a group of runs to the paper's tables: systems × heads × metrics, per fold, per setting, beside published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from amber2_core.metrics import METRICS

from .analysis import bins_of, scores_by_bin
from .coverage import coverage_notes
from .groups import Entry, Group, dev_rows, slug
from .published import PUBLISHED
from .runs import Row, fold_mean
from .settings import by_setting, chosen_settings, setting_of, varied_settings
from .significance import Comparison
from .table import METRIC_TITLES, Cell, Column, Interval, Number, PValue, Table, with_best

DISTRIBUTION = ("js", "bc", "r2")
CLASSIFICATION = ("macro_f1", "weighted_f1", "accuracy")
# SHOWN metrics first, then what was said under other names
AGAINST_PUBLISHED = (*DISTRIBUTION, "js_distance_nats", *CLASSIFICATION, "uar", "macro_f1_threshold")
SPREAD = "Mean ± sd over {seeds} seeds of the mean over {folds} test folds; bold is the best of its column."
ENTRY = Column("entry", "system, head")


def result_tables(group: Group) -> list[Table]:
    """The paper's Tables 1 to 4 and the table with every metric."""
    by_head = sorted(group.entries, key=lambda entry: entry.system == "amber2")
    note = [_spread(group), *_experts(group), *coverage_notes(group, group.entries)]
    mains = [_spread(group), *_experts(group), *coverage_notes(group, group.mains)]
    return [
        _table("heads-distribution", "Every head, distribution metrics", by_head, DISTRIBUTION, note, "Table 1"),
        _table("heads-classification", "Every head, classification metrics", by_head, CLASSIFICATION, note, "Table 2"),
        _table("systems-distribution", "Systems, distribution metrics", group.mains, DISTRIBUTION, mains, "Table 3"),
        _table(
            "systems-classification", "Systems, classification metrics", group.mains, CLASSIFICATION, mains, "Table 4"
        ),
        _table("all-metrics", "Every head, every metric", by_head, tuple(METRICS), note),
    ]


def published_table(group: Group) -> Table:
    """Table 5: our rows, and what others printed for the same corpus, with the traps under it."""
    columns = [ENTRY, *_metric_columns(AGAINST_PUBLISHED)]
    ours: list[list[Cell]] = [
        [f"{entry.label} (this run)", *_scores(entry, AGAINST_PUBLISHED)] for entry in group.mains
    ]
    theirs = [row for row in PUBLISHED if row.corpus == group.corpus]
    rows = [
        *ours,
        *(
            _published_row(row.method, [row.scores.get(name, (None, None)) for name in AGAINST_PUBLISHED])
            for row in theirs
        ),
    ]
    traps = list(dict.fromkeys(row.note for row in theirs if row.note))
    if theirs:
        traps.append(
            "Printed numbers come from other features, folds and label sets: they orient, they do not compare."
        )
    else:
        traps.append(f"Nothing that this project knows of was published for the corpus {group.corpus!r}.")
    return Table(
        "published",
        "Beside published numbers",
        columns,
        rows,
        [_spread(group, bold=False), *coverage_notes(group, group.mains), *traps],
        "Table 5",
    )


def fold_table(group: Group) -> Table:
    """What stands behind the means: every fold, over its seeds."""
    metrics = (*DISTRIBUTION, *CLASSIFICATION, "uar", "ece")
    rows: list[list[Cell]] = []
    for entry in group.entries:
        for fold in sorted({row["fold"] for row in entry.tested}):
            own = [row for row in entry.tested if row["fold"] == fold]
            rows.append([entry.label, str(fold), str(own[0]["n"]), *(_over_seeds(own, name) for name in metrics)])
    columns = [ENTRY, Column("fold", "fold"), Column("n", "n"), *_metric_columns(metrics)]
    return Table(
        "folds", "Every test fold", columns, rows, ["Mean ± sd over seeds.", *coverage_notes(group, group.entries)]
    )


def ambiguity_table(group: Group) -> Table:
    """The numbers behind Figure 2: every metric in every bin of ambiguity."""
    bins = bins_of(group)
    rows: list[list[Cell]] = []
    for entry in group.mains:
        scores = scores_by_bin(group, entry, bins)
        counts = np.bincount(bins.member[entry.rows], minlength=len(bins.counts))
        for b, count in enumerate(counts):
            ends = f"{bins.edges[b]:.2f}–{bins.edges[b + 1]:.2f}"
            rows.append([entry.label, ends, str(count), *(_number(scores[name][:, b].tolist()) for name in METRICS)])
    columns = [ENTRY, Column("ambiguity", "ambiguity, bits"), Column("n", "n"), *_metric_columns(tuple(METRICS))]
    note = "Mean ± sd over seeds of the metric over the test utterances of all folds in the bin."
    return Table(
        "ambiguity", "Scores by ambiguity of the raters", columns, rows, [note, *coverage_notes(group, group.mains)]
    )


def ablation_table(group: Group) -> Table | None:
    """What each other version of the first system differs in, and what that changes; None where there is none."""
    reference, *others = group.mains
    own = chosen_settings(reference)
    versions = [entry for entry in others if (chosen := chosen_settings(entry)).keys() == own.keys() and chosen != own]
    if not versions:
        return None
    metrics = (*DISTRIBUTION, *CLASSIFICATION)
    base = reference.per_seed("js").mean()
    rows: list[list[Cell]] = []
    for entry in (reference, *versions):
        changed = [f"{name} {value}" for name, value in chosen_settings(entry).items() if value != own[name]]
        change = Number(float(entry.per_seed("js").mean() - base), signed=True, digits=4)
        rows.append([entry.label, "; ".join(changed) or "–", *_scores(entry, metrics), change])
    columns = [ENTRY, Column("differs_in", "differs in"), *_metric_columns(metrics), Column("change", "change of JS")]
    notes = [_spread(group), "Whether a change is more than chance: see the differences on test."]
    notes += coverage_notes(group, [reference, *versions])
    return Table("ablation", f"Versions of {reference.label}", columns, with_best(rows, columns), notes)


def setting_tables(group: Group) -> list[Table]:
    """The ablation: every setting of a grid on dev, by run and system, the best first."""
    tables = []
    for main in group.mains:
        rows = dev_rows(main)
        varied = varied_settings(rows)
        if not varied:
            continue
        metrics = (*DISTRIBUTION, *CLASSIFICATION)
        lines: list[tuple[float, list[Cell]]] = []
        for setting, own in by_setting(rows).items():
            values = dict(setting)
            cells = [_seeds_of_fold_means(own, name) for name in metrics]
            chosen = len({row["fold"] for row in own if row["selected"] == 1})
            named = [str(values.get(name, "–")) for name in varied]
            lines.append((np.inf if cells[0].value is None else cells[0].value, [*named, *cells, str(chosen)]))
        columns = [*(Column(name, name.replace("_", " ")) for name in varied), *_metric_columns(metrics)]
        columns.append(Column("folds_that_chose_it", "chosen in folds"))
        tables.append(
            Table(
                f"settings-{slug(main.label)}",
                f"Every setting of {main.label}, on dev",
                columns,
                with_best([row for _, row in sorted(lines, key=lambda line: line[0])], columns),
                [
                    "Mean ± sd over seeds of the mean over dev folds. Each fold tests the setting with its own lowest "
                    "dev JS; no setting was chosen by test."
                ],
            )
        )
    return tables


def significance_table(comparisons: Sequence[Comparison], words: str) -> Table:
    """Differences with their intervals; and on how many utterances, where that is not the same for all."""
    counts = len({c.n for c in comparisons}) > 1
    rows: list[list[Cell]] = [
        [
            f"{c.first} − {c.second}",
            *([str(c.n)] if counts else []),
            METRIC_TITLES[c.metric],
            Number(c.difference, signed=True, digits=4),
            Interval(c.low, c.high),
            PValue(c.p),
            PValue(c.p_holm),
            "–" if c.seeds_agree is None else f"{c.seeds_agree:.0%}",
        ]
        for c in comparisons
    ]
    columns = [
        Column("comparison", "comparison"), *([Column("n", "n")] if counts else []), Column("metric", "metric"),
        Column("difference", "difference"), Column("interval", "95 % interval"), Column("p", "p"),
        Column("p_holm", "p, Holm"), Column("seeds_agree", "seeds that agree"),
    ]  # fmt: skip
    notes = [words]
    if counts:
        notes.append(
            "Where a head predicts fewer utterances, both are scored on the n that both predict, and only there."
        )
    return Table("significance", "Differences on test", columns, rows, notes)


def _table(
    name: str, caption: str, entries: Sequence[Entry], metrics: Sequence[str], notes: Sequence[str], like: str = ""
) -> Table:
    columns = [ENTRY, *_metric_columns(metrics)]
    return Table(
        name, caption, columns, with_best([[e.label, *_scores(e, metrics)] for e in entries], columns), notes, like
    )


def _metric_columns(metrics: Sequence[str]) -> list[Column]:
    return [Column(name, METRIC_TITLES[name]) for name in metrics]


def _published_row(method: str, scores: Sequence[tuple[float | None, float | None]]) -> list[Cell]:
    return [method, *(Number(mean, sd) for mean, sd in scores)]


def _scores(entry: Entry, metrics: Sequence[str]) -> list[Number]:
    return [_seeds_of_fold_means(entry.tested, name) for name in metrics]


def _seeds_of_fold_means(rows: Sequence[Row], metric: str) -> Number:
    seeds = sorted({row["seed"] for row in rows})
    return _number([fold_mean([row for row in rows if row["seed"] == seed], metric) for seed in seeds])


def _over_seeds(rows: Sequence[Row], metric: str) -> Number:
    return _number([row[metric] for row in rows])


def _number(values: Sequence[Any]) -> Number:
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    mean = float(np.mean(numbers))
    if not np.isfinite(mean):
        return Number(None)
    return Number(mean, float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None)


def _experts(group: Group) -> list[str]:
    """What must be said where heads were trained to teach, not to match the raters."""
    settings = [(entry.system, setting_of(entry.tested[0])) for entry in group.mains]
    taught = [system for system, setting in settings if setting.get("lambda_expert") == 0]
    return [
        f"The heads of {system} beside the {setting['student']} head were trained without a rater loss of their own "
        "(lambda expert 0): their scores tell how the student was taught, they are no results for one modality."
        for system, setting in settings[:1] if system in taught
    ]  # fmt: skip


def _spread(group: Group, bold: bool = True) -> str:
    seeds = {len(entry.probs) for entry in group.entries}
    text = SPREAD.format(seeds=" or ".join(map(str, sorted(seeds))), folds=len(set(group.predictions.fold.tolist())))
    return text if bold else text.partition(";")[0] + "."
