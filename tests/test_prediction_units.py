"""What is to be predicted: windows, words beside recordings, tables with segments, folders, and what has no meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from amber2_core.errors import CorpusError, SettingError
from amber2_predict.units import Unit, Windows, batched, units_of


def recording(path: Path, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(16_000 * seconds), 0.1), 16_000)
    return path


@given(st.floats(0.03, 500), st.floats(0.05, 60), st.floats(0.1, 1))
def test_windows_cover_a_recording_and_none_is_longer_or_begins_in_vain(
    seconds: float, size: float, part: float
) -> None:
    windows = list(Windows(size, size * part).of(seconds))
    starts, ends = zip(*windows, strict=True)
    assert starts == pytest.approx([k * size * part for k in range(len(windows))])
    assert all(end - start == pytest.approx(size) for start, end in windows[:-1])
    assert ends[-1] - starts[-1] <= size * (1 + 1e-9)
    assert seconds - 0.025 - 1e-9 <= ends[-1] <= seconds
    assert all(end < seconds - 0.025 + 1e-9 for end in ends[:-1])


@pytest.mark.parametrize(("size", "hop"), [(0, 1), (601, 1), (1, 0), (1, 1.5), (float("nan"), 1)])
def test_windows_without_meaning_are_refused(size: float, hop: float) -> None:
    with pytest.raises(SettingError):
        Windows(size, hop)


def test_a_short_recording_is_one_window_that_says_so_and_keeps_its_words(tmp_path: Path) -> None:
    file = str(recording(tmp_path / "a.wav", 0.5))
    (unit,) = units_of([file], text="one voice", windows=Windows(10, 5))
    assert (unit.start, unit.end, unit.is_short, unit.transcript) == (0.0, 0.5, True, "one voice")


def test_the_words_of_a_whole_recording_are_no_windows_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = recording(tmp_path / "a.wav", 2.0)
    file.with_suffix(".txt").write_text("one voice")
    assert [unit.transcript for unit in units_of([str(file)], windows=Windows(1, 1))] == [None, None]
    assert "belong to no window" in caplog.text


def test_words_stand_beside_a_recording_or_alone(tmp_path: Path) -> None:
    file = recording(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("\ufeffone\nvoice \n", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    assert [*units_of([str(file)])] == [Unit(str(file), file, transcript="one voice", transcript_from="sidecar")]
    alone, damaged = units_of([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert (alone.recording, alone.transcript) == (None, "one voice")
    assert damaged.problem == "b.txt: is not text in UTF-8"
    assert [*units_of([], text="one voice")] == [Unit("", None, transcript="one voice", transcript_from="text")]
    assert [*units_of([str(file)], text=" ")] == [*units_of([str(file)])]
    with pytest.raises(SettingError, match="Nothing to predict"):
        units_of([], text="")


def test_a_folder_is_searched_for_recordings_in_order(tmp_path: Path) -> None:
    for name in ("b/2.flac", "a.wav", "b/1.WAV", ".hidden/3.wav", ".4.wav"):
        soundfile.write(recording(tmp_path / name), np.full(800, 0.1), 16_000, format=name[-4:].strip(".").upper())
    (tmp_path / "notes.md").touch()
    names = [Path(unit.file).relative_to(tmp_path).as_posix() for unit in units_of([str(tmp_path)])]
    assert names == ["a.wav", "b/1.WAV", "b/2.flac"]
    (tmp_path / "none").mkdir()
    with pytest.raises(CorpusError, match="holds no recording"):
        list(units_of([str(tmp_path / "none")]))


def test_a_table_names_recordings_words_and_segments_under_its_own_columns(tmp_path: Path) -> None:
    table = tmp_path / "calls.csv"
    table.write_text("clip;words;start;end\na.wav; yes ;0.1;0.2\na.wav;;0.2;\n;no;;\n;;;\nb.wav;;0.5;0.1\nb.wav;;x;1\n")
    units = list(units_of([str(table)], columns={"audio": "clip", "text": "words"}))
    assert [(u.file, u.start, u.end, u.transcript) for u in units[:3]] == [
        ("a.wav", 0.1, 0.2, "yes"),
        ("a.wav", 0.2, None, None),
        (f"{table}:4", None, None, "no"),
    ]
    assert units[0].recording == tmp_path / "a.wav"
    assert units[3].problem == "neither a recording nor words"
    assert [u.problem.partition(": ")[2] for u in units[4:]] == [
        "end 0.1 s is not after start 0.5 s",
        "start 'x' is no number of seconds",
    ]


def test_json_lines_are_a_table_too_and_nothing_is_predicted_twice(tmp_path: Path) -> None:
    table = tmp_path / "calls.jsonl"
    table.write_text('{"path": "a.wav", "sentence": "yes"}\n{"path": "a.wav", "start": 1}\n')
    found = list(units_of([str(table), str(table)]))
    assert [(u.file, u.start, u.transcript) for u in found] == [("a.wav", None, "yes"), ("a.wav", 1.0, None)]


def test_what_cannot_be_meant_is_one_line(tmp_path: Path) -> None:
    file, table = str(recording(tmp_path / "a.wav")), tmp_path / "t.csv"
    table.write_text("id,label\n1,happy\n")
    with pytest.raises(SettingError, match="one recording"):
        units_of([file, file], text="one voice")
    with pytest.raises(SettingError, match="a folder or a table"):
        units_of([str(tmp_path)], text="one voice")
    with pytest.raises(SettingError, match="Nothing to predict"):
        units_of([])
    with pytest.raises(CorpusError, match="No table"):
        units_of([str(tmp_path / "nowhere.csv")])
    with pytest.raises(CorpusError, match="no column 'audio' and no column 'text'"):
        list(units_of([str(table)]))
    with pytest.raises(CorpusError, match="no column 'clip', which --column says is audio"):
        list(units_of([str(table)], columns={"audio": "clip"}))


def test_batches_are_small_where_recordings_are_large(tmp_path: Path) -> None:
    large = tmp_path / "large.wav"
    with large.open("wb") as file:
        file.truncate(20 << 20)
    units = [Unit(str(k), large if k < 3 else tmp_path / "missing.wav") for k in range(10)]
    assert [len(some) for some in batched(units, 4)] == [1, 1, 4, 4]
    hours = [Unit("a", large, start=60.0 * k, end=60.0 * (k + 1)) for k in range(7)]
    assert max(len(some) for some in batched(hours, 64)) == 2
