"""What a worker process of stage 1 does: it loads an encoder once, and makes the batches that it is dealt into rows.

Importing this module loads neither torch nor transformers: the conductor only names its functions.
"""

from __future__ import annotations

import ctypes
import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from amber2_core.errors import Amber2Error, AudioError, CacheError, CorpusError, ModelError
from amber2_data.sound import Excerpt

from .audio import read_waveform
from .batches import Seat
from .checkpoint import Checkpoint, find_checkpoint
from .encoders import ENCODERS
from .evidence import Evidence
from .plan import Job
from .recipe import AudioRecipe, Modality
from .recordings import Batch, Work, check_reach
from .rows import LOCK, Row, RowWriter, difference

Given = TypeVar("Given")
Made = TypeVar("Made")

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
# Threads that send batches to an accelerator: while one waits for what its batch gives, the other one's kernels are on
# the way. Each holds a batch in the accelerator's memory. torch's MPS is not made for threads.
_FEEDERS, _FEEDERS_OF_MPS = 2, 1
# What the machine may lose where its power goes: rows survive the process as soon as they are written.
REST_SECONDS = 20.0
NO_TOKEN = "its transcript gives no token"
NOT_FINITE = "the encoder gives values that are not finite"

_log = logging.getLogger(__name__)


def threads_of(device: str, cores: int) -> int:
    """How many threads a worker has on a device, of so many cores."""
    return max(1, cores if device == "cpu" else min(_DECODERS, cores))


@dataclass(frozen=True)
class Orders:
    """What all workers of a job are told."""

    job: Job
    # the row store that they write to; None: rows go back with the results
    store: Path | None
    # on machines where the encoder, and the folder of the recordings, if any are read, may not be what they are here
    is_afar: bool = False
    recordings: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a portion."""

    # digest → reason of what could not be encoded
    failures: Mapping[str, str]
    # how far the rows of batches that were encoded alone again were from that
    evidence: Evidence = field(default_factory=Evidence)
    # that all took
    seconds: float = 0.0
    # by digest, where the row store is not the worker's to write
    rows: Mapping[str, Row] = field(default_factory=dict)


def found_here(orders: Orders) -> Job:
    """The job, its encoder as it lies on this machine.

    Raises:
        ModelError: there is none, or another one.
        CorpusError: the recordings are not to be seen.
        CacheError: the row store is not to be seen.
    """
    job, there = orders.job, orders.recordings
    found = find_checkpoint(job.checkpoint.place, modality=job.recipe.modality)
    inputs = "preprocessor_digest" if isinstance(job.recipe, AudioRecipe) else "tokenizer_digest"
    for name, value in {**found.identity(), inputs: found.input_digest()}.items():
        if getattr(job.recipe, name) != value:
            raise ModelError(f"Another {job.checkpoint.name!r} lies at {found.folder}: its {name} differs")
    if there is not None and not (there.is_dir() and any(there.iterdir())):
        raise CorpusError(f"No recordings in {there}: every machine must see them under the same path")
    if orders.store is not None and not (orders.store.parent / LOCK).exists():
        raise CacheError(
            f"{orders.store.parent} is not to be seen: --rows shared needs a folder that all machines share, "
            "--rows driver does not"
        )
    return replace(job, checkpoint=found)


class Station:
    """An encoder on its device, the threads that work for it, and the files that take its rows."""

    def __init__(self, seat: Seat, orders: Orders) -> None:
        """Load the encoder of a job.

        Raises:
            ModelError: the encoder cannot be loaded.
            CacheError: the row store cannot be written.
            CorpusError: the recordings are not to be seen.
        """
        import torch

        job = found_here(orders) if orders.is_afar else orders.job
        self.recipe = job.recipe
        self.encoder = load_encoder(job, seat.device)
        self.encode = Halving(self.encoder)
        self.writer = None if orders.store is None else RowWriter(orders.store, seat.number)
        self._threads = seat.threads
        self._rested = time.monotonic()
        # Each thread of a processor encodes a batch of its own: that needs less waiting for one another than all of
        # them at one batch, and gives the same values however many there are.
        self.encodes_in_threads = self.encoder.device.type == "cpu"
        each = 1 if self.encodes_in_threads else torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(each,))
        feeders = _FEEDERS_OF_MPS if self.encoder.device.type == "mps" else _FEEDERS
        self._feeders = ThreadPoolExecutor(feeders, initializer=torch.set_num_threads, initargs=(each,))

    def ahead(
        self, make: Callable[[Given], Made], given: Iterable[Given], *, most: int | None = None
    ) -> Iterator[Made]:
        """`map` in the threads, in order, at most so many results ahead of who takes them; two for each thread."""
        return _ahead(self._pool, make, given, most or 2 * self._threads)

    def fed(self, make: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
        """`map` in the threads that feed an accelerator, in order: what it is to have next waits for them."""
        return _ahead(self._feeders, make, given, _FEEDERS)

    def rest(self) -> None:
        """From time to time, bring rows to the disk, and memory back to the system."""
        if time.monotonic() - self._rested >= REST_SECONDS:
            if self.writer is not None:
                self.writer.sync()
            give_back()
            self._rested = time.monotonic()


def _ahead(
    pool: ThreadPoolExecutor, make: Callable[[Given], Made], given: Iterable[Given], most: int
) -> Iterator[Made]:
    waiting: deque[Future[Made]] = deque()
    try:
        for one in given:
            waiting.append(pool.submit(make, one))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def encode(station: Station, portion: Sequence[Batch]) -> Outcome:
    """Make batches into rows.

    Raises:
        ModelError: the device has too little memory for a single utterance.
        CorpusError: the folder of the recordings has gone.
        CacheError: the disk is full, or has gone.
    """
    began = time.monotonic()
    works = [work for batch in portion for work in batch.works]
    if isinstance(station.recipe, AudioRecipe):
        read: Callable[[Work], Any] = partial(_waveform, station.encoder, station.recipe)
    else:
        # All at once and in one thread, as tokenizers want it.
        tokens, _ = station.encoder.tokenizer.tokens([str(work.source) for work in works])
        known = {work: ids or NO_TOKEN for work, ids in zip(works, tokens, strict=True)}
        read = known.__getitem__
    if station.encodes_in_threads:
        made = station.ahead(lambda batch: _rows(station.encode, batch, map(read, batch.works)), portion)
    else:
        # An accelerator waits for one batch at most, which all threads read; this thread gathers and writes alone.
        inputs = station.ahead(read, works, most=2 * max(len(batch.works) for batch in portion))
        made = station.fed(lambda one: _rows(station.encode, one[0], _read(one[1])), _gathered(portion, inputs))
    failures: dict[str, str] = {}
    kept: dict[str, Row] = {}
    evidence = Evidence(singly=station.encoder.is_one_at_a_time)
    for rows, problems, found in made:
        if station.writer is None:
            kept |= rows
        else:
            station.writer.add(rows)
        failures |= problems
        evidence |= found
    station.rest()
    return Outcome(failures, evidence, time.monotonic() - began, kept)


def _gathered(portion: Sequence[Batch], inputs: Iterator[Any]) -> Iterator[tuple[Batch, list[Any] | Amber2Error]]:
    """Batches with their inputs, or with what ended the reading, which is not to end batches that are under way."""
    for batch in portion:
        try:
            gathered: list[Any] | Amber2Error = list(islice(inputs, len(batch.works)))
        except Amber2Error as problem:
            gathered = problem
        yield batch, gathered
        if isinstance(gathered, Amber2Error):
            return


def _read(gathered: list[Any] | Amber2Error) -> list[Any]:
    if isinstance(gathered, Amber2Error):
        raise gathered
    return gathered


def _rows(
    encode: Callable[[Sequence[Any]], list[Row]], batch: Batch, inputs: Iterable[Any]
) -> tuple[dict[str, Row], dict[str, str], Evidence]:
    """Rows by digest, why there is none, and how far they are from what utterances give alone, of a batch and its
    inputs; an input that is text says why it is none.
    """
    found = {work.digest: given for work, given in zip(batch.works, inputs, strict=True)}
    good = {digest: given for digest, given in found.items() if not isinstance(given, str)}
    rows = dict(zip(good, encode(list(good.values())), strict=True)) if good else {}
    failures = {digest: given for digest, given in found.items() if digest not in good}
    failures |= {digest: NOT_FINITE for digest, row in rows.items() if not row.is_finite}
    rows = {digest: row for digest, row in rows.items() if digest not in failures}
    found_again = [
        difference(rows[digest], encode([good[digest]])[0])
        for digest in rows
        if len(good) > 1 and digest in batch.checked
    ]
    return rows, failures, Evidence(len(found_again), max(found_again, default=0.0))


def _waveform(encoder: Any, recipe: AudioRecipe, work: Work) -> Any:
    """What the encoder takes of a recording, or why that is nothing."""
    assert isinstance(work.source, Excerpt)
    try:
        waveform = read_waveform(
            work.source,
            sampling_rate=recipe.sampling_rate,
            max_seconds=recipe.max_seconds,
            resampler=recipe.resampler,
        )
    except AudioError as problem:
        check_reach(work.source.path.parent, problem)
        return str(problem)
    try:
        encoder.check(waveform)
    except AudioError as problem:
        return f"{work.source.path.name}: {problem}"
    return encoder.prepare(waveform)


def load_encoder(job: Job, device: str) -> Any:
    """The encoder of a job on a device.

    Raises:
        ModelError: it cannot be loaded.
    """
    recipe = job.recipe
    kind = family_of(job.checkpoint, recipe.modality)
    return kind(job.checkpoint, **recipe.of_encoder, precision=recipe.precision, device=device)


def family_of(checkpoint: Checkpoint, modality: Modality) -> Any:
    """The class that runs a checkpoint: the family of its kind of model, else of what such a model takes, else the
    first of the modality, which says why it cannot.

    Raises:
        ModelError: the config cannot be read.
    """
    import transformers

    from .encoders.encoder import from_pretrained

    families = {takes: place for (one, takes), place in ENCODERS.items() if one == modality}
    place = families.get(checkpoint.model_type)
    if place is None:
        config = type(from_pretrained(checkpoint, transformers.AutoConfig.from_pretrained))
        takes = str(getattr(transformers.MODEL_MAPPING.get(config, None), "main_input_name", ""))
        place = families.get(takes, next(iter(families.values())))
    module, _, name = place.partition(":")
    return getattr(import_module(f".encoders.{module}", __package__), name)


class Halving:
    """An encoder that halves what does not fit into its device's memory, and remembers what did not.

    Several threads may call it. What does not fit beside another's batch, and cannot be halved, has the device to
    itself.
    """

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self._running = 0
        # held by whoever begins, or has the device to himself
        self._turn = threading.Condition()
        # the largest batch that may fit, padding included, in samples or tokens
        self._most = math.inf

    def __call__(self, inputs: Sequence[Any]) -> list[Row]:
        """Encode a batch.

        Raises:
            ModelError: a single utterance does not fit, or the device lacks an operation.
        """
        if len(inputs) == 1 or _size(inputs) <= self._most:
            with self._beside_others():
                rows = self._tried(inputs)
            if rows is None and len(inputs) == 1:
                with self._turn:
                    self._turn.wait_for(lambda: not self._running)
                    rows = self._tried(inputs, alone=True)
            if rows is not None:
                return rows
        half = (len(inputs) + 1) // 2
        return [*self(inputs[:half]), *self(inputs[half:])]

    @contextmanager
    def _beside_others(self) -> Iterator[None]:
        with self._turn:
            self._running += 1
        try:
            yield
        finally:
            with self._turn:
                self._running -= 1
                self._turn.notify_all()

    def _tried(self, inputs: Sequence[Any], *, alone: bool = False) -> list[Row] | None:
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
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
        if len(inputs) == 1 and not alone:
            return None
        if len(inputs) == 1:
            # On a processor every thread has an utterance of its own.
            fewer = "OMP_NUM_THREADS=1 in the environment, " if device.type == "cpu" else ""
            raise ModelError(
                f"{device} has too little memory for one utterance alone ({len(inputs[0]):,} samples or tokens): use "
                f"{fewer}--max-seconds, --precision bf16 or another --device; what is encoded so far is kept"
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


def give_back() -> None:
    """Give memory that is free, but lies between what is not, back to the system, where the C library can (glibc's).

    Without it a process that encodes for hours grows: what small things outlive a batch keep the room between them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
