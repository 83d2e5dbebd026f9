"""Ensembles: the mean of every member's distributions, scored and tested as any other entry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import reference
from click.testing import CliRunner
from run_folders import Sketch, write_run

from amber2_core.errors import RunFolderError
from amber2_core.metrics import METRICS
from amber2_report.cli import report_runs
from amber2_report.ensembles import with_ensemble
from amber2_report.groups import Entry, Group, grouped
from amber2_report.runs import read_run
from amber2_report.significance import compare, headlines, speaker_clusters
from amber2_report.tables import all_tables


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of one test set, of two and of three seeds."""
    place = tmp_path_factory.mktemp("runs")
    return [write_run(place / name, Sketch(seed=k, seeds=2 + k)) for k, name in enumerate("ab")]


def ensemble_of(group: Group, *systems: str) -> Entry:
    (entry,) = (entry for entry in with_ensemble([group], systems).entries if entry.members)
    return entry


def groups_of(*folders: Path, head: str | None = None) -> list[Group]:
    return grouped([read_run(folder) for folder in folders], head)


@pytest.mark.parametrize("head", ["fusion", "audio"])
def test_an_ensemble_is_the_mean_over_every_seed_of_every_system_of_every_run(runs: list[Path], head: str) -> None:
    (group,) = groups_of(*runs, head=None if head == "fusion" else head)
    entry = ensemble_of(group)
    models = [
        probs for run in group.runs for system in ("amber2", "cb-ce") for probs in run.arrays.probs[f"{system}/{head}"]
    ]
    assert len(models) == 2 * (2 + 3)
    assert [one.label for one in entry.members] == [
        f"{run}: {system} {head}" for run in "ab" for system in ("amber2", "cb-ce")
    ]
    for k in range(60):
        mean = [sum(float(probs[k, c]) for probs in models) / len(models) for c in range(4)]
        np.testing.assert_allclose(entry.probs[0, k], mean, atol=1e-6)


def test_of_one_system_it_is_the_ensemble_of_its_seeds(runs: list[Path]) -> None:
    (group,) = groups_of(runs[1])
    entry = ensemble_of(group, "cb-ce")
    assert entry.label == "ensemble of 3, fusion"
    np.testing.assert_allclose(entry.probs[0], group.predictions.probs["cb-ce/fusion"].mean(0), atol=1e-6)


def test_an_ensemble_has_every_metric_of_every_fold(runs: list[Path]) -> None:
    (group,) = groups_of(*runs)
    entry, p = ensemble_of(group), group.predictions
    assert entry.tested["fold"].tolist() == [1, 2, 3]
    for row in entry.tested.to_dict("records"):
        own = p.fold == row["fold"]
        assert row["n"] == own.sum()
        js = [reference.js(y, q) for y, q in zip(p.target[own].tolist(), entry.probs[0, own].tolist(), strict=True)]
        assert row["js"] == pytest.approx(np.mean(js), abs=1e-7)
        for name, metric in METRICS.items():
            assert row[name] == pytest.approx(float(metric(p.target[own], entry.probs[0, own])), abs=1e-9)


def test_the_mean_of_distributions_is_never_further_off_than_its_members_are_on_average(runs: list[Path]) -> None:
    # JS is convex in the prediction
    (group,) = groups_of(*runs)
    entry = ensemble_of(group)
    models = np.concatenate([np.full(len(one.probs), one.per_seed("js").mean()) for one in entry.members])
    assert entry.per_seed("js").mean() < models.mean()


def test_where_a_member_predicts_nothing_the_ensemble_does_not(tmp_path: Path) -> None:
    lacking = Sketch(lacking={"fusion": [3, 20]}, seed=1)
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", lacking)]
    (group,) = groups_of(*folders)
    entry = ensemble_of(group)
    assert np.flatnonzero(~entry.there).tolist() == [3, 20]
    assert int(entry.tested["n"].sum()) == 58


def test_an_ensemble_has_rows_in_the_tables_that_tell_its_members(runs: list[Path]) -> None:
    import pandas as pd

    group = with_ensemble(groups_of(*runs))
    tables = all_tables(group, pd.DataFrame(), "")
    for name in ("systems-distribution", "heads-classification", "all-metrics", "subsets", "ambiguity"):
        assert any("ensemble of 10, fusion" in label for label in tables[name].frame["entry"]), name
    (row,) = tables["all-metrics"].frame.query("entry == 'ensemble of 10, fusion'").to_dict("records")
    assert row["js"] == pytest.approx(group.mains[-1].tested["js"].mean())
    assert np.isnan(row["js_sd"])
    notes = " ".join(tables["systems-distribution"].notes)
    assert "Mean ± sd over 2 or 3 seeds" in notes
    assert (
        "ensemble of 10, fusion is the mean of the distributions of a: amber2 fusion (2 seeds), a: cb-ce fusion "
        "(2 seeds), b: amber2 fusion (3 seeds), b: cb-ce fusion (3 seeds): every model counts alike"
    ) in notes


def test_an_ensemble_is_tested_against_every_single_system(runs: list[Path]) -> None:
    (plain,) = groups_of(*runs)
    group = with_ensemble([plain])
    clusters = speaker_clusters(group.predictions.fold, group.runs[0].utterances["speaker"].to_numpy(object))
    found, before = (compare(some, clusters, draws=300) for some in (group, plain))
    own = found[found["first"] == "ensemble of 10, fusion"]
    assert list(dict.fromkeys(own["second"])) == [entry.label for entry in plain.mains]
    rest = found[found["first"] != "ensemble of 10, fusion"]
    columns = ["first", "second", "metric", "difference", "low", "high", "p"]
    assert rest[columns].to_numpy().tolist() == before[columns].to_numpy().tolist()
    assert (rest["p_holm"].to_numpy() >= before["p_holm"].to_numpy()).all()  # of more comparisons
    js = {entry.label: entry.per_seed("js").mean() for entry in group.mains}
    for row in own[own["metric"] == "js"].itertuples():
        assert row.difference == pytest.approx(js["ensemble of 10, fusion"] - js[str(row.second)], abs=1e-9)
    *_, line = headlines(found, set(js), "a, b", "speakers", {"ensemble of 10, fusion"})
    best = min(plain.mains, key=lambda entry: js[entry.label]).label
    assert line.startswith(f"ensemble of 10, fusion against {best}, the best single one by its JS on test, in a, b: ")
    assert "over the 9 comparisons of each metric" in line


def test_runs_of_several_test_sets_have_no_ensemble(runs: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", Sketch(votes_seed=1))
    with pytest.raises(RunFolderError, match=r"^No ensemble: beside a, other has other targets for \d+ utterances"):
        with_ensemble(groups_of(runs[0], other))


@pytest.mark.parametrize(
    ("systems", "head", "line"),
    [
        (
            ["hubert"],
            None,
            "Bad system 'hubert', expected one of ['amber2', 'cb-ce'] in --ensemble, which stands after",
        ),
        ([], "video", "No ensemble: amber2, cb-ce has no head video; name another one with --head"),
    ],
)
def test_what_there_is_no_ensemble_of_is_one_line(
    runs: list[Path], systems: list[str], head: str | None, line: str
) -> None:
    (group,) = groups_of(runs[0])
    with pytest.raises(RunFolderError) as caught:
        with_ensemble([Group(group.runs, group.entries, head)], systems)
    assert str(caught.value).startswith(line)


def test_one_model_is_no_ensemble(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"^No ensemble: amber2 fusion has one seed, and there is no"):
        with_ensemble(groups_of(write_run(tmp_path / "run", Sketch(seeds=1))), ["amber2"])


@pytest.mark.parametrize(("words", "count"), [(["--ensemble"], 10), (["--ensemble=cb-ce"], 5)])
def test_the_command_takes_an_ensemble_of_all_systems_or_of_some(
    runs: list[Path], words: list[str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amber2_report.page.DRAWS", 100)
    arguments = [*map(str, runs), "--output", str(tmp_path / "out"), "--json", *words]
    done = CliRunner().invoke(report_runs, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    compared = json.loads(done.stdout.splitlines()[-1])["comparisons"]
    assert f"ensemble of {count}, fusion" in {one["first"] for one in compared}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"ensemble of {count}, fusion is the mean of the distributions of" in page
    assert (tmp_path / "out" / "tables" / f"confusion-ensemble-of-{count}-fusion.csv").is_file()
