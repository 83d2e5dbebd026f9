"""Significance on test: the difference of two entries, its interval and its p-value, from a paired bootstrap.

The difference is the one that the tables show: averaged over seeds and folds. What is drawn again, 10,000 times, are
speakers, with replacement within each fold (a stratified cluster bootstrap): utterances of one speaker are not
independent. Every entry is scored on the same draws, so that the bootstrap is a paired one. Few speakers make the plain
percentile interval too narrow twice over; both are put right as Hesterberg (2015, "What teachers should know about the
bootstrap", §4.3) does: the deviations of a fold of S speakers are widened by √(S / (S − 1)), and the percentiles are
those at which a normal distribution has the tails of Student's t with Σ_f (S_f − 1) degrees of freedom. With many
speakers neither matters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from amber2_core.metrics import METRICS, R2_CLASSES, UTTERANCE_METRICS, confusion
from amber2_core.tables import Texts
from amber2_core.votes import codes

from .groups import Entry, Group
from .runs import Floats
from .table import number_text, p_text

DRAWS = 10_000
LEVEL = 0.95
SURE = 0.05  # a corrected p below it is told as a difference
HEADLINES = 4  # comparisons that are told in words
# why utterances are drawn
UNKNOWN, ALONE = "since their speakers are unknown", "since a test fold has a single speaker"
# draws × clusters of weights that are held at once
CHUNK = 4_000_000
Finish = Callable[[Floats], Floats]  # sums over drawn clusters (…, K) → scores (…, scores)
MEANS = ("js", "bc", "r2", "accuracy")
# in the order of `_scores`
COMPARED = (*MEANS, "uar", "macro_f1", "weighted_f1")
COLUMNS = ["first", "second", "metric", "n", "difference", "low", "high", "p", "p_holm", "seeds_agree"]  # of `compare`


@dataclass(frozen=True, eq=False)
class Clusters:
    """What is drawn: the cluster of every utterance, numbered within its fold."""

    rows: Sequence[npt.NDArray[np.intp]]  # fold → rows of its utterances
    numbers: Sequence[npt.NDArray[np.int64]]  # fold → their clusters, from 0
    sizes: Sequence[int]  # fold → S_f
    why_utterances: str = ""  # why what is drawn is no speaker; empty where it is one

    @property
    def by_speaker(self) -> bool:
        return not self.why_utterances

    @property
    def drawn(self) -> str:
        """What is drawn, in words, with the reason where it is not speakers."""
        return "speakers" if self.by_speaker else f"utterances, {self.why_utterances}"

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
        is_alone = any(len(np.unique(numbers)) < 2 for _, numbers in folds)
        why = self.why_utterances or (ALONE if is_alone else "")
        people = [codes(list(map(str, rows if why else numbers))) for rows, numbers in folds]
        sizes = [len(names) for _, names in people]
        return Clusters([rows for rows, _ in folds], [number for number, _ in people], sizes, why)


def speaker_clusters(fold: npt.NDArray[np.int64], speaker: Texts) -> Clusters:
    """Speakers within folds (N,). Who is unknown counts as a speaker of his own.

    Where nobody is known, or a fold has but one speaker, single utterances are drawn.
    """
    rows = [np.flatnonzero(fold == number) for number in np.unique(fold)]
    people = [codes([speaker[row] or f"\0{row}" for row in some]) for some in rows]
    why = UNKNOWN if not any(speaker) else ALONE if any(len(names) < 2 for _, names in people) else ""
    if why:
        people = [codes([str(row) for row in some]) for some in rows]
    return Clusters(rows, [number for number, _ in people], [len(names) for _, names in people], why)


def compare(group: Group, clusters: Clusters, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """The first system's main head against every other system's, then against its own other heads, in `COMPARED`.

    Then every ensemble against every single main head, and against its other members.

    Where a head predicts not every utterance, both are scored on those that both predict, as if there were no others;
    heads that diverged in some run are not compared.

    Returns:
        A row for each pair and metric, under `COLUMNS`: `first` minus `second` in `metric` over the `n` utterances that
        both predict, the ends `low` and `high` of its 95 % interval, `p`, `p_holm` corrected for all comparisons of the
        metric, and `seeds_agree`, the share of seeds whose difference has the sign of the whole (NaN where the two have
        not the same seeds).
    """
    found = [
        row
        for reference, rivals in _matches(group)
        for row in _compare_all(reference, [one for one in rivals if not one.diverged], group, clusters, draws, seed)
    ]
    frame = pd.DataFrame(found, columns=COLUMNS)
    frame["p_holm"] = frame.groupby("metric")["p"].transform(lambda p: holm(p.tolist()))
    return frame


def method_in_words(clusters: Clusters, draws: int) -> str:
    """What was tested and how, for the reader of the table."""
    count, what = sum(clusters.sizes), "speakers" if clusters.by_speaker else "utterances"
    text = (
        "Difference of the scores in the tables above, averaged over seeds and folds. Tested is whether it is 0 for "
        f"other {what} like these: paired bootstrap, {draws:,} draws of the {count} {clusters.drawn}, with replacement "
        "within each test fold, both systems on the same draws; the heads are not trained again. Intervals are "
        f"percentile intervals widened for the number of {what} (Student's t, {clusters.freedom} degrees of freedom); "
        "p is two-sided. Holm's correction is over the comparisons of one metric, not over metrics. Seeds that agree: "
        "share of seeds whose own difference has the same sign."
    )
    if clusters.by_speaker and clusters.freedom < 15:
        text += f" With {count} speakers intervals are wide, and no p can fall below {smallest_p(clusters, draws):.3f}."
    return text


def headlines(
    comparisons: pd.DataFrame, systems: Set[str], names: str, drawn: str, ensembles: Set[str] = frozenset()
) -> list[str]:
    """Of `compare`, in one line for each rival: in what the first is better, in what it is worse, and what is open.

    Args:
        comparisons: of `compare`.
        systems: labels of the main heads; where there are others than the first, heads of its own are not told.
        names: of the runs, empty where the labels say them.
        drawn: `Clusters.drawn`.
        ensembles: labels of those, which are told against the best single head alone.
    """
    pairs = comparisons.groupby(["first", "second"], sort=False)
    tests = f"{len(pairs)} comparison{'s' * (len(pairs) > 1)}"
    place, lines = f" in {names}" if names else "", []
    for first, own in comparisons.groupby("first", sort=False):
        for rival, what in _told_rivals(own, systems) if first not in ensembles else [_strongest(own)]:
            told = _told(own[own["second"] == rival])
            lines.append(
                f"{first} against {rival}{what}{place}: {told} (differences on test; p by a bootstrap over "
                f"{drawn}, after Holm's correction over the {tests} of each metric, not over metrics)."
            )
    return lines


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


def _matches(group: Group) -> Iterator[tuple[Entry, list[Entry]]]:
    """Who is compared with whom."""
    ensembles, single = ([one for one in group.mains if bool(one.members) == whether] for whether in (True, False))
    if single:
        yield single[0], [*single[1:], *(one for one in group.heads(single[0]).values() if one is not single[0])]
    for ensemble in ensembles:
        yield ensemble, [*single, *(one for one in ensemble.members if one not in single)]


def _compare_all(
    reference: Entry, rivals: Sequence[Entry], group: Group, clusters: Clusters, draws: int, seed: int
) -> list[tuple[Any, ...]]:
    """The first against others, in their order: rows of `compare`, p not yet corrected."""
    together: dict[bytes, list[Entry]] = {}  # those that share their utterances with the first
    for rival in rivals:
        together.setdefault((reference.there & rival.there).tobytes(), []).append(rival)
    found = [
        row for some in together.values() for row in _compare_on_common(reference, some, group, clusters, draws, seed)
    ]
    places = {rival.label: k for k, rival in enumerate(rivals)}
    return sorted(found, key=lambda row: places[row[1]])


def _compare_on_common(
    reference: Entry, rivals: Sequence[Entry], group: Group, clusters: Clusters, draws: int, seed: int
) -> list[tuple[Any, ...]]:
    """The first against others that predict the same of its utterances: rows of `compare`, p not yet corrected."""
    common = reference.there & rivals[0].there
    clusters = clusters.of(common)
    if clusters.freedom < 1:
        return []
    widened, observed = _draw([reference, *rivals], group, clusters, draws, seed)
    found, classes = [], len(group.predictions.emotions)
    telling = [(m, metric) for m, metric in enumerate(COMPARED) if metric != "r2" or classes >= R2_CLASSES]
    for (m, metric), (k, rival) in itertools.product(telling, enumerate(rivals, start=1)):
        difference = float(observed[0, m] - observed[k, m])
        low, high, p = interval(difference, widened[:, 0, m] - widened[:, k, m], clusters.freedom)
        agree = _seeds_agree(*(_per_seed(entry, metric, group, clusters) for entry in (reference, rival)))
        n = int(common.sum())
        found.append((reference.label, rival.label, metric, n, difference, low, high, p, p, agree))
    return found


def _draw(entries: Sequence[Entry], group: Group, clusters: Clusters, draws: int, seed: int) -> tuple[Floats, Floats]:
    """Widened scores (draws, entries, metrics) and observed ones (entries, metrics), averaged over seeds and folds."""
    classes = len(group.predictions.emotions)
    # of every entry: a count, the sums behind MEANS, labels by class, hits and predictions by seed and class
    widths = [1 + len(MEANS) + classes + 2 * classes * len(entry.probs) for entry in entries]

    def finish(sums: Floats) -> Floats:
        blocks = np.split(sums, np.cumsum(widths)[:-1], axis=-1)
        return np.stack([_scores(block, classes) for block in blocks], axis=-2)

    sums = []
    for rows, numbers in zip(clusters.rows, clusters.numbers, strict=True):
        target = group.predictions.target[rows]
        table = np.concatenate([_columns(target, entry.probs[:, rows]) for entry in entries], axis=1)  # (n, K)
        sums.append(pd.DataFrame(table).groupby(numbers).sum().to_numpy())  # (S_f, K)
    observed = [finish(some.sum(0)) for some in sums]
    drawn = drawn_scores(sums, finish, draws=draws, seed=seed)
    return widened_draws(observed, drawn, clusters.sizes), np.asarray(np.mean(observed, axis=0))


def _columns(target: npt.NDArray[np.float32], probs: npt.NDArray[np.float32]) -> Floats:
    """What each utterance adds to the sums behind `_scores` → (n, 1 + means + classes + 2 · seeds · classes)."""
    count = len(target)
    means = [UTTERANCE_METRICS[name](target, probs).mean(0) for name in MEANS]  # each (n,)
    cells = confusion(target[:, None], probs[:, :, None])  # (seeds, n, classes, classes), a single 1 each
    hits = np.diagonal(cells, axis1=-2, axis2=-1).swapaxes(0, 1).reshape(count, -1)  # (n, seeds · classes)
    predicted = cells.sum(-2).swapaxes(0, 1).reshape(count, -1)
    return np.column_stack([np.ones(count), *means, cells[0].sum(-1), hits, predicted])


def _scores(sums: Floats, classes: int) -> Floats:
    """`COMPARED`, averaged over seeds, of sums over utterances (…, K) → (…, metrics)."""
    count, means, labelled, by_seed = np.split(sums, np.cumsum([1, len(MEANS), classes]), axis=-1)
    hits, predicted = (
        half.reshape(*half.shape[:-1], -1, classes) for half in np.split(by_seed, 2, axis=-1)
    )  # each (…, seeds, classes)
    labelled = labelled[..., None, :]  # (…, 1, classes)
    recall = hits / np.maximum(labelled, 1)
    f1 = 2 * hits / np.maximum(labelled + predicted, 1)
    uar = recall.sum(-1) / (labelled > 0).sum(-1)  # (…, seeds)
    macro_f1 = f1.sum(-1) / (labelled + predicted > 0).sum(-1)
    weighted_f1 = (f1 * labelled).sum(-1) / count
    of_classes = np.stack([uar.mean(-1), macro_f1.mean(-1), weighted_f1.mean(-1)], axis=-1)
    return np.concatenate([means / count, of_classes], axis=-1)


def _per_seed(entry: Entry, metric: str, group: Group, clusters: Clusters) -> Floats:
    """A metric averaged over the folds of each seed → (seeds,), over the utterances of these clusters."""
    target = group.predictions.target
    scores = [METRICS[metric](target[rows], entry.probs[:, rows]) for rows in clusters.rows]
    return np.asarray(np.mean(scores, axis=0))


def _seeds_agree(a: Floats, b: Floats) -> float:
    if len(a) != len(b):
        return float("nan")
    signs = np.sign(a - b)
    return float(np.mean(signs == np.sign(np.mean(a - b))))


def _told_rivals(own: pd.DataFrame, systems: Set[str]) -> list[tuple[str, str]]:
    """Of the rivals of one reference those that are told in words."""
    rivals = list(dict.fromkeys(own["second"]))
    return [(rival, "") for rival in ([one for one in rivals if one in systems] or rivals)[:HEADLINES]]


def _strongest(own: pd.DataFrame) -> tuple[str, str]:
    """The rival with the lowest JS, which is where the difference is largest."""
    js = own[own["metric"] == "js"]
    best = js["second"].tolist()[int(np.argmax(js["difference"].to_numpy()))]
    return best, ", the best single one by its JS on test,"


def _told(own: pd.DataFrame) -> str:
    """Of the rows of one pair: what is better, what worse, and what may be chance."""
    sure = own["p_holm"] < SURE
    lower = [name for name, metric in METRICS.items() if metric.better == "lower"]
    better = (own["difference"] < 0) == own["metric"].isin(lower)
    parts = (("better", own[sure & better]), ("worse", own[sure & ~better]), ("may be chance", own[~sure]))
    return "; ".join(f"{word} {', '.join(map(_change, some.itertuples()))}" for word, some in parts if len(some))


def _weights(rng: np.random.Generator, size: int, draws: int) -> Iterator[Floats]:
    """How often each of `size` clusters is drawn, in chunks (≤ draws, size)."""
    step = max(1, CHUNK // size)
    for first in range(0, draws, step):
        count = min(step, draws - first)
        yield rng.multinomial(size, np.full(size, 1 / size), size=count).astype(np.float64)


def _change(row: Any) -> str:
    """A row of `compare`: what changed, by how much, and its p; not to be broken at the end of a line."""
    p = p_text(row.p_holm)
    name = METRICS[row.metric].title if row.metric in METRICS else row.metric
    text = f"{name} {number_text(row.difference, 4, True)} (p {p if p.startswith('<') else f'= {p}'})"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _p_value(beyond: int, draws: int, freedom: int) -> float:
    """Two-sided, from the number of draws on the other side of 0 (itself counted as one)."""
    share = min((beyond + 1) / (draws + 1), 0.5)
    return float(2 * stdtr(freedom, ndtri(share)))
