"""What runs were trained and tested on: where that differs, it is said in what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import Sketch, write_run

from amber2_core.run_folder import RunFolder, load
from amber2_report.provenance import data_notes, differences, same_test_set


def made(place: Path, sketch: Sketch | None = None) -> RunFolder:
    return load(write_run(place, sketch))


def with_data(run: RunFolder, name: str, **settings: Any) -> RunFolder:
    return replace(run, name=name, settings={**run.settings, **settings})


def some(run: RunFolder, rows: Any, **arrays: Any) -> RunFolder:
    p = run.arrays
    taken = {name: arrays.get(name, getattr(p, name))[rows] for name in ("id", "fold", "target")}
    return replace(run, arrays=replace(p, **taken, probs={}))


def test_equal_test_sets_differ_in_nothing(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a"), made(tmp_path / "b", Sketch(seed=1))
    assert differences(first, second) == []
    policy = {"policy": {**first.settings["policy"], "stimulus": "video"}}
    assert same_test_set(first, with_data(second, "b", **policy))  # the same votes under another name


def test_a_difference_is_told_with_its_count(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    p, everyone = run.arrays, np.arange(60)
    assert differences(run, some(run, everyone[2:])) == ["2 utterances fewer"]
    assert differences(some(run, everyone[2:]), some(run, everyone[:-1])) == [
        "2 utterances more and 1 utterances fewer"
    ]
    moved = np.where(everyone < 5, p.fold % 3 + 1, p.fold)
    assert differences(run, some(run, everyone, fold=moved)) == ["another test fold for 5 utterances"]
    other = p.target.copy()
    other[7] = [0.25, 0.25, 0.25, 0.25]
    assert differences(run, some(run, everyone, target=other)) == ["other targets for 1 utterances"]
    assert differences(run, some(run, everyone[::-1])) == ["its utterances in another order"]
    assert not same_test_set(run, some(run, everyone[::-1]))


def test_other_votes_corpora_and_emotions_are_named(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    other = made(tmp_path / "other", Sketch(votes_seed=1))
    seen = with_data(other, "other", policy={**other.settings["policy"], "stimulus": "audiovisual"})
    changed = int((~np.isclose(run.arrays.target, other.arrays.target)).any(1).sum())
    assert differences(run, seen) == [
        f"other targets for {changed} utterances", "audiovisual votes, not audio ones"
    ]  # fmt: skip
    far = made(tmp_path / "far", Sketch(corpus="far", emotions=("up", "down"), names="v"))
    assert differences(run, far) == [
        "another corpus (far)", "other emotions (up, down)", "60 utterances more and 60 utterances fewer"
    ]  # fmt: skip


DIGESTS = {"ids": "1", "audio": "2", "text": "3", "votes": "4"}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"digests": DIGESTS}, {"digests": DIGESTS}, ""),
        ({"digests": DIGESTS}, {"digests": {**DIGESTS, "text": "5"}}, "inputs of the text features differ."),
        ({"digests": DIGESTS}, {"digests": {**DIGESTS, "ids": "5", "votes": "6"}}, "ids of utterances, votes differ."),
        ({"digests": DIGESTS}, {"digests": {name: DIGESTS[name] for name in ("ids", "audio", "votes")}}, ""),
        ({"digest": "1"}, {"digest": "1"}, ""),
        ({"digest": "1"}, {"digest": "2"}, "ids, inputs or votes (their folders do not tell which) differ."),
        ({"digest": "1", "digests": DIGESTS}, {}, "cannot be told: an earlier version wrote one of them."),
        ({}, {}, ""),
    ],
)  # fmt: skip
def test_data_that_changed_between_two_runs_are_named_as_far_as_their_digests_tell(
    tmp_path: Path, first: Mapping[str, Any], second: Mapping[str, Any], words: str
) -> None:
    run = made(tmp_path / "run")
    notes = data_notes([with_data(run, "a", **first), with_data(run, "b", **second)])
    assert len(notes) == bool(words)
    assert all(
        "b was trained on the data of a" in note or "b was not trained on the data of a" in note for note in notes
    )
    assert all(note.endswith(words) for note in notes)
