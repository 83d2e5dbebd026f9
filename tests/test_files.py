"""Writing that ends complete or not at all, locks that outlive no process, and a full disk at any byte."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from amber2_core import files
from amber2_core.files import Sink, folder_written_whole, lock, write_json, write_text, written_whole

posix = pytest.mark.skipif(os.name != "posix", reason="permissions, locks and signals as POSIX has them")


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _write_file(path: Path, ending: Callable[[Path], None] = lambda _: None) -> None:
    with written_whole(path) as writing:
        writing.write_text("new")
        ending(writing)


def _write_folder(path: Path, ending: Callable[[Path], None] = lambda _: None) -> None:
    with folder_written_whole(path) as writing:
        (writing / "inner").mkdir()
        (writing / "inner/file").write_text("new")
        ending(writing)


def _modes(*places: Path) -> list[int]:
    return [place.stat().st_mode & 0o7777 for place in places]


# --- complete or not at all ---


def test_a_file_takes_its_name_when_it_is_complete_and_keeps_an_older_one_until_then(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    _write_file(path, lambda writing: write_text(path, "older"))
    assert path.read_text() == "new"
    _write_file(path, lambda writing: path.read_text() == "new" or pytest.fail("the older one has gone"))
    assert list(path.parent.iterdir()) == [path]


@posix
def test_what_a_symbolic_link_leads_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    target = tmp_path / "scratch" / "file"
    (tmp_path / "link").symlink_to("scratch/file")
    (tmp_path / "second").symlink_to("link")
    for older in (None, "older"):  # the target is not there at first
        target.unlink(missing_ok=True)
        if older:
            target.write_text(older)
        _write_file(tmp_path / "second")
        assert target.read_text() == "new"
        assert (tmp_path / "second").is_symlink()
        assert (tmp_path / "link").is_symlink()
        assert not target.is_symlink()
    (tmp_path / "run").symlink_to("scratch/run")
    _write_folder(tmp_path / "run")
    assert (tmp_path / "run").is_symlink()
    assert sorted(path.name for path in (tmp_path / "scratch").iterdir()) == ["file", "run"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run", "scratch", "second"]


def test_a_folder_takes_its_name_when_it_is_complete_and_never_that_of_another(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    _write_folder(path, lambda writing: not path.exists() or pytest.fail("it has its name already"))
    assert (path / "inner/file").read_text() == "new"
    with pytest.raises(FileExistsError):
        _write_folder(path)
    assert list(path.parent.iterdir()) == [path]


def test_everything_is_on_the_disk_before_it_has_its_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(files, "sync", lambda place: synced.append((place.name, path.exists())))
    path = tmp_path / "file"
    _write_file(path)
    assert [(name.startswith(".file."), named) for name, named in synced] == [(True, False), (False, True)]
    path, synced[:] = tmp_path / "folder", []
    _write_folder(path)
    assert [name.partition(".")[0] for name, _ in synced] == ["inner", "file", "", tmp_path.name]
    assert [named for _, named in synced] == [False, False, False, True]


@pytest.mark.parametrize("write", [_write_file, _write_folder])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, write: Callable[..., None], error: type[BaseException]) -> None:
    def ending(_: Path) -> None:
        raise error

    with pytest.raises(error):
        write(tmp_path / "name", ending)
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("write", ["written_whole", "folder_written_whole"])
def test_a_kill_leaves_nothing_under_the_name(tmp_path: Path, write: str) -> None:
    code = (
        f"import os, sys; from pathlib import Path; from amber2_core.files import {write}\n"
        f"with {write}(Path(sys.argv[1])) as writing: os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "name")], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "name").exists()
    assert len(list(tmp_path.glob(".name.*.writing"))) == 1


@posix
def test_files_and_folders_may_be_read_by_whoever_may_read_new_ones(tmp_path: Path, umask: int) -> None:
    for_the_user_alone: Callable[[Path], None] = lambda file: file.chmod(0o600)  # noqa: E731  as safetensors leaves it
    _write_file(tmp_path / "file", for_the_user_alone)
    _write_folder(tmp_path / "folder", lambda writing: for_the_user_alone(writing / "inner/file"))
    folders = _modes(tmp_path / "folder", tmp_path / "folder/inner")
    assert _modes(tmp_path / "file", tmp_path / "folder/inner/file") == [0o666 & ~umask] * 2
    assert folders == [0o777 & ~umask] * 2


def test_json_holds_names_of_files_that_are_no_text(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"cache": os.fsdecode(b"d\xe9j\xe0 \xc3\xa9")})
    text = (tmp_path / "file").read_text(encoding="utf-8")
    assert os.fsencode(json.loads(text)["cache"]) == b"d\xe9j\xe0 \xc3\xa9"


def test_json_is_indented_and_holds_nothing_that_json_has_not(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"größe": [1, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "größe": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_only_a_folder_may_be_beyond_syncing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(number)):
        files.sync(tmp_path / "file")
    if number == errno.EINVAL:
        files.sync(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            files.sync(tmp_path)


# --- locks ---


def _held_elsewhere(path: Path) -> subprocess.Popen[str]:
    """A process that holds a lock until its standard input ends."""
    code = (
        "import sys; from pathlib import Path; from amber2_core.files import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def _hold(held: AbstractContextManager[None]) -> None:
    with held:
        pass


@posix
def test_a_lock_is_held_by_one_process_whose_name_others_hear_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "work" / "lock"
    with _held_elsewhere(path) as holder:
        with pytest.raises(BlockingIOError) as caught:
            _hold(lock(path))
        holder.kill()
    import socket

    assert caught.value.strerror == f"being written by process {holder.pid} on {socket.gethostname()}"
    assert caught.value.filename == str(path)
    with lock(path):
        assert json.loads(path.read_text())["process"] == os.getpid()


@posix
def test_a_holder_may_remove_the_folder_and_the_next_makes_another(tmp_path: Path) -> None:
    path = tmp_path / "work" / "lock"
    with lock(path):
        shutil.rmtree(path.parent)
        with lock(path):
            assert path.exists()


@posix
def test_who_waited_for_a_lock_that_was_removed_does_not_hold_the_removed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path, flock, calls = tmp_path / "work" / "lock", fcntl.flock, []

    def after_its_removal(descriptor: int, operation: int) -> None:
        if not calls:
            shutil.rmtree(path.parent)  # between the opening and the locking
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_its_removal)
    with lock(path):
        assert len(calls) == 2
        with pytest.raises(BlockingIOError):
            _hold(lock(path))


@posix
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_the_work_goes_on_and_the_user_hears_what_to_see_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def flock(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with lock(tmp_path / "work" / "lock"):
        assert (tmp_path / "work" / "lock").exists()
    line = f"{tmp_path / 'work'}: no locks on this file system; see to it that no second command writes there"
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.WARNING, line)]


@posix
def test_a_lock_that_fails_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        _hold(lock(tmp_path / "lock"))
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        _hold(lock(tmp_path / "file" / "lock"))


# --- a full disk ---

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
