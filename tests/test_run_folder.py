"""The run folder: written whole or not at all, read back as written, whatever version wrote it, and summed up."""

from __future__ import annotations

import math
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import AXES, GRID, Sketch, result_row, write_run

from amber2_core.errors import RunFolderError
from amber2_core.metrics import METRICS
from amber2_core.run_folder import (
    EXPERT_COLUMNS,
    FORMAT_VERSION,
    KEY_COLUMNS,
    UTTERANCE_COLUMNS,
    Predictions,
    axes_of,
    load,
    new_run_folder,
    read_curves,
    read_predictions,
    read_results,
    read_settings,
    read_summary,
    read_utterances,
    summarise,
    write_curves,
    write_json,
    write_predictions,
    write_results,
    write_utterances,
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


def test_who_may_read_a_run_is_for_the_umask_to_say(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with new_run_folder(tmp_path / "mine") as folder:
            write_json(folder / "settings.json", {})
    finally:
        os.umask(before)
    modes = [oct(path.stat().st_mode & 0o777) for path in (tmp_path / "mine", tmp_path / "mine" / "settings.json")]
    assert modes == ["0o750", "0o640"]


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
    write_curves(tmp_path / "curves.csv", [])
    assert read_curves(tmp_path) == []
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


def test_measures_are_read_back_beside_the_predictions(tmp_path: Path) -> None:
    probs = np.full((2, 3, 2), 0.5, np.float32)
    written = Predictions(
        texts(["a", "b", "c"]), np.array([1, 1, 2]), probs[0], ("up", "down"),
        {"measure/fusion": probs[:1], "x/audio": probs},
        measures={
            "x/vacuity": np.array([[0.5, np.nan, 1], [0, 1, 2.5]]), "measure/flag": np.array([[True, False, True]]),
        },
    )  # fmt: skip
    write_predictions(tmp_path / "predictions.npz", written)
    back = read_predictions(tmp_path)
    assert list(back.probs) == ["measure/fusion", "x/audio"]
    assert list(back.measures) == ["x/vacuity", "measure/flag"]
    np.testing.assert_array_equal(back.measures["x/vacuity"], written.measures["x/vacuity"])
    assert back.measures["measure/flag"].tolist() == [[1.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "values", "line"),
    [
        ("x/vacuity", np.zeros(3), r"measure/x/vacuity is not \(1, 3\) of numbers"),
        ("x/vacuity", np.zeros((2, 3)), r"measure/x/vacuity is not \(1, 3\) of numbers"),
        ("x/vacuity", np.full((1, 3), np.inf), r"measure/x/vacuity is not \(1, 3\) of numbers"),
        ("x/words", np.array([["a", "b", "c"]]), "is damaged"),
        ("y/vacuity", np.zeros((1, 3)), "measure/y/vacuity is of a system without predictions"),
    ],
)
def test_measures_that_do_not_fit_are_one_line(tmp_path: Path, name: str, values: Any, line: str) -> None:
    probs = np.full((1, 3, 2), 0.5, np.float32)
    one = Predictions(
        texts(list("abc")), np.ones(3, int), probs[0], ("up", "down"), {"x/audio": probs}, measures={name: values}
    )
    write_predictions(tmp_path / "predictions.npz", one)
    with pytest.raises(RunFolderError, match=f"{line}.*train again$"):
        read_predictions(tmp_path)


def test_a_results_file_that_was_cut_off_names_the_line(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", [result_row(1, 0), result_row(1, 1)])
    whole, n = (tmp_path / "results.csv").read_text(), len(result_row(1, 0))
    (tmp_path / "results.csv").write_text(whole[: whole.rindex(",")])
    with pytest.raises(RunFolderError, match=f"results.csv, line 3: expected {n} columns, got {n - 1}: train again"):
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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"folds": "speaker"}, 'folds is "speaker", expected an object'),
        ({"folds": {"sizes": 5}}, "folds.sizes is 5, expected an object"),
        ({"features": {"audio": "hubert"}}, 'features.audio is "hubert", expected an object'),
        ({"remarks": ["frozen"]}, r'remarks is \["frozen"\], expected an object'),
        ({"remarks": {"x": "frozen"}}, 'remarks.x is "frozen", expected a list'),
        ({"axes": "kappa"}, 'axes is "kappa", expected a list'),
        ({"corpus": ["iemocap"]}, r'corpus is \["iemocap"\], expected text'),
        ({"format_version": "new"}, 'format_version is "new", expected a whole number from 1'),
        ({"format_version": 0}, "format_version is 0, expected a whole number from 1"),
    ],
)
def test_a_setting_of_another_type_is_named(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    write_json(tmp_path / "settings.json", settings)
    with pytest.raises(RunFolderError, match=f"settings.json: {words}: it was changed by hand, train again$"):
        read_settings(tmp_path)


def test_a_setting_that_is_null_is_as_good_as_none(tmp_path: Path) -> None:
    write_json(tmp_path / "settings.json", {"folds": None, "patience": None, "policy": {"emotions": []}})
    assert read_settings(tmp_path) == {"patience": None, "policy": {"emotions": []}}


def test_json_of_any_depth_is_damaged_at_worst(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"a":' + "[" * 100_000)
    with pytest.raises(RunFolderError, match="is damaged"):
        read_settings(tmp_path)


def test_run_folders_of_this_version_and_of_before_are_read_and_of_later_ones_refused(tmp_path: Path) -> None:
    for version in range(1, FORMAT_VERSION + 1):
        write_json(tmp_path / "settings.json", {"format_version": version})
        assert read_settings(tmp_path) == {"format_version": version}
    write_json(tmp_path / "settings.json", {"format_version": FORMAT_VERSION + 1, "folds": "of another type"})
    with pytest.raises(RunFolderError, match=f"of version {FORMAT_VERSION + 1}, .* up to version {FORMAT_VERSION}: "):
        read_settings(tmp_path)


# --- the tables of pandas ---


def test_a_run_is_loaded_as_tables(tmp_path: Path) -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 4)).astype(np.float32)
    predictions = Predictions(
        texts(["a", "b", "c", "d"]),
        np.array([1, 1, 2, 2]),
        probs[0],
        ("up", "down", "2 sides"),
        {"amber2/audio": probs},
    )
    write_predictions(tmp_path / "predictions.npz", predictions)
    rows = [result_row(fold, seed, head="audio", js=math.nan) for fold in (1, 2) for seed in (0, 7)]
    write_results(tmp_path / "results.csv", rows)
    write_json(tmp_path / "settings.json", {"corpus": "x"})
    run = load(tmp_path)
    assert run.settings == {"corpus": "x"}
    assert len(run.experts) == len(run.curves) == 0
    assert [len(table) for table in (run.results, run.utterances, run.predictions)] == [4, 4, 8]
    assert run.results["seed"].tolist() == [0, 7, 0, 7]
    assert run.results["system"].tolist() == ["amber2"] * 4
    assert run.results["js"].isna().all()
    assert run.results["lambda_rai"].isna().all()
    assert run.predictions["seed"].tolist() == [0] * 4 + [7] * 4
    assert run.predictions["id"].tolist() == ["a", "b", "c", "d"] * 2
    np.testing.assert_array_equal(run.predictions["predicted_2 sides"], probs[:, :, 2].ravel())
    np.testing.assert_array_equal(run.utterances["rated_up"], probs[0, :, 0])


def test_what_a_head_does_not_predict_has_no_row_in_the_loaded_predictions(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run", Sketch(count=9, lacking={"text": [1, 4]})))
    own = run.predictions[(run.predictions["system"] == "cb-ce") & (run.predictions["head"] == "text")]
    wanted = [name for k, name in enumerate(run.arrays.id) if k not in (1, 4)]
    assert own["id"].tolist() == wanted * 2
    assert own["seed"].tolist() == [0] * 7 + [1] * 7
    assert run.predictions.drop(columns=["id", "system", "head"]).notna().all(axis=None)


def test_columns_hold_whole_numbers_numbers_or_words(tmp_path: Path) -> None:
    row = result_row(1, 0)
    cells = {"whole": 1, "some": 2, "number": 0.5, "word": "w", "nobody": None}
    other = {"whole": 3, "some": None, "number": 1, "word": None, "nobody": None}
    write_results(tmp_path / "results.csv", [{**row, **cells}, {**row, **other}])
    write_json(tmp_path / "settings.json", {})
    probs = np.full((1, 1, 2), 0.5, np.float32)
    one = Predictions(texts(["a"]), np.array([1]), probs[0], ("up", "down"), {"amber2/fusion": probs})
    write_predictions(tmp_path / "predictions.npz", one)
    results = load(tmp_path).results
    assert {name: str(results[name].dtype) for name in cells} == {
        "whole": "int64", "some": "Int64", "number": "float64", "word": "str", "nobody": "float64",
    }  # fmt: skip
    assert results["some"].isna().tolist() == results["word"].isna().tolist() == [False, True]


def test_systems_may_have_settings_of_their_own(tmp_path: Path) -> None:
    rows = [result_row(1, 0), {**result_row(1, 0), "head": "audio", "temperature": 2.0}]
    write_results(tmp_path / "results.csv", rows)
    assert read_results(tmp_path) == [{**rows[0], "temperature": None}, rows[1]]
    assert set(summarise(rows)["amber2"]) == {"fusion", "audio"}


def test_settings_are_what_a_folder_declares_and_in_folders_of_before_the_known_ones(tmp_path: Path) -> None:
    columns = [*KEY_COLUMNS, "kappa", "temperature", "seconds", "epoch", "n", *METRICS]
    assert axes_of({"axes": ["temperature", "kappa", "gone"]}, columns) == ("kappa", "temperature")
    assert axes_of({"axes": []}, columns) == ()
    assert axes_of({}, columns) == axes_of({"axes": None}, columns) == ("kappa",)
    assert axes_of({}, list(result_row(1, 0))) == ("kappa", "student", "lambda_rai")


def test_a_column_that_nobody_knows_is_carried_along_and_is_no_setting(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows = [{**row, "seconds": 1.5 * k, "a retired metric": 0.5} for k, row in enumerate(read_results(folder))]
    write_results(folder / "results.csv", rows)
    run = load(folder)
    assert run.results["seconds"].tolist() == [1.5 * k for k in range(len(rows))]
    assert "a retired metric" in run.results
    assert run.axes == AXES


def test_a_metric_that_is_younger_than_the_folder_is_computed_as_it_would_have_been_stored(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Sketch(grid=GRID, lacking={"text": [0, 1, 20]}))
    stored = load(folder).results
    rows = read_results(folder)
    write_results(folder / "results.csv", [{k: v for k, v in row.items() if k not in ("js", "ece")} for row in rows])
    again = load(folder).results
    tested = stored["split"] == "test"
    for name in ("js", "ece"):
        np.testing.assert_allclose(again[name][tested], stored[name][tested], rtol=1e-12)
        assert again[name][~tested].isna().all()
        assert name not in read_results(folder)[0]
    assert again["bc"].equals(stored["bc"])


def test_a_younger_metric_that_cannot_be_computed_is_no_column(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Sketch(systems=("amber2",)))
    rows = [{k: v for k, v in row.items() if k != "js"} for row in read_results(folder)]
    write_results(folder / "results.csv", [{**row, "head": "another"} for row in rows])
    assert "js" not in load(folder).results
    assert "js" not in summarise(rows)["amber2"]["fusion"]


def test_utterances_are_read_back_as_they_were_written_and_folders_of_before_have_none(tmp_path: Path) -> None:
    assert read_utterances(tmp_path) is None
    rows = [dict.fromkeys(UTTERANCE_COLUMNS, "") | {"id": "007", "fold": 1, "speaker": "1e3", "style": 'ü, "x"\n'}]
    rows += [dict.fromkeys(UTTERANCE_COLUMNS, "") | {"id": "nan", "fold": 2, "style": ""}]
    write_utterances(tmp_path / "utterances.csv", rows)
    table = read_utterances(tmp_path)
    assert table is not None
    assert table.to_dict("records") == rows
    (tmp_path / "utterances.csv").write_text("id,fold,speaker,session,dialogue,split,language\na,first,,,,,\n")
    with pytest.raises(RunFolderError, match=r"utterances.csv is damaged \(fold: .*\): train again"):
        read_utterances(tmp_path)


def test_a_loaded_run_knows_who_speaks_and_refuses_the_utterances_of_another(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    run = load(folder)
    assert run.utterances["id"].tolist() == list(run.arrays.id)
    assert run.utterances["speaker"].tolist() == [f"s{int(name[1:]) % 9}" for name in run.arrays.id]
    assert set(run.utterances["style"]) == {"read", "free"}
    write_run(tmp_path / "other", Sketch(count=30))
    (tmp_path / "other" / "utterances.csv").rename(folder / "utterances.csv")
    with pytest.raises(RunFolderError, match=r"utterances.csv and predictions.npz are not of the same run"):
        load(folder)
    before = load(write_run(tmp_path / "before", Sketch(earlier=True)))
    assert list(before.utterances)[:2] == ["id", "fold"]
    assert "speaker" not in before.utterances
    assert before.axes == AXES


# --- CSV ---

# text that reads as a number comes back as one, so names start with a letter that no number starts with
values = st.one_of(
    st.none(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False), st.from_regex(r"[q-z]\w*", fullmatch=True)
)
KEY = result_row(1, 0)


@given(st.lists(st.fixed_dictionaries({"a": values, "b, c": values}), min_size=1, max_size=5))
@settings(max_examples=50)
def test_cells_are_read_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, cells: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    rows = [{**KEY, **some} for some in cells]
    write_results(folder / "results.csv", rows)
    back = read_results(folder)
    assert back == rows
    for found, written in zip(back, rows, strict=True):
        assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in written.items()}


CURVES = "system,head,fold,seed,epoch,dev_js\n"


@pytest.mark.parametrize(
    "text",
    ["", "system\n", CURVES + 'a,b,1,1,1,"2\n', CURVES + "a,b,1,1,1\n", CURVES + "a,b,1,1,1,0.2,3\n",
     CURVES + "a,b,1,1,1,0.2", CURVES.replace("\n", ",seed\n")],
)  # fmt: skip
def test_a_file_that_lost_something_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "curves.csv").write_text(text)
    with pytest.raises(RunFolderError, match=r"curves\.csv") as error:
        read_curves(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["results.csv", "curves.csv", "experts.csv", "utterances.csv"])
def test_a_table_of_which_only_its_head_is_left_is_no_traceback(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run", Sketch(count=9))
    head = (folder / name).read_text().partition("\n")[0] if name != "experts.csv" else ",".join(EXPERT_COLUMNS)
    (folder / name).write_text(head + "\n")
    if name in ("results.csv", "utterances.csv"):
        with pytest.raises(RunFolderError, match=name):
            load(folder)
    else:
        assert len(getattr(load(folder), name.removesuffix(".csv"))) == 0


# --- the summary ---


def test_the_summary_is_mean_and_sd_over_seeds_of_the_mean_over_folds() -> None:
    rows = [result_row(fold, seed) for fold in (1, 2, 3) for seed in range(4)]
    rows += [result_row(fold, seed, split="dev", js=99.0) for fold in (1, 2, 3) for seed in range(4)]
    rows += [result_row(fold, seed, head="audio", js=0.5) for fold in (1, 2, 3) for seed in range(4)]
    table = summarise(rows)
    per_seed = [sum(0.1 * fold + 0.013 * seed**2 for fold in (1, 2, 3)) / 3 for seed in range(4)]
    assert table["amber2"]["fusion"]["js"]["mean"] == pytest.approx(statistics.mean(per_seed))
    assert table["amber2"]["fusion"]["js"]["sd"] == pytest.approx(statistics.stdev(per_seed))
    assert table["amber2"]["audio"]["js"] == {"mean": pytest.approx(0.5), "sd": pytest.approx(0)}


def test_one_seed_has_no_sd_and_what_is_no_number_has_no_mean() -> None:
    table = summarise([result_row(1, 0), result_row(2, 0, accuracy_untied=math.nan)])
    assert table["amber2"]["fusion"]["js"]["sd"] is None
    assert table["amber2"]["fusion"]["accuracy_untied"] == {"mean": None, "sd": None}


def test_a_fold_with_nothing_to_score_is_left_out_of_the_mean_and_a_diverged_one_is_not() -> None:
    nothing, diverged = dict.fromkeys(METRICS, math.nan), dict.fromkeys(METRICS, math.nan)
    table = summarise([result_row(1, 0, js=0.2), {**result_row(2, 0), **nothing, "n": 0}, result_row(3, 0, js=0.5)])
    assert table["amber2"]["fusion"]["js"]["mean"] == pytest.approx(0.35)
    table = summarise(
        [result_row(1, 0, js=0.2), {**result_row(2, 0), **diverged, "epoch": 0}, result_row(3, 0, js=0.5)]
    )
    assert table["amber2"]["fusion"]["js"]["mean"] is None
    table = summarise([{**result_row(fold, 0), **nothing, "n": 0} for fold in (1, 2)])
    assert table["amber2"]["fusion"]["js"] == {"mean": None, "sd": None}
