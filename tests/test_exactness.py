"""What makes a batch exact does so: pooling, convolutions over several utterances, and all of it as on an accelerator.

The accelerator is pretended where there is none: its tensors have a device, and no numbers.
"""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import SPEECH_FAMILIES, TEXT_FAMILIES, noise, save_speech, save_text, vectors
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import amber2_extract.encoders.exactness
import amber2_extract.encoders.text
import amber2_extract.encoders.waveform
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.encoders.encoder import Encoder
from amber2_extract.encoders.exactness import Convolutions, binned, mask_of, masked_mean
from amber2_extract.encoders.text import TextEncoder
from amber2_extract.encoders.waveform import SpeechEncoder

# --- pooling ---

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def _slow_means(hidden: list[list[list[float]]], lengths: list[int]) -> list[list[float]]:
    means = []
    for states, length in zip(hidden, lengths, strict=True):
        total = [0.0] * len(states[0])
        for place in range(length):
            for dimension, value in enumerate(states[place]):
                total[dimension] += value
        means.append([value / length for value in total])
    return means


@given(LENGTHS, st.integers(0, 2**31))
def test_the_mean_is_that_of_a_slow_loop(lengths: list[int], seed: int) -> None:
    hidden = torch.randn(len(lengths), max(lengths), 3, generator=torch.Generator().manual_seed(seed))
    pooled = masked_mean(hidden, mask_of(lengths))
    torch.testing.assert_close(pooled, torch.tensor(_slow_means(hidden.tolist(), lengths)), rtol=1e-5, atol=1e-6)


@given(LENGTHS, st.sampled_from([math.nan, math.inf, 1e30]))
def test_what_stands_at_invalid_places_does_not_count(lengths: list[int], junk: float) -> None:
    hidden = torch.randn(len(lengths), max(lengths), 3)
    mask = mask_of(lengths)
    expected = masked_mean(hidden, mask)
    hidden[~mask] = junk
    torch.testing.assert_close(masked_mean(hidden, mask), expected, rtol=0, atol=0)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**31))
def test_bins_are_the_means_of_stretches_of_nearly_equal_length(places: int, most: int, seed: int) -> None:
    states = torch.randn(places, 3, generator=torch.Generator().manual_seed(seed))
    bins = binned(states, most)
    count = min(places, most)
    edges = [k * places // count for k in range(count + 1)]
    lengths = [last - first for first, last in pairwise(edges)]
    assert max(lengths) - min(lengths) <= 1
    expected = torch.stack([states[first:last].mean(dim=0) for first, last in pairwise(edges)])
    torch.testing.assert_close(bins, expected, rtol=1e-5, atol=1e-6)
    weighted = (bins * torch.tensor(lengths)[:, None]).sum(dim=0) / places
    torch.testing.assert_close(weighted, states.mean(dim=0), rtol=1e-5, atol=1e-6)


def test_a_mask_is_true_at_the_first_places() -> None:
    assert mask_of([1, 3]).tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(precision: torch.dtype) -> None:
    """2,049 ones are 2,048 in float16, and fewer in bfloat16."""
    pooled = masked_mean(torch.ones(1, 4_099, 2, dtype=precision), mask_of([4_099]))
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == [[1, 1]]


# --- convolutions ---

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
        batched = encoder.encode(waveforms)
    assert caplog.messages == []
    alone = [row for waveform in waveforms for row in encoder.encode([waveform])]
    values, expected = (np.stack([row.values for row in rows]) for rows in (batched, alone))
    assert np.abs(values - expected).max() <= 1e-4
    assert _relative(values, expected) <= 1e-5
    for row, one in zip(batched, alone, strict=True):
        assert row.frames is not None
        assert one.frames is not None
        np.testing.assert_allclose(row.frames, one.frames, rtol=0, atol=1e-4)


def test_where_that_is_not_exact_convolutions_run_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest still runs in batches: nothing is said."""
    monkeypatch.setattr(amber2_extract.encoders.exactness, "_normalized", lambda norm, hidden, lengths: norm(hidden))
    save_speech(tmp_path, "wav2vec2-group")
    encoder = _encoder(tmp_path)
    waveforms = noise(0.5, 0.3)
    alone = np.concatenate([vectors(encoder, [waveform]) for waveform in waveforms])
    with caplog.at_level(logging.INFO, "amber2_extract"):
        assert _relative(vectors(encoder, waveforms), alone) <= 1e-5
    assert not encoder.convolves_together
    assert caplog.messages == []


# --- as an accelerator does it ---

FAMILIES = [*SPEECH_FAMILIES, *TEXT_FAMILIES]


class _Copied:
    """A tensor on its way to the processor."""

    def __init__(self, tensor: Tensor, copies: list[Tensor]) -> None:
        self._tensor = tensor
        copies.append(tensor)

    def numpy(self) -> Any:
        return np.zeros(self._tensor.shape, dtype=np.float32)


class _NoDoubles(TorchDispatchMode):
    """Apple's GPUs have no float64."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        made = function(*arguments, **(settings or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            assert not isinstance(one, Tensor) or one.dtype != torch.float64, function
        return made


def _any_encoder(folder: Path, family: str, **settings: Any) -> Encoder:
    if family in SPEECH_FAMILIES:
        save_speech(folder, family)
        encoder = SpeechEncoder(find_checkpoint(str(folder), modality="audio"), **settings)
        encoder.convolves_together = True
        return encoder
    save_text(folder, family)
    return TextEncoder(find_checkpoint(str(folder), modality="text"), **settings)


def _inputs(encoder: Encoder) -> list[Any]:
    if isinstance(encoder, SpeechEncoder):
        return [encoder.prepare(one) for one in noise(1.2, 0.025, 0.5)]
    return [[5, 6, 7], [8, 9], [5, 6, 7, 8, 9, 10]]


def _move(module: nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(mode.from_tensor(parameter.detach()).to(device), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            part._buffers[name] = mode.from_tensor(buffer).to(device)


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_on_cuda_nothing_is_mixed_with_the_processors_and_only_results_are_waited_for(
    family: str, layers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pretended tensor has a device but no numbers: whoever mixes devices, or asks for a number, gets an error."""
    encoder, device = _any_encoder(tmp_path, family, layers=layers, frames=4), torch.device("cuda:0")
    inputs = _inputs(encoder)
    copies: list[Tensor] = []
    encoder.device = device
    encoders = amber2_extract.encoders
    for module in (encoders.waveform, encoders.text, encoders.exactness):
        monkeypatch.setattr(module, "on", lambda device, tensor: tensor.to(device))  # there is no memory to pin
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _move(encoder._model, mode, device)
        if isinstance(encoder, SpeechEncoder):
            _move(encoder._convolutions._module, mode, device)
            inputs = list(map(mode.from_tensor, inputs))
        monkeypatch.setattr(Tensor, "cpu", lambda tensor: _Copied(tensor, copies))
        encoded = encoder._encode(inputs, "fp32")
        monkeypatch.undo()
    assert [row.values.shape for row in encoded] == [(32,) if layers == "last" else (3, 32)] * 3
    lengths = [4, 1, 4] if family in SPEECH_FAMILIES else [3, 2, 4]
    assert [None if row.frames is None else len(row.frames) for row in encoded] == lengths
    # However many utterances: their vectors, and their sequences.
    assert [copy.device for copy in copies] == [device, device]
    assert {copy.dtype for copy in copies} == {torch.float32}


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_computed_in_double_precision(family: str, layers: Any, tmp_path: Path) -> None:
    encoder = _any_encoder(tmp_path, family, layers=layers, frames=4)
    inputs = _inputs(encoder)
    with _NoDoubles():
        encoder._encode(inputs, "fp32")


# --- where there is one ---

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_cuda
@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_gives_what_a_processor_gives_in_batches_and_alone(family: str, layers: Any, tmp_path: Path) -> None:
    here = _any_encoder(tmp_path, family, layers=layers)
    there = type(here)(find_checkpoint(str(tmp_path), modality="audio" if _speaks(here) else "text"), device="cuda")
    there.layers = layers
    inputs = noise(*np.linspace(0.025, 3, 12)) if _speaks(here) else _inputs(here)
    expected = np.concatenate([vectors(here, [one]) for one in inputs])
    alone = np.concatenate([vectors(there, [one]) for one in inputs])
    batched = vectors(there, inputs)
    flat = (len(inputs), -1)
    for rows, others in ((alone, expected), (batched, alone)):
        distance = np.linalg.norm((rows - others).reshape(flat), axis=1) / np.linalg.norm(others.reshape(flat), axis=1)
        assert np.abs(rows - others).max() <= 1e-4
        assert distance.max() <= 1e-5
    assert there._batches_are_exact
    if isinstance(there, SpeechEncoder):
        assert there.convolves_together


@on_cuda
def test_batches_of_several_threads_do_not_touch_one_another(tmp_path: Path) -> None:
    """What is pinned, copied without waiting and freed at once must not be another batch's before it is copied."""
    save_speech(tmp_path, "wav2vec2-group")
    encoder = SpeechEncoder(find_checkpoint(str(tmp_path), modality="audio"), device="cuda")
    batches = [noise(*np.linspace(0.1, 2, 8), seed=seed) for seed in range(40)]
    expected = [vectors(encoder, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: vectors(encoder, batch), batches))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def _speaks(encoder: Encoder) -> bool:
    return isinstance(encoder, SpeechEncoder)
