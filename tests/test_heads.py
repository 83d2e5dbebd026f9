"""Heads against loops over single utterances, alone and along run axes, their parameters, and a slow training loop."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

from amber2_core.errors import SettingError
from amber2_core.fusion import FUSIONS, only_present
from amber2_core.heads import Architecture, Heads, initial_parameters
from amber2_core.losses import amber_loss, class_balanced_cross_entropy, class_balanced_weights

SMALL = (("audio", 6), ("text", 5))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(*lead: int, inputs: tuple[tuple[str, int], ...] = SMALL, seed: int = 0) -> dict[str, Tensor]:
    generator = seeded(seed)
    return {name: torch.randn(*lead, size, dtype=torch.float64, generator=generator) for name, size in inputs}


def small(seed: int = 0, inputs: tuple[tuple[str, int], ...] = SMALL, **settings: Any) -> Heads:
    """A model of double precision."""
    architecture = Architecture(inputs, 4, **{"hidden": 8, "fusion_width": 7, **settings})
    fresh = initial_parameters(architecture, seeded(seed))
    return Heads(architecture, {name: parameter.double().requires_grad_() for name, parameter in fresh.items()})


def by_head(model: Heads, logits: Tensor) -> dict[str, Tensor]:
    return dict(zip(model.architecture.heads, logits, strict=True))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("inputs", [SMALL, (*SMALL, ("video", 3))], ids=["two", "three"])
def test_every_head_gives_what_the_loops_give(fusion: str, inputs: tuple[tuple[str, int], ...]) -> None:
    model, h = small(inputs=inputs, fusion=fusion), vectors(9, inputs=inputs)
    logits = by_head(model, model.logits(h))
    assert tuple(logits) == (*dict(inputs), "fusion")
    for row in range(9):
        expected = reference.head_logits(model.parameters, {name: x[row] for name, x in h.items()}, fusion)
        for head, each in expected.items():
            assert logits[head].shape == (9, 4)
            torch.testing.assert_close(logits[head][row], each)
    for head, probs in model.probs(h).items():
        torch.testing.assert_close(probs, logits[head].softmax(-1))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("inputs", [SMALL, (*SMALL, ("video", 3))], ids=["two", "three"])
@pytest.mark.parametrize("filling", [0.0, math.nan, math.inf])
def test_an_utterance_is_read_by_what_it_has_whatever_stands_in_place_of_the_rest(
    fusion: str, inputs: tuple[tuple[str, int], ...], filling: float
) -> None:
    model, h = small(inputs=inputs, fusion=fusion), vectors(9, inputs=inputs)
    rows = torch.arange(9)
    present = {"audio": rows % 3 != 0, "text": rows % 3 != 1}  # everybody has video, where there is some
    filled = {name: x.masked_fill(~present[name][:, None], filling) if name in present else x for name, x in h.items()}
    logits = by_head(model, model.logits(only_present(filled, present), present=present))
    for row in range(9):
        own = {name: x[row] for name, x in h.items() if name not in present or present[name][row]}
        expected = reference.head_logits(model.parameters, own, fusion, dict(inputs))
        for head, each in expected.items():
            torch.testing.assert_close(logits[head][row], each)
    for head, probs in model.probs(filled, present=present).items():
        torch.testing.assert_close(probs, logits[head].softmax(-1))
    loss = torch.stack([x.square().sum() for x in logits.values()]).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters.values()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_the_default_model_has_the_size_that_the_paper_implies_and_stable_names() -> None:
    architecture = Architecture((("audio", 768), ("text", 768)), 4)
    parameters = initial_parameters(architecture, seeded())
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    assert shapes == architecture.shapes
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
    assert sum(parameter.numel() for parameter in parameters.values()) == 1_249_036


@pytest.mark.parametrize("inputs", [(("a", 1), ("b", 7)), (("a", 768), ("b", 256))], ids=["narrow", "wide"])
def test_fresh_parameters_are_those_that_torch_would_draw(inputs: tuple[tuple[str, int], ...]) -> None:
    architecture = Architecture(inputs, 3, fusion_width=5)
    found = initial_parameters(architecture, seeded(5))
    before = torch.random.get_rng_state()
    torch.manual_seed(5)
    for layer in architecture.layers:
        expected = nn.Linear(layer.inputs, layer.outputs, bias=layer.bias)
        for name, parameter in expected.named_parameters():
            torch.testing.assert_close(found[f"{layer.name}.{name}"], parameter.detach(), rtol=0, atol=1e-7)
    torch.random.set_rng_state(before)
    assert found.keys() == architecture.shapes.keys()


def test_drawing_from_a_generator_leaves_the_other_one_alone() -> None:
    before = torch.random.get_rng_state()
    initial_parameters(Architecture(SMALL, 4), seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_head_is_two_linear_layers_of_torch_with_a_relu_between() -> None:
    model, h = small(), vectors(5)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    own = [value for name, value in model.parameters.items() if name.startswith("heads.audio.")]
    plain.load_state_dict(dict(zip(plain.state_dict(), own, strict=True)))
    torch.testing.assert_close(by_head(model, model.logits(h))["audio"], plain(h["audio"]))


def test_one_generator_fixes_all_parameters_and_runs_of_one_seed_share_their_unimodal_heads() -> None:
    before = torch.random.get_rng_state()
    first = small(3).parameters
    torch.rand(5)
    again, other = small(3).parameters, small(4).parameters
    torch.random.set_rng_state(before)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        assert not torch.equal(value, other[name]), name
    for fusion in FUSIONS:
        parameters = small(3, fusion=fusion).parameters
        for name in parameters:
            if re.match(r"heads\.(audio|text)", name):
                assert torch.equal(parameters[name], first[name]), name


def test_factors_of_dropout_multiply_the_hidden_units_of_their_head_alone() -> None:
    model, h = small(), vectors(3)
    keep = torch.ones(3, 3, 8, dtype=torch.float64)
    assert torch.equal(model.logits(h, keep=keep), model.logits(h))
    keep[1] = 0.0  # of text nothing but the bias of its last layer is left
    dropped = model.logits(h, keep=keep)
    assert torch.equal(dropped[1], model.parameters["heads.text.output.bias"].expand(3, 4))
    assert torch.equal(dropped[[0, 2]], model.logits(h)[[0, 2]])


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("inputs", [SMALL, (*SMALL, ("video", 3))], ids=["two", "three"])
def test_runs_stack_along_leading_axes(fusion: str, inputs: tuple[tuple[str, int], ...]) -> None:
    models = [small(run, inputs, fusion=fusion) for run in range(6)]
    stacked = {
        name: torch.stack([m.parameters[name] for m in models]).unflatten(0, (2, 3)) for name in models[0].parameters
    }
    together = Heads(models[0].architecture, stacked)
    shared, of_rows = vectors(5, inputs=inputs), vectors(2, 1, 5, inputs=inputs, seed=1)
    for run, model in enumerate(models):
        for h, own in ((shared, shared), (of_rows, {name: x[run // 3, 0] for name, x in of_rows.items()})):
            logits = together.logits(h)
            assert logits.shape == (len(inputs) + 1, 2, 3, 5, 4)
            torch.testing.assert_close(logits[:, run // 3, run % 3], model.logits(own), rtol=0, atol=1e-14)


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
def test_training_goes_the_way_of_the_slow_loop(fusion: str, system: Any, settings: dict[str, Any]) -> None:
    model, h = small(fusion=fusion), vectors(14)
    counts = torch.randint(0, 3, (14, 4), generator=seeded(2)).double() + torch.eye(4).double()[[0] * 14]
    target = counts / counts.sum(-1, keepdim=True)
    batches = [[list(range(k, 14, 3)) for k in range(3)], [[5, 1, 3, 0, 2], [9, 7, 8]]]
    weights = class_balanced_weights(target)
    epochs = reference.train_reference(
        {name: value.detach() for name, value in model.parameters.items()}, h, target, batches,
        system=system, fusion=fusion, class_weights=weights.tolist(), learning_rate=3e-3, **settings,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters.values(), lr=3e-3, weight_decay=1e-2)
    for epoch, expected in zip(batches, epochs, strict=True):
        for rows in epoch:
            logits = by_head(model, model.logits({name: x[rows] for name, x in h.items()}))
            if system == "cb-ce":
                each = [class_balanced_cross_entropy(x, target[rows], weights) for x in logits.values()]
                loss = torch.stack(each).sum()
            else:
                loss = amber_loss(logits, target[rows], **settings)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        for name, value in model.parameters.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-9)
    assert max((epochs[0][name] - epochs[1][name]).abs().max() for name in epochs[0]) > 1e-4


@pytest.mark.parametrize("fusion", FUSIONS)
def test_of_one_modality_there_is_its_own_head_and_no_fusion(fusion: str) -> None:
    alone = Architecture((("text", 5),), 4, fusion, hidden=3, fusion_width=3)
    assert alone.heads == ("text",)
    assert sum(math.prod(shape) for shape in alone.shapes.values()) == 5 * 3 + 3 + 3 * 4 + 4
    own, vectors = initial_parameters(alone, seeded()), torch.randn(7, 5, generator=seeded())
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 4))
    model.load_state_dict(
        {
            f"{k}.{kind}": own[f"heads.text.{layer}.{kind}"]
            for k, layer in ((0, "hidden"), (2, "output"))
            for kind in ("weight", "bias")
        }
    )
    probs = Heads(alone, own).probs({"text": vectors})
    torch.testing.assert_close(probs, {"text": model(vectors).softmax(-1)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": ()}, r"Bad modalities \[\], expected one or more"),
        ({"inputs": (("audio", 6), ("audio", 6))}, "expected one or more different ones"),
        ({"inputs": (("audio", 6), ("fusion", 6))}, "Bad modality 'fusion'"),
        ({"inputs": (("audio", 6), ("my.text", 6))}, "Bad modality 'my.text'"),
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


def test_what_a_command_needs_to_know_of_heads_and_fusions_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from amber2_core.fusion import FUSIONS\n"
        "from amber2_core.heads import Architecture\n"
        "for fusion in FUSIONS: Architecture((('audio', 6), ('text', 5)), 4, fusion).shapes\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
