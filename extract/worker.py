"""What a worker process of stage 1 does: it loads an encoder once, and makes the batches that it is dealt into rows.

Importing this module loads neither torch nor transformers: the conductor only names its functions.
"""

from __future__ import annotations

import ctypes
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from amber2_core.errors import AudioError, ModelError

from .audio import Excerpt, read_waveform
from .plan import Job
from .recipe import AudioRecipe
from .recordings import Work, check_reach
from .rows import Row, RowWriter

Given = TypeVar("Given")
Made = TypeVar("Made")
# What is encoded together, and what of it can be: inputs by digest, and why there is none.
Batch = Sequence[Work]
Ready = tuple[dict[str, Any], dict[str, str]]

# What a fork server loads, so that its workers need not.
PRELOADED = (
    "amber2_extract.encoders.text",
    "amber2_extract.encoders.waveform",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.wav2vec2.feature_extraction_wav2vec2",
    "transformers.models.wav2vec2.modeling_wav2vec2",
)

# Most threads that decode for an accelerator. One reads some 1,500 times as fast as recordings play; more than are
# needed keep Python from whoever feeds the accelerator.
_DECODERS = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seat:
    """What one worker has to itself: its number, its device, and its threads."""

    number: int
    device: str
    threads: int


@dataclass(frozen=True)
class Survey:
    """What must be known before batches can be planned."""

    devices: tuple[str, ...]
    # of each worker: those that encode on a processor, those that decode for an accelerator
    threads: int
    # tokens of each transcript, and which had to be cut to the model's limit; nothing of recordings
    tokens: tuple[int, ...] = ()
    cut: tuple[bool, ...] = ()


def survey(job: Job, device: str, works: Sequence[Work]) -> Survey:
    """Choose devices, and count the tokens of transcripts.

    Raises:
        SettingError: there is no such device.
        ModelError: the tokenizer cannot be loaded.
    """
    import torch

    from amber2_core.devices import choose_devices

    devices = choose_devices(device)
    threads = torch.get_num_threads()
    if devices[0].type != "cpu":
        threads = min(_DECODERS, max(1, threads // len(devices)))
    names = tuple(map(str, devices))
    if isinstance(job.recipe, AudioRecipe):
        return Survey(names, threads)
    from .encoders.text import load_tokenizer

    tokens, cut = load_tokenizer(job.checkpoint).tokens([str(work.source) for work in works])
    return Survey(names, threads, tuple(map(len, tokens)), tuple(cut))


class Station:
    """An encoder on its device, the threads that work for it, and the files that take its rows."""

    def __init__(self, seat: Seat, shared: tuple[Job, Path]) -> None:
        """Load the encoder of a job, whose rows go to the store in a folder.

        Raises:
            ModelError: the encoder cannot be loaded.
            CacheError: the row store cannot be written.
        """
        import torch

        job, folder = shared
        self.recipe = job.recipe
        self.encoder = _loaded(job, seat.device)
        self.encode = Halving(self.encoder)
        self.writer = RowWriter(folder, seat.number)
        self._threads = seat.threads
        # Each thread of a processor encodes a batch of its own: that needs less waiting for one another than all of
        # them at one batch, and gives the same values however many there are.
        self.encodes_in_threads = self.encoder.device.type == "cpu"
        each = 1 if self.encodes_in_threads else torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(each,))

    def ahead(self, make: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
        """`map` in the threads, in order, at most two results for each of them ahead of who takes them."""
        waiting: deque[Future[Made]] = deque()
        try:
            for one in given:
                waiting.append(self._pool.submit(make, one))
                if len(waiting) > 2 * self._threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def encode(station: Station, portion: Sequence[Batch]) -> tuple[dict[str, str], float]:
    """Make batches into rows of the store.

    Returns:
        Digest → reason of what could not be encoded, and the seconds that all took.

    Raises:
        ModelError: the device has too little memory for a single utterance.
        CorpusError: the folder of the recordings has gone.
        CacheError: the disk is full, or has gone.
    """
    began = time.monotonic()
    if isinstance(station.recipe, AudioRecipe):
        ready: Callable[[Batch], Ready] = partial(_decoded, station.encoder, station.recipe)
    else:
        # All at once and in one thread, as tokenizers want it.
        works = [work for batch in portion for work in batch]
        tokens, _ = station.encoder.tokenizer.tokens([str(work.source) for work in works])
        ready = partial(_tokenized, {work.digest: ids for work, ids in zip(works, tokens, strict=True)})
    if station.encodes_in_threads:
        made = station.ahead(lambda batch: _rows(station.encode, ready(batch)), portion)
    else:
        made = map(partial(_rows, station.encode), station.ahead(ready, portion))
    failures: dict[str, str] = {}
    for rows, problems in made:
        station.writer.add(rows)
        failures |= problems
    station.writer.sync()
    _give_back()
    return failures, time.monotonic() - began


def _rows(encode: Callable[[Sequence[Any]], list[Row]], ready: Ready) -> tuple[dict[str, Row], dict[str, str]]:
    """Rows by digest, and why there is none."""
    inputs, failures = ready
    encoded = encode(list(inputs.values())) if inputs else []
    rows = dict(zip(inputs, encoded, strict=True))
    broken = [digest for digest, row in rows.items() if not row.is_finite]
    failures |= dict.fromkeys(broken, "the encoder gives values that are not finite")
    return {digest: row for digest, row in rows.items() if digest not in broken}, failures


def _decoded(encoder: Any, recipe: AudioRecipe, batch: Batch) -> Ready:
    inputs, failures = {}, {}
    for work in batch:
        assert isinstance(work.source, Excerpt)
        try:
            waveform = read_waveform(
                work.source,
                sampling_rate=recipe.sampling_rate,
                max_seconds=recipe.max_seconds,
                resampler=recipe.resampler,
            )
            encoder.check(waveform)
        except AudioError as problem:
            check_reach(work.source.path.parent, problem)
            failures[work.digest] = str(problem)
        else:
            inputs[work.digest] = encoder.prepare(waveform)
    return inputs, failures


def _tokenized(tokens: dict[str, list[int]], batch: Batch) -> Ready:
    inputs = {work.digest: tokens[work.digest] for work in batch if tokens[work.digest]}
    return inputs, {w.digest: "its transcript gives no token" for w in batch if w.digest not in inputs}


def _loaded(job: Job, device: str) -> Any:
    from .encoders.text import TextEncoder
    from .encoders.waveform import SpeechEncoder

    kind = SpeechEncoder if isinstance(job.recipe, AudioRecipe) else TextEncoder
    recipe = job.recipe
    return kind(job.checkpoint, layers=recipe.layers, frames=recipe.frames, precision=recipe.precision, device=device)


class Halving:
    """An encoder that halves what does not fit into its device's memory, and remembers what did not."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        # the largest batch that may fit, padding included, in samples or tokens
        self._most = math.inf

    def __call__(self, inputs: Sequence[Any]) -> list[Row]:
        """Encode a batch.

        Raises:
            ModelError: a single utterance does not fit, or the device lacks an operation.
        """
        if len(inputs) == 1 or _size(inputs) <= self._most:
            rows = self._tried(inputs)
            if rows is not None:
                return rows
        half = (len(inputs) + 1) // 2
        return [*self(inputs[:half]), *self(inputs[half:])]

    def _tried(self, inputs: Sequence[Any]) -> list[Row] | None:
        """None where it does not fit; outside of the handler, so that the error no longer holds what it had begun."""
        import torch

        from amber2_core.devices import is_out_of_memory

        device = self._encoder.device
        try:
            rows: list[Row] = self._encoder.encode(inputs)
            return rows
        except NotImplementedError as problem:
            if device.type != "mps":
                raise
            line = str(problem).split(". ")[0]
            raise ModelError(
                f"{line}: set PYTORCH_ENABLE_MPS_FALLBACK=1 in the environment, or use --device cpu"
            ) from problem
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
        if len(inputs) == 1:
            raise ModelError(
                f"{device} has too little memory for one utterance alone ({len(inputs[0]):,} samples or tokens): use "
                "--max-seconds, --precision bf16 or another --device; what is encoded so far is kept"
            )
        half = (len(inputs) + 1) // 2
        self._most = min(self._most, _size(inputs[:half]), _size(inputs) - 1)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif device.type == "mps":
            torch.mps.empty_cache()
        _log.info(
            "%s ran out of memory with a batch of %d: it is halved, and so are others as large", device, len(inputs)
        )
        return None


def _size(inputs: Sequence[Any]) -> int:
    return len(inputs) * max(len(one) for one in inputs)


def _give_back() -> None:
    """Give memory that is free, but lies between what is not, back to the system, where the C library can (glibc's).

    Without it a process that encodes for hours grows: what small things outlive a batch keep the room between them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
