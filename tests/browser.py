"""A real browser without a driver: chromium's own debugging pipe, spoken in JSON. Nothing leaves the machine."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--no-first-run", "--remote-debugging-pipe",
)  # fmt: skip
# chromium reads commands from its descriptor 3 and answers on 4
RELAY = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60  # seconds for one answer


def find_chromium() -> str | None:
    """The path of a chromium, None where there is none."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Page:
    """One page of a running browser, and everything that it reported."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._number = 0
        self._buffer = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; RuntimeError if the browser refuses."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, place: Path | str) -> None:
        """Load a file or an address and wait until its scripts have run."""
        loaded = len(self.loads())
        self.ask("Page.navigate", url=place if isinstance(place, str) else place.resolve().as_uri())
        while len(self.loads()) == loaded:
            self.events.append(self._next())

    def loads(self) -> list[dict[str, Any]]:
        """The pages that have been loaded."""
        return [event for event in self.events if event.get("method") == "Page.loadEventFired"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, a promise's when it is one; RuntimeError if it throws."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """The value of an expression as soon as it holds; RuntimeError if it does not for long."""
        limit = time.monotonic() + PATIENCE
        while not (found := self.run(script)):
            if time.monotonic() > limit:
                raise RuntimeError(f"The page never comes to {script}")
            time.sleep(0.05)
        return found

    def put(self, selector: str, *files: Path) -> None:
        """Choose files as the user would in a dialogue."""
        found = self.ask("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        self.ask("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=found["result"]["objectId"])

    def resize(self, width: int, height: int = 900) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str) -> None:
        """light or dark."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def complaints(self) -> list[str]:
        """What the page wrote to the console, and what it threw."""
        kinds = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        return [json.dumps(event["params"])[:500] for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """The addresses that it asked for, data in the page itself left out."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        urls = [str(parameters["request"]["url"]) for parameters in sent]
        return [url for url in urls if not url.startswith("data:")]

    def _next(self) -> dict[str, Any]:
        limit = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, limit - time.monotonic()))[0]:
                raise RuntimeError("The browser does not answer")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("The browser has gone")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextlib.contextmanager
def browser(executable: str, *flags: str) -> Iterator[Page]:
    """A browser with an empty profile, gone when the block ends; `flags` of its own beside ours."""
    to_browser, from_us = os.pipe()
    from_browser, to_us = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [sys.executable, "-c", RELAY, str(to_browser), str(to_us), executable, *FLAGS, *flags]
        command.append(f"--user-data-dir={profile}")
        process = subprocess.Popen(
            command, pass_fds=(to_browser, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(to_us)
        try:
            yield Page(from_us, from_browser)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(from_us)
            os.close(from_browser)
