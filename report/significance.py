"""Two entries' predictions of the same utterances go in; their difference, its interval and its p-value come out.

The difference is the one that the tables show: averaged over seeds and folds. Every entry is scored on the same draws
of speakers, so that the bootstrap is a paired one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from amber2_core.metrics import METRICS, UTTERANCE_METRICS, confusion

from .bootstrap import DRAWS, Clusters, drawn_scores, holm, interval, widened_draws
from .groups import Entry, Group
from .runs import Floats

MEANS = ("js", "bc", "r2", "accuracy")
# in the order of `_scores`
COMPARED = (*MEANS, "uar", "macro_f1", "weighted_f1")


@dataclass(frozen=True)
class Comparison:
    """`first` minus `second` in one metric, over the utterances that both predict."""

    first: str
    second: str
    metric: str
    n: int  # utterances
    difference: float
    low: float  # of the 95 % interval
    high: float
    p: float
    p_holm: float  # corrected for all comparisons of this metric
    seeds_agree: float | None  # share of seeds whose difference has the sign of the whole; None: seeds are not alike


def compare(group: Group, clusters: Clusters, *, draws: int = DRAWS, seed: int = 0) -> list[Comparison]:
    """The first system's main head against every other system's, then against its own other heads, in `COMPARED`.

    Where a head predicts not every utterance, both are scored on those that both predict, as if there were no others;
    heads that diverged in some run are not compared.
    """
    reference = group.mains[0]
    rivals = [*group.mains[1:], *(e for e in group.heads(reference).values() if e is not reference)]
    rivals = [rival for rival in rivals if all(row["epoch"] or not row["n"] for row in rival.tested)]
    together: dict[bytes, list[Entry]] = {}  # those that share their utterances with the first
    for rival in rivals:
        together.setdefault((reference.there & rival.there).tobytes(), []).append(rival)
    found = [
        one for some in together.values() for one in _compare_on_common(reference, some, group, clusters, draws, seed)
    ]
    corrected = [
        replace(one, p_holm=p)
        for metric in COMPARED
        for own in [[one for one in found if one.metric == metric]]
        for one, p in zip(own, holm([one.p for one in own]), strict=True)
    ]
    places = {rival.label: k for k, rival in enumerate(rivals)}
    return sorted(corrected, key=lambda one: places[one.second])


def _compare_on_common(
    reference: Entry, rivals: Sequence[Entry], group: Group, clusters: Clusters, draws: int, seed: int
) -> list[Comparison]:
    """The first against others that predict the same of its utterances; `p_holm` is not corrected yet."""
    common = reference.there & rivals[0].there
    clusters = clusters.of(common)
    if clusters.freedom < 1:
        return []
    widened, observed = _draw([reference, *rivals], group, clusters, draws, seed)
    found = []
    for (m, metric), (k, rival) in itertools.product(enumerate(COMPARED), enumerate(rivals, start=1)):
        difference = float(observed[0, m] - observed[k, m])
        low, high, p = interval(difference, widened[:, 0, m] - widened[:, k, m], clusters.freedom)
        agree = _seeds_agree(*(_per_seed(entry, metric, group, clusters) for entry in (reference, rival)))
        n = int(common.sum())
        found.append(Comparison(reference.label, rival.label, metric, n, difference, low, high, p, p, agree))
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
    for rows, numbers, size in zip(clusters.rows, clusters.numbers, clusters.sizes, strict=True):
        target = group.predictions.target[rows]
        table = np.concatenate([_columns(target, entry.probs[:, rows]) for entry in entries], axis=1)  # (n, K)
        order = np.argsort(numbers, kind="stable")
        starts = np.searchsorted(numbers[order], np.arange(size))
        sums.append(np.add.reduceat(table[order], starts, axis=0))  # (S_f, K)
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
    if sum(map(len, clusters.rows)) == len(entry.there):
        return entry.per_seed(metric)
    target = group.predictions.target
    scores = [METRICS[metric](target[rows], entry.probs[:, rows]) for rows in clusters.rows]
    return np.asarray(np.mean(scores, axis=0))


def _seeds_agree(a: Floats, b: Floats) -> float | None:
    if len(a) != len(b):
        return None
    signs = np.sign(a - b)
    return float(np.mean(signs == np.sign(np.mean(a - b))))
