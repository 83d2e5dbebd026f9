"""Finished rows survive, whatever ends the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amber2_core.errors import CacheError
from amber2_extract import parts
from amber2_extract.encoded import Encoded
from amber2_extract.parts import Parts


def _rows(*numbers: float) -> Any:
    return np.array([[number, -number] for number in numbers], dtype=np.float32)


def _encoded(*numbers: float) -> Encoded:
    return Encoded(_rows(*numbers))


def _filled(held: Parts, rows: Mapping[str, Sequence[int]], shape: tuple[int, ...]) -> Any:
    with held.scratch("values", shape) as matrix:
        held.fill(matrix, rows)
    return matrix[:]


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
    values = _filled(again, {"c": [0, 4], "a": [2]}, (5, 2))
    np.testing.assert_array_equal(values, _rows(3, np.nan, 1, np.nan, 3))


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
        np.testing.assert_array_equal(_filled(again, {"a": [0], "b": [1]}, (2, 2)), _rows(1, 2))
    assert len(said) > len(whole) / 4
    assert all("its rows are encoded again" in line for line in said)


def test_anew_forgets_what_is_there(tmp_path: Path) -> None:
    held = Parts(tmp_path / "recipe")
    held.add(["a"], _encoded(1))
    held.flush()
    assert len(Parts(tmp_path / "recipe", anew=True)) == 0


def test_a_batch_larger_than_a_part_is_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 16)
    held = Parts(tmp_path / "recipe")
    held.add(["a"], _encoded(1))
    held.add(["b", "c", "d"], _encoded(2, 3, 4))
    held.add(["e"], _encoded(5))
    held.flush()
    rows = {digest: [row] for row, digest in enumerate("abcde")}
    np.testing.assert_array_equal(_filled(Parts(tmp_path / "recipe"), rows, (5, 2)), _rows(1, 2, 3, 4, 5))


def test_rows_that_wait_are_their_own_whatever_becomes_of_the_batch(tmp_path: Path) -> None:
    batch = _rows(1, 2)
    held = Parts(tmp_path / "recipe")
    held.add(["a", "b"], Encoded(batch))
    batch[:] = 9
    held.flush()
    np.testing.assert_array_equal(_filled(held, {"a": [0], "b": [1]}, (2, 2)), _rows(1, 2))


def test_a_part_that_is_damaged_later_is_one_line(tmp_path: Path) -> None:
    held = Parts(tmp_path / "recipe")
    held.add(["a"], _encoded(1))
    held.flush()
    (path,) = (tmp_path / "recipe").glob("*.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CacheError, match=r"000001\.npz is damaged .*: the same command encodes its rows again"):
        _filled(held, {"a": [0]}, (1, 2))


def test_a_folder_that_has_gone_is_one_line(tmp_path: Path) -> None:
    held = Parts(tmp_path / "recipe")
    held.add(["a"], _encoded(1))
    held.flush()
    (tmp_path / "recipe").rename(tmp_path / "elsewhere")
    held.add(["b"], _encoded(2))
    with pytest.raises(CacheError, match=r"No such file or directory; the 1 rows .* where it comes back, the same"):
        held.flush()
    (tmp_path / "elsewhere").rename(tmp_path / "recipe")
    held.flush()
    assert len(Parts(tmp_path / "recipe")) == 2


def test_a_part_that_cannot_be_read_now_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Parts(tmp_path / "recipe")
    held.add(["a"], _encoded(1))
    held.flush()

    def stale(path: Path) -> bytes:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", stale)
        with pytest.raises(CacheError, match="Stale file handle"):
            Parts(tmp_path / "recipe")
    assert len(Parts(tmp_path / "recipe")) == 1
