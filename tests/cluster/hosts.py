"""Two hosts on one machine, joined by a cable, and a Ray node on each.

    python tests/cluster/hosts.py COMMAND [ARGUMENT]...

runs a command on the first of them, with the cluster's address in RAY_ADDRESS; its exit status is that of the command.

A host is a network namespace, a home and a folder for temporary files of its own; they share the file system, from
which a host can be kept. Nothing outlives the two: who they are is known by their namespaces.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PORT = 6379
# the least that Ray takes
_STORE_BYTES = 80 * 2**20
_RAY = (sys.executable, "-m", "ray.scripts.scripts")
# Folders given as arguments become empty ones, for this process and what it starts.
_HIDE = 'while [ "$1" != -- ]; do mount -t tmpfs none "$1" || exit 90; shift; done; shift; exec "$@"'
# address, count: until so many nodes are alive
_WAIT = """
import sys, time
from ray._raylet import GcsClient
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        nodes = GcsClient(address=sys.argv[1]).get_all_node_info().values()
    except Exception:  # the head is not there yet
        nodes = []
    if sum(node.state == 0 for node in nodes) == int(sys.argv[2]):
        sys.exit()
    time.sleep(0.2)
sys.exit(f"{sys.argv[2]} nodes are not alive after a minute")
"""


def why_not() -> str:
    """Why there can be no hosts here; "" where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces take Linux and root"
    if not all(map(shutil.which, ("ip", "unshare"))):
        return "there is no ip or no unshare (iproute2, util-linux)"
    if find_spec("ray") is None:
        return "Ray is not installed: pip install 'amber2[ray]'"
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"ip netns add: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


class Host:
    """A network namespace with an address, a home and a folder for temporary files."""

    def __init__(self, name: str, address: str, folder: Path, told: Mapping[str, str]) -> None:
        self.name, self.address, self.folder = name, address, folder
        self._environment = {**os.environ, **told, "HOME": str(folder), "TMPDIR": str(folder / "t")}
        (folder / "t").mkdir(parents=True)

    def start(self, *command: str, hidden: Sequence[Path] = (), **options: Any) -> subprocess.Popen[str]:
        """A command, begun on this host.

        Args:
            command: with its arguments.
            hidden: folders that are empty to it.
            options: of `subprocess.Popen`; `env` is added to what the host has.
        """
        environment = {**self._environment, **options.pop("env", {})}
        hide = ("unshare", "--mount", "sh", "-c", _HIDE, "sh", *map(str, hidden), "--") if hidden else ()
        whole = ["ip", "netns", "exec", self.name, *hide, *command]
        return subprocess.Popen(whole, env=environment, text=True, start_new_session=True, **options)

    def run(self, *command: str, seconds: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command on this host, to its end; one that takes longer is killed."""
        with self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def processes(self) -> dict[int, str]:
        """What runs on this host: id → command line."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        found = {}
        for pid in map(int, listed.stdout.split()):
            with suppress(OSError):  # it has ended since
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        return {pid: line for pid, line in found.items() if line}

    def power_off(self) -> None:
        """Kill whatever runs on this host."""
        while running := self.processes():
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def start_ray(self, head: str, *options: str, hidden: Sequence[Path] = (), **told: str) -> None:
        """A Ray node, of the cluster whose head has this address."""
        first = ("--head", f"--port={_PORT}", "--include-dashboard=false") if head == self.address else ()
        where = first or (f"--address={head}:{_PORT}",)
        temporary = f"--temp-dir={self.folder / 't'}"
        more = ("--disable-usage-stats", f"--object-store-memory={_STORE_BYTES}", f"--node-ip-address={self.address}")
        with (self.folder / "ray.log").open("a") as log:
            self.start(
                *(*_RAY, "start", "--block", *where, temporary, *more, *options),
                hidden=hidden,
                env=told,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> str:
        """What its Ray node said."""
        return (self.folder / "ray.log").read_text()


class Cluster:
    """Two hosts; the first is the head of the Ray cluster."""

    def __init__(self, head: Host, worker: Host) -> None:
        self.head, self.worker = head, worker
        self.address = f"{head.address}:{_PORT}"

    def start_head(self) -> None:
        """The head's Ray node, with one place for an actor."""
        self.head.start_ray(self.head.address, "--num-cpus=1")
        self.wait_for_nodes(1)

    def start_worker(self, *, hidden: Sequence[Path] = (), **told: str) -> None:
        """The other host's Ray node, with one place for an actor, which some folders may be kept from."""
        self.worker.start_ray(self.head.address, "--num-cpus=1", hidden=hidden, **told)
        self.wait_for_nodes(2)

    def wait_for_nodes(self, count: int) -> None:
        """Until so many nodes are known to be alive."""
        done = self.head.run(sys.executable, "-c", _WAIT, self.address, str(count))
        assert done.returncode == 0, done.stderr + self.head.log() + self.worker.log()


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, joined; in the end whatever runs there is killed."""
    mark = f"amber2-{os.getpid()}"
    cable = [f"am{os.getpid()}{end}" for end in "ab"]
    token = secrets.token_hex(32)
    told = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    folder = Path(tempfile.mkdtemp(prefix="am", dir="/tmp"))  # sockets have paths of at most 107 bytes
    hosts = [Host(f"{mark}-{end}", f"10.77.0.{place}", folder / end, told) for place, end in enumerate("ab", 1)]
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        _ip("link", "add", cable[0], "netns", hosts[0].name, "type", "veth", "peer", cable[1], "netns", hosts[1].name)
        for host, end in zip(hosts, cable, strict=True):
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", end)
            for device in ("lo", end):
                _ip("-n", host.name, "link", "set", device, "up")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.power_off()
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait for something.

    Raises:
        AssertionError: it does not come.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} within {seconds:g} s"
        time.sleep(0.05)


def main(command: Sequence[str]) -> int:
    """Run a command on the first of two hosts."""
    if reason := why_not():
        sys.exit(reason)
    with two_hosts() as (head, worker):
        cluster = Cluster(head, worker)
        cluster.start_head()
        cluster.start_worker()
        return head.start(*command, env={"RAY_ADDRESS": cluster.address}).wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
