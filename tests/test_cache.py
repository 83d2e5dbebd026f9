"""The feature cache: what is written is read, what is not whole is refused in one line, and old files stay readable."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from golden_cache import GOLDEN, contents, golden_cache, tree

import amber2_core.features
import amber2_core.files
from amber2_core.cache import (
    READERS,
    FeatureCache,
    FeatureHeader,
    Frames,
    StoredArray,
    mapped_features,
    read_cache,
    read_feature_headers,
    stored_features,
    write_cache,
)
from amber2_core.errors import CacheError
from amber2_core.features import FrameSet
from amber2_core.files import sync
from amber2_core.tables import take, texts

AGAIN = "encode the corpus again with extract-features"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a cache may be written, in a folder of its own."""
    return tmp_path / "corpora" / "example.h5"


@pytest.fixture
def written(path: Path) -> Path:
    """The golden cache, written now."""
    write_cache(path, golden_cache())
    return path


def _refusal(action: Callable[[], object]) -> str:
    with pytest.raises(CacheError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- round trips ---


def _bare() -> FeatureCache:
    cache = golden_cache()
    nobody = take(cache.ratings, np.array([], dtype=np.intp))
    return replace(cache, ratings=nobody, features=(), attributes={}, failures=(), summary={}, versions={})


@pytest.mark.parametrize(
    "cache",
    [
        pytest.param(golden_cache(), id="everything"),
        pytest.param(_bare(), id="no rating, feature, attribute, failure"),
        pytest.param(replace(golden_cache(), corpus="", corpus_version="", created=""), id="empty settings"),
        pytest.param(
            replace(golden_cache(), attributes={f"a{i}": np.ones(5) for i in range(200)}), id="200 attributes"
        ),
    ],
)
def test_what_is_written_is_read(path: Path, cache: FeatureCache) -> None:
    write_cache(path, cache)
    assert contents(read_cache(path)) == contents(replace(cache, attributes=dict(sorted(cache.attributes.items()))))


def test_feature_sets_come_back_in_the_order_of_their_names(path: Path) -> None:
    cache = golden_cache()
    write_cache(path, replace(cache, features=cache.features[::-1]))
    assert contents(read_cache(path)) == contents(cache)


def test_only_the_wanted_feature_sets_are_read(written: Path) -> None:
    _overwrite(written, "features/audio/layers of é/values", 1)
    cache = read_cache(written, only=[("text", "bert")])
    assert contents(cache) == contents(replace(golden_cache(), features=golden_cache().features[2:]))


def test_headers_describe_feature_sets_without_reading_their_numbers(written: Path) -> None:
    for features in golden_cache().features:
        _overwrite(written, f"features/{features.modality}/{features.name}/values", 1)
    assert read_feature_headers(written) == tuple(
        FeatureHeader(f.modality, f.name, f.values.shape, str(f.values.dtype), f.recipe, f.fingerprint, bool(f.frames))
        for f in golden_cache().features
    )


def test_a_recipe_comes_back_with_the_fingerprint_that_it_had(path: Path) -> None:
    cache = golden_cache()
    recipe = {"resampler": {"zeros": 64, "beta": 14.7697}, "layers": (1, 2), "möbel": None}
    write_cache(path, replace(cache, features=(replace(cache.features[0], recipe=recipe),)))
    (features,) = read_cache(path).features
    assert features.recipe == {**recipe, "layers": [1, 2]}
    assert features.fingerprint == replace(cache.features[0], recipe=recipe).fingerprint


# --- the golden file ---


def test_the_golden_file_reads_to_the_values_it_was_made_of() -> None:
    assert GOLDEN.stat().st_size < 60_000
    assert contents(read_cache(GOLDEN)) == contents(golden_cache())


def test_a_cache_written_today_is_laid_out_as_the_golden_file(written: Path) -> None:
    assert tree(written) == tree(GOLDEN)
    # the ninth byte is the superblock's version: 3 has checksums, as have the objects marked OHDR
    assert [file.read_bytes()[8] for file in (written, GOLDEN)] == [3, 3]
    assert [file.read_bytes().count(b"OHDR") for file in (written, GOLDEN)] == [len(tree(GOLDEN))] * 2


# --- writing: complete or not at all ---


def _fail(number: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    return call


@pytest.mark.parametrize(
    ("function", "number", "reason"),
    [
        ("amber2_core.files.sync", errno.ENOSPC, "No space left on device"),
        ("amber2_core.cache.write_dataset", errno.EIO, "Input/output error"),
        ("os.replace", errno.EACCES, "Permission denied"),
        ("pathlib.Path.mkdir", errno.EROFS, "Read-only file system"),
    ],
)
@pytest.mark.parametrize("older", [True, False], ids=["over an older cache", "anew"])
def test_an_error_in_writing_leaves_nothing_but_an_older_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, reason: str, older: bool
) -> None:
    path = tmp_path / "example.h5"
    if older:
        write_cache(path, _bare())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(function, _fail(number))
    line = _refusal(lambda: write_cache(path, golden_cache()))
    assert line == f"Cannot write {path}: {reason}; choose another place with --output"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_interrupted_writer_leaves_nothing_but_an_older_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "example.h5"
    write_cache(path, _bare())
    monkeypatch.setattr("amber2_core.cache.write_attribute", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_cache(path, golden_cache())
    assert list(tmp_path.iterdir()) == [path]
    assert contents(read_cache(path)) == contents(_bare())


def test_a_cache_takes_its_name_only_when_it_is_complete_and_on_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def synced(place: Path) -> None:
        if place.is_file():
            assert contents(read_cache(place)) == contents(golden_cache())
        steps.append(("synced", place == path.parent, path.exists()))
        sync(place)

    monkeypatch.setattr(amber2_core.files, "sync", synced)
    write_cache(path, golden_cache())
    assert steps == [("synced", False, False), ("synced", True, True)]  # the file, then its name
    assert list(path.parent.iterdir()) == [path]


def test_a_cache_may_be_read_by_whoever_may_read_new_files(written: Path) -> None:
    other = written.with_name("other")
    other.touch()
    assert written.stat().st_mode == other.stat().st_mode


def test_places_where_no_file_can_be_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for place, reason in (
        (file / "cache.h5", f"{file} is a file; choose another place with --output"),
        (file / "below" / "cache.h5", "Not a directory; choose another place with --output"),
        (tmp_path, "it is a folder; name a file with --output"),
        (Path("."), "it is a folder; name a file with --output"),
        (tmp_path / ("n" * 300), "File name too long; choose another place with --output"),
    ):
        assert _refusal(partial(write_cache, place, golden_cache())) == f"Cannot write {place}: {reason}"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not hold root back")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    line = _refusal(lambda: write_cache(tmp_path / "cache.h5", golden_cache()))
    tmp_path.chmod(0o700)
    assert line == f"Cannot write {tmp_path / 'cache.h5'}: Permission denied; choose another place with --output"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"summary": {"loss": float("nan")}}, "Out of range float values are not JSON compliant"),
        ({"summary": {"notes": "z" * 60_000}}, "summary is 60,012 bytes long, more than 60,000"),
        ({"transcript": texts(["a", "b\0", "", "", ""])}, "utterances/transcript holds a NUL character"),
        ({"id": texts(["a", "a", "c", "d", "e"])}, "two utterances have the same id"),
    ],
    ids=["NaN in JSON", "long JSON", "NUL", "ids"],
)
def test_what_a_file_cannot_hold_is_refused_before_anything_stands(
    path: Path, change: dict[str, Any], reason: str
) -> None:
    cache = golden_cache()
    if "summary" in change:
        cache = replace(cache, **change)
    else:
        cache = replace(cache, utterances=replace(cache.utterances, **change))
    assert _refusal(lambda: write_cache(path, cache)).startswith(f"Cannot write {path}: {reason}")
    assert not path.parent.exists() or not list(path.parent.iterdir())


# --- reading: a whole cache of this version, or one line ---


def _overwrite(path: Path, place: str, number: float) -> None:
    with h5py.File(path, "r+") as file:
        file[place][0] = number


def _set(path: Path, place: str, attribute: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file[place].attrs[attribute] = value


def _delete(path: Path, place: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[place]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["values"] = [1.0, 2.0]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (Path.unlink, "No feature cache at {}: make one with extract-features, or name one with --cache"),
        (lambda p: p.write_bytes(b""), "{} is not an HDF5 file: make a cache with extract-features"),
        (lambda p: p.write_text("id,label\na,happy\n"), "{} is not an HDF5 file: make a cache with extract-features"),
        (_foreign, "{} is an HDF5 file but not a feature cache: make one with extract-features"),
        (
            lambda p: _set(p, "/", "format", "amber2-heads"),
            "{} is an HDF5 file but not a feature cache: make one with extract-features",
        ),
        (lambda p: _set(p, "/", "format_version", 2), "{} has cache format 2, this amber2 reads 1: update amber2"),
        (lambda p: _set(p, "/", "format_version", 0), "{} has cache format 0, this amber2 reads 1: " + AGAIN),
        (
            lambda p: _overwrite(p, "features/audio/wav2vec2/values", 0.5),
            "{} is damaged (/features/audio/wav2vec2/values does not match its checksum): " + AGAIN,
        ),
        (
            lambda p: _overwrite(p, "features/audio/wav2vec2/frames/offsets", 1),
            "{} is damaged (/features/audio/wav2vec2/frames/offsets does not match its checksum): " + AGAIN,
        ),
        (
            lambda p: _set(p, "features/text/bert", "recipe", '{"model":"another"}'),
            "{} is damaged (the recipe of /features/text/bert does not match its fingerprint): " + AGAIN,
        ),
        (
            lambda p: _delete(p, "failures/reason"),
            "{} is truncated or damaged (Unable to synchronously open object (object 'reason' doesn't exist)): "
            + AGAIN,
        ),
        (lambda p: _set(p, "/", "defaults", "{"), "{} is truncated or damaged (Expecting property name"),
        (_cut, "{} is truncated or damaged (Unable to synchronously open file (truncated file: eof = 5000,"),
    ],
)
def test_what_is_not_a_whole_cache_is_refused_in_one_line(
    written: Path, damage: Callable[[Path], object], line: str
) -> None:
    damage(written)
    heard, expected = _refusal(lambda: read_cache(written)), line.format(written)
    # HDF5's and Python's own words may go on after the part that is expected
    assert heard == expected or (heard.startswith(expected) and heard.endswith(f"): {AGAIN}"))


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        _foreign,
        _cut,
        lambda p: _set(p, "/", "format_version", 2),
        lambda p: _set(p, "features/text/bert", "recipe", '{"model":"another"}'),
    ],
)
def test_headers_are_refused_with_the_same_line(written: Path, damage: Callable[[Path], object]) -> None:
    damage(written)
    assert _refusal(lambda: read_feature_headers(written)) == _refusal(lambda: read_cache(written))


def test_a_file_is_read_by_the_reader_of_its_version(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_1 = READERS[1]
    of_2 = replace(of_1, tables=lambda file: replace(of_1.tables(file), corpus="read as 2"))
    monkeypatch.setattr("amber2_core.cache.READERS", {1: of_1, 2: of_2})
    assert read_cache(written).corpus == golden_cache().corpus
    _set(written, "/", "format_version", 2)
    assert read_cache(written).corpus == "read as 2"
    _set(written, "/", "format_version", 3)
    line = f"{written} has cache format 3, this amber2 reads 1, 2: update amber2"
    assert _refusal(lambda: read_cache(written)) == _refusal(lambda: mapped_features(written)) == line


def test_a_folder_is_no_cache(tmp_path: Path) -> None:
    assert _refusal(lambda: read_cache(tmp_path)).startswith(f"No feature cache at {tmp_path}: make one")


def test_a_cache_without_permission_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5py, "File", _fail(errno.EACCES))
    assert _refusal(lambda: read_cache(written)) == f"Cannot read {written}: Permission denied"


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_readers_ask_for_no_lock_which_a_file_system_may_refuse(written: Path) -> None:
    import fcntl

    with written.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever asks for a lock now is refused
        assert contents(read_cache(written)) == contents(golden_cache())
        assert read_feature_headers(written)
        assert mapped_features(written)
        with stored_features(written) as sets:
            assert sets[0].values[:1].shape[0] == 1


def test_a_cache_that_the_process_has_open_already_is_read(written: Path) -> None:
    with h5py.File(written, "r"):
        assert contents(read_cache(written)) == contents(golden_cache())


def test_unknown_groups_and_attributes_are_ignored(written: Path) -> None:
    with h5py.File(written, "r+") as file:
        file["extension/values"] = [1, 2, 3]
        file["utterances/mood"] = [1.0] * 5
        file.attrs["note"] = "from a friend"
        file["features/text/bert"].attrs["note"] = "dull"
    assert contents(read_cache(written)) == contents(golden_cache())


@pytest.mark.parametrize(
    ("kind", "count"), [("flips", 400), ("flips_in_settings", 100), ("erasures", 150), ("cuts", 300)]
)
def test_a_damaged_cache_is_refused_or_reads_as_it_was_and_never_hangs(kind: str, count: int) -> None:
    command = [sys.executable, str(Path(__file__).with_name("damage.py")), kind, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert outcomes.keys() <= {"refused", "as it was"}
    # flips can hit room that no object uses; a cut never can
    assert outcomes["refused"] >= 0.85 * count
    assert outcomes.get("as it was", 0) == 0 or kind in ("flips", "erasures")


# --- many readers ---


def _read_often(path: Path) -> list[bool]:
    """Whether each of 25 readings gave one of the two caches that are written in turn, whole."""
    whole = {turn: contents(replace(golden_cache(), created=turn)) for turn in ("first", "second")}
    readings = [contents(read_cache(path)) for _ in range(25)]
    return [reading == whole[reading["/created"]] for reading in readings]


def test_many_readers_at_once_see_whole_caches_while_one_is_replaced(path: Path) -> None:
    caches = [replace(golden_cache(), created=turn) for turn in ("first", "second")]
    write_cache(path, caches[0])
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as readers:
        readings = [readers.submit(_read_often, path) for _ in range(3)]
        turn, end = 0, time.monotonic() + 120
        while not all(reading.done() for reading in readings) and time.monotonic() < end:
            turn += 1
            write_cache(path, caches[turn % 2])
    assert turn > 0
    assert [reading.result(timeout=60) for reading in readings] == [[True] * 25] * 3


# --- feature sets that stay on the disk: verified, and never all of them in memory ---


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


# --- feature sets that other processes map ---


def _sum_of(places: list[StoredArray]) -> list[float]:
    return [float(np.nansum(place.open(), dtype=np.float64)) for place in places]


def test_mapped_numbers_are_those_that_are_read_in_other_processes_too(written: Path) -> None:
    read, mapped = read_cache(written).features, mapped_features(written)
    opened = [replace(some, values=some.values.open(), frames=_opened(some.frames)) for some in mapped]
    assert contents(replace(golden_cache(), features=tuple(opened))) == contents(golden_cache())
    assert all(isinstance(some.values, np.memmap) for some in opened)
    places = [some.values for some in mapped]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as worker:
        sums = worker.submit(_sum_of, places).result(timeout=60)
    assert sums == [float(np.nansum(some.values, dtype=np.float64)) for some in read]
    np.testing.assert_array_equal(places[0][slice(1, 3)], read[0].values[1:3])


def _opened(frames: FrameSet[StoredArray] | None) -> Frames | None:
    return frames and Frames(frames.values.open(), frames.offsets)


def test_only_the_wanted_feature_sets_are_mapped(written: Path) -> None:
    _overwrite(written, "features/audio/layers of é/values", 1)
    assert [some.name for some in mapped_features(written, only=[("text", "bert")])] == ["bert"]


def test_who_changes_mapped_numbers_changes_no_file(written: Path) -> None:
    before = written.read_bytes()
    values = mapped_features(written)[2].values.open()
    values[:] = 7
    values.flush()
    assert (values == 7).all()
    assert written.read_bytes() == before


def test_a_cache_that_was_replaced_or_removed_is_not_mapped(written: Path) -> None:
    (place, *_) = (some.values for some in mapped_features(written))
    mapped = place.open()
    write_cache(written, replace(golden_cache(), summary={"another": "one"}))
    line = f"{written} was replaced while it was in use: run the command again"
    assert _refusal(place.open) == line
    np.testing.assert_array_equal(mapped, golden_cache().features[0].values)  # what is mapped already stays
    written.unlink()
    assert _refusal(place.open) == f"Cannot read {written}: No such file or directory"


def test_an_utterance_free_sequence_is_mapped_as_nothing(path: Path) -> None:
    cache = golden_cache()
    empty = Frames(np.empty((0, 6), dtype=np.float32), np.zeros(6, dtype=np.int64))
    write_cache(path, replace(cache, features=(replace(cache.features[1], frames=empty),)))
    (some,) = mapped_features(path)
    assert some.frames is not None
    assert some.frames.values.open().shape == (0, 6)


def test_damaged_numbers_and_numbers_in_pieces_are_not_mapped(written: Path) -> None:
    name = "features/audio/wav2vec2/values"
    with h5py.File(written, "r+") as file:
        values, checksum = file[name][...], file[name].attrs["crc32"]
        del file[name]
        file.create_dataset(name, data=values, chunks=(1, 6)).attrs["crc32"] = checksum
    assert contents(read_cache(written)) == contents(golden_cache())
    pieces = f"{written} is damaged (the numbers of /{name} do not lie in one piece): {AGAIN}"
    assert _refusal(lambda: mapped_features(written)) == pieces
    _overwrite(written, name, 1)
    damaged = f"{written} is damaged (/{name} does not match its checksum): {AGAIN}"
    assert _refusal(lambda: mapped_features(written)) == damaged


def test_numbers_of_any_size_to_speak_of_begin_where_memory_would_let_them(tmp_path: Path) -> None:
    golden, count = golden_cache(), 999
    table = replace(
        take(golden.utterances, np.zeros(count, dtype=np.intp)), id=texts([str(row) for row in range(count)])
    )
    inputs = texts(["f" * 64] * count)
    sets = tuple(
        replace(golden.features[0], name=name, values=np.ones((count, size), dtype), inputs=inputs, frames=None)
        for name, size, dtype in (("a", 7, np.float16), ("b", 5, np.float32), ("c", 3, np.float32))
    )
    nobody = take(golden.ratings, np.array([], dtype=np.intp))
    write_cache(tmp_path / "one.h5", replace(golden, utterances=table, ratings=nobody, attributes={}, features=sets))
    assert [some.values.offset % 64 for some in mapped_features(tmp_path / "one.h5")] == [0, 0, 0]
