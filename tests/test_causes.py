"""Whether causes of disagreement are told apart: the figures are those of scipy, scikit-learn and a regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from run_folders import Sketch, write_run

from amber2_core.run_folder import read_predictions, write_predictions
from amber2_report.causes import STATISTICS, Causes, Prediction, causes_of, causes_tables, followed, statistics
from amber2_report.groups import Group, grouped
from amber2_report.page import Options, write_report
from amber2_report.runs import read_run
from amber2_report.significance import Clusters, speaker_clusters

Array = npt.NDArray[np.float64]
DRAWS = 200
PARTS = ("whole", "ambiguity", "other_metrics", "confusions", "calibration", "modalities", "spread", "grid", "training")


def with_truth(folder: Path, conflict: Sequence[Any], clarity: Sequence[Any]) -> Path:
    """A run folder whose utterances.csv tells the causes, one value for each row."""
    path = folder / "utterances.csv"
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    told = [f"{row},{b},{c}" for row, b, c in zip(rows, conflict, clarity, strict=True)]
    path.write_text("\n".join([f"{header},conflict,clarity", *told]) + "\n", encoding="utf-8")
    return folder


def written(folder: Path, **sketch: Any) -> Path:
    """A run with the truth of all but two utterances, of which amber2 measures a vacuity of all but two others."""
    write_run(folder, Sketch(count=90, **sketch))
    random = np.random.default_rng(5)
    conflict, clarity = random.integers(0, 2, 90).astype(object), random.integers(1, 6, 90) / 5
    conflict[[3, 50]] = ""
    found = read_predictions(folder)
    values = np.random.default_rng(1).integers(0, 9, (2, 90)) / 8.0
    values[:, [4, 9]] = np.nan
    write_predictions(folder / "predictions.npz", replace(found, measures={"amber2/vacuity": values}))
    return with_truth(folder, conflict, clarity)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    (found,) = grouped([read_run(written(tmp_path_factory.mktemp("causes") / "run"))])
    return found


def clusters_of(group: Group) -> Clusters:
    return speaker_clusters(group.predictions.fold, group.runs[0].utterances["speaker"].to_numpy(object))


def expected(a: Array, conflict: Array, unclear: Array) -> dict[str, float]:
    """What scipy, scikit-learn and a regression of ranks say; NaN where something does not vary."""
    from scipy.stats import pearsonr, rankdata, spearmanr
    from sklearn.metrics import roc_auc_score

    def rest(x: Array, other: Array) -> Array:
        design = np.column_stack([np.ones(len(x)), rankdata(other)])
        return np.asarray(rankdata(x) - design @ np.linalg.lstsq(design, rankdata(x))[0])

    found = [
        spearmanr(a, conflict).statistic,
        spearmanr(a, unclear).statistic,
        pearsonr(rest(a, unclear), rest(conflict, unclear)).statistic,
        pearsonr(rest(a, conflict), rest(unclear, conflict)).statistic,
        roc_auc_score(conflict, a),
    ]
    return dict(zip(STATISTICS, map(float, found), strict=True))


# --- the figures ---

UTTERANCE = st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 3), st.integers(0, 3))


@given(st.lists(UTTERANCE, min_size=4, max_size=25))
def test_correlations_and_auroc_of_repeated_utterances_are_those_of_scipy_and_scikit_learn(
    drawn: list[tuple[int, int, int, int]],
) -> None:
    from scipy.stats import rankdata

    *columns, times = np.array(drawn, np.float64).T
    a, b, c = (np.repeat(column, times.astype(int)) for column in columns)
    assume(min(len(set(some)) for some in (a, b, c)) > 1)
    # none tells all of another, as two of the same ranks do
    assume(all(abs(np.corrcoef(rankdata(x), rankdata(y))[0, 1]) < 1 - 1e-9 for x, y in ((a, b), (a, c), (b, c))))
    found = statistics(columns[0], columns[1], columns[2], np.stack([times, 2 * times]))
    for name, value in expected(a, b, c).items():
        assert found[name] == pytest.approx([value, value], abs=1e-6)  # all utterances twice are the same figures


def test_what_does_not_vary_follows_nothing() -> None:
    ones, b, c = np.ones(4), np.array([0.0, 1, 0, 1]), np.array([1.0, 2, 2, 3])
    found = statistics(ones, b, c, np.ones((1, 4)))
    assert {name for name, value in found.items() if np.isnan(value[0])} == {*STATISTICS} - {"auroc"}
    assert found["auroc"] == 0.5
    assert np.isnan(statistics(c, np.zeros(4), c, np.ones((1, 4)))["auroc"][0])


def test_a_prediction_made_of_one_cause_follows_it_and_not_the_other() -> None:
    random = np.random.default_rng(2)
    conflict, clarity = random.integers(0, 2, 4000).astype(float), random.uniform(size=4000)
    both = conflict - clarity + 0.1 * random.normal(size=4000)
    fold, speaker = np.arange(4000) % 2, np.array([f"s{k}" for k in np.arange(4000) % 10], object)
    causes, clusters = Causes(conflict, -clarity), speaker_clusters(fold, speaker)
    for values, own, other in (
        (conflict + random.normal(size=4000), "partial_conflict", "partial_unclear"),
        (random.normal(size=4000) - clarity, "partial_unclear", "partial_conflict"),
    ):
        row = followed(Prediction("s", "w", values), causes, clusters, draws=500, seed=0).row(STATISTICS)
        assert row[f"{own}_interval_low"] > 0.2
        assert row[f"{other}_interval_low"] < 0 < row[f"{other}_interval_high"]
    # a third thing that follows both hides each from the other: partial correlations are the larger ones
    row = followed(Prediction("s", "w", both), causes, clusters, draws=500, seed=0).row(STATISTICS)
    assert row["partial_conflict"] > row["rho_conflict"] + 0.1
    assert row["partial_unclear"] > row["rho_unclear"] + 0.1


# --- the table ---


def test_every_figure_is_the_mean_over_folds_of_what_the_oracles_say_of_the_ensemble_over_seeds(group: Group) -> None:
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import entropy

    (table, _) = causes_tables(group, clusters_of(group), draws=DRAWS)
    p, told = group.predictions, group.runs[0].utterances
    probs = {name: values.astype(np.float64).mean(0) for name, values in p.probs.items()}
    values = {("raters", "entropy of votes"): entropy(p.target, base=2, axis=1)}
    for system in ("amber2", "cb-ce"):
        values[system, "entropy of fusion"] = entropy(probs[f"{system}/fusion"], base=2, axis=1)
        js = jensenshannon(probs[f"{system}/audio"], probs[f"{system}/text"], base=2, axis=1) ** 2
        values[system, "JS of single heads"] = js
    values["amber2", "vacuity"] = p.measures["amber2/vacuity"].mean(0)
    rows = {(row["system"], row["prediction"]): row for row in table.frame.to_dict("records")}
    assert rows.keys() == values.keys()
    conflict, clarity = (
        np.array([float(x or "nan") for x in told[name].astype(str)]) for name in ("conflict", "clarity")
    )
    for key, own in values.items():
        there = np.isfinite(own) & np.isfinite(conflict)
        assert rows[key]["n"] == there.sum() == (86 if "vacuity" in key else 88)
        folds = [np.flatnonzero((p.fold == number) & there) for number in (1, 2, 3)]
        of_folds = [expected(own[some].round(9), conflict[some], -clarity[some]) for some in folds]
        for name in STATISTICS:
            assert rows[key][name] == pytest.approx(np.mean([some[name] for some in of_folds]), abs=1e-6)
            assert rows[key][f"{name}_interval_low"] < rows[key][name] < rows[key][f"{name}_interval_high"]


def test_an_interval_is_that_of_speakers_drawn_and_scored_one_by_one(group: Group) -> None:
    from amber2_report.significance import drawn_scores, interval

    clusters, causes = clusters_of(group), causes_of(group)
    assert causes is not None
    values = np.random.default_rng(3).normal(size=90)
    row = followed(Prediction("s", "w", values), causes, clusters, draws=40, seed=7).row(["auroc"])
    clusters = clusters.of(causes.known)
    counts = drawn_scores([np.eye(size) for size in clusters.sizes], lambda drawn: drawn, draws=40, seed=7)
    whole = np.zeros(40)
    for rows, numbers, times in zip(clusters.rows, clusters.numbers, counts, strict=True):
        mean = expected(values[rows], causes.conflict[rows], causes.unclear[rows])["auroc"]
        for draw in range(40):
            again = np.concatenate([np.repeat(rows[numbers == s], int(k)) for s, k in enumerate(times[draw])])
            own = expected(values[again], causes.conflict[again], causes.unclear[again])["auroc"]
            whole[draw] += (mean + (own - mean) * np.sqrt(3 / 2)) / 3  # three speakers in each of three folds
    low, high, _ = interval(row["auroc"], whole, 6)
    assert (row["auroc_interval_low"], row["auroc_interval_high"]) == pytest.approx((low, high), abs=1e-9)


def test_differences_are_those_of_the_table_against_the_first_system(group: Group) -> None:
    table, differences = causes_tables(group, clusters_of(group), draws=DRAWS)
    rows = {(row["system"], row["prediction"]): row for row in table.frame.to_dict("records")}
    found = differences.frame.to_dict("records")
    assert [(row["comparison"], row["prediction"]) for row in found] == [
        ("cb-ce − amber2", "entropy of fusion"),
        ("cb-ce − amber2", "JS of single heads"),
    ]
    for row in found:
        for name in ("partial_conflict", "partial_unclear", "auroc"):
            ours, theirs = (rows[system, row["prediction"]][name] for system in ("amber2", "cb-ce"))
            assert row[name] == pytest.approx(theirs - ours)
            assert row[f"{name}_interval_low"] < row[name] < row[f"{name}_interval_high"]


def test_a_fold_without_conflicts_has_no_part_in_what_is_told_of_conflict(group: Group) -> None:
    causes, fold = causes_of(group), group.predictions.fold
    assert causes is not None
    values = np.random.default_rng(4).normal(size=90)
    calm = replace(causes, conflict=np.where(fold == 2, 0 * causes.conflict, causes.conflict))
    one = followed(Prediction("s", "w", values), calm, clusters_of(group), draws=50, seed=0)
    folds = [np.flatnonzero((fold == number) & causes.known) for number in (1, 3)]
    aurocs = [expected(values[f], calm.conflict[f], calm.unclear[f])["auroc"] for f in folds]
    assert one.observed["auroc"] == pytest.approx(np.mean(aurocs))
    assert (one.freedom["auroc"], one.freedom["rho_unclear"]) == (4, 6)


@pytest.mark.parametrize(
    ("conflict", "clarity"),
    [
        ([0] * 60, [0.5, 1.0] * 30),
        ([0, 1] * 30, [1.0] * 60),
        (["no", "yes"] * 30, [0.5, 1.0] * 30),
        ([1, 3] * 30, [0.5, 1.0] * 30),
        ([""] * 60, [""] * 60),
    ],
    ids=["no conflict", "all clear", "words", "no truth of conflicts", "unknown"],
)
def test_columns_of_that_name_that_tell_no_two_causes_make_no_table(
    conflict: list[Any], clarity: list[Any], tmp_path: Path
) -> None:
    folder = with_truth(write_run(tmp_path / "run"), conflict, clarity)
    (group,) = grouped([read_run(folder)])
    assert causes_tables(group, clusters_of(group), draws=10) == []


def test_the_page_has_the_section_where_a_corpus_gives_the_truth_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amber2_report.page.figures", lambda *_: {part: [] for part in PARTS})
    pages = [
        write_report([folder], tmp_path / f"report-{folder.name}", Options(draws=50)).page.read_text(encoding="utf-8")
        for folder in (written(tmp_path / "told"), write_run(tmp_path / "untold"))
    ]
    assert [page.count("Causes of disagreement") for page in pages] == [1, 0]
    assert [page.count('href="#c1-causes"') for page in pages] == [1, 0]
    assert "<bdi>vacuity</bdi>" in pages[0]
    tables = tmp_path / "report-told" / "tables"
    for name in ("causes", "causes-differences"):
        assert {path.suffix for path in tables.glob(f"{name}.*")} == {".csv", ".md", ".tex"}
    assert r"partial $\rho$ with conflict" in (tables / "causes.tex").read_text(encoding="utf-8")
    assert not list((tmp_path / "report-untold" / "tables").glob("causes*"))
