"""Systems that learn labels or distributions by cross-entropy: each against a loop, and what sets it apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from click.testing import CliRunner, Result
from slow_training import SMALL, small
from synthetic_data import layered_fold, write_layered_cache, write_small_cache

from amber2_core import divergences
from amber2_core.losses import class_balanced_cross_entropy, soft_cross_entropy
from amber2_core.metrics import METRICS
from amber2_core.run_folder import read_results, read_settings
from amber2_train.cli import train_heads
from amber2_train.fold_data import FoldData, Rows
from amber2_train.grid import own_axes
from amber2_train.stacked.system import FittedHeads, StackedSystem
from amber2_train.systems.system import FitOptions, system_of

HEADS = ("audio", "text", "fusion")
QUICK = ["--seeds", "1", "--epochs", "2", "--hidden", "8"]


def rows_of(targets: Sequence[Sequence[float]]) -> FoldData:
    y = torch.tensor(targets, dtype=torch.float64)
    rows = Rows({"audio": torch.zeros(len(y), 1)}, torch.arange(len(y)), y)
    return FoldData(1, rows, rows, rows)


FOLD = rows_of([[0.75, 0.25, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1], [0.25, 0.25, 0.25, 0.25], [0.2, 0, 0.2, 0.6]])
FIRST = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1]]


def expected_of(name: str, probs: list[list[float]], rows: list[int]) -> float:
    """The slow formula of one head's predictions for these rows, divided by all."""
    targets = FOLD.train.targets.tolist()
    if name == "emo-superb":
        targets = [reference.smooth_labels(y, 0.05) for y in targets]
    weights = reference.class_balanced_weights(targets)
    y, p = [(FIRST if name == "majority-ce" else targets)[i] for i in rows], [probs[i] for i in rows]
    share = len(rows) / len(targets)
    if name in ("all-inclusive", "emo-superb"):
        return share * reference.class_balanced_cross_entropy(y, p, weights)
    nats = share * reference.soft_cross_entropy(y, p)
    if name == "ldl-kl":
        nats -= sum(reference.entropy(one) for one in y) * np.log(2) / len(targets)
    return nats


@pytest.mark.parametrize("lacks", [False, True])
@pytest.mark.parametrize("name", ["majority-ce", "ldl-kl", "ldl-ce", "emo-superb", "all-inclusive"])
def test_the_loss_is_the_slow_formula_summed_over_the_heads_that_there_are(name: str, lacks: bool) -> None:
    system = system_of(name)
    assert isinstance(system, StackedSystem)
    settings = [system.Settings(), system.Settings(lr=0.1)]
    logits = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    present = torch.ones(3, 2, 1, 5, dtype=torch.bool)
    present[0, :, :, 1] = present[1, 0, :, 3] = not lacks
    target = system.learnt(settings[0], FOLD.train)[None, None]
    loss = system.loss(settings, heads=HEADS, fold=FOLD)
    found = loss(logits, target, present if lacks else None, torch.ones(()))
    for s, k in itertools.product(range(2), range(2)):
        expected = 0.0
        for h in range(3):
            having = [i for i in range(5) if present[h, s, 0, i]]
            expected += expected_of(name, logits[h, s, k].softmax(-1).tolist(), having)
        assert found[s, k].item() == pytest.approx(expected, abs=1e-12)


def test_losses_are_those_of_the_computed_vector() -> None:
    y, p = torch.tensor([[0.5, 0.5, 0, 0]]).double(), torch.tensor([[0.4, 0.3, 0.2, 0.1]]).double()
    z = p.log().requires_grad_()
    found = soft_cross_entropy(z, y)
    assert soft_cross_entropy(z, y, above_entropy=True).item() == pytest.approx(0.366985, abs=1e-6)
    assert found.item() == pytest.approx(1.060132, abs=1e-6)
    (slope,) = torch.autograd.grad(found, z)
    assert slope[0].tolist() == pytest.approx([-0.1, -0.2, 0.2, 0.1])
    (slope,) = torch.autograd.grad(soft_cross_entropy(z, y, above_entropy=True), z)
    assert slope[0].tolist() == pytest.approx([-0.1, -0.2, 0.2, 0.1])
    weights, log_p = torch.tensor([0.5, 1, 2, 0.5]).double(), p.log()
    of_classes = soft_cross_entropy(z, weights * y)
    assert of_classes.item() == pytest.approx(0.831059, abs=1e-6)
    (slope,) = torch.autograd.grad(of_classes, z)
    assert slope[0].tolist() == pytest.approx([0.05, -0.275, 0.15, 0.075])
    assert class_balanced_cross_entropy(log_p, y, weights).item() == pytest.approx(0.795099, abs=1e-6)
    renormalised = weights * y / (weights * y).sum()
    assert soft_cross_entropy(log_p, renormalised, above_entropy=True).item() == pytest.approx(0.471565, abs=1e-6)
    assert divergences.js(y, log_p).item() == pytest.approx(0.172242, abs=1e-6)
    assert divergences.kl(y, log_p).item() == pytest.approx(0.529447, abs=1e-6)
    majority = system_of("majority-ce")
    assert isinstance(majority, StackedSystem)
    first = majority.learnt(majority.Settings(ties="first"), rows_of([[0.5, 0.5, 0, 0]]).train)
    assert soft_cross_entropy(z, first).item() == pytest.approx(0.916291, abs=1e-6)


def test_kl_and_cross_entropy_give_the_same_model(tmp_path: Path) -> None:
    fold, found = layered_fold(tmp_path, dtype=torch.float64), []
    for name in ("ldl-kl", "ldl-ce"):
        (one,) = system_of(name).fit(fold, [small(name).values], [5], FitOptions(4))
        assert isinstance(one, FittedHeads)
        found.append(one)
    kl, ce = found
    assert kl.history.epoch == ce.history.epoch
    for parameter, x in kl.state.items():
        torch.testing.assert_close(ce.state[parameter], x, rtol=0, atol=1e-9)


# --- majority-ce ---


def test_ties_are_left_out_of_training_or_learnt_as_the_first_of_their_classes(tmp_path: Path) -> None:
    fold, system = layered_fold(tmp_path, dtype=torch.float64), system_of("majority-ce")
    untied = [k for k, y in enumerate(fold.train.targets.tolist()) if y.count(max(y)) == 1]
    assert 0 < len(untied) < len(fold.train)
    short = replace(fold, train=fold.train.some(torch.tensor(untied)))
    settings = {ties: system.Settings(**SMALL, ties=ties) for ties in ("drop", "first")}
    (dropped,) = system.fit(fold, [settings["drop"]], [0], FitOptions(2))
    (alone,) = system.fit(short, [settings["first"]], [0], FitOptions(2))
    (first,) = system.fit(fold, [settings["first"]], [0], FitOptions(2))
    np.testing.assert_allclose(dropped.probs(fold.test)["fusion"], alone.probs(fold.test)["fusion"], atol=1e-7)
    assert not np.allclose(dropped.probs(fold.test)["fusion"], first.probs(fold.test)["fusion"], atol=1e-4)
    assert system.shape(settings["drop"]) != system.shape(settings["first"])
    assert system.learns_from(system.Settings(learn_from="majority")) == "majority"


def run(cache: Path, output: Path, *words: str) -> Result:
    return CliRunner().invoke(train_heads, ["--cache", str(cache), "--output", str(output), *QUICK, *words])


def test_the_log_counts_what_majority_ce_learns_from(tmp_path: Path) -> None:
    cache = write_small_cache(tmp_path, count=30)
    result = run(cache, tmp_path / "run", "--system", "majority-ce,cb-ce")
    assert result.exit_code == 0, result.output
    fold = layered_fold(tmp_path, count=30)
    untied = sum(y.count(max(y)) == 1 for y in fold.train.targets.tolist())
    line = f"majority-ce: learns from {untied} of {len(fold.train)}, "
    assert line in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "cb-ce: learns from" not in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


# --- emo-superb ---


def test_heads_of_emo_superb_are_linear_in_what_they_read(tmp_path: Path) -> None:
    fold, system = layered_fold(tmp_path, dtype=torch.float64), system_of("emo-superb")
    (one,) = system.fit(fold, [system.Settings(hidden=6)], [0], FitOptions(2))
    assert isinstance(one, FittedHeads)
    outputs, every = one.outputs(fold.test), torch.arange(len(fold.test))
    sums = {
        place: torch.stack(
            [reference.layer_sum(one.state[f"{place}.layers.weight"][0], x) for x in fold.test.layers(m, every)]
        )
        for place, m in (
            ("heads.audio", "audio"), ("heads.text", "text"),
            ("fusion.inputs.audio", "audio"), ("fusion.inputs.text", "text"),
        )
    }  # fmt: skip
    read = {
        "audio": sums["heads.audio"],
        "text": sums["heads.text"],
        "fusion": torch.cat((sums["fusion.inputs.audio"], sums["fusion.inputs.text"]), dim=1),
    }
    for head, x in read.items():
        hidden, output = (
            (one.state[f"heads.{head}.{layer}.weight"], one.state[f"heads.{head}.{layer}.bias"])
            for layer in ("hidden", "output")
        )
        expected = (x @ hidden[0].T + hidden[1]) @ output[0].T + output[1]
        torch.testing.assert_close(outputs[head], expected)


def test_emo_superb_stands_at_its_papers_settings_and_says_where_it_leaves_it(tmp_path: Path) -> None:
    cache = write_layered_cache(tmp_path, count=30)
    result = run(cache, tmp_path / "run", "--system", "emo-superb", "--smoothing", "0,0.05")
    assert result.exit_code == 0, result.output
    rows = read_results(tmp_path / "run")
    values = {
        (row["input_layers"], row["fusion"], row["lr"], row["batch_size"], row["layer_norm"], row["smoothing"])
        for row in rows
    }
    assert values <= {("weighted", "concat", 1e-4, 32, "none", smoothing) for smoothing in (0.0, 0.05)}
    assert "macro_f1_threshold" in METRICS
    assert len(read_settings(tmp_path / "run")["remarks"]["emo-superb"]) == 3
    refused = run(write_small_cache(tmp_path), tmp_path / "none", "--system", "emo-superb")
    assert "emo-superb reads all layers, and audio/audio-model has one: encode with" in refused.output


# --- all-inclusive ---


def test_all_inclusive_learns_what_the_baseline_learns_of_everything(tmp_path: Path) -> None:
    fold, found = layered_fold(tmp_path, dtype=torch.float64), []
    for name in ("cb-ce", "all-inclusive"):
        (one,) = system_of(name).fit(fold, [small(name).values], [1], FitOptions(3))
        found.append(one.probs(fold.test)["fusion"])
    np.testing.assert_array_equal(found[0], found[1])
    assert not own_axes(system_of("all-inclusive")).keys() & {"learn_from", "labels"}


def test_all_inclusive_needs_a_policy_that_keeps_any_vote(tmp_path: Path) -> None:
    cache = write_small_cache(tmp_path)
    words: list[Any] = ["--system", "all-inclusive,cb-ce"]
    refused = run(cache, tmp_path / "none", *words, "--keep", "plurality")
    assert (refused.exit_code, refused.output.strip()) == (
        1,
        "error: all-inclusive learns from every utterance that is kept, and --keep is plurality: give --keep any-vote, "
        "and --learn-from plurality for what the others learn from",
    )
    result = run(cache, tmp_path / "run", *words, "--keep", "any-vote", "--learn-from", "plurality")
    assert result.exit_code == 0, result.output
    of = {row["system"]: row["learn_from"] for row in read_results(tmp_path / "run")}
    assert of == {"all-inclusive": None, "cb-ce": "plurality"}


def test_all_systems_tells_why_it_leaves_some_out(tmp_path: Path) -> None:
    cache = write_small_cache(tmp_path, count=30)
    result = run(cache, tmp_path / "run", "--system", "all", "--keep", "plurality")
    assert result.exit_code == 0, result.output
    log, systems = (
        (tmp_path / "run" / "log.txt").read_text(encoding="utf-8"),
        read_settings(tmp_path / "run")["systems"],
    )
    assert {"ldl-kl", "majority-ce", "evidential"} <= {*systems}
    assert not {"ldl-ce", "all-inclusive", "emo-superb"} & {*systems}
    assert "ldl-ce is left out: its models are those of ldl-kl, whose row says it all" in log
    assert "all-inclusive is left out: all-inclusive learns from every utterance that is kept, and --keep is" in log
    assert "emo-superb is left out: emo-superb reads all layers" in log
    named = run(cache, tmp_path / "both", "--system", "ldl-ce,all")
    assert named.exit_code == 0, named.output
    assert "ldl-ce" in read_settings(tmp_path / "both")["systems"]
