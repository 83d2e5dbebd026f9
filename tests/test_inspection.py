"""A cache is described, and every number of it verified, however large it is."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from golden_cache import golden_cache

from amber2_core.cache import write_cache
from amber2_core.errors import CacheError
from amber2_extract.inspection import read_description


def test_a_large_cache_is_verified_without_its_numbers_in_memory(tmp_path: Path) -> None:
    cache = golden_cache()
    values = np.ones((5, 2_000_000), dtype=np.float32)
    large = replace(cache.features[2], values=values)
    write_cache(tmp_path / "large.h5", replace(cache, features=(large,)))
    tracemalloc.start()
    record = read_description(tmp_path / "large.h5", verify=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert record["verified"]
    assert record["features"][0]["shape"] == [5, 2_000_000]
    assert peak < values.nbytes / 2


@pytest.mark.parametrize("place", ["values", "inputs", "frames/values", "frames/offsets"])
def test_damage_anywhere_in_a_feature_set_is_found(tmp_path: Path, place: str) -> None:
    path = tmp_path / "cache.h5"
    write_cache(path, golden_cache())
    with h5py.File(path, "r+") as file:
        dataset = file["features/audio/wav2vec2"][place]
        values = dataset[...]
        values[0] = values[1]
        dataset[...] = values
    with pytest.raises(CacheError, match="does not match its checksum"):
        read_description(path, verify=True)
    assert not read_description(path)["verified"]
