"""A batch that does not fit into memory is halved until it fits, and its rows are those of the whole."""

from __future__ import annotations

import logging
import platform
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amber2_core.errors import ModelError
from amber2_extract.rows import Row
from amber2_extract.worker import Halving, _give_back


class Narrow:
    """An encoder whose device takes so many samples at once, padding included."""

    def __init__(self, most: int, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        self.device = torch.device("cpu")
        self.most = most
        self.error = error
        self.tried: list[int] = []

    def encode(self, inputs: Sequence[Any]) -> list[Row]:
        self.tried.append(len(inputs))
        if len(inputs) * max(map(len, inputs)) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [Row(np.array([sum(one)], dtype=np.float32)) for one in inputs]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("most", [5, 6, 11, 16, 100])
def test_the_rows_are_those_of_the_whole_batch(most: int, error: type[RuntimeError]) -> None:
    inputs = [[number] * 5 for number in range(7)]
    rows = Halving(Narrow(most, error))(inputs)
    assert [row.values.tolist() for row in rows] == [[5.0 * number] for number in range(7)]


def test_what_did_not_fit_is_remembered_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = Narrow(20)
    encode = Halving(encoder)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            encode([[1] * 5] * 8)
    assert encoder.tried == [8, 4, 4, 4, 4, 4, 4]
    assert caplog.messages == ["cpu ran out of memory with a batch of 8: it is halved, and so are others as large"]


def test_one_utterance_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"cpu has too little memory for one utterance alone \(5 samples.*--precision"):
        Halving(Narrow(4))([[1] * 5, [2] * 5])


def test_another_error_is_none_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Halving(Broken(0))([[1], [2]])


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_memory_is_given_back_to_the_device_before_the_next_try(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    for kind in ("cuda", "mps"):
        monkeypatch.setattr(f"torch.{kind}.empty_cache", lambda kind=kind: emptied.append(kind))
    encoder = Narrow(10)
    encoder.device = torch.device(device)
    Halving(encoder)([[1] * 5] * 4)
    assert emptied == ([] if device == "cpu" else [device])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps free memory, and can be told not to")
def test_memory_between_what_is_kept_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    blocks = [bytes([number % 256]) * 100_000 for number in range(1_000)]
    kept = blocks[::50]
    del blocks
    before = resident()
    _give_back()
    assert before - resident() > 60_000_000
    assert [block[0] for block in kept] == [number % 256 for number in range(0, 1_000, 50)]


def test_what_an_apple_gpu_cannot_do_is_one_line() -> None:
    class Apple(Narrow):
        def encode(self, inputs: Sequence[Any]) -> list[Row]:
            raise NotImplementedError("The operator 'aten::x' is not implemented for MPS. Please open an issue")

    encoder = Apple(9)
    with pytest.raises(NotImplementedError):
        Halving(encoder)([[1]])
    encoder.device = torch.device("mps")
    with pytest.raises(ModelError, match=r"^The operator 'aten::x' .* for MPS: set PYTORCH_ENABLE_MPS_FALLBACK=1 "):
        Halving(encoder)([[1]])


class Broken(Narrow):
    def encode(self, inputs: Sequence[Any]) -> list[Row]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
