"""Shards: the part of a corpus, or of a sweep, that one call does, and what the files of parts are called."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .errors import SettingError

Thing = TypeVar("Thing")

_log = logging.getLogger(__name__)

_NAME = re.compile(r"\.shard-\d+-of-\d+(?=\.[^.]*$|$)")


@dataclass(frozen=True)
class Shard:
    """One of so many parts."""

    number: int  # from 1
    count: int
    # the variable of the environment that told it; "": somebody typed it
    told_by: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise SettingError(f"Bad shard {self.number}/{self.count}, expected one from 1/N to N/N")

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"

    @property
    def words(self) -> str:
        """Which one it is, and who says so."""
        return f"{self} (of {self.told_by})" if self.told_by else str(self)

    @property
    def record(self) -> dict[str, int]:
        """As the summary of a cache, and the record of a sweep, have it under "shard"."""
        return {"number": self.number, "of": self.count}

    def of(self, things: Sequence[Thing]) -> Sequence[Thing]:
        """Every so-manieth thing: of what falls in cost, each shard has about as much.

        Example:
            >>> Shard(2, 3).of("abcdefgh")
            'beh'
        """
        return things[self.number - 1 :: self.count]

    def file(self, whole: Path) -> Path:
        """The file of this part: ``cache.shard-3-of-16.h5``."""
        return whole.with_name(f"{whole.stem}{self._mark}{whole.suffix}")

    def folder(self, whole: Path) -> Path:
        """The folder of this part: ``run.shard-3-of-16``."""
        return whole.with_name(f"{whole.name}{self._mark}")

    @property
    def _mark(self) -> str:
        return f".shard-{self.number}-of-{self.count}"


def shard_named(text: str) -> Shard:
    """The shard that is meant by ``3/16``, or by ``auto``: the one that the environment tells.

    Raises:
        SettingError: it is neither, there is no such part, or the environment tells none.
    """
    if text == "auto":
        return shard_of_environment(os.environ)
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if not found:
        raise SettingError(f"Bad shard {text!r}, expected one such as 3/16, or auto")
    return Shard(int(found[1]), int(found[2]))


def shard_of_environment(environment: Mapping[str, str]) -> Shard:
    """The shard of a task of a SLURM array, or else of a process among several of SLURM or of torchrun.

    Raises:
        SettingError: the environment tells none, or an array has tasks at odd distances.
    """
    array = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    for names in (array, ("SLURM_PROCID", "SLURM_NTASKS"), ("RANK", "WORLD_SIZE")):
        if all(environment.get(name) for name in names):
            break
    else:
        raise SettingError(
            "Bad shard auto: none of SLURM_ARRAY_TASK_ID, SLURM_PROCID and RANK is set with its count; name one, "
            "such as 3/16"
        )
    try:
        own, *others = (int(environment[name]) for name in names)
    except ValueError:
        words = " ".join(f"{name}={environment[name]}" for name in names)
        raise SettingError(f"Bad shard auto: {words} are not all numbers") from None
    if len(names) == 2:
        return Shard(own + 1, others[0], names[0])
    least, most, count = others
    step = (most - least) // max(1, count - 1) or 1
    if least + step * (count - 1) != most or (own - least) % step:
        raise SettingError(
            f"Bad shard auto: the {count} tasks of this array from {least} to {most} do not lie at even distances; to "
            "run some of them again name them, as with --shard $SLURM_ARRAY_TASK_ID/16"
        )
    return Shard((own - least) // step + 1, count, names[0])


def shard_of(record: Mapping[str, Any]) -> Shard | None:
    """The shard that the summary of a cache, or the record of a sweep, tells of; None: it is a whole one.

    Raises:
        SettingError: what stands there is no shard.
    """
    if (found := record.get("shard")) is None:
        return None
    try:
        return Shard(int(found["number"]), int(found["of"]))
    except (KeyError, TypeError, ValueError):
        raise SettingError(f"Bad shard {found!r}, expected its number and of how many it is") from None


def is_part(path: Path) -> bool:
    """Whether a file or folder is called as a shard's."""
    return _NAME.search(path.name) is not None


def whole_of(path: Path) -> Path:
    """What the parts of which this is one become together.

    Example:
        >>> whole_of(Path("cache/iemocap.shard-3-of-16.h5")).as_posix()
        'cache/iemocap.h5'
    """
    return path.with_name(_NAME.sub("", path.name))


def warn_of_part(path: Path, summary: Mapping[str, Any]) -> None:
    """Log where a cache with this summary is taken for a whole one, and is a part."""
    if (shard := shard_of(summary)) is not None:
        _log.warning("%s is %s: features of the others are missing; make them one cache with merge-shards", path, shard)


def check_all(shards: Mapping[Path, Shard], *, what: str) -> None:
    """Check that these are all parts of one whole, each once.

    Args:
        shards: by path.
        what: they are of, in a word, for the line: cache, sweep.

    Raises:
        SettingError: there are parts of another number of parts, one twice, or one is missing.
    """
    (first, one), *_ = shards.items()
    seen: dict[int, Path] = {}
    for path, shard in shards.items():
        if shard.count != one.count:
            raise SettingError(f"{path} is {shard} and {first} {one}: they are no parts of one {what}")
        if shard.number in seen:
            raise SettingError(f"{seen[shard.number]} and {path} are both {shard}: name one of them")
        seen[shard.number] = path
    if missing := [number for number in range(1, one.count + 1) if number not in seen]:
        some = ", ".join(map(str, missing[:20])) + (", …" if len(missing) > 20 else "")
        raise SettingError(f"Missing of {one.count} shards: {some}; run these, and name all shards to merge-shards")
