"""Selection: the lowest mean dev JS of the head that decides, whatever everything else says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amber2_core.errors import SettingError
from amber2_core.heads import Architecture, initial_parameters
from amber2_train.fit import Fitted
from amber2_train.grid import Setting
from amber2_train.select import Candidate, best_settings, check_chosen, compete
from amber2_train.stacked.parameters import StackedHeads

SHAPE = Architecture((("audio", 3), ("text", 2)), 4, hidden=3, fusion_width=3)


def fitted(scores: dict[tuple[str, int, int], float], *, seeds: int, settings: int) -> Fitted:
    """Runs whose dev JS is 0.5 but where `scores` (head, seed, setting) says otherwise."""
    states = [initial_parameters(SHAPE, torch.Generator().manual_seed(seed)) for seed in range(seeds)]
    dev_js = np.full((3, seeds, settings), 0.5)
    for (head, seed, setting), score in scores.items():
        dev_js[SHAPE.heads.index(head), seed, setting] = score
    epoch = np.arange(dev_js.size).reshape(dev_js.shape) + 1
    curves = np.stack([dev_js + 0.1, dev_js, dev_js + 0.2])
    epochs = np.where(np.arange(dev_js.size).reshape(dev_js.shape) % 2, 2, 3)
    return Fitted(StackedHeads(SHAPE, states, settings), epoch, dev_js, curves, epochs)


SETTINGS = [Setting(kappa=2.0), Setting(kappa=4.0), Setting(system="cb-ce")]


def test_the_setting_with_the_lowest_mean_over_seeds_is_chosen_per_system() -> None:
    runs = fitted({("fusion", 0, 0): 0.1, ("fusion", 0, 1): 0.3, ("fusion", 1, 1): 0.2}, seeds=2, settings=3)
    candidates = best_settings(SETTINGS, [runs], runs.dev_js)
    assert candidates["amber2"].setting.kappa == 4.0
    assert candidates["amber2"].dev_js == pytest.approx(0.25)
    assert candidates["cb-ce"].dev_js == 0.5
    assert [run.epochs["text"] for run in candidates["amber2"].runs] == runs.epoch[1, :, 1].tolist()
    curve = runs.curves[: runs.epochs[2, 1, 1], 2, 1, 1].tolist()
    assert candidates["amber2"].runs[1].curves["fusion"] == curve
    kept = candidates["amber2"].runs[1].state
    assert all(torch.equal(kept[name], tensor) for name, tensor in runs.stack.state(1, 1).items())


def test_seeds_may_have_been_trained_together_or_apart() -> None:
    apart = [
        fitted({("fusion", 0, 0): 0.1}, seeds=1, settings=3),
        fitted({("fusion", 0, 1): 0.05}, seeds=1, settings=3),
    ]
    candidates = best_settings(SETTINGS, apart, np.concatenate([some.dev_js for some in apart], axis=1))
    assert candidates["amber2"].setting.kappa == 4.0
    assert candidates["amber2"].dev_js == pytest.approx(0.275)
    assert len(candidates["amber2"].runs) == 2


def test_a_later_stack_wins_only_if_it_is_better() -> None:
    def best(hidden: int, score: float) -> dict[str, Candidate]:
        runs = fitted({("fusion", 0, 0): score}, seeds=1, settings=1)
        return best_settings([Setting(hidden=hidden)], [runs], runs.dev_js)

    candidates = best(8, 0.4)
    compete(candidates, best(9, 0.4))
    assert candidates["amber2"].setting.hidden == 8
    compete(candidates, best(10, 0.3))
    assert candidates["amber2"].setting.hidden == 10


def test_variants_of_a_system_compete_each_for_itself() -> None:
    settings = [Setting(), Setting(kappa=0.0, variant="uniform")]
    runs = fitted({("fusion", 0, 0): 0.1}, seeds=1, settings=2)
    assert set(best_settings(settings, [runs], runs.dev_js)) == {"amber2", "amber2-uniform"}


def test_the_student_decides_whichever_head_it_is() -> None:
    settings = [Setting(student="audio", kappa=2.0), Setting(student="audio", kappa=4.0)]
    runs = fitted({("fusion", 0, 0): 0.0, ("audio", 0, 1): 0.4}, seeds=1, settings=2)
    candidates = best_settings(settings, [runs], runs.dev_js)
    assert candidates["amber2"].setting.kappa == 4.0


def test_a_diverged_setting_does_not_compete_and_all_diverged_is_an_error() -> None:
    settings = [Setting(kappa=2.0), Setting(kappa=4.0)]
    runs = fitted({("fusion", 0, 0): np.nan}, seeds=2, settings=2)
    candidates = best_settings(settings, [runs], runs.dev_js)
    assert candidates["amber2"].setting.kappa == 4.0
    check_chosen(candidates, settings, 1)
    with pytest.raises(SettingError, match="cb-ce diverged in fold 3: no dev JS is a number; try a smaller --lr"):
        check_chosen(candidates, SETTINGS, 3)
