"""Items and a recipe go in; encoders and their batches, each made ready when it is due, come out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from amber2_core.errors import AudioError, SettingError
from amber2_core.lanes import ahead, spread

from .audio import Excerpt, read_waveform
from .batches import padding_waste, plan_batches
from .checkpoint import Checkpoint
from .encoded import Encoded
from .inputs import Item
from .parts import Parts
from .reach import check_reach
from .recipe import AudioRecipe, EncoderRecipe, TextRecipe

# torch and transformers are imported where they are used: nothing to encode, no seconds spent on them.
if TYPE_CHECKING:
    import torch

    from .encoders import SpeechEncoder, TextEncoder

Encoder = TypeVar("Encoder")

# Most threads that decode for each accelerator; each holds some batches, done or in the making, ahead of it. One reads
# some 1,500 times as fast as recordings play; more than are needed keep Python from whoever feeds the accelerator.
_DECODERS = 4


@dataclass(frozen=True)
class Effort:
    """How to encode; nothing here changes the numbers."""

    # auto | cpu | cuda | cuda:N | cuda:0,cuda:1 | mps
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
class Batch:
    """What is encoded together."""

    items: Sequence[Item]
    # seconds or tokens, padding included
    cost: float


@dataclass(frozen=True)
class Ready:
    """A batch as the encoder takes it."""

    items: Sequence[Item]
    inputs: Sequence[Any]
    # digest → reason
    failures: Mapping[str, str]
    cost: float


@dataclass(frozen=True)
class Rows:
    """A batch that is encoded."""

    items: Sequence[Item]
    # None where there is none
    encoded: Encoded | None
    # digest → reason
    failures: Mapping[str, str]
    cost: float


@dataclass(frozen=True)
class Work:
    """Encoders of one recipe, one for each device, the batches they share, and how these are made ready for them."""

    encoders: Sequence[SpeechEncoder | TextEncoder]
    batches: Sequence[Batch]
    ready: Callable[[Batch], Ready]
    padding: float
    truncated: int = 0

    @property
    def devices(self) -> str:
        """As given to ``--device``."""
        return ",".join(str(encoder.device) for encoder in self.encoders)

    def rows(self) -> Iterator[Rows]:
        """Encode all batches.

        A processor encodes one batch in each of its cores: that needs less waiting for one another than all cores at
        one batch, and gives the same values however many there are. Accelerators take one batch after the other from
        one queue, while processors make the next ones ready and whoever called writes the last ones down.
        """
        import torch

        from .memory import Halving

        lanes = [partial(_encode, Halving(encoder)) for encoder in self.encoders]
        on_processor = self.encoders[0].device.type == "cpu"
        if on_processor and len(lanes) == 1:
            yield from ahead(lambda batch: lanes[0](self.ready(batch)), self.batches, torch.get_num_threads())
        else:
            decoders = min(_DECODERS * len(lanes), torch.get_num_threads())
            yield from spread(ahead(self.ready, self.batches, decoders), lanes)


def _encode(encode: Callable[[Sequence[Any]], Encoded], ready: Ready) -> Rows:
    from amber2_core.onednn import fast_products

    with fast_products():
        encoded = encode(ready.inputs) if ready.inputs else None
    return Rows(ready.items, encoded, ready.failures, ready.cost)


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
    from amber2_core.devices import choose_devices

    devices = choose_devices(effort.device)
    if isinstance(recipe, AudioRecipe):
        return _audio_work(items, parts, recipe, checkpoint, devices, effort.batch_seconds)
    return _text_work(items, parts, recipe, checkpoint, devices, effort.batch_tokens)


def _audio_work(
    items: Sequence[Item],
    parts: Parts,
    recipe: AudioRecipe,
    checkpoint: Checkpoint,
    devices: Sequence[torch.device],
    budget: float | None,
) -> Work:
    from .encoders import SpeechEncoder

    encoders = [_loaded(SpeechEncoder, checkpoint, recipe, device) for device in devices]
    seconds = [min(item.seconds, recipe.max_seconds or math.inf) for item in items]
    if budget is None:
        # A processor gains nothing from batches of audio, and would compute their padding.
        budget = 0.0 if devices[0].type == "cpu" else 120.0
    plan = plan_batches(seconds, budget=budget)
    ready = partial(_decoded, recipe=recipe, encoder=encoders[0])
    return Work(encoders, _missing(items, seconds, plan, parts), ready, padding_waste(seconds, plan))


def _decoded(batch: Batch, recipe: AudioRecipe, encoder: SpeechEncoder) -> Ready:
    items, inputs, failures = [], [], {}
    for item in batch.items:
        source = cast(Excerpt, item.source)
        try:
            waveform = read_waveform(
                source,
                sampling_rate=recipe.sampling_rate,
                max_seconds=recipe.max_seconds,
                resampler=recipe.resampler,
            )
            encoder.check(waveform)
        except AudioError as problem:
            check_reach(source.path.parent, problem)
            failures[item.digest] = str(problem)
        else:
            items.append(item)
            inputs.append(encoder.prepare(waveform))
    return Ready(items, inputs, failures, batch.cost)


def _text_work(
    items: Sequence[Item],
    parts: Parts,
    recipe: TextRecipe,
    checkpoint: Checkpoint,
    devices: Sequence[torch.device],
    budget: int | None,
) -> Work:
    from .encoders import TextEncoder

    encoders = [_loaded(TextEncoder, checkpoint, recipe, device) for device in devices]
    tokens, cut = encoders[0].tokenize([str(item.source) for item in items])
    of_item = {item.digest: ids for item, ids in zip(items, tokens, strict=True)}
    sizes = [len(ids) for ids in tokens]
    if budget is None:
        budget = 1024 if devices[0].type == "cpu" else 16384
    plan = plan_batches(sizes, budget=budget)
    truncated = sum(is_cut for is_cut, item in zip(cut, items, strict=True) if item.digest not in parts)

    def ready(batch: Batch) -> Ready:
        some = [item for item in batch.items if of_item[item.digest]]
        none = {item.digest: "its transcript gives no token" for item in batch.items if not of_item[item.digest]}
        return Ready(some, [of_item[item.digest] for item in some], none, batch.cost)

    return Work(encoders, _missing(items, sizes, plan, parts), ready, padding_waste(sizes, plan), truncated)


def _loaded(
    kind: Callable[..., Encoder], checkpoint: Checkpoint, recipe: EncoderRecipe, device: torch.device
) -> Encoder:
    return kind(checkpoint, layers=recipe.layers, frames=recipe.frames, precision=recipe.precision, device=device)


def _missing(items: Sequence[Item], sizes: Sequence[float], plan: Sequence[Sequence[int]], parts: Parts) -> list[Batch]:
    """The planned batches without what is held already."""
    batches = []
    for places in plan:
        missing = [place for place in places if items[place].digest not in parts]
        if missing:
            cost = len(missing) * max(sizes[place] for place in missing)
            batches.append(Batch([items[place] for place in missing], cost))
    return batches
