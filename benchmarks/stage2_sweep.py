"""Time of one training within a sweep, as a ratio to the loop that a user writes, and to what this machine can do.

    python benchmarks/stage2_sweep.py [EPOCHS]

IEMOCAP's protocol: 3,319 train and 1,106 dev rows of 768 + 768 features, the default gated unit, batch 128, dev scored
after every epoch; nine settings of κ and λ_MAI train together. All is measured in turns within one run, and the ratios
are of the medians. The user's loop is one model at a time: DataLoader over tensors in memory, modules, plain AdamW.
The floor is the sweep's products at the rate of torch's library here, plus AdamW's pass over memory.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.utils.data import DataLoader, TensorDataset

from amber2_core.tables import texts
from amber2_train.fit import fit
from amber2_train.folds import Fold
from amber2_train.grid import Setting, expand
from amber2_train.products import Precision
from amber2_train.rows import FoldRows, fold_rows
from amber2_train.targets import TrainingData

TRAIN, DEV, SIZE, WIDTH, CLASSES, BATCH = 3319, 1106, 768, 256, 4, 128
GRID = {"lambda_mai": (0.3, 0.5, 0.7), "kappa": (2.0, 4.0, 8.0)}
TURNS = 3


class UsersHeads(nn.Module):
    """Two heads and a gated one, as one writes them."""

    def __init__(self) -> None:
        super().__init__()

        def head(size: int) -> nn.Module:
            return nn.Sequential(nn.Linear(size, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))

        self.audio, self.text, self.fusion = head(SIZE), head(SIZE), head(WIDTH)
        self.w_audio, self.w_text = (nn.Linear(SIZE, WIDTH, bias=False) for _ in range(2))
        self.gate = nn.Linear(2 * SIZE, WIDTH, bias=False)

    def forward(self, audio: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = torch.sigmoid(self.gate(torch.cat([audio, text], -1)))
        fused = z * torch.tanh(self.w_audio(audio)) + (1 - z) * torch.tanh(self.w_text(text))
        return self.audio(audio).softmax(-1), self.text(text).softmax(-1), self.fusion(fused).softmax(-1)


def users_js(p: Tensor, q: Tensor) -> Tensor:
    m = ((p + q) / 2).clamp_min(1e-12).log()
    kl_p = torch.xlogy(p, p) - p * m
    kl_q = q * (q.clamp_min(1e-12).log() - m)
    return (kl_p + kl_q).sum(-1) / (2 * math.log(2))


def users_loop(data: FoldRows, epochs: int) -> None:
    """One training of one setting."""
    part = {name: (rows.features["audio"][rows.index], rows.features["text"][rows.index], rows.targets)
            for name, rows in (("train", data.train), ("dev", data.dev))}  # fmt: skip
    train = DataLoader(TensorDataset(*part["train"]), batch_size=BATCH, shuffle=True)
    dev = DataLoader(TensorDataset(*part["dev"]), batch_size=BATCH)
    model = UsersHeads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=1e-2)
    for _ in range(epochs):
        for audio, text, y in train:
            p_a, p_t, s = model(audio, text)
            u = torch.softmax(-4 * torch.stack([users_js(p_a, y), users_js(p_t, y)]).detach(), dim=0)
            loss = (users_js(y, s) + 0.5 * (u[0] * users_js(s, p_a) + u[1] * users_js(s, p_t))).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            torch.cat([users_js(y, model(audio, text)[2]) for audio, text, y in dev]).mean()


def made_up_fold() -> FoldRows:
    random = np.random.default_rng(0)
    count = TRAIN + DEV
    data = TrainingData(
        *[texts([str(i) for i in range(count)])] * 4,
        features={name: random.normal(size=(count, SIZE)).astype(np.float32) for name in ("audio", "text")},
        targets=random.dirichlet([0.5] * CLASSES, count).astype(np.float32),
        emotions=("neutral", "happy", "angry", "sad"),
        feature_sets={}, dropped={}, ignored={},
    )  # fmt: skip
    rows = np.arange(count)
    return fold_rows(data, Fold(1, rows[:TRAIN], rows[TRAIN:], rows[:0], 0))


def swept(data: FoldRows, settings: Sequence[Setting], epochs: int, precision: Precision) -> None:
    fit(data, settings, seeds=[0], epochs=epochs, precision=precision)


def floor(settings: int, epochs: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of the wide products, and of AdamW's memory traffic, of one stack of settings."""
    weight = torch.randn(settings * 3 * WIDTH, SIZE)
    moments = [torch.zeros_like(weight) for _ in range(3)]
    step = torch.zeros(())
    x, gradient = torch.randn(BATCH, SIZE, dtype=dtype), torch.randn(BATCH, len(weight), dtype=dtype)
    factors, held = weight.to(dtype), torch.empty(len(weight), SIZE, dtype=dtype)

    def products() -> None:
        torch.mm(x, factors.T)
        torch.mm(gradient.T, x, out=held)

    def optimizer() -> None:
        adamw([weight], moments[:1], moments[1:2], moments[2:], [], [step], fused=True, amsgrad=False, beta1=0.9,
              beta2=0.999, lr=3e-4, weight_decay=1e-2, eps=1e-8, maximize=False)  # fmt: skip

    steps = 2 * epochs * math.ceil(TRAIN / BATCH)  # two modalities
    dev_rows = 2 * epochs * DEV / BATCH / 2  # forward alone
    return (steps + dev_rows) * best(products), steps * best(optimizer)


def best(what: Callable[[], None], repeats: int = 12) -> float:
    return min(timed(what) for _ in range(repeats))


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def main() -> None:
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    data, settings = made_up_fold(), expand(["amber2"], GRID)
    contestants: dict[str, tuple[int, Callable[[], object]]] = {
        "the user's loop": (1, lambda: users_loop(data, epochs)),
        "sweep, fp32": (len(settings), lambda: swept(data, settings, epochs, "fp32")),
        "sweep, bf16": (len(settings), lambda: swept(data, settings, epochs, "bf16")),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(TURNS):
        for name, (fits, what) in contestants.items():
            times[name].append(timed(what) / fits)
    floors = {name: floor(len(settings), epochs, dtype)
              for name, dtype in (("sweep, fp32", torch.float32), ("sweep, bf16", torch.bfloat16))}  # fmt: skip
    median = {name: statistics.median(some) for name, some in times.items()}
    users = median["the user's loop"]
    print(f"one training of {epochs} epochs, {torch.get_num_threads()} threads, medians of {TURNS} turns")
    for name, seconds in median.items():
        line = f"{name:16} {seconds:6.2f} s   {users / seconds:4.1f} x the user's speed"
        if name in floors:
            products, optimizer = (part / len(settings) for part in floors[name])
            line += f"   floor {products + optimizer:.2f} s (products {products:.2f}, AdamW {optimizer:.2f})"
            line += f", {(products + optimizer) / seconds:.0%} of it reached"
        print(line)


if __name__ == "__main__":
    main()
