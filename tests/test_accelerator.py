"""Encoding as an accelerator does it, on tensors that only pretend to lie on one: no GPU is needed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SPEECH_FAMILIES, TEXT_FAMILIES, noise, save_speech, save_text
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import amber2_extract.encoders
import amber2_extract.pooling
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.encoder import Encoder
from amber2_extract.encoders import SpeechEncoder, TextEncoder

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


def _encoder(folder: Path, family: str, **settings: Any) -> Encoder:
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
    encoder, device = _encoder(tmp_path, family, layers=layers, frames=4), torch.device("cuda:0")
    inputs = _inputs(encoder)
    copies: list[Tensor] = []
    encoder.device = device
    for module in (amber2_extract.encoders, amber2_extract.pooling):
        monkeypatch.setattr(module, "on", lambda device, tensor: tensor.to(device))  # there is no memory to pin
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _move(encoder._model, mode, device)
        if isinstance(encoder, SpeechEncoder):
            _move(encoder._convolutions._module, mode, device)
            inputs = list(map(mode.from_tensor, inputs))
        monkeypatch.setattr(Tensor, "cpu", lambda tensor: _Copied(tensor, copies))
        encoded = encoder._encode(inputs, "fp32")
        monkeypatch.undo()
    assert encoded.values.shape == ((3, 32) if layers == "last" else (3, 3, 32))
    assert encoded.frames is not None
    assert [len(sequence) for sequence in encoded.frames] == ([4, 1, 4] if family in SPEECH_FAMILIES else [3, 2, 4])
    # However many utterances: their vectors, and their sequences.
    assert [copy.device for copy in copies] == [device, device]
    assert {copy.dtype for copy in copies} == {torch.float32}


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_computed_in_double_precision(family: str, layers: Any, tmp_path: Path) -> None:
    encoder = _encoder(tmp_path, family, layers=layers, frames=4)
    inputs = _inputs(encoder)
    with _NoDoubles():
        encoder._encode(inputs, "fp32")


# --- where there is one ---

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_cuda
@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_gives_what_a_processor_gives_in_batches_and_alone(family: str, layers: Any, tmp_path: Path) -> None:
    here = _encoder(tmp_path, family, layers=layers)
    there = type(here)(find_checkpoint(str(tmp_path), modality="audio" if _speaks(here) else "text"), device="cuda")
    there.layers = layers
    inputs = noise(*np.linspace(0.025, 3, 12)) if _speaks(here) else _inputs(here)
    expected = np.concatenate([here.encode([one]) for one in inputs])
    alone = np.concatenate([there.encode([one]) for one in inputs])
    batched = there.encode(inputs)
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
    expected = [encoder.encode(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(encoder.encode, batches))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def _speaks(encoder: Encoder) -> bool:
    return isinstance(encoder, SpeechEncoder)
