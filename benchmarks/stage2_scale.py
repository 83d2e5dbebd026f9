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

import numpy as np

from amber2_core.cache import FeatureCache, Features, write_cache
from amber2_core.tables import RatingTable, UtteranceTable, texts
from amber2_core.utterance import LabelDefaults

SIZES = {"audio": 1024, "text": 768}
EMOTIONS = ("neutral", "happy", "sad", "angry", "disgust", "fear", "surprise", "contempt")
RATERS = 5
SMALL, LARGE = 15_000, 150_000


def make_cache(path: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    empty = texts([""] * count)
    names = texts([f"u{i:06}" for i in range(count)])
    sets = [
        Features(m, f"{m}-model", random.standard_normal((count, d), dtype=np.float32), names, {"model": m})
        for m, d in SIZES.items()
    ]
    split = np.array(["train", "train", "train", "dev", "test"], dtype=object)[np.arange(count) % 5]
    votes = random.choice(np.array(EMOTIONS, dtype=object), count * RATERS)
    table = UtteranceTable(
        id=names, speaker=texts([f"s{i % 1000}" for i in range(count)]), session=empty, dialogue=empty, split=split,
        language=empty, transcript=empty, audio=empty, audio_sha256=empty, start=np.full(count, np.nan, np.float32),
        duration=np.ones(count, np.float32),
    )  # fmt: skip
    ratings = RatingTable(
        utterance=np.repeat(np.arange(count, dtype=np.int32), RATERS),
        rater=texts([f"r{r}" for _ in range(count) for r in range(RATERS)]),
        source=texts(["external"] * len(votes)),
        stimulus=texts(["audio"] * len(votes)),
        label=votes,
        weight=np.ones(len(votes), np.float32),
    )
    defaults = LabelDefaults(emotions=EMOTIONS, stimulus="audio", folds="official")
    write_cache(path, FeatureCache("made-up", table, ratings, defaults, tuple(sets)))
    return path


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
        caches = {count: make_cache(folder / f"{count}.h5", count) for count in (SMALL, LARGE)}
        # what one more epoch costs is free of start-up and reading
        times: dict[int, list[float]] = {SMALL: [], LARGE: []}
        for turn, count in enumerate((SMALL, LARGE, SMALL)):
            one, memory = run(caches[count], folder / f"{turn}-1", 1)
            two, _ = run(caches[count], folder / f"{turn}-2", 2)
            times[count].append(two - one)
            line = f"{one:5.1f} CPU s, {two - one:5.1f} s more for a second epoch, {memory:.2f} GiB"
            print(f"{count:7,} utterances: {line}")
        per_row = {count: sum(some) / len(some) / count for count, some in times.items()}
        print(f"time of an epoch per row, large to small: {per_row[LARGE] / per_row[SMALL]:.2f}")


if __name__ == "__main__":
    main()
