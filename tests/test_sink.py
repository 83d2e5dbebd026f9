"""A full disk while HDF5 writes: one error, no crash, whatever byte it strikes at."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from amber2_core.sink import Sink

# Files may grow to so many bytes and no further; every size stands for another moment of a full disk.
LIMITED = """
import resource, sys
from pathlib import Path
from golden_cache import contents, golden_cache
from amber2_core.cache import read_cache, write_cache
from amber2_core.errors import CacheError

path = Path(sys.argv[1])
write_cache(path, golden_cache())
size = path.stat().st_size
path.unlink()
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in [*range(0, 4000, 250), *range(4000, size, 1500), size - 1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        write_cache(path, golden_cache())
    except CacheError as error:
        assert str(error) == f"Cannot write {path}: File too large; choose another place with --output", error
    else:
        raise AssertionError(f"{limit} bytes were enough")
    assert not list(path.parent.iterdir()), limit
resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
write_cache(path, golden_cache())
assert contents(read_cache(path)) == contents(golden_cache())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="only POSIX limits the size of files")
def test_a_disk_that_fills_up_at_any_moment_is_one_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "cache.h5")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_written_is_in_the_file(tmp_path: Path) -> None:
    with Sink(tmp_path / "file", "w+") as sink:
        assert sink.write(b"well then") == 9
        assert sink.write(memoryview(b"abcdefgh").cast("d")) == 8  # bytes, not items
        assert sink.truncate(11) == 11
    assert (tmp_path / "file").read_bytes() == b"well thenab"


def _write(place: Path, error: BaseException | None) -> None:
    with Sink(place, "w") as sink:
        assert sink.write(b"much") == 4
        assert sink.truncate(2) == 2
        if error is not None:
            raise error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("error", [None, RuntimeError("HDF5's view of the matter"), OSError(errno.EIO, "HDF5 again")])
def test_a_failure_is_told_at_the_end_in_place_of_what_came_of_it(error: Exception | None) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        _write(Path("/dev/full"), error)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_file_that_cannot_be_cut_is_told() -> None:
    sink = Sink("/dev/full", "w")
    assert sink.truncate(2) == 2
    with pytest.raises(OSError, match="Invalid argument"), sink:
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_interruption_is_not_hidden_by_a_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        _write(Path("/dev/full"), KeyboardInterrupt())


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="bug"):
        _write(tmp_path / "file", RuntimeError("bug"))
