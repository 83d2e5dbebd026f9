"""Files of arrays made elsewhere (.npy, .npz, HDF5, safetensors), read by name; nothing in them is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from amber2_core.errors import CacheError, bad_choice
from amber2_core.tables import Texts, texts

MAX_BYTES = 64 << 30  # of one array: more is a damaged header, or an attack
MAX_RATIO = 1100  # that deflate reaches: what claims to be packed more tightly is neither

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ArrayFile:
    """What a file of arrays holds; the numbers are read when they are asked for."""

    path: Path
    # name → shape; a .npy file's only array is called like the file
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> Array:
        """An array: numbers as they are, text of any kind as a column of str.

        Raises:
            CacheError: there is none of that name, it holds Python objects, or it is damaged.
        """
        if name not in self.shapes:
            raise CacheError(f"{bad_choice('array', name, self.shapes)} of {self.path}")
        values = _guarded(self.path, lambda: _FORMATS[self.path.suffix.lower()][1](self.path, name))
        return _as_text(self.path, name, values) if values.dtype.kind in "SUO" else values


def open_arrays(path: Path) -> ArrayFile:
    """The arrays of a file, by the suffix of its name.

    Raises:
        CacheError: no such file, another suffix, damaged, or it holds Python objects.
    """
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        hint = "; save pickled arrays again with numpy.savez" if suffix in (".pkl", ".pickle", ".pt") else ""
        raise CacheError(f"{bad_choice('suffix', path.suffix, _FORMATS)}: {path}{hint}")
    if not path.is_file():
        raise CacheError(f"No file {path}")
    return ArrayFile(path, _guarded(path, lambda: _FORMATS[suffix][0](path)))


def _guarded(path: Path, function: Any) -> Any:
    """Whatever a damaged file makes of a library becomes one line."""
    try:
        return function()
    except CacheError:
        raise
    except OSError as problem:
        if problem.errno is not None:
            raise CacheError(f"Cannot read {path}: {problem.strerror}") from None
        raise CacheError(f"{path} is damaged: {_line(problem)}") from None
    except MemoryError:
        raise CacheError(f"{path} does not fit into memory") from None
    except Exception as problem:  # the parsers of four formats, each with errors of its own
        raise CacheError(f"{path} is damaged or holds what is no plain array: {_line(problem)}") from None


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__


def _as_text(path: Path, name: str, values: Array) -> Texts:
    try:
        plain = [item.decode() if isinstance(item, bytes) else item for item in values.ravel().tolist()]
    except UnicodeDecodeError:
        raise CacheError(f"array {name!r} of {path} holds text that is not UTF-8") from None
    if not all(isinstance(item, str) for item in plain):
        raise CacheError(f"array {name!r} of {path} holds Python objects, not numbers or text")
    if any("\0" in item or any("\ud800" <= c <= "\udfff" for c in item) for item in plain):
        raise CacheError(f"array {name!r} of {path} holds text that cannot be stored: a NUL or half a surrogate pair")
    return texts(plain)


def _check_size(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], stored: int) -> None:
    """Refuse a header that claims more than the file can hold."""
    if dtype.hasobject:
        raise CacheError(f"array {name!r} of {path} is pickled, and reading it could run code: save it as numbers")
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size > min(stored, MAX_BYTES):
        raise CacheError(f"{path} is damaged: array {name!r} claims {shape} {dtype}, more than the file holds")


def _npy_header(path: Path, name: str, file: Any, stored: int) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    _check_size(path, name, shape, dtype, stored)
    return tuple(int(size) for size in shape)


def _npy_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with path.open("rb") as file:
        return {path.stem: _npy_header(path, path.stem, file, path.stat().st_size)}


def _npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            with archive.open(entry) as file:
                stored = min(entry.file_size, MAX_RATIO * (entry.compress_size + 64))
                shapes[name] = _npy_header(path, name, file, stored)
    return shapes


def _hdf5_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, node: h5py.HLObject) -> None:
        if isinstance(node, h5py.Dataset) and node.shape is not None:
            shapes[name] = node.shape

    with h5py.File(path, "r", locking=False) as file:
        if file.attrs.get("format") is not None and "features" in file:
            raise CacheError(f"{path} is a feature cache itself: use it with --cache of train-heads")
        file.visititems(note)
    return shapes


def _safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="numpy") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping


def _read_npz(path: Path, name: str) -> Array:
    with np.load(path, allow_pickle=False) as archive:
        values: Array = archive[name]
        return values


def _read_hdf5(path: Path, name: str) -> Array:
    with h5py.File(path, "r", locking=False) as file:
        dataset = file[name]
        claimed, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
        if claimed > min(MAX_BYTES, stored if dataset.chunks is None else MAX_RATIO * stored):
            raise CacheError(f"{path} is damaged: {name!r} claims {dataset.shape}, more than the file holds")
        values: Array = dataset[...]
        return values


def _read_safetensors(path: Path, name: str) -> Array:
    with safe_open(path, framework="numpy") as file:
        values: Array = file.get_tensor(name)
        return values


# suffix → how the shapes of all arrays are read, and how one array is
_FORMATS: Mapping[str, tuple[Callable[[Path], Mapping[str, tuple[int, ...]]], Callable[[Path, str], Array]]] = {
    ".npy": (_npy_shapes, lambda path, name: np.load(path, allow_pickle=False)),
    ".npz": (_npz_shapes, _read_npz),
    ".h5": (_hdf5_shapes, _read_hdf5),
    ".hdf5": (_hdf5_shapes, _read_hdf5),
    ".safetensors": (_safetensors_shapes, _read_safetensors),
}
