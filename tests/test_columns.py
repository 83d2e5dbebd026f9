"""Columns in HDF5: whatever goes in comes out, to the bit, or is refused."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from amber2_core.columns import TEXT_BLOCK, read_attribute, read_dataset, write_attribute, write_dataset
from amber2_core.errors import CacheError
from amber2_core.tables import texts

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@pytest.fixture
def file() -> Iterator[h5py.File]:
    """An HDF5 file in memory."""
    with h5py.File("memory", "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        yield file


def _round_trip(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with h5py.File("memory", "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        write_dataset(file, "a/b", values)
        return read_dataset(file["a/b"])


@given(st.lists(TEXT, max_size=30))
def test_any_column_of_text_comes_back(words: list[str]) -> None:
    column = _round_trip(texts(words))
    assert column.dtype == object
    assert list(column) == words


@given(
    st.sampled_from([np.float16, np.float32, np.float64, np.int32, np.int64]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
    )
)
def test_any_numbers_come_back_to_the_bit(values: npt.NDArray[Any]) -> None:
    read = _round_trip(values)
    assert (read.dtype, read.shape, read.tobytes()) == (values.dtype, values.shape, values.tobytes())


def test_numbers_come_back_however_they_lie_in_memory() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for view in (values.T, values[:, ::-1], values[:, :, 1::2], np.asfortranarray(values), values[:0]):
        np.testing.assert_array_equal(_round_trip(view), view)


def test_one_long_transcript_does_not_cost_its_length_for_every_row(file: h5py.File) -> None:
    words = [f"some words, {row}" for row in range(400)]
    words[123] = "é" * 300_000  # 600 kB; 400 times as much would be 240 MB
    tracemalloc.start()
    try:
        write_dataset(file, "transcript", texts(words))
        column = read_dataset(file["transcript"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert list(column) == words
    assert peak < 10 * TEXT_BLOCK
    assert file["transcript"].id.get_storage_size() < 3_000_000


def test_text_longer_than_a_block_comes_back(file: h5py.File) -> None:
    words = ["a" * (TEXT_BLOCK + 1), "", "b"]
    write_dataset(file, "transcript", texts(words))
    assert list(read_dataset(file["transcript"])) == words


def test_a_column_of_several_blocks_comes_back() -> None:
    words = [f"{row:01000d}" for row in range(3 * TEXT_BLOCK // 1000)]
    assert list(_round_trip(texts(words))) == words


def test_equal_words_of_a_column_are_one_object() -> None:
    column = _round_trip(texts(["happy", "sad"] * 500))
    assert len({id(word) for word in column}) == 2


@pytest.mark.parametrize(
    ("word", "reason"), [("a\0b", "holds a NUL"), ("a\0", "holds a NUL"), ("\ud800", "surrogates not allowed")]
)
def test_text_that_a_column_cannot_hold_is_refused(file: h5py.File, word: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        write_dataset(file, "label", texts(["well", word]))


def test_checksums_are_those_of_the_documented_bytes(file: h5py.File) -> None:
    write_dataset(file, "numbers", np.array([[1.5, -2.0]], dtype=np.float32))
    write_dataset(file, "text", texts(["é", "", "b"]))
    write_dataset(file, "empty", texts([]))
    assert file["numbers"].attrs["crc32"] == zlib.crc32(bytes.fromhex("0000c03f000000c0"))
    assert file["text"].attrs["crc32"] == zlib.crc32(b"\xc3\xa9\0\0b")
    assert file["empty"].attrs["crc32"] == 0


@pytest.mark.parametrize(("values", "other"), [(np.array([1.0, 2.0]), 1.0000001), (texts(["happy", "sad"]), "Happy")])
def test_a_changed_value_is_told_with_its_place(file: h5py.File, values: npt.NDArray[Any], other: object) -> None:
    write_dataset(file, "a/b", values)
    file["a/b"][0] = other
    with pytest.raises(CacheError, match=r"^/a/b does not match its checksum$"):
        read_dataset(file["a/b"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT)
def test_any_attribute_comes_back(file: h5py.File, text: str) -> None:
    write_attribute(file, "note", text)
    assert read_attribute(file, "note") == text


def test_an_attribute_that_would_leave_the_object_header_is_refused(file: h5py.File) -> None:
    write_attribute(file, "longest", "z" * 60_000)
    assert read_attribute(file, "longest") == "z" * 60_000
    with pytest.raises(ValueError, match=r"^long is 60,001 bytes long, more than 60,000$"):
        write_attribute(file, "long", "é" * 30_000 + "z")
    with pytest.raises(ValueError, match=r"^nul holds a NUL character$"):
        write_attribute(file, "nul", "a\0")
