"""The simulation of a cluster gives what arithmetic gives, where arithmetic can tell."""

from __future__ import annotations

import math
import sys

import pytest
from house import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from scale_simulation import HOUR, Cluster, Command, Outcome, Plan, Work, planned, report

# nothing but computing takes time, and nothing happens
QUIET = Plan(
    workers=8,
    deaths_per_day=0,
    stragglers=0,
    variation=0,
    call_seconds=0,
    megabyte_seconds=0,
    audio_bytes=0,
    host_bytes=math.inf,
)


def plan(**changes: object) -> Plan:
    return Plan(**{**vars(QUIET), **changes})  # type: ignore[arg-type]


def run(plan: Plan, work: Work, scan_seconds: float = 0.0) -> Outcome:
    return Cluster(Command(plan, scan_seconds), work).run()


def alike(count: int, seconds: float = 7000.0) -> Work:
    return Work([seconds] * count, [1000.0] * count)


@pytest.mark.parametrize("count", [80, 81, 87, 5])
def test_equal_portions_without_failures_take_what_arithmetic_says(count: int) -> None:
    outcome = run(QUIET, alike(count))
    assert outcome.makespan == pytest.approx(math.ceil(count / 8) * 7000 / QUIET.speed)
    assert outcome.computed == pytest.approx(count * 7000 / QUIET.speed)
    assert (outcome.lost, outcome.deaths, outcome.again, outcome.driver) == (0, 0, 0, 0)


def test_a_driver_that_is_slower_than_its_workers_sets_the_pace() -> None:
    outcome = run(plan(call_seconds=1.0, rows="shared"), alike(200))  # eight workers make 1.6 a second
    assert outcome.makespan == pytest.approx(7000 / QUIET.speed + 200 * 1.0)
    assert outcome.driver == pytest.approx(200)


def test_work_begins_when_all_recordings_have_been_read() -> None:
    outcome = run(QUIET, alike(8), scan_seconds=7200.0)
    assert outcome.scans == pytest.approx(7200)
    assert outcome.makespan == pytest.approx(7200 + 7000 / QUIET.speed)


@pytest.mark.parametrize(
    ("parts", "shards", "per_node", "hours"),
    [
        (1, 1, 8, 16.0),
        (8, 1, 8, 2.0),
        (64, 1, 8, 2.0),
        (64, 1, 1, 1.6),
        (1, 8, 8, 16.0),
        (1, 64, 8, 128.0),
        (128, 1, 8, 1.0),
    ],
)
def test_a_part_is_read_once_by_each_command_as_fast_as_hosts_and_storage_let_all_of_them(
    parts: int, shards: int, per_node: int, hours: float
) -> None:
    # 115.2 TB at 2 GB/s of a host, and 20 of storage
    asked = Plan(parts=parts, shards=shards, per_node=per_node)
    assert asked.scan_seconds / HOUR == pytest.approx(hours)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("driver", ["first", "own"])
@pytest.mark.parametrize("lost", ["gone", "back"])
def test_what_is_lost_is_at_most_what_was_under_way_at_each_death(seed: int, driver: str, lost: str) -> None:
    work = alike(2000)
    failing = plan(deaths_per_day=400, per_node=2, restart_seconds=60.0, driver=driver, lost=lost, seed=seed)
    outcome = run(failing, work)
    longest = 7000 / failing.speed
    assert outcome.deaths > 0
    assert 0 < outcome.lost <= outcome.hit * longest
    assert outcome.hit <= outcome.deaths * (2 if driver == "own" else 8)
    assert outcome.again <= outcome.hit * failing.queued
    # every portion is computed to its end once, and what was cut off comes on top
    assert outcome.computed - outcome.lost == pytest.approx(work.total / failing.speed)
    assert outcome.makespan >= math.ceil(2000 / 8) * longest


def test_the_same_arguments_give_the_same_figures() -> None:
    asked = plan(hours=20_000, deaths_per_day=50, stragglers=0.05, variation=0.2)
    assert report(asked) == report(asked)
    assert report(asked) != report(plan(hours=20_000, deaths_per_day=50, stragglers=0.05, variation=0.2, seed=1))


def test_portions_hold_the_hours_that_are_asked_for() -> None:
    work = planned(plan(hours=10_000))
    assert work.total * (1 - work.padding) == pytest.approx(10_000 * HOUR, rel=0.01)
    assert sum(work.utterances) == pytest.approx(10_000 * HOUR / QUIET.utterance_seconds, rel=0.02)
