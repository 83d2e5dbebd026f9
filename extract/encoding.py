"""Items to encode go in; finished rows go to their parts, and what could not be encoded comes back with the reason."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from amber2_core.errors import AudioError, SettingError

from .audio import Excerpt, read_waveform
from .batches import padding_waste, plan_batches
from .checkpoint import Checkpoint
from .inputs import Item
from .parts import Parts
from .recipe import AudioRecipe, EncoderRecipe, TextRecipe

# torch and transformers are imported where they are used: nothing to encode, no seconds spent on them.
if TYPE_CHECKING:
    import torch

    from .encoders import Pooled, SpeechEncoder, TextEncoder

# Threads that decode for an accelerator; each holds one batch, done or in the making, ahead of it.
_DECODERS = 4

_log = logging.getLogger(__name__)

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Effort:
    """How to encode; nothing here changes the numbers."""

    # auto | cpu | cuda | cuda:N | mps
    device: str = "auto"
    # seconds of audio, and tokens, per batch, padding included; 0: one at a time; None: as suits the device
    batch_seconds: float | None = None
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_seconds", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise SettingError(f"Bad {name} {value}, expected a number from 0 on")


@dataclass(frozen=True)
class Progress:
    """How far the encoding of one feature set is."""

    # modality/name
    features: str
    # distinct recordings or transcripts
    done: int
    total: int
    # of audio; 0 for text
    seconds_done: float
    seconds_total: float


OnProgress = Callable[[Progress], None]


@dataclass
class Outcome:
    """What became of the items."""

    encoded: int = 0
    # of audio
    seconds: float = 0.0
    # transcripts that were longer than the model takes
    truncated: int = 0
    # on the clock, loading the encoder included
    elapsed: float = 0.0
    # the share of what was computed that was padding
    padding: float = 0.0
    device: str = ""
    # digest → reason
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Ready:
    """A batch as the encoder takes it."""

    items: Sequence[Item]
    inputs: Sequence[Any]
    # digest → reason
    failures: Mapping[str, str]


@dataclass(frozen=True)
class _Rows:
    """A batch that is encoded."""

    items: Sequence[Item]
    # (items, …); None where there is none
    values: Pooled | None
    # digest → reason
    failures: Mapping[str, str]


@dataclass(frozen=True)
class _Work:
    """An encoder, the batches it is to encode, and how they are made ready for it."""

    encoder: SpeechEncoder | TextEncoder
    batches: Sequence[Sequence[Item]]
    ready: Callable[[Sequence[Item]], _Ready]
    padding: float
    truncated: int = 0

    def encode(self, ready: _Ready) -> _Rows:
        """Encode one batch."""
        values = self.encoder.encode(ready.inputs) if ready.inputs else None
        return _Rows(ready.items, values, ready.failures)

    def rows(self) -> Iterator[_Rows]:
        """Encode all batches, in their order.

        A processor encodes one batch in each of its cores: that needs less waiting for one another than all cores at
        one batch, and gives the same values however many there are. An accelerator takes one batch after the other,
        while processors make the next ones ready.
        """
        import torch

        if self.encoder.device.type == "cpu":
            yield from _ahead(lambda batch: self.encode(self.ready(batch)), self.batches, torch.get_num_threads())
        else:
            yield from map(self.encode, _ahead(self.ready, self.batches, _DECODERS))


def encode_items(
    items: Mapping[str, Item],
    parts: Parts,
    *,
    features: str,
    recipe: EncoderRecipe,
    checkpoint: Checkpoint,
    effort: Effort,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Encode the items that `parts` does not hold yet.

    Batches are planned over all items, held or not: an interrupted extraction meets the same batches again, and so
    ends with the same values to the last bit.

    Args:
        items: by digest.
        parts: takes the rows.
        features: name of the feature set, for `on_progress`.
        recipe: of the rows.
        checkpoint: of the encoder.
        effort: device and size of batches.
        on_progress: called after each batch.

    Raises:
        ModelError: the encoder cannot be loaded.
        SettingError: there is no such device.
        CacheError: the disk is full.
    """
    from .loading import choose_device

    began = time.monotonic()
    device = choose_device(effort.device)
    work_of = _audio_work if recipe.modality == "audio" else _text_work
    work = work_of(list(items.values()), parts, cast(Any, recipe), checkpoint, device, effort)
    outcome = Outcome(device=str(device), padding=work.padding, truncated=work.truncated)
    missing = [item for item in items.values() if item.digest not in parts]
    seconds_total = sum(item.seconds for item in missing)
    for rows in work.rows():
        _keep(rows, parts, outcome)
        if on_progress is not None:
            done = outcome.encoded + len(outcome.failures)
            on_progress(Progress(features, done, len(missing), outcome.seconds, seconds_total))
    parts.flush()
    outcome.elapsed = time.monotonic() - began
    return outcome


def _keep(rows: _Rows, parts: Parts, outcome: Outcome) -> None:
    outcome.failures.update(rows.failures)
    if rows.values is None:
        return
    finite = np.array([np.isfinite(row).all() for row in rows.values])
    kept = []
    for item, is_finite in zip(rows.items, finite, strict=True):
        if is_finite:
            kept.append(item.digest)
            outcome.encoded += 1
            outcome.seconds += item.seconds
        else:
            outcome.failures[item.digest] = "the encoder gives values that are not finite"
    if kept:
        parts.add(kept, rows.values[finite])


def _audio_work(
    items: Sequence[Item],
    parts: Parts,
    recipe: AudioRecipe,
    checkpoint: Checkpoint,
    device: torch.device,
    effort: Effort,
) -> _Work:
    from .encoders import SpeechEncoder

    encoder = SpeechEncoder(checkpoint, layers=recipe.layers, device=device)
    seconds = [min(item.seconds, recipe.max_seconds or math.inf) for item in items]
    # A processor gains nothing from batches of audio, and would compute their padding.
    budget = effort.batch_seconds if effort.batch_seconds is not None else (0.0 if device.type == "cpu" else 120.0)
    plan = plan_batches(seconds, budget=budget)
    ready = partial(_decoded, recipe=recipe, encoder=encoder)
    return _Work(encoder, _missing(items, plan, parts), ready, padding_waste(seconds, plan))


def _decoded(batch: Sequence[Item], recipe: AudioRecipe, encoder: SpeechEncoder) -> _Ready:
    items, waveforms, failures = [], [], {}
    for item in batch:
        try:
            waveform = read_waveform(
                cast(Excerpt, item.source),
                sampling_rate=recipe.sampling_rate,
                max_seconds=recipe.max_seconds,
                resampler=recipe.resampler,
            )
            encoder.check(waveform)
        except AudioError as problem:
            failures[item.digest] = str(problem)
        else:
            items.append(item)
            waveforms.append(waveform)
    return _Ready(items, waveforms, failures)


def _text_work(
    items: Sequence[Item],
    parts: Parts,
    recipe: TextRecipe,
    checkpoint: Checkpoint,
    device: torch.device,
    effort: Effort,
) -> _Work:
    from .encoders import TextEncoder

    encoder = TextEncoder(checkpoint, layers=recipe.layers, device=device)
    tokens, cut = encoder.tokenize([str(item.source) for item in items])
    of_item = {item.digest: ids for item, ids in zip(items, tokens, strict=True)}
    sizes = [len(ids) for ids in tokens]
    budget = effort.batch_tokens if effort.batch_tokens is not None else (1024 if device.type == "cpu" else 16384)
    plan = plan_batches(sizes, budget=budget)
    truncated = sum(is_cut for is_cut, item in zip(cut, items, strict=True) if item.digest not in parts)

    def ready(batch: Sequence[Item]) -> _Ready:
        some = [item for item in batch if of_item[item.digest]]
        none = {item.digest: "its transcript gives no token" for item in batch if not of_item[item.digest]}
        return _Ready(some, [of_item[item.digest] for item in some], none)

    return _Work(encoder, _missing(items, plan, parts), ready, padding_waste(sizes, plan), truncated)


def _missing(items: Sequence[Item], plan: Sequence[Sequence[int]], parts: Parts) -> list[list[Item]]:
    """The planned batches without what is held already."""
    batches = [[items[place] for place in batch if items[place].digest not in parts] for batch in plan]
    return [batch for batch in batches if batch]


def _ahead(make: Callable[[Given], Made], given: Iterable[Given], workers: int) -> Iterator[Made]:
    """`map` in threads, in order, at most two results for each thread ahead of who takes them."""
    import torch

    threads = torch.get_num_threads()
    waiting: deque[Future[Made]] = deque()
    # One core each: torch would otherwise start as many threads again in every worker.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for one in given:
                waiting.append(pool.submit(make, one))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            # The workers' setting has become that of all threads to come.
            torch.set_num_threads(threads)
