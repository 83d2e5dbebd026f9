"""Made-up train utterances for rare classes: what is added to a fold before anything is trained on it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from .systems.system import FoldData, Rows

NEAREST = 2  # same-class neighbours, one of which an utterance is interpolated with
COMPARED_ROWS = 1024  # whose distances are computed at a time: bounds memory
_log = logging.getLogger(__name__)


def dime(fold: FoldData) -> FoldData:
    """DiME-Aug: utterances between neighbours of one class, until every class has .30 of the largest; in train alone.

    Classes are those of the largest share, the first of equals. For each below ⌈.30 × the largest⌉: i uniform in the
    class, j one of its 2 nearest there (`nearest`), a ~ U(0, 1), and per modality h = h_i + a (h_j − h_i), but of text
    h_i itself if a < .5, else h_j (its "pick"); target and votes y_i + a (y_j − y_i), the target renormalised. They
    are drawn by the number of the fold alone: every run of a fold, whatever its seed, learns from the same utterances.

    A modality that i or j lacks is left as i has it. A class of a single utterance has no neighbours and stays as it
    is. Features are not copied: see `Rows.mixed`.
    """
    import numpy as np
    import torch

    random, train = np.random.default_rng([fold.number, *b"dime"]), fold.train
    labels, compared = labels_of(train), _standardised(train)
    counts = np.bincount(labels, minlength=train.targets.shape[1])
    wanted, made = -(-3 * counts.max() // 10), []
    for label in np.flatnonzero((counts > 0) & (counts < wanted)):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            _log.warning("augment dime: class %d has one train utterance of fold %d alone", label, fold.number)
            continue
        vectors = compared.vectors(torch.from_numpy(members).to(train.index.device))
        near = nearest(torch.cat(tuple(vectors.values()), dim=-1), NEAREST)
        first = random.integers(len(members), size=wanted - len(members))
        second = near[first, random.integers(near.shape[1], size=len(first))]
        made.append(between(train, members[first], members[second], random.uniform(size=len(first))))
    if not made:
        return fold
    return replace(fold, train=train.joined(made))  # type: ignore[type-var]


def between(rows: Rows, first: npt.NDArray[np.intp], second: npt.NDArray[np.intp], a: npt.NDArray[np.float64]) -> Rows:
    """Utterances between pairs (m,) of rows, at a of the way from the first to the second; text is one of the two."""
    import torch

    device = rows.targets.device
    i, j, way = (torch.from_numpy(x).to(device) for x in (first, second, a))
    way = way.to(rows.targets)
    shares = {m: (way < 0.5).to(way) if m.partition(":")[0] == "text" else 1 - way for m in rows.features}
    pairs = torch.arange(len(i), device=device)
    both = rows.some(torch.cat((i, j)))  # those to be mixed, and after them their partners
    mixed = both.mixed(pairs.repeat(2) + len(i), {m: share.repeat(2) for m, share in shares.items()}).some(pairs)
    targets = rows.targets[i].lerp(rows.targets[j], way.unsqueeze(-1))
    votes = None if rows.votes is None else rows.votes[i].lerp(rows.votes[j], way.unsqueeze(-1).to(rows.votes))
    made: Any = replace(mixed, targets=targets / targets.sum(-1, keepdim=True), votes=votes)  # type: ignore[type-var]
    return made  # type: ignore[no-any-return]


def nearest(x: Tensor, count: int) -> npt.NDArray[np.intp]:
    """The rows of x (n, D) that are nearest to each, itself apart, by Euclid: (n, min(count, n − 1)), nearest first."""
    import numpy as np
    import torch

    found = []
    for rows in torch.split(torch.arange(len(x), device=x.device), COMPARED_ROWS):
        distance = torch.cdist(x[rows], x, compute_mode="donot_use_mm_for_euclid_dist")
        distance[torch.arange(len(rows), device=x.device), rows] = torch.inf
        found.append(distance.topk(min(count, len(x) - 1), largest=False).indices.cpu().numpy())
    return np.concatenate(found)


def labels_of(rows: Rows) -> npt.NDArray[np.intp]:
    """(n,) the class of each utterance: of the largest share, the first of equals."""
    import numpy as np

    from amber2_core.losses import one_hot_labels

    return np.asarray(one_hot_labels(rows.targets).argmax(-1).cpu().numpy())


def _standardised(rows: Any) -> Rows:
    """The same utterances, the last layers' vectors standardised by their own statistics, whatever is trained on."""
    from .fold_data import layer_of, train_statistics

    masks = {} if rows.present is None else dict(zip(rows.features, rows.present, strict=False))
    statistics = train_statistics({m: layer_of(x) for m, x in rows.features.items()}, rows.index, masks)
    found: Rows = replace(rows, standardisation=statistics)
    return found
