"""The wide product and its optimizer against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amber2_train.optimizer import StackedAdamW
from amber2_train.products import WideProduct

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


def test_in_bfloat16_the_product_is_near_and_the_weights_stay_in_single_precision() -> None:
    x, weight = random(1, 64, 200, dtype=torch.float32), random(1, 2, 9, 200, seed=1, dtype=torch.float32)
    exact = WideProduct.apply(x, weight, None, None, [9])[0]  # type: ignore[no-untyped-call]
    low = WideProduct.apply(x, weight, weight.bfloat16(), None, [9])[0]  # type: ignore[no-untyped-call]
    assert low.dtype == torch.float32
    error = float((low - exact).abs().max() / exact.abs().max())
    assert 1e-5 < error < 2e-2


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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_optimizer_is_torchs_adamw_whether_whole_or_in_pieces(precision: str) -> None:
    ours, optimizer, torchs = stepped(precision)
    for name, parameter in torchs.items():
        torch.testing.assert_close(ours[name], parameter, rtol=1e-6, atol=1e-6)
    optimizer.zero_grad()
    assert ours["bias"].grad is None
    low = {"wide.audio": ours["wide.audio"].detach().bfloat16()} if precision == "bf16" else {}
    assert optimizer.low.keys() == low.keys()
    for name, copy in low.items():
        assert torch.equal(optimizer.low[name], copy)
