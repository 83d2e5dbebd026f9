"""Feature sets that stay on the disk: the same numbers, verified, and never all of them in memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from golden_cache import contents, golden_cache, tree

import amber2_core.features
from amber2_core.cache import read_cache, write_cache
from amber2_core.errors import CacheError
from amber2_core.stored import stored_features
from amber2_core.tables import take, texts


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The golden cache in a file."""
    write_cache(tmp_path / "one.h5", golden_cache())
    return tmp_path / "one.h5"


@pytest.fixture(params=[1, 20, 1 << 22])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amber2_core.features, "BLOCK_BYTES", request.param)


def test_a_cache_is_copied_block_by_block_to_the_last_bit(written: Path, block_bytes: None) -> None:
    other = written.with_name("other.h5")
    with stored_features(written) as sets:
        write_cache(other, replace(golden_cache(), features=()), sets)
    assert contents(read_cache(other)) == contents(golden_cache())
    assert tree(other) == tree(written)


def test_a_cache_may_replace_the_one_it_is_copied_from(written: Path) -> None:
    with stored_features(written) as sets:
        write_cache(written, replace(golden_cache(), features=()), sets[:1])
        values = sets[1].values[slice(0, 5)]  # of the file that has no name any more
    np.testing.assert_array_equal(values, golden_cache().features[1].values)
    assert contents(read_cache(written)) == contents(replace(golden_cache(), features=golden_cache().features[:1]))


def test_a_flipped_bit_in_any_block_is_noticed(written: Path, block_bytes: None) -> None:
    whole = written.read_bytes()
    with h5py.File(written) as file:
        numbers = file["features/audio/wav2vec2/values"]
        place, size = numbers.id.get_offset(), numbers.id.get_storage_size()
    for byte in range(place, place + size, 7):
        flipped = bytearray(whole)
        flipped[byte] ^= 1
        written.write_bytes(flipped)
        with pytest.raises(CacheError, match="values does not match its checksum"), stored_features(written):
            pass


def test_what_goes_wrong_while_it_is_open_is_not_taken_for_damage(written: Path) -> None:
    with pytest.raises(KeyError, match="of the caller's"), stored_features(written):
        raise KeyError("of the caller's")


def test_a_large_set_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    golden, count = golden_cache(), 40_000
    table = replace(
        take(golden.utterances, np.zeros(count, dtype=np.intp)), id=texts([str(row) for row in range(count)])
    )
    values = np.ones((count, 256), dtype=np.float32)
    features = replace(golden.features[0], values=values, inputs=texts(["f" * 64] * count), frames=None)
    nobody = take(golden.ratings, np.array([], dtype=np.intp))
    large = replace(golden, utterances=table, ratings=nobody, attributes={}, features=())
    write_cache(tmp_path / "one.h5", replace(large, features=(features,)))
    with stored_features(tmp_path / "one.h5") as sets:
        tracemalloc.start()
        write_cache(tmp_path / "other.h5", large, sets)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < values.nbytes / 2
