"""Soft and hard labels."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_data import fold_in, training_data

from amber2_train.fit import fit, loss_of, predict
from amber2_train.folds import make_folds
from amber2_train.grid import Setting
from amber2_train.labels import LABELS, hard, soft


@given(st.lists(st.integers(0, 5), min_size=2, max_size=8).filter(any))
def test_hard_labels_are_one_hot_of_the_first_largest_share(votes: list[int]) -> None:
    target = torch.tensor(votes, dtype=torch.float32) / sum(votes)
    expected = torch.zeros(len(votes))
    expected[votes.index(max(votes))] = 1
    assert torch.equal(hard(target), expected)
    assert torch.equal(soft(target), target)
    assert torch.equal(hard(torch.stack([target, target.flip(0)]))[0], expected)


def test_a_run_with_hard_labels_learns_what_one_on_one_hot_targets_does() -> None:
    data = training_data(45)
    fold = fold_in(data, make_folds("session", data)[0])
    settings = [Setting(hidden=6, labels="hard", lr=0.01), Setting(hidden=6, lr=0.01)]
    together = predict(fit(fold, settings, seeds=[0], epochs=1, dtype=torch.float64).stack, fold.dev)
    one_hot = type(fold.train)(fold.train.features, fold.train.index, hard(fold.train.targets))
    alone = fit(
        type(fold)(1, one_hot, fold.dev, fold.test, fold.statistics), settings[1:], seeds=[0], epochs=1,
        dtype=torch.float64,
    )  # fmt: skip
    torch.testing.assert_close(together[:, :, 0], predict(alone.stack, fold.dev)[:, :, 0])
    assert not torch.allclose(together[:, :, 0], together[:, :, 1], atol=1e-4)


def test_settings_of_both_kinds_and_systems_keep_their_order() -> None:
    data = training_data(45)
    fold = fold_in(data, make_folds("session", data)[0])
    settings = [
        Setting(labels="hard"),
        Setting(),
        Setting(system="cb-ce"),
        Setting(system="cb-ce", labels="hard"),
        Setting(kappa=0.0),
    ]
    heads = ("audio", "text", "fusion")
    logits = torch.randn(3, 2, len(settings), 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = fold.train.targets[:14].view(2, 1, 7, 4)
    together = loss_of(settings, heads, fold.statistics)(logits, target)
    for k, setting in enumerate(settings):
        alone = loss_of([setting], heads, fold.statistics)(logits[:, :, k : k + 1], target)
        torch.testing.assert_close(together[:, k : k + 1], alone)
    assert set(LABELS) == {"soft", "hard"}
