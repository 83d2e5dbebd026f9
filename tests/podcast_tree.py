"""Writes MSP-Podcast's tree in each layout of its labels, with the traps of its files, at any size."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LAYOUTS = ("detail", "columns-1.6", "columns-2.0", "json", "txt")
WORDS = ("Angry", "Sad", "Happy", "Surprise", "Fear", "Disgust", "Contempt", "Neutral")
CODES = "ASHUFDCN"
OTHERS = ("Other-confused", "Other-Excited, a bit: yes", "Other")
SPLITS = ("Train", "Train", "Train", "Development", "Test1", "Test2")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as it is written."""

    stem: str
    code: str
    speaker: str
    split: str
    # (rater, primary, secondary)
    votes: tuple[tuple[str, str, str], ...]
    # None: there is no file
    transcript: str | None


def turns(count: int, *, seed: int = 0) -> Iterator[Turn]:
    """So many turns; the same ones for the same seed."""
    chance = random.Random(seed)
    for number in range(count):
        stem = f"MSP-PODCAST_{number // 50:04d}_{number % 50:04d}"
        if number % 97 == 96:
            stem = f"{stem[:-5]}_0062_{number % 50:03d}x"
        raters = chance.sample(range(1, 12_000), chance.choice((5, 5, 5, 6, 7)))
        votes = []
        for rater in raters:
            word = chance.choice(OTHERS) if chance.random() < 0.05 else chance.choice(WORDS)
            secondary = ",".join(chance.sample(WORDS, 2)) if chance.random() < 0.7 else ""
            votes.append((f"WORKER{rater:08d}", word.replace(", a bit: yes", ""), secondary))
        code = "X" if chance.random() < 0.19 else chance.choice(CODES + "O")
        split = SPLITS[number % len(SPLITS)]
        speaker = "Unknown" if chance.random() < 0.1 else str(number // 50 % 1500)
        words = None if number % 65 == 64 else f"Turn {number}, and so on."
        yield Turn(stem, code, speaker, split, tuple(votes), words)


def write(root: Path, written: Sequence[Turn], layout: str) -> None:
    """Write a release; recordings are empty files."""
    labels = root / {"txt": "label", "columns-2.0": "Labels"}.get(layout, "labels")
    for folder in (labels, root / "Audios", root / "Transcripts"):
        folder.mkdir(parents=True)
    for turn in written:
        (root / "Audios" / f"{turn.stem}.wav").touch()
        if turn.transcript is not None:
            (root / "Transcripts" / f"{turn.stem}.txt").write_text(turn.transcript + "\n")
    (root / "Audios" / "._MSP-PODCAST_0000_0000.wav").touch()
    partition = "".join(f"{turn.split}; {turn.stem}.wav\n" for turn in written)
    (root / ("Partition.txt" if layout == "txt" else "Partitions.txt")).write_text(partition)
    _write_consensus(labels, written, layout)
    {"detail": _write_detail, "json": _write_json, "txt": _write_txt}.get(layout, _write_columns)(labels, written)


def _write_consensus(labels: Path, written: Sequence[Turn], layout: str) -> None:
    name = "labels_consensus.csv" if layout in ("columns-2.0", "json") else "labels_concensus.csv"
    with (labels / name).open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\r\n" if layout == "detail" else "\n")
        table.writerow(["FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set"])
        for turn in written:
            split = "Validation" if layout == "columns-1.6" and turn.split == "Development" else turn.split
            table.writerow([f"{turn.stem}.wav", turn.code, "2.4", "4.0", "2.8", turn.speaker, "Female", split])


def _detail(rater: str, word: str, secondary: str) -> str:
    return "; ".join([rater, word, *([secondary] if secondary else []), "A:3.0", "V:3.0", "D:4.0"]) + ";"


def _write_detail(labels: Path, written: Sequence[Turn]) -> None:
    with (labels / "labels_detailed.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        table.writerow(["FileName", "EmoDetail"])
        table.writerows([f"{turn.stem}.wav", _detail(*vote)] for turn in written for vote in turn.votes)


def _write_columns(labels: Path, written: Sequence[Turn]) -> None:
    rater = "WorkerID" if labels.name == "Labels" else "Workers"
    with (labels / "labels_detailed.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["FileName", rater, "EmoClass_Major", "EmoClass_Second", "EmoAct", "EmoVal", "EmoDom"])
        table.writerows([f"{turn.stem}.wav", *vote, 3, 3, 4] for turn in written for vote in turn.votes)


def _write_json(labels: Path, written: Sequence[Turn]) -> None:
    with (labels / "labels_detailed.json").open("w") as file:
        file.write("{\n")
        for number, turn in enumerate(written):
            record = {
                rater: {"EmoClass_Major": word, "EmoClass_Second": second, "EmoAct": 3.0, "EmoDom": 4.0, "EmoVal": 3.0}
                for rater, word, second in turn.votes
            }
            file.write(f'  "{turn.stem}.wav": {json.dumps(record)}{"," if number + 1 < len(written) else ""}\n')
        file.write("}\n")


def _write_txt(labels: Path, written: Sequence[Turn]) -> None:
    with (labels / "labels.txt").open("w") as file:
        for turn in written:
            file.write(f"{turn.stem}.wav; {turn.code}; A:2.4; V:4.0; D:2.8;\n")
            file.writelines(_detail(*vote) + "\n" for vote in turn.votes)
            file.write("\n")
