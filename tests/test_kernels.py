"""The wide product and its optimizer against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amber2_train.stacked import kernels
from amber2_train.stacked.kernels import ClassScores, RunLinear, WideProduct, _all_at_once, _run_by_run, rounded
from amber2_train.stacked.optimizer import StackedAdamW

SIZES = [3, 2, 4]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_wide_product_is_one_linear_layer_per_run_and_part(seeds: int) -> None:
    x, weight = random(seeds, 7, 5), random(seeds, 3, 9, 5, seed=1)
    parts = WideProduct.apply(x, weight, None, None, SIZES)  # type: ignore[no-untyped-call]
    whole = torch.einsum("sbd,skod->skbo", x, weight)
    for part, expected in zip(parts, torch.split(whole, SIZES, dim=-1), strict=True):
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("piecewise", [False, True])
def test_its_gradient_is_that_of_autograd_whole_or_run_by_run(seeds: int, piecewise: bool) -> None:
    x, weight = random(seeds, 7, 5), random(seeds, 3, 9, 5, seed=1).requires_grad_()
    torch.einsum("sbd,skod->skbo", x, weight).sin().sum().backward()  # type: ignore[no-untyped-call]
    expected, weight.grad = weight.grad, None
    found = torch.zeros_like(weight)

    def learn(seed: int, setting: int, gradient: Tensor) -> None:
        found[seed, setting] = gradient

    with torch.no_grad():
        found.zero_()
    parts = WideProduct.apply(x, weight, None, learn if piecewise else None, SIZES)  # type: ignore[no-untyped-call]
    with torch.set_grad_enabled(True):
        sum(part.sin().sum() for part in parts).backward()
    torch.testing.assert_close(found if piecewise else weight.grad, expected)
    assert (weight.grad is None) == piecewise


@pytest.mark.parametrize("factors", [torch.bfloat16, torch.float32])
def test_in_bfloat16_the_product_is_near_and_the_weights_stay_in_single_precision(factors: torch.dtype) -> None:
    x, weight = random(1, 64, 200, dtype=torch.float32), random(1, 2, 9, 200, seed=1, dtype=torch.float32)
    exact = WideProduct.apply(x, weight, None, None, [9])[0]  # type: ignore[no-untyped-call]
    low = WideProduct.apply(x, weight, rounded(weight, factors), None, [9])[0]  # type: ignore[no-untyped-call]
    assert low.dtype == torch.float32
    error = float((low - exact).abs().max() / exact.abs().max())
    assert 1e-5 < error < 2e-2


def learnt(x: Tensor, weight: Tensor, low: Tensor) -> Tensor:
    """The weight's gradient as it is handed over run by run."""
    found = torch.zeros_like(weight)

    def learn(seed: int, setting: int, gradient: Tensor) -> None:
        found[seed, setting] = gradient

    parts = WideProduct.apply(x, weight.clone().requires_grad_(), low, learn, SIZES)  # type: ignore[no-untyped-call]
    sum(part.sin().sum() for part in parts).backward()
    return found


def test_where_a_processor_has_no_bfloat16_the_numbers_are_those_of_one_that_has() -> None:
    x, weight = random(1, 64, 200, dtype=torch.float32), random(1, 2, 9, 200, seed=1, dtype=torch.float32)
    native, emulated = rounded(weight, torch.bfloat16), rounded(weight, torch.float32)
    assert torch.equal(native.float(), emulated)
    of_both = [WideProduct.apply(x, weight, low, None, [9])[0] for low in (native, emulated)]  # type: ignore[no-untyped-call]
    assert all(torch.equal(product, product.bfloat16().float()) for product in of_both)
    assert float((of_both[0] == of_both[1]).float().mean()) > 0.97  # the rest is rounded to the neighbour
    torch.testing.assert_close(*of_both, rtol=1e-2, atol=1e-3)
    gradients = [learnt(x, weight, low) for low in (native, emulated)]
    assert float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max()) < 2e-2


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_gpu_multiplies_at_once_what_a_processor_does_run_by_run(seeds: int) -> None:
    x, weight = random(seeds, 7, 5), random(seeds, 3, 9, 5, seed=1)
    for part, other in zip(_all_at_once(x, weight, SIZES), _run_by_run(x, weight, SIZES), strict=True):
        torch.testing.assert_close(part, other)
        assert other.is_contiguous()


def test_a_linear_layer_of_every_run_gives_its_gradient_as_the_weight_lies() -> None:
    hidden, weight = random(2, 3, 7, 6).requires_grad_(), random(2, 3, 4, 6, seed=1).requires_grad_()
    found = RunLinear.apply(hidden, weight)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, torch.einsum("skbh,skch->skbc", hidden, weight))
    (gradient,) = torch.autograd.grad(found.sum(), weight)
    assert gradient.is_contiguous()
    assert torch.autograd.gradcheck(RunLinear.apply, [hidden, weight])


def test_class_scores_are_a_linear_layer_with_classes_first() -> None:
    hidden, weight, bias = random(2, 3, 7, 6), random(2, 3, 4, 6, seed=1), random(2, 3, 4, seed=2)
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    scores = ClassScores.apply(*inputs)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(scores.mT, torch.einsum("skbh,skch->skbc", hidden, weight) + bias.unsqueeze(-2))
    assert torch.autograd.gradcheck(ClassScores.apply, inputs)


def stepped(precision: str, steps: int = 5) -> tuple[dict[str, Tensor], StackedAdamW, dict[str, Tensor]]:
    """Parameters after some steps of ours, our optimizer, and the same after torch's own."""
    start = {"wide.audio": random(2, 3, 4, 5, dtype=torch.float32), "bias": random(2, 3, 6, dtype=torch.float32)}
    ours = {name: p.clone().requires_grad_() for name, p in start.items()}
    torchs = {name: p.clone().requires_grad_() for name, p in start.items()}
    optimizer = StackedAdamW(
        ours,
        wide=frozenset({"wide.audio"}),
        lr=0.01,
        weight_decay=0.1,
        precision=precision,  # type: ignore[arg-type]
    )
    plain = torch.optim.AdamW(torchs.values(), lr=0.01, weight_decay=0.1)
    learn = optimizer.learner("wide.audio")
    assert learn is not None
    assert optimizer.learner("bias") is None
    for step in range(steps):
        gradients = {name: random(*p.shape, seed=10 + step, dtype=torch.float32) for name, p in start.items()}
        for seed in range(2):
            for setting in range(3):
                learn(seed, setting, gradients["wide.audio"][seed, setting])
        ours["bias"].grad = gradients["bias"].clone()
        optimizer.step()
        for name, parameter in torchs.items():
            parameter.grad = gradients[name].clone()
        plain.step()
    return ours, optimizer, torchs


@pytest.mark.parametrize(("precision", "native"), [("fp32", True), ("bf16", True), ("bf16", False)])
def test_the_optimizer_is_torchs_adamw_whether_whole_or_in_pieces(
    precision: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "multiplies_bfloat16", lambda: native)
    ours, optimizer, torchs = stepped(precision)
    for name, parameter in torchs.items():
        torch.testing.assert_close(ours[name], parameter, rtol=1e-6, atol=1e-6)
    optimizer.zero_grad()
    assert ours["bias"].grad is None
    factors = torch.bfloat16 if native else torch.float32
    low = {"wide.audio": rounded(ours["wide.audio"].detach(), factors)} if precision == "bf16" else {}
    assert optimizer.low.keys() == low.keys()
    for name, copy in low.items():
        assert optimizer.low[name].dtype == copy.dtype
        assert torch.equal(optimizer.low[name], copy)
