"""A corpus goes in; what there is to encode comes out: each distinct recording and transcript once, with its digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from amber2_core.errors import AudioError
from amber2_core.utterance import Corpus, Utterance

from .audio import Excerpt, seconds_of, sha256_of
from .reach import check_reach

# Files are read ahead in this many threads: hashing leaves the interpreter free, and network folders answer slowly.
_READERS = min(16, 4 + (os.cpu_count() or 1))
# Small enough for all readers to have some, large enough that handing them out takes no time.
_AT_ONCE = 32

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Item:
    """One distinct thing to encode."""

    # sha256 of what is encoded
    digest: str
    source: Excerpt | str
    # of recordings, as their headers say; 0 of transcripts
    seconds: float = 0.0


@dataclass(frozen=True)
class Inputs:
    """What the utterances of a corpus give one modality to encode."""

    # per utterance, "" where there is nothing to encode
    digests: tuple[str, ...]
    # by digest: utterances with the same recording or transcript share one
    items: Mapping[str, Item]
    # by row of the utterance
    failures: Mapping[int, str]

    def rows(self) -> dict[str, list[int]]:
        """Digest → the rows of the utterances that have it."""
        rows: dict[str, list[int]] = {digest: [] for digest in self.items}
        for row, digest in enumerate(self.digests):
            if digest:
                rows[digest].append(row)
        return rows


@dataclass(frozen=True)
class Recordings:
    """What the headers and bytes of a corpus's recordings say, one entry per utterance."""

    # of the whole file, "" where it cannot be read
    sha256: tuple[str, ...]
    # of the utterance, None where its recording cannot be read
    seconds: tuple[float | None, ...]
    inputs: Inputs


def scan_recordings(corpus: Corpus, *, known: Mapping[str, float] = MappingProxyType({})) -> Recordings:
    """Read every recording once, for its digest, and its header, for its length.

    What cannot be read is a failure of that utterance, with the reason.

    Args:
        corpus: whose recordings lie below its root.
        known: sha256 of a whole file → its seconds; the headers of these are not read.

    Raises:
        CorpusError: the folder of the recordings has gone, or goes meanwhile.
    """
    excerpts = [_excerpt(corpus.root, utterance) for utterance in corpus.utterances]
    files = dict.fromkeys(excerpt.path for excerpt in excerpts if excerpt is not None)
    hashes = _outcomes(sha256_of, files, corpus.root)
    seen = {path.parent for path, outcome in hashes.items() if isinstance(outcome, str)}
    for path, outcome in hashes.items():
        # A folder that is a link to another disk may go while the root stays.
        if isinstance(outcome, Exception) and path.parent in seen:
            check_reach(path.parent, outcome)
    lengths: dict[Excerpt, float | Exception] = {
        excerpt: known[sha256]
        for excerpt in excerpts
        if excerpt is not None and excerpt.is_whole and isinstance(sha256 := hashes[excerpt.path], str)
        if sha256 in known
    }
    unknown = dict.fromkeys(excerpt for excerpt in excerpts if excerpt is not None and excerpt not in lengths)
    lengths.update(_outcomes(seconds_of, unknown, corpus.root))
    digests: list[str] = []
    items: dict[str, Item] = {}
    failures: dict[int, str] = {}
    for row, excerpt in enumerate(excerpts):
        item = "has no recording" if excerpt is None else _item(excerpt, hashes[excerpt.path], lengths[excerpt])
        if isinstance(item, Item):
            items.setdefault(item.digest, item)
            digests.append(item.digest)
        else:
            failures[row] = item
            digests.append("")
    found = [hashes[excerpt.path] if excerpt is not None else None for excerpt in excerpts]
    measured = [lengths[excerpt] if excerpt is not None else None for excerpt in excerpts]
    return Recordings(
        sha256=tuple(sha if isinstance(sha, str) else "" for sha in found),
        seconds=tuple(length if isinstance(length, float) else None for length in measured),
        inputs=Inputs(tuple(digests), items, failures),
    )


def transcript_inputs(corpus: Corpus) -> Inputs:
    """The transcripts of a corpus as they are; an empty one is encoded like any other."""
    digests: list[str] = []
    items: dict[str, Item] = {}
    failures: dict[int, str] = {}
    for row, utterance in enumerate(corpus.utterances):
        try:
            digest = hashlib.sha256(utterance.transcript.encode()).hexdigest()
        except UnicodeEncodeError:
            failures[row] = "its transcript is not valid Unicode"
            digest = ""
        else:
            items.setdefault(digest, Item(digest, utterance.transcript))
        digests.append(digest)
    return Inputs(tuple(digests), items, failures)


def _excerpt(root: Path, utterance: Utterance) -> Excerpt | None:
    if utterance.audio is None:
        return None
    return Excerpt(root / utterance.audio, utterance.start, utterance.duration)


def _item(excerpt: Excerpt, sha256: str | Exception, seconds: float | Exception) -> Item | str:
    """What there is to encode, or why there is nothing."""
    if isinstance(sha256, Exception):
        return f"{excerpt.path.name}: {getattr(sha256, 'strerror', None) or sha256}"
    if isinstance(seconds, Exception):
        return str(seconds)
    if excerpt.is_whole:
        return Item(sha256, excerpt, seconds)
    stretch = f"{sha256} {excerpt.start} {excerpt.duration}"
    return Item(hashlib.sha256(stretch.encode()).hexdigest(), excerpt, seconds)


def _outcomes(function: Callable[[Key], Value], keys: Iterable[Key], root: Path) -> dict[Key, Value | Exception]:
    """What a function gives for each key, or the error of the world's that it raises; not all, if `root` has gone."""

    def outcome(key: Key) -> Value | Exception:
        try:
            return function(key)
        except (AudioError, OSError) as problem:
            check_reach(root, problem)
            return problem

    order: Sequence[Key] = list(keys)
    some = [order[first : first + _AT_ONCE] for first in range(0, len(order), _AT_ONCE)]
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(lambda keys: [outcome(key) for key in keys], some)
        return dict(zip(order, chain.from_iterable(found), strict=True))
