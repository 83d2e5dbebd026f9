"""Evidential heads: their losses against a loop, what a stack of them is, and the uncertainty that they tell."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import reference
import torch
from click.testing import CliRunner
from synthetic_data import layered_fold, write_small_cache

from amber2_core.errors import SettingError
from amber2_core.heads_folder import read_heads
from amber2_core.run_folder import read_results, read_settings
from amber2_train.cli import train_heads
from amber2_train.fold_data import FoldData, Rows
from amber2_train.stacked.system import FittedHeads
from amber2_train.systems.evidential import EvidenceFunction, Evidential, EvidentialSettings, Kind
from amber2_train.systems.system import FitOptions, History

HEADS = ("audio", "text", "fusion")
SMALL: dict[str, Any] = {"hidden": 8, "batch_size": 7, "lr": 0.01}
KINDS, EVIDENCE = get_args(Kind), get_args(EvidenceFunction)


def voted() -> FoldData:
    """Rows of which only votes and targets matter."""
    votes = torch.tensor([[2.0, 1, 0, 0], [0, 0, 3, 0], [1, 1, 1, 2], [0, 4, 1, 0]], dtype=torch.float64)
    rows = Rows({"audio": torch.zeros(4, 1)}, torch.arange(4), votes / votes.sum(-1, keepdim=True), votes=votes)
    return FoldData(1, rows, rows, rows)


@pytest.mark.parametrize(("kind", "evidence"), list(itertools.product(KINDS, EVIDENCE)))
@pytest.mark.parametrize("lacks", [False, True])
def test_the_loss_is_the_loops_for_every_run_and_epoch_of_what_an_utterance_has(
    kind: Any, evidence: Any, lacks: bool
) -> None:
    fold, system = voted(), Evidential()
    settings = [
        EvidentialSettings(evidential=kind, evidence=evidence, lambda_evidence=weight, annealing=epochs)
        for weight, epochs in ((0.02, 10), (0.8, 1), (0.0, 4))
    ]
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64, generator=generator)
    present = torch.ones(3, 2, 1, 4, dtype=torch.bool)
    present[0, :, :, 1] = present[1, 0, :, 3] = not lacks
    loss = system.loss(settings, heads=HEADS, fold=fold)
    target = system.learnt(settings[0], fold.train)[None, None]
    votes = fold.train.votes
    assert votes is not None
    for epoch in (1.0, 5.0, 20.0):
        found = loss(outputs, target, present if lacks else None, torch.tensor(epoch))
        for s, (k, setting) in itertools.product(range(2), enumerate(settings)):
            weight = setting.lambda_evidence * min(1.0, epoch / setting.annealing)
            expected = sum(
                reference.evidential(kind, evidence, outputs[h, s, k, i].tolist(), votes[i].int().tolist(), weight)
                for h, i in itertools.product(range(3), range(4))
                if present[h, s, 0, i]
            )
            assert found[s, k].item() == pytest.approx(expected / 4, rel=1e-9)


def test_predictions_are_the_mean_of_the_dirichlet_or_a_prior_networks_softmax() -> None:
    z = torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=torch.float64)
    for setting, expected in (
        (EvidentialSettings(), [0.263811, 0.168108, 0.356604, 0.211476]),
        (EvidentialSettings(evidence="relu"), [0.273973, 0.136986, 0.410959, 0.178082]),
        (EvidentialSettings(evidential="dpn"), z.softmax(-1).tolist()),
    ):
        assert Evidential().log_probs_of(z, setting).exp().tolist() == pytest.approx(expected, abs=1e-6)


def test_settings_of_other_losses_or_evidence_share_no_stack_and_weights_do() -> None:
    shapes = {Evidential().shape(EvidentialSettings(evidential=k, evidence=e)) for k in KINDS for e in EVIDENCE}
    assert len(shapes) == len(KINDS) * len(EVIDENCE)
    others = [EvidentialSettings(lambda_evidence=1.0), EvidentialSettings(annealing=3)]
    assert {Evidential().shape(one) for one in others} == {Evidential().shape(EvidentialSettings())}


def test_what_is_learnt_are_votes_and_of_sensoys_loss_the_label_where_there_is_one(tmp_path: Path) -> None:
    fold, system = layered_fold(tmp_path), Evidential()
    learnt = system.learnt(EvidentialSettings(), fold.train)
    assert (learnt.sum(-1) == 3).all()  # raters
    torch.testing.assert_close(learnt / 3, fold.train.targets)
    sensoy = EvidentialSettings(evidential="sensoy")
    assert (system.learnt(sensoy, fold.train).sum(-1) == 1).all()
    assert (system.learns_from(sensoy), system.learns_from(EvidentialSettings())) == ("plurality", "all")
    assert system.learns_from(EvidentialSettings(evidential="sensoy", learn_from="majority")) == "majority"


def test_shares_without_votes_are_refused() -> None:
    rows = Rows({"audio": torch.zeros(2, 1)}, torch.arange(2), torch.eye(2))
    with pytest.raises(SettingError, match=r"^evidential dm learns from votes, and there are shares alone$"):
        Evidential().learnt(EvidentialSettings(), rows)


@pytest.mark.parametrize(("kind", "evidence"), [("dm", "softplus"), ("edl-star-r2", "relu"), ("dpn", "exp")])
def test_a_file_of_evidential_heads_predicts_alone_what_they_predict(tmp_path: Path, kind: Any, evidence: Any) -> None:
    fold, system = layered_fold(tmp_path, standardise=True), Evidential()
    setting = EvidentialSettings(**SMALL, evidential=kind, evidence=evidence)
    (one,) = system.fit(fold, [setting], [0], FitOptions(2))
    recipe = {"name": "made", "fingerprint": "f", "recipe": {}}
    origin = {
        "system": "evidential", "setting": {}, "emotions": fold.emotions, "policy": {},
        "features": {"audio": recipe, "text": recipe},
    }  # fmt: skip
    one.save(tmp_path / "heads.safetensors", origin)
    every = torch.arange(len(fold.test))
    raw = {modality: fold.test.layers(modality, every)[:, -1] for modality in ("audio", "text")}
    for head, probs in read_heads(tmp_path / "heads.safetensors").probs(raw).items():
        np.testing.assert_allclose(probs, one.probs(fold.test)[head], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_uncertainty_is_that_of_the_fusion_heads_outputs(tmp_path: Path, kind: Any) -> None:
    fold, system = layered_fold(tmp_path, missing={"audio": [0, 3], "text": [0, 6]}), Evidential()
    (one,) = system.fit(fold, [EvidentialSettings(**SMALL, evidential=kind)], [0], FitOptions(2))
    assert isinstance(one, FittedHeads)
    found, outputs = system.measures(one, fold.test), one.outputs(fold.test)["fusion"].double()
    assert list(found) == ["vacuity", "total", "aleatoric", "epistemic"][kind == "dpn" :]
    for i, z in enumerate(outputs):
        alpha = z.exp() + 1e-6 if kind == "dpn" else torch.nn.functional.softplus(z) + 1
        p = alpha / alpha.sum()
        within = -sum(
            q * (reference.digamma(a + 1) - reference.digamma(alpha.sum().item() + 1))
            for q, a in zip(p.tolist(), alpha.tolist(), strict=True)
        )
        assert found["total"][i] == pytest.approx(reference.entropy(p.tolist()) * np.log(2))
        assert found["aleatoric"][i] == pytest.approx(within, abs=1e-8)
        assert found["epistemic"][i] == pytest.approx(found["total"][i] - found["aleatoric"][i])
        assert found["epistemic"][i] > 0
        if kind != "dpn":
            assert found["vacuity"][i] == pytest.approx(4 / alpha.sum().item())
            np.testing.assert_allclose(one.probs(fold.test)["fusion"][i], p, atol=1e-6)


def test_nothing_is_told_by_a_head_that_kept_no_epoch(tmp_path: Path) -> None:
    fold, system = layered_fold(tmp_path), Evidential()
    (one,) = system.fit(fold, [EvidentialSettings(**SMALL)], [0], FitOptions(1))
    assert isinstance(one, FittedHeads)
    assert not any(np.isnan(values).any() for values in system.measures(one, fold.test).values())
    diverged = replace(one, history=History(epoch={"audio": 1, "text": 1, "fusion": 0}))
    assert all(np.isnan(values).all() for values in system.measures(diverged, fold.test).values())
    assert np.isnan(diverged.probs(fold.test)["fusion"]).all()


def test_a_grid_of_losses_is_trained_from_the_command_and_says_where_it_leaves_the_papers(tmp_path: Path) -> None:
    path, run = write_small_cache(tmp_path, count=30), tmp_path / "run"
    words = ["--cache", path, "--output", run, "--system", "evidential", "--evidential", ",".join(KINDS)]
    more = ["--evidence", "softplus,relu", "--seeds", "1", "--epochs", "2", "--hidden", "8", "--score-all"]
    result = CliRunner().invoke(train_heads, [*map(str, words), *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [row for row in read_results(run) if row["split"] == "dev"]
    assert {(row["evidential"], row["evidence"]) for row in rows} == set(itertools.product(KINDS, ("softplus", "relu")))
    assert all(np.isfinite(row["js"]) for row in rows)
    remarks = read_settings(run)["remarks"]["evidential"]
    assert len(remarks) == len(KINDS)
    assert any(line.startswith("sensoy: weight 0.02, annealed over 10 epochs, for the paper's 1;") for line in remarks)
    assert "learns from" in (run / "log.txt").read_text(encoding="utf-8")
