"""Folds: every utterance is tested once, dev is the next part, and nobody is heard in two parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_data import training_data, write_small_cache

from amber2_core.cache import read_cache, write_cache
from amber2_core.errors import SettingError
from amber2_core.tables import texts
from amber2_train.folds import heard_before, make_folds
from amber2_train.options import TrainOptions
from amber2_train.request import Request, settings_record
from amber2_train.training_data import Fold, TrainingData, read_material


def data_of(speakers: Sequence[str], sessions: Sequence[str]) -> TrainingData:
    return replace(training_data(len(speakers)), speaker=texts(list(speakers)), session=texts(list(sessions)))


def check_partition(folds: Sequence[Fold], count: int) -> None:
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(count))
    for k, fold in enumerate(folds):
        assert fold.number == k + 1
        assert sorted(np.concatenate([fold.train, fold.dev, fold.test])) == list(range(count))
        assert fold.dev.tolist() == folds[(k + 1) % len(folds)].test.tolist()
        assert min(len(fold.train), len(fold.dev), len(fold.test)) > 0


@given(st.lists(st.integers(0, 7), min_size=3, max_size=60).filter(lambda s: len(set(s)) >= 3))
def test_folds_by_speaker_divide_everything_and_part_no_speaker(speakers: list[int]) -> None:
    data = data_of([f"s{s}" for s in speakers], [""] * len(speakers))
    folds = make_folds("speaker", data)
    check_partition(folds, len(speakers))
    assert len(folds) == min(5, len(set(speakers)))
    for fold in folds:
        heard = [set(data.speaker[part]) for part in (fold.train, fold.dev, fold.test)]
        assert sum(map(len, heard)) == len(set().union(*heard))
        assert fold.shared_speakers == 0


def test_folds_by_speaker_are_of_about_equal_size() -> None:
    data = data_of([f"s{i % 91}" for i in range(7442)], [""] * 7442)
    sizes = [len(fold.test) for fold in make_folds("speaker", data)]
    assert max(sizes) - min(sizes) <= 7442 // 91 + 1


def test_folds_by_session_are_the_sessions_in_the_order_of_their_names() -> None:
    sessions = ["Ses05", "Ses01", "Ses03", "Ses02", "Ses04"] * 4
    data = data_of([f"{s}-speaker" for s in sessions], sessions)
    folds = make_folds("session", data)
    check_partition(folds, 20)
    assert [set(data.session[fold.test]) for fold in folds] == [{f"Ses0{k}"} for k in range(1, 6)]
    assert [set(data.session[fold.dev]) for fold in folds] == [{f"Ses0{k}"} for k in (2, 3, 4, 5, 1)]


def test_sessions_that_share_a_speaker_are_refused_unless_the_name_says_so() -> None:
    data = data_of(["ann", "bob", "ann", "cid"], ["1", "1", "2", "3"])
    with pytest.raises(
        SettingError, match=r"would put 1 speakers into more than one part .* --folds speaker, or column:"
    ):
        make_folds("session", data)
    by_column = make_folds("column:session", replace(data, columns={"session": data.session}))
    assert [fold.shared_speakers for fold in by_column] == [1, 1, 1]
    unknown = data_of(["", "", "", "cid"], ["1", "1", "2", "3"])
    assert [fold.shared_speakers for fold in make_folds("session", unknown)] == [0, 0, 0]


def strata(data: TrainingData) -> list[tuple[int, int]]:
    """(largest class, entropy bin) of each utterance, computed one by one."""
    found = []
    for y in data.targets.astype(float):
        bits = -sum(p * math.log2(p) for p in y if p > 0)
        found.append((int(np.argmax(y)), min(int(bits / (math.log2(len(y)) / 5)), 4)))
    return found


def test_stratified_folds_are_equal_and_hold_equal_shares_of_every_class_and_entropy() -> None:
    data = training_data(603)
    folds = make_folds("stratified", data)
    check_partition(folds, 603)
    assert [len(fold.test) for fold in folds] == [121, 121, 121, 120, 120]
    of_rows = strata(data)
    for stratum in set(of_rows):
        counts = [sum(of_rows[row] == stratum for row in fold.test) for fold in folds]
        assert max(counts) - min(counts) <= 1
    assert max(fold.shared_speakers for fold in folds) == 6


def test_stratified_folds_do_not_depend_on_the_order_of_the_cache() -> None:
    data = training_data(100)
    order = np.random.default_rng(0).permutation(100)
    other = replace(data, id=data.id[order], targets=data.targets[order], speaker=data.speaker[order])
    for one, two in zip(make_folds("stratified", data), make_folds("stratified", other), strict=True):
        assert sorted(data.id[one.test]) == sorted(other.id[two.test])


def test_shares_that_rounding_alone_parts_are_equal_to_stratified_folds() -> None:
    data = training_data(60)
    tied = np.tile(np.array([0, 0.2, 0.4, 0.4], dtype=np.float32), (60, 1))
    off = tied.copy()
    off[::2, 3] += np.float32(1e-7)
    assert set(off.argmax(1)) == {2, 3}
    folds = [make_folds("stratified", replace(data, targets=targets)) for targets in (tied, off)]
    assert [fold.test.tolist() for fold in folds[0]] == [fold.test.tolist() for fold in folds[1]]


def test_a_column_gives_one_fold_for_each_of_its_values_in_their_natural_order() -> None:
    column = texts([f"fold{k % 11}" for k in range(44)])
    data = replace(training_data(44), columns={"my_fold": column})
    folds = make_folds("column:my_fold", data)
    check_partition(folds, 44)
    assert [set(column[fold.test]) for fold in folds] == [{f"fold{k}"} for k in range(11)]
    with pytest.raises(SettingError, match=r"Bad column of --folds 'fold', expected one of \['my_fold'\]"):
        make_folds("column:fold", data)


def test_official_folds_are_the_partitions_of_the_release() -> None:
    split = texts(["Train", "Train", "Development", "Test1", "Test2", "Test3"])
    data = replace(training_data(6), split=split, speaker=texts(["a", "b", "b", "c", "a", ""]))
    (fold,) = make_folds("official", data)
    assert [fold.train.tolist(), fold.dev.tolist(), fold.test.tolist()] == [[0, 1], [2], [3]]
    assert fold.shared_speakers == 1
    (second,) = make_folds("official:test2", data)
    assert (second.test.tolist(), second.shared_speakers) == ([4], 2)
    with pytest.raises(SettingError, match=r"the split 'test9', the kept ones are of \['development', 'test1',"):
        make_folds("official:test9", data)
    with pytest.raises(SettingError, match="the split 'train', the kept ones are of no split"):
        make_folds("official", replace(data, split=texts([""] * 6)))


@pytest.mark.parametrize("split", ["train", "dev", "Train", "development", "val", "VALIDATION"])
def test_the_split_that_trains_or_chooses_is_never_tested_on(split: str) -> None:
    data = replace(training_data(6), split=texts(["train", "train", "dev", "validation", "test", "development"]))
    with pytest.raises(SettingError, match=f"^Folds official:{split} would test on utterances that train or choose"):
        make_folds(f"official:{split}", data)


@pytest.mark.parametrize("twice", [(0, 1), (1, 2), (0, 2), (2, 2)])
def test_a_fold_in_which_an_utterance_stands_twice_cannot_be_made(twice: tuple[int, int]) -> None:
    parts = [[0, 1], [2], [3, 4]]
    assert Fold(1, *map(np.array, parts), shared_speakers=0).number == 1
    parts[twice[1]] = [*parts[twice[1]], parts[twice[0]][-1]]
    with pytest.raises(SettingError, match=r"^Fold 1: an utterance stands in two of train, dev and test$"):
        Fold(1, *map(np.array, parts), shared_speakers=0)


@pytest.mark.parametrize("protocol", ["session", "speaker"])
def test_too_few_groups_are_refused_because_a_part_would_be_empty(protocol: str) -> None:
    data = data_of(["a", "b"] * 5, ["1", "2"] * 5)
    with pytest.raises(SettingError, match=f"need at least 3 {protocol}s .* an empty train or dev set"):
        make_folds(protocol, data)


def test_utterances_without_a_speaker_are_counted_and_refused() -> None:
    data = data_of(["a", "", "b", "c"], ["1", "2", "3", "4"])
    with pytest.raises(SettingError, match="a speaker for every utterance, 1 of 4 have none: choose other --folds"):
        make_folds("speaker", data)


def test_an_unknown_protocol_names_those_there_are() -> None:
    with pytest.raises(SettingError, match=r"Bad folds 'random', expected one of \['session', 'speaker'"):
        make_folds("random", training_data())


@pytest.mark.parametrize(
    ("protocol", "folds", "shared"),
    # shared: none, those of train and test2, and elsewhere everybody, who all speak in every part
    [("official", 1, 0), ("official:test2", 1, 3), ("stratified", 5, 9), ("column:wave", 4, 9), ("column:split", 4, 3)],
)
def test_a_run_keeps_the_name_of_its_protocol_and_the_number_of_shared_speakers(
    protocol: str, folds: int, shared: int, tmp_path: Path
) -> None:
    cache = read_cache(write_small_cache(tmp_path, count=60))
    count = len(cache.utterances)
    # the speakers of test1 are nowhere else, those of test2 are all of those of train
    names = ("train", "dev", "test1", "train", "dev", "test2")
    split = texts([names[k % 6] for k in range(count)])
    speaker = texts([{"test2": f"train{k % 5 % 3}"}.get(s, f"{s}{k % 5 % 3}") for k, s in enumerate(split)])
    table = replace(cache.utterances, split=split, speaker=speaker)
    wave = np.arange(count, dtype=np.float64) // 3 % 4
    write_cache(tmp_path / "split.h5", replace(cache, utterances=table, attributes={"wave": wave}))
    material = read_material(tmp_path / "split.h5", {"audio": None, "text": None}, {})
    options = TrainOptions(folds=protocol)
    made = make_folds(protocol, material.data)
    record = settings_record(Request(options, options.settings(), "cpu", True, material, protocol, made))["folds"]
    assert record["protocol"] == protocol
    assert list(record["sizes"]) == [str(k + 1) for k in range(folds)]
    assert record["shared_speakers"] == shared


def test_utterances_that_train_or_dev_has_heard_before_are_counted() -> None:
    def fold(number: int, train: list[int], dev: list[int], test: list[int]) -> Fold:
        return Fold(number, np.array(train), np.array(dev), np.array(test), 0)

    recording = texts(["a", "b", "c", "a", "", "", "b", "d"])
    assert heard_before(recording, [fold(1, [0, 1, 4], [2], [3, 5, 6, 7])]) == 2  # a and b; an unknown one is not
    assert heard_before(recording, [fold(1, [0], [1], [3, 7]), fold(2, [3], [7], [0, 1, 2])]) == 2
    assert heard_before(recording, [fold(1, [0, 3], [2], [7])]) == 0


def test_a_modality_that_no_train_row_has_is_missing_from_the_whole_fold() -> None:
    lacking = [0, 1, *(row for row in range(30) if row % 3 == 2)]  # all of the last session, and some more
    data = training_data(30, missing={"text": lacking, "audio": [0, 4]})
    first, second, _ = make_folds("session", data)
    assert {row % 3 for row in first.train} == {2}
    without_audio, without_text = np.isin(np.arange(30), [0, 4]), np.isin(np.arange(30), lacking)
    masks = data.presence(first.train)
    assert masks is not None
    np.testing.assert_array_equal(masks, [~without_audio, np.zeros(30, bool), ~without_audio])
    masks = data.presence(second.train)
    assert masks is not None
    np.testing.assert_array_equal(masks, [~without_audio, ~without_text, ~(without_audio & without_text)])
    assert training_data(30).presence(second.train) is None
