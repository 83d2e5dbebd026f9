"""What a feature cache still tells of a run: speakers, transcripts, recordings and votes, or why it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amber2_core.cache import read_cache
from amber2_core.errors import CacheError, LabelError
from amber2_core.tables import Texts
from amber2_core.votes import LabelPolicy, label_distributions

from .groups import Group
from .runs import Run


@dataclass(frozen=True, eq=False)
class CorpusFacts:
    """One value per test utterance of a group, in its order."""

    speaker: Texts  # (N,) "": unknown
    transcript: Texts  # (N,)
    audio: Texts  # (N,) relative to the corpus root, "": none
    start: npt.NDArray[np.float32]  # (N,) seconds, NaN: from the beginning
    duration: npt.NDArray[np.float32]  # (N,) seconds, NaN: unknown
    votes: npt.NDArray[np.float64] | None  # (N, C) the counting votes; None where the policy no longer gives them
    # one line for the reader of the page: what is missing and why, "" where nothing is
    missing: str = ""


def corpus_facts(group: Group, caches: Sequence[Path] = ()) -> CorpusFacts:
    """Look the test utterances of a group up in its cache.

    Args:
        group: runs with one test set.
        caches: where caches lie now, tried before the place that the run remembers.

    A cache that is gone, damaged or of other utterances is no error: `missing` tells it, and the columns are empty.
    """
    run = group.runs[0]
    problem = "the run does not say where its feature cache was"
    for path in [*caches, *_remembered(run)]:
        try:
            return _looked_up(path, run)
        except CacheError as error:
            problem = str(error)
    return _nothing(len(run.predictions.id), problem)


def _remembered(run: Run) -> list[Path]:
    """The run's own cache, as it was named from where the run was started, or from where the run lies."""
    named = str(run.settings.get("cache") or "")
    if not named:
        return []
    places = [Path(named), *(parent / named for parent in run.folder.resolve().parents[:3])]
    return [next((place for place in places if place.is_file()), places[0])]


def _looked_up(path: Path, run: Run) -> CorpusFacts:
    cache = read_cache(path, only=[])
    place = {name: row for row, name in enumerate(cache.utterances.id)}
    rows = np.array([place.get(name, -1) for name in run.predictions.id], dtype=np.intp)
    if (rows < 0).any():
        raise CacheError(
            f"{path} does not hold {int((rows < 0).sum())} of the run's test utterances: it is another one"
        )
    table = cache.utterances
    votes, missing = None, ""
    try:
        policy = _policy(run.settings.get("policy"))
        labelled = label_distributions(cache.ratings, cache.attributes, len(table), policy)
        all_votes = np.zeros((len(table), len(labelled.emotions)))
        all_votes[labelled.rows] = labelled.votes
        found = all_votes[rows]
        total = found.sum(axis=1, keepdims=True)
        same = labelled.emotions == run.predictions.emotions and (total > 0).all()
        if same and np.allclose(found / total, run.predictions.target, atol=1e-5):
            votes = found
        else:
            missing = f"the votes in {path} are not those that the run was trained on"
    except (LabelError, TypeError, KeyError) as error:
        missing = f"the votes cannot be read from {path}: {error}"
    return CorpusFacts(
        speaker=table.speaker[rows],
        transcript=table.transcript[rows],
        audio=table.audio[rows],
        start=table.start[rows],
        duration=table.duration[rows],
        votes=votes,
        missing=missing,
    )


def _policy(record: Mapping[str, object] | None) -> LabelPolicy:
    """The policy of settings.json."""
    fields = dict(record or {})
    fields["emotions"] = tuple(map(str, fields["emotions"]))  # type: ignore[call-overload]
    fields["merge"] = tuple((str(word), str(emotion)) for word, emotion in fields.get("merge") or ())  # type: ignore[attr-defined]
    return LabelPolicy(**fields)  # type: ignore[arg-type]


def _nothing(count: int, why: str) -> CorpusFacts:
    empty = np.full(count, "", dtype=object)
    unknown = np.full(count, np.nan, dtype=np.float32)
    return CorpusFacts(empty, empty, empty, unknown, unknown, None, why)
