"""Items and a recipe go in; an encoder and its batches, each made ready when it is due, come out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

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
class Ready:
    """A batch as the encoder takes it."""

    items: Sequence[Item]
    inputs: Sequence[Any]
    # digest → reason
    failures: Mapping[str, str]


@dataclass(frozen=True)
class Rows:
    """A batch that is encoded."""

    items: Sequence[Item]
    # (items, …); None where there is none
    values: Pooled | None
    # digest → reason
    failures: Mapping[str, str]


@dataclass(frozen=True)
class Work:
    """An encoder, the batches it is to encode, and how they are made ready for it."""

    encoder: SpeechEncoder | TextEncoder
    batches: Sequence[Sequence[Item]]
    ready: Callable[[Sequence[Item]], Ready]
    padding: float
    truncated: int = 0

    def encode(self, ready: Ready) -> Rows:
        """Encode one batch."""
        values = self.encoder.encode(ready.inputs) if ready.inputs else None
        return Rows(ready.items, values, ready.failures)

    def rows(self) -> Iterator[Rows]:
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


def plan_work(
    items: Sequence[Item], parts: Parts, *, recipe: EncoderRecipe, checkpoint: Checkpoint, effort: Effort
) -> Work:
    """Load the encoder of a recipe, and plan the batches of what `parts` does not hold yet.

    Batches are planned over all items, held or not: an interrupted extraction meets the same batches again, and so
    ends with the same values to the last bit.

    Raises:
        ModelError: the encoder cannot be loaded.
        SettingError: there is no such device.
    """
    from .loading import choose_device

    device = choose_device(effort.device)
    if isinstance(recipe, AudioRecipe):
        return _audio_work(items, parts, recipe, checkpoint, device, effort.batch_seconds)
    return _text_work(items, parts, recipe, checkpoint, device, effort.batch_tokens)


def _audio_work(
    items: Sequence[Item],
    parts: Parts,
    recipe: AudioRecipe,
    checkpoint: Checkpoint,
    device: torch.device,
    budget: float | None,
) -> Work:
    from .encoders import SpeechEncoder

    encoder = SpeechEncoder(checkpoint, layers=recipe.layers, device=device)
    seconds = [min(item.seconds, recipe.max_seconds or math.inf) for item in items]
    if budget is None:
        # A processor gains nothing from batches of audio, and would compute their padding.
        budget = 0.0 if device.type == "cpu" else 120.0
    plan = plan_batches(seconds, budget=budget)
    ready = partial(_decoded, recipe=recipe, encoder=encoder)
    return Work(encoder, _missing(items, plan, parts), ready, padding_waste(seconds, plan))


def _decoded(batch: Sequence[Item], recipe: AudioRecipe, encoder: SpeechEncoder) -> Ready:
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
    return Ready(items, waveforms, failures)


def _text_work(
    items: Sequence[Item],
    parts: Parts,
    recipe: TextRecipe,
    checkpoint: Checkpoint,
    device: torch.device,
    budget: int | None,
) -> Work:
    from .encoders import TextEncoder

    encoder = TextEncoder(checkpoint, layers=recipe.layers, device=device)
    tokens, cut = encoder.tokenize([str(item.source) for item in items])
    of_item = {item.digest: ids for item, ids in zip(items, tokens, strict=True)}
    sizes = [len(ids) for ids in tokens]
    if budget is None:
        budget = 1024 if device.type == "cpu" else 16384
    plan = plan_batches(sizes, budget=budget)
    truncated = sum(is_cut for is_cut, item in zip(cut, items, strict=True) if item.digest not in parts)

    def ready(batch: Sequence[Item]) -> Ready:
        some = [item for item in batch if of_item[item.digest]]
        none = {item.digest: "its transcript gives no token" for item in batch if not of_item[item.digest]}
        return Ready(some, [of_item[item.digest] for item in some], none)

    return Work(encoder, _missing(items, plan, parts), ready, padding_waste(sizes, plan), truncated)


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
