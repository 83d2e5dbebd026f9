"""Reads MSP-Podcast trees of growing size and prints time per turn and peak memory: `python benchmarks/corpora.py`.

The trees are written to a temporary folder (two small files a turn), the largest of the size of release 1.12. Each is
read in a process of its own; busy times per turn are given as ratios to the smallest tree's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import podcast_tree

SIZES = (12_500, 50_000, 207_136)


def measure(root: Path) -> dict[str, float]:
    """Read one tree in this process."""
    from amber2_core.tables import rating_table, utterance_table
    from amber2_data.corpora import msp_podcast

    wall, busy = time.perf_counter(), time.process_time()
    corpus = msp_podcast.read(root)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    ratings = len(rating_table(corpus))
    turns = len(utterance_table(corpus))
    return {"turns": turns, "ratings": ratings, "wall": wall, "busy": busy, "peak_gib": peak_gib()}


def peak_gib() -> float:
    """The most memory that this process has held; getrusage would count that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / (1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 30)


def main() -> None:
    """Write, read and compare the trees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layout", default="detail,json", help="comma list of the labels' layouts")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(measure(arguments.read)))
        return
    for layout in arguments.layout.split(","):
        base = None
        for size in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                podcast_tree.write(Path(folder) / "release", tuple(podcast_tree.turns(size)), layout)
                command = [sys.executable, __file__, "--read", str(Path(folder) / "release")]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            per_turn = found["busy"] / found["turns"]
            base = base or per_turn
            print(
                f"{layout}: {found['turns']:,} turns, {found['ratings']:,} ratings: {found['wall']:.1f} s, of them "
                f"{found['busy']:.1f} s busy; per turn × {per_turn / base:.2f} of the smallest tree's; "
                f"peak {found['peak_gib']:.2f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
