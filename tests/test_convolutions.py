"""Convolutions over several utterances at once give what they give each alone, though transformers' own do not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SPEECH_FAMILIES, noise, save_speech
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import amber2_extract.convolutions
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.convolutions import Convolutions
from amber2_extract.encoders import SpeechEncoder

# The shortest is one frame; the second ends just before another frame would begin.
SECONDS = (0.7, 400 / 16_000, 719 / 16_000, 2.0, 0.4, 0.70006)


def _relative(rows: Any, expected: Any) -> float:
    rows, expected = rows.reshape(len(rows), -1), expected.reshape(len(expected), -1)
    return float((np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def _samples() -> list[Tensor]:
    return [torch.from_numpy((one - one.mean()) / one.std()) for one in noise(*SECONDS)]


@pytest.mark.parametrize("family", SPEECH_FAMILIES)
def test_all_at_once_gives_what_one_by_one_gives(family: str) -> None:
    torch.manual_seed(0)
    convolutions, samples = Convolutions(SPEECH_FAMILIES[family]().eval().feature_extractor), _samples()
    assert convolutions.can_batch
    with torch.inference_mode():
        alone, lengths = convolutions.one_by_one(samples)
        together, lengths_together = convolutions.together(samples)
    assert lengths == lengths_together
    assert lengths[1:3] == [1, 1]
    assert together.shape == alone.shape
    for row, length in enumerate(lengths):
        assert (together[row, :, length:] == 0).all()
        assert _relative(together[row : row + 1, :, :length].numpy(), alone[row : row + 1, :, :length].numpy()) <= 1e-5


def test_transformers_own_group_norm_sees_the_padding() -> None:
    """So that the test above can fail."""
    torch.manual_seed(0)
    convolutions, samples = Convolutions(SPEECH_FAMILIES["wav2vec2-group"]().eval().feature_extractor), _samples()
    with torch.inference_mode():
        alone, lengths = convolutions.one_by_one(samples)
        padded = convolutions._module(pad_sequence(samples, batch_first=True))
    assert _relative(padded[:1, :, : lengths[0]].numpy(), alone[:1, :, : lengths[0]].numpy()) > 1e-2


@pytest.mark.parametrize("family", SPEECH_FAMILIES)
def test_in_double_precision_the_two_are_the_same(family: str) -> None:
    """What is left of a difference is rounding."""
    torch.manual_seed(0)
    convolutions = Convolutions(SPEECH_FAMILIES[family]().eval().double().feature_extractor)
    samples = [one.double() for one in _samples()]
    with torch.inference_mode():
        alone, _ = convolutions.one_by_one(samples)
        together, _ = convolutions.together(samples)
    assert _relative(together.numpy(), alone.numpy()) <= 1e-13


def test_half_precision_is_as_far_from_single_as_alone() -> None:
    torch.manual_seed(0)
    convolutions, samples = Convolutions(SPEECH_FAMILIES["wav2vec2-group"]().eval().feature_extractor), _samples()
    with torch.inference_mode():
        single, _ = convolutions.one_by_one(samples)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            alone, _ = convolutions.one_by_one(samples)
            together, _ = convolutions.together(samples)
    assert _relative(together.float().numpy(), single.numpy()) <= 1.5 * _relative(alone.float().numpy(), single.numpy())


def test_what_is_not_understood_is_not_batched() -> None:
    def layer(**changes: Any) -> nn.Module:
        module = nn.Module()
        module.conv, module.activation = nn.Conv1d(1, 2, 3, **changes), nn.GELU()
        return module

    def of(*layers: nn.Module) -> Convolutions:
        module = nn.Module()
        module.conv_layers = nn.ModuleList(layers)
        return Convolutions(module)

    assert of(layer(), layer(stride=2)).can_batch
    assert not of(layer(), layer(padding=1)).can_batch
    assert not of(layer(dilation=2)).can_batch
    assert not Convolutions(nn.Module()).can_batch
    instance = layer()
    instance.layer_norm = nn.InstanceNorm1d(2)
    assert not of(instance).can_batch


# --- in an encoder ---


@pytest.fixture
def together_only(monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = Convolutions.one_by_one

    def refuse(self: Convolutions, samples: Any) -> Any:
        assert len(samples) == 1, "a batch was convolved one by one"
        return one_by_one(self, samples)

    monkeypatch.setattr(Convolutions, "one_by_one", refuse)


def _encoder(folder: Path, **settings: Any) -> SpeechEncoder:
    encoder = SpeechEncoder(find_checkpoint(str(folder), modality="audio"), **settings)
    assert not encoder.convolves_together  # on a processor
    encoder.convolves_together = True
    return encoder


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("family", SPEECH_FAMILIES)
def test_an_encoder_as_it_runs_on_a_gpu_gives_what_utterances_give_alone(
    family: str, layers: Any, tmp_path: Path, together_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    save_speech(tmp_path, family)
    encoder = _encoder(tmp_path, layers=layers, frames=3)
    waveforms = noise(*SECONDS)
    with caplog.at_level(logging.INFO, "amber2_extract"):
        batched = encoder.encode_batch(waveforms)
    assert caplog.messages == []
    alone = [encoder.encode_batch([waveform]) for waveform in waveforms]
    expected = np.concatenate([one.values for one in alone])
    assert np.abs(batched.values - expected).max() <= 1e-4
    assert _relative(batched.values, expected) <= 1e-5
    assert batched.frames is not None
    for sequence, one in zip(batched.frames, alone, strict=True):
        assert one.frames is not None
        np.testing.assert_allclose(sequence, one.frames[0], rtol=0, atol=1e-4)


def test_where_that_is_not_exact_convolutions_run_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest still runs in batches: nothing is said."""
    monkeypatch.setattr(amber2_extract.convolutions, "_normalized", lambda norm, hidden, lengths: norm(hidden))
    save_speech(tmp_path, "wav2vec2-group")
    encoder = _encoder(tmp_path)
    waveforms = noise(0.5, 0.3)
    alone = np.concatenate([encoder.encode([waveform]) for waveform in waveforms])
    with caplog.at_level(logging.INFO, "amber2_extract"):
        assert _relative(encoder.encode(waveforms), alone) <= 1e-5
    assert not encoder.convolves_together
    assert caplog.messages == []
