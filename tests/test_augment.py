"""Utterances made up for rare classes: between neighbours of one class, in train alone, the same for every run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from synthetic_data import SIZES, write_layered_cache, write_small_cache

from amber2_core.run_folder import read_results
from amber2_train.augment import dime, labels_of, nearest
from amber2_train.cli import train_heads
from amber2_train.fold_data import FoldData, Rows
from amber2_train.systems.system import FitOptions, system_of

CLASSES = 4
COUNTS = (40, 20, 5, 3)  # of train; ⌈.30 · 40⌉ = 12
TRAIN, EACH = sum(COUNTS), 10  # of dev, and of test


def rare_fold(*, number: int = 1, missing: bool = False, marker: float = 1e6) -> FoldData:
    """A fold of which two classes are rare in train; rows of dev and test carry a marker in every number."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), COUNTS)
    votes = np.eye(CLASSES)[labels] * 3 + np.eye(CLASSES)[random.integers(0, CLASSES, TRAIN)]
    votes = np.concatenate([votes, np.full((2 * EACH, CLASSES), 1.0)])
    features = {}
    for m, size in SIZES.items():
        x = random.normal(size=(TRAIN + 2 * EACH, size)) * random.uniform(0.1, 10, size) + 5
        x[TRAIN:] = marker
        features[m] = torch.from_numpy(x)
    present = None
    if missing:
        present = torch.ones(4, len(votes), dtype=torch.bool)
        present[0, 60:65:2] = False
        present[2, 66] = False
        for k, m in enumerate(SIZES):
            features[m][~present[k]] = torch.nan

    def part(start: int, stop: int) -> Rows:
        some = torch.from_numpy(votes[start:stop])
        return Rows(features, torch.arange(start, stop), some / some.sum(-1, keepdim=True), votes=some, present=present)

    return FoldData(number, part(0, TRAIN), part(TRAIN, TRAIN + EACH), part(TRAIN + EACH, len(votes)))


def made_up(fold: FoldData) -> tuple[Rows, Any]:
    """All of train, and which of it is made up."""
    train: Rows = dime(fold).train
    return train, torch.arange(len(fold.train), len(train))


def test_the_smallest_classes_have_thirty_per_cent_of_the_largest_and_nothing_else_changes() -> None:
    fold = rare_fold()
    train, new = made_up(fold)
    assert np.bincount(labels_of(train)).tolist() == [40, 20, 12, 12]
    old = torch.arange(len(fold.train))
    assert torch.equal(train.targets[old], fold.train.targets)
    for m, x in train.vectors(old).items():
        assert torch.equal(x, fold.train.vectors(old)[m])
    assert train.features is fold.train.features  # no copy
    again = replace(fold, train=train.some(new[:0]).joined([fold.train]))
    assert len(dime(again).train) == len(train)


def test_every_new_utterance_lies_between_two_neighbours_of_its_class() -> None:
    fold = rare_fold()
    train, new = made_up(fold)
    old, labels, halfway = fold.train.vectors(torch.arange(TRAIN)), labels_of(train), 0
    z = torch.cat([(x - x.mean(0)) / x.std(0, correction=0) for x in old.values()], dim=-1)
    found = train.vectors(new)
    for k, row in enumerate(new.tolist()):
        members = np.flatnonzero(labels[:TRAIN] == labels[row])
        pairs = []
        for i in members:
            distances = {j: float((z[i] - z[j]).norm()) for j in members if j != i}
            for j in sorted(distances, key=distances.__getitem__)[:2]:
                h_i, h_j = old["audio"][i], old["audio"][j]
                a = float((found["audio"][k] - h_i) @ (h_j - h_i) / (h_j - h_i).square().sum())
                if torch.allclose(h_i + a * (h_j - h_i), found["audio"][k]) and 0 <= a <= 1:
                    pairs.append((int(i), int(j), a))
        matching = [
            (i, j)
            for i, j, a in pairs
            if torch.allclose(old["video"][i].lerp(old["video"][j], a), found["video"][k])
            and torch.equal(old["text"][i if a < 0.5 else j], found["text"][k])
            and torch.allclose(fold.train.targets[i].lerp(fold.train.targets[j], a), train.targets[row])
        ]
        assert matching, row
        halfway += any(0.1 < a < 0.9 for _, _, a in pairs)
    assert halfway > len(new) / 2


def test_targets_stay_distributions_and_votes_go_the_same_way() -> None:
    train, new = made_up(rare_fold())
    targets = train.targets[new]
    torch.testing.assert_close(targets.sum(-1), torch.ones(len(new), dtype=torch.float64))
    assert (targets >= 0).all()
    assert train.votes is not None
    torch.testing.assert_close(train.votes[new] / train.votes[new].sum(-1, keepdim=True), targets)


def test_dev_and_test_are_never_touched() -> None:
    fold = rare_fold(marker=1e6)
    found = dime(fold)
    assert found.dev is fold.dev
    assert found.test is fold.test
    train, new = made_up(fold)
    for x in train.vectors(torch.arange(len(train))).values():
        assert (x.abs() < 1e5).all()
    other, _ = made_up(rare_fold(marker=-7.0))
    for m, x in train.vectors(new).items():
        assert torch.equal(x, other.vectors(new)[m])


def test_they_are_drawn_by_the_number_of_the_fold_alone() -> None:
    (first, new), (second, _), (other, _) = (made_up(rare_fold(number=number)) for number in (1, 1, 2))
    assert torch.equal(first.vectors(new)["audio"], second.vectors(new)["audio"])
    assert not torch.equal(first.vectors(new)["audio"], other.vectors(new)["audio"])


def test_what_a_neighbour_lacks_is_the_utterances_own() -> None:
    train, new = made_up(rare_fold(missing=True))
    present = train.presence(new)
    assert present is not None
    assert not present[:3].all()
    for k, (_, x) in enumerate(train.vectors(new).items()):
        assert torch.isfinite(x).all()
        assert torch.equal(present[k], x.any(-1))


def test_neighbours_are_those_of_scikit_learn() -> None:
    from sklearn.neighbors import NearestNeighbors

    x = torch.randn(1100, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    oracle = NearestNeighbors(n_neighbors=2).fit(x.numpy())
    np.testing.assert_array_equal(nearest(x, 2), oracle.kneighbors(return_distance=False))
    assert nearest(x[:2], 2).tolist() == [[1], [0]]


def test_a_class_of_one_utterance_is_left_alone_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    fold = rare_fold()
    alone = replace(fold, train=fold.train.some(torch.arange(TRAIN - 2)))
    assert np.bincount(labels_of(dime(alone).train)).tolist() == [40, 20, 12, 1]
    assert "class 3 has one train utterance of fold 1 alone" in caplog.text


def test_where_no_class_is_rare_nothing_is_made_up() -> None:
    fold = rare_fold()
    even = replace(fold, train=fold.train.some(torch.arange(55)))
    assert dime(even) is even


def test_any_gradient_system_learns_from_them_whatever_else_is_trained() -> None:
    fold = rare_fold()
    system = system_of("cb-ce")
    settings = [system.Settings(hidden=8, batch_size=16, lr=0.01, augment="dime", dropout=0.1)]
    many = {one.seed: one for one in system.fit(fold, settings, [0, 1], FitOptions(3))}
    (alone,) = system.fit(fold, settings, [1], FitOptions(3))
    (plain,) = system.fit(fold, [replace(settings[0], augment="none")], [1], FitOptions(3))
    for head, probs in alone.probs(fold.train).items():
        np.testing.assert_allclose(many[1].probs(fold.train)[head], probs, atol=1e-6)
        assert not np.allclose(plain.probs(fold.train)[head], probs, atol=1e-3)


def test_it_is_an_axis_of_the_grid_and_frames_cannot_be_mixed(tmp_path: Path) -> None:
    words = ["--seeds", "1", "--epochs", "2", "--hidden", "8", "--augment", "none,dime"]
    cache = write_small_cache(tmp_path)
    result = CliRunner().invoke(train_heads, ["--cache", str(cache), "--output", str(tmp_path / "run"), *words])
    assert result.exit_code == 0, result.output
    assert {row["augment"] for row in read_results(tmp_path / "run") if row["split"] == "dev"} == {"none", "dime"}
    layered = write_layered_cache(tmp_path)
    more = ["--cache", str(layered), "--output", str(tmp_path / "frames"), "--input-pooling", "attentive"]
    refused = CliRunner().invoke(train_heads, [*more, *words])
    assert (refused.exit_code, refused.output.strip()) == (
        1,
        "error: augment dime with input-pooling attentive: frames cannot be mixed",
    )
