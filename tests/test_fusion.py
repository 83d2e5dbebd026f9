"""Fusions against loops over single utterances, with plain layers, and with parameters stacked over runs."""

from __future__ import annotations

import pytest
import reference
import torch
from torch import Tensor, nn

from amber2_core.errors import SettingError
from amber2_core.fusion import FUSIONS, Fusion, fusion_layer, gmu, only_present, self_gate, softmax_gate
from amber2_core.linear import Linear, init_linear, linear

TWO = {"audio": 5, "text": 3}
THREE = {"audio": 5, "text": 3, "video": 4}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(inputs: dict[str, int], *lead: int, seed: int = 0) -> dict[str, Tensor]:
    generator = seeded(seed)
    return {name: torch.randn(*lead, size, dtype=torch.float64, generator=generator) for name, size in inputs.items()}


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("inputs", [TWO, THREE], ids=["two", "three"])
def test_every_fusion_gives_what_the_loops_give(fusion: Fusion, inputs: dict[str, int]) -> None:
    layer = fusion_layer(fusion, inputs, width=6, generator=seeded()).double()
    h = vectors(inputs, 7)
    fused = layer(h)
    assert fused.shape == (7, layer.width)
    parameters = {f"fusion.{name}": value for name, value in layer.state_dict().items()}
    for row in range(7):
        expected = reference.fused_vector(parameters, {name: x[row] for name, x in h.items()}, fusion)
        torch.testing.assert_close(fused[row], expected)


def test_the_gated_unit_of_two_modalities_is_its_equation() -> None:
    """z = σ(W_z[h_A; h_T]); h = z·tanh(W_A h_A) + (1 − z)·tanh(W_T h_T)."""
    layer = fusion_layer("gmu", TWO, width=6, generator=seeded()).double()
    w = layer.state_dict()
    assert {name: tuple(value.shape) for name, value in w.items()} == {
        "projection.audio.weight": (6, 5),
        "projection.text.weight": (6, 3),
        "gate.weight": (6, 8),
    }
    h = vectors(TWO, 4)
    z = torch.sigmoid(h["audio"] @ w["gate.weight"][:, :5].T + h["text"] @ w["gate.weight"][:, 5:].T)
    audio, text = (
        torch.tanh(h["audio"] @ w["projection.audio.weight"].T),
        torch.tanh(h["text"] @ w["projection.text.weight"].T),
    )
    torch.testing.assert_close(layer(h), z * audio + (1 - z) * text)


def test_a_gate_that_is_wide_open_or_shut_passes_one_modality_exactly() -> None:
    audio, text = torch.randn(3, 6, generator=seeded()), torch.randn(3, 6, generator=seeded(1))
    assert torch.equal(gmu(torch.full((3, 6), 100.0), [audio, text]), audio.tanh())
    assert torch.equal(gmu(torch.full((3, 6), -200.0), [audio, text]), text.tanh())
    shut = torch.full((3, 6), -200.0)
    three = gmu(torch.cat((shut, torch.full((3, 6), 100.0), shut), dim=-1), [audio, text, audio])
    assert torch.equal(three, text.tanh())


def test_the_softmax_gate_lies_between_its_values_and_the_self_gate_damps() -> None:
    values = list(vectors({"a": 6, "b": 6, "c": 6}, 4).values())
    scores = list(vectors({"a": 1, "b": 1, "c": 1}, 4, seed=1).values())
    fused, stacked = softmax_gate(scores, values), torch.stack(values)
    assert ((fused >= stacked.amin(0)) & (fused <= stacked.amax(0))).all()
    torch.testing.assert_close(softmax_gate([torch.zeros(4, 1).double()] * 3, values), stacked.mean(0))
    torch.testing.assert_close(self_gate(torch.zeros(4, 6), values[0]), values[0] / 2)


# which of seven utterances has what; one has nothing
PRESENT = {
    "audio": torch.tensor([1, 1, 0, 1, 0, 0, 0]).bool(),
    "text": torch.tensor([1, 0, 1, 1, 1, 0, 0]).bool(),
    "video": torch.tensor([1, 1, 1, 0, 0, 1, 0]).bool(),
}


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("inputs", [TWO, THREE], ids=["two", "three"])
def test_what_an_utterance_lacks_is_as_if_there_were_no_such_modality(fusion: Fusion, inputs: dict[str, int]) -> None:
    layer = fusion_layer(fusion, inputs, width=6, generator=seeded()).double()
    h, present = vectors(inputs, 7), {name: PRESENT[name] for name in inputs}
    fused = layer(only_present(h, present), present)
    parameters = {f"fusion.{name}": value for name, value in layer.state_dict().items()}
    for row in range(6):
        own = {name: x[row] for name, x in h.items() if present[name][row]}
        if own:
            expected = reference.fused_vector_of_some(parameters, own, fusion, inputs)
            torch.testing.assert_close(fused[row], expected)
    assert not fused[6].any()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_modality_that_everybody_has_needs_no_mask(fusion: Fusion) -> None:
    layer = fusion_layer(fusion, TWO, width=6, generator=seeded()).double()
    h = only_present(vectors(TWO, 7), {"text": PRESENT["text"]})
    everybody = torch.ones(7, dtype=torch.bool)
    assert torch.equal(layer(h, {"text": PRESENT["text"]}), layer(h, {"audio": everybody, "text": PRESENT["text"]}))
    assert torch.equal(layer(h, {"audio": everybody, "text": everybody}), layer(h))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("inputs", [TWO, THREE], ids=["two", "three"])
def test_runs_stacked_along_leading_axes_give_what_each_gives_alone(fusion: Fusion, inputs: dict[str, int]) -> None:
    layers = [fusion_layer(fusion, inputs, width=6, generator=seeded(run)).double() for run in range(3)]
    stacked = {name: torch.stack([each.state_dict()[name] for each in layers]) for name in layers[0].state_dict()}
    shared, own = vectors(inputs, 7), vectors(inputs, 3, 7)
    for run, layer in enumerate(layers):
        for h, mine in ((shared, shared), (own, {name: x[run] for name, x in own.items()})):
            together = torch.func.functional_call(layers[0], stacked, (h,))
            expected = layer(mine)
            torch.testing.assert_close(together.expand(3, 7, layer.width)[run], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("inputs", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_agree_with_finite_differences(fusion: Fusion, inputs: dict[str, int], masked: bool) -> None:
    layer = fusion_layer(fusion, inputs, width=4, generator=seeded()).double()
    names, parameters = zip(*layer.named_parameters(), strict=True) if fusion != "concat" else ((), ())
    h = {name: x.requires_grad_() for name, x in vectors(inputs, 7 if masked else 2).items()}
    present = {name: PRESENT[name] for name in inputs} if masked else None

    def fused(*tensors: Tensor) -> Tensor:
        h = dict(zip(inputs, tensors, strict=False))
        weights = dict(zip(names, tensors[len(inputs) :], strict=True))
        some = h if present is None else only_present(h, present)
        result: Tensor = torch.func.functional_call(layer, weights, (some, present))
        return result

    assert torch.autograd.gradcheck(fused, (*h.values(), *parameters))


def test_an_unknown_fusion_is_refused() -> None:
    with pytest.raises(
        SettingError, match=r"Bad fusion 'sum', expected one of \['gmu', 'concat', 'softmax-gate', 'self-gate'\]"
    ):
        fusion_layer("sum", TWO)  # type: ignore[arg-type]


# --- linear maps ---


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 3), (768, 256)])
def test_fresh_parameters_are_those_that_torch_would_draw(inputs: int, outputs: int, bias: bool) -> None:
    weight, offset = init_linear(inputs, outputs, bias=bias, generator=seeded(5))
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    expected = nn.Linear(inputs, outputs, bias=bias)
    torch.random.set_rng_state(state)
    torch.testing.assert_close(weight, expected.weight.detach(), rtol=0, atol=1e-7)
    assert (offset is None) is not bias
    if offset is not None:
        torch.testing.assert_close(offset, expected.bias.detach(), rtol=0, atol=1e-7)


def test_drawing_from_a_generator_leaves_the_other_one_alone() -> None:
    before = torch.random.get_rng_state()
    Linear(4, 3, generator=seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_linear_map_takes_parameters_with_or_without_run_axes() -> None:
    x, weight, bias = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4)
    for shared in (False, True):
        product = linear(x[0, 0] if shared else x, weight, bias)
        assert product.shape == (2, 3, 7, 4)
        expected = nn.functional.linear(x[0, 0] if shared else x[1, 2], weight[1, 2], bias[1, 2])
        torch.testing.assert_close(product[1, 2], expected)
    torch.testing.assert_close(linear(x, weight[0, 0], bias[0, 0]), nn.functional.linear(x, weight[0, 0], bias[0, 0]))
    torch.testing.assert_close(linear(x, weight), linear(x, weight, torch.zeros(2, 3, 4)))
