"""What one wants to know of a corpus before a night of encoding: recordings, raters, labels, and all that is wrong."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile

from amber2_core.distributions import entropy, label, largest
from amber2_core.errors import LabelError
from amber2_core.tables import attribute_columns, rating_table, utterance_table
from amber2_core.utterance import Corpus, Problem, Utterance
from amber2_core.votes import LabelPolicy, Targets, label_distributions

from .transcripts import transcript_problems

Record = dict[str, Any]  # JSON values
ENTROPY_BINS = 5
# Reading leaves the interpreter free, and network folders answer slowly.
_READERS = min(16, 4 + (os.cpu_count() or 1))

Value = TypeVar("Value")


@dataclass(frozen=True)
class RecordingCheck:
    """What the headers of a corpus's recordings say."""

    # one per utterance, None where its recording is missing or cannot be read
    seconds: tuple[float | None, ...]
    # utterances that name no recording, or whose recording does not exist
    missing: int
    # recordings that exist and cannot be read, or hold no sound
    unreadable: int
    # recordings whose bytes are those of an earlier one
    duplicated: int
    # the same, each with its file
    problems: tuple[Problem, ...]


def check_recordings(corpus: Corpus) -> RecordingCheck:
    """Read the header of every recording, in parallel, and the bytes of those that are of equal size."""
    files = list(dict.fromkeys(u.audio for u in corpus.utterances if u.audio))
    found = _mapped(lambda file: _length(corpus.root / file), files)
    there = {file: length for file, length in found.items() if isinstance(length, float)}
    gone = {file for file, length in found.items() if isinstance(length, FileNotFoundError)}
    broken = {file: error for file, error in found.items() if isinstance(error, Exception) and file not in gone}
    copies = _copies(corpus.root, [file for file in files if file in there])
    problems = [Problem(file, None, "no such recording") for file in files if file in gone]
    problems += [Problem(file, None, f"cannot be read: {error}") for file, error in broken.items()]
    problems += [Problem(copy, None, f"the same bytes as {first}") for copy, first in copies.items()]
    return RecordingCheck(
        seconds=tuple(_seconds(u, there.get(u.audio or "")) for u in corpus.utterances),
        missing=sum(u.audio is None or u.audio in gone for u in corpus.utterances),
        unreadable=len(broken),
        duplicated=len(copies),
        problems=tuple(problems),
    )


def _mapped(function: Callable[[str], Value], keys: Sequence[str]) -> dict[str, Value]:
    with ThreadPoolExecutor(_READERS) as readers:
        return dict(zip(keys, readers.map(function, keys), strict=True))


def _length(path: Path) -> float | Exception:
    """Seconds of sound in a file, or what is wrong with it."""
    try:
        if not os.path.exists(path):
            return FileNotFoundError(str(path))
        if not os.path.isfile(path):  # a pipe would never end
            return ValueError("it is no ordinary file")
        with soundfile.SoundFile(path) as recording:
            if not recording.frames:
                return ValueError("it holds no sound")
            return float(recording.frames / recording.samplerate)
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError, RuntimeError) as error:
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        return ValueError(" ".join(str(reason).split())[:100])


def _seconds(utterance: Utterance, whole: float | None) -> float | None:
    if whole is None:
        return None
    rest = max(0.0, whole - (utterance.start or 0.0))
    return rest if utterance.duration is None else min(rest, utterance.duration)


def _copies(root: Path, files: Sequence[str]) -> Mapping[str, str]:
    """Recording → the earlier one that has the same bytes."""
    by_size = defaultdict(list)
    for file, size in _mapped(lambda file: os.path.getsize(root / file), files).items():
        by_size[size].append(file)
    suspects = [file for group in by_size.values() if len(group) > 1 for file in group]
    first: dict[str, str] = {}
    digests = _mapped(lambda file: _sha256(root / file), suspects)
    return {file: first[sha] for file, sha in digests.items() if first.setdefault(sha, file) != file}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(corpus: Corpus, policy: LabelPolicy, recordings: RecordingCheck) -> Record:
    """Counts of a corpus, its labels under a policy, and everything that is wrong with it.

    Where the policy gives no label at all, `kept` is 0 and `labels_error` says why.

    Raises:
        CorpusError: ids are not unique, or a name cannot be stored.
    """
    utterances = corpus.utterances
    table = utterance_table(corpus)
    known = [seconds for seconds in recordings.seconds if seconds is not None]
    raters = _raters(corpus, policy)
    problems = [*corpus.problems, *recordings.problems, *transcript_problems(utterances)]
    return {
        "corpus": corpus.name,
        "version": corpus.version,
        "root": str(corpus.root),
        "utterances": len(utterances),
        **_labels(corpus, policy),
        "speakers": len(set(table.speaker) - {""}),
        "sessions": len(set(table.session) - {""}),
        "dialogues": len(set(table.dialogue) - {""}),
        "splits": dict(sorted(Counter(split for split in table.split if split).items())),
        "hours": round(math.fsum(known) / 3600, 4),
        "seconds": _quantiles(known),
        "ratings": sum(len(u.ratings) for u in utterances),
        "raters_per_utterance": round(sum(raters) / len(raters), 4) if raters else 0.0,
        "raters": {str(count): number for count, number in sorted(Counter(raters).items())},
        "transcripts_missing": sum(not u.transcript.strip() for u in utterances),
        "audio": {
            "missing": recordings.missing,
            "unreadable": recordings.unreadable,
            "duplicated": recordings.duplicated,
        },
        "problems": [{"file": p.file, "line": p.line, "what": p.what} for p in problems],
    }


def _labels(corpus: Corpus, policy: LabelPolicy) -> Record:
    settings = {
        "stimulus": policy.stimulus,
        "raters": policy.raters,
        "multi_label": policy.multi_label,
        "out_of_space": policy.out_of_space,
        "merge": [list(pair) for pair in policy.merge],
        "keep": policy.keep,
    }
    try:
        targets = label_distributions(rating_table(corpus), attribute_columns(corpus), len(corpus.utterances), policy)
    except LabelError as error:
        return {
            "policy": settings,
            "kept": 0,
            "dropped": {"no label under the policy": len(corpus.utterances)},
            "emotions": dict.fromkeys(policy.classes, 0),
            "labels_error": str(error),
        }
    return {
        "policy": settings,
        "kept": len(targets.rows),
        "dropped": dict(targets.dropped),
        "ignored_ratings": dict(targets.ignored),
        **_distribution(targets),
    }


def _distribution(targets: Targets) -> Record:
    """Majority counts (the first emotion wins a tie), mean shares, and the histogram of entropies."""
    y = targets.soft_labels  # (utterances, emotions)
    majority = np.bincount(label(y), minlength=y.shape[1])
    bits = entropy(y)
    edges = np.linspace(0, math.log2(y.shape[1]), ENTROPY_BINS + 1)
    counts, _ = np.histogram(np.clip(bits, 0, edges[-1]), edges)
    tied = largest(y).sum(axis=1) > 1
    return {
        "emotions": dict(zip(targets.emotions, majority.tolist(), strict=True)),
        "shares": {e: round(float(s), 4) for e, s in zip(targets.emotions, y.mean(axis=0), strict=True)},
        "ambiguity": {
            "mean_bits": round(float(bits.mean()), 4),
            "bin_edges": [round(float(edge), 4) for edge in edges],
            "counts": counts.tolist(),
            "unanimous": int((bits < 1e-9).sum()),
            "tied": int(tied.sum()),
        },
    }


def _raters(corpus: Corpus, policy: LabelPolicy) -> list[int]:
    """How many people's ratings the policy looks at, for every utterance that has any."""
    sources = ("external", "self") if policy.raters == "all" else ("external",)
    counts = []
    for u in corpus.utterances:
        people = {(r.source, r.rater) for r in u.ratings if r.stimulus == policy.stimulus and r.source in sources}
        if people:
            counts.append(len(people))
    return counts


def _quantiles(seconds: list[float]) -> Record:
    if not seconds:
        return {}
    low, middle, high = np.quantile(seconds, [0, 0.5, 1])
    return {"shortest": round(float(low), 3), "median": round(float(middle), 3), "longest": round(float(high), 3)}
