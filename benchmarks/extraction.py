"""Time and memory of an extraction, as ratios to bare forward passes and to the loop that a user writes.

    python benchmarks/extraction.py [UTTERANCES]

Encoders of base size with random weights, recordings of 1 to 15 s, half of them at 44.1 kHz, on the CPU. All is
measured in turns within one run, and the ratios are of the medians. The bare passes are the same batches in the same
threads over waveforms that are decoded already; the user's loop is one utterance at a time with transformers' default
settings. Resuming and peak memory are those of the whole command in a process of its own, with 1,000 and 10,000 short
recordings and vectors of 768 numbers.
"""

from __future__ import annotations

import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
import transformers
from transformers import BertConfig, Wav2Vec2Config

from amber2_core.utterance import Corpus, LabelDefaults, Rating, Utterance
from amber2_data.sound import Excerpt
from amber2_extract.audio import read_waveform
from amber2_extract.batches import Effort
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.encoders.text import TextEncoder
from amber2_extract.encoders.waveform import SpeechEncoder
from amber2_extract.pipeline import Progress, extract_features
from amber2_extract.stand_ins import SPEECH_FOLDER, TEXT_FOLDER, save_speech_encoder, save_text_encoder

TURNS = 3
WORDS = ["we", "do", "not", "know", "what", "the", "raters", "heard", "in", "this", "voice"]
COMMAND = "from amber2_extract.cli import extract_features; extract_features()"


def made_up_corpus(root: Path, count: int, lengths: Sequence[float], rates: Sequence[int]) -> Corpus:
    """Noise, as good as speech where only time counts, and sentences of 3 to 30 words."""
    random = np.random.default_rng(0)
    (root / "wav").mkdir(parents=True)
    utterances = []
    for number in range(count):
        rate = rates[number % len(rates)]
        samples = 0.1 * random.standard_normal(round(rate * lengths[number % len(lengths)]))
        soundfile.write(root / f"wav/{number}.wav", samples, rate)
        words = " ".join(random.choice(WORDS, int(random.integers(3, 30))))
        ratings = (Rating("r1", "sad"), Rating("r2", "happy"))
        utterances.append(Utterance(f"u{number}", f"wav/{number}.wav", f"{words} {number}", ratings))
    return Corpus("benchmark", root, tuple(utterances), LabelDefaults(("sad", "happy")))


def encode_time(corpus: Corpus, output: Path, **models: Any) -> float:
    """Seconds from the first batch to the last, decoding and writing included, loading the encoder not."""
    found: list[Progress] = []
    extract_features(corpus, output, effort=Effort(device="cpu"), on_progress=found.append, force=True, **models)
    return found[-1].elapsed


def bare_time(encode: Callable[[Any], Any], batches: Sequence[Any]) -> float:
    threads = torch.get_num_threads()
    began = time.monotonic()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(encode, batches):
            pass
    taken = time.monotonic() - began
    torch.set_num_threads(threads)
    return taken


def users_speech_time(corpus: Corpus, folder: Path) -> float:
    extractor: Any = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    began = time.monotonic()
    for utterance in corpus.utterances:
        samples, rate = soundfile.read(corpus.root / str(utterance.audio), dtype="float32")
        waveform = torchaudio.functional.resample(torch.from_numpy(samples), rate, 16_000)
        inputs = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            model(**inputs).last_hidden_state.mean(dim=1).numpy()
    return time.monotonic() - began


def users_text_time(corpus: Corpus, folder: Path) -> float:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    began = time.monotonic()
    for utterance in corpus.utterances:
        with torch.no_grad():
            model(**tokenizer(utterance.transcript, return_tensors="pt")).last_hidden_state.mean(dim=1).numpy()
    return time.monotonic() - began


def in_turns(**measures: Callable[[], float]) -> dict[str, float]:
    """The median of each, measured in turns."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(TURNS):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: statistics.median(times) for name, times in found.items()}


def report(what: str, times: dict[str, float]) -> None:
    print(
        f"{what:7} encoding {times['ours']:6.2f} s = {times['ours'] / times['bare']:.2f} x the bare passes "
        f"({times['bare']:.2f} s); the user's loop takes {times['user'] / times['ours']:.2f} x as long"
    )


def speed(folder: Path, count: int) -> None:
    save_speech_encoder(folder / SPEECH_FOLDER, config=Wav2Vec2Config())
    save_text_encoder(folder / TEXT_FOLDER, words=WORDS, config=BertConfig())
    lengths = np.random.default_rng(1).permutation(np.geomspace(1, 15, count)).tolist()
    corpus = made_up_corpus(folder / "corpus", count, lengths, (16_000, 44_100))
    print(f"{count} utterances, {sum(lengths):.0f} s of audio; {torch.get_num_threads()} threads")

    speech = SpeechEncoder(find_checkpoint(str(folder / SPEECH_FOLDER), modality="audio"))
    paths = [corpus.root / str(utterance.audio) for utterance in corpus.utterances]
    waveforms = [speech.prepare(read_waveform(Excerpt(path), sampling_rate=16_000)) for path in paths]
    waveforms.sort(key=len, reverse=True)
    models: dict[str, Any] = {"audio_model": str(folder / SPEECH_FOLDER), "text_model": None}
    report(
        "speech",
        in_turns(
            ours=lambda: encode_time(corpus, folder / "speech.h5", **models),
            bare=lambda: bare_time(speech.encode, [[waveform] for waveform in waveforms]),
            user=lambda: users_speech_time(corpus, folder / SPEECH_FOLDER),
        ),
    )

    lines = made_up_corpus(folder / "lines", 10 * count, (0.03,), (16_000,))
    text = TextEncoder(find_checkpoint(str(folder / TEXT_FOLDER), modality="text"))
    tokens = sorted(
        text.tokenizer.tokens([utterance.transcript for utterance in lines.utterances])[0], key=len, reverse=True
    )
    batches: list[list[list[int]]] = [[]]
    for ids in tokens:
        if batches[-1] and (len(batches[-1]) + 1) * len(batches[-1][0]) > 1024:
            batches.append([])
        batches[-1].append(ids)
    models = {"audio_model": None, "text_model": str(folder / TEXT_FOLDER)}
    report(
        "text",
        in_turns(
            ours=lambda: encode_time(lines, folder / "text.h5", **models),
            bare=lambda: bare_time(text.encode, batches),
            user=lambda: users_text_time(lines, folder / TEXT_FOLDER),
        ),
    )


def command(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds of a command in a process of its own, and the peak memory (MiB) of its largest process, workers too."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    largest = 0.0
    while not (ended := os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
        largest = max(largest, *map(peak_memory, processes_of(process.pid)), 0.0)
        time.sleep(0.02)
    _, _, usage = os.wait4(process.pid, 0)
    if ended.si_status:
        sys.exit(f"{' '.join(arguments)} ended with {ended.si_status}")
    return time.monotonic() - began, max(largest, usage.ru_maxrss / 1024)


def processes_of(session: int) -> list[Path]:
    """The processes of a session, where /proc tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                found.append(path)
    return found


def peak_memory(process: Path) -> float:
    """MiB that a process ever had."""
    with suppress(OSError):
        for line in (process / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def scale(folder: Path) -> None:
    narrow = Wav2Vec2Config(conv_dim=(16,) * 7, num_hidden_layers=1, intermediate_size=64, num_conv_pos_embeddings=4)
    save_speech_encoder(folder / "narrow-wav2vec2", config=narrow)
    save_text_encoder(folder / "narrow-bert", words=WORDS, config=BertConfig(num_hidden_layers=1, intermediate_size=64))
    peaks = {}
    for count in (1_000, 10_000):
        corpus = made_up_corpus(folder / str(count), count, (0.03, 0.04), (16_000,))
        rows = [f"{u.id},{u.audio},{u.transcript},1,1" for u in corpus.utterances]
        manifest = corpus.root / "corpus.csv"
        manifest.write_text("\n".join(["id,audio,text,votes.sad,votes.happy", *rows]))
        options = ["--corpus=manifest", f"--root={manifest}", f"--output={folder / f'{count}.h5'}", "--device=cpu"]
        options += [f"--audio-model={folder / 'narrow-wav2vec2'}", f"--text-model={folder / 'narrow-bert'}"]
        seconds, peaks[count] = command([COMMAND, *options, "--batch-seconds=8"])
        print(f"{count:6,} utterances: {seconds:5.1f} s, peak memory {peaks[count]:,.0f} MiB")
    print(f"peak memory of 10,000 utterances = {peaks[10_000] / peaks[1_000]:.2f} x that of 1,000")
    start = statistics.median(command(["pass"])[0] for _ in range(TURNS))
    again = statistics.median(command([COMMAND, *options])[0] for _ in range(TURNS))
    print(f"resuming the finished 10,000: {again:.2f} s, {again - start:.2f} s of it beyond the interpreter's start")


def main(count: int = 6) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    if hasattr(signal, "pthread_sigmask"):
        # The bare passes run on the kernels that workers have, which only threads without signals may use.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load = os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the start")
    with tempfile.TemporaryDirectory() as folder:
        # First, while this process is small: a child's peak memory counts from what its parent had.
        scale(Path(folder))
        speed(Path(folder), count)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
