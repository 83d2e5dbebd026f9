"""A matrix in a file holds what was put there, and NaN elsewhere, whatever the size of a block."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import amber2_core.features
from amber2_extract.scratch import Scratch


@given(
    data=arrays.arrays(
        np.float32, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=st.floats(-9, 9, width=16)
    ),
    choice=st.data(),
    block_bytes=st.sampled_from([1, 13, 1 << 22]),
    dtype=st.sampled_from([np.float32, np.float16]),
)
def test_rows_come_back_where_they_were_put(
    data: np.ndarray, choice: st.DataObject, block_bytes: int, dtype: type, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "matrix"
    source = np.array(choice.draw(st.lists(st.integers(-1, len(data) - 1), min_size=1, max_size=12)), dtype=np.intp)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amber2_core.features, "BLOCK_BYTES", block_bytes)
        with Scratch(path, (len(source), data.shape[1]), dtype) as matrix:
            matrix.copy(data, source)
    expected = np.where(source[:, None] >= 0, data[source], np.nan).astype(dtype)
    np.testing.assert_array_equal(matrix[:], expected)
    assert matrix[:].dtype == dtype
    first, last = sorted(choice.draw(st.tuples(st.integers(0, len(source)), st.integers(0, len(source)))))
    np.testing.assert_array_equal(matrix[first:last], expected[first:last])


def test_sequences_of_any_length_follow_one_another(tmp_path: Path) -> None:
    with Scratch(tmp_path / "frames", (5, 2)) as matrix:
        matrix.put(2, np.ones((3, 2)))
        matrix.put(0, np.zeros((2, 2)))
        matrix.put(5, np.zeros((0, 2)))
    np.testing.assert_array_equal(matrix[:], [[0, 0], [0, 0], [1, 1], [1, 1], [1, 1]])


def test_a_file_that_was_cut_off_or_has_gone_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "matrix"
    with Scratch(path, (3, 2)) as matrix:
        matrix.put(0, np.ones((3, 2)))
    path.write_bytes(path.read_bytes()[:-1])
    assert len(matrix[:2]) == 2
    with pytest.raises(OSError, match="Input/output error"):
        matrix[:]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        matrix[:1]


def test_a_large_matrix_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    source = np.ones((40_000, 256), dtype=np.float32)
    tracemalloc.start()
    with Scratch(tmp_path / "matrix", source.shape) as matrix:
        matrix.copy(source, np.arange(40_000)[::-1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < source.nbytes / 4
    assert (tmp_path / "matrix").stat().st_size == source.nbytes
