"""The engine on a Ray cluster: workers are actors, each bound to one machine and its share of processors or GPUs.

Ray brings tasks and results across and tells who died; what is dealt again, and to whom, is `amber2_core.engine`'s, as
for processes of one machine. Importing this module loads no Ray.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from typing import Any, ClassVar

from .engine import Dealt, raised, settle, surroundings
from .errors import Amber2Error, SettingError, bad_choice

# Seconds within which a port must open; a machine answer, whose processes may have much to load from a slow disk; and a
# machine notice that a worker has ended.
_AT_ONCE, _PATIENCE, _MOMENT = 10.0, 60.0, 2.0
# What must be the same everywhere, for the numbers to be.
_SOFTWARE = ("amber2", "torch", "torchaudio", "transformers", "tokenizers", "numpy", "soundfile", "av")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """What one worker has of a cluster."""

    # Ray's id of the machine, and its name
    node: str
    host: str
    # threads, and GPUs, of which a share below one is shared with other workers
    threads: int
    gpus: float = 0.0

    @property
    def device(self) -> str:
        """As the worker knows it: Ray shows it its own GPUs alone."""
        return "cuda:0" if self.gpus else "cpu"


@contextmanager
def machines(engine: str, address: str | None = None, *, gpus_per_worker: float = 1.0) -> Iterator[Cluster | None]:
    """Ray, connected to within; workers end with the block, and Ray itself where it was started for it.

    Args:
        engine: ``ray``; ``local``: none but this machine, which is None.
        address: ``HOST:PORT`` of the cluster's head, or ``auto`` for one that runs on this machine; None: as
            RAY_ADDRESS says, else Ray is started on this machine.
        gpus_per_worker: below 1, several workers share a GPU.

    Raises:
        SettingError: Ray is not installed, no cluster answers there, or something is given that is not used.
    """
    if engine == "local":
        for name, is_given in (("--ray-address", address is not None), ("--gpus-per-worker", gpus_per_worker != 1)):
            if is_given:
                raise SettingError(f"{name} without --engine ray: leave it out, or give both")
        yield None
        return
    # It tells nobody that it is used; and workers on one's own machine are no less urgent than what started them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError:
        raise SettingError("--engine ray needs Ray: pip install 'amber2[ray]'") from None
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(address)
    # Of what goes wrong there, this engine tells; Ray would print, and on stdout.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, configure_logging=False)
    except Exception as problem:  # what it raises is no part of its interface
        if address == "auto" and isinstance(problem, ConnectionError):
            raise SettingError(
                "No Ray cluster runs on this machine: start one with `ray start --head`, give --ray-address HOST:PORT, "
                "or leave it out for this machine alone"
            ) from None
        line = " ".join(str(problem).split())
        raise SettingError(f"Cannot join the Ray cluster at {address}: {line[:300]}") from None
    try:
        yield Cluster(gpus_per_worker)
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raises SettingError where nothing listens, which Ray would wait for."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise SettingError(f"Bad Ray address {address!r}, expected HOST:PORT of the cluster's head, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_AT_ONCE).close()
    except (OSError, OverflowError) as problem:
        raise SettingError(
            f"No Ray cluster answers at {address}: {getattr(problem, 'strerror', None) or problem}; give "
            "--ray-address HOST:PORT as `ray start --head` printed it, or leave it out for this machine alone"
        ) from None


@dataclass(frozen=True)
class Cluster:
    """An engine: the machines of a cluster that is connected to."""

    gpus_per_worker: float = 1.0
    has_stragglers: ClassVar[bool] = True

    def places(self, device: str = "auto", *, threads: int | None = None) -> list[Place]:
        """Room for workers, machine by machine, each seen to have the same software as this one.

        Args:
            device: ``cpu``; ``cuda``; ``auto``: GPUs where the cluster has any.
            threads: of each worker on processors; None: one worker has all of its machine.

        Raises:
            SettingError: the cluster has no such device, or a machine has other software.
        """
        import ray

        if device not in ("auto", "cpu", "cuda"):
            raise SettingError(bad_choice("device for --engine ray", device, ("auto", "cpu", "cuda")))
        nodes = [(node, node["Resources"]) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        if device == "auto":
            device = "cuda" if any(own.get("GPU") for _, own in nodes) else "cpu"
        found = []
        for node, own in nodes:
            cpus, gpus = int(own.get("CPU", 0)), own.get("GPU", 0.0)
            count = int(gpus / self.gpus_per_worker) if device == "cuda" else cpus // (threads or max(1, cpus))
            each = max(1, cpus // max(1, count)) if device == "cuda" else threads or cpus
            share = self.gpus_per_worker if device == "cuda" else 0.0
            found += [Place(node["NodeID"], node["NodeManagerHostname"], each, share)] * count
        if not found:
            what = f"GPUs for workers with {self.gpus_per_worker:g}" if device == "cuda" else "processors"
            raise SettingError(f"The Ray cluster has no {what}: see `ray status`, or use another --device")
        self._check_software({place.node: place.host for place in found})
        _tell_of_others(found)
        return found

    def workers(self, entries: Sequence[tuple[Place, Any]], work: tuple[Any, Any, Any]) -> Sequence[_Actor]:
        """One for each place and what its worker is told; what all share crosses once to each machine."""
        import ray

        shared = ray.put(work)
        return [_Actor(place, entry, shared) for place, entry in entries]

    def ready(self, busy: Sequence[_Actor], timeout: float | None) -> Sequence[_Actor]:
        """Those of which there is something to receive."""
        import ray

        if heard := [worker for worker in busy if worker.inbox]:
            return heard
        results = {worker.results[0]: worker for worker in busy}
        done, _ = ray.wait(list(results), num_returns=1, timeout=timeout)
        return [results[one] for one in done]

    def _check_software(self, hosts: Mapping[str, str]) -> None:
        here = _versions()(_SOFTWARE)
        for node, there in _asked(hosts, _versions(), _SOFTWARE).items():
            if not isinstance(there, dict):
                raise SettingError(f"{hosts[node]} of the Ray cluster does not answer ({there})")
            for name, own in here.items():
                if there.get(name) != own:
                    raise SettingError(
                        f"{hosts[node]} of the Ray cluster has {name} {there.get(name) or 'not at all'}, and this "
                        f"machine {own}: install the same versions on both"
                    )


def _asked(hosts: Collection[str], function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """What a function gives on each machine, or in words why it gives nothing; it needs no processor there."""
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = {node: task.options(scheduling_strategy=_bound(node)).remote(*args) for node in hosts}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_PATIENCE)
    found = {}
    for node, result in asked.items():
        try:
            found[node] = ray.get(result, timeout=0)
        except Exception as problem:
            found[node] = str(problem).strip().partition("\n")[0] or type(problem).__name__
    return found


def _tell_of_others(places: Sequence[Place]) -> None:
    """Warn where others have what workers are to have. What our own last workers had is free a moment after them."""
    import ray

    gpus = sum(place.gpus for place in places)
    kind, wanted = ("GPU", gpus) if gpus else ("CPU", sum(place.threads for place in places))
    deadline = time.monotonic() + _MOMENT
    while (free := ray.available_resources().get(kind, 0.0)) < wanted:  # type: ignore[no-untyped-call]
        if time.monotonic() > deadline:
            _log.warning("%g of %g %ss of the Ray cluster are free: some workers wait", free, wanted, kind)
            return
        time.sleep(0.05)


def _bound(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _versions() -> Callable[[Sequence[str]], dict[str, str]]:
    """A function that travels by value: a machine without amber2 can answer, too."""

    def versions(names: Sequence[str]) -> dict[str, str]:
        from importlib.metadata import PackageNotFoundError, version
        from platform import python_version

        found = {"python": python_version()}
        for name in names:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return found

    return versions


class _Actor:
    """The conductor's side of one worker."""

    def __init__(self, place: Place, entry: Any, work: Any) -> None:
        self.dealt: deque[Dealt] = deque()
        self.is_gone = False
        # what came with a result, and results to come, one for each task that is dealt
        self.inbox: deque[tuple[Any, ...]] = deque()
        self.results: deque[Any] = deque()
        self._place, self._entry, self._work = place, entry, work
        self._actor: Any = None
        self._how = ""

    def give(self, dealt: Dealt) -> None:
        if self._actor is None:
            self._start()
        self.dealt.append(dealt)
        self.results.append(self._actor.run.remote(dealt.task))

    def receive(self) -> tuple[Any, ...] | None:
        import ray

        if not self.inbox:
            try:
                self.inbox.extend(ray.get(self.results.popleft()))
            except ray.exceptions.RayError as problem:
                ran_out = isinstance(problem, ray.exceptions.OutOfMemoryError)
                self._how = "memory ran out" if ran_out else "its process ended"
                return None
        message = self.inbox.popleft()
        if message[0] == "raised" and isinstance(message[1], Amber2Error):
            return "raised", type(message[1])(f"{message[1]} (on {self._place.host})"), message[2]
        return message

    def kill(self) -> None:
        if self._actor is not None:
            import ray

            with suppress(Exception):  # it is dead already, or Ray is
                ray.kill(self._actor)

    def bury(self) -> str:
        self.kill()
        had_tasks = bool(self.dealt)
        self._actor = None
        for one in (self.dealt, self.inbox, self.results):
            one.clear()
        if had_tasks and self._how and not self._answers():
            self.is_gone = True
            return f"{self._place.host} of the Ray cluster was lost"
        return f"{self._how} on {self._place.host}"

    def _start(self) -> None:
        import ray

        place = self._place
        kind = ray.remote(_Seat).options(
            # who has a GPU needs little else, and there may be fewer processors than shares of GPUs
            num_cpus=0 if place.gpus else place.threads,
            num_gpus=place.gpus,
            max_restarts=0,
            max_concurrency=1,
            scheduling_strategy=_bound(place.node),
        )
        self._actor = kind.remote(self._entry, self._work, *surroundings())

    def _answers(self) -> bool:
        """Whether its machine is still there."""
        (there,) = _asked([self._place.node], _versions(), ()).values()
        return isinstance(there, dict)


# ── in a worker ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Seat:
    """A worker: what it is set up with, and what it logs while it computes."""

    def __init__(self, entry: Any, work: tuple[Any, Any, Any], levels: dict[str, int], filters: list[Any]) -> None:
        self._entry, (self._function, self._setup, self._shared) = entry, work
        self._state: Any = None
        self._is_set_up = False
        self._logged = _Kept()
        settle(self._logged, levels, filters)

    def run(self, task: Any) -> list[tuple[Any, ...]]:
        """What was logged, and what the task gives, or what was raised."""
        last: tuple[Any, ...]
        try:
            if not self._is_set_up:
                self._state = self._setup(self._entry, self._shared)
                self._is_set_up = True
            last = ("made", self._function(self._state, task))
        except Exception as problem:
            last = raised(problem)
        return [*self._logged.taken(), last]


class _Kept(QueueHandler):
    """All that is logged, until the conductor takes it."""

    def __init__(self) -> None:
        super().__init__(deque())  # type: ignore[arg-type]

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.append(record)  # type: ignore[attr-defined]

    def taken(self) -> list[tuple[str, logging.LogRecord]]:
        """What there is since last time."""
        kept: deque[logging.LogRecord] = self.queue  # type: ignore[assignment]
        return [("logged", kept.popleft()) for _ in range(len(kept))]
