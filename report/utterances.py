"""From a group of runs to what the page's table of utterances shows: one compact record, recordings where asked for."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.distributions import entropy
from amber2_core.metrics import utterance_js

from .analysis import disagreement, expert_weights
from .corpus_facts import CorpusFacts
from .groups import Group
from .runs import Floats

# shares, bits and scores travel as whole thousandths, null where there is none
THOUSAND = 1000
MIME = {".wav": "audio/wav", ".mp3": "audio/mpeg", ".flac": "audio/flac", ".ogg": "audio/ogg", ".m4a": "audio/mp4"}
# utterances in the page; a browser still searches that many in the wink of an eye, and the file stays small
LARGEST_TABLE = 20_000
LARGEST_RECORDING = 8_000_000  # bytes


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
        file = (inside / path).resolve()
        mime = MIME.get(file.suffix.lower())
        if mime and file.is_relative_to(inside) and file.is_file() and file.stat().st_size <= LARGEST_RECORDING:
            uris[path] = f"data:{mime};base64,{base64.b64encode(file.read_bytes()).decode()}"
    note = f"{len(uris)} recordings are part of this page, those of the first rows of each preset."
    if len(uris) < len(wanted):
        note += f" {len(wanted) - len(uris)} more were not found under {root}, or are too long or of no playable kind."
    return Recordings(uris, note)


def _thousandths(values: Floats | npt.NDArray[np.float32]) -> list[int | None]:
    flat = np.asarray(values, np.float64).ravel()
    missing = np.isnan(flat)
    rounded: list[int | None] = np.rint(np.where(missing, 0.0, flat) * THOUSAND).astype(np.int64).tolist()
    for place in np.flatnonzero(missing).tolist():
        rounded[place] = None
    return rounded


def _seconds(values: npt.NDArray[np.float32]) -> list[float | None]:
    return [round(float(x), 3) if np.isfinite(x) else None for x in values]
