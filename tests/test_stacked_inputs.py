"""Input layers, learnt poolings and several feature sets of one modality, from the cache to trained runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from synthetic_data import cache_of, layered_fold, write_layered_cache, write_small_cache

from amber2_core.cache import read_cache, write_cache
from amber2_core.heads_folder import read_heads
from amber2_core.run_folder import read_predictions, read_results, read_settings
from amber2_train.cli import train_heads
from amber2_train.stacked.loop import train
from amber2_train.stacked.system import FittedHeads, StackedSystem
from amber2_train.systems.system import FitOptions, system_of

SMALL: dict[str, Any] = {"hidden": 8, "batch_size": 7, "lr": 0.01}
READING: list[dict[str, Any]] = [
    {"input_layers": "1"},
    {"input_layers": "weighted"},
    {"input_layers": "weighted", "layer_norm": "pooled"},
    {"input_pooling": "attentive"},
    {"input_pooling": "pointwise"},
    {"input_pooling": "pointwise-of-mean"},
    {"learn_from": "majority"},
]
QUICK = ["--seeds", "1", "--epochs", "2", "--hidden", "8", "--json"]


def ran(*words: str | Path) -> Result:
    result = CliRunner().invoke(train_heads, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("reading", READING, ids=lambda v: "-".join(map(str, v.values())))
@pytest.mark.parametrize("name", ["amber2", "cb-ce"])
def test_a_run_does_not_depend_on_its_neighbours_whatever_it_reads(
    tmp_path: Path, name: str, reading: dict[str, Any]
) -> None:
    system, fold = system_of(name), layered_fold(tmp_path, missing={"audio": [2, 21, 40], "text": [3, 4, 5]})
    assert isinstance(system, StackedSystem)
    own = [{"kappa": 2.0}, {"kappa": 8.0}, {"lambda_mai": 0.1}] if name == "amber2" else [{}]
    settings = [system.Settings(**SMALL, **reading, **more) for more in own]
    many = list(system.fit(fold, settings, [0, 1], FitOptions(3)))
    for one in many:
        (alone,) = system.fit(fold, [one.setting], [one.seed], FitOptions(3))
        for head, probs in one.probs(fold.test).items():
            np.testing.assert_allclose(probs, alone.probs(fold.test)[head], atol=2e-5)


def test_reading_a_layer_by_its_number_is_training_on_a_cache_that_holds_that_layer(tmp_path: Path) -> None:
    path = write_layered_cache(tmp_path)
    cache = read_cache(path)
    alone = tmp_path / "alone.h5"
    write_cache(alone, replace(cache, features=tuple(replace(f, values=f.values[:, 1]) for f in cache.features)))
    for source, output, more in ((path, "numbered", ["--input-layers", "1"]), (alone, "only", [])):
        ran("--cache", source, "--output", tmp_path / output, *QUICK, "--inputs", "standardized", *more)
    numbered, only = (read_predictions(tmp_path / output) for output in ("numbered", "only"))
    for name, probs in numbered.probs.items():
        np.testing.assert_array_equal(probs, only.probs[name])
    assert {row["input_layers"] for row in read_results(tmp_path / "numbered")} == {1}
    assert "the vectors of layer 1 of 3" in read_settings(tmp_path / "numbered")["reads"]["audio"]


def test_a_planted_informative_layer_wins_the_learnt_sum(tmp_path: Path) -> None:
    fold, system = layered_fold(tmp_path, count=150), system_of("cb-ce")
    assert isinstance(system, StackedSystem)
    setting = system.Settings(hidden=16, batch_size=16, lr=1e-3, input_layers="weighted")
    found = train(system, fold, [setting], [0, 1], FitOptions(30))
    for seed in range(2):
        scores = found.stack.state(seed, 0)["heads.audio.layers.weight"].softmax(-1)[0]
        assert scores.argmax() == 1
        assert scores[1] > 0.5


def test_heads_that_learn_what_to_read_predict_the_same_from_their_file(tmp_path: Path) -> None:
    fold = layered_fold(tmp_path, standardise=True)
    every = torch.arange(len(fold.test))
    for reading in READING[:5]:
        system = system_of("amber2")
        assert isinstance(system, StackedSystem)
        (one,) = system.fit(fold, [system.Settings(**SMALL, **reading)], [0], FitOptions(2))
        assert isinstance(one, FittedHeads)
        recipe = {"name": "made", "fingerprint": "f", "recipe": {}}
        origin = {
            "system": "amber2", "setting": {}, "emotions": fold.emotions, "policy": {},
            "features": {"audio": recipe, "text": recipe},
        }  # fmt: skip
        one.save(tmp_path / "heads.safetensors", origin)
        heads = read_heads(tmp_path / "heads.safetensors")
        raw: dict[str, Any] = {}
        for modality in ("audio", "text"):
            need = system.reads(one.setting, modality)
            if need == "frames":
                raw[modality] = fold.test.frames(modality, every)
            else:
                x = fold.test.layers(modality, every)
                raw[modality] = x if need == "layers" else x[:, need if isinstance(need, int) else -1]
        for head, probs in heads.probs(raw).items():
            np.testing.assert_allclose(probs, one.probs(fold.test)[head], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--input-layers", "weighted"], "reads all layers, and audio/audio-model has one: encode with"),
        (["--input-layers", "3"], "reads layer 3, and audio/audio-model has one, which is --input-layers last"),
        (["--input-pooling", "attentive"], "reads frames, and audio/audio-model has none: encode with"),
        (
            ["--layer-norm", "pooled"],
            "layer-norm pooled with input-layers last: what is normalised are the layers of a",
        ),
        (["--input-layers", "top"], "Bad input-layers 'top', expected last, weighted or a number from 0"),
        (["--input-layers", "1", "--input-pooling", "attentive"], "frames are cached of the last layer alone"),
    ],
)
def test_what_a_cache_cannot_feed_is_refused_in_one_line(tmp_path: Path, words: list[str], line: str) -> None:
    path = write_small_cache(tmp_path)
    result = CliRunner().invoke(train_heads, ["--cache", str(path), "--output", str(tmp_path / "run"), *words])
    assert result.exit_code == 1
    assert line in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_several_feature_sets_of_a_modality_have_a_head_each(tmp_path: Path) -> None:
    cache, path = cache_of(60), tmp_path / "two.h5"
    audio, text = cache.features
    other = replace(audio, name="other.1", values=audio.values[:, :4] * 2)
    write_cache(path, replace(cache, features=(audio, other, text)))
    ran("--cache", path, "--output", tmp_path / "run", *QUICK, "--audio", "audio-model,other.1", "--fusion", "gmu")
    heads = {"audio:audio-model", "audio:other.1", "text", "fusion"}
    assert {row["head"] for row in read_results(tmp_path / "run")} == heads
    weights = {c for c in (tmp_path / "run" / "experts.csv").read_text().partition("\n")[0].split(",") if "weight" in c}
    assert {f"weight_{head}" for head in heads - {"fusion"}} <= weights
    (file,) = (tmp_path / "run" / "heads").glob("amber2-fold1-*.safetensors")
    assert read_heads(file).model.architecture.modalities == ("audio:audio-model", "audio:other.1", "text")
    again = CliRunner().invoke(train_heads, ["--cache", str(path), "--audio", "other.1,other.1"])
    assert (again.exit_code, again.output.strip()) == (
        1,
        "error: Bad audio 'other.1,other.1': a feature set stands twice",
    )


def test_all_is_every_system_that_the_cache_can_feed(tmp_path: Path) -> None:
    path = write_small_cache(tmp_path)
    ran("--cache", path, "--output", tmp_path / "run", *QUICK, "--system", "all", "--text", "none")
    settings = read_settings(tmp_path / "run")
    assert "cb-ce" in settings["systems"]
    assert "amber2" not in settings["systems"]
    assert "amber2 is left out: amber2 weighs experts" in (tmp_path / "run" / "log.txt").read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["table"].keys() >= {"cb-ce"}


def test_heads_on_the_tower_of_an_audio_language_model_are_told_from_a_tuned_one(tmp_path: Path) -> None:
    cache, path = cache_of(60), tmp_path / "tower.h5"
    audio, text = cache.features
    audio = replace(audio, recipe={**audio.recipe, "model": "some/ear", "tower": "qwen2_audio"})
    write_cache(path, replace(cache, features=(audio, text)))
    ran("--cache", path, "--output", tmp_path / "run", *QUICK)
    line = "heads on the frozen audio tower of some/ear (qwen2_audio) stand in for tuning that model"
    assert read_settings(tmp_path / "run")["remarks"] == {"amber2": [line], "cb-ce": [line]}
