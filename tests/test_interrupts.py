"""Ctrl-C between steps, and a process that it stops in the middle of training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from synthetic_data import write_small_cache

from amber2_train.interrupts import check_interrupt, in_quiet_thread


def test_a_quiet_thread_gives_what_the_function_gives_and_raises_what_it_raises() -> None:
    @in_quiet_thread
    def work(x: int) -> int:
        if x < 0:
            raise ValueError("negative")
        assert threading.current_thread() is not threading.main_thread()
        return 2 * x

    assert work(3) == 6
    with pytest.raises(ValueError, match="negative"):
        work(-1)


def test_what_is_called_in_a_quiet_thread_stays_in_it() -> None:
    @in_quiet_thread
    def inner() -> threading.Thread:
        return threading.current_thread()

    @in_quiet_thread
    def outer() -> bool:
        return inner() is threading.current_thread()

    assert outer()


def test_an_interrupt_ends_the_work_where_it_asks_and_not_before() -> None:
    done = []

    @in_quiet_thread
    def work() -> None:
        check_interrupt()
        done.append("a step")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        done.append("the end of the step")
        check_interrupt()
        done.append("another step")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["a step", "the end of the step"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_after_the_last_step_is_raised_all_the_same() -> None:
    @in_quiet_thread
    def work() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        return 1

    with pytest.raises(KeyboardInterrupt):
        work()


def test_where_somebody_else_handles_the_signal_the_work_goes_on() -> None:
    seen: list[int] = []

    @in_quiet_thread
    def work() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        check_interrupt()
        return 1

    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        assert work() == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_where_that_handler_raises_the_work_ends_first() -> None:
    ended = []

    def handle(number: int, frame: object) -> None:
        raise TimeoutError("enough")

    @in_quiet_thread
    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            while True:
                time.sleep(0.01)
                check_interrupt()
        finally:
            ended.append(True)

    before = signal.signal(signal.SIGINT, handle)
    try:
        with pytest.raises(TimeoutError, match="enough"):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended


def test_outside_of_a_quiet_thread_there_is_nothing_to_check() -> None:
    check_interrupt()


def test_ctrl_c_in_training_ends_with_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    cache = write_small_cache(tmp_path, count=60)
    code = "from amber2_train.cli import train_heads; train_heads()"
    places = ["--cache", str(cache), "--output", str(tmp_path / "run")]
    command = [sys.executable, "-c", code, *places, "--hidden", "5", "--seeds", "1", "--batch-size", "4", "--epochs"]
    unfinished = tmp_path / "run.unfinished"
    process = subprocess.Popen([*command, "100"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not list(unfinished.glob("*.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 1
    line = errors.splitlines()[-1]
    assert line.startswith(f"error: Stopped: {unfinished} holds ")
    assert line.endswith(" of 3 stacks; the same command goes on from there")
    assert "Traceback" not in errors
    assert "the same command goes on" in json.loads((unfinished / "unfinished.json").read_text())["what"]
    done = subprocess.run([*command, "100"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.csv").exists()
