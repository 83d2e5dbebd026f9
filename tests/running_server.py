"""serve-emotion in a process of its own, asked as any program would ask it."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import soundfile
from speaking_heads import Studio

pytest.importorskip("uvicorn", reason="the extra app is not installed")
pytest.importorskip("starlette", reason="the extra app is not installed")

COMMAND = "from amber2_predict.cli import serve_emotion; serve_emotion()"
# Put before the command: predictions wait until a file is there, and count in another what they were asked for.
GATED = """
import os, time
from amber2_predict import predictor
real = predictor.Predictor.rows
def rows(self, units):
    while not os.path.exists("open"):
        time.sleep(0.01)
    with open("counted", "a") as file:
        file.write("." * len(units))
    return real(self, units)
predictor.Predictor.rows = rows
"""


@dataclass
class Running:
    """A server that answers, the folder where it was started, and the only one where it may put what nobody keeps."""

    process: subprocess.Popen[str]
    port: int
    folder: Path
    connections: list[http.client.HTTPConnection] = field(default_factory=list)

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def begin(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, **query: str
    ) -> http.client.HTTPConnection:
        """Send a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        self.connections.append(connection)
        where = f"{path}?{urlencode(query)}" if query else path
        connection.request(method, where, body, dict(headers or {}))
        return connection

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and what the answer says in JSON."""
        return answer(self.begin(method, path, body, **more))

    def rows(self, body: bytes | None = None, **query: str) -> list[dict[str, Any]]:
        """Predictions of what is sent, which must go well."""
        status, _, said = self.ask("POST", "/predict", body, **query)
        assert status == 200, said
        found: list[dict[str, Any]] = said["rows"]
        return found

    def peak(self) -> int:
        """The most memory that it ever had, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])

    def ended(self) -> tuple[int, str]:
        """Exit code and complaints, when it has ended."""
        _, complaints = self.process.communicate(timeout=60)
        return self.process.returncode, complaints


def answer(connection: http.client.HTTPConnection) -> tuple[int, Mapping[str, str], Any]:
    response = connection.getresponse()
    said = response.read()
    kind = response.headers.get("content-type", "")
    return response.status, response.headers, json.loads(said) if kind == "application/json" else said


def words_of(studio: Studio, *options: str) -> list[str]:
    """The words of the command after its name, of the first model of a studio."""
    heads = str(studio.run / "heads" / "amber2-fold1-seed0.safetensors")
    return ["--heads", heads, *studio.options, "--device=cpu", *options]


@contextmanager
def running(studio: Studio, folder: Path, *options: str, before: str = "") -> Iterator[Running]:
    """A server on any free port, which is killed at the end unless it has ended.

    Args:
        studio: whose heads predict.
        folder: where it is started.
        options: of the command.
        before: code that its process runs first.
    """
    (folder / "scratch").mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{COMMAND}", *words_of(studio, "--port=0", *options)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "scratch")},
    )  # fmt: skip
    assert process.stdout is not None
    found = None
    try:
        line = process.stdout.readline()
        match = re.fullmatch(r"http://\S+:(\d+)/\n", line)
        assert match, (line, process.communicate(timeout=30)[1])
        found = Running(process, int(match[1]), folder)
        yield found
    finally:
        for connection in found.connections if found else ():
            connection.close()
        if process.poll() is None:
            process.kill()
        process.communicate()


def long_recording(path: Path, seconds: float, *, rate: int = 8000) -> bytes:
    """Noise that grows and fades, so that its windows differ."""
    random = np.random.default_rng(0)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.2 * random.standard_normal(len(time)) * (1.1 + np.sin(time)) / 2.1, rate)
    return path.read_bytes()
