"""Best epochs: every head's parameters of the epoch at which its judge was best, and patience for each alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amber2_core.heads import Architecture, initial_parameters
from amber2_train.stacked.parameters import BestHeads, StackedHeads

HEADS = ("audio", "text", "fusion")
# (heads, settings): of one setting audio judges all, of one the fusion, of one every head itself
JUDGES = np.array([[0, 2, 0], [0, 2, 1], [0, 2, 2]])
SHAPE = Architecture((("audio", 3), ("text", 2)), 4, hidden=3, fusion_width=3)


def trained(scores: np.ndarray, patience: int | None = None) -> tuple[BestHeads, int]:  # type: ignore[type-arg]
    """Runs whose parameters all equal the epoch, scored (epochs, heads, seeds, settings); and when they ended."""
    states = [initial_parameters(SHAPE, torch.Generator().manual_seed(seed)) for seed in range(2)]
    stack = StackedHeads(SHAPE, states, JUDGES.shape[1])
    best = BestHeads(stack, JUDGES, patience=patience)
    for epoch, some in enumerate(scores, start=1):
        with torch.no_grad():
            for parameter in stack.parameters.values():
                parameter.fill_(epoch)
        best.keep(epoch, some)
        if best.all_stopped:
            break
    best.restore()
    return best, epoch


def naive(scores: list[float], patience: int | None) -> int:
    """The epoch that one head alone would keep."""
    kept, lowest = 0, np.inf
    for epoch, score in enumerate(scores, start=1):
        if patience is not None and epoch - kept > patience:
            break
        if score < lowest:
            kept, lowest = epoch, score
    return kept


@pytest.mark.parametrize("patience", [None, 1, 2, 5])
def test_every_head_is_kept_as_its_judge_alone_would_have_it(patience: int | None) -> None:
    scores = np.random.default_rng(0).uniform(size=(12, 3, 2, 3))
    best, _ = trained(scores, patience)
    for h, head in enumerate(HEADS):
        for k in range(3):
            for s in range(2):
                expected = naive(scores[:, JUDGES[h, k], s, k].tolist(), patience)
                assert best.epoch[h, s, k] == expected
                assert best.dev_js[h, s, k] == scores[expected - 1, h, s, k]
                for name, rows in best.stack.owned(head):
                    assert (best.stack.parameters[name][s, k, rows] == expected).all()


@pytest.mark.parametrize("patience", [None, 1, 2, 5])
def test_the_curve_of_a_head_ends_where_it_stopped_whatever_the_others_do(patience: int | None) -> None:
    scores = np.random.default_rng(0).uniform(size=(12, 3, 2, 3))
    best, ended = trained(scores, patience)
    np.testing.assert_array_equal(best.curves, scores[:ended])
    for h, s, k in np.ndindex(best.epochs.shape):
        judged = scores[:, JUDGES[h, k], s, k].tolist()
        last = len(scores) if patience is None else min(len(scores), naive(judged, patience) + patience)
        assert best.epochs[h, s, k] == last


def test_training_ends_when_the_last_head_has_stopped() -> None:
    scores = np.ones((20, 3, 2, 3))
    scores[:6, 0, 1, 2] = np.linspace(0.9, 0.5, 6)  # one head that judges itself improves up to epoch 6
    best, ended = trained(scores, patience=3)
    assert ended == 9
    assert best.epoch[0, 1, 2] == 6
    assert trained(scores, patience=None)[1] == 20


def test_what_is_never_a_number_keeps_the_start_and_epoch_0() -> None:
    best, _ = trained(np.full((3, 3, 2, 3), np.nan))
    assert (best.epoch == 0).all()
    assert np.isnan(best.dev_js).all()
    start = initial_parameters(SHAPE, torch.Generator().manual_seed(1))
    assert all(torch.equal(tensor, start[name]) for name, tensor in best.stack.state(1, 0).items())
