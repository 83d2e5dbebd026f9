"""Two caches are compared utterance by utterance, and what differs is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from amber2_core.cache import Failure, FeatureCache, Features, Frames, write_cache
from amber2_core.tables import rating_table, texts, utterance_table
from amber2_core.utterance import Corpus, LabelDefaults, Rating, Utterance
from amber2_extract.cli import inspect_cache
from amber2_extract.comparison import compare, describe

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
    assert describe(record).endswith("nothing differs")


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
    assert "precision changed from fp32 to bf16" in describe(record)


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
    assert "2 rows in both, 2 of them equal, 2 only in a" in describe(record)


def test_sets_of_one_cache_and_of_other_shapes_are_named(tmp_path: Path) -> None:
    two = _cache(values=VALUES[:, :2])
    two = replace(two, features=(*two.features, replace(two.features[0], name="wavlm")))
    words = describe(_record(tmp_path, _cache(), two))
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
