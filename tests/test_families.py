"""Every family of encoders against its own model's forward pass, one utterance at a time, by hand."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from extraction import Place, work_here
from small_families import SPECTRA, WINDOWED, save_family
from small_models import (
    KIN,
    SPEECH_FAMILIES,
    TEXT_KIN,
    noise,
    save_language_model,
    save_speech,
    save_t5,
    save_text,
    vectors,
)
from torch import Tensor, nn

from amber2_core.errors import AudioError, ModelError, SettingError
from amber2_extract.batches import Effort
from amber2_extract.plan import Job, plan_jobs
from amber2_extract.worker import load_encoder

RATE = 16_000
# one that is too short for a place of its own, one of two windows, one whose last window is too short to be heard
SECONDS = (0.06, 0.5, 2.7, 1.31, 2.0, 4.01)
ONE_AT_A_TIME = {"w2v-bert-adapter", "seamless", "speech-to-text"}


def loaded(folder: Path, modality: str = "audio", **settings: Any) -> Any:
    models = (str(folder), None) if modality == "audio" else (None, str(folder))
    (job,) = plan_jobs(*models, **settings)
    return load_encoder(job, "cpu")


def relative(rows: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    distance = np.linalg.norm((rows - expected).reshape(len(rows), -1), axis=1)
    return float((distance / np.linalg.norm(expected.reshape(len(rows), -1), axis=1)).max())


def pooled(states: Tensor, pooling: str) -> npt.NDArray[Any]:
    """One utterance's hidden states (places, D), pooled as numpy does it."""
    values = states.detach().double().numpy()
    parts = {
        "mean": [values.mean(0)],
        "mean+std": [values.mean(0), values.std(0)],
        "cls": [values[0]],
        "last": [values[-1]],
    }
    return np.concatenate(parts[pooling])


# --- windows: the forward pass of the model itself for each ---


def _whisper(model: Any, preprocessor: Any, piece: Any, window: str, layer: int | None) -> Tensor:
    encoder, seconds = model.model.encoder, 2
    if window == "fit":
        encoder, seconds = copy.deepcopy(encoder), math.ceil(len(piece) / RATE)
        encoder.config.max_source_positions = 50 * seconds
        encoder.embed_positions = nn.Embedding.from_pretrained(encoder.embed_positions.weight[: 50 * seconds])
    made = preprocessor(
        piece, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, max_length=seconds * RATE
    )
    output = encoder(made["input_features"], output_hidden_states=True)
    states = output.last_hidden_state if layer is None else output.hidden_states[layer]
    return states[0, : math.ceil(made["attention_mask"].sum() / 2)]


def _qwen2_audio(model: Any, preprocessor: Any, piece: Any, window: str, layer: int | None) -> Tensor:
    tower, seconds = model.model.audio_tower, 2
    if window == "fit":
        tower, seconds = copy.deepcopy(tower), math.ceil(len(piece) / RATE)
        tower.config.max_source_positions = 50 * seconds
        tower.embed_positions = nn.Embedding.from_pretrained(tower.embed_positions.weight[: 50 * seconds])
    made = preprocessor(
        piece, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, max_length=seconds * RATE
    )
    convolved, places = tower._get_feat_extract_output_lengths(made["attention_mask"].sum(-1))
    mask = torch.zeros(1, 1, 50 * seconds, 50 * seconds)
    mask[..., int(convolved) :] = -torch.inf
    output = tower(made["input_features"], attention_mask=mask, output_hidden_states=True)
    if layer is None:
        return output.last_hidden_state[0, : int(places)]
    halves = output.hidden_states[layer][0, : 2 * int(places)].unflatten(0, (-1, 2))
    return halves.mean(1)


def _ast(model: Any, preprocessor: Any, piece: Any, window: str, layer: int | None) -> Tensor:
    model = copy.deepcopy(model.audio_spectrogram_transformer)
    spectra = preprocessor(piece, sampling_rate=RATE, return_tensors="pt")["input_values"]
    times, bands = (204 - 16) // 10 + 1, (32 - 16) // 10 + 1
    if window == "fit":
        spectra = spectra[:, : 100 * math.ceil(len(piece) / RATE)]
        positions = model.embeddings.position_embeddings
        kept = [*range(2), *(2 + band * times + time for band in range(bands) for time in range(_times(spectra)))]
        model.embeddings.position_embeddings = nn.Parameter(positions[:, kept])
        times = _times(spectra)
    output = model(spectra, output_hidden_states=True)
    states = output.last_hidden_state if layer is None else output.hidden_states[layer]
    patches = states[0, 2:].reshape(bands, times, -1)
    own = 1 + (len(piece) - 400) // 160
    return patches.mean(0)[: max(1, (own - 16) // 10 + 1)]


def _times(spectra: Tensor) -> int:
    return (spectra.shape[1] - 16) // 10 + 1


def _clap(model: Any, preprocessor: Any, piece: Any, window: str, layer: int | None) -> Tensor:
    assert (window, layer) == ("trained", None)
    features = preprocessor(piece, sampling_rate=RATE, return_tensors="pt")["input_features"].float()
    state = model.audio_model(features, is_longer=torch.zeros(1, 1, dtype=torch.bool)).last_hidden_state[0]
    places = state.shape[-1]
    return state.mean(1).T[: max(1, math.ceil(len(piece) * places / RATE))]


BY_HAND: dict[str, Callable[..., Tensor]] = {
    "whisper": _whisper,
    "qwen2-audio": _qwen2_audio,
    "ast": _ast,
    "clap": _clap,
    "clap-fusion": _clap,
}
# samples of a window
LONG = {"whisper": 2 * RATE, "qwen2-audio": 2 * RATE, "ast": 400 + 203 * 160, "clap": RATE, "clap-fusion": RATE}


def in_windows(family: str, whole: tuple[Any, Any], waveform: Any, *how: Any) -> Tensor:
    pieces = [waveform[start : start + LONG[family]] for start in range(0, len(waveform), LONG[family])]
    with torch.no_grad():
        states = [BY_HAND[family](*whole, piece, *how) for piece in pieces if len(piece) >= 400]
    return torch.cat(states)


@pytest.mark.parametrize("pooling", ["mean", "mean+std"])
@pytest.mark.parametrize("window", ["trained", "fit"])
@pytest.mark.parametrize("family", WINDOWED)
def test_windows_give_what_the_model_itself_gives_for_each(
    family: str, window: Any, pooling: str, tmp_path: Path
) -> None:
    if window == "fit" and family.startswith("clap"):
        pytest.skip("CLAP folds a window of one length")
    whole, waveforms = save_family(tmp_path, family), noise(*SECONDS)
    for layer in (None,) if family.startswith("clap") else (None, 0, 1, 2):
        encoder = loaded(tmp_path, window=window, audio_pooling=pooling, layer=layer)
        expected = [
            pooled(in_windows(family, whole, one, window, None if layer == 2 else layer), pooling) for one in waveforms
        ]
        assert relative(vectors(encoder, waveforms), np.array(expected)) <= 1e-5
        alone = np.concatenate([vectors(encoder, [one]) for one in waveforms])
        assert relative(vectors(encoder, waveforms), alone) <= 1e-5
        assert encoder.is_one_at_a_time is False


@pytest.mark.parametrize("family", ["whisper", "ast"])
def test_windows_that_fit_are_others_than_trained_ones_and_nearly_the_same_where_they_are_as_long(
    family: str, tmp_path: Path
) -> None:
    save_family(tmp_path, family)
    trained, fit = (loaded(tmp_path, window=window) for window in ("trained", "fit"))
    short, long = noise(0.5, 1.99)
    assert relative(vectors(trained, [short]), vectors(fit, [short])) > 1e-3
    assert relative(vectors(trained, [long]), vectors(fit, [long])) <= (1e-5 if family == "whisper" else 1)
    assert fit.prepare(short)[0].spectra.numel() < trained.prepare(short)[0].spectra.numel()


@pytest.mark.parametrize("family", ["whisper", "ast"])
def test_layers_and_frames_of_windows_are_those_of_the_whole_utterance(family: str, tmp_path: Path) -> None:
    whole, (waveform, other) = save_family(tmp_path, family), noise(2.7, 0.5)
    encoder = loaded(tmp_path, layers="all", frames=5)
    row, _ = encoder.encode([waveform, other])
    for layer in (0, 1, 2):
        states = in_windows(family, whole, waveform, "trained", None if layer == 2 else layer)
        np.testing.assert_allclose(row.values[layer], states.mean(0), rtol=0, atol=1e-5)
    edges = [k * len(states) // 5 for k in range(6)]
    bins = [states[first:last].mean(0) for first, last in itertools.pairwise(edges)]
    np.testing.assert_allclose(row.frames, torch.stack(bins), rtol=0, atol=1e-5)


# --- spectra of any length ---


def of_spectra(family: str, model: Any, preprocessor: Any, waveform: Any, layer: int | None) -> Tensor:
    made = preprocessor(waveform, sampling_rate=RATE, return_tensors="pt")
    features = made["input_features"][:, : int(made["attention_mask"].sum())]
    part = {"seamless": "speech_encoder", "parakeet": "encoder", "speech-to-text": "model.encoder"}.get(family)
    with torch.no_grad():
        output = (model.get_submodule(part) if part else model)(features, output_hidden_states=True)
    states = output.last_hidden_state if layer is None else output.hidden_states[layer]
    return torch.as_tensor(states[0])


@pytest.mark.parametrize("pooling", ["mean", "mean+std"])
@pytest.mark.parametrize("family", SPECTRA)
def test_spectra_give_what_the_model_itself_gives_for_each(family: str, pooling: str, tmp_path: Path) -> None:
    whole, waveforms = save_family(tmp_path, family), noise(*SECONDS)
    for layer in (None, 1):
        encoder = loaded(tmp_path, audio_pooling=pooling, layer=layer)
        expected = [pooled(of_spectra(family, *whole, one, layer), pooling) for one in waveforms]
        batched = vectors(encoder, waveforms)
        assert relative(batched, np.array(expected)) <= 1e-5
        assert relative(batched, np.concatenate([vectors(encoder, [one]) for one in waveforms])) <= 1e-5
        assert encoder.is_one_at_a_time is (family in ONE_AT_A_TIME)


@pytest.mark.parametrize("family", [*WINDOWED, *SPECTRA])
def test_what_is_too_short_is_told_and_the_shortest_is_heard(family: str, tmp_path: Path) -> None:
    save_family(tmp_path, family)
    encoder = loaded(tmp_path)
    (shortest,) = noise(encoder.least_samples / RATE)
    encoder.check(shortest)
    assert np.isfinite(vectors(encoder, [shortest])).all()
    with pytest.raises(AudioError, match="too short"):
        encoder.check(shortest[:-1])


# --- raw waveforms ---


@pytest.mark.parametrize("pooling", ["mean", "mean+std"])
@pytest.mark.parametrize("family", [*SPEECH_FAMILIES, *KIN])
def test_poolings_and_single_layers_of_waveforms(family: str, pooling: str, tmp_path: Path) -> None:
    model, waveforms = save_speech(tmp_path, family), noise(0.7, 0.3, 0.32)
    for layer in (0, 1, 2, None):
        encoder = loaded(tmp_path, audio_pooling=pooling, layer=layer)
        expected: list[Any] = []
        for one in waveforms:
            samples = torch.from_numpy((one - one.mean()) / np.sqrt(one.var() + 1e-7))[None]
            with torch.no_grad():
                output = model(samples, output_hidden_states=True)
            states = output.last_hidden_state if layer in (None, 2) else output.hidden_states[layer]
            expected.append(pooled(states[0], pooling))
        assert relative(vectors(encoder, waveforms), np.array(expected)) <= 1e-5


def test_a_layer_that_a_model_does_not_have_is_one_line(tmp_path: Path) -> None:
    save_speech(tmp_path / "speech", "wavlm")
    with pytest.raises(ModelError, match="Bad layer 3, expected 0 to 2: so many has this WavLMModel"):
        vectors(loaded(tmp_path / "speech", layer=3), noise(0.3))
    save_family(tmp_path / "clap", "clap")
    with pytest.raises(ModelError, match="Cannot give layers of 'clap': CLAP's differ in size"):
        loaded(tmp_path / "clap", layer=1)


def test_the_implementation_of_attention_is_a_setting_that_hardly_changes_the_values(tmp_path: Path) -> None:
    save_speech(tmp_path, "wav2vec2-group")
    waveforms = noise(0.7, 0.3)
    eager, sdpa, default = (loaded(tmp_path, attention=attention) for attention in ("eager", "sdpa", None))
    found = [encoder._model.config._attn_implementation for encoder in (eager, sdpa, default)]
    assert found[:2] == ["eager", "sdpa"]
    assert relative(vectors(eager, waveforms), vectors(sdpa, waveforms)) <= 1e-5


# --- text ---

TEXT_ONE_AT_A_TIME: set[str] = set()
SENTENCES = ["we do not know what the raters heard", "one voice", "they were not of one mind but heard a voice"]
TEXT: dict[str, Callable[[Path], Any]] = {
    **{family: partial(save_text, family=family) for family in ("bert", "roberta", "mpnet", *TEXT_KIN)},
    "qwen3": save_language_model,
    "t5": lambda folder: save_t5(folder, whole=True),
    "t5-encoder": lambda folder: save_t5(folder, whole=False),
}


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", TEXT)
def test_text_is_pooled_as_it_is_alone(family: str, pooling: str, tmp_path: Path) -> None:
    model = TEXT[family](tmp_path)
    encoder = loaded(tmp_path, "text", text_pooling=pooling)
    tokens, _ = encoder.tokenizer.tokens(SENTENCES)
    expected = []
    for ids in tokens:
        with torch.no_grad():
            expected.append(pooled(model(input_ids=torch.tensor([ids])).last_hidden_state[0], pooling))
    assert relative(vectors(encoder, tokens), np.array(expected)) <= 1e-5
    assert encoder.is_one_at_a_time is (family in TEXT_ONE_AT_A_TIME)


def test_a_language_model_pads_at_the_left_where_transformers_does_it_and_gives_the_same(tmp_path: Path) -> None:
    import transformers

    model = save_language_model(tmp_path)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.padding_side == "left"
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    encoder = loaded(tmp_path, "text", text_pooling="last")
    tokens, _ = encoder.tokenizer.tokens(SENTENCES)
    assert relative(vectors(encoder, tokens), states[:, -1].numpy()) <= 1e-5


# --- what a call asks for ---


def recipe(folder: Path, modality: str = "text", **settings: Any) -> Job:
    (job,) = plan_jobs(*((str(folder), None) if modality == "audio" else (None, str(folder))), **settings)
    return job


@pytest.mark.parametrize(
    ("own", "pooling", "told"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls", "as its checkpoint says: cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last", "as its checkpoint says: last"),
        ({"pooling_mode": "lasttoken"}, "last", "as its checkpoint says: last"),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32}, "mean", ""),
        ({"pooling_mode_max_tokens": True}, "mean", "made for pooling by max, which there is none of: its mean"),
    ],
)
def test_auto_is_the_pooling_that_the_checkpoint_is_made_for(
    own: dict[str, Any], pooling: str, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mine"
    save_text(folder, "bert")
    plain = recipe(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(own))
    with caplog.at_level(logging.INFO):
        job = recipe(folder)
    assert job.recipe.record()["pooling"] == pooling
    assert job.name == ("mine" if pooling == "mean" else f"mine-{pooling}")
    assert told in "\n".join(caplog.messages)
    assert bool(caplog.messages) is bool(told)
    assert (job.recipe.fingerprint == plain.recipe.fingerprint) is (pooling == "mean")
    assert recipe(folder, text_pooling="mean").recipe == plain.recipe


def test_a_window_is_in_the_recipe_of_what_has_windows_alone(tmp_path: Path) -> None:
    save_family(tmp_path / "whisper", "whisper")
    save_family(tmp_path / "clap", "clap")
    save_speech(tmp_path / "wav2vec2", "wav2vec2-group")
    trained, fit = (recipe(tmp_path / "whisper", "audio", window=window) for window in (None, "fit"))
    assert (trained.name, fit.name) == ("whisper", "whisper-fit")
    assert (trained.recipe.record()["window"], fit.recipe.record()["window"]) == ("trained", "fit")
    assert "window" not in recipe(tmp_path / "wav2vec2", "audio").recipe.record()
    with pytest.raises(SettingError, match="Bad window 'fit': 'wav2vec2' has no windows; leave --window out"):
        recipe(tmp_path / "wav2vec2", "audio", window="fit")
    with pytest.raises(SettingError, match="Bad window 'fit': 'clap' knows trained; leave"):
        recipe(tmp_path / "clap", "audio", window="fit")


@pytest.mark.parametrize(
    ("window", "seconds", "computed"),
    [("trained", 0.5, 2), ("trained", 2, 2), ("trained", 4.5, 6), ("fit", 0.5, 1), ("fit", 3.2, 4), ("fit", 1, 1)],
)
def test_batches_are_planned_by_what_is_computed(window: Any, seconds: float, computed: float, tmp_path: Path) -> None:
    save_family(tmp_path, "whisper")
    job = recipe(tmp_path, "audio", window=window)
    assert job.seconds_computed(seconds) == computed
    assert recipe(tmp_path, "audio", window=window, max_seconds=0.3).seconds_computed(seconds) == (
        2 if window == "trained" else 1
    )


def test_a_corpus_is_encoded_by_another_family_and_the_cache_shows_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_here(monkeypatch)
    place = Place(tmp_path)
    save_family(tmp_path / "whisper", "whisper")
    settings: dict[str, Any] = {"text_model": None, "audio_model": str(tmp_path / "whisper"), "window": "fit"}
    place.extract(**settings, effort=Effort(batch_seconds=3))
    features = place.cache().feature_set("audio", "whisper-fit")
    place.extract(**settings, effort=Effort(batch_seconds=0), output=tmp_path / "alone.h5")
    assert relative(features.values, place.values("audio", "alone.h5")) <= 1e-5
    evidence = place.cache().summary["features"]["audio/whisper-fit"]["evidence"]
    assert evidence["checked"] >= 4
    assert evidence["largest"] <= 1e-5


def test_a_model_that_is_no_whisper_is_told(tmp_path: Path) -> None:
    _, preprocessor = save_family(tmp_path, "whisper")
    preprocessor.n_samples, preprocessor.chunk_length = 3 * RATE, 3
    preprocessor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its preprocessor makes 300 spectra of a window, its model takes 200"):
        loaded(tmp_path)


def test_the_recipe_of_an_audio_language_models_tower_says_what_it_is_a_part_of(tmp_path: Path) -> None:
    for family, tower in (("qwen2-audio", "qwen2_audio"), ("whisper", None)):
        save_family(tmp_path / family, family)
        (job,) = plan_jobs(str(tmp_path / family), None)
        assert job.recipe.record().get("tower") == tower
