"""What a worker makes of a task: runs, their scores and files, the same whatever it is trained with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slow_training import small
from small_sweep import sweep_of, swept
from synthetic_data import training_data, values_of, with_values

from amber2_core.errors import SettingError, WorkerError
from amber2_core.heads_folder import read_heads
from amber2_core.metrics import METRICS, evaluate
from amber2_train import worker
from amber2_train.folds import make_folds
from amber2_train.stacked.system import StackedSystem
from amber2_train.tasks import FinishedTasks, Run, Task

QUICK: dict[str, Any] = {"hidden": 6, "batch_size": 16, "lr": 0.03}
SETTINGS = [
    *(small(**QUICK, kappa=kappa, lambda_mai=mai) for kappa, mai in itertools.product((0.0, 20.0), (0.1, 3.0))),
    small("cb-ce", **QUICK),
]


def trained(folder: Path, task: Task, **what: Any) -> list[Run]:
    """The runs of one task on 48 utterances in three sessions."""
    folder.mkdir(exist_ok=True)
    data = what.pop("data", training_data(48))
    return worker.train(worker.Worker(1, sweep_of(folder, data, what.pop("settings", SETTINGS), **what)), task)


def test_a_task_gives_every_run_with_its_scores_on_dev_and_leaves_its_weights_and_predictions(tmp_path: Path) -> None:
    data, task = training_data(48), Task(2, 1, settings=(1, 3), seeds=(4, 0))
    runs, fold = trained(tmp_path, task), make_folds("session", data)[1]
    assert [(run.fold, run.seed, run.setting) for run in runs] == [
        (2, seed, setting) for seed in (4, 0) for setting in (1, 3)
    ]
    finished = FinishedTasks(tmp_path)
    assert finished.read(task) == runs
    for run in runs:
        assert run.test == {}
        heads = read_heads(finished.weights(run))
        origin = heads.origin
        assert (origin["system"], origin["fold"], origin["seed"]) == ("amber2", 2, run.seed)
        assert origin["setting"] == SETTINGS[run.setting].row()
        assert origin["epochs"] == run.history.epoch
        assert heads.emotions == data.emotions
        for rows, scores in ((fold.test, None), (fold.dev, run.dev)):
            features = {m: torch.from_numpy(x[rows]) for m, x in values_of(data).items()}
            for head, probs in heads.probs(features).items():
                if scores is None:
                    np.testing.assert_allclose(probs, finished.predicted(run).probs[head], atol=1e-6)
                    continue
                expected = evaluate(data.targets[rows], probs.numpy())
                assert scores[head]["n"] == 16
                assert scores[head]["js"] == pytest.approx(float(expected["js"]), abs=1e-6)
                # what training saw, in the epoch that it kept
                kept = run.history.dev_js[head][run.history.epoch[head] - 1]
                assert scores[head]["js"] == pytest.approx(kept, abs=1e-6)


def test_where_every_setting_is_to_be_scored_on_test_its_runs_tell_how(tmp_path: Path) -> None:
    data = training_data(48)
    (run,) = trained(tmp_path, Task(1, 1, (0,), (0,)), score_all=True)
    fold, probs = make_folds("session", data)[0], FinishedTasks(tmp_path).predicted(run).probs
    for head, scores in run.test.items():
        expected = evaluate(data.targets[fold.test], probs[head])
        assert {name: scores[name] for name in METRICS} == {name: float(expected[name]) for name in METRICS}


def assert_near(one: Run, other: Run) -> None:
    """To rounding: how many runs are multiplied at once is in their last digits."""
    assert (one.fold, one.seed, one.history.epoch) == (other.fold, other.seed, other.history.epoch)
    for head, curve in one.history.dev_js.items():
        assert curve == pytest.approx(other.history.dev_js[head], abs=1e-4)
        assert one.dev[head] == pytest.approx(other.dev[head], abs=1e-3)


def assert_equal(one: Run, other: Run, folders: Sequence[Path]) -> None:
    """To the last bit."""
    assert one == other
    finished = [FinishedTasks(folder) for folder in folders]
    for head, probs in finished[0].predicted(one).probs.items():
        np.testing.assert_array_equal(probs, finished[1].predicted(other).probs[head])
    assert finished[0].weights(one).read_bytes() == finished[1].weights(other).read_bytes()


def test_a_run_is_the_same_alone_as_among_others_of_its_system(tmp_path: Path) -> None:
    for run in trained(tmp_path / "together", Task(1, 1, (0, 1, 2, 3), (0, 1))):
        settings = SETTINGS[run.setting : run.setting + 1]
        (alone,) = trained(tmp_path / "alone", Task(1, 1, (0,), (run.seed,)), settings=settings)
        assert_near(run, alone)


def test_with_patience_a_curve_ends_where_its_own_run_stopped_whoever_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"patience": 1, "epochs": 5}
    together = trained(tmp_path / "together", Task(1, 1, (0, 1, 2, 3), (0, 1)), **options)
    ends = set()
    for run in together:
        (alone,) = trained(tmp_path / "alone", Task(1, 1, (run.setting,), (run.seed,)), **options)
        assert_near(run, alone)
        ends |= {len(curve) for curve in run.history.dev_js.values()}
    assert len(ends) > 1


def test_what_a_worker_did_before_changes_nothing(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    here = worker.Worker(1, sweep_of(tmp_path / "first", training_data(48), SETTINGS, standardise=True))
    todo = [Task(1, 1, (0, 1), (0,)), Task(3, 1, (4,), (1,)), Task(1, 2, (2,), (0,))]
    forth = [run for task in todo for run in worker.train(here, task)]
    there = worker.Worker(1, replace(here.sweep, folder=tmp_path / "second"))
    back = [run for task in reversed(todo) for run in worker.train(there, task)]
    for one, other in zip(sorted(forth, key=repr), sorted(back, key=repr), strict=True):
        assert_equal(one, other, [tmp_path / "first", tmp_path / "second"])


def test_permuting_the_test_targets_changes_no_run_and_no_choice(tmp_path: Path) -> None:
    data = training_data(48)
    folds = make_folds("session", data)
    before = swept(tmp_path / "before", data, SETTINGS)
    for fold in folds:
        targets = data.targets.copy()
        targets[fold.test] = data.targets[np.random.default_rng(0).permutation(fold.test)]
        after = swept(tmp_path / f"{fold.number}", replace(data, targets=targets), SETTINGS, [fold])
        assert [of[fold.number] for of in after.results.selected.values()] == [
            of[fold.number] for of in before.results.selected.values()
        ]
        for place in range(len(SETTINGS)):
            assert after.selection.of(fold.number, place) == before.selection.of(fold.number, place)
        own = before.results.predictions.fold == fold.number
        for name, probs in after.results.predictions.probs.items():
            np.testing.assert_array_equal(probs, before.results.predictions.probs[name][:, own])
        tests = [
            [r["js"] for r in some.results.rows if r["split"] == "test" and r["fold"] == fold.number]
            for some in (before, after)
        ]
        assert tests[0] != tests[1]


def test_dev_targets_do_decide(tmp_path: Path) -> None:
    data = training_data(48)
    fold, epochs = make_folds("session", data)[0], set()
    for seed in range(3):
        targets = data.targets.copy()
        targets[fold.dev] = targets[np.random.default_rng(seed).permutation(fold.dev)]
        runs = trained(tmp_path, Task(1, 1, (4,), (0, 1, 2)), data=replace(data, targets=targets), epochs=6)
        epochs.add(tuple(epoch for run in runs for epoch in run.history.epoch.values()))
    assert len(epochs) > 1


def test_inputs_that_are_standardised_are_so_in_training_and_in_the_heads(tmp_path: Path) -> None:
    data, task = training_data(48), Task(1, 1, (0, 1), (0,))
    runs = trained(tmp_path / "one", task, standardise=True)
    train = make_folds("session", data)[0].train
    for name, (mean, _) in read_heads(FinishedTasks(tmp_path / "one").weights(runs[0])).standardisation.items():
        np.testing.assert_allclose(mean, values_of(data)[name][train].mean(0), rtol=1e-5)
    shifted = with_values(data, **{m: 10 * x + 3 for m, x in values_of(data).items()})
    again = trained(tmp_path / "two", task, data=shifted, standardise=True)
    for one, other in zip(runs, again, strict=True):
        assert one.dev["fusion"]["js"] == pytest.approx(other.dev["fusion"]["js"], abs=1e-3)


def test_in_bfloat16_a_run_is_nearly_the_same_and_its_scores_are_those_of_what_it_predicts(tmp_path: Path) -> None:
    (exact,) = trained(tmp_path / "exact", Task(1, 1, (0,), (0,)))
    (low,) = trained(tmp_path / "low", Task(1, 1, (0,), (0,)), precision="bf16", score_all=True)
    assert low.dev["fusion"]["js"] != exact.dev["fusion"]["js"]
    assert low.dev["fusion"]["js"] == pytest.approx(exact.dev["fusion"]["js"], abs=0.02)
    target = training_data(48).targets[make_folds("session", training_data(48))[0].test]
    probs = FinishedTasks(tmp_path / "low").predicted(low).probs["fusion"]
    assert low.test["fusion"]["js"] == float(evaluate(target, probs)["js"])


@pytest.mark.parametrize("given", ["one", "one too many", "one twice", "another"])
def test_a_system_that_does_not_give_one_run_for_each_setting_and_seed_is_told(
    tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = StackedSystem.fit

    def wrong(self: StackedSystem, *arguments: Any) -> Iterator[Any]:
        first, second = fit(self, *arguments)
        another = replace(second, setting=replace(second.setting, kappa=0.5))  # type: ignore[type-var]
        yield first
        yield from {"one": [], "one too many": [second, second], "one twice": [first], "another": [another]}[given]

    monkeypatch.setattr(StackedSystem, "fit", wrong)
    line = r"^The system 'amber2' gave \d runs for 2 settings under 1 seeds: its fit must yield one for each$"
    with pytest.raises(SettingError, match=line):
        trained(tmp_path, Task(1, 1, (0, 1), (0,)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        ("cuda", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has …")),
        ("cuda", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
        ("cuda", RuntimeError("mat1 and mat2 shapes cannot be multiplied")),
        ("cpu", MemoryError()),
        ("cpu", RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")),
        ("cpu", RuntimeError("mat1 and mat2 shapes cannot be multiplied")),
    ],
)
def test_memory_that_runs_out_is_told_in_one_line_and_nothing_else_is_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, problem: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise problem

    other = "mat1" in str(problem)
    end = {"cuda": "or use --device cpu$", "cpu": "or let fewer workers run, as with OMP_NUM_THREADS=1$"}[device]
    here = worker.Worker(1, sweep_of(tmp_path, training_data(48), SETTINGS))
    here.sweep = replace(here.sweep, device=device)
    monkeypatch.setattr(StackedSystem, "fit", full)
    line = "mat1" if other else rf"^{device} ran out of memory with 2 runs at once: .* {end}"
    with pytest.raises(RuntimeError if other else WorkerError, match=line):
        worker.train(here, Task(1, 1, (0,), (0, 1)))
    monkeypatch.setattr(worker, "choose_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr("amber2_train.fold_data.features_on", full)
    line = "mat1" if other else rf"^{device} ran out of memory with the features of 48 utterances: .* {end}"
    with pytest.raises(RuntimeError if other else WorkerError, match=line):
        worker.Worker(1, here.sweep)
