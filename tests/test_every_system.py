"""What holds of every system: a run depends on no other, and on 32 utterances its loss falls to its floor."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from synthetic_data import layered_fold, votes

from amber2_core.distributions import agreed
from amber2_core.errors import CacheError, SettingError
from amber2_train.fold_data import FoldData, Rows
from amber2_train.grid import own_axes
from amber2_train.stacked.system import FittedHeads, StackedSettings, StackedSystem
from amber2_train.systems.system import OURS, FitOptions, Fitted, System, system_of

SMALL: dict[str, Any] = {"hidden": 8, "batch_size": 7, "lr": 0.01}
HEADS = ("audio", "text", "fusion")
Floats = npt.NDArray[np.floating[Any]]


def small_of(system: System) -> Any:
    """Its settings, with those that train in a moment where it has them."""
    known = own_axes(system)
    return system.Settings(**{name: value for name, value in SMALL.items() if name in known})


def changed(system: System, heads: Sequence[str]) -> Iterator[Any]:
    """Its settings with each of its own changed in turn, as far as they go together."""
    start, shared = small_of(system), StackedSettings.__dataclass_fields__
    yield start
    for axis in fields(start):
        limits, value = axis.metadata, getattr(start, axis.name)
        others: Sequence[Any] = limits["choices"]
        if not isinstance(value, str):
            others = [value + type(value)(1), value / 2 if isinstance(value, float) else value + 2]
        for other in others if axis.name not in shared else ():
            one = replace(start, **{axis.name: other})
            numeric = not isinstance(other, str)
            if one == start or (numeric and not limits["least"] <= other < limits["below"]):
                continue
            try:
                system.check(one, heads)
            except SettingError:  # what does not go together is no setting
                continue
            yield one


def by_shape(system: System, settings: Sequence[Any]) -> list[list[Any]]:
    groups: dict[Hashable, list[Any]] = {}
    for setting in settings:
        groups.setdefault(system.shape(setting), []).append(setting)
    return list(groups.values())


def alike(some: Fitted, other: Fitted, rows: Rows) -> None:
    assert some.history.epoch == other.history.epoch
    for head, curve in some.history.dev_js.items():
        np.testing.assert_allclose(curve, other.history.dev_js[head], rtol=0, atol=1e-9)
    found = other.probs(rows)
    for head, probs in some.probs(rows).items():
        np.testing.assert_allclose(probs, found[head], rtol=0, atol=1e-6)


@pytest.mark.parametrize("lacking", [{}, {"audio": [2, 21, 40], "text": [3, 4, 5]}], ids=["whole", "lacking"])
@pytest.mark.parametrize("name", OURS)
def test_a_run_gives_the_same_alone_as_among_runs_of_other_settings_and_seeds(
    tmp_path: Path, name: str, lacking: dict[str, list[int]]
) -> None:
    system = system_of(name)
    sides = set(system.sides(small_of(system)))
    try:
        fold = layered_fold(tmp_path, dtype=torch.float64, count=45, missing=lacking, sides=sides)
    except CacheError as problem:
        pytest.skip(f"the made-up cache does not feed it: {problem}")
    settings, seeds = list(changed(system, HEADS)), [3, 0]
    for group in by_shape(system, settings):
        together = {(one.setting, one.seed): one for one in system.fit(fold, group, seeds, FitOptions(3))}
        assert together.keys() == {(setting, seed) for setting in group for seed in seeds}
        for setting in (group[0], group[-1]):
            (alone,) = system.fit(fold, [setting], [0], FitOptions(3))
            alike(alone, together[setting, 0], fold.test)


@pytest.mark.parametrize("name", OURS)
def test_a_run_comes_again_and_seeds_and_settings_tell(tmp_path: Path, name: str) -> None:
    """Else the test above would hold for a system that predicts the same whatever it is asked for."""
    system = system_of(name)
    if not isinstance(system, StackedSystem):
        pytest.skip("it draws no start")
    fold = layered_fold(tmp_path, dtype=torch.float64, count=45)
    start = small_of(system)
    some, again, other = (next(iter(system.fit(fold, [start], [seed], FitOptions(2)))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(some.probs(fold.test)["text"], again.probs(fold.test)["text"])
    assert not np.allclose(some.probs(fold.test)["text"], other.probs(fold.test)["text"], atol=1e-4)


# --- 32 utterances ---


def few() -> FoldData:
    """32 utterances that a linear head can tell apart; what is learnt is what they are judged by."""
    ticks = votes(32, seed=4)
    counted = np.stack([(ticks == c).sum(1) for c in range(4)], axis=1)
    generator = torch.Generator().manual_seed(0)
    features = {m: torch.randn(32, 2, 96, generator=generator, dtype=torch.float64) for m in ("audio", "text")}
    n = torch.from_numpy(counted).double()
    rows = Rows(features, torch.arange(32), n / n.sum(-1, keepdim=True), votes=n)
    return FoldData(1, rows, rows, rows, ("a", "b", "c", "d"))


def entropies(y: Floats) -> Floats:
    return np.array([reference.entropy(one) * math.log(2) for one in y])


def weighted(y: Floats, learnt: Floats) -> float:
    """The least class-balanced cross-entropy of one head: that of predicting what is learnt."""
    weights = np.array(reference.class_balanced_weights(y.tolist()))
    return float((learnt @ weights * entropies(learnt)).mean())


def least_evidential(n: Floats, weight: float) -> tuple[float, Floats]:
    """The mean of the least losses of single utterances over all evidence, and the distributions there."""
    from scipy.optimize import minimize
    from scipy.special import digamma, gammaln

    def cost(evidence: Floats, own: Floats) -> float:
        alpha, total = evidence + 1, own.sum()
        y = own / total
        marginal = gammaln(alpha.sum() + total) - gammaln(alpha.sum()) - (gammaln(alpha + own) - gammaln(alpha)).sum()
        kept = y + (1 - y) * alpha
        tied = gammaln(kept.sum()) - gammaln(kept).sum() - gammaln(len(own))
        tied += ((kept - 1) * (digamma(kept) - digamma(kept.sum()))).sum()
        return float(marginal / total + weight * tied)

    found = [minimize(cost, n[i] * 5, args=(n[i],), bounds=[(0, 1e4)] * n.shape[1]) for i in range(len(n))]
    alpha = np.stack([one.x + 1 for one in found])
    return float(np.mean([one.fun for one in found])), alpha / alpha.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "name", ["amber2", "cb-ce", "all-inclusive", "emo-superb", "ldl-kl", "ldl-ce", "majority-ce", "evidential"]
)
def test_32_utterances_are_learnt_down_to_the_floor_of_the_loss(name: str) -> None:
    fold, system = few(), system_of(name)
    assert isinstance(system, StackedSystem)
    more: dict[str, Any] = {"annealing": 1, "lambda_evidence": 0.05} if name == "evidential" else {}
    setting = system.Settings(hidden=64, batch_size=32, lr=0.01, weight_decay=0.0, **more)
    train = fold.train
    if (which := system.learns_from(setting)) != "all":
        train = train.some(torch.from_numpy(agreed(train.targets.numpy(), which)).nonzero().flatten())
    learnt = system.learnt(setting, train)
    y, best = train.targets.numpy(), learnt.numpy()
    floors = {
        "amber2": lambda: 0.0,
        "cb-ce": lambda: weighted(y, best),
        "all-inclusive": lambda: weighted(y, best),
        "emo-superb": lambda: weighted(best, best),
        "ldl-kl": lambda: 0.0,
        "ldl-ce": lambda: float(entropies(best).mean()),
        "majority-ce": lambda: 0.0,
    }
    floor, best = least_evidential(best, 0.05) if name == "evidential" else (floors[name](), best)
    judged = replace(fold, dev=replace(train, targets=torch.from_numpy(best)))
    epochs = 1000 if name == "evidential" else 400  # its evidence still grows when all others have arrived
    (one,) = system.fit(judged, [setting], [0], FitOptions(epochs))
    assert isinstance(one, FittedHeads)
    outputs = torch.stack(list(one.outputs(train).values()))[:, None, None]  # (heads, 1, 1, n, C)
    loss = system.loss([setting], heads=HEADS, fold=replace(fold, train=train))
    found = loss(outputs, learnt[None, None], None, torch.tensor(float(epochs))).item()
    heads = 1 if name == "amber2" else 3  # only a student's loss is summed alone
    assert heads * floor - 1e-6 <= found <= heads * floor + 0.02
