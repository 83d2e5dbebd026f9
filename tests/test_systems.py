"""The systems' losses on stacked runs against slow loops over one run and one utterance at a time."""

from __future__ import annotations

import itertools

import pytest
import reference
import torch

from amber2_core.errors import SettingError
from amber2_train.grid import LOSS_SETTINGS, Setting
from amber2_train.systems import registry
from amber2_train.systems.system import TrainingStatistics

HEADS = ("audio", "text", "fusion")
WEIGHTS = torch.tensor([0.5, 1.5, 0.8, 1.2], dtype=torch.float64)


def batch(seeds: int, settings: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (heads, seeds, settings, batch, C) and targets (seeds, 1, batch, C)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, seeds, settings, 6, 4, dtype=torch.float64, generator=generator)
    ticks = torch.randint(0, 4, (seeds, 1, 6, 3), generator=generator)
    return logits, torch.nn.functional.one_hot(ticks, 4).double().mean(-2)


SETTINGS = [
    Setting(kappa=kappa, lambda_mai=mai, lambda_rai=rai, lambda_expert=expert, student=student)
    for kappa, mai, rai, expert, student in (
        (4.0, 0.5, 1.0, 0.0, "fusion"),
        (0.0, 0.3, 1.0, 0.0, "fusion"),
        (8.0, 0.7, 0.5, 1.0, "audio"),
        (2.0, 0.7, 1.0, 0.0, "text"),
    )
]


def test_the_loss_of_amber_is_that_of_the_slow_formula_for_every_run() -> None:
    logits, target = batch(2, len(SETTINGS))
    system = registry.system("amber2")
    losses = system.loss(SETTINGS, heads=HEADS, statistics=TrainingStatistics(WEIGHTS))(logits, target, None)
    assert losses.shape == (2, len(SETTINGS))
    probs = logits.softmax(-1)
    for s, (k, setting) in itertools.product(range(2), enumerate(SETTINGS)):
        expected = reference.amber(
            target[s, 0].tolist(),
            [probs[h, s, k].tolist() for h in range(3)],
            student=HEADS.index(setting.student),
            lambda_rai=setting.lambda_rai,
            lambda_mai=setting.lambda_mai,
            lambda_expert=setting.lambda_expert,
            kappa=setting.kappa,
        )
        assert losses[s, k].item() == pytest.approx(expected, abs=1e-12)


def test_settings_of_different_students_distances_and_gradients_stay_in_their_order() -> None:
    mixed = [
        Setting(student=student, loss=loss, weight_gradient=gradient)  # type: ignore[arg-type]
        for student, loss, gradient in itertools.product(("text", "fusion", "audio"), ("kl", "js"), ("flow", "detach"))
    ]
    logits, target = batch(1, len(mixed))
    system, statistics = registry.system("amber2"), TrainingStatistics(WEIGHTS)
    together = system.loss(mixed, heads=HEADS, statistics=statistics)(logits, target, None)
    for k, setting in enumerate(mixed):
        alone = system.loss([setting], heads=HEADS, statistics=statistics)(logits[:, :, k : k + 1], target, None)
        torch.testing.assert_close(together[:, k : k + 1], alone)


def test_the_loss_of_the_baseline_is_the_sum_of_the_heads_slow_formulas() -> None:
    logits, target = batch(2, 2)
    settings = [Setting(system="cb-ce"), Setting(system="cb-ce", lr=1e-3)]
    baseline = registry.system("cb-ce").loss(settings, heads=HEADS, statistics=TrainingStatistics(WEIGHTS))
    losses = baseline(logits, target, None)
    for s, k in itertools.product(range(2), range(2)):
        expected = sum(
            reference.class_balanced_cross_entropy(
                target[s, 0].tolist(), logits[h, s, k].softmax(-1).tolist(), WEIGHTS.tolist()
            )
            for h in range(3)
        )
        assert losses[s, k].item() == pytest.approx(expected, abs=1e-12)


def test_the_student_judges_every_head_of_amber_and_each_head_of_the_baseline_judges_itself() -> None:
    amber, baseline = registry.system("amber2"), registry.system("cb-ce")
    for student, head in itertools.product(HEADS, HEADS):
        assert amber.judge(head, Setting(student=student)) == student
        assert amber.decider(Setting(student=student)) == student
        assert baseline.judge(head, Setting(system="cb-ce", student=student)) == head
    assert baseline.decider(Setting(system="cb-ce", student="audio")) == "fusion"


def test_a_system_uses_settings_that_exist_and_its_loss_looks_at_no_other() -> None:
    logits, target = batch(1, 1)
    other = {"lambda_rai": 3.0, "lambda_mai": 3.0, "lambda_expert": 3.0, "kappa": 1.0, "student": "audio",
             "loss": "kl", "weight_gradient": "flow", "expert_gradient": "own"}  # fmt: skip
    for name, system in registry.SYSTEMS.items():
        assert system.name == name
        assert system.uses <= LOSS_SETTINGS
        for setting in set(other) - system.uses:
            changed = Setting(system=name, **{setting: other[setting]})  # type: ignore[arg-type]
            losses = [
                system.loss([one], heads=HEADS, statistics=TrainingStatistics(WEIGHTS))(logits, target, None)
                for one in (Setting(system=name), changed)
            ]
            assert torch.equal(*losses)


def test_an_unknown_system_names_those_there_are() -> None:
    with pytest.raises(SettingError, match=r"Bad system 'lddu', expected one of \['amber2', 'cb-ce'\]"):
        registry.system("lddu")
