"""A fold in tensors: whatever a system reads of it, against arrays that are indexed row by row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_data import cache_of, fold_in, training_data, values_of, with_values

from amber2_core.cache import Frames, write_cache
from amber2_train.fold_data import FoldData, Rows, features_on, fold_data, train_statistics
from amber2_train.folds import make_folds
from amber2_train.training_data import TrainingData, read_material

LACKING = {"audio": [0, 1, 2, 21, 35, 43], "text": [3, 4, 5, 9, 12, 13, 14, 18, 20, 22, 24, 30, 31, 40, 41]}
NEITHER = 44  # has neither of the two
CHOSEN = torch.tensor([[2, 0], [1, 1]])  # rows of a part, as a batch of two seeds


def rich_cache(path: Path, count: int = 45) -> TrainingData:
    """Training data on the disk, with three layers of audio in half precision, and frames, some utterances without."""
    random, cache = (
        np.random.default_rng(0),
        cache_of(count, missing={name: [*rows, NEITHER] for name, rows in LACKING.items()}),
    )
    audio, text = cache.features
    layers = np.stack([audio.values * factor for factor in (3, 2, 1)], axis=1).astype(np.float16)
    lengths = np.where(audio.encoded, random.integers(0, 6, count), 0)
    frames = random.normal(size=(lengths.sum(), 7)).astype(np.float32)
    audio = replace(audio, values=layers, frames=Frames(frames, np.concatenate([[0], np.cumsum(lengths)])))
    write_cache(path, replace(cache, features=(audio, text)))
    return read_material(path, {"audio": None, "text": None}, {}, missing="mask").data


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return rich_cache(tmp_path_factory.mktemp("rich") / "cache.h5")


def folded(data: TrainingData, number: int = 1, device: str = "cpu", **options: Any) -> FoldData:
    return fold_data(data, make_folds("session", data)[number - 1], features_on(device, data), **options)


def parts(data: TrainingData, fold: FoldData) -> list[tuple[Rows, np.ndarray[Any, Any]]]:
    """Every part with its rows of the cache."""
    (own,) = [some for some in make_folds("session", data) if some.number == fold.number]
    return [(rows, data.rows[k]) for rows, k in ((fold.train, own.train), (fold.dev, own.dev), (fold.test, own.test))]


def test_vectors_are_the_last_layers_of_the_cache_as_they_are_and_zero_where_there_are_none(rich: TrainingData) -> None:
    for rows, of_cache in parts(rich, folded(rich)):
        assert rows.standardisation == {}
        vectors = rows.vectors(CHOSEN)
        for name, some in rich.inputs.items():
            values = np.asarray(some.values[0:45])
            last = values[:, -1] if name == "audio" else values
            assert vectors[name].dtype == torch.float32
            for place, row in np.ndenumerate(of_cache[CHOSEN.numpy()]):
                expected = np.zeros(last.shape[1]) if row in LACKING[name] else last[row]
                np.testing.assert_array_equal(vectors[name][place], expected)


def test_targets_and_heads_are_those_of_the_rows(rich: TrainingData) -> None:
    by_row = dict(zip(rich.rows.tolist(), rich.targets, strict=True))
    for rows, of_cache in parts(rich, folded(rich, 2)):
        np.testing.assert_array_equal(rows.targets, [by_row[row] for row in of_cache])
        having = [[row not in LACKING[name] for row in of_cache] for name in ("audio", "text")]
        expected = np.array([*having, np.any(having, axis=0)])
        np.testing.assert_array_equal(rows.having(), expected)
        np.testing.assert_array_equal(rows.having_head("text"), expected[1])
        np.testing.assert_array_equal(rows.having_head("anything else"), expected[2])
        present = rows.presence(CHOSEN)
        assert present is not None
        np.testing.assert_array_equal(present, expected[:, CHOSEN.numpy()])
        few = rows.first(2)
        assert (len(few), len(few.targets)) == (2, 2)
        np.testing.assert_array_equal(few.having(), expected[:, :2])


def test_where_nothing_is_missing_everybody_has_every_head() -> None:
    rows = folded(training_data(45)).dev
    assert rows.presence(CHOSEN) is None
    assert rows.having().all()
    assert rows.having().shape == (3, len(rows))


def test_layers_are_all_that_the_cache_holds_in_single_precision(rich: TrainingData) -> None:
    values = np.asarray(rich.inputs["audio"].values[0:45])
    assert values.ndim == 3
    assert values.dtype == np.float16
    for rows, of_cache in parts(rich, folded(rich)):
        layers = rows.layers("audio", CHOSEN)
        assert (layers.dtype, layers.shape) == (torch.float32, (2, 2, 3, 6))
        np.testing.assert_array_equal(layers, values[of_cache[CHOSEN.numpy()]].astype(np.float32))


def test_frames_are_those_of_each_utterance_padded_with_zeros(rich: TrainingData) -> None:
    frames = rich.inputs["audio"].frames
    assert frames is not None
    values = np.asarray(frames.values[0 : int(frames.offsets[-1])])
    for rows, of_cache in parts(rich, folded(rich)):
        some = torch.arange(len(rows)).flip(0)
        padded, valid = rows.frames("audio", some)
        own = [values[frames.offsets[row] : frames.offsets[row + 1]] for row in of_cache[::-1]]
        assert padded.shape == (len(rows), max(map(len, own)), 7)
        assert {len(one) for one in own} >= {0, 5}
        for sequence, there, expected in zip(padded, valid, own, strict=True):
            assert there.tolist() == [step < len(expected) for step in range(len(there))]
            np.testing.assert_array_equal(sequence[: len(expected)], expected)
            assert not sequence[len(expected) :].any()


def test_utterances_without_a_single_frame_give_one_step_of_nothing(rich: TrainingData) -> None:
    rows = folded(rich).train
    frames = rich.inputs["audio"].frames
    assert frames is not None
    lengths = np.diff(frames.offsets)[rows.index]
    padded, valid = rows.frames("audio", torch.from_numpy(np.flatnonzero(lengths == 0)))
    assert padded.shape[1] == 1
    assert not padded.any()
    assert not valid.any()


def test_a_device_that_gets_a_copy_of_the_kept_rows_sees_the_same(rich: TrainingData) -> None:
    """An accelerator's way, on a CPU under another name."""
    assert rich.rows.tolist() == list(range(NEITHER))
    here, there = folded(rich, standardise=True), folded(rich, device="cpu:0", standardise=True)
    assert len(there.train.features["text"]) == len(rich)
    for name in ("train", "dev", "test"):
        one, other = getattr(here, name), getattr(there, name)
        every = torch.arange(len(one))
        np.testing.assert_array_equal(one.having(), other.having())
        assert torch.equal(one.targets, other.targets)
        for m, vectors in one.vectors(every).items():
            assert torch.equal(vectors, other.vectors(every)[m])
        assert torch.equal(one.layers("audio", every).nan_to_num(), other.layers("audio", every).nan_to_num())
        assert all(map(torch.equal, one.frames("audio", every), other.frames("audio", every)))


def test_inputs_are_standardised_by_train_rows_alone() -> None:
    data = training_data(60)
    fold = make_folds("session", data)[0]
    elsewhere = np.setdiff1d(np.arange(60), fold.train)
    other = {name: x.copy() for name, x in values_of(data).items()}
    for x in other.values():
        x[elsewhere] = 1000.0 * x[elsewhere] - 50.0
    for some in (data, with_values(data, **other)):
        rows = fold_in(some, fold, standardise=True)
        for name, x in values_of(data).items():
            mean, sd = rows.dev.standardisation[name]
            np.testing.assert_allclose(mean, x[fold.train].mean(0), rtol=1e-5)
            np.testing.assert_allclose(sd, x[fold.train].std(0), rtol=1e-5)
    train = folded(data, standardise=True).train
    for vectors in train.vectors(torch.arange(len(train))).values():
        np.testing.assert_allclose(vectors.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(vectors.std(0, correction=0), 1, atol=1e-5)


def test_standardisation_is_by_the_train_rows_that_are_there_and_leaves_the_missing_at_zero() -> None:
    data = training_data(45, missing=LACKING)
    fold = make_folds("session", data)[0]
    train = folded(data, standardise=True).train
    for name, x in values_of(data).items():
        own = x[[row for row in fold.train if row not in LACKING[name]]]
        mean, sd = train.standardisation[name]
        np.testing.assert_allclose(mean, own.mean(0), rtol=1e-5)
        np.testing.assert_allclose(sd, own.std(0), rtol=1e-5)
        vectors = train.vectors(torch.arange(len(fold.train)))[name]
        missing = np.isin(fold.train, LACKING[name])
        assert not vectors[missing].any()
        np.testing.assert_allclose(vectors[~missing].mean(0), 0, atol=1e-5)


def test_a_constant_dimension_is_centred_and_not_divided_by_zero() -> None:
    x = torch.tensor([[5.1, 1.0], [5.1, 3.0], [5.1, 2.0], [0.0, 9.0]])
    mean, sd = train_statistics({"audio": x}, torch.tensor([0, 1, 2]))["audio"]
    torch.testing.assert_close(mean, torch.tensor([5.1, 2.0]))
    torch.testing.assert_close(sd, torch.tensor([1.0, (2 / 3) ** 0.5]))
