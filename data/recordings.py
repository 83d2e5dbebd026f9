"""The recordings of a corpus → their lengths as their headers say, and which are missing, unreadable or the same."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import soundfile

from amber2_core.utterance import Corpus, Problem, Utterance

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
