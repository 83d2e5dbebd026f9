"""The record behind the table of utterances: what it holds is what the run holds, of very many the first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import reference
from run_folders import Sketch, write_run

from amber2_report.assembly import write_report
from amber2_report.corpus_facts import CorpusFacts, corpus_facts
from amber2_report.drawing import Drawing
from amber2_report.figures import Figures
from amber2_report.groups import Group, grouped
from amber2_report.runs import read_run
from amber2_report.utterances import interesting_rows, script_json, utterance_record


@pytest.fixture
def group(tmp_path: Path) -> Group:
    write_run(
        tmp_path / "run", Sketch(count=50, transcripts=[f"words {k}" for k in range(50)]), cache=tmp_path / "c.h5"
    )
    return grouped([read_run(tmp_path / "run")])[0]


@pytest.fixture
def facts(group: Group) -> CorpusFacts:
    return corpus_facts(group)


def test_every_utterance_is_there_with_the_shares_of_every_head(group: Group, facts: CorpusFacts) -> None:
    record = utterance_record(group, facts, None)
    p = group.predictions
    assert record["id"] == list(p.id)
    assert record["text"] == [f"words {int(name[1:])}" for name in p.id]
    assert record["main"] == record["heads"].index("amber2 fusion")
    for k in range(50):
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
        wanted |= set(sorted(range(50), key=lambda k, column=column: -record[column][k])[:3])  # type: ignore[misc]
    found = set(interesting_rows(group, 3).tolist())
    # equal ambiguities may be told apart by rounding to thousandths alone
    assert len(found ^ wanted) <= 2
    assert 3 <= len(found) <= 9


def test_of_very_many_utterances_the_page_holds_the_first_and_says_so(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amber2_report.utterances.LARGEST_TABLE", 30)
    empty = Figures(Drawing("", "", "", "", b""), (), (), (), (), (), (), (), ())
    monkeypatch.setattr("amber2_report.assembly.figures", lambda group, facts: empty)
    (chapter,) = write_report([tmp_path / "run"], tmp_path / "out").chapters
    record = json.loads(chapter.utterances)
    rows = interesting_rows(group, 10)
    assert record["id"] == list(group.predictions.id[rows])
    assert {len(record[name]) for name in ("speaker", "text", "js", "ambiguity", "conflict")} == {len(rows)}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"The table holds {len(rows)} of 50 utterances" in page


def test_json_in_a_script_cannot_end_it() -> None:
    words = {"text": "</script><!-- & \u2028\u2029 \"quoted\" 'single' \\ مرحبا 🙂"}
    text = script_json(words)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == words
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json({"x": float("nan")})
