"""Commands tell a user's error in one line, and nothing else."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from help_texts import commands

from amber2_core.command import INCOMPLETE, Command, command_body
from amber2_core.devices import is_out_of_memory, memory_in_words
from amber2_core.errors import CacheError


@click.command(cls=Command)
@click.argument("event")
@command_body
def _example(event: str) -> int | None:
    log = logging.getLogger("amber2_core.example")
    log.debug("details")
    log.info("a stage")
    log.warning("a doubt")
    logging.getLogger("another.library").info("chatter")
    if event == "mistake":
        raise CacheError("No cache\nanywhere: make one")
    if event == "full disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.h5")
    if event == "no memory":
        raise MemoryError("Unable to allocate 9 GiB")
    if event == "bug":
        raise ZeroDivisionError
    click.echo("result")
    return INCOMPLETE if event == "failures" else None


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(_example, list(arguments))


def test_the_result_goes_to_standard_output_and_the_log_to_standard_error() -> None:
    result = _run("nothing")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "result\n", "a stage\nwarning: a doubt\n")


def test_quiet_leaves_warnings_and_verbose_adds_details() -> None:
    assert _run("nothing", "--quiet").stderr == "warning: a doubt\n"
    assert _run("nothing", "--verbose").stderr == "details\na stage\nwarning: a doubt\n"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], ["a stage", "a doubt"]),
        (["--quiet"], ["a stage", "a doubt"]),
        (["--verbose"], ["details", "a stage", "a doubt"]),
        (["--quiet", "--verbose"], ["details", "a stage", "a doubt"]),
    ],
)
def test_what_is_not_shown_is_still_kept_by_whoever_keeps_the_log(options: list[str], kept: list[str]) -> None:
    records: list[logging.LogRecord] = []
    keeper = logging.Handler()
    keeper.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("amber2_core").addHandler(keeper)
    shown = _run("nothing", *options).stderr
    logging.getLogger("amber2_core").removeHandler(keeper)
    assert [record.getMessage() for record in records] == kept
    assert ("a stage" in shown) == ("--quiet" not in options)


def test_a_returned_code_is_the_exit_code() -> None:
    assert _run("failures").exit_code == 3


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ("mistake", "error: No cache anywhere: make one\n"),
        ("full disk", "error: out.h5: No space left on device\n"),
        (
            "no memory",
            "error: memory ran out (Unable to allocate 9 GiB; raise the limit of memory (ulimit -v, a job's), or let "
            "fewer workers run: OMP_NUM_THREADS=1)\n",
        ),
    ],
)
def test_an_error_of_the_user_or_of_the_world_is_one_line_and_exit_1(event: str, line: str) -> None:
    result = _run(event, "--quiet")
    assert result.exit_code == 1
    assert result.stderr == "warning: a doubt\n" + line


def test_verbose_shows_where_an_error_came_from() -> None:
    assert "Traceback" in _run("mistake", "--verbose").stderr
    assert "Traceback" not in _run("mistake").stderr


@pytest.mark.parametrize(
    ("charset", "line"),
    [("latin-1", "²? 1 ± .2 of a?b"), ("cp1252", "²? 1 ± .2 of a?b"), ("utf-8", "²↓ 1 ± .2 of a?b")],
)
def test_a_sign_that_a_terminal_cannot_show_is_replaced(charset: str, line: str) -> None:
    @click.command(cls=Command)
    @command_body
    def show() -> None:
        click.echo("²↓ 1 ± .2 of a\udcffb")  # a name of a file whose bytes are no text

    result = CliRunner(charset=charset).invoke(show)
    assert (result.exit_code, result.stdout) == (0, line + "\n")


@pytest.mark.parametrize("name", commands())
def test_every_command_explains_itself_on_any_terminal(name: str) -> None:
    result = CliRunner(charset="latin-1").invoke(commands()[name], ["--help"])
    assert (result.exit_code, result.exception) == (0, None)
    assert isinstance(commands()[name], Command)


def test_a_bug_is_not_hidden() -> None:
    assert isinstance(_run("bug").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (MemoryError(), "MemoryError"),
        (MemoryError("Unable to allocate 3. GiB"), "Unable to allocate 3"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "libtorch_cpu.so: failed to map "),
        (ImportError("\nread this\nOriginal error was: libx.so: failed to map segment\n"), "Original error was: libx"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "DefaultCPUAllocator: can't allocate"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "[Errno 12] Cannot allocate memory"),
        (ImportError("No module named 'torch'"), ""),
        (RuntimeError("shapes do not fit"), ""),
        (CacheError("can't allocate memory"), ""),
    ],
)
def test_memory_that_ran_out_is_known_by_what_is_said_of_it(problem: Exception, said: str) -> None:
    assert is_out_of_memory(problem) == bool(said)
    assert memory_in_words(problem).startswith(said)


def test_a_command_that_cannot_load_a_library_into_its_memory_is_one_line() -> None:
    @click.command()
    @command_body
    def load() -> None:
        raise ImportError("libx.so: failed to map segment from shared object")

    result = CliRunner().invoke(load)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: memory ran out (libx.so: failed to map segment from shared object; raise")
    assert len(result.stderr.splitlines()) == 1


TALKING = """
import click, logging
from amber2_core.command import Command, command_body

@click.command(cls=Command)
@command_body
def talk():
    logging.getLogger("amber2_core.talk").info("begun")
    open("done", "w").close()
    click.echo("the result")

talk()
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_without_room_stops_no_work_and_a_result_without_room_says_where_it_was_to_go(tmp_path: Path) -> None:
    def run(**streams: Any) -> subprocess.CompletedProcess[str]:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        return subprocess.run([sys.executable, "-c", TALKING], cwd=tmp_path, text=True, check=False, **streams)

    with Path("/dev/full").open("w") as full:
        silent = run(stderr=full)
        assert silent.stdout == "the result\n"
        assert (tmp_path / "done").exists()
        lost = run(stdout=full)
    assert lost.returncode == 1
    assert lost.stderr == "begun\nerror: standard output: No space left on device\n"
