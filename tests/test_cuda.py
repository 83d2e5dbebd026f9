"""On a CUDA device both stages give what they give on a CPU, to rounding. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_corpus import write_corpus
from small_models import save_speech, save_text
from synthetic_data import training_data

from amber2_core.cache import read_cache
from amber2_core.errors import SettingError
from amber2_train import jobs as jobs_module
from amber2_train.folds import make_folds
from amber2_train.grid import expand
from amber2_train.plan import plan_sweep
from amber2_train.precision import PRECISIONS, products_in
from amber2_train.sweep import sweep

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
    models = {"audio_model": str(tmp_path / "speech"), "text_model": str(tmp_path / "text")}
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


def _rows(device: str = DEVICE, *, fusion: str = "gmu", epochs: int = 6, **options: Any) -> list[dict[str, Any]]:
    """What a small sweep finds; with so many epochs most steps are played back from a recording."""
    axes: dict[str, Any] = {"fusion": (fusion,), "hidden": (6,), "batch_size": (16,), "kappa": (0.0, 20.0)}
    settings = expand(["amber2", "cb-ce"], {**axes, "dropout": (0.0, 0.2)})
    data = training_data(48)
    folds = make_folds("session", data)
    return sweep(data, folds, settings, seeds=2, epochs=epochs, score_all=True, device=device, **options).rows


def _assert_near(rows: list[dict[str, Any]], expected: list[dict[str, Any]], within: float) -> None:
    for ours, right in zip(rows, expected, strict=True):
        assert [ours[name] for name in RUN] == [right[name] for name in RUN]
        assert [ours["js"], ours["bc"]] == pytest.approx([right["js"], right["bc"]], abs=within)


@pytest.mark.parametrize("fusion", ["gmu", "concat", "softmax-gate", "self-gate"])
def test_a_sweep_on_a_gpu_scores_as_on_a_cpu(fusion: str) -> None:
    _assert_near(_rows(fusion=fusion), _rows("cpu", fusion=fusion), 1e-3)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_fewer_digits_change_scores_by_little(precision: str) -> None:
    _assert_near(_rows(precision=precision), _rows(), 0.02)


def test_tensorfloat_multiplies_where_it_is_asked_for_and_nowhere_else() -> None:
    x = torch.randn(512, 512, generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE)
    exact = x.double() @ x.double()
    errors = {}
    for precision in PRECISIONS:
        with products_in(precision, DEVICE):
            errors[precision] = float(((x @ x).double() - exact).norm() / exact.norm())
    assert errors["fp32"] < 1e-6
    assert errors["bf16"] == errors["fp32"]  # only the factors that are rounded to it have few digits
    assert 1e-5 < errors["tf32"] < 1e-2


def test_stacks_that_train_side_by_side_do_not_touch_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "STACKED_SETTINGS", {DEVICE: 2})
    monkeypatch.setattr(jobs_module, "MOST_LANES", {DEVICE: 1})
    expected = _rows()
    for lanes in (2, 5):
        monkeypatch.setattr(jobs_module, "MOST_LANES", {DEVICE: lanes})
        _assert_near(_rows(), expected, 1e-6)


def test_a_plan_measures_on_the_gpu() -> None:
    data = training_data(48)
    settings = expand(["amber2", "cb-ce"], {"kappa": (2.0, 4.0), "hidden": (5, 7)})
    plan = plan_sweep(data, make_folds("session", data), settings, seeds=2, epochs=2, device=DEVICE)
    assert (plan.runs, plan.at_once) == (6 * 3 * 2, jobs_module.MOST_LANES[DEVICE])
    assert plan.seconds > 0


def test_memory_that_runs_out_is_told_in_one_line() -> None:
    data, settings = training_data(48), expand(["amber2"], {"hidden": (4096,)})
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        for act in (sweep, plan_sweep):
            with pytest.raises(
                SettingError, match=rf"^{DEVICE} ran out of memory with \d+ runs at once: ask for fewer"
            ):
                act(data, make_folds("session", data), settings, seeds=2, epochs=1, device=DEVICE)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
