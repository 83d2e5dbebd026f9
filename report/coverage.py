"""What each head was scored on: entries of a table go in; what a reader must know before he compares them comes out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .groups import Entry, Group


def coverage_notes(group: Group, entries: Sequence[Entry]) -> list[str]:
    """In words, which heads were scored on fewer utterances than there are, in fewer folds, or not at all."""
    return [*_fewer_utterances(group, entries), *(note for entry in entries for note in _fewer_folds(entry))]


def _fewer_utterances(group: Group, entries: Sequence[Entry]) -> list[str]:
    folds = group.predictions.fold
    sizes = {int(fold): int(np.count_nonzero(folds == fold)) for fold in np.unique(folds)}
    fewer = []
    for entry in entries:
        scored = {row["fold"]: row["n"] for row in entry.tested if row["n"]}
        count, of = sum(scored.values()), sum(sizes[fold] for fold in scored)
        if count < of:
            fewer.append(f"{entry.label} {count:,} of {of:,}")
    if not fewer:
        return []
    return [
        f"Some utterances lack a modality, and a head is scored on those that have it: {', '.join(fewer)}. Scores on "
        "different utterances do not compare; the differences on test are on common ones."
    ]


def _fewer_folds(entry: Entry) -> list[str]:
    notes = []
    folds = sorted({row["fold"] for row in entry.tested if not row["n"]})
    if folds:
        notes.append(
            f"{entry.label} has no score in fold {', '.join(map(str, folds))}, where no utterance of train or none of "
            "test has its modality, or none of dev to choose its epoch by; its mean is over the other folds."
        )
    if any(row["n"] and not row["epoch"] for row in entry.tested):
        notes.append(f"{entry.label} diverged at once in some run, and has no mean.")
    return notes
