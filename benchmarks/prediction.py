"""Speed and memory of predict-emotion, as ratios to extract-features on the same recordings.

    python benchmarks/prediction.py [RECORDINGS]

Encoders of base width with random weights and a few layers, recordings of 0.5 to 2 s with their words, on the CPU. Both
are whole commands in processes of their own, in turns: what is compared is the time from the shell's prompt to its next
one, starting and loading included. Heads are untrained; they cost what trained ones cost. Memory is the peak of the
largest process, workers too, with a quarter of the recordings and with all; then one recording of an hour, in windows.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from extraction import COMMAND as EXTRACT
from extraction import WORDS, command, in_turns, made_up_corpus
from transformers import BertConfig, Wav2Vec2Config

from amber2_core.cache import read_cache
from amber2_core.heads import Architecture, Heads, initial_parameters
from amber2_core.heads_folder import TrainedHeads
from amber2_extract.stand_ins import SPEECH_FOLDER, TEXT_FOLDER, save_speech_encoder, save_text_encoder

PREDICT = "from amber2_predict.cli import predict_emotion; predict_emotion()"
EMOTIONS = ("happy", "sad")
LAYERS = 2


def write_heads(cache: Path, path: Path) -> Path:
    """Untrained heads for the features of a cache."""
    sets = {own.modality: own for own in read_cache(cache).features}
    shape = Architecture(tuple((name, sets[name].values.shape[1]) for name in ("audio", "text")), len(EMOTIONS))
    origin: dict[str, Any] = {
        "system": "cb-ce",
        "setting": {},
        "policy": {},
        "features": {
            name: {"name": own.name, "fingerprint": own.fingerprint, "recipe": dict(own.recipe)}
            for name, own in sets.items()
        },
    }
    model = Heads(shape, initial_parameters(shape, torch.Generator().manual_seed(0)))
    TrainedHeads(model, EMOTIONS, {}, origin).write(path)
    return path


def write_table(root: Path, count: int) -> Path:
    """Recordings with their words, as a table."""
    lengths = np.random.default_rng(1).uniform(0.5, 2.0, count).tolist()
    corpus = made_up_corpus(root, count, lengths, (16_000,))
    rows = [f"{u.id},{u.audio},{u.transcript},1,1" for u in corpus.utterances]
    table = root / "corpus.csv"
    table.write_text("\n".join(["id,audio,text,votes.sad,votes.happy", *rows]) + "\n")
    return table


def report_speed(extract: Sequence[str], predict: Sequence[str], folder: Path, count: int) -> None:
    """Both in turns, each from nothing."""

    def run(words: Sequence[str], output: Path) -> float:
        output.unlink(missing_ok=True)
        return command([*words, f"--output={output}"])[0]

    times = in_turns(
        extract=lambda: run(extract, folder / "again.h5"), predict=lambda: run(predict, folder / "rows.jsonl")
    )
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == count
    assert all(row["error"] is None and row["predicted_by"] == "fusion" for row in rows)
    print(
        f"{count:,} recordings with their words: extract-features {times['extract']:.1f} s, predict-emotion "
        f"{times['predict']:.1f} s: {times['extract'] / times['predict']:.2f} of its speed"
    )


def main(count: int = 1_000) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_speech_encoder(folder / SPEECH_FOLDER, config=Wav2Vec2Config(conv_dim=(64,) * 7, num_hidden_layers=LAYERS))
        save_text_encoder(folder / TEXT_FOLDER, words=WORDS, config=BertConfig(num_hidden_layers=LAYERS))
        models = [f"--audio-model={folder / SPEECH_FOLDER}", f"--text-model={folder / TEXT_FOLDER}", "--device=cpu"]
        few, many = write_table(folder / "few", max(1, count // 4)), write_table(folder / "many", count)
        extract = [EXTRACT, "--corpus=manifest", f"--root={many}", *models]
        command([*extract, f"--output={folder / 'features.h5'}"])
        predict = [PREDICT, "--heads", str(write_heads(folder / "features.h5", folder / "h.safetensors")), *models]
        peaks = [command([*predict, str(table), f"--output={table}.jsonl"])[1] for table in (few, many)]
        print(
            f"peak memory: {peaks[0]:,.0f} MiB with {count // 4:,} recordings, {peaks[1]:,.0f} MiB with {count:,}: "
            f"{peaks[1] / peaks[0]:.2f} times as much"
        )
        report_speed(extract, [*predict, str(many)], folder, count)
        # A minute at a time: a child's peak memory counts from what its parent had.
        random = np.random.default_rng(2)
        with soundfile.SoundFile(folder / "hour.wav", "w", 16_000, 1) as file:
            for _ in range(60):
                file.write(0.1 * random.standard_normal(60 * 16_000))
        began = time.monotonic()
        _, peak = command(
            [*predict, str(folder / "hour.wav"), "--window=10", "--hop=10", f"--output={folder / 'h.csv'}"]
        )
        seconds = time.monotonic() - began
        print(f"an hour in windows of 10 s: {seconds:.0f} s, peak memory {peak:,.0f} MiB, {peak / peaks[0]:.2f} times")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
