"""Speed and memory of encoders that hear log-mel spectra, against the bare forward passes of their own models.

    python benchmarks/encoder_families.py [--models whisper-base,w2v-bert-2.0] [--clips 12] [--turns 3] [--device cpu]

Encoders at their real size with random weights, clips of 1 to 12 s of noise, one at a time on a CPU and all in one
batch on a GPU; on a CPU the time is the processor's, of all threads. The bare passes are those of transformers' own
model over spectra that are ready: of Whisper, windows of 30 s. All of one model and window is measured in turns within
one process of its own, whose peak memory is told, and the ratios are of the medians; `preparing` is the share of the
time in which spectra are made, by the checkpoint's own preprocessor.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from amber2_extract.encoders.encoder import silence
from amber2_extract.plan import plan_jobs
from amber2_extract.worker import load_encoder

RATE = 16_000
WHISPER: dict[str, dict[str, int]] = {
    "whisper-base": {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    "whisper-large-v3": {
        "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "num_mel_bins": 128,
    },
}  # fmt: skip


def save(name: str, folder: Path) -> None:
    """A checkpoint with random weights; Whisper's decoder, of which nothing is loaded, is a small one."""
    torch.manual_seed(0)
    with silence():
        if name in WHISPER:
            small = {"decoder_layers": 1, "decoder_attention_heads": 8, "decoder_ffn_dim": 64}
            config = transformers.WhisperConfig(**WHISPER[name], **small)
            transformers.WhisperModel(config).save_pretrained(folder)
            transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
        else:
            transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig()).save_pretrained(folder)
            transformers.SeamlessM4TFeatureExtractor().save_pretrained(folder)


def clips(count: int) -> list[Any]:
    """Noise of 1 to 12 s, mostly short, as utterances are."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(1.2, 0.6, count), 1, 12)
    return [random.standard_normal(round(RATE * length), dtype=np.float32) for length in lengths]


def took(do: Callable[[], object], device: str) -> float:
    """Seconds: of the processor where that computes, which others on it change little; else on the clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    do()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def encoded(encoder: Any, inputs: Sequence[Any], device: str) -> None:
    for some in [list(inputs)] if device != "cpu" else [[one] for one in inputs]:
        encoder.encode(some)


@torch.inference_mode()
def passed(model: Any, spectra: Sequence[Any]) -> None:
    for one in spectra:
        model(one)


def measure(name: str, count: int, turns: int, device: str, window: str | None) -> tuple[Any, ...]:
    """Median seconds of each way, seconds of audio, parameters, and GiB at most."""
    with tempfile.TemporaryDirectory() as folder:
        save(name, Path(folder) / name)
        (job,) = plan_jobs(str(Path(folder) / name), None, window=window)  # type: ignore[arg-type]
        encoder = load_encoder(job, device)
    waveforms = clips(count)
    ready = [encoder.prepare(one) for one in waveforms]
    stacked = [part.spectra for one in ready for part in one] if window else ready
    ways: dict[str, Callable[[], object]] = {
        "encode": lambda: encoded(encoder, waveforms, device),
        "encode, prepared": lambda: encoded(encoder, ready, device),
    }
    if window != "fit":
        spectra = [one[None].to(device) for one in stacked]
        ways["bare"] = lambda: passed(encoder._model, spectra)
    encoder.encode(waveforms[:1])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, do in ways.items():
            seconds[way].append(took(do, device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**30
    medians = {way: statistics.median(some) for way, some in seconds.items()}
    return medians, sum(map(len, waveforms)) / RATE, encoder.parameters, peak


def measured(*arguments: Any) -> Any:
    """What `measure` finds in a process of its own."""
    ran = subprocess.run(
        [sys.executable, __file__, "--only", json.dumps(arguments)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="whisper-base,w2v-bert-2.0", help=f"of {', '.join(WHISPER)}, w2v-bert-2.0")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.only:
        sys.stdout.write(json.dumps(measure(*json.loads(wanted.only))) + "\n")
        return
    for name in wanted.models.split(","):
        bare = 0.0
        for window in ("trained", "fit") if name in WHISPER else (None,):
            medians, audio, parameters, peak = measured(name, wanted.clips, wanted.turns, wanted.device, window)
            bare = medians.get("bare", bare)
            preparing = 1 - medians["encode, prepared"] / medians["encode"]
            sys.stdout.write(
                f"{name} ({parameters / 1e6:.0f} million parameters)"
                f"{f', window {window}' if window else ''}: {wanted.clips} clips, {audio:.0f} s of audio, "
                f"{medians['encode'] / audio:.2f} s for one of audio; {bare / medians['encode, prepared']:.2f} × the "
                f"throughput of the bare passes ({bare:.2f} s), with preparing {bare / medians['encode']:.2f} ×; "
                f"preparing {preparing:.0%}; peak memory {peak:.2f} GiB\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
