"""The paper's whole protocol on a GPU in one number for each precision, with its share of what that GPU can do.

    python benchmarks/stage2_gpu.py

`train-heads --preset paper` on 5,531 utterances of 768 + 768 features in five sessions: 225 fits of AmbER² and 25 of
the baseline, every dev row scored after every epoch, selection, test and the run folder. The time is that of the
command, from typing to the last file; beside it what the same command needs for one epoch, most of which is starting
and ending. Two limits are measured on the same GPU: the rate of a large product, and the bandwidth of a copy within its
memory. The sweep's work at these rates is what it cannot be faster than.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from made_up import write_made_up_cache

from amber2_core.devices import set_arithmetic
from amber2_core.heads import Architecture
from amber2_train.options import PAPER
from amber2_train.systems.amber2 import Amber2Settings
from amber2_train.systems.system import Precision

COUNT, FOLDS, SIZE = 5531, 5, 768
EMOTIONS = ("neutral", "happy", "angry", "sad")
COMMAND = "from amber2_train.cli import train_heads; train_heads()"
# bytes per parameter and step: AdamW reads weight, gradient and two moments and writes three of them back; the gradient
# was written before, and the products read the weight
BYTES = 4 * (4 + 3 + 1 + 1)


def work() -> tuple[float, float]:
    """Floating-point operations and bytes of the preset."""
    inputs = (("audio", SIZE), ("text", SIZE))
    default = Amber2Settings()
    shape = Architecture(inputs, len(EMOTIONS), default.fusion, default.hidden, default.hidden, default.dropout)
    parameters = sum(math.prod(size) for size in shape.shapes.values())
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


def product_rate(precision: Precision) -> float:
    """Operations per second of a large product."""
    side, dtype = 8192, torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    set_arithmetic(a.device, tf32=precision == "tf32")
    return 2 * side**3 / seconds_on_gpu(lambda: torch.mm(a, b, out=product))


def bandwidth() -> float:
    """Bytes per second of a copy, both those read and those written."""
    source = torch.empty(2**28, device="cuda")  # 1 GiB of fp32
    copy = torch.empty_like(source)
    return 2 * source.nbytes / seconds_on_gpu(lambda: copy.copy_(source))


def seconds_of_command(cache: Path, output: Path, *options: str) -> float:
    """Of `train-heads --preset paper`, from typing to the last file."""
    command = [sys.executable, "-c", COMMAND, "--preset", "paper", "--device", "cuda", "--quiet", "--cache", str(cache)]
    began = time.perf_counter()
    subprocess.run([*command, "--output", str(output), *options], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure() -> None:
    if not torch.cuda.is_available():
        print("no GPU: torch finds no CUDA device here, so --preset paper is not measured on one")
        return
    operations, moved = work()
    at_bandwidth = moved / bandwidth()
    at_rate = {precision: operations / product_rate(precision) for precision in get_args(Precision)}
    print(f"{torch.cuda.get_device_name()}: train-heads --preset paper on {COUNT:,} utterances; at the limit of its "
          f"bandwidth the optimizer alone needs {at_bandwidth:.2f} s")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"audio": SIZE, "text": SIZE}
        cache = write_made_up_cache(
            folder / "cache.h5", COUNT, sizes=sizes, emotions=EMOTIONS, raters=3, folds="session"
        )
        seconds_of_command(cache, folder / "first", "--epochs", "1")  # finds what is not yet in the disk's cache
        short = seconds_of_command(cache, folder / "short", "--epochs", "1")
        print(f"of one epoch: {short:.1f} s")
        for precision in get_args(Precision):
            whole = seconds_of_command(cache, folder / precision, "--precision", precision)
            print(f"{precision}: {whole:.1f} s; its products need {at_rate[precision]:.2f} s at this GPU's rate "
                  f"({operations / at_rate[precision] / 1e12:.0f} TFLOP/s): {at_rate[precision] / whole:.0%} of the "
                  f"arithmetic limit, {at_bandwidth / whole:.0%} of that of bandwidth")  # fmt: skip


if __name__ == "__main__":
    measure()
