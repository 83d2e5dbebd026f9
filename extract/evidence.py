"""Evidence that rows of batches are what their utterances give alone, measured on what the user encodes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from amber2_core.errors import CacheError
from amber2_core.files import write_json

from .recipe import EXACT, Precision

# Rows that are encoded again: this share of the work, and at least so many.
_SHARE, _LEAST = 0.01, 32
_FILE = "evidence.json"


@dataclass(frozen=True)
class Evidence:
    """What is known of rows that came from batches."""

    # how many were encoded alone again
    checked: int = 0
    # the largest relative L2 difference between the two
    largest: float = 0.0
    # True: batches changed the values, so that utterances are encoded one at a time
    singly: bool = False

    def __or__(self, other: Evidence) -> Evidence:
        """Of two pieces of work together."""
        return Evidence(
            self.checked + other.checked, max(self.largest, other.largest), singly=self.singly or other.singly
        )

    def is_against(self, precision: Precision) -> bool:
        """Whether what came from batches must be encoded again, one at a time."""
        return not self.singly and not self.largest <= EXACT[precision]

    @property
    def words(self) -> str:
        """For people."""
        if self.singly and self.largest:
            return f"one at a time: a row of a batch was {self.largest:.1e} from the same utterance alone"
        if self.singly:
            return "one at a time: its batches change their rows"
        if not self.checked:
            return "every utterance was encoded alone"
        return f"{self.checked:,} rows of batches encoded again alone, largest relative difference {self.largest:.1e}"


def sample(digests: Iterable[str]) -> frozenset[str]:
    """Those of the works in batches that are encoded again: 1 % of them, at least 32, whatever their order.

    Digests are sha256: their own order is as good as a lot, and the same when the work is resumed.
    """
    order = sorted(digests)
    return frozenset(order[: max(_LEAST, math.ceil(_SHARE * len(order)))])


def read_evidence(folder: Path) -> Evidence:
    """What was found before in a row store that is gone on with.

    Raises:
        CacheError: it cannot be read.
    """
    try:
        return evidence_of(json.loads((folder / _FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Evidence()
    except (OSError, ValueError, TypeError) as problem:
        raise CacheError(f"Cannot read {folder / _FILE}: {str(problem).splitlines()[0]}; remove {folder}") from None


def write_evidence(folder: Path, evidence: Evidence) -> None:
    """Keep it beside the rows.

    Raises:
        CacheError: the disk is full, or has gone.
    """
    try:
        write_json(folder / _FILE, asdict(evidence))
    except OSError as problem:
        reason = problem.strerror or problem
        raise CacheError(f"Cannot write to {folder}: {reason}; the rows finished so far are kept") from None


def evidence_of(record: Mapping[str, Any]) -> Evidence:
    """As a summary in a feature cache has it; what is younger than this version is left out."""
    known = {field.name for field in fields(Evidence)}
    return Evidence(**{name: value for name, value in record.items() if name in known})
