"""Finished rows survive, whatever ends the process, and one process at a time writes them."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amber2_core.errors import CacheError
from amber2_extract import parts
from amber2_extract.encoded import Encoded
from amber2_extract.parts import Parts, work_folder


def _rows(*numbers: float) -> Any:
    return np.array([[number, -number] for number in numbers], dtype=np.float32)


def _encoded(*numbers: float) -> Encoded:
    return Encoded(_rows(*numbers))


def _hold(output: Path, held: Any, release: Any) -> None:
    with work_folder(output):
        held.set()
        release.wait()


def test_rows_are_found_by_what_they_were_encoded_from(tmp_path: Path) -> None:
    held = Parts(tmp_path / "recipe")
    held.add(["a", "b"], _encoded(1, 2))
    assert "a" not in held
    held.flush()
    held.add(["c"], _encoded(3))
    held.flush()
    again = Parts(tmp_path / "recipe")
    assert len(again) == 3
    assert "b" in again
    assert "d" not in again
    assert again.row_shape == (2,)
    matrix = np.zeros((5, 2), dtype=np.float32)
    again.fill(matrix, {"c": [0, 4], "a": [2]})
    np.testing.assert_array_equal(matrix, _rows(3, 0, 1, 0, 3))


def test_a_part_is_written_when_it_is_large_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Parts(tmp_path / "recipe")
    monkeypatch.setattr(parts, "PART_BYTES", 32)
    for number in range(5):
        held.add([str(number)], _encoded(number))
    assert len(Parts(tmp_path / "recipe")) == 4
    monkeypatch.setattr(parts, "PART_SECONDS", 0.0)
    held.add(["5"], _encoded(5))
    assert len(Parts(tmp_path / "recipe")) == 6


def test_what_was_not_finished_is_removed(tmp_path: Path) -> None:
    held = Parts(tmp_path)
    held.add(["a"], _encoded(1))
    held.flush()
    (tmp_path / "000002.writing").write_bytes(b"half a part")
    assert len(Parts(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["000001.npz"]


def test_a_flipped_bit_anywhere_is_never_another_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(parts._log, "warning", lambda line, *arguments: said.append(line % arguments))
    held = Parts(tmp_path)
    held.add(["a", "b"], _encoded(1, 2))
    held.flush()
    (path,) = tmp_path.glob("*.npz")
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        again = Parts(tmp_path)
        if len(again) == 0:
            continue
        # A bit that means nothing, such as one of a date.
        matrix = np.zeros((2, 2), dtype=np.float32)
        again.fill(matrix, {"a": [0], "b": [1]})
        np.testing.assert_array_equal(matrix, _rows(1, 2))
    assert len(said) > len(whole) / 4
    assert all("its rows are encoded again" in line for line in said)


def test_anew_forgets_what_is_there(tmp_path: Path) -> None:
    held = Parts(tmp_path / "recipe")
    held.add(["a"], _encoded(1))
    held.flush()
    assert len(Parts(tmp_path / "recipe", anew=True)) == 0


def test_a_work_folder_is_removed_when_nothing_is_left_in_it(tmp_path: Path) -> None:
    output = tmp_path / "cache" / "corpus.h5"
    with work_folder(output) as work:
        assert work == tmp_path / "cache" / "corpus.h5.parts"
        held = Parts(work / "recipe")
        held.add(["a"], _encoded(1))
        held.flush()
    assert work.exists()
    with work_folder(output):
        Parts(work / "recipe").remove()
    assert not work.exists()


def test_a_second_writer_is_told_who_holds_the_output(tmp_path: Path) -> None:
    output = tmp_path / "corpus.h5"
    processes = multiprocessing.get_context("fork")
    held, release = processes.Event(), processes.Event()
    process = processes.Process(target=_hold, args=(output, held, release))
    process.start()
    assert held.wait(timeout=30)
    with (
        pytest.raises(CacheError, match=rf"corpus\.h5 is being written by process {process.pid} on "),
        work_folder(output),
    ):
        pass
    with work_folder(tmp_path / "other.h5"):
        pass
    release.set()
    process.join()
    with work_folder(output):
        pass


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    output = tmp_path / "corpus.h5"
    processes = multiprocessing.get_context("fork")
    held, release = processes.Event(), processes.Event()
    process = processes.Process(target=_hold, args=(output, held, release))
    process.start()
    assert held.wait(timeout=30)
    process.kill()
    process.join()
    assert (tmp_path / "corpus.h5.parts" / "lock").exists()
    with work_folder(output):
        pass


def test_a_holder_that_has_not_written_its_name_yet_is_given_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "corpus.h5"
    with work_folder(output) as work:
        lock = work / "lock"
        name = lock.read_bytes()
        lock.write_bytes(b"")
        monkeypatch.setattr(parts.time, "sleep", lambda seconds: lock.write_bytes(name))
        with (
            pytest.raises(CacheError, match=rf"corpus\.h5 is being written by process {os.getpid()} on "),
            work_folder(output),
        ):
            pass


def _compete(output: Path, results: Any) -> None:
    for _ in range(30):
        try:
            with work_folder(output) as work:
                mark = work / "mark"
                descriptor = os.open(mark, os.O_CREAT | os.O_EXCL)  # fails if another one is inside
                os.close(descriptor)
                mark.unlink()
            results.put("worked")
        except CacheError as problem:
            results.put("waited" if "is being written by" in str(problem) else str(problem))
        except BaseException as problem:
            results.put(repr(problem))


def test_writers_that_come_and_go_at_once_are_never_inside_together(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    results = processes.Queue()
    writers = [processes.Process(target=_compete, args=(tmp_path / "corpus.h5", results)) for _ in range(4)]
    for writer in writers:
        writer.start()
    outcomes = [results.get(timeout=60) for _ in range(4 * 30)]
    for writer in writers:
        writer.join()
    assert set(outcomes) <= {"worked", "waited"}
    assert "worked" in outcomes
