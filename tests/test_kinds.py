"""Systems that predict which classes are present, beside those that predict distributions: never in one table."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from synthetic_data import write_layered_cache, write_small_cache

from amber2_core.errors import RunFolderError
from amber2_core.metrics import METRICS, MULTI_LABEL_METRICS
from amber2_core.run_folder import (
    FORMAT_VERSION,
    load,
    read_predictions,
    read_results,
    read_settings,
    read_summary,
    write_predictions,
)
from amber2_report.cli import report_runs
from amber2_report.runs import read_run
from amber2_train.cli import train_heads

RATES, PRIOR = (f"{Path(__file__).with_name('my_systems.py')}:{name}" for name in ("Rates", "Prior"))


def trained(cache: Path, output: Path, *words: str) -> Result:
    return CliRunner().invoke(train_heads, ["--cache", str(cache), "--output", str(output), *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both kinds in one folder; of presence there is a grid to choose from."""
    folder = tmp_path_factory.mktemp("kinds")
    words = ["--system", f"{RATES},{PRIOR}", "--nearest", "1,3,9", "--seeds", "2"]
    result = trained(write_small_cache(folder, count=90), folder / "run", *words)
    assert result.exit_code == 0, result.output
    (folder / "shown.txt").write_text(result.stdout, encoding="utf-8")
    return folder / "run"


def test_every_row_has_the_metrics_of_its_kind_alone(run: Path) -> None:
    settings, rows = read_settings(run), read_results(run)
    assert settings["kinds"] == {"rates": "multi-label", "prior": "distribution"}
    assert settings["metrics"] == [*METRICS, *MULTI_LABEL_METRICS]
    assert settings["format_version"] == FORMAT_VERSION
    for row in rows:
        own, other = (METRICS, MULTI_LABEL_METRICS) if row["system"] == "prior" else (MULTI_LABEL_METRICS, METRICS)
        assert all(math.isfinite(row[name]) for name in own), row
        assert all(row[name] is None for name in other), row
    for system, heads in read_summary(run)["table"].items():
        assert all([*scores] == [*(METRICS if system == "prior" else MULTI_LABEL_METRICS)] for scores in heads.values())
    assert {line.partition(",")[0] for line in (run / "experts.csv").read_text("utf-8").splitlines()[1:]} == {"prior"}


def test_scores_of_presence_are_those_of_scikit_learn_at_the_stored_threshold(run: Path) -> None:
    from sklearn.metrics import f1_score, hamming_loss, jaccard_score, precision_score, recall_score

    p = read_predictions(run)
    above, probs = p.thresholds["rates"], p.probs["rates/fusion"]
    assert above.shape == (2, 3)
    rows = [row for row in read_results(run) if (row["system"], row["split"], row["selected"]) == ("rates", "test", 1)]
    assert len(rows) == 2 * 3
    for row in rows:
        own = p.folds[row["fold"]]
        y, found = p.target[own] > 0, probs[row["seed"], own] > above[row["seed"], row["fold"] - 1]
        assert row["ml_accuracy"] == pytest.approx(jaccard_score(y, found, average="samples", zero_division=0))
        assert row["ml_micro_f1"] == pytest.approx(f1_score(y, found, average="micro", zero_division=0))
        assert row["ml_macro_f1"] == pytest.approx(f1_score(y, found, average="macro", zero_division=0))
        assert row["ml_precision"] == pytest.approx(precision_score(y, found, average="micro", zero_division=0))
        assert row["ml_recall"] == pytest.approx(recall_score(y, found, average="micro", zero_division=0))
        assert row["ml_hamming"] == pytest.approx(hamming_loss(y, found))


def test_the_setting_of_the_highest_macro_f1_on_dev_is_chosen(run: Path) -> None:
    dev: dict[int, dict[int, list[float]]] = {}
    chosen: dict[int, set[int]] = {}
    for row in read_results(run):
        if row["system"] == "rates" and row["split"] == "dev":
            dev.setdefault(row["fold"], {}).setdefault(row["nearest"], []).append(row["ml_macro_f1"])
            if row["selected"]:
                chosen.setdefault(row["fold"], set()).add(row["nearest"])
    assert len({np.mean(scores) for scores in dev[1].values()}) == 3
    assert chosen == {fold: {max(own, key=lambda k: np.mean(own[k]))} for fold, own in dev.items()}


def test_the_command_prints_a_table_for_each_kind(run: Path) -> None:
    lines = (run.parent / "shown.txt").read_text(encoding="utf-8").splitlines()
    (first,) = [k for k, line in enumerate(lines) if line.startswith("test, mean")]
    (second,) = [k for k, line in enumerate(lines) if line.startswith("which classes are present: test, mean")]
    assert lines[first + 1].split()[:3] == ["system", "head", "js"]
    assert [line.split()[0] for line in lines[first + 2 : second]] == ["prior"] * 3
    assert lines[second + 1].split()[:3] == ["system", "head", "ml_accuracy"]
    assert lines[second + 2].split()[:2] == ["rates", "fusion"]


def test_a_report_shows_presence_in_a_table_of_its_own_and_nowhere_else(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(report_runs, [str(run), "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    tables = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "out/tables").glob("*.csv")}
    assert {name for name, text in tables.items() if "rates" in text} == {"multi-label"}
    assert "prior" not in tables["multi-label"]
    header, row = tables["multi-label"].splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    stored = read_summary(run)["table"]["rates"]["fusion"]
    assert all(float(cells[name]) == pytest.approx(stored[name]["mean"]) for name in MULTI_LABEL_METRICS)
    assert 'id="c1-table-multi-label"' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_report_of_presence_alone_has_that_table_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert trained(write_small_cache(tmp_path), folder, "--system", RATES, "--seeds", "1").exit_code == 0
    assert not {*METRICS} & set((folder / "results.csv").read_text(encoding="utf-8").partition("\n")[0].split(","))
    result = CliRunner().invoke(report_runs, [str(folder), "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert {path.stem for path in (tmp_path / "out" / "tables").iterdir()} == {"multi-label"}
    result = CliRunner().invoke(report_runs, [str(folder), "--output", str(tmp_path / "two"), "--ensemble", ""])
    assert "No ensemble: run predicts presence, and no distributions to average" in result.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'href="#c1-presence"' in page
    assert 'href="#c1-significance"' not in page


def test_scores_are_held_against_predictions_and_thresholds(run: Path, tmp_path: Path) -> None:
    read_run(run)
    folder = copytree(run, tmp_path / "run")
    predictions = read_predictions(folder)
    moved = {"rates": 1 - predictions.thresholds["rates"] / 2}
    write_predictions(folder / "predictions.npz", replace(predictions, thresholds=moved))
    with pytest.raises(RunFolderError, match=r"was changed by hand, or is of another run: ml_.* of rates/fusion"):
        read_run(folder)
    write_predictions(folder / "predictions.npz", replace(predictions, thresholds={}))
    with pytest.raises(RunFolderError, match="has no thresholds of rates: train again"):
        read_run(folder)


def test_a_younger_metric_of_presence_is_filled_in_where_a_folder_lacks_it(run: Path, tmp_path: Path) -> None:
    import pandas as pd

    folder = copytree(run, tmp_path / "run")
    table = pd.read_csv(folder / "results.csv")
    table.drop(columns=["ml_hamming", "bc"]).to_csv(folder / "results.csv", index=False)
    again, whole = load(folder).tested, load(run).tested
    for name in ("ml_hamming", "bc"):
        np.testing.assert_allclose(again[name], whole[name])


def test_a_folder_of_distributions_alone_is_one_that_earlier_versions_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert trained(write_small_cache(tmp_path), folder, "--system", PRIOR, "--seeds", "1").exit_code == 0
    assert read_settings(folder)["format_version"] == 2
    assert not {*MULTI_LABEL_METRICS} & read_results(folder)[0].keys()
    assert not read_predictions(folder).thresholds


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Unsure", "unsure predicts presence: each of its runs needs a threshold in [0, 1], chosen on dev"),
        ("Sums", "sums predicts by its head 'fusion' what is no presence: each is in [0, 1]"),
        ("Undecided", "Bad metric that decides for undecided 'js', expected one of ['ml_accuracy', "),
    ],
)
def test_what_is_no_presence_is_refused_in_one_line(tmp_path: Path, name: str, line: str) -> None:
    words = ["--system", RATES.replace("Rates", name), "--seeds", "1", "--quiet"]
    result = trained(write_small_cache(tmp_path), tmp_path / "run", *words)
    assert result.exit_code == 1
    assert line in result.output
    assert not (tmp_path / "run").exists()


def test_dev_never_chooses_between_kinds(tmp_path: Path) -> None:
    words = ["--system", "lddu", "--lddu-mode", "distribution,multi-label"]
    result = trained(write_layered_cache(tmp_path), tmp_path / "run", *words)
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "lddu is to predict both distributions and presence, and dev cannot choose between them" in result.output
