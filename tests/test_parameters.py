"""A stack of runs against the heads of each run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from amber2_core.fusion import FUSIONS, Fusion, Layer, linear
from amber2_core.heads import Architecture, Heads, initial_parameters
from amber2_train.stacked.parameters import StackedHeads, dropout_factors

TWO = (("audio", 6), ("text", 5))
THREE = (*TWO, ("video", 4))
SHAPES = list(product(FUSIONS, (TWO, THREE)))


def architecture(fusion: str, inputs: tuple[tuple[str, int], ...]) -> Architecture:
    return Architecture(inputs, 4, fusion, hidden=7, fusion_width=7)


def state(shape: Architecture, seed: int) -> dict[str, Tensor]:
    return {name: t.double() for name, t in initial_parameters(shape, torch.Generator().manual_seed(seed)).items()}


def stacked(shape: Architecture, seeds: int = 2, settings: int = 3) -> StackedHeads:
    """A stack in double precision in which every run has parameters of its own."""
    stack = StackedHeads(shape, [state(shape, s) for s in range(seeds)], settings, dtype=torch.float64)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in stack.parameters.values():
            parameter += 0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return stack


def vectors(shape: Architecture, seeds: int = 2, batch: int = 11) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {m: torch.randn(seeds, batch, size, dtype=torch.float64, generator=generator) for m, size in shape.inputs}


@pytest.mark.parametrize(("fusion", "inputs"), SHAPES)
def test_every_run_of_a_stack_gives_the_logits_of_its_own_heads(
    fusion: str, inputs: tuple[tuple[str, int], ...]
) -> None:
    shape = architecture(fusion, inputs)
    stack, x = stacked(shape), vectors(shape)
    logits = stack.logits(x)  # (heads, seeds, settings, batch, C)
    for s, k in product(range(2), range(3)):
        expected = Heads(shape, stack.state(s, k)).logits({m: rows[s] for m, rows in x.items()})
        torch.testing.assert_close(logits[:, s, k], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("fusion", "inputs"), SHAPES)
def test_every_run_of_a_stack_gets_the_gradients_of_its_own_heads(
    fusion: str, inputs: tuple[tuple[str, int], ...]
) -> None:
    shape = architecture(fusion, inputs)
    stack, x = stacked(shape), vectors(shape)
    stack.logits(x).square().sum().backward()  # type: ignore[no-untyped-call]
    gradients = StackedHeads(shape, [state(shape, s) for s in range(2)], 3, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in stack.parameters.items():
            assert parameter.grad is not None
            gradients.parameters[name].copy_(parameter.grad)
    for s, k in product(range(2), range(3)):
        own = {name: parameter.requires_grad_() for name, parameter in stack.state(s, k).items()}
        squares = Heads(shape, own).logits({m: rows[s] for m, rows in x.items()}).square().sum()
        expected = torch.autograd.grad(squares, list(own.values()))
        found = gradients.state(s, k)
        for name, gradient in zip(own, expected, strict=True):
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12)


class Product(Fusion):
    """h = σ(v)·Π_m tanh(W_m h_m), v of an inner layer."""

    def __init__(self, sizes: Mapping[str, int], width: int) -> None:
        super().__init__(sizes, width)
        self.layers = (*(self.layer(f"factor.{m}", width, m) for m in sizes), Layer("fusion.inner", width, width))

    def fuse(self, x: Mapping[str, Tensor], present: Sequence[Tensor | None] | None = None) -> Tensor:
        product = torch.stack([x[f"fusion.factor.{m}"].tanh() for m in self.sizes]).prod(0)
        return linear(product, x["fusion.inner.weight"]).sigmoid() * product


def test_a_new_fusion_is_a_class_and_its_name_and_trains_in_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FUSIONS, "product", Product)  # type: ignore[arg-type]
    shape = architecture("product", THREE)
    stack, x = stacked(shape), vectors(shape)
    found = Heads(shape, stack.state(1, 2)).logits({m: rows[1] for m, rows in x.items()})
    torch.testing.assert_close(stack.logits(x)[:, 1, 2], found, rtol=0, atol=1e-12)
    own = stack.state(1, 2)
    factors = [torch.tanh(x[m][1] @ own[f"fusion.factor.{m}.weight"].T) for m in shape.modalities]
    product = factors[0] * factors[1] * factors[2]
    fused = torch.sigmoid(product @ own["fusion.inner.weight"].T) * product
    hidden = torch.relu(fused @ own["heads.fusion.hidden.weight"].T + own["heads.fusion.hidden.bias"])
    logits = hidden @ own["heads.fusion.output.weight"].T + own["heads.fusion.output.bias"]
    torch.testing.assert_close(found[-1], logits)


@pytest.mark.parametrize(("fusion", "inputs"), SHAPES)
def test_a_run_starts_from_the_parameters_of_its_seed_under_every_setting(
    fusion: str, inputs: tuple[tuple[str, int], ...]
) -> None:
    shape = architecture(fusion, inputs)
    stack = StackedHeads(shape, [state(shape, 0), state(shape, 1)], 3, dtype=torch.float64)
    for s, k in product(range(2), range(3)):
        back = stack.state(s, k)
        assert set(back) == set(state(shape, s))
        assert all(torch.equal(back[name], tensor) for name, tensor in state(shape, s).items())


@pytest.mark.parametrize(("fusion", "inputs"), SHAPES)
def test_every_number_of_a_stack_is_owned_by_exactly_one_head(fusion: str, inputs: tuple[tuple[str, int], ...]) -> None:
    shape = architecture(fusion, inputs)
    stack = stacked(shape)
    owners = {name: torch.zeros_like(tensor) for name, tensor in stack.parameters.items()}
    for head in shape.heads:
        for name, rows in stack.owned(head):
            owners[name][:, :, rows] += 1
    assert all(bool((count == 1).all()) for count in owners.values())


@pytest.mark.parametrize(("fusion", "inputs"), SHAPES)
def test_what_a_head_owns_is_all_that_it_reads(fusion: str, inputs: tuple[tuple[str, int], ...]) -> None:
    shape = architecture(fusion, inputs)
    x = vectors(shape)
    before = stacked(shape).logits(x).detach()
    for h, head in enumerate(shape.heads):
        stack = stacked(shape)
        with torch.no_grad():
            for name, rows in stack.owned(head):
                stack.parameters[name][:, :, rows] += 0.1
        changed = [bool((now != then).any()) for now, then in zip(stack.logits(x), before, strict=True)]
        assert changed == [other == h for other in range(len(shape.heads))]


def test_dropout_keeps_the_mean_and_draws_from_the_stream_of_its_seed_alone() -> None:
    def streams(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def factors(share: float, *seeds: int) -> Tensor | None:
        return dropout_factors(share, streams(*seeds), heads=3, batch=400, units=50, dtype=torch.float32)

    drawn, alone = factors(0.25, 1, 2), factors(0.25, 2)
    assert drawn is not None
    assert alone is not None
    assert drawn.shape == (3, 2, 400, 50)
    assert set(drawn.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
    assert torch.equal(alone[:, 0], drawn[:, 1])
    assert factors(0.0, 1) is None
