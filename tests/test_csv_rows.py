"""Rows of a run folder's tables: read back as they were written, and turned into columns of one kind each."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amber2_core.csv_rows import columns_of, read_rows, write_rows
from amber2_core.errors import RunFolderError

# text that reads as a number comes back as one, so names start with a letter that no number starts with
values = st.one_of(
    st.none(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False), st.from_regex(r"[q-z]\w*", fullmatch=True)
)


@given(st.lists(st.fixed_dictionaries({"a": values, "b, c": values}), min_size=1, max_size=5))
def test_rows_are_read_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    write_rows(path, rows)
    back = read_rows(path, ["a"])
    assert back == rows
    for found, written in zip(back, rows, strict=True):
        assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in written.items()}


@pytest.mark.parametrize("text", ["", "a\n", 'a,b\n1,"2\n', "a,b\n1\n", "a,b\n1,2,3\n"])
def test_a_file_that_lost_something_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(RunFolderError, match=r"rows\.csv") as error:
        read_rows(tmp_path / "rows.csv", ["a", "b"])
    assert "\n" not in str(error.value)


def test_a_column_holds_numbers_where_all_that_is_there_is_numbers() -> None:
    rows: list[dict[str, object]] = [
        {"n": 1, "x": 1, "y": None, "word": "w"},
        {"n": 2, "x": 0.5, "y": math.inf, "word": None},
    ]
    table = columns_of(rows)
    assert {name: column.dtype for name, column in table.items()} == {
        "n": np.int64, "x": np.float64, "y": np.float64, "word": object,
    }  # fmt: skip
    assert table["n"].tolist() == [1, 2]
    np.testing.assert_array_equal(table["y"], [math.nan, math.inf])
    assert table["word"].tolist() == ["w", ""]
    assert columns_of([]) == {}
