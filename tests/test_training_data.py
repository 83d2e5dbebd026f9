"""From caches to training data: the one cache that is meant, and the utterances that a policy and the features keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_data import EMOTIONS, cache_of, soft_labels, write_small_cache

from amber2_core.cache import FeatureCache, Features, StoredArray, write_cache
from amber2_core.errors import CacheError, LabelError
from amber2_core.features import Side
from amber2_core.tables import texts
from amber2_core.votes import LabelPolicy
from amber2_train.training_data import TrainingData, feature_keys, find_cache, read_material, side_keys
from amber2_train.training_data import training_data as training_data_of

POLICY = LabelPolicy(EMOTIONS)


def training_data(cache: FeatureCache, policy: LabelPolicy = POLICY, **options: Any) -> TrainingData:
    return training_data_of(cache, {some.modality: some for some in cache.features}, policy, **options)


def test_the_cache_is_the_one_named_wherever_else_one_lies(tmp_path: Path) -> None:
    (tmp_path / "a.h5").touch()
    assert find_cache(Path("elsewhere.h5"), tmp_path) == Path("elsewhere.h5")


def test_without_a_name_it_is_the_only_one_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.h5").touch()
    (tmp_path / "notes.txt").touch()
    assert find_cache(None, tmp_path) == tmp_path / "a.h5"
    monkeypatch.setenv("AMBER2_CACHE_DIR", str(tmp_path))
    assert find_cache(None, None) == tmp_path / "a.h5"
    monkeypatch.delenv("AMBER2_CACHE_DIR")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "b.h5").touch()
    monkeypatch.chdir(tmp_path)
    assert find_cache(None, None) == Path("cache/b.h5")


def test_several_caches_are_listed_and_none_is_guessed(tmp_path: Path) -> None:
    for name in ("b.h5", "a.h5"):
        (tmp_path / name).touch()
    with pytest.raises(CacheError, match=r"Several caches in .*\(a.h5, b.h5\): name one with --cache"):
        find_cache(None, tmp_path)


@pytest.mark.parametrize("folder", ["", "missing"])
def test_a_folder_without_a_cache_says_all_that_can_be_done(tmp_path: Path, folder: str) -> None:
    with pytest.raises(CacheError, match=r"No feature cache in .*extract-features.*--cache.*--cache-dir.*AMBER2_CACHE"):
        find_cache(None, tmp_path / folder)


def test_the_feature_sets_are_the_only_ones_or_those_named(tmp_path: Path) -> None:
    path = write_small_cache(tmp_path)
    assert feature_keys(path, {"audio": None, "text": "text-model"}) == {
        "audio": ("audio", "audio-model"),
        "text": ("text", "text-model"),
    }
    with pytest.raises(CacheError, match=r"no text features called 'bert' .it has text-model.: name one: --text"):
        feature_keys(path, {"audio": None, "text": "bert"})
    with pytest.raises(CacheError, match=r"no video features .it has none.: encode them with extract-features"):
        feature_keys(path, {"video": None})
    # what the cache has not got is left out unless it is asked for by name
    assert feature_keys(path, {"video": None, "audio": None}) == {"audio": ("audio", "audio-model")}
    with pytest.raises(CacheError, match=r"no video features called 'faces' .it has none.: encode them with extract-"):
        feature_keys(path, {"audio": None, "video": "faces"})


def test_a_modality_that_is_not_asked_for_is_not_trained_on(tmp_path: Path) -> None:
    cache = cache_of()
    sentiment = Features(
        "sentiment",
        "classifier",
        np.full((60, 3), 1 / 3, np.float32),
        cache.features[0].inputs,
        {"model": "classifier"},
    )
    write_cache(tmp_path / "made-up.h5", replace(cache, features=(*cache.features, sentiment)))
    asked_for = {"audio": None, "text": None, "video": None}
    assert list(feature_keys(tmp_path / "made-up.h5", asked_for)) == ["audio", "text"]
    assert list(read_material(tmp_path / "made-up.h5", asked_for, {}).data.inputs) == ["audio", "text"]


@pytest.mark.parametrize(
    ("side", "remedy"),
    [
        (Side("prediction", "gpt"), "no prediction features called 'gpt' .*: bring them with import-predictions$"),
        (Side("sentiment"), "no sentiment features .*: encode it with extract-features --sentiment-model$"),
    ],
)
def test_what_is_read_beside_the_modalities_is_missed_with_the_command_that_brings_it(
    tmp_path: Path, side: Side, remedy: str
) -> None:
    with pytest.raises(CacheError, match=remedy):
        side_keys(write_small_cache(tmp_path), [side])
    assert side_keys(tmp_path / "made-up.h5", [side._replace(needed=False)]) == {}


def test_targets_stand_in_the_rows_that_are_kept_and_features_are_left_whole() -> None:
    cache = cache_of(30)
    data = training_data(cache)
    np.testing.assert_allclose(data.targets, soft_labels(30), atol=1e-7)
    assert {some.name: some for some in data.inputs.values()} == {some.name: some for some in cache.features}
    assert data.rows.tolist() == list(range(30))
    assert len(data) == 30


def test_features_are_read_where_they_lie_and_only_those_that_are_asked_for(tmp_path: Path) -> None:
    cache = cache_of(30, modalities=("audio", "text", "video"), missing={"text": [4]})
    write_cache(tmp_path / "cache.h5", cache)
    material = read_material(tmp_path / "cache.h5", {"text": None, "audio": "audio-model"}, {"keep": "majority"})
    assert list(material.data.inputs) == ["text", "audio"]  # in the order asked for
    assert material.cache.features == ()
    assert material.policy.keep == "majority"
    for some in cache.features[:2]:
        held = material.data.inputs[some.modality]
        assert isinstance(held.values, StoredArray)
        np.testing.assert_array_equal(held.values.open(), some.values)
        assert held.fingerprint == some.fingerprint
    targets = soft_labels(30)[material.data.rows]
    np.testing.assert_allclose(material.data.targets, targets, atol=1e-7)
    assert (targets.max(1) > 0.5).all()
    assert 4 not in material.data.rows


def test_the_checksum_knows_the_numbers_of_every_feature_set() -> None:
    first = training_data(cache_of(30)).checksum
    assert training_data(cache_of(30)).checksum == first
    for modality in (0, 1):
        cache = cache_of(30)
        cache.features[modality].values[29, 1] += 1
        assert training_data(cache).checksum != first


def test_what_lacks_features_of_one_modality_or_a_vote_is_dropped_and_counted() -> None:
    cache = cache_of(30, missing={"audio": [3], "text": [3, 7]})
    no_votes = cache.ratings.utterance == 11
    weight = np.where(no_votes, 0, 1).astype(np.float32)
    data = training_data(replace(cache, ratings=replace(cache.ratings, weight=weight)))
    assert data.id.tolist() == [f"u{i:03}" for i in range(30) if i not in (3, 7, 11)]
    assert data.dropped == {"no counting vote": 1, "not keep=any-vote": 0, "features missing": 2}
    kept = [i for i in range(30) if i not in (3, 7, 11)]
    assert data.rows.tolist() == kept
    np.testing.assert_allclose(data.targets, soft_labels(30)[kept], atol=1e-7)


def test_with_a_mask_what_lacks_some_modality_is_kept_and_what_lacks_all_is_dropped() -> None:
    cache = cache_of(30, missing={"audio": [3, 9], "text": [3, 7, 8]})
    data = training_data(cache, missing="mask")
    kept = [i for i in range(30) if i != 3]
    assert data.id.tolist() == [f"u{i:03}" for i in kept]
    assert data.dropped == {"no counting vote": 0, "not keep=any-vote": 0, "no features of any modality": 1}
    assert data.missing == {"audio": 1, "text": 2}
    assert [data.id[~data.present[name]].tolist() for name in ("audio", "text")] == [["u009"], ["u007", "u008"]]
    assert data.rows.tolist() == kept
    for some in cache.features:
        np.testing.assert_array_equal(np.isfinite(some.values[kept]).all(1), data.present[some.modality])
    np.testing.assert_allclose(data.targets, soft_labels(30)[kept], atol=1e-7)


def test_with_a_mask_and_nothing_missing_there_is_no_mask() -> None:
    cache = cache_of(30, missing={"audio": [3], "text": [3]})
    some, other = (training_data(cache, missing=missing) for missing in ("drop", "mask"))
    assert some.present == other.present == {}
    assert other.missing == {}
    assert some.id.tolist() == other.id.tolist()


def test_a_feature_that_is_there_must_be_a_number_also_beside_missing_ones() -> None:
    cache = cache_of(30, missing={"text": [3]})
    cache.features[0].values[5, 2] = np.inf
    with pytest.raises(CacheError, match="The audio features hold a number that is not finite"):
        training_data(cache, missing="mask")
    cache = cache_of(30, missing={"text": [3]})
    cache.features[1].values[5, 2] = np.nan
    with pytest.raises(CacheError, match="The text features hold a number that is not finite"):
        training_data(cache, missing="mask")


def test_a_modality_that_no_labelled_utterance_has_is_refused_with_a_mask() -> None:
    with pytest.raises(CacheError, match="No labelled utterance has text features: see inspect-cache"):
        training_data(cache_of(6, missing={"text": range(6)}), missing="mask")


def test_attributes_are_columns_as_text_and_unknown_numbers_are_empty() -> None:
    attributes = {
        "wave": np.array([1.0, np.nan, 2.5] * 10),
        "room": texts(["a", "", "b"] * 10),
        "speaker": np.zeros(30),  # the table's own column comes first
    }
    data = training_data(replace(cache_of(30, missing={"text": [0]}), attributes=attributes))
    assert data.columns["wave"][:3].tolist() == ["", "2.5", "1"]
    assert data.columns["room"][:3].tolist() == ["", "b", "a"]
    assert data.columns["speaker"].tolist() == data.speaker.tolist()
    assert {"session", "dialogue", "split", "language"} < data.columns.keys()


def test_an_emotion_that_nobody_has_is_refused() -> None:
    with pytest.raises(LabelError, match="No kept utterance has a vote for 'fear': leave it out of --emotions"):
        training_data(cache_of(30), LabelPolicy((*EMOTIONS, "fear")))


def test_a_cache_in_which_nothing_has_all_features_is_refused() -> None:
    cache = cache_of(6, missing={"audio": [0, 1, 2], "text": [3, 4, 5]})
    with pytest.raises(CacheError, match="No labelled utterance has features of every modality"):
        training_data(cache)


def test_a_modality_whose_kept_vectors_are_all_the_same_is_known() -> None:
    cache = cache_of(30, missing={"text": [3]})
    audio, text = cache.features
    assert training_data(cache).constant == ()
    same = np.tile(text.values[:1], (30, 1))
    same[3] = np.nan
    assert training_data(replace(cache, features=(audio, replace(text, values=same)))).constant == ("text",)
    one_apart = same.copy()
    one_apart[29, 4] += 1e-4
    assert training_data(replace(cache, features=(audio, replace(text, values=one_apart)))).constant == ()
    kept_alike = same.copy()
    silent = np.array(["" if row in (3, 9) else text.inputs[0] for row in range(30)], dtype=object)
    kept_alike[9] = np.nan  # not encoded: it is no other vector
    there = replace(text, values=kept_alike, inputs=silent)
    assert training_data(replace(cache, features=(audio, there)), missing="mask").constant == ("text",)
