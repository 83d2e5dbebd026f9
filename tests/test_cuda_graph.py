"""A recorded step against the step itself; a recorder that plays a function back stands for the CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from slow_training import small
from synthetic_data import fold_in, training_data
from torch._subclasses.fake_tensor import FakeTensorMode

from amber2_train.fold_data import FoldData, Rows, features_on, fold_data
from amber2_train.folds import make_folds
from amber2_train.stacked import loop
from amber2_train.stacked.cuda_graph import WARM_UP, RecordedStep, Step, cuda_graph
from amber2_train.stacked.loop import Trained
from amber2_train.systems.amber2 import Amber2
from amber2_train.systems.system import FitOptions, Precision

SETTINGS = [
    small(**values).values
    for values in (
        {},
        {"kappa": 8.0, "student": "audio", "weight_gradient": "flow"},
        {"loss": "kl"},
        {"lambda_expert": 1.0, "expert_gradient": "own"},
    )
]


def play_back(step: Callable[[], None]) -> Callable[[], None]:
    """As a graph: recorded without being taken, then taken from the same places."""
    return step


def refuse(step: Callable[[], None]) -> Callable[[], None]:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.fixture(scope="module", params=[None, {"text": [3, 4, 5, 9, 14, 20]}], ids=["whole", "masked"])
def fold(request: pytest.FixtureRequest) -> FoldData:
    data = training_data(45, missing=request.param)
    return fold_in(data, make_folds("session", data)[0])


def trained(fold: FoldData, *, dropout: float = 0.0) -> Trained:
    settings = [replace(setting, dropout=dropout) for setting in SETTINGS]
    return loop.train(Amber2(), fold, settings, [0, 1], FitOptions(4))


def assert_the_same(some: Trained, other: Trained) -> None:
    assert (some.best.epoch == other.best.epoch).all()
    for name, parameter in some.stack.parameters.items():
        assert torch.equal(parameter, other.stack.parameters[name]), name


def test_a_step_is_recorded_once_for_each_shape_and_reads_every_batch_anew() -> None:
    total, recorded = torch.zeros(3), []

    def step(x: torch.Tensor, scale: torch.Tensor | None) -> None:
        total.add_((x if scale is None else x * scale).sum(0))

    def record(function: Callable[[], None]) -> Callable[[], None]:
        recorded.append(function)
        return function

    take = RecordedStep(step, record)
    expected = torch.zeros(3)
    for k in range(4 * WARM_UP):
        x, scale = torch.full((2 + k % 2, 3), float(k)), torch.tensor(2.0) if k % 3 == 0 else None
        take(x, scale)
        expected += x.sum(0) * (1 if scale is None else scale)
    assert torch.equal(total, expected)
    assert len(recorded) < 4
    for k in range(4 * WARM_UP):
        take(torch.full((2 + k % 2, 3), float(k)), None if k % 3 else torch.tensor(2.0))
    assert len(recorded) == 4


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_by_recorded_steps_gives_the_same_numbers(
    fold: FoldData, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(fold, dropout=dropout)
    monkeypatch.setattr(loop, "record_steps", lambda step, device: RecordedStep(step, play_back))
    assert_the_same(trained(fold, dropout=dropout), expected)


def test_where_a_step_cannot_be_recorded_training_goes_on_and_the_log_says_so(
    fold: FoldData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = trained(fold)
    monkeypatch.setattr(loop, "record_steps", lambda step, device: RecordedStep(step, refuse))
    with caplog.at_level(logging.WARNING):
        assert_the_same(trained(fold), expected)
    assert [record.getMessage() for record in caplog.records] == [
        "training step by step, which is slower: a step cannot be recorded as a CUDA graph: "
        "operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_on_cuda_waits_for_nothing_and_mixes_no_devices(
    fold: FoldData, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without numbers, that say where they lie: reading a number raises, and so does a mixed product.

    Such tensors have no backward pass on CUDA, so the loss and the optimizer without gradients are what is run.
    """
    steps = 0

    def counted(step: Step, device: torch.device) -> Step:
        assert device.type == "cuda"

        def take(*inputs: torch.Tensor | None) -> None:
            nonlocal steps
            step(*inputs)
            steps += 1

        return take

    monkeypatch.setattr(loop, "record_steps", counted)
    # there is no memory to pin
    monkeypatch.setattr(loop, "on", lambda device, tensor: tensor.to(device))
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
    monkeypatch.setattr(loop, "dev_js", lambda *args, **options: np.zeros((3, 1, len(SETTINGS))))
    with FakeTensorMode(allow_non_fake_inputs=True):
        settings = [replace(setting, dropout=0.1) for setting in SETTINGS]
        loop.train(Amber2(), on_cuda(fold), settings, [0], FitOptions(1, precision=precision))
    assert steps == -(-len(fold.train) // SETTINGS[0].batch_size)


def on_cuda(fold: FoldData) -> FoldData:
    def moved(rows: Rows) -> Rows:
        features = {name: x.float().to("cuda") for name, x in rows.features.items()}
        present = None if rows.present is None else rows.present.to("cuda")
        index, targets = rows.index.to("cuda"), rows.targets.float().to("cuda")
        return replace(rows, features=features, index=index, targets=targets, present=present)

    return FoldData(fold.number, moved(fold.train), moved(fold.dev), moved(fold.test))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("missing", [None, {"text": [3, 4, 5, 9, 14, 20]}], ids=["whole", "masked"])
def test_a_cuda_graph_gives_the_numbers_of_the_same_steps_taken_one_by_one(
    dropout: float,
    missing: Mapping[str, Sequence[int]] | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = training_data(45, missing=missing)
    fold = fold_data(data, make_folds("session", data)[0], features_on("cuda", data))
    recorded = trained(fold, dropout=dropout)
    assert not caplog.records
    monkeypatch.setattr(loop, "record_steps", lambda step, device: step)
    one_by_one = trained(fold, dropout=dropout)
    for name, parameter in recorded.stack.parameters.items():
        torch.testing.assert_close(parameter, one_by_one.stack.parameters[name], rtol=0, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recording_takes_no_step() -> None:
    total = torch.zeros((), device="cuda")
    play = cuda_graph(lambda: total.add_(1), device=total.device)  # type: ignore[arg-type]
    assert total.item() == 0
    play()
    assert total.item() == 1
