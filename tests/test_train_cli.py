"""What users of `train-heads` get wrong: one line on standard error, exit code 1, and nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import h5py
import pytest
from click.testing import CliRunner, Result
from synthetic_data import EMOTIONS, write_small_cache

from amber2_core.heads_folder import read_tensors
from amber2_core.run_folder import read_settings
from amber2_train.cli import train_heads

QUICK = ["--hidden", "4", "--seeds", "1", "--epochs", "1"]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(train_heads, list(arguments))


def refused(result: Result) -> str:
    """The one line, after checking that it is one line and a clean exit."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert result.stderr.splitlines()[-1] == lines[0]
    assert "Traceback" not in result.stderr
    return lines[0].removeprefix("error: ")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_cache(tmp_path_factory.mktemp("caches"), count=30)


BAD = [
    (["--kappa", "2,4,inf"], "Bad kappa inf, expected a number of at least 0"),
    (["--lambda-rai", "0", "--lambda-mai", "0"], "lambda-rai, lambda-mai and lambda-expert are all 0"),
    (["--seeds", "0"], "Bad seeds 0, expected a number of at least 1"),
    (["--system", "amber3"], "Bad system 'amber3', expected one of ['amber2', 'cb-ce', "),
    (["--preset", "paper", "--grid", "mine.toml"], "--preset and --grid are both a grid to start from"),
    (["--device", "tpu"], "Bad device 'tpu', expected one of"),
    (["--folds", "random"], "Bad folds 'random', expected one of ['session', 'speaker'"),
    (["--emotions", "neutral,happy,fear"], "No kept utterance has a vote for 'fear': leave it out of --emotions"),
    (["--emotions", "neutral"], "Bad emotions "),
    (["--targets", "models"], "Bad targets 'models', expected one of ['human', 'synthetic', 'combined']"),
    (
        ["--targets", "combined"],
        "No utterance has votes of synthetic raters on the audiovisual stimulus: add some with ",
    ),
    (["--stimulus", "smell"], "Bad stimulus 'smell'"),
    (["--keep", "all"], "Bad keep 'all', expected one of"),
    (["--keep", "consensus"], "this corpus has no consensus labels of its own"),
    (["--merge", "excited"], "Bad merge 'excited', expected none or a list such as excited=happy"),
    (["--track", "wandb"], "Bad track 'wandb', expected one of ['csv', 'tensorboard', 'mlflow']"),
    (["--audio", "hubert"], "holds no audio features called 'hubert' (it has audio-model): name one: --audio"),
]


@pytest.mark.parametrize(
    ("arguments", "line"), BAD, ids=lambda value: "_".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_line_and_leaves_nothing(cache: Path, tmp_path: Path, arguments: list[str], line: str) -> None:
    output = tmp_path / "run"
    assert line in refused(call("--cache", str(cache), "--output", str(output), *QUICK, *arguments))
    assert list(tmp_path.iterdir()) == []


def test_folds_that_would_leave_an_empty_part_are_refused(tmp_path: Path) -> None:
    (tmp_path / "caches").mkdir()
    cache = write_small_cache(tmp_path / "caches", count=30, speakers=2, folds="speaker")
    result = call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK)
    assert "need at least 3 speakers for train, dev and test" in refused(result)
    assert [path.name for path in tmp_path.iterdir()] == ["caches"]


def test_an_emotion_of_the_corpus_that_nobody_has_is_refused(tmp_path: Path) -> None:
    cache = write_small_cache(tmp_path, count=30, emotions=(*EMOTIONS, "disgust"))
    result = call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK)
    assert "No kept utterance has a vote for 'disgust'" in refused(result)


def test_a_modality_that_nobody_has_and_a_student_that_nobody_on_dev_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "caches").mkdir()
    arguments = ["--output", str(tmp_path / "run"), *QUICK, "--missing", "mask"]
    cache = write_small_cache(tmp_path / "caches", count=30, missing={"text": range(30)})
    line = refused(call("--cache", str(cache), *arguments))
    assert line == "No labelled utterance has text features: see inspect-cache for the failures"
    cache = write_small_cache(tmp_path / "caches", count=30, missing={"text": range(1, 30, 3)})
    line = refused(call("--cache", str(cache), *arguments, "--student", "text"))
    assert (
        "amber2 is chosen by the dev JS of its text head, and in fold 1 no utterance of train or none of dev has it"
        in line
    )
    assert [path.name for path in tmp_path.iterdir()] == ["caches"]


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_where_there_are_no_locks_training_works_with_one_warning(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    flock = fcntl.flock

    def no_locks(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with cache.open("rb") as file:
        flock(file, fcntl.LOCK_EX)  # so that HDF5 is refused a lock of its own, too
        result = call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK, "--quiet")
    assert result.exit_code == 0, result.output
    unfinished = tmp_path / "run.unfinished"
    line = f"warning: {unfinished}: no locks on this file system; see to it that no second command writes there"
    assert [line for line in result.stderr.splitlines() if "lock" in line] == [line]
    assert (tmp_path / "run" / "results.csv").is_file()
    assert not unfinished.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_names_of_caches_and_run_folders_need_not_be_utf_8(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xe9j\xe0")
    folder.mkdir()
    shutil.copy(cache, folder / os.fsdecode(b"\xff.h5"))
    output = folder / os.fsdecode(b"run\xe9")
    result = call("--cache", str(folder / os.fsdecode(b"\xff.h5")), "--output", str(output), *QUICK)
    assert (result.exit_code, result.exception) == (0, None), result.output
    assert Path(read_settings(output)["cache"]).samefile(folder / os.fsdecode(b"\xff.h5"))
    assert "done in" in (output / "log.txt").read_text(encoding="utf-8")
    assert [read_tensors(path)[1]["system"] for path in sorted((output / "heads").glob("amber2-fold1-*"))] == ["amber2"]


def test_an_output_that_exists_is_left_alone(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    line = refused(call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK))
    assert "run exists already: name another folder with --output" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_an_output_that_cannot_be_written_is_refused_before_training(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refused(call("--cache", str(cache), "--output", str(tmp_path / "file" / "run"), *QUICK))
    assert line.startswith(f"Cannot write {tmp_path / 'file' / 'run'}: ")
    assert line.endswith("choose another place with --output")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_place_is_refused(cache: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    assert "Cannot write" in refused(call("--cache", str(cache), "--output", str(tmp_path / "run"), *QUICK))


def test_a_missing_cache_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.h5"
    assert str(path) in refused(call("--cache", str(path), "--output", str(tmp_path / "run"), *QUICK))
    line = refused(call("--cache-dir", str(tmp_path), "--output", str(tmp_path / "run"), *QUICK))
    assert f"No feature cache in {tmp_path}" in line
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_is_no_cache(tmp_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("id,votes\n")
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["x"] = [1, 2, 3]
    for path in (text, foreign):
        line = refused(call("--cache", str(path), "--output", str(tmp_path / "run"), *QUICK))
        assert path.name in line
    assert not (tmp_path / "run").exists()


def test_a_damaged_cache_is_noticed(cache: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(cache.read_bytes()[:-2000])
    assert "damaged.h5" in refused(call("--cache", str(damaged), "--output", str(tmp_path / "run"), *QUICK))
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.h5"]


def test_several_caches_are_listed(cache: Path, tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        (tmp_path / name).write_bytes(cache.read_bytes())
    line = refused(call("--cache-dir", str(tmp_path), "--output", str(tmp_path / "run"), *QUICK))
    assert "(a.h5, b.h5): name one with --cache" in line


def test_a_setting_under_which_training_diverges_is_told(cache: Path, tmp_path: Path) -> None:
    result = call(
        "--cache", str(cache), "--output", str(tmp_path / "run"), "--lr", "1e38", "--epochs", "3", "--seeds", "1"
    )
    assert "diverged in fold 1: no dev JS is a number; try a smaller --lr" in refused(result)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_bad_usage() -> None:
    assert call("--kapa", "4").exit_code == 2
