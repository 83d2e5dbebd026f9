"""Measures of single utterances: their correlations are scipy's, and the page shows them and the remarks on systems."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from run_folders import Sketch, write_run

from amber2_core.run_folder import read_predictions, write_predictions
from amber2_report.groups import Group, grouped
from amber2_report.measures import measure_tables, measures, spearman
from amber2_report.page import Options, write_report
from amber2_report.provenance import remarks
from amber2_report.runs import read_run
from amber2_report.utterances import corpus_facts, utterance_record

FROZEN = "heads on a frozen tower, not fine-tuned <b>"


def written(folder: Path, **sketch: object) -> Path:
    """A run whose amber2 measures a vacuity of all but two utterances."""
    write_run(folder, Sketch(extra={"remarks": {"amber2": [FROZEN, "one layer"]}}, **sketch))  # type: ignore[arg-type]
    found = read_predictions(folder)
    values = np.random.default_rng(1).integers(0, 9, (2, len(found.id))) / 8.0  # with ties
    values[:, [4, 9]] = np.nan
    write_predictions(folder / "predictions.npz", replace(found, measures={"amber2/vacuity": values}))
    return folder


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    (found,) = grouped([read_run(written(tmp_path_factory.mktemp("measures") / "run"))])
    return found


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_rank_correlations_agree_with_scipy(pairs: list[tuple[int, int]]) -> None:
    import scipy.stats

    a, b = np.array(pairs, np.float64).T
    if min(len(set(a)), len(set(b))) > 1:
        assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)
    else:
        assert np.isnan(spearman(a, b))


def test_a_measure_is_held_against_the_raters_ambiguity_and_the_error_of_the_fusion_head(group: Group) -> None:
    import scipy.stats

    (table,) = measure_tables(group)
    (row,) = table.frame.to_dict("records")
    assert (row["entry"], row["head"], row["n"]) == ("amber2 vacuity", "fusion", 58)
    p, there = group.predictions, [k for k in range(60) if k not in (4, 9)]
    entropies = [round(reference.entropy(p.target[k].tolist()), 9) for k in there]
    expected = []
    for seed, values in enumerate(p.measures["amber2/vacuity"]):
        js = [reference.js(p.target[k].tolist(), p.probs["amber2/fusion"][seed, k].tolist()) for k in there]
        ranks = [scipy.stats.spearmanr(values[there], other).statistic for other in (entropies, js)]
        expected.append([values[there].mean(), *ranks])
    for k, name in enumerate(("mean", "with_entropy", "with_js")):
        of_seeds = [values[k] for values in expected]
        assert row[name] == pytest.approx(np.mean(of_seeds), abs=1e-6)
        assert row[f"{name}_sd"] == pytest.approx(np.std(of_seeds, ddof=1), abs=1e-6)


def test_the_table_of_utterances_holds_the_mean_of_a_measure_over_seeds(group: Group) -> None:
    record = utterance_record(group, corpus_facts(group), None)
    (one,) = record["measures"]
    assert one["title"] == "amber2 vacuity"
    for k, value in enumerate(group.predictions.measures["amber2/vacuity"].mean(0).tolist()):
        assert one["values"][k] == (None if k in (4, 9) else pytest.approx(1000 * value, abs=0.51))


def test_runs_without_measures_have_neither_columns_nor_a_table(run_folder: Path) -> None:
    (group,) = grouped([read_run(run_folder)])
    assert (measures(group), measure_tables(group)) == ([], [])
    assert utterance_record(group, corpus_facts(group), None)["measures"] == []


def test_the_page_prints_measures_and_remarks_of_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amber2_report.page.figures", lambda *_: {part: [] for part in PARTS})
    folders = [written(tmp_path / "a"), written(tmp_path / "b", seed=1)]
    report = write_report(folders, tmp_path / "out", Options(draws=50))
    page = report.page.read_text(encoding="utf-8")
    for run in "ab":
        assert f"{run}: amber2: heads on a frozen tower, not fine-tuned &lt;b&gt;</bdi>" in page
        assert f"<bdi>{run}: amber2 vacuity</bdi>" in page
    assert page.index("not fine-tuned") > page.index('id="c1-table-systems-classification"')
    text = (tmp_path / "out" / "tables" / "systems-distribution.md").read_text(encoding="utf-8")
    assert "b: amber2: one layer" in text
    assert "not fine" not in (tmp_path / "out" / "tables" / "heads-distribution.md").read_text(encoding="utf-8")
    assert r"$\rho$ with JS" in (tmp_path / "out" / "tables" / "measures.tex").read_text(encoding="utf-8")


PARTS = ("whole", "ambiguity", "other_metrics", "confusions", "calibration", "modalities", "spread", "grid", "training")


def test_remarks_of_a_single_run_name_the_system_alone(group: Group, run_folder: Path) -> None:
    assert remarks(group.runs) == [f"amber2: {FROZEN}", "amber2: one layer"]
    assert remarks([read_run(run_folder)]) == []
