"""What the cache tells of a run, and what the report says where the cache is gone or another one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from run_folders import Sketch, write_run

from amber2_report.corpus_facts import corpus_facts
from amber2_report.groups import Group, grouped
from amber2_report.runs import read_run


def group_of(run: Path) -> Group:
    return grouped([read_run(run)])[0]


def test_speakers_transcripts_and_votes_come_in_the_order_of_the_predictions(tmp_path: Path) -> None:
    sketch = Sketch(count=30, transcripts=[f"words {k}" for k in range(30)])
    group = group_of(write_run(tmp_path / "run", sketch, cache=tmp_path / "c.h5"))
    facts = corpus_facts(group)
    assert facts.missing == ""
    for row, name in enumerate(group.predictions.id):
        number = int(name[1:])
        assert facts.transcript[row] == f"words {number}"
        assert facts.speaker[row] == f"s{number % 9}"
    assert facts.votes is not None
    np.testing.assert_allclose(facts.votes / facts.votes.sum(1, keepdims=True), group.predictions.target, rtol=1e-6)


def test_a_cache_that_is_gone_is_no_error_and_one_that_was_moved_is_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", cache=tmp_path / "c.h5")
    (tmp_path / "c.h5").rename(tmp_path / "moved.h5")
    gone = corpus_facts(group_of(run))
    assert "No feature cache at" in gone.missing
    assert not any(gone.speaker)
    assert gone.votes is None
    found = corpus_facts(group_of(run), [tmp_path / "moved.h5"])
    assert found.missing == ""
    assert all(found.speaker)


def test_a_cache_named_from_the_runs_own_neighbourhood_is_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "one", Sketch(extra={"cache": "cache/c.h5"}), cache=tmp_path / "cache" / "c.h5")
    assert corpus_facts(group_of(run)).missing == ""


def test_a_cache_of_other_utterances_is_told_from_the_runs_own(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", cache=tmp_path / "c.h5")
    write_run(tmp_path / "other", Sketch(names="v"), cache=tmp_path / "other.h5")
    (tmp_path / "c.h5").unlink()
    facts = corpus_facts(group_of(run), [tmp_path / "other.h5"])
    assert facts.missing != ""
    (tmp_path / "other.h5").rename(tmp_path / "c.h5")
    assert "does not hold 60 of the run's test utterances" in corpus_facts(group_of(run)).missing


def test_votes_that_are_not_those_of_the_run_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", cache=tmp_path / "c.h5")
    write_run(tmp_path / "other", Sketch(votes_seed=1), cache=tmp_path / "c.h5")
    facts = corpus_facts(group_of(run))
    assert "not those that the run was trained on" in facts.missing
    assert facts.votes is None
    assert all(facts.transcript)


def test_a_run_without_a_policy_still_has_its_transcripts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Sketch(extra={"policy": {}}), cache=tmp_path / "c.h5")
    facts = corpus_facts(group_of(run))
    assert "the votes cannot be read" in facts.missing
    assert all(facts.transcript)
