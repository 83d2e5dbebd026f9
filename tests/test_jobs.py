"""The jobs of a sweep, and the lanes that train them: the same numbers in any number of lanes, and an end for all."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_data import training_data

from amber2_core.errors import SettingError
from amber2_core.metrics import METRICS
from amber2_train import jobs as jobs_module
from amber2_train.folds import make_folds
from amber2_train.grid import Setting, expand
from amber2_train.interrupts import check_interrupt, in_quiet_thread
from amber2_train.jobs import MOST_LANES, Sweep, jobs, lanes, part_of, stacks, train
from amber2_train.lanes import in_lanes
from amber2_train.sweep import SweepResult, sweep

# what of a row says which run it is, is all but its scores and whether dev chose it
METRICS_LEFT_OUT = dict.fromkeys([*METRICS, "selected"], 0)
SMALL = {"hidden": (6,), "batch_size": (16,), "lr": (0.03,)}


@pytest.fixture
def threads() -> Iterator[None]:
    """torch's number of threads is as before when the test ends, and no thread is left."""
    before, alive = torch.get_num_threads(), threading.active_count()
    yield
    assert threading.active_count() == alive
    torch.set_num_threads(before)


def test_jobs_are_every_stack_under_every_seed_on_every_fold() -> None:
    data = training_data(48)
    folds = make_folds("session", data)
    settings = expand(["amber2", "cb-ce"], {"hidden": (5, 7)})
    found = [(job.rows.number, job.stack, list(job.seeds)) for job in jobs(data, folds, Sweep(settings, 2, 1))]
    assert found == [(fold.number, stack, [seed]) for fold in folds for stack in (1, 2) for seed in (0, 1)]
    on_cuda = Sweep(settings, 2, 1, device="cuda")
    assert len(list(stacks(settings, "cuda"))) == 2
    assert lanes(on_cuda, len(folds)) == MOST_LANES["cuda"]
    assert lanes(Sweep(settings[:1], 5, 1, device="cuda:1"), 1) == 1


def test_there_is_a_lane_for_every_core_but_not_for_more_than_there_are_jobs(threads: None) -> None:
    settings = [Setting(hidden=5), Setting(hidden=7)]
    torch.set_num_threads(4)
    assert lanes(Sweep(settings, 5, 1), folds=5) == 4
    assert lanes(Sweep(settings[:1], 3, 1), folds=1) == 3
    assert lanes(Sweep(settings[:1], 1, 1), folds=1) == 1
    torch.set_num_threads(64)
    assert lanes(Sweep(settings, 5, 1), folds=5) == MOST_LANES["cpu"]


def test_a_part_has_the_rows_of_its_jobs_in_the_order_of_the_seeds() -> None:
    data = training_data(48)
    wanted = Sweep([Setting(hidden=5, batch_size=16)], 3, 2, score_all=True)
    of_fold = list(jobs(data, make_folds("session", data)[:1], wanted))
    part = part_of(wanted.settings, [train(job, wanted) for job in of_fold])
    assert part.runs == 3
    assert [(row["split"], row["seed"]) for row in part.rows[::3]] == [
        (s, k) for s in ("dev", "test") for k in range(3)
    ]
    of_dev = [row["js"] for row in part.rows if row["split"] == "dev" and row["head"] == "fusion"]
    assert part.candidates["amber2"].dev_js == pytest.approx(np.mean(of_dev))


def test_rows_come_in_one_order_however_runs_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: all seeds at once, and other stacks."""
    data = training_data(48)
    settings = expand(["amber2", "cb-ce"], {**SMALL, "kappa": (0.0, 2.0, 20.0)})

    def found() -> list[dict[str, object]]:
        return sweep(data, make_folds("session", data), settings, seeds=2, epochs=3, score_all=True).rows

    expected = found()
    monkeypatch.setattr(jobs_module, "STACKED_SETTINGS", {"cpu": 2})
    monkeypatch.setattr(jobs_module, "seed_groups", lambda seeds, device: [list(range(seeds))])
    for row, other in zip(expected, found(), strict=True):
        assert {**row, **METRICS_LEFT_OUT} == {**other, **METRICS_LEFT_OUT}
        assert row["js"] == pytest.approx(other["js"], abs=1e-4)


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has …"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_runs_out_on_a_gpu_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, problem: RuntimeError
) -> None:
    def full(*args: object, **options: object) -> None:
        raise problem

    data = training_data(48)
    here = Sweep([Setting(hidden=5), Setting(hidden=5, kappa=0.0)], 3, 1)
    there = replace(here, device="cuda")
    job = next(jobs(data, make_folds("session", data), here))
    monkeypatch.setattr(jobs_module, "fit", full)
    monkeypatch.setattr(jobs_module, "features_on", full)
    monkeypatch.setattr(jobs_module, "own_stream", lambda device: nullcontext())
    with pytest.raises(SettingError, match=r"^cuda ran out of memory with 2 runs at once: .* or use --device cpu$"):
        train(job, there)
    with pytest.raises(SettingError, match=r"^cuda ran out of memory with the features of 48 utterances: .*$"):
        next(jobs(data, make_folds("session", data), there))
    with pytest.raises(type(problem)):  # there is no other device to go to
        train(job, here)


def test_other_errors_on_a_gpu_are_no_matter_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    data = training_data(48)
    monkeypatch.setattr(jobs_module, "features_on", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        next(jobs(data, make_folds("session", data), Sweep([Setting(hidden=5)], 3, 1, device="cuda")))


def found_with(threads: int) -> SweepResult:
    torch.set_num_threads(threads)
    data = training_data(48)
    return sweep(data, make_folds("session", data), expand(["amber2", "cb-ce"], SMALL), seeds=2, epochs=3)


def test_a_sweep_gives_the_same_numbers_in_any_number_of_lanes(threads: None) -> None:
    one, several = found_with(1), found_with(3)
    assert one.rows == several.rows
    assert one.curves == several.curves
    for name, probs in one.predictions.probs.items():
        np.testing.assert_array_equal(probs, several.predictions.probs[name])


def test_a_run_is_the_same_alone_as_among_many_of_other_settings_seeds_and_folds() -> None:
    data = training_data(48)
    folds = make_folds("session", data)
    settings = expand(["amber2"], {**SMALL, "kappa": (0.0, 2.0, 8.0, 20.0), "student": ("fusion", "audio")})
    company = sweep(data, folds, settings, seeds=2, epochs=3)
    assert len(company.rows) > 45 * 3  # heads
    setting = settings[5]
    alone = sweep(data, folds[1:2], [setting], seeds=1, epochs=3)
    of_dev = [row for row in alone.rows if row["split"] == "dev"]
    assert len(of_dev) == 3
    for row in of_dev:
        (among,) = [other for other in company.rows if {**other, **METRICS_LEFT_OUT} == {**row, **METRICS_LEFT_OUT}]
        for name in METRICS:
            assert row[name] == pytest.approx(among[name], abs=1e-4)


def test_lanes_are_map_in_order_with_a_share_of_the_cores_each(threads: None) -> None:
    torch.set_num_threads(6)

    def make(number: int) -> tuple[int, int, int]:
        time.sleep(0.01)
        return number, torch.get_num_threads(), threading.get_ident()

    made = list(in_lanes(make, range(30), 3))
    assert [number for number, _, _ in made] == list(range(30))
    assert {cores for _, cores, _ in made} == {2}
    assert len({lane for _, _, lane in made}) == 3
    assert torch.get_num_threads() == 6
    assert {lane for _, _, lane in in_lanes(make, range(3), 1)} == {threading.get_ident()}


def until_stopped() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.01)
        check_interrupt()
    raise TimeoutError("nobody stopped it")


def test_an_error_in_one_lane_ends_the_others(threads: None) -> None:
    def make(number: int) -> None:
        if number == 0:
            raise ValueError("zero")
        until_stopped()

    with pytest.raises(ValueError, match="zero"):
        list(in_lanes(make, range(9), 3))


def test_when_nobody_wants_more_lanes_end(threads: None) -> None:
    with closing(in_lanes(lambda number: until_stopped() if number else None, range(9), 2)) as made:
        assert next(made) is None


def test_ctrl_c_ends_all_lanes(threads: None) -> None:
    def make(number: int) -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        until_stopped()

    @in_quiet_thread
    def work() -> None:
        list(in_lanes(make, range(9), 2))

    with pytest.raises(KeyboardInterrupt):
        work()
