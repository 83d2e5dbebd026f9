"""The run folder: written whole or not at all, read back as written, and every number of it can be computed again."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import result_row

from amber2_core.errors import RunFolderError
from amber2_core.run_folder import (
    Predictions,
    load,
    new_run_folder,
    read_curves,
    read_predictions,
    read_results,
    read_settings,
    read_summary,
    write_curves,
    write_json,
    write_predictions,
    write_results,
)
from amber2_core.tables import texts


def test_a_folder_takes_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "mine"
    with new_run_folder(path) as folder:
        (folder / "heads").mkdir()
        (folder / "heads" / "a").write_text("a")
        assert not path.exists()
    assert (path / "heads" / "a").read_text() == "a"
    assert list(path.parent.iterdir()) == [path]
    assert oct(path.stat().st_mode & 0o777) == "0o755"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, RunFolderError])
def test_nothing_is_left_of_a_run_that_failed(tmp_path: Path, failure: type[BaseException]) -> None:
    def fail() -> None:
        with new_run_folder(tmp_path / "mine") as folder:
            (folder / "half").touch()
            raise failure

    with pytest.raises(failure):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_stands_there_already_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.mkdir()
    with pytest.raises(RunFolderError, match=r"mine exists already: name another folder with --output"):
        new_run_folder(path).__enter__()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_place_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(RunFolderError, match="choose another place with --output"):
        new_run_folder(tmp_path / "mine").__enter__()


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"Cannot write .*file/mine: .* choose another place with --output"):
        new_run_folder(tmp_path / "file" / "mine").__enter__()


def test_results_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        result_row(1, 0, js=1 / 3, bc=1e-17),
        result_row(2, 1, accuracy_untied=math.nan),
        result_row(1, 2, r2=math.pi),
    ]
    write_results(tmp_path / "results.csv", rows)
    back = read_results(tmp_path)
    assert [list(some) for some in back] == [list(some) for some in rows]
    for found, written in zip(back, rows, strict=True):
        for name, value in written.items():
            nan = isinstance(value, float) and math.isnan(value)
            assert math.isnan(found[name]) if nan else found[name] == value
            assert type(found[name]) is type(value)


def test_curves_are_read_back_as_they_were_written_and_older_folders_have_none(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == []
    rows = [
        {"system": "amber2", "head": "fusion", "fold": 1, "seed": 0, "epoch": epoch, "dev_js": 1 / epoch}
        for epoch in (1, 2, 3)
    ]
    write_curves(tmp_path / "curves.csv", rows)
    assert read_curves(tmp_path) == rows
    (tmp_path / "curves.csv").write_text("system,head,fold,seed,epoch\n")
    with pytest.raises(RunFolderError, match=r"curves.csv has no column 'dev_js': it was not written by train-heads"):
        read_curves(tmp_path)


def test_predictions_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    written = Predictions(
        id=texts(["a", "ü/2"]),
        fold=np.array([1, 2]),
        target=random.uniform(size=(2, 3)).astype(np.float32),
        emotions=("neutral", "happy", "sad"),
        probs={"amber2/fusion": random.uniform(size=(5, 2, 3)).astype(np.float32)},
    )
    write_predictions(tmp_path / "predictions.npz", written)
    back = read_predictions(tmp_path)
    assert back.id.tolist() == ["a", "ü/2"]
    assert back.emotions == written.emotions
    np.testing.assert_array_equal(back.fold, written.fold)
    np.testing.assert_array_equal(back.target, written.target)
    assert list(back.probs) == ["amber2/fusion"]
    np.testing.assert_array_equal(back.probs["amber2/fusion"], written.probs["amber2/fusion"])


def test_a_results_file_that_was_cut_off_names_the_line(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", [result_row(1, 0), result_row(1, 1)])
    whole = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(whole[: whole.rindex(",")])
    with pytest.raises(RunFolderError, match=r"results.csv, line 3: expected 22 columns, got 21: train again"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("reader", "name"),
    [
        (read_settings, "settings.json"),
        (read_summary, "summary.json"),
        (read_results, "results.csv"),
        (read_predictions, "predictions.npz"),
    ],
)
def test_what_is_no_run_folder_or_damaged_is_one_line(tmp_path: Path, reader: Any, name: str) -> None:
    with pytest.raises(RunFolderError, match=f"is not a run folder: it has no {name}"):
        reader(tmp_path)
    (tmp_path / name).write_bytes(b"no,such\n\xff\xfe\x00")
    with pytest.raises(RunFolderError, match=name) as error:
        reader(tmp_path)
    assert "\n" not in str(error.value)


def test_json_holds_every_letter_and_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "settings.json", {"corpus": "ü", "values": [1, 2.5, None]})
    assert read_settings(tmp_path) == {"corpus": "ü", "values": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "settings.json", {"js": math.nan})


def test_a_run_is_loaded_as_columns_of_equal_length(tmp_path: Path) -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 4)).astype(np.float32)
    predictions = Predictions(
        texts(["a", "b", "c", "d"]),
        np.array([1, 1, 2, 2]),
        probs[0],
        ("up", "down", "2 sides"),
        {"amber2/audio": probs},
    )
    write_predictions(tmp_path / "predictions.npz", predictions)
    write_results(tmp_path / "results.csv", [result_row(fold, seed, js=math.nan) for fold in (1, 2) for seed in (0, 7)])
    write_json(tmp_path / "settings.json", {"corpus": "x"})
    run = load(tmp_path)
    assert run.settings == {"corpus": "x"}
    assert run.experts == {}
    assert run.curves == {}
    for table, rows in ((run.results, 4), (run.utterances, 4), (run.predictions, 8)):
        assert {len(column) for column in table.values()} == {rows}
    assert run.results["seed"].tolist() == [0, 7, 0, 7]
    assert run.results["system"].tolist() == ["amber2"] * 4
    assert np.isnan(run.results["js"]).all()
    assert np.isnan(run.results["lambda_rai"]).all()
    assert run.predictions["seed"].tolist() == [0] * 4 + [7] * 4
    assert run.predictions["id"].tolist() == ["a", "b", "c", "d"] * 2
    np.testing.assert_array_equal(run.predictions["predicted_2 sides"], probs[:, :, 2].ravel())
    np.testing.assert_array_equal(run.utterances["rated_up"], probs[0, :, 0])


def test_what_a_head_does_not_predict_has_no_row_in_the_loaded_predictions(tmp_path: Path) -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(2), size=(2, 3)).astype(np.float32)
    some = probs.copy()
    some[:, 1] = np.nan
    heads = {"amber2/audio": some, "amber2/fusion": probs}
    predictions = Predictions(texts(["a", "b", "c"]), np.array([1, 1, 2]), probs[0], ("up", "down"), heads)
    write_predictions(tmp_path / "predictions.npz", predictions)
    write_results(tmp_path / "results.csv", [result_row(1, seed) for seed in (0, 1)])
    write_json(tmp_path / "settings.json", {})
    table = load(tmp_path).predictions
    assert table["id"].tolist() == ["a", "c"] * 2 + ["a", "b", "c"] * 2
    assert table["head"].tolist() == ["audio"] * 4 + ["fusion"] * 6
    assert {len(column) for column in table.values()} == {10}
    np.testing.assert_array_equal(
        table["predicted_up"], np.concatenate([probs[:, [0, 2], 0].ravel(), probs[..., 0].ravel()])
    )
