"""An extraction by Ray against the plain one on this machine, and shards against it, in turns within one run.

    python benchmarks/ray_engine.py [--utterances 200] [--turns 2] [--shards 4]

The encoder is of base size with random weights, recordings are of 1 to 15 s, on the CPU; every run is a command of its
own, and Ray is started by it. What each takes to start is that of the same command with one recording. The caches must
agree within 1e-5: else the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from extraction import COMMAND, command, made_up_corpus
from transformers import Wav2Vec2Config

from amber2_core.cache import read_cache
from amber2_extract.stand_ins import SPEECH_FOLDER, save_speech_encoder

WAYS = {
    "plain": (),
    "ray, rows to the driver": ("--engine=ray",),
    "ray, rows shared": ("--engine=ray", "--rows=shared"),
}
MERGE = "from amber2_extract.merge_cli import merge_shards; merge_shards()"


class Desk:
    """A corpus with its encoder, and a folder for caches."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        lengths = np.random.default_rng(1).permutation(np.geomspace(1, 15, count)).tolist()
        self.seconds = sum(lengths)
        self.roots = [self._written(folder / "whole", lengths), self._written(folder / "one", lengths[:1])]
        save_speech_encoder(folder / SPEECH_FOLDER, config=Wav2Vec2Config())

    def _written(self, root: Path, lengths: Sequence[float]) -> Path:
        corpus = made_up_corpus(root, len(lengths), lengths, (16_000,))
        rows = [f"{u.id},{u.audio},{u.transcript},1,1" for u in corpus.utterances]
        (root / "corpus.csv").write_text("\n".join(["id,audio,text,votes.sad,votes.happy", *rows]))
        return root / "corpus.csv"

    def options(self, root: Path, output: Path) -> list[str]:
        """Of the command that encodes a corpus."""
        encoder = ("--modality=audio", f"--audio-model={self.folder / SPEECH_FOLDER}")
        return ["--corpus=manifest", f"--root={root}", f"--output={output}", *encoder, "--device=cpu"]

    def run(self, way: str, root: Path) -> float:
        """Seconds of a whole command, whose cache replaces that of before."""
        output = self.cache(way)
        output.unlink(missing_ok=True)
        return command([COMMAND, *self.options(root, output), *WAYS[way]])[0]

    def run_shards(self, root: Path, count: int) -> float:
        """Seconds of so many shards, one after the other, and of merging them."""
        output = self.cache("shards")
        for path in output.parent.glob("shards*"):
            path.unlink()
        names = [f"{number}/{count}" for number in range(1, count + 1)]
        seconds = sum(command([COMMAND, *self.options(root, output), f"--shard={name}"])[0] for name in names)
        return seconds + command([MERGE, *map(str, sorted(output.parent.glob("shards.shard-*")))])[0]

    def cache(self, way: str) -> Path:
        """Where the cache of a way stands."""
        return self.folder / f"{way.replace(', ', '-').replace(' ', '-')}.h5"

    def difference(self, way: str) -> float:
        """The largest from the plain run's values."""
        one, plain = (read_cache(self.cache(name)).feature_set("audio") for name in (way, "plain"))
        assert list(one.inputs) == list(plain.inputs)
        return float(np.abs(one.values - plain.values).max())


def main() -> None:
    """Measure, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--shards", type=int, default=4, help="0 leaves them out")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory(prefix="am", dir="/tmp") as name:  # Ray's sockets have paths of at most 107 bytes
        os.environ |= {"HOME": name, "RAY_TMPDIR": name, "RAY_USAGE_STATS_ENABLED": "0"}
        desk = Desk(Path(name), arguments.utterances)
        ways: dict[str, Callable[[Path], float]] = {way: partial(desk.run, way) for way in WAYS}
        if arguments.shards:
            ways["shards"] = partial(desk.run_shards, count=arguments.shards)
        starts = {way: run(desk.roots[1]) for way, run in ways.items() if way != "shards"}
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.turns):
            for way, run in ways.items():
                found[way].append(run(desk.roots[0]))
                print(f"{way:24}{found[way][-1]:7.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        plain = statistics.median(found["plain"])
        print(f"{arguments.utterances} recordings, {desk.seconds:.0f} s of audio; load {os.getloadavg()[0]:.1f}")
        farthest = {way: desk.difference(way) for way in found}
        for way, times in found.items():
            seconds, start = statistics.median(times), starts.get(way, arguments.shards * starts["plain"])
            work = (seconds - start) / (plain - starts["plain"])
            print(
                f"{way:24}{seconds:7.1f} s, {seconds / plain:.2f} x the plain run; {start:5.1f} s to start, without "
                f"which {work:.2f} x; farthest value {farthest[way]:.1g}"
            )
    sys.exit(max(farthest.values()) > 1e-5)


if __name__ == "__main__":
    main()
