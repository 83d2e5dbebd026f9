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
from amber2_core.metrics import METRICS
from amber2_train.folds import make_folds
from amber2_train.grid import expand
from amber2_train.sweep import sweep

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("family", ["wav2vec2-group", "wav2vec2-layer"])
def test_a_cache_from_a_gpu_is_that_from_a_cpu_whatever_its_batches(tmp_path: Path, family: str) -> None:
    from amber2_extract.pipeline import extract_features
    from amber2_extract.work import Effort

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


@pytest.mark.parametrize("fusion", ["gmu", "softmax-gate"])
def test_a_sweep_on_a_gpu_scores_as_on_a_cpu(fusion: str) -> None:
    axes: dict[str, Any] = {"fusion": (fusion,), "hidden": (6,), "batch_size": (16,), "kappa": (0.0, 20.0)}
    settings = expand(["amber2", "cb-ce"], {**axes, "dropout": (0.0, 0.2)})
    data = training_data(48)
    folds = make_folds("session", data)
    rows = {
        device: sweep(data, folds, settings, seeds=2, epochs=4, score_all=True, device=device).rows
        for device in ("cpu", DEVICE)
    }
    assert len(rows["cpu"]) == len(rows[DEVICE])
    for right, ours in zip(rows["cpu"], rows[DEVICE], strict=True):
        for metric in ("js", "bc"):
            assert metric in METRICS
            assert ours[metric] == pytest.approx(right[metric], abs=1e-3)
