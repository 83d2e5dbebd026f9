"""Damages a cache in many ways, reads each, and prints how often what came of it: `python tests/damage.py flips 400`.

A process of its own, so that a reader that hangs or crashes fails a test instead of ending it.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from golden_cache import contents, golden_cache

from amber2_core.cache import read_cache, read_feature_headers, write_cache
from amber2_core.errors import CacheError

SETTINGS = {"notes": "z" * 59_000}  # nearly as long as an attribute may be


def flips(raw: bytes, count: int, chance: random.Random) -> Iterator[bytes]:
    """One flipped bit anywhere."""
    for _ in range(count):
        yield _flipped(raw, chance.randrange(len(raw)), chance)


def flips_in_settings(raw: bytes, count: int, chance: random.Random) -> Iterator[bytes]:
    """One flipped bit in the text of an attribute."""
    first = raw.index(b"z" * 59_000)
    for _ in range(count):
        yield _flipped(raw, chance.randrange(first, first + 59_000), chance)


def erasures(raw: bytes, count: int, chance: random.Random) -> Iterator[bytes]:
    """A sector or page of zeros, or of something else."""
    for _ in range(count):
        first, size = chance.randrange(len(raw)), chance.choice([4, 64, 512, 4096])
        filling = chance.randbytes(size) if chance.random() < 0.5 else bytes(size)
        yield (raw[:first] + filling + raw[first + size :])[: len(raw)]


def cuts(raw: bytes, count: int, chance: random.Random) -> Iterator[bytes]:
    """The end is missing: all of the shortest lengths, and some of the others."""
    lengths = {*range(count // 2), len(raw) - 1, *chance.choices(range(len(raw)), k=count - count // 2 - 1)}
    yield from (raw[:length] for length in sorted(lengths))


def main(kind: str, count: int) -> None:
    """Print {what came of it: how often} as JSON."""
    damage = {"flips": flips, "flips_in_settings": flips_in_settings, "erasures": erasures, "cuts": cuts}[kind]
    cache = replace(golden_cache(), summary=SETTINGS) if kind == "flips_in_settings" else golden_cache()
    whole, outcomes = contents(cache), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.h5"
        write_cache(path, cache)
        for damaged in damage(path.read_bytes(), count, random.Random(20260101)):
            path.write_bytes(damaged)
            try:
                read_feature_headers(path)
                outcomes["as it was" if contents(read_cache(path)) == whole else "other values"] += 1
            except CacheError as error:
                one_line = str(path) in str(error) and "\n" not in str(error)
                outcomes["refused" if one_line else f"bad message {error}"] += 1
    print(json.dumps(outcomes))


def _flipped(raw: bytes, place: int, chance: random.Random) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 1 << chance.randrange(8)]) + raw[place + 1 :]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
