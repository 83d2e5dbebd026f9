"""Feature sets and the caches that hold them in memory: the cache key, the choice of a set, and what does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden_cache import golden_cache
from hypothesis import given
from hypothesis import strategies as st

import amber2_core.features
from amber2_core.cache import FeatureCache, fingerprint
from amber2_core.errors import CacheError
from amber2_core.features import Frames, check_fit, repeated_rows
from amber2_core.tables import take, texts

SETTINGS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé1 ")
)
RECIPES = st.dictionaries(
    st.text("abcé", min_size=1),
    st.recursive(SETTINGS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xy"), inner)),
    max_size=5,
)


def _backwards(value: Any) -> Any:
    """The same JSON value with all keys in the opposite order."""
    if isinstance(value, Mapping):
        return {name: _backwards(value[name]) for name in reversed(list(value))}
    return [_backwards(item) for item in value] if isinstance(value, list) else value


def test_a_fingerprint_is_the_sha256_of_the_documented_json() -> None:
    recipe = {"sampling_rate": 16000, "model": "möbel", "resampler": {"rolloff": 0.5, "zeros": None}, "on": True}
    json = '{"model":"möbel","on":true,"resampler":{"rolloff":0.5,"zeros":null},"sampling_rate":16000}'
    assert fingerprint(recipe) == hashlib.sha256(json.encode("utf-8")).hexdigest()


@given(RECIPES)
def test_the_order_of_a_recipes_settings_does_not_matter(recipe: dict[str, Any]) -> None:
    assert fingerprint(_backwards(recipe)) == fingerprint(recipe)


@given(RECIPES, st.data())
def test_any_change_of_a_recipe_changes_its_fingerprint(recipe: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*recipe, "new"]))
    value = data.draw(SETTINGS.filter(lambda value: name not in recipe or repr(value) != repr(recipe[name])))
    assert fingerprint({**recipe, name: value}) != fingerprint(recipe)
    assert fingerprint({**recipe, name + "_": value}) != fingerprint(recipe)


def test_values_of_different_types_have_different_fingerprints() -> None:
    values = [1, 1.0, True, "1", [1], {"1": 1}, None]
    assert len({fingerprint({"setting": value}) for value in values}) == len(values)


# --- which feature set ---


def test_the_only_feature_set_of_a_modality_needs_no_name() -> None:
    cache = golden_cache()
    assert cache.feature_set("text") is cache.features[2]
    assert cache.feature_set("text", "bert") is cache.features[2]
    assert cache.feature_set("audio", "wav2vec2") is cache.features[1]


@pytest.mark.parametrize(
    ("modality", "name", "line"),
    [
        ("audio", None, "The cache holds several audio feature sets ({}): name one with --audio"),
        ("video", None, "The cache holds no video features (it holds {}): encode them with extract-features"),
        (
            "text",
            "wav2vec2",
            "The cache holds no text/wav2vec2 features (it holds {}): encode them with extract-features",
        ),
    ],
)
def test_a_feature_set_that_is_not_the_only_one_is_named_or_refused(modality: str, name: str | None, line: str) -> None:
    with pytest.raises(CacheError) as caught:
        golden_cache().feature_set(modality, name)
    assert str(caught.value) == line.format("audio/layers of é, audio/wav2vec2, text/bert")


def test_a_cache_without_features_says_so() -> None:
    with pytest.raises(CacheError, match=r"holds no audio features \(it holds none\)"):
        replace(golden_cache(), features=()).feature_set("audio")


def test_rows_without_a_digest_are_not_encoded() -> None:
    assert golden_cache().features[1].encoded.tolist() == [True, True, False, True, False]


# --- what does not fit together ---


def _with(**changes: Any) -> FeatureCache:
    """The golden cache whose wav2vec2 features, with five rows of six numbers, are changed."""
    cache = golden_cache()
    return replace(cache, features=(cache.features[0], replace(cache.features[1], **changes)))


def _spoilt(row: int, number: float, dtype: type[np.floating[Any]] = np.float32) -> FeatureCache:
    values = golden_cache().features[1].values.astype(dtype)
    values[row, 3] = number
    return _with(values=values)


def _frames(**changes: Any) -> FeatureCache:
    frames = golden_cache().features[1].frames
    assert frames is not None
    return _with(frames=replace(frames, **changes))


def _utterances(**changes: Any) -> FeatureCache:
    cache = golden_cache()
    return replace(cache, utterances=replace(cache.utterances, **changes))


def _rated(rows: list[int]) -> FeatureCache:
    cache = golden_cache()
    return replace(cache, ratings=replace(cache.ratings, utterance=np.array(rows, dtype=np.int32)))


def _attribute(name: str, column: Any) -> FeatureCache:
    return replace(golden_cache(), attributes={name: column})


VALUES = golden_cache().features[1].values
KIND = "audio/wav2vec2 must be (N, D) or (N, layers, D) of float32 or float16, is"
MISFITS = {
    "one row too few": (_with(values=VALUES[:4]), "audio/wav2vec2 has 4 rows and 5 inputs for 5 utterances"),
    "one digest too few": (_with(inputs=texts([""] * 4)), "audio/wav2vec2 has 5 rows and 4 inputs for 5 utterances"),
    "float64": (_with(values=VALUES.astype(np.float64)), f"{KIND} (5, 6) float64"),
    "whole numbers": (_with(values=np.ones((5, 6), dtype=np.int32)), f"{KIND} (5, 6) int32"),
    "a vector": (_with(values=VALUES[:, 0]), f"{KIND} (5,) float32"),
    "four dimensions": (_with(values=VALUES[:, None, None]), f"{KIND} (5, 1, 1, 6) float32"),
    "no dimension": (_with(values=VALUES[:, :0]), f"{KIND} (5, 0) float32"),
    "a NaN among numbers": (
        _spoilt(3, np.nan),
        "audio/wav2vec2 holds NaN or infinity in the row of utterance 'd d'",
    ),
    "infinity": (_spoilt(0, -np.inf), "audio/wav2vec2 holds NaN or infinity in the row of utterance 'a'"),
    "overflow of float16": (
        _spoilt(1, np.inf, np.float16),
        "audio/wav2vec2 holds NaN or infinity in the row of utterance 'b/1'",
    ),
    "zeros for a failure": (
        _spoilt(2, 0.0),
        "audio/wav2vec2 holds numbers, though nothing was encoded in the row of utterance 'c'",
    ),
    "float64 frames": (
        _frames(values=np.ones((7, 6))),
        "audio/wav2vec2 frames must be (ΣT, D) of finite float32 or float16, are (7, 6) float64",
    ),
    "NaN frames": (
        _frames(values=np.full((7, 6), np.nan, dtype=np.float32)),
        "audio/wav2vec2 frames must be (ΣT, D) of finite float32 or float16, are (7, 6) float32",
    ),
    "offsets for four": (
        _frames(offsets=np.array([0, 1, 2, 3, 7])),
        "audio/wav2vec2 frames need (6,) int64 offsets, have (5,) int64",
    ),
    "float offsets": (
        _frames(offsets=np.arange(6.0)),
        "audio/wav2vec2 frames need (6,) int64 offsets, have (6,) float64",
    ),
    "frames of nobody": (
        _frames(offsets=np.array([0, 1, 2, 3, 4, 5])),
        "audio/wav2vec2 frames need offsets that rise from 0 to 7",
    ),
    "frames before the first": (
        _frames(offsets=np.array([1, 3, 4, 4, 7, 7])),
        "audio/wav2vec2 frames need offsets that rise from 0 to 7",
    ),
    "falling offsets": (
        _frames(offsets=np.array([0, 3, 2, 4, 5, 7])),
        "audio/wav2vec2 frames need offsets that rise from 0 to 7",
    ),
    "a place for a name": (
        _with(name="facebook/wav2vec2"),
        "Bad feature set name 'audio/facebook/wav2vec2', expected <modality>/<name> without another '/'",
    ),
    "no name": (_with(name=""), "Bad feature set name 'audio/', expected <modality>/<name> without another '/'"),
    "one name twice": (_with(name="layers of é"), "two feature sets are called 'audio/layers of é'"),
    "one id twice": (_utterances(id=texts(["a", "b", "c", "d", "a"])), "two utterances have the same id"),
    "a rating of a row too far": (_rated([0, 0, 0, 1, 3, 5]), "a rating belongs to none of the 5 utterances"),
    "a rating of row −1": (_rated([0, 0, 0, 1, 3, -1]), "a rating belongs to none of the 5 utterances"),
    "a place for an attribute": (_attribute("a/b", np.ones(5)), "Bad attribute name 'a/b', expected one without '/'"),
    "a short attribute": (_attribute("a", np.ones(4)), "attribute 'a' must be (5,) float64 or text, is (4,) float64"),
    "a whole attribute": (
        _attribute("a", np.ones(5, dtype=np.int64)),
        "attribute 'a' must be (5,) float64 or text, is (5,) int64",
    ),
}


def test_the_parts_of_the_golden_cache_fit_together() -> None:
    check_fit(golden_cache())


@pytest.mark.parametrize(("cache", "line"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_refused_in_one_line(cache: FeatureCache, line: str) -> None:
    with pytest.raises(CacheError) as caught:
        check_fit(cache)
    assert str(caught.value) == line


def test_columns_of_different_lengths_are_refused() -> None:
    short = _utterances(speaker=texts(["F1"]))
    with pytest.raises(CacheError, match=r"the columns of the utterances have different lengths, \{'id': 5, .*: 1, "):
        check_fit(short)
    ratings = golden_cache().ratings
    with pytest.raises(CacheError, match="the columns of the ratings have different lengths"):
        check_fit(replace(golden_cache(), ratings=replace(ratings, label=texts([]))))


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 9000])
@pytest.mark.parametrize("layers", [(), (2,)])
def test_a_spoilt_row_is_found_wherever_it_stands(
    count: int, layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amber2_core.features, "BLOCK_BYTES", 4096 * 12 * (layers or (1,))[0])
    cache = golden_cache()
    utterances = take(cache.utterances, np.zeros(count, dtype=np.intp))
    ids = texts([f"u{row}" for row in range(count)])
    values = np.ones((count, *layers, 3), dtype=np.float32)
    values[-1, ..., -1] = np.nan
    features = replace(cache.features[0], values=values, inputs=texts(["f" * 64] * count))
    nobody = take(cache.ratings, np.array([], dtype=np.intp))
    large = replace(cache, utterances=replace(utterances, id=ids), ratings=nobody, attributes={}, features=(features,))
    with pytest.raises(CacheError, match=f"infinity in the row of utterance 'u{count - 1}'$"):
        check_fit(large)


def test_frames_may_leave_an_utterance_empty() -> None:
    check_fit(_with(frames=Frames(np.ones((2, 3), dtype=np.float32), np.array([0, 0, 2, 2, 2, 2]))))


# --- content ---


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize(
    ("same", "other", "missing", "found"),
    [
        (5, 0, 0, (5, 5)),
        (4, 3, 2, (4, 7)),
        (3, 3, 0, None),
        (1, 0, 3, None),
        (0, 9, 0, None),
        (0, 0, 4, None),
        (0, 0, 0, None),
        (900, 600, 100, (900, 1500)),
        (700, 800, 0, None),
    ],
)
def test_a_vector_that_most_rows_have_is_counted(
    shape: tuple[int, ...], same: int, other: int, missing: int, found: tuple[int, int] | None
) -> None:
    random = np.random.default_rng(0)
    rows = [np.full((same, *shape), 0.5), random.normal(size=(other, *shape)), np.full((missing, *shape), np.nan)]
    values = random.permutation(np.concatenate(rows)).astype(np.float32)
    assert repeated_rows(values) == found
