"""Rows of predictions as files: read back by pandas, whole or not there, gone on with, refused where they differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amber2_core import engine
from amber2_core.errors import RunFolderError, SettingError
from amber2_predict import pipeline
from amber2_predict.options import HeadsChoice
from amber2_predict.pipeline import Survey
from amber2_predict.table import check_output, line_of
from amber2_predict.units import Key, Unit, Windows

HEADS, EMOTIONS = ("audio", "text", "fusion"), ("happy", "sad")
REQUEST = HeadsChoice("heads")


def row_of(unit: Unit, *, is_good: bool = False) -> dict[str, Any]:
    """A row as a predictor makes it; of a file called bad, an error."""
    is_good = is_good or "bad" not in unit.file
    start = unit.start or 0.0
    row: dict[str, Any] = {"file": unit.file, "start": start, "end": None}
    if is_good:
        share = len(unit.file) / 32 + start / 64
        row |= {
            "end": start + 1.5, "label": "sad", "predicted_by": "fusion", "inputs": ["audio", "text"],
            "rater_ambiguity": 0.1 + start, "modality_ambiguity": 1 / 3, "trusted_expert": "text",
            "ensemble_spread": None,
            "heads": {head: {"happy": share, "sad": 1 - share} for head in HEADS},
        }  # fmt: skip
    said = {"short_window": start > 1, "transcript_from": "recogniser", "transcript": 'ja, "nö"\n'}
    return {**row, **said, "error": None if is_good else "bad: cannot be decoded"}


class Machine:
    """Workers that are none: rows at once, until one is asked for that ends everything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Key] = []
        self.ends_before: str | None = None
        self.heads = "a"
        self.good: set[str] = set()
        monkeypatch.setattr(pipeline, "looked_up", lambda request: Survey(HEADS, EMOTIONS, self.heads, {}, (Seat,)))
        monkeypatch.setattr(engine, "deal", self.deal)

    def deal(self, function: Any, tasks: Iterable[Any], **settings: Any) -> Iterator[Any]:
        for units in tasks:
            for unit in units:
                if unit.file == self.ends_before:
                    raise KeyboardInterrupt
                self.asked.append(unit.key)
                yield (unit,), [row_of(unit, is_good=unit.file in self.good)]


class Seat:
    device = "cpu"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def units(*names: str) -> list[Unit]:
    return [Unit(name, Path(name)) for name in names]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_rows_read_back_by_pandas_are_what_was_written(machine: Machine, tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / "new" / f"rows{suffix}"
    asked = [*units("a.wav", "bad.wav", "né.wav"), Unit("a.wav", Path("a.wav"), 2.0, 3.5)]
    done = pipeline.predict_to(output, REQUEST, asked)
    assert (done.rows, done.errors) == (4, 1)
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name, f"{output.name}.unfinished"]
    read = {".jsonl": lambda p: pd.read_json(p, lines=True), ".csv": pd.read_csv, ".parquet": pd.read_parquet}
    table = read[suffix](output)
    assert table["file"].tolist() == ["a.wav", "bad.wav", "né.wav", "a.wav"]
    assert table["start"].tolist() == [0.0, 0.0, 0.0, 2.0]
    assert table["label"].isna().tolist() == [False, True, False, False]
    assert table["error"].dropna().tolist() == ["bad: cannot be decoded"]
    assert table["rater_ambiguity"].dropna().tolist() == [0.1, 0.1, 2.1]
    assert table["transcript"].tolist() == ['ja, "nö"\n'] * 4
    assert table["short_window"].tolist() == [False, False, False, True]
    for place, unit in enumerate(asked):
        shares = row_of(unit).get("heads", {})
        for head in shares:
            for emotion in EMOTIONS:
                nested = suffix == ".jsonl"
                cell = table["heads"].iloc[place][head][emotion] if nested else table[f"{head}.{emotion}"].iloc[place]
                assert cell == pytest.approx(shares[head][emotion], abs=1e-15)  # read_json rounds


def test_in_the_form_of_audio_classification_a_row_is_its_labels_with_scores(machine: Machine, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    pipeline.predict_to(output, REQUEST, units("a.wav", "bad.wav"), format="hf")
    good, bad = map(json.loads, output.read_text().splitlines())
    share = row_of(Unit("a.wav", None))["heads"]["fusion"]["happy"]
    assert good == {
        "file": "a.wav", "start": 0.0, "end": 1.5,
        "scores": [{"label": "sad", "score": 1 - share}, {"label": "happy", "score": share}],
    }  # fmt: skip
    assert bad == {"file": "bad.wav", "start": 0.0, "end": None, "error": "bad: cannot be decoded"}


def test_interrupted_it_goes_on_with_no_row_twice_and_none_missing(machine: Machine, tmp_path: Path) -> None:
    output, names = tmp_path / "rows.csv", [f"{'bad' * (k % 4 == 3)}{k}.wav" for k in range(12)]
    pipeline.predict_to(tmp_path / "whole.csv", REQUEST, units(*names))
    machine.ends_before = names[5]
    with pytest.raises(KeyboardInterrupt):
        pipeline.predict_to(output, REQUEST, units(*names))
    assert not output.exists()
    with pytest.raises(SettingError, match="earlier call: go on with --resume"):
        pipeline.predict_to(output, REQUEST, units(*names))
    # what a kill in the midst of a line leaves
    with (tmp_path / "rows.csv.unfinished" / "rows.jsonl").open("a") as file:
        file.write('{"unit": ["5.wav", null, nu')
    machine.ends_before, machine.asked = None, []
    done = pipeline.predict_to(output, REQUEST, units(*names), resume=True)
    assert (done.rows, done.errors, done.kept) == (12, 3, 4)
    assert [key[0] for key in machine.asked] == [names[3], *names[5:]]  # and what ended in an error
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_what_ended_in_an_error_is_tried_again_also_of_a_complete_file(
    machine: Machine, tmp_path: Path, suffix: str
) -> None:
    output, names = tmp_path / f"rows{suffix}", ["a.wav", "bad1.wav", "b.wav", "bad2.wav", "c.wav"]
    machine.good = {*names}
    pipeline.predict_to(tmp_path / f"whole{suffix}", REQUEST, units(*names))
    assert not (tmp_path / f"whole{suffix}.unfinished").exists()
    machine.good = set()
    assert pipeline.predict_to(output, REQUEST, units(*names)).errors == 2
    # one is put right, and the call that tries again is killed before the other
    machine.good, machine.ends_before, machine.asked = {"bad1.wav"}, "bad2.wav", []
    before = output.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        pipeline.predict_to(output, REQUEST, units(*names), resume=True)
    assert output.read_bytes() == before
    machine.ends_before = None
    for good, errors in (({"bad1.wav"}, 1), ({"bad2.wav"}, 0)):
        machine.good = good
        done = pipeline.predict_to(output, REQUEST, units(*names), resume=True)
        assert (done.rows, done.errors, done.kept) == (5, errors, 4)
    assert [key[0] for key in machine.asked] == ["bad1.wav", "bad2.wav", "bad2.wav"]
    assert output.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert len([*tmp_path.iterdir()]) == 2


def test_an_error_of_a_unit_that_is_no_more_is_no_row(machine: Machine, tmp_path: Path) -> None:
    """A missing recording is one unit; once it is there it is several windows."""
    import pandas as pd

    output, there = tmp_path / "rows.csv", units("a.wav")
    pipeline.predict_to(output, REQUEST, [Unit("bad.wav", Path("bad.wav"), problem="bad.wav: missing"), *there])
    machine.good = {"bad.wav"}
    windows = [Unit("bad.wav", Path("bad.wav"), start, start + 2.0) for start in (0.0, 2.0)]
    done = pipeline.predict_to(output, REQUEST, [*windows, *there], resume=True)
    assert (done.rows, done.errors, done.kept) == (3, 0, 1)
    assert pd.read_csv(output)["file"].tolist() == ["a.wav", "bad.wav", "bad.wav"]


def test_a_finished_file_is_complete_or_the_wrong_one(machine: Machine, tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.csv"):
        output = tmp_path / name
        pipeline.predict_to(output, REQUEST, units("a.wav", "d.wav"))
        with pytest.raises(RunFolderError, match="exists already"):
            pipeline.predict_to(output, REQUEST, units("a.wav", "d.wav"))
        machine.asked = []
        done = pipeline.predict_to(output, REQUEST, units("a.wav", "d.wav"), resume=True)
        assert (done.rows, done.errors, done.kept, machine.asked) == (2, 0, 2, [])
        with pytest.raises(SettingError, match=r"complete without a row of b\.wav and 1 more"):
            pipeline.predict_to(output, REQUEST, units("a.wav", "b.wav", "c.wav"), resume=True)
    (tmp_path / "other.jsonl").write_text("no JSON\n")
    with pytest.raises(SettingError, match="holds no predictions"):
        pipeline.predict_to(tmp_path / "other.jsonl", REQUEST, units("a.wav"), resume=True)


def test_rows_of_other_heads_or_windows_are_not_gone_on_with(machine: Machine, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    machine.ends_before = "b.wav"
    with pytest.raises(KeyboardInterrupt):
        pipeline.predict_to(output, REQUEST, units("a.wav", "b.wav"))
    with pytest.raises(SettingError, match="of other heads, encoders or windows"):
        pipeline.predict_to(output, REQUEST, units("a.wav"), windows=Windows(10, 5), resume=True)
    machine.heads = "b"
    with pytest.raises(SettingError, match="of other heads, encoders or windows"):
        pipeline.predict_to(output, REQUEST, units("a.wav"), resume=True)


def test_what_no_file_can_be_is_refused_before_the_work_begins(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"Bad output suffix '\.xlsx'"):
        pipeline.predict_to(tmp_path / "rows.xlsx", REQUEST, units("a.wav"))
    with pytest.raises(SettingError, match="is one of JSON lines"):
        check_output(tmp_path / "rows.csv", "hf")
    assert machine.asked == []


def test_a_line_is_json_whatever_a_file_is_called() -> None:
    row = row_of(Unit("a\udce9 b.wav", None))
    assert json.loads(line_of(row).encode(errors="backslashreplace"))["file"] == "a\udce9 b.wav"
