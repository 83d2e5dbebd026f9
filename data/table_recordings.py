"""The recordings that a table names, found on this machine, of whatever machine its paths are."""

from __future__ import annotations

import itertools
import os
import posixpath
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from amber2_core.errors import CorpusError
from amber2_core.utterance import Utterance

LOOKED_AT = 100_000  # files, where no recording is at its place


@dataclass(frozen=True)
class Recordings:
    """Where the recordings of a table lie."""

    folder: Path
    # whether a user said so: then only the ends of longer paths count
    is_given: bool = False
    # folder → its files by their names in lower case
    _listed: dict[Path, dict[str, list[str]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def find(self, text: str) -> str | None:
        """The path of a recording relative to the folder, or as it is if it is absolute; None where there is none.

        A ValueError says what is wrong with it.
        """
        if not text:
            return None
        path = posixpath.normpath(text.replace("\\", "/"))
        is_windows = bool(re.match(r"[A-Za-z]:", path)) or text.startswith("\\\\")
        if self.is_given:
            return self._end(path, is_absolute=is_windows or posixpath.isabs(path))
        if is_windows and os.name != "nt":
            raise ValueError(f"recording {path!r} is a path of Windows: say where the recordings lie by --audio-root")
        if path.split("/")[0] == "..":
            raise ValueError(
                f"recording {text!r} climbs out of {self.folder}: put the manifest above its recordings, or say where "
                "they lie by --audio-root"
            )
        return path

    def _end(self, path: str, *, is_absolute: bool) -> str:
        """The longest end of a path that is there; where none is, the path itself, or of an absolute one its name."""
        parts = [part for part in re.sub("^[A-Za-z]:", "", path).split("/") if part not in ("", "..")]
        ends = ["/".join(parts[first:]) for first in range(len(parts))]
        exact = (end for end in ends if os.path.exists(self.folder / end))
        found = next(itertools.chain(exact, filter(None, map(self._as_spelt, ends))), None)
        return found or (ends[-1] if is_absolute else ends[0])

    def _as_spelt(self, end: str) -> str | None:
        """A path as it is written on this disk, upper and lower case being the same; None where none or several are."""
        spelt: list[str] = []
        for part in end.split("/"):
            names = self._names(self.folder.joinpath(*spelt)).get(part.casefold(), [])
            if len(names) != 1:
                return None
            spelt += names
        return "/".join(spelt)

    def _names(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            with suppress(OSError):  # a file, or not to be read
                for name in sorted(os.listdir(folder)):
                    names.setdefault(name.casefold(), []).append(name)
            self._listed[folder] = names
        return self._listed[folder]


def require_a_recording(path: Path, recordings: Recordings, utterances: Sequence[Utterance]) -> None:
    """Refuse a table whose recordings are all elsewhere; single ones are stage 1's to report.

    Raises:
        CorpusError: no row names a recording, or none of them exists.
    """
    named = [utterance.audio for utterance in utterances if utterance.audio]
    if not named:
        raise CorpusError(f"{path} names no recording: its audio column is empty")
    if not any(os.path.exists(recordings.folder / audio) for audio in named):
        where = (
            f"they are looked for in --audio-root{_of_that_name(recordings.folder, named[0])}"
            if recordings.is_given
            else ("paths are relative to the manifest's folder, or to --audio-root")
        )
        raise CorpusError(
            f"None of the {len(named):,} recordings of {path} exists, for one {recordings.folder / named[0]}: {where}"
        )


def _of_that_name(folder: Path, audio: str) -> str:
    """Where among the first files below a folder one has the name of a recording, as a hint; empty where none has."""
    name = posixpath.basename(audio).casefold()
    below = itertools.islice(folder.rglob("*"), LOOKED_AT)
    found = next((file for file in below if file.name.casefold() == name), None)
    return f", where {found} is: write folders and names as they are there" if found else ""
