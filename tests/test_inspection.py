"""A cache is described, and every number of it verified, however large; two are compared utterance by utterance."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from golden_cache import golden_cache

from amber2_core.cache import Failure, FeatureCache, Features, Frames, write_cache
from amber2_core.errors import CacheError
from amber2_core.tables import rating_table, texts, utterance_table
from amber2_core.utterance import Corpus, LabelDefaults, Rating, Utterance
from amber2_extract.cli import inspect_cache
from amber2_extract.inspection import compare, describe, describe_comparison, read_description


def test_a_large_cache_is_verified_without_its_numbers_in_memory(tmp_path: Path) -> None:
    cache = golden_cache()
    values = np.ones((5, 2_000_000), dtype=np.float32)
    large = replace(cache.features[2], values=values)
    write_cache(tmp_path / "large.h5", replace(cache, features=(large,)))
    tracemalloc.start()
    record = read_description(tmp_path / "large.h5", verify=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert record["verified"]
    assert record["features"][0]["shape"] == [5, 2_000_000]
    assert peak < values.nbytes / 2


@pytest.mark.parametrize("place", ["values", "inputs", "frames/values", "frames/offsets"])
def test_damage_anywhere_in_a_feature_set_is_found(tmp_path: Path, place: str) -> None:
    path = tmp_path / "cache.h5"
    write_cache(path, golden_cache())
    with h5py.File(path, "r+") as file:
        dataset = file["features/audio/wav2vec2"][place]
        values = dataset[...]
        values[0] = values[1]
        dataset[...] = values
    with pytest.raises(CacheError, match="does not match its checksum"):
        read_description(path, verify=True)
    assert not read_description(path)["verified"]


def test_a_feature_set_without_content_is_told(tmp_path: Path) -> None:
    cache = golden_cache()
    flat = replace(cache.features[2], values=np.ones_like(cache.features[2].values), name="flat")
    flat = replace(flat, inputs=texts(["0" * 64] * 5))
    write_cache(tmp_path / "cache.h5", replace(cache, features=(*cache.features, flat)))
    told = {f["name"]: f["without_content"] for f in read_description(tmp_path / "cache.h5")["features"]}
    empty = sum(not transcript.strip() for transcript in cache.utterances.transcript)
    because = f" ({empty} transcripts are empty)" if empty else ""
    line = f"5 of 5 utterances have the same vector{because}: little or nothing can be learnt from it"
    assert told == {**dict.fromkeys(told, ""), "flat": line}
    assert f"warning: {line}" in describe(read_description(tmp_path / "cache.h5"))


# --- two caches ---

CORPUS = Corpus(
    "example",
    Path("/corpus"),
    tuple(Utterance(f"u{row}", f"u{row}.wav", "", (Rating("r", "sad"),)) for row in range(4)),
    LabelDefaults(("sad", "happy")),
)
VALUES = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
RECIPE = {"model": "hubert", "precision": "fp32"}


def _cache(corpus: Corpus = CORPUS, values: Any = VALUES, recipe: Any = RECIPE, **settings: Any) -> FeatureCache:
    digests = texts(["" if np.isnan(row).any() else f"digest{number}" for number, row in enumerate(values)])
    features = Features("audio", "hubert", values, digests, recipe, settings.pop("frames", None))
    return FeatureCache(
        corpus.name,
        utterance_table(corpus),
        rating_table(corpus),
        corpus.defaults,
        (features,),
        **settings,
    )


def _record(folder: Path, one: FeatureCache, two: FeatureCache) -> dict[str, Any]:
    write_cache(folder / "a.h5", one)
    write_cache(folder / "b.h5", two)
    return compare(folder / "a.h5", folder / "b.h5")


def test_a_cache_is_the_same_as_itself_and_as_one_made_later(tmp_path: Path) -> None:
    record = _record(tmp_path, _cache(), _cache(created="later", versions={"amber2": "9"}))
    assert record["same"]
    assert record["features"]["audio/hubert"]["equal"] == 4
    assert describe_comparison(record).endswith("nothing differs")


def test_rows_are_matched_by_utterance_whatever_their_order(tmp_path: Path) -> None:
    turned = replace(CORPUS, utterances=CORPUS.utterances[::-1])
    two = _cache(turned, VALUES[::-1])
    two = replace(two, features=(replace(two.features[0], inputs=_cache().features[0].inputs[::-1]),))
    assert _record(tmp_path, _cache(), two)["same"]


def test_the_largest_differences_are_told(tmp_path: Path) -> None:
    changed = VALUES.copy()
    changed[1] += [0, 0.25, 0]
    changed[2] *= 1.01
    features = _record(tmp_path, _cache(), _cache(values=changed))["features"]["audio/hubert"]
    assert (features["equal"], features["same"]) == (2, False)
    assert features["absolute"] == pytest.approx(0.25)
    assert features["relative"] == pytest.approx(0.25 / np.sqrt(16 + 25 + 36))


def test_a_changed_recipe_is_named(tmp_path: Path) -> None:
    record = _record(tmp_path, _cache(), _cache(recipe={**RECIPE, "precision": "bf16"}))
    assert not record["same"]
    assert "precision changed from fp32 to bf16" in describe_comparison(record)


def test_what_only_one_has_is_counted(tmp_path: Path) -> None:
    few = replace(CORPUS, utterances=CORPUS.utterances[:3])
    missing = VALUES[:3].copy()
    missing[0] = np.nan
    two = _cache(few, missing, failures=(Failure("u0", "audio/hubert", "is silent"),))
    record = _record(tmp_path, _cache(), two)
    assert record["utterances"] == {"a": 1, "b": 0, "both": 3}
    assert record["failures"] == {"a": 0, "b": 1, "both": 0}
    assert record["features"]["audio/hubert"]["encoded"] == {"a": 2, "b": 0, "both": 2}
    assert not record["ratings"]
    assert "2 rows in both, 2 of them equal, 2 only in a" in describe_comparison(record)


def test_sets_of_one_cache_and_of_other_shapes_are_named(tmp_path: Path) -> None:
    two = _cache(values=VALUES[:, :2])
    two = replace(two, features=(*two.features, replace(two.features[0], name="wavlm")))
    words = describe_comparison(_record(tmp_path, _cache(), two))
    assert "audio/wavlm: only in b" in words
    assert "audio/hubert: 4 rows in both, 0 of them equal, not to be compared" in words


def test_sequences_count_too(tmp_path: Path) -> None:
    offsets = np.array([0, 1, 2, 3, 4])
    one, two = (_cache(frames=Frames(np.full((4, 3), value, dtype=np.float32), offsets)) for value in (0.0, 1.0))
    assert _record(tmp_path, one, one)["same"]
    assert _record(tmp_path, one, two)["features"]["audio/hubert"]["equal"] == 0


def test_the_command_prints_it_and_exits_with_3_where_they_differ(tmp_path: Path) -> None:
    write_cache(tmp_path / "a.h5", _cache())
    write_cache(tmp_path / "b.h5", _cache(values=VALUES + 1))
    a, b = str(tmp_path / "a.h5"), str(tmp_path / "b.h5")
    assert CliRunner().invoke(inspect_cache, [a, "--diff", a]).exit_code == 0
    result = CliRunner().invoke(inspect_cache, [a, "--diff", b, "--json"])
    assert result.exit_code == 3
    assert json.loads(result.stdout)["features"]["audio/hubert"]["absolute"] == 1
    result = CliRunner().invoke(inspect_cache, [a, "--diff", str(tmp_path / "nothing.h5")])
    assert result.exit_code == 1
    assert "No feature cache at" in result.stderr
