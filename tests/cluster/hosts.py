"""Two hosts on one machine, joined by a cable, and a Ray node on each.

    python tests/cluster/hosts.py COMMAND [ARGUMENT]...

runs a command on the first of them, with the cluster's address in RAY_ADDRESS; its exit status is that of the command.

A host is a network namespace with a name, a home and a folder for temporary files of its own; they share the file
system, folders of which can be hidden from one. Nothing outlives them: what runs on a host is known by its namespace.
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
# either end of the cable
_END = "cable"
# the least that Ray takes
_STORE_BYTES = 80 * 2**20
# A host that falls silent is lost after five checks, each of so much time and a second; as Ray has it that is a minute.
_CHECK = {"RAY_health_check_timeout_ms": "2000", "RAY_health_check_period_ms": "1000"}
_RAY = (sys.executable, "-m", "ray.scripts.scripts")
# folder, namespaces: when whoever holds the other end of its input closes it, or ends in whatever way, nothing is left
_SWEEP = """
read _
folder=$1
shift
for name; do
    for _ in $(seq 100); do
        pids=$(ip netns pids "$name") && [ -n "$pids" ] || break
        kill -9 $pids
        sleep 0.05
    done
    ip netns delete "$name"
done
rm -rf "$folder"
"""
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
    if not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        return "ip, nsenter or unshare is missing (iproute2, util-linux)"
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

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """A command, begun on this host, in its home; options are `subprocess.Popen`'s, `env` adds to what there is."""
        environment = {**self._environment, **options.pop("env", {})}
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name)
        whole = ["ip", "netns", "exec", self.name, *named, *command]
        return subprocess.Popen(whole, env=environment, cwd=self.folder, text=True, start_new_session=True, **options)

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

    @contextmanager
    def hidden(self, folder: Path) -> Iterator[None]:
        """Within, the folder is empty for the Ray node of this host and whatever that starts."""
        node = next(pid for pid, line in self.processes().items() if "raylet" in line.split()[0])
        enter = ("nsenter", f"--target={node}", "--mount")
        subprocess.run([*enter, "mount", "-t", "tmpfs", "none", str(folder)], check=True)
        try:
            yield
        finally:
            subprocess.run([*enter, "umount", "--lazy", str(folder)], check=True)

    def power_off(self) -> None:
        """The cable first, so that nobody says farewell; then whatever runs on this host is killed."""
        self._cable("down")
        while running := self.processes():
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def _cable(self, state: str) -> None:
        subprocess.run(["ip", "-n", self.name, "link", "set", _END, state], capture_output=True, check=False)

    def start_ray(self, head: str, *options: str, **told: str) -> None:
        """A Ray node, of the cluster whose head has this address; it is told more in its environment."""
        self._cable("up")
        first = ("--head", f"--port={_PORT}", "--include-dashboard=false")
        where = first if head == self.address else (f"--address={head}:{_PORT}",)
        temporary = f"--temp-dir={self.folder / 't'}"
        more = ("--disable-usage-stats", f"--object-store-memory={_STORE_BYTES}", f"--node-ip-address={self.address}")
        with (self.folder / "ray.log").open("a") as log:
            command = (*_RAY, "start", "--block", *where, temporary, *more, *options)
            self.start(*command, env=told, stdout=log, stderr=subprocess.STDOUT)

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

    def start_worker(self, **told: str) -> None:
        """The other host's Ray node, with one place for an actor."""
        self.worker.start_ray(self.head.address, "--num-cpus=1", **told)
        self.wait_for_nodes(2)

    def wait_for_nodes(self, count: int) -> None:
        """Until so many nodes are known to be alive."""
        done = self.head.run(sys.executable, "-c", _WAIT, self.address, str(count))
        assert done.returncode == 0, done.stderr + self.head.log() + self.worker.log()


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, joined; in the end, of this process too, whatever runs there is killed."""
    mark = f"amber2-{os.getpid()}"
    token = secrets.token_hex(32)
    told = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0", **_CHECK}
    folder = Path(tempfile.mkdtemp(prefix="am", dir="/tmp"))  # sockets have paths of at most 107 bytes
    hosts = [Host(f"{mark}-{end}", f"10.77.0.{place}", folder / end, told) for place, end in enumerate("ab", 1)]
    command = ["sh", "-c", _SWEEP, "sh", str(folder), *(host.name for host in hosts)]
    sweeper = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    with sweeper:  # closes its input, and waits
        for host in hosts:
            _ip("netns", "add", host.name)
        first, second = (("name", _END, "netns", host.name) for host in hosts)
        _ip("link", "add", *first, "type", "veth", "peer", *second)
        for host in hosts:
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", _END)
            for device in ("lo", _END):
                _ip("-n", host.name, "link", "set", device, "up")
        yield hosts[0], hosts[1]


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
