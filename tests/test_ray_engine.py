"""Workers on a Ray cluster do what processes of this machine do: the same results, whatever dies meanwhile."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import engine_tasks
import numpy as np
import pytest
from click.testing import CliRunner
from engine_tasks import DEADLY
from extraction import Place as Studio
from extraction import counts
from small_corpus import write_recording
from synthetic_data import write_small_cache

from amber2_core.cache import read_cache
from amber2_core.engine import deal
from amber2_core.errors import ModelError, SettingError, WorkerError
from amber2_core.ray_engine import Cluster, machines
from amber2_extract.batches import Effort
from amber2_extract.pipeline import extract_features
from amber2_train.cli import train_heads

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ray of our own on this machine, whose workers know the tests' modules."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'amber2[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("RAY_ADDRESS", raising=False)
        with machines("ray") as found:
            assert found is not None
            yield found


def dealt(cluster: Cluster, function: Any, tasks: Sequence[Any], *, count: int = 2, **options: Any) -> list[Any]:
    """Tasks with their results, from so many workers."""
    place = cluster.places("cpu", threads=1)[0]
    options.setdefault("setup", engine_tasks.state)
    return list(deal(function, tasks, workers=[(place, n) for n in range(count)], engine=cluster, **options))


def test_every_task_is_done_once_by_workers_that_are_set_up_once(cluster: Cluster) -> None:
    found = dealt(cluster, engine_tasks.with_state, range(9), count=1, shared={"any": "thing"})
    assert [task for task, _ in found] == list(range(9))
    assert [result[:2] + result[3:] for _, result in found] == [(0, {"any": "thing"}, task) for task in range(9)]
    assert len({result[2] for _, result in found} - {os.getpid()}) == 1


def test_numbers_that_all_share_are_not_copied(cluster: Cluster) -> None:
    shared = np.arange(1_000_000.0)
    ((_, (_, there, _, _)),) = dealt(cluster, engine_tasks.with_state, [0], count=1, shared=shared)
    np.testing.assert_array_equal(there, shared)
    assert not there.flags.writeable


def test_a_worker_that_dies_costs_a_warning(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    found = dict(dealt(cluster, engine_tasks.die_once, range(12), shared=tmp_path))
    assert found == {task: task * task for task in range(12)}
    (line,) = [record.getMessage() for record in caplog.records if "died" in record.getMessage()]
    assert line.startswith("a worker died (its process ended on ")
    assert line.endswith("its task is dealt again")
    assert capfd.readouterr().out == ""


def test_a_task_that_kills_two_workers_is_not_tried_a_third_time(cluster: Cluster) -> None:
    with pytest.raises(WorkerError, match=r"^a worker died twice on the same task \(its process ended on "):
        dealt(cluster, engine_tasks.die, range(3), count=1)


def test_a_straggler_is_dealt_to_an_idle_worker_too(cluster: Cluster, tmp_path: Path) -> None:
    found = dealt(cluster, engine_tasks.straggle, [0, 1, 2, 3], shared=tmp_path)
    assert sorted(found) == [(task, task) for task in range(4)]
    assert (tmp_path / "again").exists()


def test_a_users_error_is_raised_with_the_machine_where_it_happened(cluster: Cluster) -> None:
    with pytest.raises(ModelError, match=rf"^no such model: take another \(on {socket.gethostname()}\)$"):
        dealt(cluster, engine_tasks.fail, [ModelError("no such model: take another")])
    with pytest.raises(ZeroDivisionError, match=r"^by zero$"):
        dealt(cluster, engine_tasks.fail, [ZeroDivisionError("by zero")])


def test_what_workers_log_is_logged_here_once(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    dealt(cluster, engine_tasks.warn, range(8))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "py.warnings"]
    assert "UserWarning: this is slow" in line


def test_a_machine_with_other_software_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "torch" else version(name))
    with pytest.raises(SettingError, match=r"of the Ray cluster has torch 2\..*, and this machine 9\.9"):
        cluster.places("cpu")


def test_a_device_that_the_cluster_has_not_is_one_line(cluster: Cluster) -> None:
    with pytest.raises(SettingError, match="Bad device for --engine ray 'mps'"):
        cluster.places("mps")
    if not any(place.gpus for place in cluster.places()):
        with pytest.raises(SettingError, match="has no GPUs for workers with 1"):
            cluster.places("cuda")


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:x", "127.0.0.1:9", "ray://127.0.0.1:9"])
def test_a_wrong_address_is_one_line(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(SettingError, match=r"HOST:PORT") as caught, machines("ray", address):
        pass
    assert "\n" not in str(caught.value)


def test_where_no_cluster_runs_auto_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(*_: object, **__: object) -> None:
        raise ConnectionError("Could not find any running Ray instance. Please set the `--address` flag.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(SettingError) as caught, machines("ray", "auto"):
        pass
    assert str(caught.value).startswith("No Ray cluster runs on this machine: start one with `ray start --head`, ")
    assert "`--address`" not in str(caught.value)


def test_what_is_said_of_a_cluster_is_not_passed_over_in_silence() -> None:
    with pytest.raises(SettingError, match=r"^--ray-address without --engine ray"), machines("local", "127.0.0.1:9"):
        pass
    with pytest.raises(SettingError, match=r"^--gpus-per-worker without"), machines("local", gpus_per_worker=0.5):
        pass
    with pytest.raises(SettingError, match=r"^--rows shared without --engine ray"):
        Effort(rows="shared")


def test_without_ray_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingError, match=r"^--engine ray needs Ray: pip install 'amber2\[ray\]'$"), machines("ray"):
        pass


def test_an_engine_is_one_of_those_there_are() -> None:
    with pytest.raises(SettingError, match=r"Bad engine 'slurm', expected one of \['local', 'ray'\]"):
        Effort(engine="slurm")


@pytest.fixture
def joined(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the cluster, which whoever joins it does not end."""
    import ray

    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return "auto"


@pytest.mark.thorough
@pytest.mark.parametrize("rows", ["driver", "shared"])
def test_a_corpus_is_encoded_to_the_same_bits(joined: str, rows: str, tmp_path: Path) -> None:
    studio = Studio(tmp_path)
    settings: dict[str, Any] = {"frames": 3, "layers": "all"}
    studio.extract(effort=Effort(device="cpu", batch_seconds=4), **settings)
    effort = Effort(device="cpu", batch_seconds=4, engine="ray", ray_address=joined, rows=rows)
    summary = studio.extract(output=tmp_path / "ray.h5", effort=effort, **settings)
    assert counts(summary, "audio") == (12, 0, 0)
    plain, other = studio.cache(), read_cache(tmp_path / "ray.h5")
    for one, two in zip(plain.features, other.features, strict=True):
        np.testing.assert_array_equal(one.values, two.values)
        np.testing.assert_array_equal(one.frames.values, two.frames.values)  # type: ignore[union-attr]
        assert one.inputs.tolist() == two.inputs.tolist()
    assert counts(studio.extract(output=tmp_path / "ray.h5", effort=effort, **settings), "audio") == (0, 12, 0)


@pytest.mark.thorough
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_what_workers_die_of_is_a_failure_and_the_rest_is_encoded(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    effort = Effort(device="cpu", engine=engine)
    if engine == "ray":
        effort = Effort(device="cpu", engine=engine, ray_address=request.getfixturevalue("joined"))
    studio = Studio(tmp_path)
    (tmp_path / "my.py").write_text(DEADLY)
    deadly = studio.corpus.utterances[5]
    write_recording(studio.corpus.root / str(deadly.audio), 3.25, seed=0)
    models = {"audio_model": f"{tmp_path / 'my.py'}:Loudness", "text_model": None}
    summary = extract_features(studio.corpus, tmp_path / "c.h5", effort=effort, **models)  # type: ignore[arg-type]
    assert counts(summary, "audio") == (11, 0, 1)
    ((utterance, reason),) = [(failure.utterance, failure.reason) for failure in summary.failures]
    assert utterance == deadly.id
    assert reason.startswith("3 workers died of it (")
    assert "utterances together" in caplog.text


@pytest.mark.thorough
def test_a_sweep_has_the_same_digits(joined: str, tmp_path: Path) -> None:
    cache = write_small_cache(tmp_path, count=48)
    words = ["--cache", str(cache), "--hidden", "5", "--seeds", "2", "--batch-size", "8", "--epochs", "4"]
    words += ["--kappa", "1,4", "--device", "cpu"]
    there = ["--engine", "ray", "--ray-address", joined]
    for name, more in (("here", []), ("there", there)):
        result = CliRunner().invoke(train_heads, [*words, "--output", str(tmp_path / name), *more])
        assert result.exit_code == 0, result.output
    for file in ("results.csv", "curves.csv", "experts.csv", "utterances.csv", "summary.json"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()
    weights = [sorted((tmp_path / name / "heads").iterdir()) for name in ("here", "there")]
    assert [one.read_bytes() for one in weights[0]] == [one.read_bytes() for one in weights[1]]
    assert not list(tmp_path.glob("*.unfinished"))
    again = CliRunner().invoke(train_heads, ["--again", str(tmp_path / "there"), "--output", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output


def test_a_busy_cluster_is_told_and_waited_for(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    import ray

    holder = ray.remote(num_cpus=1)(lambda: time.sleep(6.0)).remote()
    while ray.available_resources().get("CPU", 0.0) == ray.cluster_resources()["CPU"]:
        time.sleep(0.05)
    places = cluster.places("cpu")
    assert "CPUs of the Ray cluster are free: some workers wait" in caplog.text
    tasks = deal(engine_tasks.same, [1], setup=engine_tasks.state, workers=[(places[0], 0)], engine=cluster)
    assert list(tasks) == [(1, 1)]
    ray.get(holder)
