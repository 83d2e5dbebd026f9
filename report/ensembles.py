"""The ensemble of several trained heads: the mean of their distributions, as an entry of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from amber2_core.errors import RunFolderError, bad_choice
from amber2_core.metrics import METRICS
from amber2_core.run_folder import RunFolder, scores_again

from .groups import FUSION, Entry, Group
from .provenance import differences

NAME = "ensemble"


def with_ensemble(groups: Sequence[Group], systems: Sequence[str] = ()) -> Group:
    """A group with one entry more, the mean of the distributions of its heads of one name: the group's, else fusion.

    Args:
        groups: of `grouped`; only runs with one test set have an ensemble.
        systems: those whose heads are averaged; none: every system of every run that has such a head.

    Every model counts alike, which is a seed of a head of a run with the weights that dev chose; no score chooses one.
    Where a model predicts nothing, neither does the ensemble. A single system has the ensemble of its seeds.

    Raises:
        RunFolderError: the runs have several test sets, a system is in none of them or has no such head, or there is
            but one model.
    """
    group = groups[0]
    if not group.entries:
        raise RunFolderError(f"No ensemble: {group.runs[0].name} predicts presence, and no distributions to average")
    if len(groups) > 1:
        first, other = group.runs[0], groups[1].runs[0]
        what = "; ".join(differences(first, other))
        raise RunFolderError(f"No ensemble: beside {first.name}, {other.name} has {what}; name runs with one test set")
    members = _members(group, group.head or FUSION, systems)
    count = sum(len(entry.probs) for entry in members)
    if count < 2:
        raise RunFolderError(f"No ensemble: {members[0].label} has one seed, and there is no other; name more runs")
    head = members[0].head
    probs = np.concatenate([entry.probs for entry in members]).mean(0, dtype=np.float64, keepdims=True)
    run = _run(group, head, probs.astype(np.float32))
    entry = Entry(run, NAME, head, f"{NAME} of {count}, {head}", run.arrays.probs[f"{NAME}/{head}"], tuple(members))
    return replace(group, entries=[*group.entries, entry])


def ensemble_notes(group: Group) -> list[str]:
    """Of what each ensemble is the mean."""
    notes = []
    for entry in (some for some in group.entries if some.members):
        parts = [f"{one.label} ({len(one.probs)} seed{'s' * (len(one.probs) > 1)})" for one in entry.members]
        notes.append(
            f"{entry.label} is the mean of the distributions of {', '.join(parts)}: every model counts alike, none was "
            "chosen by its scores. It is one prediction, and has no spread over seeds."
        )
    return notes


def _members(group: Group, head: str, systems: Sequence[str]) -> list[Entry]:
    """The heads of one name, of some systems or of all."""
    having = [entry for entry in group.entries if entry.head == head]
    names, known = ({entry.system: None for entry in some} for some in (group.entries, having))
    for system in systems:
        if system not in names:
            raise RunFolderError(f"{bad_choice('system', system, names)} in --ensemble, which stands after the runs")
    without = [system for system in systems or names if system not in known]
    if without and (systems or not having):
        raise RunFolderError(f"No ensemble: {', '.join(without)} has no head {head}; name another one with --head")
    return [entry for entry in having if not systems or entry.system in systems]


def _run(group: Group, head: str, probs: npt.NDArray[np.float32]) -> RunFolder:
    """A run that was not trained, with the ensemble's predictions and its scores."""
    arrays = replace(group.predictions, probs={f"{NAME}/{head}": probs}, measures={})
    key = {"system": NAME, "head": head, "split": "test", "fold": list(arrays.folds), "seed": 0, "selected": 1}
    rows, none = pd.DataFrame({**key, "epoch": np.nan}), pd.DataFrame()
    first = group.runs[0]
    run = RunFolder(NAME, first.path, {}, (), rows, arrays, first.utterances, none, none)
    return replace(run, results=rows.merge(scores_again(run, [*METRICS]), on=["system", "head", "fold", "seed"]))
