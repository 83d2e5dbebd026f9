"""What one wants to know of a corpus before a night of encoding: recordings, raters, labels, and all that is wrong."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from amber2_core.distributions import entropy, label, largest
from amber2_core.errors import AudioError, LabelError
from amber2_core.files import sha256_of
from amber2_core.tables import attribute_columns, rating_table, utterance_table
from amber2_core.utterance import Corpus, Problem, Utterance
from amber2_core.votes import LabelPolicy, Targets, label_distributions

from .sound import Excerpt, check_excerpt
from .transcripts import transcript_problems

Record = dict[str, Any]  # JSON values
ENTROPY_BINS = 5
# Reading leaves the interpreter free, and network folders answer slowly.
_READERS = min(16, 4 + (os.cpu_count() or 1))

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class RecordingCheck:
    """What a corpus's recordings are, and which of its utterances stage 1 could not encode."""

    # one per utterance, None where it fails
    seconds: tuple[float | None, ...]
    # id of an utterance → why its sound cannot be encoded, in the words of stage 1
    failures: Mapping[str, str]
    # utterances that name no recording, or whose recording does not exist
    missing: int
    # recordings that exist and cannot be used, or do not hold the segments that are said to be in them
    unreadable: int
    # recordings whose bytes are those of an earlier one
    duplicated: int
    # utterances whose very sound is in another split, too
    across_splits: int
    # the same, each with its file
    problems: tuple[Problem, ...]


def check_recordings(corpus: Corpus, *, decoded: bool = False, max_seconds: float | None = None) -> RecordingCheck:
    """Ask of every recording what stage 1 asks, in parallel; and read the bytes of those that are of equal size.

    Args:
        corpus: whose recordings are asked.
        decoded: decode them all; else their headers and sizes are read.
        max_seconds: to which longer utterances would be cut.
    """
    excerpts = [_excerpt(corpus.root, u) for u in corpus.utterances]
    asked = list(dict.fromkeys(excerpt for excerpt in excerpts if excerpt is not None))
    found = _mapped(lambda excerpt: _asked(excerpt, decoded=decoded, max_seconds=max_seconds), asked)
    failures: dict[str, str] = {}
    told: dict[tuple[str, str], None] = {}
    gone: set[str] = set()
    broken: set[str] = set()
    missing = 0
    for u, excerpt in zip(corpus.utterances, excerpts, strict=True):
        outcome = AudioError("has no recording") if excerpt is None or u.audio is None else found[excerpt]
        if isinstance(outcome, float):
            continue
        failures[u.id] = str(outcome)
        if u.audio is not None:
            is_gone = isinstance(outcome.__cause__, FileNotFoundError)
            (gone if is_gone else broken).add(u.audio)
            told[u.audio, "no such recording" if is_gone else _reason(outcome, excerpt)] = None
        missing += u.audio is None or u.audio in gone
    files = dict.fromkeys(u.audio for u in corpus.utterances if u.audio and u.audio not in gone)
    digests = _digests(corpus.root, [file for file in files if os.path.isfile(corpus.root / file)])
    copies = _copies(digests)
    pairs = list(_across_splits(corpus, digests))
    problems = [Problem(file, None, what) for file, what in told]
    problems += [Problem(copy, None, f"the same bytes as {first}") for copy, first in copies.items()]
    problems += [
        Problem(str(b.audio), None, f"{b.id!r} of {b.split} is the same sound as {a.id!r} of {a.split}")
        for a, b in pairs
    ]
    return RecordingCheck(
        seconds=tuple(
            seconds if excerpt is not None and isinstance(seconds := found[excerpt], float) else None
            for excerpt in excerpts
        ),
        failures=failures,
        missing=missing,
        unreadable=len(broken),
        duplicated=len(copies),
        across_splits=len(pairs),
        problems=tuple(problems),
    )


def _excerpt(root: Path, utterance: Utterance) -> Excerpt | None:
    if utterance.audio is None:
        return None
    return Excerpt(root / utterance.audio, utterance.start, utterance.duration)


def _asked(excerpt: Excerpt, *, decoded: bool, max_seconds: float | None) -> float | AudioError:
    """Seconds of an excerpt, or why it is of no use."""
    try:
        return check_excerpt(excerpt, decoded=decoded, max_seconds=max_seconds)
    except AudioError as problem:
        return problem


def _reason(problem: AudioError, excerpt: Excerpt | None) -> str:
    return str(problem).removeprefix("" if excerpt is None else f"{excerpt.path.name}: ")


def _mapped(function: Callable[[Key], Value], keys: Sequence[Key]) -> dict[Key, Value]:
    with ThreadPoolExecutor(_READERS) as readers:
        return dict(zip(keys, readers.map(function, keys), strict=True))


def _digests(root: Path, files: Sequence[str]) -> dict[str, str]:
    """sha256 of the recordings that are as large as another one; of the others their own name, which is theirs alone.

    What cannot be read is left out.
    """
    by_size = defaultdict(list)
    for file, size in _mapped(lambda file: os.path.getsize(root / file), files).items():
        by_size[size].append(file)
    suspects = [file for group in by_size.values() if len(group) > 1 for file in group]
    known = _mapped(lambda file: _sha256(root / file), suspects)
    return {file: digest for file in files if (digest := known.get(file, file))}


def _copies(digests: Mapping[str, str]) -> dict[str, str]:
    """Recording → the earlier one that has the same bytes."""
    first: dict[str, str] = {}
    return {file: first[digest] for file, digest in digests.items() if first.setdefault(digest, file) != file}


def _across_splits(corpus: Corpus, digests: Mapping[str, str]) -> Iterator[tuple[Utterance, Utterance]]:
    """Pairs of utterances of the same sound in different splits: the first of that sound, and each later one."""
    first: dict[tuple[str, float | None, float | None], Utterance] = {}
    for u in corpus.utterances:
        if u.audio is not None and u.audio in digests and u.split:
            earlier = first.setdefault((digests[u.audio], u.start, u.duration), u)
            if earlier.split != u.split:
                yield earlier, u


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError:  # one of the failures
        return ""


def check(corpus: Corpus, policy: LabelPolicy, recordings: RecordingCheck, *, only_word: str = "") -> Record:
    """Counts of a corpus, its labels under a policy, and everything that is wrong with it.

    Where the policy gives no label at all, `kept` is 0 and `labels_error` says why.

    Args:
        corpus: what is counted.
        policy: how ratings become labels.
        recordings: what its recordings are.
        only_word: the one word that all raters say, if it is one: then no policy makes a label of it.

    Raises:
        CorpusError: ids are not unique, or a name cannot be stored.
    """
    utterances = corpus.utterances
    table = utterance_table(corpus)
    known = [seconds for seconds in recordings.seconds if seconds is not None]
    raters = _raters(corpus, policy)
    # those of recordings may be many, and come last
    problems = [*transcript_problems(utterances), *corpus.problems, *recordings.problems]
    return {
        "corpus": corpus.name,
        "version": corpus.version,
        "root": str(corpus.root),
        "utterances": len(utterances),
        **(_one_word(corpus, policy, only_word) if only_word else _labels(corpus, policy)),
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
        "across_splits": recordings.across_splits,
        "failures": dict(recordings.failures),
        "problems": [{"file": p.file, "line": p.line, "what": p.what} for p in problems],
    }


def _settings(policy: LabelPolicy) -> Record:
    return {
        "stimulus": policy.stimulus,
        "raters": policy.raters,
        "multi_label": policy.multi_label,
        "out_of_space": policy.out_of_space,
        "merge": [list(pair) for pair in policy.merge],
        "keep": policy.keep,
        "secondary": policy.secondary,
    }


def _one_word(corpus: Corpus, policy: LabelPolicy, word: str) -> Record:
    rated = sum(bool(u.ratings) for u in corpus.utterances)
    return {
        "policy": _settings(policy),
        "kept": 0,
        "dropped": {"no label under the policy": len(corpus.utterances)},
        "emotions": {word: rated},
        "labels_error": f"{word!r} is all that raters say, of {rated:,} utterances: there is nothing to tell apart",
    }


def _labels(corpus: Corpus, policy: LabelPolicy) -> Record:
    settings = _settings(policy)
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
