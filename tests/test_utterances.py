"""The test utterances: what runs and their cache tell of them, and the record behind the table of the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
from run_folders import Sketch, write_run

from amber2_report.groups import Group, grouped
from amber2_report.runs import read_run
from amber2_report.utterances import (
    CorpusFacts,
    corpus_facts,
    interesting_rows,
    script_json,
    shown_rows,
    utterance_record,
)


def group_of(run: Path) -> Group:
    return grouped([read_run(run)])[0]


@pytest.fixture(scope="module")
def group(run_folder: Path) -> Group:
    return group_of(run_folder)


@pytest.fixture(scope="module")
def facts(group: Group) -> CorpusFacts:
    return corpus_facts(group)


def test_every_utterance_is_there_with_the_shares_of_every_head(group: Group, facts: CorpusFacts) -> None:
    record = utterance_record(group, facts, None)
    p = group.predictions
    assert record["id"] == list(p.id)
    assert record["text"] == [f"words {int(name[1:])}" for name in p.id]
    assert record["main"] == record["heads"].index("amber2 fusion")
    for k in range(120):
        y = p.target[k].tolist()
        assert record["target"][4 * k : 4 * k + 4] == [round(1000 * share) for share in y]
        assert sum(record["votes"][4 * k : 4 * k + 4]) == 5
        assert record["ambiguity"][k] == pytest.approx(1000 * reference.entropy(y), abs=0.51)
        js = [reference.js(y, probs[k].tolist()) for probs in p.probs["amber2/fusion"]]
        assert record["js"][k] == pytest.approx(1000 * np.mean(js), abs=0.51)
        for head, shares in zip(record["heads"], record["probs"], strict=True):
            mean = p.probs[head.replace(" ", "/")][:, k].mean(0)
            np.testing.assert_allclose(shares[4 * k : 4 * k + 4], 1000 * mean, atol=0.51)


def test_what_a_head_does_not_predict_is_null(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Sketch(count=50, lacking={"text": [3, 20]}), cache=tmp_path / "c.h5")
    (group,) = grouped([read_run(tmp_path / "run")])
    record = json.loads(script_json(utterance_record(group, corpus_facts(group), None)))
    text = record["probs"][record["heads"].index("amber2 text")]
    for k in range(50):
        assert (text[4 * k : 4 * k + 4] == [None] * 4) == (k in (3, 20))
        assert (record["conflict"][k] is None) == (k in (3, 20))
        weights = dict(zip(record["experts"], (u[k] for u in record["weights"]), strict=True))
        assert sum(weights.values()) == pytest.approx(1000, abs=1)
        assert (weights["text"] == 0) == (k in (3, 20))
    assert all(value is not None for value in record["js"])


def test_the_first_rows_of_each_preset_are_found(group: Group, facts: CorpusFacts) -> None:
    record = utterance_record(group, facts, None)
    wanted = set()
    for column in ("ambiguity", "conflict", "js"):
        wanted |= set(sorted(range(120), key=lambda k, column=column: -record[column][k])[:3])  # type: ignore[misc]
    found = set(interesting_rows(group, 3).tolist())
    # equal ambiguities may be told apart by rounding to thousandths alone
    assert len(found ^ wanted) <= 2
    assert 3 <= len(found) <= 9


def test_of_very_many_utterances_the_record_holds_the_first(
    group: Group, facts: CorpusFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(shown_rows(group)) == 120
    monkeypatch.setattr("amber2_report.utterances.LARGEST_TABLE", 30)
    record = utterance_record(group, facts, None)
    rows = interesting_rows(group, 10)
    assert record["id"] == list(group.predictions.id[rows])
    assert {len(record[name]) for name in ("speaker", "text", "js", "ambiguity", "conflict")} == {len(rows)}


def test_json_in_a_script_cannot_end_it() -> None:
    words = {"text": "</script><!-- & \u2028\u2029 \"quoted\" 'single' \\ مرحبا 🙂"}
    text = script_json(words)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == words
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json({"x": float("nan")})


# --- the feature cache ---


def test_speakers_transcripts_and_votes_come_in_the_order_of_the_predictions(group: Group, facts: CorpusFacts) -> None:
    assert facts.missing == ""
    for row, name in enumerate(group.predictions.id):
        number = int(name[1:])
        assert facts.transcript[row] == f"words {number}"
        assert facts.speaker[row] == f"s{number % 9}"
    assert facts.votes is not None
    np.testing.assert_allclose(facts.votes / facts.votes.sum(1, keepdims=True), group.predictions.target, rtol=1e-6)


def test_a_cache_that_is_gone_is_no_error_and_one_that_was_moved_is_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Sketch(earlier=True), cache=tmp_path / "c.h5")
    (tmp_path / "c.h5").rename(tmp_path / "moved.h5")
    gone = corpus_facts(group_of(run))
    assert "No feature cache at" in gone.missing
    assert not any(gone.speaker)
    assert gone.votes is None
    found = corpus_facts(group_of(run), [tmp_path / "moved.h5"])
    assert found.missing == ""
    assert all(found.speaker)


def test_a_cache_named_from_the_runs_own_neighbourhood_is_found_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache" / "c.h5"
    run = write_run(tmp_path / "runs" / "one", Sketch(extra={"cache": "cache/c.h5"}), cache=cache)
    assert corpus_facts(group_of(run)).missing == ""
    assert f"transcripts and votes are those of {cache}, beside the run" in caplog.text
    caplog.clear()
    assert corpus_facts(group_of(run), [cache]).missing == ""
    assert caplog.text == ""


def test_what_becomes_of_the_cache_does_not_change_who_speaks_in_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", cache=tmp_path / "c.h5")
    before = corpus_facts(group_of(run)).speaker
    for sketch in (Sketch(speakers=7), Sketch(count=59), Sketch(corpus="another")):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        write_run(tmp_path / "other", sketch, cache=tmp_path / "c.h5")
        np.testing.assert_array_equal(corpus_facts(group_of(run)).speaker, before)
    assert "holds the corpus 'another': it is another one" in corpus_facts(group_of(run)).missing


def test_of_a_run_of_before_whose_cache_moved_on_it_is_told_that_utterances_are_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Sketch(earlier=True), cache=tmp_path / "c.h5")
    write_run(tmp_path / "other", Sketch(count=59), cache=tmp_path / "c.h5")
    facts = corpus_facts(group_of(run))
    assert not any(facts.speaker)
    assert "nor are speakers known, so that every p is that of drawn utterances" in facts.missing


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


def test_speakers_are_those_of_the_run_whatever_became_of_the_cache(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", cache=tmp_path / "c.h5")
    known = corpus_facts(group_of(run)).speaker
    write_run(tmp_path / "other", Sketch(speakers=5), cache=tmp_path / "c.h5")
    again = corpus_facts(group_of(run))
    (tmp_path / "c.h5").unlink()
    for facts in (again, corpus_facts(group_of(run))):
        assert list(facts.speaker) == list(known)
    assert facts.missing
