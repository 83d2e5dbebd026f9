"""What runs were trained and tested on, and in what the data of two of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from amber2_core.run_folder import SYNTHETIC_VOTES, RunFolder
from amber2_core.utterance import STIMULI

TOLERANCE = 1e-6  # targets that differ by less are the same
WHOLE = "whole"  # the digest over everything, of which those with the same modalities compare


def same_test_set(first: RunFolder, second: RunFolder) -> bool:
    """Whether two runs were tested on the same utterances, in the same folds, with the same targets."""
    return not differences(first, second)


def differences(first: RunFolder, second: RunFolder) -> list[str]:
    """In what the test sets of two runs differ, as what the second has; none where they are the same."""
    a, b = first.arrays, second.arrays
    found = []
    if first.settings.get("corpus") != second.settings.get("corpus"):
        found.append(f"another corpus ({second.settings.get('corpus') or '?'})")
    if a.emotions != b.emotions:
        found.append(f"other emotions ({', '.join(b.emotions)})")
    more, fewer = (len({*x.id} - {*y.id}) for x, y in ((b, a), (a, b)))
    if more or fewer:
        found.append(" and ".join(f"{n:,} utterances {word}" for n, word in ((more, "more"), (fewer, "fewer")) if n))
    common = _common(first, second)
    if a.emotions == b.emotions and (count := _apart(common, first, second)):
        found.append(f"other targets for {count:,} utterances")
    if count := int((a.fold[common["first"]] != b.fold[common["second"]]).sum()):
        found.append(f"another test fold for {count:,} utterances")
    if not found and not all(map(np.array_equal, (a.id, a.fold), (b.id, b.fold))):
        found.append("its utterances in another order")
    if found and {ours := stimulus(first), theirs := stimulus(second)} != {ours} and ours and theirs:
        found.append(f"{theirs} votes, not {ours} ones")
    return found


def data_notes(runs: Sequence[RunFolder]) -> list[str]:
    """Of runs with one test set, those that learnt others' votes than people's, and those whose data differ.

    They differ from the first one's, as far as their digests tell.
    """
    first = runs[0]
    learnt = {run.name: run.settings.get("targets", "human") for run in runs}
    notes = [
        f"{name} learnt {voters} votes; its dev and test are people's."
        for name, voters in learnt.items()
        if voters != "human"
    ]
    for run in runs[1:]:
        differ = _data_differences(first, run)
        if differ:
            notes.append(f"{run.name} was not trained on the data of {first.name}: {', '.join(differ)} differ.")
        elif not _digests(first).keys() & _digests(run).keys() and (_digests(first) or _digests(run)):
            notes.append(
                f"Whether {run.name} was trained on the data of {first.name} cannot be told: an earlier version wrote "
                "one of them."
            )
    return notes


def remarks(runs: Sequence[RunFolder]) -> list[str]:
    """What the results of systems must not be read without, as their runs tell, each once."""
    found = [
        f"{system if len(runs) == 1 else f'{run.name}: {system}'}: {line}"
        for run in runs
        for system, lines in run.settings.get("remarks", {}).items()
        for line in lines
    ]
    return list(dict.fromkeys(found))


def stimulus(run: RunFolder) -> str:
    """What the raters of a run's votes saw or heard, "" where its folder does not tell."""
    found = run.settings.get("policy", {}).get("stimulus")
    return found if found in STIMULI else ""


def stimulus_was_chosen(run: RunFolder) -> bool:
    """Whether the user named it, or the corpus's own was taken."""
    return any(str(word).partition("=")[0] == "--stimulus" for word in run.settings.get("command", []))


def _data_differences(first: RunFolder, second: RunFolder) -> list[str]:
    ours, theirs = _digests(first), _digests(second)
    return [_of(name) for name in ours if name in theirs and ours[name] != theirs[name]]


def _digests(run: RunFolder) -> Mapping[str, Any]:
    """Digests by what they are of; of a run of before, the one over the ids, the votes and the inputs that it has."""
    parts: Mapping[str, Any] = run.settings.get("digests", {})
    if parts or "digest" not in run.settings:
        return parts
    return {" ".join([WHOLE, *sorted(run.settings.get("features", {}))]): run.settings["digest"]}


def _of(name: str) -> str:
    if name.startswith(WHOLE):
        return "ids, inputs or votes (their folders do not tell which)"
    words = {"ids": "ids of utterances", "votes": "votes", SYNTHETIC_VOTES: SYNTHETIC_VOTES}
    return words.get(name, f"inputs of the {name} features")


def _common(first: RunFolder, second: RunFolder) -> pd.DataFrame:
    """The rows of the utterances that both were tested on, in `first` and in `second`."""
    rows = [
        pd.DataFrame({"id": run.arrays.id, name: np.arange(len(run.arrays.id))}).drop_duplicates("id")
        for run, name in ((first, "first"), (second, "second"))
    ]
    return rows[0].merge(rows[1], on="id")


def _apart(common: pd.DataFrame, first: RunFolder, second: RunFolder) -> int:
    """How many of them have other targets."""
    ours, theirs = first.arrays.target[common["first"]], second.arrays.target[common["second"]]
    return int((~np.isclose(ours, theirs, atol=TOLERANCE)).any(axis=1).sum())
