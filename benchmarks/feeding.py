"""How long an accelerator waits for its batches, measured without one: a device that is made up, and all else real.

    python benchmarks/feeding.py [--pass-ms 10] [--utterances 1500]

Recordings are read, prepared and gathered, rows pooled to base size and written, as extract-features does it for a GPU;
the forward pass alone is a wait in which no processor is used, one batch at a time, as kernels in a queue are. Printed
are the share of the time in which the device has work, and what the thread that gathers and writes spends on a batch,
with one thread that does everything in turns and with those that `Station.fed` has.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from extraction import made_up_corpus
from transformers import Wav2Vec2Config

from amber2_extract.batches import padding_waste, plan_batches
from amber2_extract.encoders.waveform import SpeechEncoder
from amber2_extract.plan import Job, plan_jobs
from amber2_extract.recordings import Batch, Work, scan_recordings
from amber2_extract.rows import Row
from amber2_extract.stand_ins import save_speech_encoder
from amber2_extract.worker import _DECODERS, Orders, Seat, Station, encode

SIZE = 768


class Device:
    """Passes that take their time one after the other, whoever waits for them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.busy = 0.0
        self._queue = threading.Lock()

    def run(self, encoder: Any, inputs: Sequence[Any]) -> list[Row]:
        samples = torch.cat(list(inputs))  # as for the copy to a device
        with self._queue:
            time.sleep(self.seconds)
            self.busy += self.seconds
        pooled = torch.stack([one.mean() for one in torch.split(samples, [len(one) for one in inputs])])
        values = pooled[:, None].expand(-1, SIZE).contiguous().numpy()
        return [Row(one) for one in values]


def in_turns(station: Station, make: Callable[[Any], Any], given: Iterable[Any]) -> Iterator[Any]:
    """One thread gathers, sends, waits and writes."""
    return map(make, given)


def measured(job: Job, works: Sequence[Work], seconds: float, folder: Path, fed: Callable[..., Any]) -> str:
    """What one run shows."""
    sizes, device = [work.seconds for work in works], Device(seconds)
    plan = plan_batches(sizes, budget=120)
    batches = [Batch(tuple(works[place] for place in places), 1.0) for places in plan]
    with mock.patch.object(SpeechEncoder, "encode", lambda *arguments: device.run(*arguments)):
        station = Station(Seat(0, "cpu", _DECODERS), Orders(job, folder))
        station.encodes_in_threads = False
        encode(station, batches[:1])
        device.busy = 0.0
        with mock.patch.object(Station, "fed", fed):
            began, used = time.monotonic(), time.thread_time()
            encode(station, batches)
            used, took = time.thread_time() - used, time.monotonic() - began
    return (
        f"device at work {100 * device.busy / took:.0f} % of {took:.2f} s; the thread that gathers and writes: "
        f"{1000 * used / len(batches):.2f} ms a batch ({len(batches)} batches, "
        f"{100 * padding_waste(sizes, plan):.2f} % padding)"
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pass-ms", type=float, default=10.0, help="of one batch on the device")
    parser.add_argument("--utterances", type=int, default=1_500)
    arguments = parser.parse_args()
    lengths = np.random.default_rng(1).permutation(np.geomspace(1, 15, arguments.utterances)).tolist()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = made_up_corpus(folder / "corpus", len(lengths), lengths, (16_000,))
        tiny = Wav2Vec2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        save_speech_encoder(folder / "model", config=tiny)
        (job,) = plan_jobs(str(folder / "model"), None)
        works = list(scan_recordings(corpus).works.values())
        for turn in range(2):
            for what, fed in (("in turns", in_turns), ("overlapped", Station.fed)):
                shown = measured(job, works, arguments.pass_ms / 1000, folder / f"{what}-{turn}", fed)
                print(f"{what}: {shown}", flush=True)


if __name__ == "__main__":
    main()
