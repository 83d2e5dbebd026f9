"""A night rehearsed: a corpus of mixed formats is encoded through kills, a folder that goes and a full disk.

    python benchmarks/night.py [--clips 2000] [--seed 0] [--keep FOLDER]

Clips in .wav, .flac, .mp3, .m4a, .mp4 and .webm, four of them of no use, and small random encoders, so that the night
takes minutes. The command is killed three times, loses the folder of its recordings once, and runs out of disk once;
each time it is started again. The end must be that of a run which nothing disturbs, to the last bit: else the exit
status is 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from media_clips import tone_and_noise, write_media

from amber2_core.cache import FeatureCache, read_cache
from amber2_extract.stand_ins import SPEECH_FOLDER, TEXT_FOLDER, save_speech_encoder, save_text_encoder

COMMAND = "from amber2_extract.cli import extract_features; extract_features()"
# Files may grow to so many bytes; a signal would end the process instead of an error.
NARROW = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); " + COMMAND
WORDS = ["we", "do", "not", "know", "what", "the", "raters", "heard", "in", "this", "voice"]
ENTRY_BYTES = 56  # of the index of a row store


def write_clip(folder: Path, number: int, seconds: float) -> str:
    """One clip in the format whose turn it is; the name of its file."""

    def noise(rate: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return tone_and_noise(seconds, rate, seed=number)

    path = folder / f"c{number:05d}"
    kind = number % 6
    if kind == 0:
        soundfile.write(path.with_suffix(".wav"), noise(16_000), 16_000)
        return f"{path.name}.wav"
    if kind == 1:
        soundfile.write(path.with_suffix(".flac"), noise(44_100), 44_100)
        return f"{path.name}.flac"
    if kind == 2:
        soundfile.write(path.with_suffix(".mp3"), noise(24_000), 24_000, format="MP3")
        return f"{path.name}.mp3"
    if kind == 3:
        return write_media(path.with_suffix(".m4a"), noise(44_100)).name
    if kind == 4:
        picture = seconds + 0.2
        return write_media(path.with_suffix(".mp4"), noise(44_100), picture=picture, late=0.1).name
    return write_media(path.with_suffix(".webm"), noise(48_000), codec="libopus", rate=48_000).name


def spoil(folder: Path, names: list[str]) -> None:
    """One clip of each kind becomes one of no use."""
    videos = [name for name in names if name.endswith(".mp4")]
    write_media(folder / videos[1], None, picture=1)
    for suffix in (".wav", ".m4a", ".webm"):
        path = folder / [name for name in names if name.endswith(suffix)][1]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@dataclass
class Night:
    """A folder with a corpus and its encoders, and the command that encodes it."""

    folder: Path
    clips: int

    def __post_init__(self) -> None:
        self.recordings = self.folder / "disk"
        self.output = self.folder / "night" / "corpus.h5"

    def write(self, seed: int) -> None:
        """The corpus and its encoders."""
        random = np.random.default_rng(seed)
        self.recordings.mkdir(parents=True)
        lengths = np.clip(random.lognormal(0.9, 0.5, self.clips), 0.6, 12)
        names = [write_clip(self.recordings, number, float(seconds)) for number, seconds in enumerate(lengths)]
        spoil(self.recordings, names)
        lines = ["id,audio,text,speaker,votes.neutral,votes.happy"]
        for number, name in enumerate(names):
            text = " ".join(random.choice(WORDS, int(random.integers(2, 12))))
            lines.append(f"u{number},disk/{name},{text} {number},s{number % 10},1,2")
        (self.folder / "corpus.csv").write_text("\n".join(lines) + "\n", "utf-8")
        save_speech_encoder(self.folder / SPEECH_FOLDER)
        save_text_encoder(self.folder / TEXT_FOLDER, words=WORDS)

    def start(self, output: Path, code: str = COMMAND) -> subprocess.Popen[str]:
        """The command, begun."""
        options = [
            *("--corpus=manifest", f"--root={self.folder / 'corpus.csv'}", "--device=cpu", f"--output={output}"),
            *(f"--audio-model={self.folder / SPEECH_FOLDER}", f"--text-model={self.folder / TEXT_FOLDER}"),
        ]
        return subprocess.Popen(
            [sys.executable, "-c", code, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def rows(self) -> int:
        """How many rows are in work."""
        return sum(path.stat().st_size for path in self.output.parent.glob("*.parts/*/*.idx")) // ENTRY_BYTES

    def until(self, process: subprocess.Popen[str], rows: int) -> None:
        """Wait for so many rows."""
        while self.rows() < rows:
            if process.poll() is not None:
                said = (process.stderr.read() if process.stderr else "").strip()
                raise SystemExit(f"The command ended before {rows} rows were in work:\n{said}")
            time.sleep(0.002)

    def kill(self, rows: int) -> str:
        """Begin, and end at so many rows as a machine that loses its power would."""
        process = self.start(self.output)
        self.until(process, rows)
        process.kill()
        process.communicate()
        wait_for(lambda: not session_of(process.pid))  # workers whose conductor has gone end by themselves
        return "killed"

    def lose_the_folder(self, rows: int) -> str:
        """Begin, and take the recordings away at so many rows, until the command has ended."""
        process, away = self.start(self.output), self.folder / "away"
        self.until(process, rows)
        self.recordings.rename(away)
        _, said = process.communicate()
        away.rename(self.recordings)
        return ended(process, said, "Cannot read the recordings")

    def fill_the_disk(self, rows: int) -> str:
        """Begin on a disk that has room for ten more rows of the store which grows."""
        del rows
        store = max(self.output.parent.glob("*.parts/*/*.bin"), key=lambda path: path.stat().st_mtime_ns)
        held = store.stat().st_size
        each = held // max(1, store.with_suffix(".idx").stat().st_size // ENTRY_BYTES)
        process = self.start(self.output, NARROW.format(held + 10 * each))
        _, said = process.communicate()
        return ended(process, said, "Cannot write")

    def finish(self, output: Path) -> float:
        """Seconds of a run that nothing disturbs."""
        began, process = time.monotonic(), self.start(output)
        _, said = process.communicate()
        if process.returncode != 3:  # some utterances fail
            raise SystemExit(f"The command ended with {process.returncode}:\n{said}")
        return time.monotonic() - began


def ended(process: subprocess.Popen[str], said: str, expected: str) -> str:
    """What the command ended with: one line, and no traceback."""
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if process.returncode == 0 or expected not in last or "Traceback" in said:
        raise SystemExit(f"Expected an end with {expected!r}, exit {process.returncode}:\n{said}")
    return last


def session_of(leader: int) -> bool:
    """Whether a process of the command's session is left."""
    found = subprocess.run(["ps", "-o", "pid=", "--sid", str(leader)], capture_output=True, text=True, check=False)
    return bool(found.stdout.split())


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        if time.monotonic() > until:
            raise SystemExit("Workers outlive their conductor")
        time.sleep(0.02)


def differences(one: FeatureCache, other: FeatureCache) -> list[str]:
    """What two caches do not share."""
    found = [] if one.failures == other.failures else ["failures"]
    tables = (one.utterances, other.utterances)
    if not all(list(a) == list(b) for a, b in zip(*((t.id, t.audio_sha256) for t in tables), strict=True)):
        found.append("utterances")
    if not np.array_equal(*(table.duration for table in tables), equal_nan=True):
        found.append("durations")
    for a, b in zip(one.features, other.features, strict=True):
        same = a.fingerprint == b.fingerprint and list(a.inputs) == list(b.inputs)
        if not same or not np.array_equal(a.values, b.values, equal_nan=True):  # what failed holds NaN
            found.append(f"{a.modality}/{a.name}")
    return found


def rehearse(folder: Path, clips: int, seed: int) -> int:
    """The whole night; 0 where its end is the undisturbed run's."""
    night = Night(folder, clips)
    began = time.monotonic()
    night.write(seed)
    print(f"{clips:,} clips written in {time.monotonic() - began:.0f} s", flush=True)
    expected = folder / "undisturbed" / "corpus.h5"
    print(f"undisturbed: {night.finish(expected):.0f} s", flush=True)
    held = sum(int(features.encoded.sum()) for features in read_cache(expected).features)
    events = (night.kill, night.lose_the_folder, night.kill, night.fill_the_disk, night.kill)
    # The first moment is among the transcripts, which come first; all others are among the recordings.
    for share, event in zip((0.3, 0.55, 0.65, 0.65, 0.85), events, strict=True):
        line = event(round(share * held))
        print(f"at {night.rows():,} of {held:,} rows: {line}", flush=True)
    print(f"the rest: {night.finish(night.output):.0f} s", flush=True)
    one, other = read_cache(expected), read_cache(night.output)
    found = differences(one, other)
    found += [] if [path.name for path in night.output.parent.iterdir()] == [night.output.name] else ["leftovers"]
    print("the same to the last bit" if not found else f"not the same: {', '.join(found)}")
    print(f"{len(one.failures)} failures, for one {one.failures[0].utterance}: {one.failures[0].reason}")
    return 1 if found else 0


def main() -> None:
    """Rehearse, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder to work in, which stays; default: one that goes")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = arguments.keep or Path(tempfile.mkdtemp())
    try:
        status = rehearse(folder, arguments.clips, arguments.seed)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
