"""Predictions of the cache as a system: found by their emotions, scored where they are, never replaced where not."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from synthetic_data import cache_of

from amber2_core.cache import Features, write_cache
from amber2_core.metrics import evaluate
from amber2_core.run_folder import read_predictions
from amber2_core.tables import texts
from amber2_report.cli import report_runs
from amber2_train.cli import train_heads
from amber2_train.systems.system import system_of

COUNT = 48
THEIRS = ("Sadness", "anger", "fear", "happy")  # the run's are neutral, happy, angry, sad


def shares(count: int = COUNT) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    drawn = np.random.default_rng(5).dirichlet(np.ones(4), count)
    drawn[1] = [0, 0, 1, 0]  # all of it fear
    return drawn.astype(np.float32)


def cache_with(folder: Path, rows: Collection[int], emotions: Sequence[str] = THEIRS) -> Path:
    """A cache with predictions for some rows."""
    cache = cache_of(COUNT)
    values = shares()
    values[[row for row in range(COUNT) if row not in rows]] = np.nan
    inputs = texts(["imported" if row in rows else "" for row in range(COUNT)])
    recipe = {"modality": "prediction", "imported": True, "emotions": [*emotions]}
    features = Features("prediction", "gpt", values, inputs, recipe)
    write_cache(folder / "c.h5", replace(cache, features=(*cache.features, features)))
    return folder / "c.h5"


def train(cache: Path, output: Path, system: str) -> Result:
    fit = ["--seeds", "2", "--epochs", "2", "--hidden", "4"]
    return CliRunner().invoke(train_heads, ["--cache", str(cache), "--output", str(output), "--system", system, *fit])


def rows_of_test(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "test" and row["system"] == "imported-gpt"]


def test_predictions_stand_beside_trained_systems_and_count_where_they_are(tmp_path: Path) -> None:
    rows = {row for row in range(COUNT) if row % 5}
    done = train(cache_with(tmp_path, rows), tmp_path / "run", "imported:gpt,cb-ce")
    assert done.exit_code == 0, done.output
    assert "warning: prediction/gpt: 10 of these have none" in done.stderr
    held = read_predictions(tmp_path / "run")
    found = held.probs["imported-gpt/fusion"]  # (seeds, N, C)
    np.testing.assert_array_equal(found[0], found[1])
    place = {f"u{row:03}": row for row in range(COUNT)}
    theirs = shares()
    for id_, row in zip(held.id, found[0], strict=True):
        sad, angry, _, happy = theirs[place[str(id_)]].tolist()
        if place[str(id_)] in rows - {1}:
            expected = np.array([0, happy, angry, sad]) / (happy + angry + sad)
            np.testing.assert_allclose(row, expected, atol=1e-6)
        else:
            assert np.isnan(row).all()
    for row in rows_of_test(tmp_path / "run"):
        own = (held.fold == int(row["fold"])) & ~np.isnan(found[0]).any(1)
        assert int(row["n"]) == own.sum() < 16
        expected = evaluate(held.target[own], found[0][own])
        assert float(row["js"]) == pytest.approx(float(expected["js"]), abs=1e-6)
    report = CliRunner().invoke(report_runs, [str(tmp_path / "run"), "--output", str(tmp_path / "report")])
    assert report.exit_code == 0, report.output
    page = (tmp_path / "report" / "tables" / "systems-distribution.md").read_text()
    assert f"imported-gpt fusion {len(rows - {1})} of 48" in page


def test_predictions_of_one_test_fold_alone_are_scored_there(tmp_path: Path) -> None:
    rows = {row for row in range(COUNT) if row % 3 == 0}  # the first session
    done = train(cache_with(tmp_path, rows), tmp_path / "run", "imported:gpt")
    assert done.exit_code == 0, done.output
    counts = {row["fold"]: int(row["n"]) for row in rows_of_test(tmp_path / "run")}
    assert counts == {"1": 16, "2": 0, "3": 0}
    assert "nan" not in done.stdout
    report = CliRunner().invoke(report_runs, [str(tmp_path / "run"), "--output", str(tmp_path / "report")])
    assert report.exit_code == 0, report.output


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    cache = cache_with(tmp_path, range(COUNT), ("calm", "tense", "bored", "glad"))
    for system, line in (
        ("imported:gpt", "The predictions 'gpt' are of none of ['neutral', 'happy', 'angry', 'sad']"),
        ("imported:other", "other"),
        ("imported:no name", "is to be a word"),
    ):
        done = train(cache, tmp_path / "run", system)
        assert (done.exit_code, done.stderr.count("error: ")) == (1, 1), done.output
        assert line in done.stderr
    assert not (tmp_path / "run").exists()


def test_each_predictions_are_a_system_of_their_own() -> None:
    assert [system_of(f"imported:{name}").name for name in ("gpt", "qwen2.5")] == ["imported-gpt", "imported-qwen2.5"]
