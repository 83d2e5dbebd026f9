"""Numbers and text as HDF5 datasets and attributes, whose damage is an error, never another value and never a hang."""

from __future__ import annotations

import zlib
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from .errors import CacheError
from .features import Rows, blocks
from .tables import Texts, texts

TEXT_BLOCK = 1 << 22  # bytes of padded text in one chunk
ATTRIBUTE_BYTES = 60_000  # what is longer would leave the object header, and with it the header's checksum


def write_dataset(file: h5py.File, place: str, values: npt.NDArray[Any] | Rows) -> None:
    """Write numbers of any shape, or a column of text, with their checksum.

    What lies on the disk is read, and written, a block of rows at a time.

    Raises:
        ValueError: text that holds a NUL character or half a surrogate pair, which a dataset cannot hold.
        OSError: what lies on the disk cannot be read.
    """
    if isinstance(values, np.ndarray) and values.dtype == object:
        dataset, checksum = _write_text(file, place, values), _crc32(values)
    else:
        dataset = file.create_dataset(place, values.shape, values.dtype)
        checksum = zlib.crc32(b"")
        for rows in blocks(values):
            block = np.ascontiguousarray(values[rows])
            dataset[rows] = block
            checksum = _crc32(block, checksum)
    dataset.attrs["crc32"] = np.uint32(checksum)


def read_dataset(dataset: h5py.Dataset) -> npt.NDArray[Any]:
    """The values of a dataset.

    Raises:
        CacheError: they do not match their checksum. Where HDF5 notices the damage, OSError and its like.
    """
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    values: npt.NDArray[Any] = _read_text(dataset) if is_text else dataset[...]
    if _crc32(values) != int(dataset.attrs["crc32"]):
        raise CacheError(f"{dataset.name} does not match its checksum")
    return values


def verify_numbers(dataset: h5py.Dataset) -> None:
    """See that numbers match their checksum, a block of rows at a time.

    Raises:
        CacheError: they do not. Where HDF5 notices the damage, OSError and its like.
    """
    checksum = zlib.crc32(b"")
    for rows in blocks(dataset):
        checksum = _crc32(dataset[rows], checksum)
    if checksum != int(dataset.attrs["crc32"]):
        raise CacheError(f"{dataset.name} does not match its checksum")


def write_attribute(place: h5py.Group, name: str, text: str) -> None:
    """Write a text attribute.

    Raises:
        ValueError: it is too long to lie in the object header, or holds a NUL character.
    """
    if "\0" in text:
        raise ValueError(f"{name} holds a NUL character")
    encoded = text.encode() or b"\0"
    if len(encoded) > ATTRIBUTE_BYTES:
        raise ValueError(f"{name} is {len(encoded):,} bytes long, more than {ATTRIBUTE_BYTES:,}")
    place.attrs.create(name, encoded, dtype=h5py.string_dtype("utf-8", len(encoded)))


def read_attribute(place: h5py.Group, name: str) -> str:
    """A text attribute."""
    value = place.attrs[name]
    return value.decode() if isinstance(value, bytes) else str(value)


def _write_text(file: h5py.File, place: str, values: Texts) -> h5py.Dataset:
    encoded = [value.encode() for value in values]
    if any(b"\0" in value for value in encoded):
        raise ValueError(f"{place} holds a NUL character")
    width = max(map(len, encoded), default=0) or 1
    dtype = h5py.string_dtype("utf-8", width)
    if not encoded:  # nothing has no chunks
        return file.create_dataset(place, (0,), dtype)
    rows = max(1, min(len(encoded), TEXT_BLOCK // width))
    dataset = file.create_dataset(
        place, (len(encoded),), dtype, chunks=(rows,), compression="gzip", compression_opts=1, fletcher32=True
    )
    for first in range(0, len(encoded), rows):
        dataset[first : first + rows] = np.array(encoded[first : first + rows], dtype=dtype)
    return dataset


def _read_text(dataset: h5py.Dataset) -> Texts:
    """A column of text, read block by block: one long transcript must not cost its length for every row."""
    rows = max(1, TEXT_BLOCK // dataset.dtype.itemsize)
    column: list[str] = []
    for first in range(0, len(dataset), rows):
        block = dataset[first : first + rows].tolist()
        # a million ratings share a handful of words: one object for each
        word_of = {word: word.decode() for word in set(block)}
        column += [word_of[word] for word in block]
    return texts(column)


def _crc32(values: npt.NDArray[Any], before: int = 0) -> int:
    """The checksum of values, or of what stands `before` them and the values."""
    if values.dtype == object:
        return zlib.crc32("\0".join(values).encode())
    return zlib.crc32(values.reshape(-1).data.cast("B"), before) if values.size else before
