"""On a CUDA device both stages give what they give on a CPU, to rounding. Skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small_corpus import write_corpus
from small_models import save_speech, save_text
from small_sweep import sweep_of, swept
from synthetic_data import training_data, write_small_cache

from amber2_core.cache import read_cache
from amber2_core.devices import set_arithmetic
from amber2_core.errors import WorkerError
from amber2_core.fusion import FUSIONS
from amber2_core.run_folder import read_settings
from amber2_train import tasks
from amber2_train.cli import train_heads
from amber2_train.grid import expand
from amber2_train.plan import measure
from amber2_train.tasks import Task
from amber2_train.worker import Worker, train

DEVICE = "cuda"
# what of a row says which run it is
RUN = ("system", "head", "split", "fold", "seed", "fusion", "dropout", "kappa", "n")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("family", ["wav2vec2-group", "wav2vec2-layer"])
def test_a_cache_from_a_gpu_is_that_from_a_cpu_whatever_its_batches(tmp_path: Path, family: str) -> None:
    from amber2_extract.batches import Effort
    from amber2_extract.pipeline import extract_features

    save_speech(tmp_path / "speech", family)
    save_text(tmp_path / "text", "bert")
    corpus = write_corpus(tmp_path / "corpus")
    models: dict[str, Any] = {"audio_model": str(tmp_path / "speech"), "text_model": str(tmp_path / "text")}
    caches = {}
    for name, effort in {
        "cpu": Effort(device="cpu"),
        "gpu": Effort(device=DEVICE),
        "alone": Effort(device=DEVICE, batch_seconds=0),
    }.items():
        extract_features(corpus, tmp_path / f"{name}.h5", effort=effort, **models)
        caches[name] = read_cache(tmp_path / f"{name}.h5")
    for name in ("gpu", "alone"):
        for ours, right in zip(caches[name].features, caches["cpu"].features, strict=True):
            assert ours.fingerprint == right.fingerprint
            np.testing.assert_allclose(ours.values, right.values, rtol=0, atol=1e-4)


def _rows(folder: Path, device: str = DEVICE, *, fusion: str = "gmu", **options: Any) -> list[dict[str, Any]]:
    """What a small sweep finds; with so many epochs most steps are played back from a recording."""
    axes: dict[str, Any] = {"fusion": (fusion,), "hidden": (6,), "batch_size": (16,), "kappa": (0.0, 20.0)}
    settings = expand(["amber2", "cb-ce"], {**axes, "dropout": (0.0, 0.2)})
    options = {"epochs": 6, "score_all": True, **options}
    return swept(folder, training_data(48), settings, device=device, **options).results.rows


def _assert_near(rows: list[dict[str, Any]], expected: list[dict[str, Any]], within: float) -> None:
    for ours, right in zip(rows, expected, strict=True):
        assert [ours[name] for name in RUN] == [right[name] for name in RUN]
        assert [ours["js"], ours["bc"]] == pytest.approx([right["js"], right["bc"]], abs=within)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_sweep_on_a_gpu_scores_as_on_a_cpu(tmp_path: Path, fusion: str) -> None:
    _assert_near(_rows(tmp_path / "gpu", fusion=fusion), _rows(tmp_path / "cpu", "cpu", fusion=fusion), 1e-3)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_fewer_digits_change_scores_by_little(tmp_path: Path, precision: str) -> None:
    _assert_near(_rows(tmp_path / "low", precision=precision), _rows(tmp_path / "exact"), 0.02)


def test_tensorfloat_multiplies_where_it_is_asked_for_and_nowhere_else() -> None:
    x = torch.randn(512, 512, generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE)
    exact, errors = x.double() @ x.double(), {}
    try:
        for tf32 in (False, True):
            set_arithmetic(x.device, tf32=tf32)
            errors[tf32] = float(((x @ x).double() - exact).norm() / exact.norm())
    finally:
        set_arithmetic(x.device)
    assert errors[False] < 1e-6
    assert 1e-5 < errors[True] < 1e-2


def test_how_a_sweep_is_cut_into_tasks_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _rows(tmp_path / "whole")
    monkeypatch.setitem(tasks.RUNS, DEVICE, 2)
    _assert_near(_rows(tmp_path / "cut"), expected, 1e-4)


def test_the_command_trains_and_plans_on_the_gpu(tmp_path: Path) -> None:
    options = ["--cache", str(write_small_cache(tmp_path, count=30)), "--output", str(tmp_path / "run")]
    options += ["--device", DEVICE, "--hidden", "5", "--seeds", "2", "--epochs", "3", "--json"]
    shown = CliRunner().invoke(train_heads, [*options, "--plan"])
    assert shown.exit_code == 0, shown.output
    plan = json.loads(shown.stdout)
    assert (plan["runs"], plan["at_once"]) == (2 * 3 * 2, 1)
    assert plan["seconds"] > 0
    assert CliRunner().invoke(train_heads, options).exit_code == 0
    assert read_settings(tmp_path / "run")["device"].startswith(DEVICE)


def test_memory_that_runs_out_is_told_in_one_line(tmp_path: Path) -> None:
    here = Worker(1, sweep_of(tmp_path, training_data(48), expand(["amber2"], {"hidden": (4096,)}), device=DEVICE))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        for act in (train, measure):
            with pytest.raises(WorkerError, match=rf"^{DEVICE} ran out of memory with 2 runs at once: ask for fewer"):
                act(here, Task(1, 1, (0,), (0, 1)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
