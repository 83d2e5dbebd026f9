"""Shards of a sweep: each trains its part of the tasks, and together they are the run folder of one call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from synthetic_data import write_small_cache

from amber2_core import engine
from amber2_core.run_folder import read_settings
from amber2_core.shards import Shard
from amber2_extract.merge_cli import merge_shards
from amber2_train import tasks, worker
from amber2_train.cli import train_heads
from amber2_train.request import Request
from amber2_train.tasks import Task

QUICK = ["--hidden", "5", "--seeds", "2", "--epochs", "2", "--batch-size", "16", "--kappa", "0,4,8"]
COUNT = 3


def call(*arguments: str) -> Result:
    return CliRunner().invoke(train_heads, list(arguments))


def merge(*arguments: Any) -> Result:
    return CliRunner().invoke(merge_shards, list(map(str, arguments)))


@pytest.fixture(scope="module", autouse=True)
def _small_tasks() -> Iterator[None]:
    """Two runs in a task, so that there are more tasks than shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.RUNS, "cpu", 2)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_cache(tmp_path_factory.mktemp("caches"), count=36)


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all shards of a sweep, `run.shard-…`, and the run folder of one call, `whole`."""
    folder = tmp_path_factory.mktemp("trained")
    assert call("--cache", str(cache), *QUICK, "--output", str(folder / "whole")).exit_code == 0
    for number in range(1, COUNT + 1):
        done = call(
            "--cache", str(cache), *QUICK, "--output", str(folder / "run"), "--shard", f"{number}/{COUNT}"
        )  # fmt: skip
        assert (done.exit_code, done.stdout) == (0, f"{folder / 'run'}.shard-{number}-of-3\n"), done.stderr
    return folder


@pytest.fixture
def shards(trained: Path, tmp_path: Path) -> list[Path]:
    """Copies of the shards, to be merged or damaged."""
    names = [f"run.shard-{number}-of-{COUNT}" for number in range(1, COUNT + 1)]
    return [Path(shutil.copytree(trained / name, tmp_path / name)) for name in names]


def files(folder: Path) -> dict[str, bytes]:
    """Every file by name, without what tells the time."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del found["log.txt"]
    settings = json.loads(found.pop("settings.json"))
    del settings["created"], settings["command"]
    return found | {"settings.json": json.dumps(settings).encode()}


def task_names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("fold*-task*.json")}


def test_merged_shards_are_the_run_folder_of_one_call(trained: Path, shards: list[Path], monkeypatch: Any) -> None:
    parts = [task_names(folder) for folder in shards]
    assert min(map(len, parts)) > 0
    assert sum(map(len, parts)) == len(set.union(*parts))

    def no_worker(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("a worker was asked for")

    # whatever device it was trained on need not be here
    monkeypatch.setattr(engine, "deal", no_worker)
    done = merge(*reversed(shards))
    assert done.exit_code == 0, done.stderr
    output = shards[0].with_name("run")
    assert f"3 shards are removed: {output} holds what they found" in done.stderr.splitlines()
    assert sorted(path.name for path in output.parent.iterdir()) == ["run"]
    one, other = files(trained / "whole"), files(output)
    assert {"results.csv", "curves.csv", "predictions.npz"} <= one.keys()
    assert [name for name in one | other if one.get(name) != other.get(name)] == []
    assert "--shard" not in read_settings(output)["command"]


def test_a_merged_run_can_be_run_again(shards: list[Path], tmp_path: Path) -> None:
    assert merge(*shards).exit_code == 0
    again = call("--again", str(tmp_path / "run"), "--output", str(tmp_path / "again"))
    assert again.exit_code == 0, again.output


def test_a_shard_that_is_stopped_is_told_and_goes_on(
    cache: Path, trained: Path, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(shards[1])
    arguments = ["--cache", str(cache), *QUICK, "--output", str(tmp_path / "run"), "--shard", "2/3"]
    deal, counted = engine.deal, list[Task]()

    def stopped(function: Any, some: Any, **how: Any) -> Iterator[Any]:
        for task, result in deal(function, some, **how):
            yield task, result
            if function is worker.train:
                counted.append(task)
                if len(counted) == 2:
                    raise KeyboardInterrupt

    whole = len(task_names(trained / shards[1].name))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "deal", stopped)
        done = call(*arguments)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: Stopped: {shards[1]} holds 2 of {whole} tasks")
    early = merge(*shards)
    assert early.exit_code == 1
    line = f"error: {shards[1]} is not finished: it holds 2 of {whole} tasks; run shard 2 of 3 again"
    assert early.stderr.splitlines()[-1].startswith(line)
    assert not (tmp_path / "run").exists()
    first = set(counted)
    with monkeypatch.context() as patch:
        counted += [counted[0]] * 9  # never two again
        patch.setattr(engine, "deal", stopped)
        assert call(*arguments).exit_code == 0
    assert not first & set(counted[11:])
    assert merge(*shards).exit_code == 0
    one, other = files(trained / "whole"), files(tmp_path / "run")
    assert [name for name in one | other if one.get(name) != other.get(name)] == []


def test_a_merging_that_is_killed_is_done_again(trained: Path, shards: list[Path], tmp_path: Path) -> None:
    half = tmp_path / "run.unfinished"
    half.mkdir()
    record = json.loads((shards[0] / "unfinished.json").read_text())
    del record["shard"]
    (half / "unfinished.json").write_text(json.dumps(record))
    for path in shards[0].glob("fold1-*"):
        (half / path.name).write_bytes(path.read_bytes() if path.suffix == ".json" else path.read_bytes()[:7])
    assert merge(*shards).exit_code == 0
    one, other = files(trained / "whole"), files(tmp_path / "run")
    assert [name for name in one | other if one.get(name) != other.get(name)] == []


def refused(*arguments: Any) -> str:
    done = merge(*arguments)
    assert done.exit_code == 1
    assert not done.stdout
    return done.stderr.splitlines()[-1].removeprefix("error: ")


def test_whatever_does_not_fit_is_told_by_name_and_nothing_is_touched(
    cache: Path, trained: Path, shards: list[Path], tmp_path: Path
) -> None:
    one, two, three = shards
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert refused(one, three) == "Missing of 3 shards: 2; run these, and name all shards to merge-shards"
    assert refused(one, two, two, three) == f"{two} is named twice: name each shard once"
    assert refused(one, two, trained / "whole").startswith(f"{trained / 'whole'} is no shard of a sweep")
    fourth = tmp_path / "run.shard-4-of-4"
    shutil.copytree(three, fourth)
    record = json.loads((three / "unfinished.json").read_text())
    (fourth / "unfinished.json").write_text(json.dumps({**record, "shard": {"number": 4, "of": 4}}))
    assert (
        refused(one, two, fourth) == f"{fourth} is shard 4 of 4 and {one} shard 1 of 3: they are no parts of one sweep"
    )
    (fourth / "unfinished.json").write_text(json.dumps({**record, "identity": {**record["identity"], "epochs": 9}}))
    assert refused(one, two, fourth) == f"{one} is of another sweep than {fourth}: its epochs is 2, not 9"
    shutil.rmtree(fourth)
    other = write_small_cache(tmp_path / "other", count=36, seed=1)
    line = refused(*shards, "--cache", other)
    assert line.startswith(f"{one} is of another sweep than its command makes now: its cache's contents is ")
    shutil.rmtree(tmp_path / "other")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "run").mkdir()
    assert "run exists already" in refused(*shards)


def test_shards_need_a_name_that_all_know(cache: Path, tmp_path: Path) -> None:
    for more in ([], ["--output", str(tmp_path / "run"), "--track", "csv"]):
        done = call("--cache", str(cache), *QUICK, "--shard", "1/2", *more)
        assert (done.exit_code, done.stderr.splitlines()[-1][:29]) == (1, "error: --shard needs --output")
    assert list(tmp_path.iterdir()) == []


def test_there_may_be_more_shards_than_tasks(cache: Path, tmp_path: Path) -> None:
    arguments = ["--cache", str(cache), "--hidden", "5", "--seeds", "1", "--epochs", "1", "--system", "cb-ce"]
    shards = [tmp_path / f"run.shard-{number}-of-5" for number in range(1, 6)]
    for number in range(1, 6):
        assert call(*arguments, "--output", str(tmp_path / "run"), "--shard", f"{number}/5").exit_code == 0
    assert [len(task_names(folder)) for folder in shards] == [1, 1, 1, 0, 0]
    done = merge(*shards)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "run" / "results.csv").exists()


def place(task: Task) -> tuple[int, int]:
    return task.fold, task.number


@given(
    shapes=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    seeds=st.integers(1, 7),
    folds=st.integers(1, 6),
    count=st.integers(1, 40),
)
def test_every_task_is_in_exactly_one_shard_and_kinds_and_folds_are_shared_out(
    shapes: list[int], seeds: int, folds: int, count: int
) -> None:
    every = tasks.tasks_of(shapes, seeds, list(range(1, folds + 1)), "cpu")

    class Sweep:
        tasks = every

    parts = [Request.part(Sweep(), Shard(number, count)) for number in range(1, count + 1)]  # type: ignore[arg-type]
    dealt = [task for part in parts for task in part]
    assert sorted(dealt, key=place) == sorted(every, key=place)
    assert all(part == sorted(part, key=place) for part in parts)
    for number in {task.number for task in every}:
        of_kind = [sum(task.number == number for task in part) for part in parts]
        assert max(of_kind) - min(of_kind) <= 1
