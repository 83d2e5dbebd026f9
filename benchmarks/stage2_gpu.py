"""The paper's whole protocol on a GPU in one number, with its share of what that GPU can do.

    python benchmarks/stage2_gpu.py

`train-heads --preset paper` on 5,531 utterances of 768 + 768 features in five sessions: 225 fits of AmbER² and 25 of
the baseline, every dev row scored after every epoch, selection, test and the run folder. The time is that of the
command, from typing to the last file. Two limits are measured on the same GPU: the rate of a large fp32 product, and
the bandwidth of a copy within its memory. The sweep's work at these rates is what it cannot be faster than.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from made_up import write_made_up_cache

from amber2_core.heads import Architecture, MultimodalHeads
from amber2_train.grid import Setting
from amber2_train.presets import PAPER

COUNT, FOLDS, SIZE = 5531, 5, 768
EMOTIONS = ("neutral", "happy", "angry", "sad")
COMMAND = "from amber2_train.cli import train_heads; train_heads()"
# bytes per parameter and step: AdamW reads weight, gradient and two moments and writes three of them back; the gradient
# was written before, and the products read the weight
BYTES = 4 * (4 + 3 + 1 + 1)


def work() -> tuple[float, float]:
    """Floating-point operations and bytes of the preset."""
    inputs = (("audio", SIZE), ("text", SIZE))
    default = Setting()
    shape = Architecture(inputs, len(EMOTIONS), default.fusion, default.hidden, default.hidden, default.dropout)
    parameters = sum(p.numel() for p in MultimodalHeads(shape).parameters())
    fits = len(PAPER.settings()) * FOLDS * PAPER.seeds
    train, dev = COUNT * 3 / 5, COUNT / 5
    # a multiplication and an addition per weight: forward and the weights' gradient in training, forward on dev; the
    # features, which nearly all weights read, have no gradient
    operations = fits * PAPER.epochs * (4 * train + 2 * dev) * parameters
    steps = fits * PAPER.epochs * math.ceil(train / default.batch_size)
    return operations, float(steps * parameters * BYTES)


def seconds_on_gpu(what: Callable[[], object], repeats: int = 20) -> float:
    """Of one call, the fastest of several."""
    best = math.inf
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        what()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def limits() -> tuple[float, float]:
    """Operations per second of a large fp32 product, and bytes per second of a copy, both read and written ones."""
    side = 8192
    a, b = (torch.randn(side, side, device="cuda") for _ in range(2))
    product = torch.empty_like(a)
    rate = 2 * side**3 / seconds_on_gpu(lambda: torch.mm(a, b, out=product))
    source = torch.empty(2**28, device="cuda")  # 1 GiB of fp32
    copy = torch.empty_like(source)
    return rate, 2 * source.nbytes / seconds_on_gpu(lambda: copy.copy_(source))


def measure() -> None:
    if not torch.cuda.is_available():
        print("no GPU: torch finds no CUDA device here, so --preset paper is not measured on one")
        return
    rate, bandwidth = limits()
    operations, moved = work()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"audio": SIZE, "text": SIZE}
        cache = write_made_up_cache(
            folder / "cache.h5", COUNT, sizes=sizes, emotions=EMOTIONS, raters=3, folds="session"
        )
        options = ["--preset", "paper", "--device", "cuda", "--quiet", "--cache", str(cache)]
        times = []
        for turn in range(2):  # the first finds libraries and kernels not yet in the disk's cache
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", COMMAND, *options, "--output", str(folder / f"{turn}")], check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
            times.append(time.perf_counter() - began)
    print(f"{torch.cuda.get_device_name()}: train-heads --preset paper on {COUNT:,} utterances: {times[-1]:.1f} s")
    print(f"limits: {rate / 1e12:.1f} TFLOP/s in fp32, {bandwidth / 1e12:.2f} TB/s")
    for what, least in (("arithmetic", operations / rate), ("bandwidth", moved / bandwidth)):
        print(f"{what}: {least:.2f} s at the limit, {least / times[-1]:.0%} of it reached")


if __name__ == "__main__":
    measure()
