"""Work in progress has a folder that one process at a time holds, and none that is dead."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amber2_core.errors import CacheError
from amber2_extract import work_folder as work_folder_module
from amber2_extract.encoded import Encoded
from amber2_extract.parts import Parts
from amber2_extract.work_folder import work_folder


def _hold(output: Path, held: Any, release: Any) -> None:
    with work_folder(output):
        held.set()
        release.wait()


def _holder(output: Path) -> tuple[Any, Any]:
    """Another process that holds the output, and the event that lets go of it."""
    processes = multiprocessing.get_context("fork")
    held, release = processes.Event(), processes.Event()
    process = processes.Process(target=_hold, args=(output, held, release))
    process.start()
    assert held.wait(timeout=30)
    return process, release


def test_a_work_folder_is_removed_when_nothing_is_left_in_it(tmp_path: Path) -> None:
    output = tmp_path / "cache" / "corpus.h5"
    with work_folder(output) as work:
        assert work == tmp_path / "cache" / "corpus.h5.parts"
        held = Parts(work / "recipe")
        held.add(["a"], Encoded(np.ones((1, 2), dtype=np.float32)))
        held.flush()
    assert work.exists()
    with work_folder(output):
        Parts(work / "recipe").remove()
    assert not work.exists()


def test_a_second_writer_is_told_who_holds_the_output(tmp_path: Path) -> None:
    output = tmp_path / "corpus.h5"
    process, release = _holder(output)
    with (
        pytest.raises(CacheError, match=rf"corpus\.h5 is being written by process {process.pid} on "),
        work_folder(output),
    ):
        pass
    with work_folder(tmp_path / "other.h5"):
        pass
    release.set()
    process.join()
    with work_folder(output):
        pass


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    output = tmp_path / "corpus.h5"
    process, _ = _holder(output)
    process.kill()
    process.join()
    assert (tmp_path / "corpus.h5.parts" / "lock").exists()
    with work_folder(output):
        pass


def test_a_holder_that_has_not_written_its_name_yet_is_given_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "corpus.h5"
    with work_folder(output) as work:
        lock = work / "lock"
        name = lock.read_bytes()
        lock.write_bytes(b"")
        monkeypatch.setattr(work_folder_module.time, "sleep", lambda seconds: lock.write_bytes(name))
        with (
            pytest.raises(CacheError, match=rf"corpus\.h5 is being written by process {os.getpid()} on "),
            work_folder(output),
        ):
            pass


def _compete(output: Path, results: Any) -> None:
    for _ in range(30):
        try:
            with work_folder(output) as work:
                mark = work / "mark"
                descriptor = os.open(mark, os.O_CREAT | os.O_EXCL)  # fails if another one is inside
                os.close(descriptor)
                mark.unlink()
            results.put("worked")
        except CacheError as problem:
            results.put("waited" if "is being written by" in str(problem) else str(problem))
        except BaseException as problem:
            results.put(repr(problem))


def test_writers_that_come_and_go_at_once_are_never_inside_together(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    results = processes.Queue()
    writers = [processes.Process(target=_compete, args=(tmp_path / "corpus.h5", results)) for _ in range(4)]
    for writer in writers:
        writer.start()
    outcomes = [results.get(timeout=60) for _ in range(4 * 30)]
    for writer in writers:
        writer.join()
    assert set(outcomes) <= {"worked", "waited"}
    assert "worked" in outcomes
