"""A corpus as stage 1 reads it: its tables, and each distinct recording and transcript once, by its digest."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from amber2_core.cache import FeatureCache
from amber2_core.errors import AudioError, CorpusError
from amber2_core.files import sha256_of
from amber2_core.tables import attribute_columns, rating_table, texts, utterance_table
from amber2_core.utterance import Corpus, Utterance
from amber2_data.sound import Excerpt, decoder_of, seconds_of
from amber2_data.transcripts import Repair, repaired

# Files are read ahead in this many threads: hashing leaves the interpreter free, and network folders answer slowly.
_READERS = min(16, 4 + (os.cpu_count() or 1))
# Small enough for all readers to have some, large enough that handing them out takes no time.
_AT_ONCE = 32

# Said of a whole file system, never of one file that is missing or damaged.
_GONE = {
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENODEV,
    errno.ENXIO,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.ESHUTDOWN,
}

_SOFTWARE = ("amber2", "torch", "torchaudio", "transformers", "tokenizers", "soundfile", "av", "numpy", "h5py")

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Work:
    """One distinct thing to encode."""

    # sha256 of what is encoded
    digest: str
    source: Excerpt | str
    # of recordings, as their headers say; 0 of transcripts
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What is encoded together."""

    works: tuple[Work, ...]
    # seconds or tokens, padding included
    cost: float
    # digests of those works that are then encoded alone again, to compare
    checked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Inputs:
    """What the utterances of a corpus give one modality to encode."""

    # per utterance, "" where there is nothing to encode
    digests: tuple[str, ...]
    # by digest: utterances with the same recording or transcript share one
    works: Mapping[str, Work]
    # by row of the utterance
    failures: Mapping[int, str]
    # of recordings, per utterance: sha256 of the whole file, "" where it cannot be read, and the utterance's seconds
    sha256: tuple[str, ...] = ()
    seconds: tuple[float | None, ...] = ()

    def only(self, digests: Collection[str]) -> Inputs:
        """The same, where only some is encoded."""
        return replace(self, digests=tuple(digest if digest in digests else "" for digest in self.digests))


def scan_recordings(corpus: Corpus, *, known: Mapping[str, float] = MappingProxyType({})) -> Inputs:
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
    # Only what libsndfile reads is known by its digest alone: see `_work`.
    measured = dict.fromkeys(excerpt.path for excerpt in unknown if isinstance(lengths[excerpt], float))
    decoders = _outcomes(decoder_of, measured, corpus.root)
    digests: list[str] = []
    works: dict[str, Work] = {}
    failures: dict[int, str] = {}
    for row, excerpt in enumerate(excerpts):
        work: Work | str = "has no recording"
        if excerpt is not None:
            work = _work(excerpt, hashes[excerpt.path], lengths[excerpt], decoders.get(excerpt.path, ""))
        if isinstance(work, Work):
            works.setdefault(work.digest, work)
            digests.append(work.digest)
        else:
            failures[row] = work
            digests.append("")
    found = [hashes[excerpt.path] if excerpt is not None else None for excerpt in excerpts]
    seconds = [lengths[excerpt] if excerpt is not None else None for excerpt in excerpts]
    return Inputs(
        tuple(digests),
        works,
        failures,
        sha256=tuple(sha if isinstance(sha, str) else "" for sha in found),
        seconds=tuple(length if isinstance(length, float) else None for length in seconds),
    )


def transcript_inputs(corpus: Corpus, repair: Repair | None = None) -> Inputs:
    """The transcripts of a corpus, with one kind of damage undone; an empty one is encoded like any other."""
    digests: list[str] = []
    works: dict[str, Work] = {}
    failures: dict[int, str] = {}
    for row, utterance in enumerate(corpus.utterances):
        transcript = repaired(utterance.transcript, repair)
        try:
            digest = hashlib.sha256(transcript.encode()).hexdigest()
        except UnicodeEncodeError:
            failures[row] = "its transcript is not valid Unicode"
            digest = ""
        else:
            works.setdefault(digest, Work(digest, transcript))
        digests.append(digest)
    return Inputs(tuple(digests), works, failures)


def check_reach(folder: Path, problem: Exception) -> None:
    """See that the folder of a recording that cannot be read is still there: a single file may well be missing.

    Args:
        folder: held recordings, or the folders of recordings, when last seen; a disk that was unmounted leaves an
            empty one.
        problem: of reading the recording; an `AudioError` names what the system said as its cause.

    Raises:
        CorpusError: the folder, or the disk it lies on, has gone.
    """
    said = problem if isinstance(problem, OSError) else problem.__cause__
    try:
        if isinstance(said, OSError) and said.errno in _GONE:
            raise said
        with os.scandir(folder) as entries:
            reason = "" if next(entries, None) else "it is empty now"
    except OSError as gone:
        reason = gone.strerror or str(gone)
    if reason:
        raise CorpusError(
            f"Cannot read the recordings in {folder} any more: {reason}; what is encoded so far is kept, and the same "
            "command goes on when they are back"
        )


def _excerpt(root: Path, utterance: Utterance) -> Excerpt | None:
    if utterance.audio is None:
        return None
    return Excerpt(root / utterance.audio, utterance.start, utterance.duration)


def _work(
    excerpt: Excerpt, sha256: str | Exception, seconds: float | Exception, decoder: str | Exception
) -> Work | str:
    """What there is to encode, or why there is nothing.

    Another generation of decoders gives other samples: its name is part of the digest where one is used, and so only
    these recordings are encoded again. The digest of a whole file that libsndfile reads is the file's own.
    """
    if isinstance(sha256, Exception):
        return f"{excerpt.path.name}: {getattr(sha256, 'strerror', None) or sha256}"
    if isinstance(seconds, Exception):
        return str(seconds)
    if isinstance(decoder, Exception):
        return str(decoder)
    if excerpt.is_whole and not decoder:
        return Work(sha256, excerpt, seconds)
    stretch = f"{sha256} {excerpt.start} {excerpt.duration} {decoder}".rstrip()
    return Work(hashlib.sha256(stretch.encode()).hexdigest(), excerpt, seconds)


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


def blank_cache(corpus: Corpus) -> FeatureCache:
    """Everything a cache holds of a corpus but features and failures.

    Raises:
        CorpusError: there is no utterance, two share an id, a rating or an attribute is of no use, or a text cannot be
            stored.
    """
    table = utterance_table(corpus)
    table = replace(table, transcript=texts([storable(transcript) for transcript in table.transcript]))
    blank = FeatureCache(
        corpus=corpus.name,
        corpus_version=corpus.version,
        utterances=table,
        ratings=rating_table(corpus),
        attributes=attribute_columns(corpus),
        defaults=corpus.defaults,
        features=(),
        versions=versions_of(_SOFTWARE),
    )
    for columns in (_columns(blank.utterances), _columns(blank.ratings), blank.attributes):
        for name, column in columns.items():
            if column.dtype == object:
                _check_storable(corpus, name, list(column))
    return blank


def storable(transcript: str) -> str:
    """A transcript, or the name of a file, as a cache can hold it: NUL and halves of characters become ``\\ufffd``."""
    return transcript.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def _columns(table: Any) -> dict[str, Any]:
    return {field.name: getattr(table, field.name) for field in fields(table)}


def _check_storable(corpus: Corpus, name: str, column: list[str]) -> None:
    """Transcripts are mended; an id, a speaker or a label that cannot be stored as it is would be another one."""
    if (joined := "".join(column)).isascii() and "\0" not in joined:
        return
    for text in column:
        if text != storable(text):
            raise CorpusError(f"Bad {name} {text!r} in {corpus.root}: it holds NUL or half a character; correct it")


def versions_of(software: Sequence[str]) -> dict[str, str]:
    """Software that is installed → its version."""
    found = {}
    for name in software:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
