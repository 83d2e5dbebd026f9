"""Both stages on a Ray cluster of two hosts: one host is lost, or lacks something, or the user changes his mind."""

from __future__ import annotations

import collections
import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from cluster.hosts import Cluster, Host, two_hosts, until, why_not
from small_corpus import write_corpus
from small_models import save_speech, save_text

from amber2_core.cache import read_cache
from amber2_core.run_folder import read_results

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(bool(reason := why_not()), reason=reason),
]

EXTRACT = "from amber2_extract.cli import extract_features; extract_features()"
TRAIN = "from amber2_train.cli import train_heads; train_heads()"
COUNT = 60
# a portion of so many utterances, for workers of one thread
PORTION = 4
# An encoder that takes its time, and writes down what it encodes, and where.
SLOW = """
import hashlib, os, time
import numpy as np

class Slow:
    sampling_rate = 16_000
    size = 8

    def encode(self, waveforms):
        for one in waveforms:
            with open({log!r}, "a") as log:
                log.write(hashlib.sha256(one.tobytes()).hexdigest() + " " + os.environ["HOME"] + "\\n")
            time.sleep(0.2 * (len(one) > 1600))
        shapes = np.random.default_rng(0).standard_normal((80, 8)).astype(np.float32)
        lengths = [len(one) // 80 for one in waveforms]
        frames = np.zeros((len(waveforms), max(lengths), 8), np.float32)
        for row, (one, length) in enumerate(zip(waveforms, lengths)):
            frames[row, :length] = np.abs(one[: 80 * length].reshape(length, 80) @ shapes)
        return frames, lengths
"""


class Desk:
    """A corpus, encoders, and a cluster of two hosts that both see them."""

    def __init__(self, folder: Path, head: Host, worker: Host) -> None:
        self.folder, self.log, self.other = folder, folder / "encoded.log", folder / "other"
        self.cluster = Cluster(head, worker)
        save_speech(folder / "models" / "wav2vec2", "wav2vec2-group")
        save_text(folder / "models" / "bert", "bert")
        (folder / "models" / "slow.py").write_text(SLOW.format(log=str(self.log)))
        self.corpus = write_corpus(folder / "corpus", count=COUNT)
        rows = [
            f'{u.id},{u.audio},"{u.transcript} {u.id}",{u.speaker},s{n % 4},{1 + n % 3},{n % 2}'
            for n, u in enumerate(self.corpus.utterances)
        ]
        head_line = "id,audio,text,speaker,session,votes.neutral,votes.happy"
        (folder / "corpus" / "corpus.csv").write_text("\n".join([head_line, *rows]))
        self.other.mkdir()
        self.cluster.start_head()
        self.start_worker()
        # Ray's own
        self._at_rest = set(self._named())

    def start_worker(self) -> None:
        """The second host; what is put into `other` comes first on its path."""
        paths = [str(self.other), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self.cluster.start_worker(PYTHONPATH=os.pathsep.join(filter(None, paths)))

    def extraction(self, output: Path, *more: str, slow: bool = False) -> tuple[str, ...]:
        """The command that encodes the corpus."""
        models = self.folder / "models"
        encoders = (f"--audio-model={models / 'wav2vec2'}", f"--text-model={models / 'bert'}")
        if slow:
            encoders = ("--modality=audio", f"--audio-model={models / 'slow.py'}:Slow")
        where = (f"--root={self.folder / 'corpus' / 'corpus.csv'}", f"--output={output}")
        return (sys.executable, "-c", EXTRACT, "--corpus=manifest", *where, *encoders, *more)

    @property
    def by_ray(self) -> tuple[str, ...]:
        """Options that name the cluster."""
        return ("--engine=ray", f"--ray-address={self.cluster.address}")

    def run(self, *command: str) -> str:
        """A command on the first host that must succeed; what it said."""
        done = self.cluster.head.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    def started(self, *command: str) -> subprocess.Popen[str]:
        """A command, begun on the first host."""
        return self.cluster.head.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def encoded(self) -> dict[str, list[str]]:
        """Where each recording was encoded, as the slow encoder wrote it down."""
        known, places = {}, collections.defaultdict(list)
        for utterance in self.corpus.utterances:
            samples, _ = soundfile.read(self.corpus.root / str(utterance.audio), dtype="float32")
            known[hashlib.sha256(samples.tobytes()).hexdigest()] = utterance.id
        for line in self.log.read_text().splitlines() if self.log.exists() else ():
            digest, home = line.split()
            if digest in known:  # an encoder's first look at noise is not
                places[known[digest]].append(Path(home).name)
        return places

    def actors(self) -> set[str]:
        """Workers that are there now, on either host."""
        return {name for name in self._named() if not name.startswith("ray::IDLE")} - self._at_rest

    def _named(self) -> list[str]:
        hosts = (self.cluster.head, self.cluster.worker)
        return [line for host in hosts for line in host.processes().values() if line.startswith("ray::")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with two_hosts() as (head, worker):
        yield Desk(tmp_path_factory.mktemp("desk"), head, worker)


@pytest.fixture(scope="module")
def plain(desk: Desk) -> Path:
    """What this machine alone makes with the small encoders."""
    desk.run(*desk.extraction(desk.folder / "plain.h5", "--device=cpu"))
    return desk.folder / "plain.h5"


@pytest.fixture(scope="module")
def slow_plain(desk: Desk) -> Path:
    """What this machine alone makes with the slow encoder."""
    desk.run(*desk.extraction(desk.folder / "slow.h5", "--device=cpu", slow=True))
    return desk.folder / "slow.h5"


@pytest.fixture(autouse=True)
def _fresh_log(desk: Desk, plain: Path, slow_plain: Path) -> None:
    desk.log.unlink(missing_ok=True)


def assert_alike(output: Path, expected: Path) -> None:
    one, other = read_cache(output), read_cache(expected)
    assert one.failures == other.failures == ()
    for a, b in zip(one.features, other.features, strict=True):
        assert (a.modality, a.name, list(a.inputs)) == (b.modality, b.name, list(b.inputs))
        np.testing.assert_allclose(a.values, b.values, rtol=1e-5, atol=1e-5)
    assert not output.with_name(f"{output.name}.parts").exists()


def numbers(folder: Path) -> list[dict[str, Any]]:
    rows = read_results(folder)
    assert rows
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def test_two_hosts_encode_what_one_machine_does(desk: Desk, plain: Path, tmp_path: Path) -> None:
    desk.run(*desk.extraction(tmp_path / "cache.h5", *desk.by_ray))
    assert_alike(tmp_path / "cache.h5", plain)
    until(lambda: not desk.actors(), "end of all workers")


def test_what_two_hosts_train_and_one_of_them_to_its_end_is_what_one_machine_does(
    desk: Desk, plain: Path, tmp_path: Path
) -> None:
    grid = ("--kappa=2,8", "--seeds=6", "--epochs=40")
    train = (sys.executable, "-c", TRAIN, f"--cache={plain}", *grid)
    desk.run(*train, f"--output={tmp_path / 'plain'}", "--device=cpu")
    unfinished = tmp_path / "ray.unfinished"
    with desk.started(*train, f"--output={tmp_path / 'ray'}", *desk.by_ray) as process:
        # of eight tasks
        until(lambda: len([*unfinished.glob("fold*-task*.json")]) >= 3 or process.poll() is not None, "three tasks")
        desk.cluster.worker.power_off()
        _, complained = process.communicate(timeout=180)
    desk.start_worker()
    assert process.returncode == 0, complained
    one, other = numbers(tmp_path / "ray"), numbers(tmp_path / "plain")
    assert [row.keys() for row in one] == [row.keys() for row in other]
    for a, b in zip(one, other, strict=True):
        for name, value in a.items():
            assert value == (pytest.approx(b[name], abs=1e-5, nan_ok=True) if isinstance(value, float) else b[name])


def test_a_host_that_is_lost_half_way_costs_its_portions_alone(desk: Desk, slow_plain: Path, tmp_path: Path) -> None:
    output = tmp_path / "cache.h5"
    with desk.started(*desk.extraction(output, *desk.by_ray, slow=True)) as process:
        # Both have worked, and half of it is done.
        until(lambda: len(desk.encoded()) >= COUNT // 2 or process.poll() is not None, "half of the work")
        assert process.poll() is None, process.communicate()
        assert {place for places in desk.encoded().values() for place in places} == {"a", "b"}
        desk.cluster.worker.power_off()
        _, complained = process.communicate(timeout=180)
    desk.start_worker()
    assert process.returncode == 0, complained
    assert_alike(output, slow_plain)
    places = desk.encoded()
    assert len(places) == COUNT
    twice = {one: where for one, where in places.items() if len(where) > 1}
    # What the lost host had finished and handed over is encoded by nobody else.
    assert len(twice) <= 2 * PORTION
    assert all(sorted(where) == ["a", "b"] for where in twice.values()), twice


def test_after_ctrl_c_no_worker_is_left_the_cluster_lives_and_the_same_command_goes_on(
    desk: Desk, slow_plain: Path, tmp_path: Path
) -> None:
    output = tmp_path / "cache.h5"
    command = desk.extraction(output, *desk.by_ray, "--rows=shared", slow=True)
    with desk.started(*command) as process:
        until(lambda: len(desk.encoded()) >= COUNT // 2 or process.poll() is not None, "half of the work")
        assert process.poll() is None, process.communicate()
        assert desk.actors()
        process.send_signal(signal.SIGINT)
        _, complained = process.communicate(timeout=60)
    assert process.returncode not in (0, None), complained
    assert "Traceback" not in complained
    until(lambda: not desk.actors(), "end of all workers", seconds=30)
    before = desk.encoded()
    desk.run(*command)
    assert_alike(output, slow_plain)
    after = desk.encoded()
    assert len(after) == COUNT
    again = [one for one in before if len(after[one]) > len(before[one])]
    # what two workers had begun, or had not handed over
    assert len(again) <= 2 * PORTION


def refusal(desk: Desk, *command: str) -> str:
    """The one line that a command ends with, soon."""
    done = desk.cluster.head.run(*command, seconds=90)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("address", ["10.77.0.1:6400", "10.77.0.9:6379"])
def test_a_wrong_address_is_one_line(desk: Desk, tmp_path: Path, address: str) -> None:
    where = ("--engine=ray", f"--ray-address={address}")
    assert address in refusal(desk, *desk.extraction(tmp_path / "cache.h5", *where))
    assert not (tmp_path / "cache.h5").exists()


@pytest.mark.parametrize("lacks", ["models", "corpus"])
def test_a_host_that_lacks_encoder_or_recordings_is_one_line(desk: Desk, tmp_path: Path, lacks: str) -> None:
    with desk.cluster.worker.hidden(desk.folder / lacks):
        line = refusal(desk, *desk.extraction(tmp_path / "cache.h5", *desk.by_ray, slow=lacks == "corpus"))
    assert str(desk.folder / lacks) in line
    assert desk.cluster.worker.name in line
    assert not (tmp_path / "cache.h5").exists()


def test_a_host_that_does_not_see_the_shared_rows_is_one_line(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    output = tmp_path / "cache" / "cache.h5"
    with desk.cluster.worker.hidden(tmp_path / "cache"):
        line = refusal(desk, *desk.extraction(output, *desk.by_ray, "--rows=shared", slow=True))
    assert "--rows" in line


@pytest.mark.parametrize(("software", "command"), [("amber2", "extract"), ("torch", "train")])
def test_a_host_with_other_versions_is_one_line(
    desk: Desk, plain: Path, tmp_path: Path, software: str, command: str
) -> None:
    told = desk.other / f"{software}-0.0.1.dist-info" / "METADATA"
    told.parent.mkdir()
    told.write_text(f"Metadata-Version: 2.1\nName: {software}\nVersion: 0.0.1\n")
    extract = desk.extraction(tmp_path / "out", *desk.by_ray, slow=True)
    train = (
        sys.executable,
        "-c",
        TRAIN,
        f"--cache={plain}",
        "--epochs=2",
        f"--output={tmp_path / 'out'}",
        *desk.by_ray,
    )
    try:
        line = refusal(desk, *(extract if command == "extract" else train))
    finally:
        told.unlink()
        told.parent.rmdir()
    assert re.search(rf"\b{software}\b.*\b0\.0\.1\b", line)
