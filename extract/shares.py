"""Which batches a corpus makes, which of them a shard encodes, and what of them is still to be encoded."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from amber2_core.shards import Shard

from .batches import Effort, Survey, padding_waste, plan_batches
from .evidence import sample
from .plan import Job
from .recipe import AudioRecipe
from .recordings import Batch, Work


def share_of(shard: Shard, job: Job, works: Sequence[Work], known: Survey, effort: Effort) -> set[str]:
    """The digests of what a shard encodes: whole batches, so that all shards give what one call would.

    Batches fall in cost: every so-manieth of them is about as much work for each shard.
    """
    _, planned = _plan(job, works, known, effort)
    return {works[place].digest for places in shard.of(planned) for place in places}


def batches_of(
    job: Job, works: Sequence[Work], part: Collection[str], fresh: Collection[str], known: Survey, effort: Effort
) -> tuple[list[Batch], float]:
    """The batches without what is held already, and the share of padding in all of them.

    They are planned over all works, held or not: an interrupted extraction meets the same batches again, and so ends
    with the same values to the last bit.

    Args:
        job: what they are encoded as.
        works: all of them.
        part: digests of what is this call's to encode; of these some are encoded alone again.
        fresh: those of the part that are not held.
        known: of devices and tokens.
        effort: how large batches may be.
    """
    sizes, planned = _plan(job, works, known, effort)
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


def _plan(job: Job, works: Sequence[Work], known: Survey, effort: Effort) -> tuple[Sequence[float], list[list[int]]]:
    """The size of each work, and the places of those in each batch."""
    sizes: Sequence[float] = known.tokens
    if isinstance(job.recipe, AudioRecipe):
        sizes = [job.seconds_computed(work.seconds) for work in works]
    return sizes, plan_batches(sizes, budget=effort.budget(job.recipe.modality, known.seats[0].device))
