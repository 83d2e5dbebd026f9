"""Stage 1 on a cluster, simulated event by event: a million hours over 64 workers, with nodes that die and stragglers.

    python benchmarks/scale_simulation.py [--hours 1e6] [--workers 64] [--rows driver|shared] [--parts 64] …

Batches and portions are those that `extract-features` would plan: batches of a sample of utterances, each standing for
as many as it must, and all portions of the real number of batches. The driver hands each worker two portions ahead,
takes results one after the other, and deals what a dead worker had again, as `amber2_core.engine` does. Printed are the
makespan against the ideal, the work lost, the driver's load, storage, and the time to merge. The same arguments give
the same figures.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from amber2_extract.batches import padding_waste, plan_batches, portions

HOUR, DAY = 3600.0, 86_400.0
SAMPLE = 20_000


@dataclass(frozen=True)
class Plan:
    """A cluster and its work. Each default says where it comes from."""

    hours: float = 1e6
    workers: int = 64
    # manifests that the corpus is cut into, each a corpus to a command of its own; they share the workers, and where
    # there are more of them than workers, each has one, and they follow one another
    parts: int = 1
    # tasks of an array that share a part: each reads all of it and keeps its whole table, and encodes its share
    shards: int = 1
    # of an encoder of base size on one H200 in fp32, in multiples of real time: RESULTS.md measured 1,389 to 1,483. One
    # of large size computes 3.3 times as much: 420
    speed: float = 1400.0
    # as of MSP-Podcast: 324 h in 207,136 turns
    utterance_seconds: float = 5.6
    # spread of the logarithm of lengths: as of IEMOCAP, .6
    spread: float = 0.6
    # as extract-features takes for accelerators
    batch_seconds: float = 120.0
    # threads that decode for a GPU: portions are the longer the more they are
    threads: int = 4
    # GPUs of a node, which die with it
    per_node: int = 8
    # of all nodes together: each once a day, as where nodes may be taken away at any time. Llama 3's 16,384 GPUs met 8
    # interruptions a day (arXiv 2407.21783), so 64 GPUs that are one's own .03
    deaths_per_day: float = 8.0
    # the driver is on the first of its nodes and dies with it, as in a batch job, or on a host of its own that lives
    driver: str = "first"
    # a node that was lost is gone until the command is started again, as the engine has it, or comes back to it
    lost: str = "gone"
    # until a node is back, with its encoder loaded: the boot of a machine
    restart_seconds: float = 600.0
    # until a dead node's portions are dealt again: Ray asks five times in 65 s; where the system lives on and says that
    # processes have ended, two nodes took 11
    notice_seconds: float = 65.0
    # one portion in a hundred takes three times as long, as where storage stalls; all others vary by a tenth
    stragglers: float = 0.01
    straggling: float = 3.0
    variation: float = 0.1
    # of the driver, by Ray: a call, and a megabyte of what it gives (3.8 ms for 2.6 MB)
    call_seconds: float = 0.7e-3
    megabyte_seconds: float = 3.8e-3 / 2.6
    # rows come back to the driver, which writes them, or workers write them to storage that all share
    rows: str = "driver"
    # a vector of base size, and its entry in the index; every layer of it is 13 times as much
    row_bytes: float = 768 * 4 + 56
    # of recordings: 16 kHz, 16 bit
    audio_bytes: float = 32_000.0
    # bytes per second that one host reads or writes of shared storage: Ethernet of 25 Gbit/s, two thirds of it
    host_bytes: float = 2e9
    # and all hosts together: a parallel file system of some racks
    storage_bytes: float = 20e9
    # to look at a row, read it and write it into the cache: 67 and 72 µs of one core for 20,000 rows
    merge_row_seconds: float = 70e-6
    # of the driver, per utterance: MSP-Podcast of 207,136 turns took 0.44 GiB
    utterance_bytes: float = 2_300.0
    # portions that a worker has at most, as `engine.deal` has it
    queued: int = 2
    seed: int = 0

    @property
    def commands(self) -> int:
        """Each has a driver of its own."""
        return self.parts * self.shards

    @property
    def at_once(self) -> int:
        """So many of them run at the same time."""
        return min(self.commands, self.workers)

    @property
    def scan_seconds(self) -> float:
        """To read the recordings of a part, while all other commands do."""
        on_a_host = max(1.0, self.per_node * self.at_once / self.workers)
        rate = min(self.host_bytes / on_a_host, self.storage_bytes / self.at_once)
        return self.hours / self.parts * HOUR * self.audio_bytes / rate

    @property
    def command(self) -> Command:
        """What each of the commands has to do."""
        mine = replace(
            self,
            hours=self.hours / self.commands,
            workers=self.workers // self.at_once,
            deaths_per_day=self.deaths_per_day / self.at_once,
        )
        return Command(mine, self.scan_seconds)


@dataclass(frozen=True)
class Command:
    """A driver with its workers: what is the driver's alone of a plan, and how long it reads before it begins."""

    plan: Plan
    scan_seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """Portions of one command: seconds of audio that each takes to compute, and utterances."""

    seconds: Sequence[float]
    utterances: Sequence[float]
    # share of what is computed
    padding: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of audio computed."""
        return float(sum(self.seconds))


def planned(plan: Plan) -> Work:
    """The portions of a command, by the project's own planning."""
    spread = plan.spread
    random = np.random.default_rng(plan.seed)
    lengths = random.lognormal(math.log(plan.utterance_seconds) - spread**2 / 2, spread, SAMPLE)
    lengths = np.clip(lengths, 0.5, 30).tolist()
    batches = plan_batches(lengths, budget=plan.batch_seconds)
    times = plan.hours * HOUR / sum(lengths)
    # Each batch of the sample stands for so many.
    costs = [len(batch) * lengths[batch[0]] for batch in batches]
    some: Sequence[Sequence[int]] = portions(
        range(math.ceil(times * len(batches))), workers=plan.workers, threads=plan.threads
    )
    places = [min(int(portion[0] / times), len(batches) - 1) for portion in some]
    return Work(
        [len(portion) * costs[place] for portion, place in zip(some, places, strict=True)],
        [len(portion) * len(batches[place]) for portion, place in zip(some, places, strict=True)],
        padding_waste(lengths, batches),
    )


@dataclass(frozen=True)
class Outcome:
    """What a command took, in seconds."""

    # from the first recording read to the last portion taken
    makespan: float
    # every reading of all recordings, for their digests, before portions are planned
    scans: float
    # of workers: what they computed, whether it was of use or not, and what of that was lost
    computed: float
    lost: float
    deaths: int
    # workers that died while they computed
    hit: int
    # portions that were dealt again, and those that two workers died of, as far as their driver knew: each of these
    # would end its command
    again: int
    twice: int
    # the driver's: handling results
    driver: float


class Cluster:
    """Workers, a driver, and what happens to them, in order of time."""

    def __init__(self, command: Command, work: Work) -> None:
        plan = command.plan
        self.command, self.plan, self.work = command, plan, work
        self._random = np.random.default_rng([plan.seed, 1])
        self._fresh: Iterator[int] = iter(range(len(work.seconds)))
        self._again: deque[int] = deque()
        self._deaths = [0] * len(work.seconds)
        self._dealt: list[deque[int]] = [deque() for _ in range(plan.workers)]
        self._began: list[float | None] = [None] * plan.workers
        # of each worker: how often it died, so that what it was to finish is known to be void
        self._life = [0] * plan.workers
        self._gone = [True] * plan.workers
        self._events: list[tuple[float, int, str, Any]] = []
        self._count = self._taken = self._deaths_met = self._hit = self._dealt_again = self._twice = 0
        self._computed = self._lost = self._driver = self._driver_free = self._scans = self._ready = 0.0

    def run(self) -> Outcome:
        """All of it."""
        self._scan(0.0)
        self._at(self._ready, "come_back", [(worker, 0) for worker in range(self.plan.workers)])
        self._expect_death(0.0)
        now = 0.0
        while self._taken < len(self.work.seconds):
            now, _, what, of = heapq.heappop(self._events)
            getattr(self, f"_{what}")(now, of)
        counts = (self._deaths_met, self._hit, self._dealt_again, self._twice)
        return Outcome(now, self._scans, self._computed, self._lost, *counts, self._driver)

    def _at(self, time: float, what: str, of: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, what, of))

    def _deal(self, now: float) -> None:
        """A portion to the worker that has fewest, as long as there is room."""
        here = [worker for worker, gone in enumerate(self._gone) if not gone]
        while here:
            worker = min(here, key=lambda worker: len(self._dealt[worker]))
            if len(self._dealt[worker]) >= self.plan.queued:
                return
            portion = self._again.popleft() if self._again else next(self._fresh, None)
            if portion is None:
                return
            self._dealt[worker].append(portion)
            self._begin(now, worker)

    def _begin(self, now: float, worker: int) -> None:
        """Compute what was dealt first, where the worker has nothing else to do."""
        if self._began[worker] is None and self._dealt[worker]:
            self._began[worker] = now
            self._at(now + self._takes(self._dealt[worker][0]), "finish", (worker, self._life[worker]))

    def _takes(self, portion: int) -> float:
        factor = 1.0
        if self.plan.variation:
            factor = max(0.5, 1 + self.plan.variation * float(self._random.standard_normal()))
        if self.plan.stragglers and self._random.random() < self.plan.stragglers:
            factor *= self.plan.straggling
        return factor * self.work.seconds[portion] / self.plan.speed

    def _finish(self, now: float, of: tuple[int, int]) -> None:
        """A worker has made a portion; the driver will take it when it has taken what came before."""
        worker, life = of
        if life != self._life[worker]:
            return
        began = self._began[worker]
        assert began is not None
        self._computed += now - began
        portion, self._began[worker] = self._dealt[worker].popleft(), None
        handling = self._handling(portion)
        self._driver += handling
        self._driver_free = max(now, self._driver_free) + handling
        self._at(self._driver_free, "take", None)
        self._begin(now, worker)

    def _handling(self, portion: int) -> float:
        plan = self.plan
        if plan.rows == "shared":
            return plan.call_seconds
        size = self.work.utterances[portion] * plan.row_bytes
        return plan.call_seconds + size / 1e6 * plan.megabyte_seconds + size / plan.host_bytes

    def _take(self, now: float, _: None) -> None:
        self._taken += 1
        self._deal(now)

    def _expect_death(self, now: float) -> None:
        if self.plan.deaths_per_day:
            self._at(now + float(self._random.exponential(DAY / self.plan.deaths_per_day)), "die", None)

    def _scan(self, now: float) -> None:
        """The driver starts, and reads all recordings for their digests."""
        self._scans += self.command.scan_seconds
        self._ready = now + self.command.scan_seconds

    def _die(self, now: float, _: None) -> None:
        """A node goes with its workers, and all work under way with the driver's or with the last node."""
        self._expect_death(now)
        plan, everyone = self.plan, range(self.plan.workers)
        node = int(self._random.integers(math.ceil(plan.workers / plan.per_node)))
        struck = everyone[node * plan.per_node : (node + 1) * plan.per_node]
        has_driver = node == 0 and plan.driver == "first"
        # Who is lost before the driver has joined the cluster is back by then, or soon.
        for_good = plan.lost == "gone" and now >= self._ready
        if for_good and not has_driver and all(self._gone[worker] for worker in struck):
            return  # it is dead already
        self._deaths_met += 1
        for worker in everyone if has_driver else struck:
            self._strike(now, worker)
        back = now + plan.restart_seconds
        if has_driver or (for_good and all(self._gone)):  # the command is started again
            self._scan(back)
            self._deaths, struck, for_good = [0] * len(self._deaths), everyone, False
        if not for_good:
            self._at(max(back, self._ready), "come_back", [(worker, self._life[worker]) for worker in struck])

    def _strike(self, now: float, worker: int) -> None:
        """A worker dies; what it had is dealt again when that is noticed."""
        dealt, began = self._dealt[worker], self._began[worker]
        self._gone[worker], self._life[worker], self._began[worker] = True, self._life[worker] + 1, None
        if began is not None:
            self._hit += 1
            self._deaths[dealt[0]] += 1
            self._twice += self._deaths[dealt[0]] == 2
            self._computed += now - began
            self._lost += now - began
        self._dealt_again += len(dealt)
        self._at(now + self.plan.notice_seconds, "notice", list(dealt))
        dealt.clear()

    def _notice(self, now: float, portions: list[int]) -> None:
        self._again.extend(portions)
        self._deal(now)

    def _come_back(self, now: float, workers: list[tuple[int, int]]) -> None:
        """Those that have not died again since."""
        for worker, life in workers:
            self._gone[worker] = self._gone[worker] and life != self._life[worker]
        self._deal(now)


def report(plan: Plan) -> list[tuple[str, str]]:
    """What a plan comes to, in words and figures."""
    command = plan.command
    work, mine = planned(command.plan), command.plan
    outcomes = [
        Cluster(replace(command, plan=replace(mine, seed=1000 * plan.seed + number)), work).run()
        for number in range(plan.commands)
    ]
    # One after the other where there are more of them than workers.
    slots = [outcomes[first :: plan.at_once] for first in range(plan.at_once)]
    rounds, makespan = len(slots[0]), max(sum(one.makespan for one in slot) for slot in slots)
    encoding = rounds * work.total / (mine.workers * mine.speed)
    scan, scans = rounds * command.scan_seconds, max(sum(one.scans for one in slot) for slot in slots)
    computed, lost = sum(one.computed for one in outcomes), sum(one.lost for one in outcomes)
    deaths, again, twice = (sum(getattr(one, name) for one in outcomes) for name in ("deaths", "again", "twice"))
    utterances = plan.hours * HOUR / plan.utterance_seconds
    audio, rows = plan.hours * HOUR * plan.audio_bytes, utterances * plan.row_bytes
    memory = plan.utterance_bytes * utterances / plan.parts
    # Each row is looked at, read, and written; from several shards once more, into the merged cache.
    own = rows / plan.commands
    into_cache = rounds * (own / plan.row_bytes * plan.merge_row_seconds + 3 * own / plan.host_bytes)
    merge = 0.0 if plan.shards == 1 else 2 * rows / plan.parts / plan.host_bytes
    portion = work.total / len(work.seconds)
    return [
        ("utterances", f"{utterances:,.0f}"),
        (
            "portions of a command",
            f"{len(work.seconds):,} of {portion / HOUR:.1f} h, {portion / plan.speed:.1f} s each",
        ),
        ("padding", f"{work.padding:.2%}"),
        ("commands", f"{plan.commands}, {plan.at_once} at once"),
        ("scan of a command", f"{command.scan_seconds / HOUR:,.2f} h for {audio / plan.parts / 1e12:,.2f} TB"),
        ("makespan", f"{makespan / HOUR:,.2f} h, {makespan / (scan + encoding):.3f} of scan and ideal encoding"),
        ("ideal encoding", f"{encoding / HOUR:,.2f} h"),
        ("scans, the longest", f"{scans / HOUR:,.2f} h"),
        ("GPU-hours", f"{plan.workers * makespan / HOUR:,.0f} held, {computed / HOUR:,.0f} computed"),
        ("deaths of nodes", f"{deaths}; {again} portions dealt again, {twice} of them hit twice"),
        ("work lost", f"{lost:,.0f} s of workers, {lost / computed:.4%}"),
        ("driver's load", f"{max(one.driver / one.makespan for one in outcomes):.1%}"),
        ("driver's memory", f"{memory / 1e9:,.1f} GB a command"),
        ("storage", f"{audio / 1e12:,.0f} TB of recordings, {rows / 1e12:,.2f} TB of rows and as much of caches"),
        ("rows into the cache", f"{into_cache / HOUR:,.2f} h"),
        ("merging the shards", f"{merge / HOUR:,.2f} h"),
        ("all of it", f"{(makespan + into_cache + merge) / HOUR:,.2f} h"),
    ]


def main() -> None:
    """Simulate, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Plan):
        choices = {"rows": ("driver", "shared"), "driver": ("first", "own"), "lost": ("gone", "back")}.get(field.name)
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, choices=choices)
    plan = Plan(**vars(parser.parse_args()))
    if plan.workers % plan.at_once:
        parser.error(f"{plan.workers} workers cannot be shared by {plan.commands} commands alike")
    for what, figures in report(plan):
        print(f"{what:<22}{figures}")


if __name__ == "__main__":
    main()
