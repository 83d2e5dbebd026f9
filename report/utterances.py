"""The test utterances: what the runs and their feature cache tell of each, and what the page's table shows of them."""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.cache import read_cache
from amber2_core.distributions import entropy
from amber2_core.errors import CacheError, LabelError, RunFolderError, bad_choice
from amber2_core.metrics import utterance_js
from amber2_core.run_folder import RunFolder, remembered_cache
from amber2_core.tables import Texts
from amber2_core.votes import LabelPolicy, label_distributions

from .analysis import disagreement, expert_weights
from .groups import Group
from .measures import measures
from .runs import Floats

# shares, bits and scores travel as whole thousandths, null where there is none
THOUSAND = 1000
MIME = {".wav": "audio/wav", ".mp3": "audio/mpeg", ".flac": "audio/flac", ".ogg": "audio/ogg", ".m4a": "audio/mp4"}
# utterances in the page; a browser still searches that many in the wink of an eye, and the file stays small
LARGEST_TABLE = 20_000
LARGEST_RECORDING = 8_000_000  # bytes
_log = logging.getLogger(__name__)


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
    """Look the test utterances of a group up in its runs and in its cache.

    Args:
        group: runs with one test set.
        caches: where caches lie now, tried before the place that the run remembers.

    Speakers are those of utterances.csv, so that no change of the cache changes what is told of a run; of runs without
    it those of the cache. A cache that is gone, damaged or of other utterances is no error: `missing` tells it, and the
    columns are empty.
    """
    run = group.runs[0]
    facts, problem = None, "the run does not say where its feature cache was"
    remembered, guessed = remembered_cache(run.path, run.settings)
    for path in [*caches, *([remembered] if remembered else [])]:
        try:
            facts = _looked_up(path, run)
            if guessed and path not in caches:
                _log.warning("%s: transcripts and votes are those of %s, beside the run", run.name, path)
            break
        except CacheError as error:
            problem = str(error)
    facts = facts or _nothing(len(run.arrays.id), problem)
    known = [some.utterances["speaker"].to_numpy(object) for some in group.runs if "speaker" in some.utterances]
    if known:
        return replace(facts, speaker=known[0])
    drawn = "" if any(facts.speaker) else "; nor are speakers known, so that every p is that of drawn utterances"
    return replace(facts, missing=facts.missing and facts.missing + drawn)


def column_of(group: Group, name: str, speaker: Texts) -> Texts:
    """What a column of utterances.csv says of each test utterance (N,), "" where it is unknown.

    Raises:
        RunFolderError: none of the runs has it.
    """
    rated = {f"rated_{emotion}" for emotion in group.predictions.emotions}
    known = {column: run for run in reversed(group.runs) for column in run.utterances if column not in rated}
    if name in known:
        return known[name].utterances[name].astype(str).to_numpy(object)
    if name == "speaker" and any(speaker):
        return speaker
    names = ", ".join(run.name for run in group.runs)
    raise RunFolderError(f"{bad_choice('column', name, known)}, which are those of utterances.csv in {names}")


@dataclass(frozen=True)
class Recordings:
    """Recordings to play in the page."""

    # path under the corpus root → data: URI
    uris: Mapping[str, str]
    # one line for the reader: how many, and what was left out
    note: str


def shown_rows(group: Group) -> npt.NDArray[np.intp]:
    """The rows that the page's table holds: all, or of very many the first ones of every preset."""
    count = len(group.predictions.id)
    return np.arange(count) if count <= LARGEST_TABLE else interesting_rows(group, LARGEST_TABLE // 3)


def utterance_record(group: Group, facts: CorpusFacts, recordings: Recordings | None) -> dict[str, Any]:
    """Columns of the table of utterances, in the order of the predictions; probabilities are averaged over seeds."""
    p, main, rows = group.predictions, group.mains[0], shown_rows(group)
    weights = expert_weights(group, main)
    conflict = disagreement(group, main)
    audio = None
    if recordings is not None:
        uris = {path: k for k, path in enumerate(recordings.uris)}
        audio = {
            "uris": list(recordings.uris.values()),
            "clip": [uris.get(path, -1) for path in facts.audio[rows]],
            "start": _seconds(facts.start[rows]),
            "duration": _seconds(facts.duration[rows]),
        }
    return {
        "emotions": list(p.emotions),
        "heads": [entry.label for entry in group.entries],
        "main": next(k for k, entry in enumerate(group.entries) if entry is main),
        "id": list(p.id[rows]),
        "fold": p.fold[rows].tolist(),
        "speaker": list(facts.speaker[rows]),
        "text": list(facts.transcript[rows]),
        "votes": None if facts.votes is None else facts.votes[rows].round(2).ravel().tolist(),
        "target": _thousandths(p.target[rows]),
        "probs": [_thousandths(entry.probs[:, rows].mean(0)) for entry in group.entries],
        "js": _thousandths(utterance_js(p.target, main.probs).mean(0)[rows]),
        "ambiguity": _thousandths(entropy(p.target[rows])),
        "measures": [
            {"title": measure.label, "values": _thousandths(measure.values[:, rows].mean(0))}
            for measure in measures(group)
        ],
        "conflict": None if conflict is None else _thousandths(conflict[rows]),
        "experts": [] if weights is None else list(weights),
        "weights": [] if weights is None else [_thousandths(u[rows]) for u in weights.values()],
        "audio": audio,
    }


def script_json(record: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element: nothing in it can end the element or start markup.

    >>> script_json({"text": "</script>"})
    '{"text":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def interesting_rows(group: Group, count: int) -> npt.NDArray[np.intp]:
    """The first `count` rows of each preset: raters split, modalities conflict, worst predicted."""
    p, main = group.predictions, group.mains[0]
    columns = [entropy(p.target), disagreement(group, main), utterance_js(p.target, main.probs).mean(0)]
    tops = [np.argsort(-column, kind="stable")[:count] for column in columns if column is not None]
    return np.unique(np.concatenate(tops))


def read_recordings(root: Path, paths: Sequence[str]) -> Recordings:
    """Embed recordings; what is missing, too long or of a kind that browsers do not play is counted, not an error."""
    wanted = dict.fromkeys(path for path in paths if path)
    uris: dict[str, str] = {}
    inside = root.resolve()
    for path in wanted:
        with suppress(OSError, ValueError):  # it may not be read, or has a name that no file can have
            file = (inside / path).resolve()
            mime = MIME.get(file.suffix.lower())
            if mime and file.is_relative_to(inside) and file.is_file() and file.stat().st_size <= LARGEST_RECORDING:
                uris[path] = f"data:{mime};base64,{base64.b64encode(file.read_bytes()).decode()}"
    note = f"{len(uris)} recordings are part of this page, those of the first rows of each preset."
    if len(uris) < len(wanted):
        left = len(wanted) - len(uris)
        note += f" {left} more were not found under {root}, cannot be read, or are too long or of no playable kind."
    return Recordings(uris, note)


def _looked_up(path: Path, run: RunFolder) -> CorpusFacts:
    cache = read_cache(path, only=[])
    if cache.corpus != run.settings.get("corpus", cache.corpus):
        raise CacheError(f"{path} holds the corpus {cache.corpus!r}: it is another one")
    place = {name: row for row, name in enumerate(cache.utterances.id)}
    rows = np.array([place.get(name, -1) for name in run.arrays.id], dtype=np.intp)
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
        same = labelled.emotions == run.arrays.emotions and (total > 0).all()
        if same and np.allclose(found / total, run.arrays.target, atol=1e-5):
            votes = found
        else:
            missing = f"the votes in {path} are not those that the run was trained on"
    except (LabelError, TypeError, KeyError, ValueError) as error:
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


def _thousandths(values: Floats | npt.NDArray[np.float32]) -> list[int | None]:
    rounded = np.rint(np.asarray(values, np.float64).ravel() * THOUSAND).tolist()
    return [None if math.isnan(x) else int(x) for x in rounded]


def _seconds(values: npt.NDArray[np.float32]) -> list[float | None]:
    return [round(float(x), 3) if np.isfinite(x) else None for x in values]
