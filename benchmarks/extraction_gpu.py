"""What of a GPU an extraction uses: times real time, share of the bare forward passes, padding, exactness.

    python benchmarks/extraction_gpu.py [--device cuda] [--utterances 2000]

Checkpoints of base size with random weights, one with group norm and one with layer norm; recordings of 1 to 15 s, half
of them at 44.1 kHz; fp32 with TensorFloat-32 off, and bf16. The bare passes are those of transformers itself over the
same batches, decoded, padded and in memory, with its own group norm over the padding: what the device can do, not what
is right. Both are measured in turns within one run, and the ratios are of the medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from extraction import in_turns, made_up_corpus
from torch.nn.utils.rnn import pad_sequence
from transformers import Wav2Vec2Config

from amber2_core.devices import choose_device
from amber2_core.utterance import Corpus
from amber2_data.sound import Excerpt, Waveform
from amber2_extract.audio import read_waveform
from amber2_extract.batches import Effort, plan_batches
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.encoders.waveform import SpeechEncoder
from amber2_extract.pipeline import Progress, extract_features
from amber2_extract.recipe import Precision
from amber2_extract.stand_ins import save_speech_encoder

# Seconds of audio in a batch, as extract-features has it on a GPU.
BUDGET = 120.0
CONFIGS = {
    "group norm": Wav2Vec2Config(),
    "layer norm": Wav2Vec2Config(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


@dataclass(frozen=True)
class Batch:
    samples: torch.Tensor  # (batch, samples)
    mask: torch.Tensor  # (batch, samples)


def whole_time(corpus: Corpus, model: Path, device: torch.device, precision: Precision, said: list[Progress]) -> float:
    """Seconds from the first batch to the last, decoding and writing included, loading the encoder not."""
    extract_features(
        corpus,
        corpus.root / "features.h5",
        audio_model=str(model),
        text_model=None,
        precision=precision,
        effort=Effort(device=str(device), batch_seconds=BUDGET),
        force=True,
        on_progress=said.append,
    )
    return said[-1].elapsed


def bare_time(model: Path, batches: Sequence[Batch], device: torch.device, precision: Precision) -> float:
    """Seconds of transformers' own forward passes, and of bringing the means back."""
    bare = transformers.AutoModel.from_pretrained(model).eval().requires_grad_(False).to(device)

    def run(some: Sequence[Batch]) -> None:
        for batch in some:
            half = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
            with torch.inference_mode(), half:
                output = bare(batch.samples.to(device), attention_mask=batch.mask.to(device))
                output.last_hidden_state.float().mean(dim=1).cpu()

    run(batches[:2])
    began = time.monotonic()
    run(batches)
    return time.monotonic() - began


def distance_from_alone(encoder: SpeechEncoder, waveforms: Sequence[Waveform]) -> float:
    """The largest relative L2 distance of a row of a batch from the same utterance alone."""
    worst = 0.0
    for first in range(0, min(len(waveforms), 64), 16):
        some = waveforms[first : first + 16]
        alone = np.stack([row.values for waveform in some for row in encoder.encode([waveform])])
        batched = np.stack([row.values for row in encoder.encode(some)])
        distances = np.linalg.norm(batched - alone, axis=1) / np.linalg.norm(alone, axis=1)
        worst = max(worst, float(distances.max()))
    return worst


def measure(corpus: Corpus, lengths: Sequence[float], device: torch.device) -> None:
    paths = [corpus.root / str(utterance.audio) for utterance in corpus.utterances]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        waveforms = list(pool.map(lambda path: read_waveform(Excerpt(path), sampling_rate=16_000), paths))
    for norm, config in CONFIGS.items():
        model = corpus.root / norm.replace(" ", "-")
        save_speech_encoder(model, config=config)
        encoder = SpeechEncoder(find_checkpoint(str(model), modality="audio"), device=device)
        distance = distance_from_alone(encoder, waveforms)
        print(f"{norm}, fp32: a row of a batch is at most {distance:.1e} from its utterance alone (relative L2)")
        batches = []
        for places in plan_batches(lengths, budget=BUDGET):
            samples = [encoder.prepare(waveforms[place]).clone() for place in places]
            ones = [torch.ones(len(one), dtype=torch.long) for one in samples]
            batches.append(Batch(pad_sequence(samples, batch_first=True), pad_sequence(ones, batch_first=True)))
        for precision in PRECISIONS:
            said: list[Progress] = []
            times = in_turns(
                whole=partial(whole_time, corpus, model, device, precision, said),
                bare=partial(bare_time, model, batches, device, precision),
            )
            print(
                f"{norm}, {precision}: {sum(lengths) / times['whole']:,.0f} times real time, "
                f"{times['bare'] / times['whole']:.2f} of the throughput of the bare passes ({times['whole']:.2f} and "
                f"{times['bare']:.2f} s), {100 * said[-1].padding:.2f} % padding"
            )


def main() -> None:
    """Measure, and print; where there is no GPU, say so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cuda, cuda:N or mps; cpu only to try this file out")
    parser.add_argument("--utterances", type=int, default=2_000)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    if device.type == "cpu" and arguments.device == "auto":
        print("There is no GPU here.")
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; torch {torch.__version__}")
    lengths = np.random.default_rng(1).permutation(np.geomspace(1, 15, arguments.utterances)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        corpus = made_up_corpus(Path(folder) / "corpus", len(lengths), lengths, (16_000, 44_100))
        print(f"{len(lengths):,} utterances, {sum(lengths) / 3600:.2f} h of audio")
        measure(corpus, lengths, device)


if __name__ == "__main__":
    main()
