"""Whether a system tells two causes of disagreement apart, where a corpus knows them: conflict and lack of clarity.

A corpus gives the truth in two columns of utterances.csv: `conflict`, 1 where the modalities of an utterance carry
different emotions and 0 where they do not, and `clarity`, a number that rises with how clearly the emotion is expressed
(the synthetic corpus with `--clarity`: `amber2_data.synthesis`). A system predicts rater ambiguity, the entropy of its
fusion head, modality ambiguity, the mean JS between its heads of single modalities (`distributions.disagreement`), and
perhaps measures of its own. Seeds are one ensemble: entropy and JS are those of the mean distributions over seeds.

Of each prediction a, conflict b and lack of clarity c (clarity with its sign turned), all as mid-ranks: Spearman's
ρ_ab and ρ_ac, the partial correlations ρ_ab·c = (ρ_ab − ρ_ac ρ_bc) / √((1 − ρ_ac²)(1 − ρ_bc²)) and ρ_ac·b, which are
the correlations of what is left of the ranks when those of the other cause are regressed out; and the area under the
ROC curve with which a finds the conflicts (Mann–Whitney's U over the number of pairs). Each is computed within every
test fold, since the heads of different folds are different ones, and averaged over folds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from amber2_core.distributions import disagreement, entropy

from .groups import FUSION, Group
from .measures import measures
from .runs import Floats
from .significance import CHUNK, Clusters, drawn_scores, interval, widened_draws
from .table import Column, Row, Table, table_of

COLUMNS = ("conflict", "clarity")  # of utterances.csv
ENTROPY, JS = "entropy of {head}", "JS of single heads"
# what is computed, and how it is called
STATISTICS = {
    "rho_conflict": "ρ with conflict", "rho_unclear": "ρ with lack of clarity",
    "partial_conflict": "partial ρ with conflict", "partial_unclear": "partial ρ with lack of clarity",
    "auroc": "AUROC of conflict",
}  # fmt: skip
COMPARED = ("partial_conflict", "partial_unclear", "auroc")  # with the first system's


@dataclass(frozen=True, eq=False)
class Causes:
    """What is known of each test utterance (N,), NaN where it is not."""

    conflict: Floats  # 0 or 1
    unclear: Floats  # rises as clarity falls

    @cached_property
    def known(self) -> npt.NDArray[np.bool_]:
        """(N,) where both are."""
        return np.isfinite(self.conflict) & np.isfinite(self.unclear)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a system says of the ambiguity of each test utterance."""

    system: str
    what: str
    values: Floats  # (N,) NaN where it says nothing


@dataclass(frozen=True, eq=False)
class Followed:
    """How a prediction follows the causes, by the names of `STATISTICS`."""

    prediction: Prediction
    n: int  # utterances of which it says something and the causes are known
    observed: Mapping[str, float]  # averaged over folds; NaN where a statistic exists in none
    drawn: Mapping[str, Floats]  # (draws,) widened; NaN where a draw has none
    freedom: Mapping[str, int]  # Σ_f (S_f − 1) over the folds in which it exists

    def row(self, names: Iterable[str], *, minus: Followed | None = None) -> Row:
        """Statistics, or their differences to those of another on the same draws, each with its 95 % interval."""
        row: Row = {}
        for name in names:
            observed = self.observed[name] - (minus.observed[name] if minus else 0.0)
            drawn = self.drawn[name] - (minus.drawn[name] if minus else 0.0)
            low, high = _ends(observed, drawn[np.isfinite(drawn)], self.freedom[name])
            if minus is None:  # widening can lead beyond what is possible
                low, high = np.clip([low, high], 0 if name == "auroc" else -1, 1).tolist()
            row |= {name: observed, f"{name}_interval_low": low, f"{name}_interval_high": high}
        return row


def causes_of(group: Group) -> Causes | None:
    """The truth of a group's test utterances; None where no run tells it, or what it tells is none or has one value."""
    tables = [run.utterances for run in group.runs if {*COLUMNS} <= {*run.utterances.columns}]
    if not tables:
        return None
    conflict, clarity = (pd.to_numeric(tables[0][name], errors="coerce").to_numpy(np.float64) for name in COLUMNS)
    causes = Causes(conflict, -clarity)
    there = conflict[causes.known]
    if {*there.tolist()} != {0.0, 1.0} or np.ptp(clarity[causes.known]) == 0:
        return None
    return causes


def predictions_of(group: Group) -> Iterator[Prediction]:
    """What the raters say, for comparison, and what each system predicts, in the order of the tables."""
    yield Prediction("raters", "entropy of votes", entropy(group.predictions.target))
    own = measures(group)
    for main in group.mains:
        heads = group.heads(main)
        fused = heads.get(FUSION, main)
        system = fused.label.removesuffix(fused.head).rstrip(" ,")
        mean = {name: entry.probs.mean(0, dtype=np.float64) for name, entry in heads.items()}  # each (N, C)
        yield Prediction(system, ENTROPY.format(head=fused.head), entropy(mean[fused.head]))
        single = [probs for name, probs in mean.items() if name != FUSION]
        if len(single) > 1:
            yield Prediction(system, JS, disagreement(single))
        for measure in own:
            if measure.entry.run is main.run and measure.entry.system == main.system:
                word = measure.label.removeprefix(system).strip()
                yield Prediction(system, word, measure.values.mean(0))


def causes_tables(group: Group, clusters: Clusters, *, draws: int, seed: int = 0) -> list[Table]:
    """How each prediction follows either cause, and how that differs from the first system's; none without truth."""
    causes = causes_of(group)
    if causes is None:
        return []
    found = [followed(one, causes, clusters, draws=draws, seed=seed) for one in predictions_of(group)]
    rows = [
        {"system": one.prediction.system, "prediction": one.prediction.what, "n": one.n, **one.row(STATISTICS)}
        for one in found
    ]
    columns = [Column("system", "system"), Column("prediction", "prediction"), Column("n", "n")]
    for name, title in STATISTICS.items():
        columns += [Column(name, title, "score"), Column(f"{name}_interval", "95 % interval", "interval")]
    tables = [
        table_of("causes", "Two causes of disagreement, told apart", columns, rows, _notes(clusters, draws), bold=False)
    ]
    return tables + _differences(found, clusters, draws)


def followed(one: Prediction, causes: Causes, clusters: Clusters, *, draws: int, seed: int) -> Followed:
    """How a prediction follows the causes, on the utterances of which it says something and both are known.

    A fold in which a statistic does not exist, as where nothing conflicts, has no part in it.
    """
    there = np.isfinite(one.values) & causes.known
    clusters = clusters.of(there)
    eyes = [np.eye(size) for size in clusters.sizes]
    counts = drawn_scores(eyes, lambda drawn: drawn, draws=draws, seed=seed)  # fold → (draws, S_f)
    observed, drawn = [], []
    for rows, numbers, times in zip(clusters.rows, clusters.numbers, counts, strict=True):
        a, conflict, unclear = (values[rows] for values in (one.values, causes.conflict, causes.unclear))
        observed.append(statistics(a, conflict, unclear, np.ones((1, len(rows)))))
        different, which = np.unique(times, axis=0, return_inverse=True)  # few speakers have few draws
        parts = [statistics(a, conflict, unclear, some[:, numbers]) for some in _chunks(different, len(rows))]
        drawn.append({name: np.concatenate([part[name] for part in parts])[which.ravel()] for name in STATISTICS})
    means, wide, freedom = dict[str, float](), dict[str, Floats](), dict[str, int]()
    for name in STATISTICS:
        folds = [f for f, some in enumerate(observed) if np.isfinite(some[name][0])]
        own, sizes = [observed[f][name][0] for f in folds], [clusters.sizes[f] for f in folds]
        means[name] = float(np.mean(own)) if folds else np.nan
        wide[name] = widened_draws(own, [drawn[f][name] for f in folds], sizes) if folds else np.full(draws, np.nan)
        freedom[name] = sum(sizes) - len(sizes)
    return Followed(one, int(there.sum()), means, wide, freedom)


def statistics(a: Floats, conflict: Floats, unclear: Floats, weights: Floats) -> dict[str, Floats]:
    """`STATISTICS` of a prediction (n,) and the causes (n,), each utterance taken as often as told: (draws, n).

    Returns:
        name → (draws,); NaN where it does not exist, as of what does not vary.
    """
    ranks = [midranks(values, weights) for values in (a, conflict, unclear)]
    ab, ac, bc = (correlation(ranks[i], ranks[j], weights) for i, j in ((0, 1), (0, 2), (1, 2)))
    found = (ab, ac, partial(ab, ac, bc), partial(ac, ab, bc), auroc_of(ranks[0], conflict, weights))
    return dict(zip(STATISTICS, found, strict=True))


def midranks(values: Floats, weights: Floats) -> Floats:
    """How much weight lies below each value, and half of that on it: (n,), (draws, n) → (draws, n).

    Mid-ranks less ½, of each value taken as often as its weight says. What agrees to nine digits is a tie.
    """
    _, which = np.unique(values.round(9), return_inverse=True)
    order = np.argsort(which, kind="stable")
    starts = np.flatnonzero(np.diff(which[order], prepend=-1))
    on = np.add.reduceat(weights[:, order], starts, axis=1)  # (draws, different values)
    return np.asarray((np.cumsum(on, axis=1) - on / 2)[:, which])


def correlation(a: Floats, b: Floats, weights: Floats) -> Floats:
    """Pearson's correlation over the last axis, weighted: three of (draws, n) → (draws,); NaN where one is constant."""
    whole = weights.sum(1, keepdims=True)
    a, b = (x - (weights * x).sum(1, keepdims=True) / whole for x in (a, b))
    covariance, of_a, of_b = ((weights * x).sum(1) for x in (a * b, a * a, b * b))
    return _ratio(covariance, np.sqrt(of_a * of_b))


def partial(ab: Floats, ac: Floats, bc: Floats) -> Floats:
    """ρ_ab·c of three correlations; NaN where c tells all of a or of b."""
    return _ratio(ab - ac * bc, np.sqrt((1 - ac**2) * (1 - bc**2)))


def auroc_of(ranks: Floats, positive: Floats, weights: Floats) -> Floats:
    """The share of pairs of a positive and another in which the positive has the higher rank, ties as half.

    `midranks` (draws, n), which are positive (n,), weights (draws, n) → (draws,); NaN where there are no pairs.
    """
    own = weights * positive
    count = own.sum(1)
    return _ratio((own * ranks).sum(1) - count**2 / 2, count * (weights.sum(1) - count))


def _differences(found: Sequence[Followed], clusters: Clusters, draws: int) -> list[Table]:
    """Of every prediction, how its statistics differ from those of the first system's prediction of the same kind."""
    firsts: dict[str, Followed] = {}
    rows: list[Row] = []
    for one in found:
        first = firsts.setdefault(one.prediction.what, one)
        if first is not one and one.n == first.n:
            comparison = f"{one.prediction.system} − {first.prediction.system}"
            place = {"comparison": comparison, "prediction": one.prediction.what}
            rows.append({**place, **one.row(COMPARED, minus=first)})
    if not rows:
        return []
    columns = [Column("comparison", "comparison"), Column("prediction", "prediction")]
    for name in COMPARED:
        columns += [Column(name, STATISTICS[name], "change"), Column(f"{name}_interval", "95 % interval", "interval")]
    note = (
        f"Differences of what stands in the table above, with {draws:,} paired draws of the {clusters.drawn}. An "
        "interval that holds 0 tells of no difference. Intervals are not corrected for their number."
    )
    caption = "How well causes are told apart, against the first system"
    return [table_of("causes-differences", caption, columns, rows, [note], bold=False)]


def _notes(clusters: Clusters, draws: int) -> list[str]:
    return [
        "The corpus tells of each utterance whether its modalities conflict, and how clear its emotion is. Spearman's "
        "rank correlation ρ of each prediction with either cause; partial, with the ranks of the other cause regressed "
        "out; and the area under the ROC curve with which it finds the conflicts. Within each test fold, averaged over "
        "folds; predictions are those of the mean distributions over seeds.",
        "Modality ambiguity (JS of single heads) should follow conflict alone: its partial ρ with lack of clarity is "
        "then 0, neither above nor below. Rater ambiguity (entropy) should follow lack of clarity; conflict makes "
        "raters disagree as well, as their own entropy in the first row shows. A few votes tell little of an "
        "utterance, so predictions can follow a cause more closely than votes do.",
        f"Intervals: {draws:,} draws of the {sum(clusters.sizes)} {clusters.drawn}, within each test fold, widened as "
        "those of the differences on test; the heads are not trained again.",
    ]


def _chunks(rows: Floats, width: int) -> list[Floats]:
    """So many rows at once that their weights, of a width, can be held."""
    step = max(1, CHUNK // width)
    return [rows[first : first + step] for first in range(0, len(rows), step)]


def _ends(observed: float, drawn: Floats, freedom: int) -> tuple[float, float]:
    """The ends of an interval; NaN where there is none."""
    return interval(observed, drawn, freedom)[:2] if len(drawn) and np.isfinite(observed) else (np.nan, np.nan)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where whole is 0 but for rounding."""
    ratio: Floats = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 1e-6)
    return ratio
