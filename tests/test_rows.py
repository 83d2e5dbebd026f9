"""Finished rows survive, whatever ends the process; and one process at a time works on an output."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amber2_core.errors import CacheError
from amber2_extract.rows import Row, RowStore, RowWriter, work_folder


def _name(number: int) -> str:
    return f"{number:064x}"


def _row(number: float, *, bins: int | None = None) -> Row:
    frames = None if bins is None else np.full((bins, 2), number, dtype=np.float32)
    return Row(np.array([number, -number], dtype=np.float32), frames)


def _written(folder: Path, *numbers: int, worker: int = 0, bins: int | None = None) -> Path:
    writer = RowWriter(folder, worker)
    for number in numbers:
        writer.add({_name(number): _row(number, bins=bins)})
    writer.sync()
    return folder / f"rows-{worker}.bin"


def _held(folder: Path) -> dict[int, list[float]]:
    store = RowStore(folder)
    return {number: store.read(_name(number)).values.tolist() for number in range(30) if _name(number) in store}


# --- the store ---


def test_rows_of_all_workers_are_found_by_what_they_were_encoded_from(tmp_path: Path) -> None:
    _written(tmp_path / "recipe", 1, 2)
    _written(tmp_path / "recipe", 3, worker=1)
    store = RowStore(tmp_path / "recipe")
    assert len(store) == 3
    assert _name(4) not in store
    assert store.row_shape == (2,)
    assert _held(tmp_path / "recipe") == {1: [1, -1], 2: [2, -2], 3: [3, -3]}


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
@pytest.mark.parametrize("bins", [None, 0, 7])
def test_a_row_comes_back_as_it_was_with_its_layers_and_its_frames(
    shape: tuple[int, ...], bins: int | None, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal(shape, dtype=np.float32)
    frames = None if bins is None else generator.standard_normal((bins, shape[-1]), dtype=np.float32)
    RowWriter(tmp_path, 0).add({_name(1): Row(values, frames)})
    store = RowStore(tmp_path)
    row = store.read(_name(1))
    np.testing.assert_array_equal(row.values, values)
    assert (store.row_shape, store.bins(_name(1))) == (shape, bins or 0)
    if bins:
        np.testing.assert_array_equal(row.frames, frames)


def test_there_is_nothing_in_a_store_that_nobody_wrote(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "none")
    assert (len(store), store.row_shape) == (0, ())
    assert not (tmp_path / "none").exists()


@given(cut_of_rows=st.integers(0, 100), cut_of_index=st.integers(0, 300))
def test_after_a_kill_at_any_moment_whole_rows_are_there_and_more_can_be_written(
    cut_of_rows: int, cut_of_index: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever part of the files had reached the disk."""
    folder = tmp_path_factory.mktemp("rows")
    rows = _written(folder, 1, 2, 3, 4, bins=2)
    for path, cut in ((rows, cut_of_rows), (rows.with_suffix(".idx"), cut_of_index)):
        path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - cut)])
    kept = _held(folder)
    assert list(kept) == [1, 2, 3, 4][: len(kept)]
    assert len(kept) >= 4 - max(-(-cut_of_rows // 24), -(-cut_of_index // 56))
    _written(folder, 5, 6, bins=2)
    assert _held(folder) == kept | {5: [5, -5], 6: [6, -6]}


def test_a_torn_tail_takes_no_room_for_ever(tmp_path: Path) -> None:
    rows = _written(tmp_path, 1)
    for path in (rows, rows.with_suffix(".idx")):
        path.write_bytes(path.read_bytes() + b"torn")
    _written(tmp_path, 2)
    assert rows.stat().st_size == 2 * 8
    assert _held(tmp_path) == {1: [1, -1], 2: [2, -2]}


@pytest.mark.parametrize("kind", [".bin", ".idx"])
def test_a_flipped_bit_anywhere_is_never_another_row(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _written(tmp_path, 1, 2, 3, bins=1).with_suffix(kind)
    whole, right = path.read_bytes(), {n: [n, -n] for n in (1, 2, 3)}
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        caplog.clear()
        held = _held(tmp_path)
        assert len(held) == 2
        assert held.items() <= right.items()
        assert caplog.messages == [f"{tmp_path} is damaged: 1 of its rows are encoded again"]


def test_a_damaged_row_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    path = _written(tmp_path, 1, 2)
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    _written(tmp_path, 1)
    assert _held(tmp_path) == {1: [1, -1], 2: [2, -2]}


def test_rows_that_a_worker_wrote_before_it_died_may_be_written_again(tmp_path: Path) -> None:
    _written(tmp_path, 1, 2, 3)
    _written(tmp_path, 2, 3, 4)
    assert _held(tmp_path) == {n: [n, -n] for n in (1, 2, 3, 4)}


def test_a_row_that_is_damaged_while_it_is_waited_for_is_one_line(tmp_path: Path) -> None:
    path = _written(tmp_path, 1)
    store = RowStore(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CacheError, match=r"rows-0\.bin is damaged: the same command encodes what it held again"):
        store.read(_name(1))


def test_a_folder_that_has_gone_is_one_line_and_its_rows_are_back_with_it(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path / "recipe", 0)
    writer.add({_name(1): _row(1)})
    (tmp_path / "recipe").rename(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match=r"No such file or directory; the rows .* where it comes back, the same"):
        writer.add({_name(2): _row(2)})
    (tmp_path / "elsewhere").rename(tmp_path / "recipe")
    writer.add({_name(2): _row(2)})
    assert _held(tmp_path / "recipe") == {1: [1, -1], 2: [2, -2]}


def test_a_disk_that_cannot_be_read_now_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _written(tmp_path, 1)

    def stale(self: Path) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", stale)
        with pytest.raises(CacheError, match="Stale file handle; the rows finished so far are kept"):
            RowStore(tmp_path)
    assert _held(tmp_path) == {1: [1, -1]}


def test_rows_that_are_removed_are_gone(tmp_path: Path) -> None:
    _written(tmp_path / "recipe", 1)
    store = RowStore(tmp_path / "recipe")
    store.remove()
    assert len(store) == 0
    assert not (tmp_path / "recipe").exists()


# --- the folder around it ---


def _hold(output: Path, held: Any, release: Any) -> None:
    with work_folder(output):
        held.set()
        release.wait()


@pytest.mark.skipif(os.name != "posix", reason="symbolic links and locks as POSIX has them")
def test_a_cache_with_two_names_has_one_work_folder(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "corpus.h5").symlink_to("scratch/corpus.h5")
    with work_folder(tmp_path / "corpus.h5") as work:
        assert work == tmp_path / "scratch" / "corpus.h5.parts"
        held = f"{tmp_path / 'scratch' / 'corpus.h5'} is being written by process {os.getpid()}"
        with pytest.raises(CacheError, match=held), work_folder(tmp_path / "scratch" / "corpus.h5"):
            raise AssertionError("both hold it")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_work_folder_is_removed_when_no_row_is_left_in_it(tmp_path: Path) -> None:
    output = tmp_path / "cache" / "corpus.h5"
    with work_folder(output) as work:
        assert work == tmp_path / "cache" / "corpus.h5.parts"
        _written(work / "recipe", 1)
    assert work.exists()
    with work_folder(output):
        RowStore(work / "recipe").remove()
        RowWriter(work / "recipe", 0)
    assert not work.exists()


def test_a_second_writer_is_told_who_holds_the_output(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "corpus.h5"
    processes = multiprocessing.get_context("fork")
    held, release = processes.Event(), processes.Event()
    process = processes.Process(target=_hold, args=(output, held, release))
    process.start()
    assert held.wait(timeout=30)
    with (
        pytest.raises(CacheError, match=rf"corpus\.h5 is being written by process {process.pid} on .*: wait for it"),
        work_folder(output),
    ):
        pass
    with work_folder(tmp_path / "other.h5"):
        pass
    release.set()
    process.join()
    with caplog.at_level(logging.WARNING), work_folder(output):
        pass
    assert caplog.messages == []


def test_half_a_cache_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".corpus.h5.0a1b2c3d.writing").touch()
    (tmp_path / ".other.h5.0a1b2c3d.writing").touch()
    with work_folder(tmp_path / "corpus.h5"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".other.h5.0a1b2c3d.writing"]
