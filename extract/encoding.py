"""Items to encode go in; finished rows go to their parts, and what could not be encoded comes back with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .checkpoint import Checkpoint
from .inputs import Item
from .parts import Parts
from .recipe import EncoderRecipe
from .work import Effort, Rows, plan_work


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
    # of the computing, padding included, in [0, 1]
    share: float
    # on the clock, since the first batch was begun
    elapsed: float
    # the share of what is computed that is padding
    padding: float


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
    # Not at the top: it brings torch, which takes seconds where nothing is to be encoded.
    from .memory import give_back

    began = time.monotonic()
    work = plan_work(list(items.values()), parts, recipe=recipe, checkpoint=checkpoint, effort=effort)
    outcome = Outcome(device=work.devices, padding=work.padding, truncated=work.truncated)
    missing = [item for item in items.values() if item.digest not in parts]
    seconds_total = sum(item.seconds for item in missing)
    cost_total, cost = sum(batch.cost for batch in work.batches), 0.0
    started = time.monotonic()
    try:
        for rows in work.rows():
            written = len(parts)
            _keep(rows, parts, outcome)
            if len(parts) > written:
                give_back()
            cost += rows.cost
            if on_progress is not None:
                done = outcome.encoded + len(outcome.failures)
                share, elapsed = cost / max(cost_total, 1e-9), time.monotonic() - started
                on_progress(
                    Progress(
                        features, done, len(missing), outcome.seconds, seconds_total, share, elapsed, outcome.padding
                    )
                )
    finally:
        # Interrupted from the keyboard, too.
        parts.flush()
    outcome.elapsed = time.monotonic() - began
    return outcome


def _keep(rows: Rows, parts: Parts, outcome: Outcome) -> None:
    outcome.failures.update(rows.failures)
    if rows.encoded is None:
        return
    finite = rows.encoded.finite
    kept = []
    for item, is_finite in zip(rows.items, finite, strict=True):
        if is_finite:
            kept.append(item.digest)
            outcome.encoded += 1
            outcome.seconds += item.seconds
        else:
            outcome.failures[item.digest] = "the encoder gives values that are not finite"
    if kept:
        parts.add(kept, rows.encoded.take(finite))
