"""Memory and time of `train-heads` on caches of 15,000 and 150,000 utterances of 1,024 + 768 features.

    python benchmarks/stage2_scale.py

One setting, one seed, one epoch, one fold (the release's partitions, 60 % of it to train on); a run is a process of its
own, and the smaller one is measured before and after the larger. Time and memory are the kernel's, of the whole process
from typing to the last file; 1.0 in the last line means time that grows as the rows do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from made_up import write_made_up_cache

SIZES = {"audio": 1024, "text": 768}
EMOTIONS = ("neutral", "happy", "sad", "angry", "disgust", "fear", "surprise", "contempt")
RATERS = 5
SMALL, LARGE = 15_000, 150_000


def run(cache: Path, output: Path, epochs: int) -> tuple[float, float]:
    """CPU seconds and GiB of one call."""
    code = "from amber2_train.cli import train_heads; train_heads()"
    options = ["--system", "amber2", "--seeds", "1", "--epochs", str(epochs), "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--cache", str(cache), "--output", str(output), *options],
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"train-heads failed on {cache}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        caches = {
            count: write_made_up_cache(folder / f"{count}.h5", count, sizes=SIZES, emotions=EMOTIONS, raters=RATERS)
            for count in (SMALL, LARGE)
        }
        # what more epochs cost is free of start-up and reading; on the smaller cache as many more as makes as many rows
        times: dict[int, list[float]] = {SMALL: [], LARGE: []}
        for turn, count in enumerate((SMALL, LARGE, SMALL)):
            one, memory = run(caches[count], folder / f"{turn}-1", 1)
            more = LARGE // count
            longer, _ = run(caches[count], folder / f"{turn}-2", 1 + more)
            times[count].append((longer - one) / more)
            line = f"{one:5.1f} CPU s, {times[count][-1]:5.1f} s for every epoch more, {memory:.2f} GiB"
            print(f"{count:7,} utterances: {line}")
        per_row = {count: sum(some) / len(some) / count for count, some in times.items()}
        print(f"time of an epoch per row, large to small: {per_row[LARGE] / per_row[SMALL]:.2f}")


if __name__ == "__main__":
    main()
