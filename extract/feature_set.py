"""One encoder and the inputs for it go in; its feature set comes out: rows of before, of parts, and newly encoded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from amber2_core.cache import Failure
from amber2_core.errors import AudioError, ModelError
from amber2_core.features import StoredFeatures
from amber2_core.tables import UtteranceTable

from .assembly import failures_of, new_features, stage_of
from .earlier import Earlier, find_features, known_failures, reusable_rows
from .encoding import OnProgress, Outcome, encode_items
from .inputs import Inputs
from .parts import Parts
from .tasks import Task
from .work import Effort

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureSummary:
    """What one call did for one feature set, counted in utterances."""

    modality: str
    name: str
    # by this call
    encoded: int
    # before it, under the same recipe and from the same input
    up_to_date: int
    failed: int
    # encoded: distinct recordings or transcripts, seconds of audio, transcripts cut to the model's limit
    distinct: int
    seconds: float
    truncated: int
    # on the clock
    elapsed: float
    padding: float
    device: str


@dataclass(frozen=True)
class Call:
    """What all feature sets of one call have in common."""

    table: UtteranceTable
    inputs: Mapping[str, Inputs]
    before: Earlier | None
    work: Path
    effort: Effort
    force: bool
    on_progress: OnProgress | None


@dataclass(frozen=True)
class Done:
    """One feature set that is complete."""

    features: StoredFeatures
    failures: list[Failure]
    summary: FeatureSummary
    parts: Parts


def complete(task: Task, call: Call) -> Done:
    """Encode what is missing of one feature set.

    Raises:
        AudioError, ModelError: nothing at all can be encoded.
    """
    recipe, stage = task.recipe, stage_of(task.recipe.modality, task.name)
    inputs = call.inputs[recipe.modality]
    before = None if call.before is None else find_features(call.before.features, recipe.modality, task.name)
    reusable: Mapping[str, int] = {}
    failed: Mapping[str, str] = {}
    parts = Parts(call.work / recipe.fingerprint[:16], anew=call.force)
    if not call.force:
        reusable = reusable_rows(before, recipe)
        failed = known_failures(call.before, call.table, inputs, recipe=recipe, name=task.name)
    missing = {digest: item for digest, item in inputs.items.items() if digest not in reusable and digest not in failed}
    fresh = {digest for digest in missing if digest not in parts}
    _announce(stage, inputs, missing=len(missing), fresh=len(fresh), known=len(failed))
    outcome = Outcome()
    if fresh:
        outcome = encode_items(
            missing,
            parts,
            features=stage,
            recipe=recipe,
            checkpoint=task.checkpoint,
            effort=call.effort,
            on_progress=call.on_progress,
        )
    failures = failures_of(task.name, recipe.modality, call.table.id, inputs, {**failed, **outcome.failures})
    features = new_features(task.name, recipe, inputs, before, reusable, parts)
    if features is None:
        first = f"{failures[0].utterance}: {failures[0].reason}" if failures else "there is none"
        error = AudioError if recipe.modality == "audio" else ModelError
        raise error(f"Not one of {len(call.table)} utterances can be encoded as {stage} ({first})")
    return Done(features, failures, _summary(features, fresh, len(failures), outcome), parts)


def _summary(features: StoredFeatures, fresh: set[str], failed: int, outcome: Outcome) -> FeatureSummary:
    encoded = sum(digest in fresh for digest in features.inputs)
    return FeatureSummary(
        modality=features.modality,
        name=features.name,
        encoded=encoded,
        up_to_date=int(features.encoded.sum()) - encoded,
        failed=failed,
        distinct=outcome.encoded,
        seconds=outcome.seconds,
        truncated=outcome.truncated,
        elapsed=outcome.elapsed,
        padding=outcome.padding,
        device=outcome.device,
    )


def _announce(stage: str, inputs: Inputs, *, missing: int, fresh: int, known: int) -> None:
    if known:
        _log.info("%s: %d could not be encoded before, and have not changed since", stage, known)
    if missing:
        kind = "recordings" if stage.startswith("audio/") else "transcripts"
        finished = f", {missing - fresh:,} are finished already" if fresh < missing else ""
        _log.info("%s: encoding %d of %d distinct %s%s", stage, missing, len(inputs.items), kind, finished)
