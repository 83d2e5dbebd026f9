"""Heads against loops over single utterances, their parameters, and the loop that trains them in the slow way."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

from amber2_core.errors import SettingError
from amber2_core.fusion import FUSIONS, Fusion
from amber2_core.heads import Architecture, Head, MultimodalHeads
from amber2_core.losses import amber_loss, class_balanced_cross_entropy, class_balanced_weights

SMALL = (("audio", 6), ("text", 5))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(*lead: int, inputs: tuple[tuple[str, int], ...] = SMALL, seed: int = 0) -> dict[str, Tensor]:
    generator = seeded(seed)
    return {name: torch.randn(*lead, size, dtype=torch.float64, generator=generator) for name, size in inputs}


def small(seed: int = 0, inputs: tuple[tuple[str, int], ...] = SMALL, **settings: Any) -> MultimodalHeads:
    """A model of double precision."""
    architecture = Architecture(inputs, 4, **{"hidden": 8, "fusion_width": 7, **settings})
    return MultimodalHeads(architecture, generator=seeded(seed)).double()


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("inputs", [SMALL, (*SMALL, ("video", 3))], ids=["two", "three"])
def test_every_head_gives_what_the_loops_give(fusion: Fusion, inputs: tuple[tuple[str, int], ...]) -> None:
    model, h = small(inputs=inputs, fusion=fusion), vectors(9, inputs=inputs)
    logits = model(h)
    assert tuple(logits) == model.architecture.heads == (*dict(inputs), "fusion")
    for row in range(9):
        expected = reference.head_logits(model.state_dict(), {name: x[row] for name, x in h.items()}, fusion)
        for head, each in expected.items():
            assert logits[head].shape == (9, 4)
            torch.testing.assert_close(logits[head][row], each)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("inputs", [SMALL, (*SMALL, ("video", 3))], ids=["two", "three"])
@pytest.mark.parametrize("filling", [0.0, math.nan, math.inf])
def test_an_utterance_is_read_by_what_it_has_whatever_stands_in_place_of_the_rest(
    fusion: Fusion, inputs: tuple[tuple[str, int], ...], filling: float
) -> None:
    model, h = small(inputs=inputs, fusion=fusion), vectors(9, inputs=inputs)
    rows = torch.arange(9)
    present = {"audio": rows % 3 != 0, "text": rows % 3 != 1}  # everybody has video, where there is some
    filled = {name: x.masked_fill(~present[name][:, None], filling) if name in present else x for name, x in h.items()}
    logits = model(filled, present)
    for row in range(9):
        own = {name: x[row] for name, x in h.items() if name not in present or present[name][row]}
        expected = reference.head_logits(model.state_dict(), own, fusion, dict(inputs))
        for head, each in expected.items():
            torch.testing.assert_close(logits[head][row], each)
    loss = torch.stack([x.square().sum() for x in logits.values()]).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_the_default_model_has_the_size_that_the_paper_implies_and_stable_names() -> None:
    model = MultimodalHeads(Architecture((("audio", 768), ("text", 768)), 4), generator=seeded())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == {
        "heads.audio.hidden.weight": (256, 768),
        "heads.audio.hidden.bias": (256,),
        "heads.audio.output.weight": (4, 256),
        "heads.audio.output.bias": (4,),
        "heads.text.hidden.weight": (256, 768),
        "heads.text.hidden.bias": (256,),
        "heads.text.output.weight": (4, 256),
        "heads.text.output.bias": (4,),
        "fusion.projection.audio.weight": (256, 768),
        "fusion.projection.text.weight": (256, 768),
        "fusion.gate.weight": (256, 1536),
        "heads.fusion.hidden.weight": (256, 256),
        "heads.fusion.hidden.bias": (256,),
        "heads.fusion.output.weight": (4, 256),
        "heads.fusion.output.bias": (4,),
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_249_036


def test_a_head_is_two_linear_layers_of_torch_with_a_relu_between() -> None:
    head = Head(6, 8, 4, generator=seeded()).double()
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), head.state_dict().values(), strict=True)))
    x = vectors(5)["audio"]
    torch.testing.assert_close(head(x), plain(x))


def test_one_generator_fixes_all_parameters_and_runs_of_one_seed_share_their_unimodal_heads() -> None:
    before = torch.random.get_rng_state()
    first = small(3).state_dict()
    torch.rand(5)
    again, other = small(3).state_dict(), small(4).state_dict()
    torch.random.set_rng_state(before)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        assert not torch.equal(value, other[name]), name
    for fusion in FUSIONS:
        parameters = small(3, fusion=fusion).state_dict()
        for name in parameters:
            if re.match(r"heads\.(audio|text)", name):
                assert torch.equal(parameters[name], first[name]), name


def test_dropout_works_in_training_alone() -> None:
    head = Head(6, 400, 4, dropout=0.5, generator=seeded()).double()
    x = vectors(3)["audio"]
    head.eval()
    kept = head(x)
    assert torch.equal(head(x), kept)
    head.train()
    assert not torch.allclose(head(x), kept)
    assert not Head(6, 8, 4).train().dropout.p


@pytest.mark.parametrize("fusion", FUSIONS)
def test_runs_stack_along_leading_axes(fusion: Fusion) -> None:
    models = [small(run, fusion=fusion) for run in range(3)]
    stacked = {name: torch.stack([m.state_dict()[name] for m in models]) for name in models[0].state_dict()}
    shared, own = vectors(5), vectors(3, 5, seed=1)
    for h in (shared, own):
        together = torch.func.functional_call(models[0], stacked, (h,))
        for run, model in enumerate(models):
            alone = model(h if h is shared else {name: x[run] for name, x in own.items()})
            for head, logits in alone.items():
                assert together[head].shape == (3, 5, 4)
                torch.testing.assert_close(together[head][run], logits, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("system", "settings"),
    [
        ("amber2", {}),
        ("amber2", {"student": "audio", "lambda_mai": 0.7, "kappa": 8.0}),
        ("amber2", {"student": "text", "lambda_expert": 1.0, "weight_gradient": "flow"}),
        ("cb-ce", {}),
    ],
)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_goes_the_way_of_the_slow_loop(fusion: Fusion, system: Any, settings: dict[str, Any]) -> None:
    model, h = small(fusion=fusion), vectors(14)
    counts = torch.randint(0, 3, (14, 4), generator=seeded(2)).double() + torch.eye(4).double()[[0] * 14]
    target = counts / counts.sum(-1, keepdim=True)
    batches = [[list(range(k, 14, 3)) for k in range(3)], [[5, 1, 3, 0, 2], [9, 7, 8]]]
    weights = class_balanced_weights(target)
    epochs = reference.train_reference(
        model.state_dict(), h, target, batches,
        system=system, fusion=fusion, class_weights=weights.tolist(), learning_rate=3e-3, **settings,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    for epoch, expected in zip(batches, epochs, strict=True):
        for rows in epoch:
            logits = model({name: x[rows] for name, x in h.items()})
            if system == "cb-ce":
                each = [class_balanced_cross_entropy(x, target[rows], weights) for x in logits.values()]
                loss = torch.stack(each).sum()
            else:
                loss = amber_loss(logits, target[rows], **settings)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-9)
    assert max((epochs[0][name] - epochs[1][name]).abs().max() for name in epochs[0]) > 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": (("audio", 6),)}, r"Bad modalities \['audio'\], expected two or more"),
        ({"inputs": (("audio", 6), ("audio", 6))}, "expected two or more different ones"),
        ({"inputs": (("audio", 6), ("fusion", 6))}, "Bad modality 'fusion'"),
        ({"inputs": (("audio", 6), ("my.text", 6))}, "Bad modality 'my.text'"),
        ({"inputs": (("audio", 6), ("keys", 6))}, "Bad modality 'keys'"),
        ({"inputs": (("audio", 6), ("text", 0))}, "Bad layer sizes"),
        ({"hidden": 0}, "Bad layer sizes"),
        ({"classes": 1}, "Bad number of classes 1"),
        ({"fusion": "sum"}, "Bad fusion 'sum', expected one of"),
        ({"dropout": 1.0}, r"Bad dropout 1.0, expected a number in \[0, 1\)"),
    ],
)
def test_an_architecture_without_meaning_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Architecture(**{"inputs": SMALL, "classes": 4, **settings})
