"""Whole commands with workers of their own: kills, Ctrl-C, two at once on one output, a full disk, no torch at home."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_corpus import write_corpus
from small_models import save_speech, save_text

from amber2_core.cache import FeatureCache, read_cache

COMMAND = "from amber2_extract.cli import extract_features; extract_features()"
# With so many bytes as the most that a file may grow to; a signal would end the process instead.
NARROW = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); " + COMMAND
BARE = (
    f"import sys\ntry:\n    {COMMAND}\nfinally:\n"
    "    print(*sorted({'torch', 'torchaudio', 'transformers'} & set(sys.modules)), 'loaded')"
)


class Desk:
    """A manifest with its recordings, two models, and a cache that was made without disturbance."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_speech(folder / "wav2vec2", "wav2vec2-group")
        save_text(folder / "bert", "bert")
        corpus = write_corpus(folder / "corpus", count=40)
        manifest = folder / "corpus" / "corpus.csv"
        rows = [f'{u.id},{u.audio},"{u.transcript} {u.id}",{u.speaker},1,2' for u in corpus.utterances]
        manifest.write_text("\n".join(["id,audio,text,speaker,votes.neutral,votes.happy", *rows]))
        models = [f"--audio-model={folder / 'wav2vec2'}", f"--text-model={folder / 'bert'}"]
        self.options = ["--corpus=manifest", f"--root={manifest}", *models, "--device=cpu"]

    def start(self, output: Path, *more: str, code: str = COMMAND) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *self.options, f"--output={output}", *more]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def run(self, output: Path, *more: str, code: str = COMMAND) -> tuple[int, str, str]:
        process = self.start(output, *more, code=code)
        said, complained = process.communicate(timeout=300)
        return process.returncode, said, complained


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def undisturbed(desk: Desk) -> FeatureCache:
    code, said, complained = desk.run(desk.folder / "undisturbed.h5", code=BARE)
    assert code == 0, complained
    # The conductor left all computing to its workers.
    assert said.splitlines()[-1] == " loaded".strip()
    return read_cache(desk.folder / "undisturbed.h5")


def _assert_same(output: Path, expected: FeatureCache) -> None:
    for one, other in zip(read_cache(output).features, expected.features, strict=True):
        assert (one.modality, list(one.inputs)) == (other.modality, list(other.inputs))
        np.testing.assert_array_equal(one.values, other.values)
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def _rows(output: Path) -> int:
    """How many rows are in work."""
    return sum(path.stat().st_size // 56 for path in output.parent.glob("*.parts/*/*.idx"))


def _session(leader: int) -> set[int]:
    """The processes that a command left."""
    found = subprocess.run(["ps", "-o", "pid=", "--sid", str(leader)], capture_output=True, text=True, check=False)
    return {int(pid) for pid in found.stdout.split()}


def _gone(leader: int) -> bool:
    until = time.monotonic() + 30
    while _session(leader) and time.monotonic() < until:
        time.sleep(0.05)
    return not _session(leader)


@pytest.mark.thorough
def test_killed_again_and_again_it_goes_on_and_ends_with_the_same_values(
    desk: Desk, undisturbed: FeatureCache, tmp_path: Path
) -> None:
    output, generator = tmp_path / "cache" / "corpus.h5", np.random.default_rng(0)
    stages = {0}
    for _ in range(5):
        process = desk.start(output)
        # After so many further rows, however slow the machine is, and at any moment of what follows.
        enough = max(stages) + generator.integers(0, 12)
        while _rows(output) < enough and process.poll() is None:
            time.sleep(0.005)
        time.sleep(generator.uniform(0.0, 0.1))
        process.kill()
        process.communicate()
        # Workers whose conductor has gone end by themselves.
        assert _gone(process.pid)
        stages.add(_rows(output))
        if output.exists():
            read_cache(output)
    assert len(stages) > 2, stages
    code, _, complained = desk.run(output)
    assert code == 0, complained
    _assert_same(output, undisturbed)


@pytest.mark.thorough
def test_a_shard_that_is_killed_goes_on_and_all_merged_are_what_one_call_gives(
    desk: Desk, undisturbed: FeatureCache, tmp_path: Path
) -> None:
    output = tmp_path / "cache" / "corpus.h5"
    process = desk.start(output, "--shard=1/2")
    while _rows(output) < 5 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert _gone(process.pid)
    assert _rows(output) >= 5
    for shard in ("1/2", "2/2"):
        code, _, complained = desk.run(output, f"--shard={shard}")
        assert code == 0, complained
    shards = sorted(output.parent.iterdir())
    assert [path.name for path in shards] == ["corpus.shard-1-of-2.h5", "corpus.shard-2-of-2.h5"]
    merge = "from amber2_extract.merge_cli import merge_shards; merge_shards()"
    done = subprocess.run([sys.executable, "-c", merge, *shards], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, str(output)), done.stderr
    for path in shards:
        path.unlink()
    _assert_same(output, undisturbed)


def test_what_was_encoded_before_ctrl_c_is_kept_and_nobody_is_left(
    desk: Desk, undisturbed: FeatureCache, tmp_path: Path
) -> None:
    output = tmp_path / "cache" / "corpus.h5"
    process = desk.start(output)
    while _rows(output) < 5 and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, complained = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in complained
    assert complained.splitlines()[-1] == "Aborted!"
    assert _gone(process.pid)
    kept = _rows(output)
    assert kept >= 5
    code, said, complained = desk.run(output)
    assert code == 0, complained
    assert " 0 failed" in said
    _assert_same(output, undisturbed)


def test_of_two_processes_started_at_once_one_works_and_the_other_says_who(
    desk: Desk, undisturbed: FeatureCache, tmp_path: Path
) -> None:
    output = tmp_path / "cache" / "corpus.h5"
    processes = [desk.start(output) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in processes]
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
    _assert_same(output, undisturbed)


@pytest.mark.thorough
def test_a_disk_without_room_loses_nothing_and_leaves_no_half_cache(
    desk: Desk, undisturbed: FeatureCache, tmp_path: Path
) -> None:
    output = tmp_path / "cache" / "corpus.h5"
    size = (desk.folder / "undisturbed.h5").stat().st_size
    for room in (100, 3_000, size - 100):
        code, _, complained = desk.run(output, code=NARROW.format(room))
        assert code == 1, complained
        assert complained.splitlines()[-1].startswith("error: Cannot write ")
        assert "File too large" in complained
        assert not output.exists()
    code, _, complained = desk.run(output)
    assert code == 0, complained
    _assert_same(output, undisturbed)


def test_a_finished_corpus_is_looked_at_without_torch_and_without_workers(
    desk: Desk, undisturbed: FeatureCache
) -> None:
    code = f"from amber2_core import engine; engine.deal = engine.call = engine.prepare = None\n{BARE}"
    result, said, complained = desk.run(desk.folder / "undisturbed.h5", code=code)
    assert (result, complained.splitlines()) == (0, ["reading 40 recordings of manifest"])
    assert said.splitlines()[-2:] == [f"{desk.folder / 'undisturbed.h5'} was up to date", "loaded"]


@pytest.mark.thorough
def test_a_night_of_kills_a_lost_folder_and_a_full_disk_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "night.py"
    command = [sys.executable, str(script), "--clips=60", f"--keep={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(": ")[2] for line in lines].count("killed") == 3
    assert "the same to the last bit" in lines
    assert lines[-1].startswith("4 failures, ")
