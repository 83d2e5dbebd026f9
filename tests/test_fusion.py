"""Fusions against loops over single utterances, and their formulas against plain ones."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import reference
import torch
from torch import Tensor, nn

from amber2_core.fusion import (
    FUSIONS,
    Fusion,
    Leg,
    gmu,
    joined,
    layer_norm,
    linear,
    only_present,
    self_gate,
    softmax_gate,
)
from amber2_core.heads import Architecture, initial_parameters

TWO = {"audio": 5, "text": 3}
THREE = {"audio": 5, "text": 3, "video": 4}
GATED = [name for name, fusion in FUSIONS.items() if not fusion.joins]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(inputs: Mapping[str, int], *lead: int, seed: int = 0) -> dict[str, Tensor]:
    generator = seeded(seed)
    return {name: torch.randn(*lead, size, dtype=torch.float64, generator=generator) for name, size in inputs.items()}


def weights(fusion: Fusion) -> dict[str, Tensor]:
    """A parameter for each of its layers."""
    generator, made = seeded(7), {}
    for layer in fusion.layers:
        sizes = {"weight": (layer.outputs, layer.inputs), "bias": (layer.outputs,) if layer.bias else (0,)}
        for name, size in list(sizes.items())[: 1 + layer.bias]:
            made[f"{layer.name}.{name}"] = torch.randn(*size, dtype=torch.float64, generator=generator) / 2
    return made


def fused(
    fusion: Fusion, w: Mapping[str, Tensor], h: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The fused vectors of utterances, of which some lack a modality where `present` says so."""
    given = {
        layer.name: linear(joined([h[m] for m in layer.reads]), w[f"{layer.name}.weight"])
        for layer in fusion.layers
        if layer.reads
    }
    return fusion.fuse({**h, **w, **given}, None if present is None else [present.get(m) for m in h])


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("inputs", [TWO, THREE], ids=["two", "three"])
def test_every_fusion_gives_what_the_loops_give(name: str, inputs: dict[str, int]) -> None:
    fusion = FUSIONS[name](inputs, 6)
    w, h = weights(fusion), vectors(inputs, 7)
    found = fused(fusion, w, h)
    assert found.shape == (7, fusion.width)
    for row in range(7):
        torch.testing.assert_close(found[row], reference.fused_vector(w, {m: x[row] for m, x in h.items()}, name))


def test_the_gated_unit_of_two_modalities_is_its_equation() -> None:
    """z = σ(W_z[h_A; h_T]); h = z·tanh(W_A h_A) + (1 − z)·tanh(W_T h_T)."""
    fusion = FUSIONS["gmu"](TWO, 6)
    w, h = weights(fusion), vectors(TWO, 4)
    assert {name: tuple(value.shape) for name, value in w.items()} == {
        "fusion.projection.audio.weight": (6, 5),
        "fusion.projection.text.weight": (6, 3),
        "fusion.gate.weight": (6, 8),
    }
    gate = w["fusion.gate.weight"]
    z = torch.sigmoid(h["audio"] @ gate[:, :5].T + h["text"] @ gate[:, 5:].T)
    audio, text = (torch.tanh(x @ w[f"fusion.projection.{m}.weight"].T) for m, x in h.items())
    torch.testing.assert_close(fused(fusion, w, h), z * audio + (1 - z) * text)


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
    between, stacked = softmax_gate(scores, values), torch.stack(values)
    assert ((between >= stacked.amin(0)) & (between <= stacked.amax(0))).all()
    torch.testing.assert_close(softmax_gate([torch.zeros(4, 1).double()] * 3, values), stacked.mean(0))
    torch.testing.assert_close(self_gate(torch.zeros(4, 6), values[0]), values[0] / 2)


# which of seven utterances has what; one has nothing
PRESENT = {
    "audio": torch.tensor([1, 1, 0, 1, 0, 0, 0]).bool(),
    "text": torch.tensor([1, 0, 1, 1, 1, 0, 0]).bool(),
    "video": torch.tensor([1, 1, 1, 0, 0, 1, 0]).bool(),
}


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("inputs", [TWO, THREE], ids=["two", "three"])
def test_what_an_utterance_lacks_is_as_if_there_were_no_such_modality(name: str, inputs: dict[str, int]) -> None:
    fusion = FUSIONS[name](inputs, 6)
    w, h, present = weights(fusion), vectors(inputs, 7), {m: PRESENT[m] for m in inputs}
    found = fused(fusion, w, only_present(h, present), present)
    for row in range(6):
        own = {m: x[row] for m, x in h.items() if present[m][row]}
        if own:
            torch.testing.assert_close(found[row], reference.fused_vector_of_some(w, own, name, inputs))
    assert not found[6].any()


@pytest.mark.parametrize("name", GATED)
def test_a_modality_that_everybody_has_needs_no_mask(name: str) -> None:
    fusion = FUSIONS[name](TWO, 6)
    w, some, everybody = weights(fusion), {"text": PRESENT["text"]}, torch.ones(7, dtype=torch.bool)
    h = only_present(vectors(TWO, 7), some)
    assert torch.equal(fused(fusion, w, h, some), fused(fusion, w, h, {"audio": everybody, **some}))
    assert torch.equal(fused(fusion, w, h, {"audio": everybody, "text": everybody}), fused(fusion, w, h))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("inputs", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize("name", GATED)
def test_gradients_agree_with_finite_differences(name: str, inputs: dict[str, int], masked: bool) -> None:
    fusion = FUSIONS[name](inputs, 4)
    w = {name: x.requires_grad_() for name, x in weights(fusion).items()}
    h = {name: x.requires_grad_() for name, x in vectors(inputs, 7 if masked else 2).items()}
    present = {name: PRESENT[name] for name in inputs} if masked else None

    def of_tensors(*tensors: Tensor) -> Tensor:
        own = dict(zip((*inputs, *w), tensors, strict=True))
        some = {m: own.pop(m) for m in inputs}
        return fused(fusion, own, some if present is None else only_present(some, present), present)

    # of some thousand parameters, along a random direction of them
    assert torch.autograd.gradcheck(of_tensors, (*h.values(), *w.values()), fast_mode=len(w) > 20)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_attention_and_norms_are_those_of_torchs_encoder_layer_for_every_run_of_a_stack(masked: bool) -> None:
    leg, oracle = Leg("leg", 5, 8), nn.TransformerEncoderLayer(8, 4, 16, dropout=0, batch_first=True).double()
    generator, runs = seeded(3), (2, 3)
    own = {}
    for layer in leg.layers:
        own[f"{layer.name}.weight"] = torch.randn(*runs, layer.outputs, layer.inputs, generator=generator).double() / 2
        own[f"{layer.name}.bias"] = torch.randn(*runs, layer.outputs, generator=generator).double() / 2
    first = torch.randn(*runs, 4, 6, 8, generator=generator).double()
    valid = torch.rand(4, 6, generator=generator) < 0.6
    valid[:, 0] = True
    found = leg.tokens(first, own, valid if masked else None)
    for s, k in ((0, 0), (1, 2)):
        run = {name: value[s, k] for name, value in own.items()}
        x = (first[s, k] + run["leg.in.bias"]).relu()
        x = nn.functional.linear(x, run["leg.out.weight"], run["leg.out.bias"])
        for encoder, given in zip(leg.encoders, found, strict=True):
            names = {
                "self_attn.in_proj_": "attention.in.", "self_attn.out_proj.": "attention.out.",
                "linear1.": "feed.in.", "linear2.": "feed.out.", "norm1.": "norm1.", "norm2.": "norm2.",
            }  # fmt: skip
            state = {t + kind: run[f"{encoder}.{o}{kind}"] for t, o in names.items() for kind in ("weight", "bias")}
            state |= {f"norm{n}.weight": 1 + state[f"norm{n}.weight"].squeeze(-1) for n in (1, 2)}
            oracle.load_state_dict(state)
            x = oracle(x, src_key_padding_mask=~valid if masked else None)
            torch.testing.assert_close(given[s, k], x)


def test_a_norm_starts_as_torchs_and_heads_divide_the_width() -> None:
    fresh = initial_parameters(Architecture((("audio", 5), ("text", 3)), 4, "deep", 8, 8))
    norms = [value for name, value in fresh.items() if ".norm" in name]
    assert len(norms) == 4 * 2 * 4
    assert not any(value.any() for value in norms)  # gains are kept less 1
    x = torch.randn(3, 2, 8, generator=seeded())
    torch.testing.assert_close(layer_norm(x, torch.zeros(8), torch.zeros(8)), nn.LayerNorm(8)(x))
    assert [Leg("leg", 5, width).heads for width in (256, 8, 6, 5)] == [4, 4, 2, 1]
    # (M + 1) · 256 go into the fusion head's hidden layer, where the paper has them meet
    assert Architecture((("audio", 768), ("text", 768)), 4, "deep").shapes["heads.fusion.hidden.weight"] == (256, 768)


def test_a_linear_map_takes_parameters_with_or_without_run_axes() -> None:
    x, weight, bias = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4)
    for shared in (False, True):
        product = linear(x[0, 0] if shared else x, weight, bias)
        assert product.shape == (2, 3, 7, 4)
        expected = nn.functional.linear(x[0, 0] if shared else x[1, 2], weight[1, 2], bias[1, 2])
        torch.testing.assert_close(product[1, 2], expected)
    torch.testing.assert_close(linear(x, weight[0, 0], bias[0, 0]), nn.functional.linear(x, weight[0, 0], bias[0, 0]))
    torch.testing.assert_close(linear(x, weight), linear(x, weight, torch.zeros(2, 3, 4)))
