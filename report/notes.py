"""What must be said under tables of scores: what was scored, what was not, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from amber2_core.metrics import METRICS

from .groups import Entry, Group

CONSTANT = 1e-6  # probabilities that differ by less are the same


def coverage_notes(group: Group, entries: Sequence[Entry]) -> list[str]:
    """In words, which heads were scored on fewer utterances than there are, in fewer folds, or not at all."""
    sizes = {fold: len(rows) for fold, rows in group.predictions.folds.items()}
    fewer, notes = [], []
    for entry in entries:
        scored = entry.tested[entry.tested["n"] > 0].drop_duplicates("fold", keep="last")
        count, of = int(scored["n"].sum()), sum(sizes[fold] for fold in scored["fold"])
        if count < of:
            fewer.append(f"{entry.label} {count:,} of {of:,}")
        unscored = entry.tested[entry.tested["n"] == 0]["fold"]
        if len(unscored):
            notes.append(
                f"{entry.label} has no score in fold {', '.join(map(str, sorted(unscored.unique())))}, where no "
                "utterance of train or none of test has its modality, or a prediction, or none of dev to choose its "
                "epoch by; its mean is over the other folds."
            )
        if entry.diverged:
            notes.append(f"{entry.label} diverged at once in some run, and has no mean.")
    notes += constant_notes(group, entries)
    if fewer:
        notes.insert(
            0,
            f"Some utterances lack a modality, or a prediction, and a head is scored on those that have it: "
            f"{', '.join(fewer)}. Scores on different utterances do not compare; the differences on test are on common "
            "ones.",
        )
    return notes


def constant_notes(group: Group, entries: Sequence[Entry]) -> list[str]:
    """In words, which heads predict one and the same for all utterances of a test fold, whatever these are."""
    notes = []
    for entry in entries:
        same = []
        for fold, rows in group.predictions.folds.items():
            probs = entry.probs[:, rows[entry.there[rows]]]  # (seeds, n, C)
            if probs.shape[1] > 1 and (np.ptp(probs, axis=1) < CONSTANT).all(axis=-1).any():
                same.append(fold)
        if same:
            where = "any fold" if len(same) == len(group.predictions.folds) else f"fold {', '.join(map(str, same))}"
            notes.append(
                f"{entry.label} predicts the same for every utterance of {where}, in some run at least: it learnt "
                "nothing that tells them apart, as where features are equal (empty transcripts, constant vectors)."
            )
    return notes


def blank_notes(group: Group, metrics: Iterable[str]) -> list[str]:
    """Why metrics are blank in every row."""
    tested = pd.concat([run.tested for run in group.runs])
    scored = tested[(tested["n"] > 0) & (tested["epoch"] != 0)]
    notes = []
    for name in metrics:
        if name not in scored or not len(scored) or scored[name].notna().any():
            continue
        if name == "r2" and len(group.predictions.emotions) == 2:
            why = "two shares always lie on one line, so that it would be 1 whatever is predicted"
        elif name == "accuracy_untied":
            why = "no test utterance has one largest share"
        else:
            why = "it tells nothing of these emotions and test folds"
        notes.append(f"{METRICS[name].title if name in METRICS else name} is blank: {why}.")
    return notes


def head_notes(group: Group) -> list[str]:
    """That a head was asked for, and which systems have none of that name."""
    if group.head is None:
        return []
    told = {(id(entry.run), entry.system) for entry in group.mains}
    without = [
        entry.label.removesuffix(f" {entry.head}")
        for entry in group.entries
        if (id(entry.run), entry.system) not in told
    ]
    lacking = f"; left out, having none: {', '.join(dict.fromkeys(without))}" if without else ""
    return [f"Systems are told by their head {group.head}, as was asked for{lacking}."]


def expert_notes(group: Group) -> list[str]:
    """What must be said where heads were trained to teach, not to match the raters."""
    first = group.mains[0]
    if not {"lambda_expert", "student"} <= {*first.settings} or first.settings["lambda_expert"].iloc[0] != 0:
        return []
    return [
        f"The heads of {first.system} beside the {first.settings['student'].iloc[0]} head were trained without a rater "
        "loss of their own (lambda expert 0): their scores tell how the student was taught, they are no results for "
        "one modality."
    ]
