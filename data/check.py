"""A corpus and a label policy go in; what one wants to know before a night of encoding comes out."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from amber2_core.distributions import entropy, label, largest
from amber2_core.errors import LabelError
from amber2_core.tables import attribute_columns, rating_table, utterance_table
from amber2_core.utterance import Corpus
from amber2_core.votes import LabelPolicy, Targets, label_distributions

from .recordings import RecordingCheck

Record = dict[str, Any]  # JSON values
ENTROPY_BINS = 5
SHOWN_PROBLEMS = 20
BAR = 30  # characters


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
    problems = [*corpus.problems, *recordings.problems]
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


def describe(record: Record) -> str:
    """The lines for people."""
    return "\n".join(_lines(record))


def _lines(record: Record) -> Iterator[str]:
    version = f" {record['version']}" if record["version"] else ""
    yield f"{record['corpus']}{version} at {record['root']}"
    yield (
        f"utterances  {record['utterances']:,}, {record['hours']:.2f} h, {record['speakers']:,} speakers, "
        f"{record['sessions']} sessions, {record['dialogues']:,} dialogues"
    )
    if record["splits"]:
        yield "splits      " + ", ".join(f"{split} {count:,}" for split, count in record["splits"].items())
    if record["seconds"]:
        yield "lengths     " + ", ".join(f"{name} {value:.2f} s" for name, value in record["seconds"].items())
    audio = record["audio"]
    yield (
        f"audio       {audio['missing']:,} missing, {audio['unreadable']:,} unreadable, "
        f"{audio['duplicated']:,} duplicated"
    )
    yield f"transcripts {record['transcripts_missing']:,} missing"
    yield f"raters      {record['raters_per_utterance']:.2f} per rated utterance; {record['ratings']:,} ratings in all"
    yield from _bars({f"{count} raters": number for count, number in record["raters"].items()})
    yield f"labels      under {_policy(record['policy'])}:"
    if "labels_error" in record:
        yield f"            none: {record['labels_error']}"
    else:
        yield from _label_lines(record)
    yield f"problems    {len(record['problems']):,}"
    for problem in record["problems"][:SHOWN_PROBLEMS]:
        place = problem["file"] if problem["line"] is None else f"{problem['file']}, line {problem['line']}"
        yield f"            {place}: {problem['what']}"
    if len(record["problems"]) > SHOWN_PROBLEMS:
        yield f"            … {len(record['problems']) - SHOWN_PROBLEMS:,} more: --json lists all"


def _label_lines(record: Record) -> Iterator[str]:
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in record["dropped"].items() if count) or "none"
    yield f"            {record['kept']:,} kept; dropped: {dropped}"
    ignored = ", ".join(f"{count:,} {reason}" for reason, count in record["ignored_ratings"].items() if count)
    if ignored:
        yield f"            ratings ignored: {ignored}"
    yield from _bars(record["emotions"])
    ambiguity = record["ambiguity"]
    yield (
        f"ambiguity   {ambiguity['mean_bits']:.3f} bits on average; {ambiguity['unanimous']:,} unanimous, "
        f"{ambiguity['tied']:,} tied"
    )
    edges = ambiguity["bin_edges"]
    names = [f"{low:.2f} … {high:.2f} bits" for low, high in itertools.pairwise(edges)]
    yield from _bars(dict(zip(names, ambiguity["counts"], strict=True)))


def _policy(settings: Mapping[str, Any]) -> str:
    words = [f"{name} {value}" for name, value in settings.items() if name != "merge"]
    merges = ", ".join(f"{word}={emotion}" for word, emotion in settings["merge"]) or "none"
    return ", ".join([*words, f"merge {merges}"]).replace("_", "-")


def _bars(counts: Mapping[str, int]) -> Iterator[str]:
    """One bar for each count, the largest of full length."""
    largest = max([*counts.values(), 1])
    width = max(map(len, counts), default=0)
    for name, count in counts.items():
        yield f"            {name:<{width}}  {count:>8,}  {'█' * round(BAR * count / largest)}".rstrip()
