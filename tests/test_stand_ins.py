"""The stand-ins load as pretrained encoders do, are the same for the same seed, and say what they are."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import SafetensorError
from small_models import noise, vectors

from amber2_core.errors import ModelError
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.encoders.text import TextEncoder
from amber2_extract.encoders.waveform import SpeechEncoder
from amber2_extract.stand_ins import SPEECH_FOLDER, TEXT_FOLDER, main, save_speech_encoder, save_text_encoder, words_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    words = path / "words.csv"
    words.write_text("u1,Don't forget a jacket.\nu2,The surface is slick\n")
    result = CliRunner().invoke(main, [str(path), "--seed", "3", "--words", str(words), "--quiet"])
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(path / SPEECH_FOLDER), str(path / TEXT_FOLDER)]
    assert "not pretrained" in result.stderr
    return path


def test_they_encode_as_any_checkpoint_does(folder: Path) -> None:
    speech = SpeechEncoder(find_checkpoint(str(folder / SPEECH_FOLDER), modality="audio"))
    assert vectors(speech, noise(0.5, 0.3)).shape == (2, 256)
    assert speech.sampling_rate == 16_000
    text = TextEncoder(find_checkpoint(str(folder / TEXT_FOLDER), modality="text"))
    tokens, _ = text.tokenizer.tokens(["The surface is slick.", ""])
    assert vectors(text, tokens).shape == (2, 256)


def test_the_speech_stand_in_has_the_structure_of_wav2vec2_base(folder: Path) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder / SPEECH_FOLDER)
    base = transformers.Wav2Vec2Config()
    for name in ("feat_extract_norm", "conv_kernel", "conv_stride", "conv_bias", "do_stable_layer_norm", "hidden_act"):
        assert getattr(config, name) == type(getattr(config, name))(getattr(base, name))


def test_the_upper_convolutions_mix_channels_and_average_over_time(folder: Path) -> None:
    """So that the mean of a recording's frames still tells what its first layers heard."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder / SPEECH_FOLDER)
    for layer in model.feature_extractor.conv_layers[2:]:
        kernel = layer.conv.weight.detach()  # (outputs, inputs, time)
        torch.testing.assert_close(kernel, kernel[:, :, :1].expand_as(kernel), rtol=0, atol=0)
        mixture = kernel.sum(dim=-1)
        torch.testing.assert_close(mixture @ mixture.T, torch.eye(len(mixture)))


def test_given_words_have_a_token_each_and_others_are_spelled(folder: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / TEXT_FOLDER)
    assert tokenizer.tokenize("Don't forget the jacket!") == ["don", "'", "t", "forget", "the", "jacket", "!"]
    assert tokenizer.tokenize("zebras 42") == ["z", "##e", "##b", "##r", "##a", "##s", "4", "##2"]
    assert tokenizer.unk_token not in tokenizer.tokenize("Any word in English is spelled, isn't it? (Yes: 100 %.)")


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))  # the stand-ins do not depend on what was drawn before
        save_speech_encoder(tmp_path / name / "speech", seed=seed)
        save_text_encoder(tmp_path / name / "text", words=["slick"], seed=seed)
        digests.append(
            [
                find_checkpoint(str(tmp_path / name / "speech"), modality="audio").identity()["weights_digest"],
                find_checkpoint(str(tmp_path / name / "text"), modality="text").identity()["weights_digest"],
            ]
        )
    assert digests[0] == digests[1]
    assert not set(digests[0]) & set(digests[2])


def test_making_them_leaves_the_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save_text_encoder(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_they_say_that_they_are_not_pretrained(folder: Path) -> None:
    for name in (SPEECH_FOLDER, TEXT_FOLDER):
        card = (folder / name / "README.md").read_text(encoding="utf-8")
        assert "not a pretrained encoder" in card
        assert "seed 3" in card


def test_pitch_and_words_reach_the_features(folder: Path) -> None:
    """Two pitches can be told apart whatever the noise, and so can two sentences: a demo has something to learn."""
    speech = SpeechEncoder(find_checkpoint(str(folder / SPEECH_FOLDER), modality="audio"))
    generator = np.random.default_rng(0)
    rows = []
    for frequency in (120, 120, 120, 300, 300, 300):
        time = np.arange(16_000) / 16_000
        pulses = (np.sin(2 * np.pi * frequency * time) > 0.9).astype(np.float32)
        rows.append(vectors(speech, [pulses + generator.normal(0, 0.05, 16_000).astype(np.float32)])[0])
    low, high = np.array(rows[:3]), np.array(rows[3:])
    within = max(np.linalg.norm(low - low.mean(0), axis=1).max(), np.linalg.norm(high - high.mean(0), axis=1).max())
    assert np.linalg.norm(low.mean(0) - high.mean(0)) > 3 * within


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    save_speech_encoder(tmp_path / "speech", seed=1)
    before = {file.name: file.read_bytes() for file in (tmp_path / "speech").iterdir()}
    for problem, error in (
        (SafetensorError("I/O error: No space left on device"), ModelError),
        (OSError(errno.ENOSPC, "No space left on device"), OSError),
    ):

        def full(*_: Any, problem: Exception = problem, **__: Any) -> None:
            raise problem

        with monkeypatch.context() as patch:
            patch.setattr(transformers.modeling_utils, "safe_save_file", full)
            with pytest.raises(error, match="No space left on device"):
                save_speech_encoder(tmp_path / "speech", seed=2)
        assert {file.name: file.read_bytes() for file in (tmp_path / "speech").iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["speech"]
    save_speech_encoder(tmp_path / "speech", seed=2)
    assert (tmp_path / "speech/model.safetensors").read_bytes() != before["model.safetensors"]


def test_words_are_split_as_the_tokenizer_splits_them() -> None:
    assert words_of("Don't — it's 5 o'clock") == {"don", "t", "it", "s", "o", "clock"}
