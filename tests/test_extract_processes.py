"""Whole commands in processes of their own: two at once on one output, and a disk that is really full."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from small_corpus import write_corpus
from small_models import PRELOADED, save_speech, save_text

from amber2_core.cache import read_cache
from amber2_extract.cli import extract_features

COMMAND = "from amber2_extract.cli import extract_features; extract_features()"


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    save_speech(tmp_path / "wav2vec2", "wav2vec2-group")
    save_text(tmp_path / "bert", "bert")
    corpus = write_corpus(tmp_path / "corpus", count=40)
    manifest = tmp_path / "corpus" / "corpus.csv"
    rows = [f'{u.id},{u.audio},"{u.transcript}",{u.speaker},1,2' for u in corpus.utterances]
    manifest.write_text("\n".join(["id,audio,text,speaker,votes.neutral,votes.happy", *rows]))
    models = [f"--audio-model={tmp_path / 'wav2vec2'}", f"--text-model={tmp_path / 'bert'}"]
    return ["--corpus=manifest", f"--root={manifest}", *models, "--device=cpu"]


def _start(options: Sequence[str], output: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMMAND, *options, f"--output={output}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_of_two_processes_started_at_once_one_works_and_the_other_says_who(options: list[str], tmp_path: Path) -> None:
    output = tmp_path / "cache" / "corpus.h5"
    processes = [_start(options, output) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes, said
    held = [row for row, code in enumerate(codes) if code == 1]
    if held:
        (row,) = held
        other = processes[1 - row].pid
        assert f"is being written by process {other} on " in said[row][1]
        assert said[row][1].count("\n") <= 2
    else:
        # The first had finished when the second asked.
        assert any("was up to date" in words for words, _ in said)
    assert len(read_cache(output).utterances) == 40
    assert [path.name for path in output.parent.iterdir()] == ["corpus.h5"]


def _extract_with_room(options: list[str], room: int, answer: Any) -> None:
    """In a process of its own, whose files may grow to `room` bytes and no further."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    result = CliRunner().invoke(extract_features, options)
    answer.send((result.exit_code, result.output))


def test_a_disk_without_room_loses_nothing_and_leaves_no_half_cache(options: list[str], tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.h5", tmp_path / "cache" / "corpus.h5"
    assert CliRunner().invoke(extract_features, [*options, f"--output={whole}"]).exit_code == 0
    size = whole.stat().st_size
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(PRELOADED))
    for room in (10, 5_000, size // 2, size - 100):
        answer, end = processes.Pipe(duplex=False)
        arguments = ([*options, f"--output={output}"], room, end)
        process = processes.Process(target=_extract_with_room, args=arguments)
        process.start()
        assert answer.poll(timeout=120)
        code, said = answer.recv()
        process.join()
        assert (process.exitcode, code) == (0, 1), said
        assert said.splitlines()[-1].startswith("error: Cannot write ")
        assert "File too large" in said
        assert not output.exists()
    assert CliRunner().invoke(extract_features, [*options, f"--output={output}"]).exit_code == 0
    for modality in ("audio", "text"):
        one, other = (read_cache(path).feature_set(modality).values for path in (whole, output))
        np.testing.assert_array_equal(one, other)
    assert [path.name for path in output.parent.iterdir()] == ["corpus.h5"]
