"""Ctrl-C between steps, and a process that it stops in the middle of training."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic_data import write_small_cache

from amber2_train.interrupts import held_interrupts


def test_an_interrupt_waits_until_it_is_asked_for() -> None:
    done = []

    def work() -> None:
        with held_interrupts() as check:
            signal.raise_signal(signal.SIGINT)
            done.append("the step")
            check()
            done.append("another step")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the step"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_nobody_asked_for_comes_at_the_end_of_the_block() -> None:
    def work() -> None:
        with held_interrupts():
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work()


def test_where_somebody_else_handles_the_signal_nothing_changes() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with held_interrupts() as check:
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


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
