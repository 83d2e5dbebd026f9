"""The feature cache: what is written is read, what is not whole is refused in one line, and old files stay readable."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
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

import amber2_core.files
from amber2_core.cache import FeatureCache, FeatureHeader, read_cache, read_feature_headers, write_cache
from amber2_core.errors import CacheError
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


def test_a_folder_is_no_cache(tmp_path: Path) -> None:
    assert _refusal(lambda: read_cache(tmp_path)).startswith(f"No feature cache at {tmp_path}: make one")


def test_a_cache_without_permission_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5py, "File", _fail(errno.EACCES))
    assert _refusal(lambda: read_cache(written)) == f"Cannot read {written}: Permission denied"


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
