"""Who encodes: the workers of this machine, or those of a Ray cluster; which batches they get, and what they die of."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from amber2_core import engine
from amber2_core.errors import WorkerError
from amber2_core.ray_engine import Cluster, machines
from amber2_core.shards import Shard

from . import worker
from .batches import Effort, Seat, Survey, one_at_a_time, padding_waste, plan_batches, portions
from .evidence import sample
from .plan import Job
from .recipe import OF_TRANSCRIPTS, AudioRecipe
from .recordings import Batch, Work
from .rows import RowWriter
from .worker import Orders, Outcome, threads_of

# Workers that may die of one utterance, and utterances of which they may: beyond that the machine or the encoder is to
# blame.
_DEATHS, _MOST_DEADLY = 3, 3

_log = logging.getLogger(__name__)


@contextmanager
def crew_of(effort: Effort, recordings: Path) -> Iterator[Crew]:
    """Who works as is asked for; all end with the block.

    Args:
        effort: what they run on.
        recordings: the folder of the corpus, which every machine of a cluster must see.

    Raises:
        SettingError: there is no such cluster.
    """
    with ExitStack() as stack:
        joined = machines(effort.engine, effort.ray_address, gpus_per_worker=effort.gpus_per_worker)
        found = cache(lambda: stack.enter_context(joined))
        if effort.engine == "local":
            found()  # a cluster is joined when there is something to encode
        yield Crew(effort, recordings, found)


@dataclass(frozen=True)
class Crew:
    """Workers that encode."""

    effort: Effort
    recordings: Path
    # gives the cluster; None: this machine
    machines: Callable[[], Cluster | None]

    def one_at_a_time(self) -> Crew:
        """The same without batches."""
        return replace(self, effort=one_at_a_time(self.effort))

    def survey(self, job: Job, works: Sequence[Work]) -> Survey:
        """What must be known before batches of a job are planned.

        Raises:
            SettingError: there is no such device, or a machine of the cluster has other software.
            ModelError: the tokenizer cannot be loaded.
        """
        transcripts = works if job.recipe.modality in OF_TRANSCRIPTS else ()
        machines = self.machines()
        known = engine.call(survey, job, self.effort.device if machines is None else "cpu", transcripts)
        if machines is None:
            return known
        places = machines.places(self.effort.device)
        _log.info("Ray cluster: machines %d, workers %d", len({place.node for place in places}), len(places))
        seats = [Seat(n, place.device, threads_of(place.device, place.threads)) for n, place in enumerate(places)]
        return replace(known, seats=tuple(seats), places=tuple(places))

    def share_of(self, shard: Shard, job: Job, works: Sequence[Work]) -> set[str]:
        """The digests of what a shard encodes: whole batches, so that all shards give what one call would.

        Batches fall in cost: every so-manieth of them is about as much work for each shard.

        Raises:
            SettingError, ModelError: as `survey`.
        """
        _, planned = self._planned(job, works, self.survey(job, works))
        return {works[place].digest for places in shard.of(planned) for place in places}

    def batches(
        self, job: Job, works: Sequence[Work], part: Collection[str], fresh: Collection[str], known: Survey
    ) -> tuple[list[Batch], float]:
        """The batches without what is held already, and the share of padding in all of them.

        They are planned over all works, held or not: an interrupted extraction meets the same batches again, and so
        ends with the same values to the last bit.

        Args:
            job: what they are encoded as.
            works: all of them.
            part: digests of what is this call's to encode; of these some are encoded alone again.
            fresh: those of the part that are not held.
            known: of devices and tokens.
        """
        sizes, planned = self._planned(job, works, known)
        together = (works[place].digest for places in planned if len(places) > 1 for place in places)
        checked = sample(digest for digest in together if digest in part)
        batches = []
        for places in planned:
            missing = [place for place in places if works[place].digest in fresh]
            if missing:
                cost = len(missing) * max(sizes[place] for place in missing)
                some = tuple(works[place] for place in missing)
                batches.append(Batch(some, cost, checked.intersection(work.digest for work in some)))
        return batches, padding_waste(sizes, planned)

    def _planned(self, job: Job, works: Sequence[Work], known: Survey) -> tuple[Sequence[float], list[list[int]]]:
        """The size of each work, and the places of those in each batch."""
        sizes: Sequence[float] = known.tokens
        if isinstance(job.recipe, AudioRecipe):
            sizes = [job.seconds_computed(work.seconds) for work in works]
        return sizes, plan_batches(sizes, budget=self.effort.budget(job.recipe.modality, known.seats[0].device))

    def encode(
        self, job: Job, batches: Sequence[Batch], known: Survey, store: Path
    ) -> Generator[tuple[Sequence[Batch], Outcome]]:
        """Portions of the batches as workers finish them, their rows in the row store.

        A portion that two workers died of is dealt again an utterance at a time; what a third dies of has failed.

        Raises:
            ModelError, CorpusError, CacheError: as `worker.encode`, and where a machine lacks encoder or recordings.
            WorkerError: workers die of one utterance after the other.
        """
        is_afar = self.machines() is not None
        comes_back = is_afar and self.effort.rows == "driver"
        seen = self.recordings.absolute() if isinstance(job.recipe, AudioRecipe) else None
        deadly: dict[str, str] = {}
        results = engine.deal(
            worker.encode,
            portions(batches, workers=len(known.seats), threads=max(seat.threads for seat in known.seats)),
            setup=worker.Station,
            workers=list(zip(known.places, known.seats, strict=True)) if is_afar else known.seats,
            shared=Orders(job, None if comes_back else store.absolute(), is_afar=is_afar, recordings=seen),
            on_death=partial(_instead, deadly),
            engine=self.machines(),
        )
        writer, synced = RowWriter(store, 0) if comes_back else None, time.monotonic()
        with closing(results):
            for portion, outcome in results:
                if writer is not None:
                    writer.add(outcome.rows)
                    if time.monotonic() - synced >= worker.REST_SECONDS:
                        writer.sync()
                        synced = time.monotonic()
                yield portion, outcome
        if deadly:
            yield (), Outcome(deadly)


def _instead(deadly: dict[str, str], portion: Sequence[Batch], deaths: int, how: str) -> list[Sequence[Batch]] | None:
    """What is dealt instead of a portion that a worker died of; None: the same again.

    Raises:
        WorkerError: it is not the inputs that workers die of.
    """
    works = [(work, batch.cost / len(batch.works)) for batch in portion for work in batch.works]
    if deaths < (_DEATHS if len(works) == 1 else _DEATHS - 1):
        return None
    if len(works) > 1:
        _log.warning("workers died of %d utterances together (%s): now one at a time", len(works), how)
        return [(Batch((work,), cost),) for work, cost in works]
    if len(deadly) == _MOST_DEADLY:
        raise WorkerError(f"workers die of one utterance after the other ({how})")
    deadly[works[0][0].digest] = f"{_DEATHS} workers died of it ({how})"
    return []


# ── in a worker ───────────────────────────────────────────────────────────────────────────────────────────────────────


def survey(job: Job, device: str, works: Sequence[Work]) -> Survey:
    """Choose devices, and count the tokens of transcripts.

    Raises:
        SettingError: there is no such device.
        ModelError: the tokenizer cannot be loaded.
    """
    import torch

    from amber2_core.devices import choose_devices

    devices = [str(one) for one in choose_devices(device)]
    threads = threads_of(devices[0], torch.get_num_threads() // len(devices))
    seats = tuple(Seat(number, one, threads) for number, one in enumerate(devices))
    if isinstance(job.recipe, AudioRecipe):
        return Survey(seats)
    from .encoders.text import load_tokenizer

    tokens, cut = load_tokenizer(job.checkpoint).tokens([str(work.source) for work in works])
    return Survey(seats, (), tuple(map(len, tokens)), tuple(cut))
