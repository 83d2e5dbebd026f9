"""Significance: every compared score is that of the tables, over the utterances that both heads predict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from run_folders import Sketch, write_run

from amber2_core.metrics import METRICS
from amber2_report.bootstrap import speaker_clusters
from amber2_report.corpus_facts import corpus_facts
from amber2_report.groups import Group, grouped
from amber2_report.runs import Run, read_run
from amber2_report.significance import COMPARED, compare


def test_every_compared_score_is_that_of_the_metrics(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Sketch(count=80, seeds=2), cache=tmp_path / "c.h5")
    (group,) = grouped([read_run(tmp_path / "run")])
    clusters = speaker_clusters(group.predictions.fold, corpus_facts(group).speaker)
    found = compare(group, clusters, draws=50)
    by_label = {entry.label: entry for entry in group.entries}
    p = group.predictions
    for one in found:
        scores = [
            np.mean(
                [METRICS[one.metric](p.target[p.fold == k], by_label[name].probs[:, p.fold == k]) for k in (1, 2, 3)]
            )
            for name in (one.first, one.second)
        ]
        assert one.difference == pytest.approx(scores[0] - scores[1], abs=1e-9)
    assert [one.metric for one in found[:7]] == list(COMPARED)
    assert {one.second for one in found} == {"cb-ce fusion", "amber2 audio", "amber2 text"}


def test_the_share_of_seeds_that_agree_is_counted(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Sketch(count=80, seeds=4), cache=tmp_path / "c.h5")
    (group,) = grouped([read_run(tmp_path / "run")])
    clusters = speaker_clusters(group.predictions.fold, corpus_facts(group).speaker)
    one = next(c for c in compare(group, clusters, draws=20) if (c.metric, c.second) == ("js", "cb-ce fusion"))
    p = group.predictions
    differences = []
    for seed in range(4):
        scores = []
        for name in ("amber2/fusion", "cb-ce/fusion"):
            probs = p.probs[name][seed]
            scores.append(np.mean([METRICS["js"](p.target[p.fold == k], probs[p.fold == k]) for k in (1, 2, 3)]))
        differences.append(scores[0] - scores[1])
    same = [np.sign(d) == np.sign(np.mean(differences)) for d in differences]
    assert one.seeds_agree == np.mean(same)


def with_heads(group: Group, heads: tuple[str, ...]) -> Group:
    """AmbER² alone, with some of its heads."""
    return Group(group.runs, [e for e in group.entries if e.system == "amber2" and e.head in heads])


def only(run: Run, rows: npt.NDArray[np.intp]) -> Run:
    """The run as if it had been tested on some utterances alone."""
    p = run.predictions
    probs = {name: some[:, rows] for name, some in p.probs.items()}
    return replace(run, predictions=replace(p, id=p.id[rows], fold=p.fold[rows], target=p.target[rows], probs=probs))


def test_heads_that_predict_different_utterances_are_compared_on_those_that_both_predict(tmp_path: Path) -> None:
    lacking = {"text": [0, 1, 2, 3, 31, 45, 46], "audio": [5, 50]}
    write_run(tmp_path / "run", Sketch(lacking=lacking), cache=tmp_path / "c.h5")
    (group,) = grouped([read_run(tmp_path / "run")])
    facts = corpus_facts(group)
    clusters = speaker_clusters(group.predictions.fold, facts.speaker)
    found = {(one.second, one.metric): one for one in compare(group, clusters, draws=500)}
    assert {one.n for one in found.values()} == {60, 53, 58}
    for head, missing in lacking.items():
        rows = np.setdiff1d(np.arange(60), missing)
        (some,) = grouped([only(group.runs[0], rows)])
        alone = with_heads(some, ("fusion", head))
        expected = compare(alone, speaker_clusters(some.predictions.fold, facts.speaker[rows]), draws=500)
        theirs = {one.metric: one for one in expected if one.second == f"amber2 {head}"}
        for metric in COMPARED:
            ours = found[f"amber2 {head}", metric]
            assert ours.n == len(rows)
            for name in ("difference", "low", "high", "p"):
                assert getattr(ours, name) == pytest.approx(getattr(theirs[metric], name), abs=1e-12), (metric, name)
    full = found["cb-ce fusion", "js"]
    by_label = {entry.label: entry for entry in group.entries}
    observed = by_label["amber2 fusion"].per_seed("js").mean() - by_label["cb-ce fusion"].per_seed("js").mean()
    assert full.difference == pytest.approx(observed)


def test_a_fold_whose_utterances_a_head_all_lacks_is_not_drawn_from(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Sketch(), cache=tmp_path / "c.h5")
    (whole,) = grouped([read_run(tmp_path / "run")])
    second = np.flatnonzero(whole.predictions.fold == 2).tolist()
    write_run(tmp_path / "less", Sketch(lacking={"text": second}))
    (group,) = grouped([read_run(tmp_path / "less")])
    clusters = speaker_clusters(group.predictions.fold, corpus_facts(whole).speaker)
    found = [one for one in compare(group, clusters, draws=200) if one.second == "amber2 text"]
    assert {one.n for one in found} == {60 - len(second)}
    assert all(np.isfinite([one.difference, one.low, one.high, one.p, one.p_holm]).all() for one in found)
