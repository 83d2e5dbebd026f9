"""A recipe holds all that changes the numbers, names what changed, and holds nothing else."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from small_models import save_speech, save_text

from amber2_core.errors import ModelError
from amber2_extract.batches import Effort
from amber2_extract.plan import plan_jobs
from amber2_extract.recipe import AudioRecipe, EncoderRecipe, Resampler, TextRecipe, differences

AUDIO = AudioRecipe(
    model="facebook/wav2vec2-base",
    revision="0b5b8e868dd84f03fd87d01f9c4ff0f080fecfe8",
    weights_digest="3" * 64,
    config_digest="4" * 64,
    preprocessor_digest="5" * 64,
    sampling_rate=16_000,
)
TEXT = TextRecipe(
    model="bert-base-uncased", revision="", weights_digest="6" * 64, config_digest="7" * 64, tokenizer_digest="8" * 64
)
CHANGES: dict[str, Any] = {
    "model": "facebook/wav2vec2-large-robust",
    "revision": "e" * 40,
    "weights_digest": "a" * 64,
    "config_digest": "b" * 64,
    "preprocessor_digest": "c" * 64,
    "tokenizer_digest": "d" * 64,
    "layers": "all",
    "frames": 50,
    "pooling": "maximum",
    "precision": "bf16",
    "preprocessing_version": 2,
    "sampling_rate": 8_000,
    "max_seconds": 12.5,
    "resampler": Resampler(rolloff=0.99),
    "repair": "cp1252",
    "layer": 6,
    "attention": "eager",
    "window": "fit",
    "tower": "qwen2_audio",
}


@pytest.mark.parametrize("recipe", [AUDIO, TEXT])
def test_every_setting_changes_the_fingerprint_and_is_named(recipe: AudioRecipe | TextRecipe) -> None:
    for field in fields(recipe):
        changed = replace(recipe, **{field.name: CHANGES[field.name]})
        assert changed.fingerprint != recipe.fingerprint
        (difference,) = differences(recipe.record(), changed.record())
        assert difference.startswith(f"{field.name} changed" if field.name != "resampler" else "resampler.rolloff")


@pytest.mark.parametrize("parameter", ["method", "lowpass_filter_width", "rolloff", "beta"])
def test_every_parameter_of_the_resampler_changes_the_fingerprint_and_is_named(parameter: str) -> None:
    other = {"method": "sinc_interp_hann", "lowpass_filter_width": 6, "rolloff": 0.9, "beta": 12.0}
    changed = replace(AUDIO, resampler=Resampler(**{parameter: other[parameter]}))  # type: ignore[arg-type]
    assert changed.fingerprint != AUDIO.fingerprint
    (difference,) = differences(AUDIO.record(), changed.record())
    assert difference.startswith(f"resampler.{parameter} changed from ")


def test_what_must_not_change_the_numbers_is_in_no_recipe() -> None:
    settings = {field.name for recipe in (AUDIO, TEXT) for field in fields(recipe)}
    effort = {field.name for field in fields(Effort)}
    assert {"device", "batch_seconds", "batch_tokens"} <= effort
    assert not settings & (effort | {"batch_size", "batch", "workers", "threads", "order", "folder", "path"})


def test_differences_are_told_in_words() -> None:
    after = replace(AUDIO, weights_digest="9" * 64, max_seconds=10.0)
    assert differences(AUDIO.record(), after.record()) == (
        "max_seconds changed from none to 10.0",
        "weights_digest changed from 333333333333… to 999999999999…",
    )
    assert differences(AUDIO.record(), AUDIO.record()) == ()


def test_a_setting_that_an_older_recipe_did_not_have_is_named() -> None:
    record = TEXT.record()
    del record["precision"]
    assert differences(record, TEXT.record()) == ("precision changed from none to fp32",)


def test_a_fingerprint_is_the_same_today_and_tomorrow() -> None:
    """Caches on disk were written under these; if this fails, every cache of every user is encoded again."""
    assert AUDIO.fingerprint == "028bdaaf98aac8ec4aa4498632932a9947d6ba6e0f988d982e16e2ae356b440d"
    assert TEXT.fingerprint == "65946151f263c51ce8a067ad29cfeccd3bf075c12b72af99e23e07e31c95abfd"


def test_a_recipe_knows_its_checkpoint_by_content_not_by_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        save_speech(tmp_path / place / "wav2vec2", "wav2vec2-group")
        save_text(tmp_path / place / "bert", "bert")
    here, there = tmp_path / "here", tmp_path / "there"
    assert _audio(here / "wav2vec2") == _audio(there / "wav2vec2")
    assert _text(here / "bert") == _text(there / "bert")


def test_a_changed_checkpoint_under_the_same_name_is_another_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "wav2vec2"
    save_speech(folder, "wav2vec2-group", seed=0)
    before = _audio(folder)
    save_speech(folder, "wav2vec2-group", seed=1)
    assert _changed(before, _audio(folder)) == ["weights_digest"]
    save_speech(folder, "wav2vec2-group", seed=0, do_normalize=False)
    assert _changed(before, _audio(folder)) == ["preprocessor_digest"]
    save_speech(folder, "wav2vec2-layer", seed=0)
    assert _changed(before, _audio(folder)) == ["config_digest", "preprocessor_digest", "weights_digest"]


def test_a_changed_tokenizer_is_another_recipe(tmp_path: Path) -> None:
    save_text(tmp_path, "bert")
    before = _text(tmp_path)
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8").replace('"voice"', '"vice"'), encoding="utf-8")
    assert _changed(before, _text(tmp_path)) == ["tokenizer_digest"]


def test_a_preprocessor_that_names_no_sampling_rate_is_refused(tmp_path: Path) -> None:
    save_speech(tmp_path, "wav2vec2-group")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"preprocessor_config\.json names no sampling_rate"):
        _audio(tmp_path)


def _audio(folder: Path) -> EncoderRecipe:
    (job,) = plan_jobs(str(folder), None)
    return job.recipe


def _text(folder: Path) -> EncoderRecipe:
    (job,) = plan_jobs(None, str(folder))
    return job.recipe


def _changed(before: AudioRecipe | TextRecipe, after: AudioRecipe | TextRecipe) -> list[str]:
    return [difference.split()[0] for difference in differences(before.record(), after.record())]
