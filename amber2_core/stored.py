"""The path of a feature cache goes in; its feature sets come out with their numbers still on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py

from .cache import feature_keys, opened, recipe_of
from .columns import read_dataset, verify_numbers
from .features import StoredFeatures, StoredFrames


@contextmanager
def stored_features(path: Path) -> Iterator[tuple[StoredFeatures, ...]]:
    """The feature sets of a cache, verified; their numbers can be read for as long as the block is open.

    Raises:
        CacheError: as `amber2_core.cache.read_cache`.
    """
    with ExitStack() as stack:
        with opened(path):
            # HDF5 shares the open file; this handle lasts, and what goes wrong later is no damage of the file.
            file = stack.enter_context(h5py.File(path, "r"))
            sets = tuple(
                _stored(file["features"][modality][name], modality, name) for modality, name in feature_keys(file)
            )
        yield sets


def _stored(group: h5py.Group, modality: str, name: str) -> StoredFeatures:
    frames = None
    if "frames" in group:
        verify_numbers(group["frames/values"])
        frames = StoredFrames(group["frames/values"], read_dataset(group["frames/offsets"]))
    verify_numbers(group["values"])
    return StoredFeatures(modality, name, group["values"], read_dataset(group["inputs"]), recipe_of(group), frames)
