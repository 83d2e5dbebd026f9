"""Memory and time of `train-heads` on caches of 15,000 and 150,000 utterances of 1,024 + 768 features.

    python benchmarks/stage2_scale.py

One setting, one seed, one epoch, one fold (the release's partitions, 60 % of it to train on); a call's processes are a
session of their own, and the smaller cache is measured before and after the larger. Time is the kernel's, of all of
them from typing to the last file; memory is what they held at once, as often as one could look, what they share counted
once. 1.0 in the last line means time that grows as the rows do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from made_up import write_made_up_cache

SIZES = {"audio": 1024, "text": 768}
EMOTIONS = ("neutral", "happy", "sad", "angry", "disgust", "fear", "surprise", "contempt")
RATERS = 5
SMALL, LARGE = 15_000, 150_000
LOOK = 0.05  # s between two looks


def run(cache: Path, output: Path, epochs: int) -> tuple[float, float]:
    """CPU seconds and GiB of one call."""
    code = "from amber2_train.cli import train_heads; train_heads()"
    options = ["--system", "amber2", "--seeds", "1", "--epochs", str(epochs), "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--cache", str(cache), "--output", str(output), *options],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    seconds: dict[str, float] = {}  # of each process, as of the last look
    most = 0
    while process.poll() is None:
        own = [path for path in Path("/proc").glob("[0-9]*") if _session(path) == process.pid]
        seconds |= {path.name: spent for path in own if (spent := _seconds(path))}
        most = max(most, sum(map(_bytes, own)))
        time.sleep(LOOK)
    if process.returncode:
        sys.exit(f"train-heads failed on {cache}")
    return sum(seconds.values()), most / 2**30


def _fields(process: Path) -> list[str]:
    """/proc/PID/stat from its third field on; none where the process has gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _session(process: Path) -> int:
    return int((_fields(process) or ["0"] * 4)[3])


def _seconds(process: Path) -> float:
    """Of processors, so far."""
    return sum(map(int, (_fields(process) or ["0"] * 13)[11:13])) / os.sysconf("SC_CLK_TCK")


def _bytes(process: Path) -> int:
    """Of memory, now: what is shared by several counts in parts."""
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


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
