"""A fold and a setting → the parameters that tests/reference.py makes of them, utterance by utterance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import reference
import torch
from torch import Tensor

from amber2_core.heads import Architecture, initial_parameters
from amber2_train.fold_data import FoldData
from amber2_train.grid import Setting
from amber2_train.stacked.loop import random_stream
from amber2_train.systems.system import system_of

SMALL: dict[str, Any] = {"hidden": 8, "batch_size": 7, "lr": 0.01}
OF_THE_LOSS = ("student", "lambda_rai", "lambda_mai", "lambda_expert", "kappa", "weight_gradient")


def small(system: str = "amber2", **values: Any) -> Setting:
    """A setting that the loops train in a moment."""
    return Setting(system, system_of(system).Settings(**{**SMALL, **values}))


def trained_slowly(
    fold: FoldData, setting: Setting, *, seed: int, epochs: int, lacking: Mapping[str, Sequence[int]] | None = None
) -> list[dict[str, Tensor]]:
    """Parameters after each epoch; `lacking` names the rows of the data that a modality does not have."""
    values = setting.values
    inputs = tuple((name, x.shape[1]) for name, x in fold.train.features.items())
    shape = Architecture(inputs, 4, values.fusion, values.hidden, values.hidden)
    start = initial_parameters(shape, random_stream(seed, fold.number, "parameters"))
    order = random_stream(seed, fold.number, "order")
    place, batches = fold.train.index.tolist(), []
    for _ in range(epochs):
        rows = torch.randperm(len(fold.train), generator=order).tolist()
        batches.append([rows[first : first + values.batch_size] for first in range(0, len(rows), values.batch_size)])
    return reference.train_reference(
        {name: x.double() for name, x in start.items()},
        {name: x[fold.train.index].double() for name, x in fold.train.features.items()},
        fold.train.targets,
        batches,
        system=setting.reference,  # type: ignore[arg-type]
        fusion=values.fusion,
        class_weights=reference.class_balanced_weights(fold.train.targets.tolist()),
        learning_rate=values.lr,
        weight_decay=values.weight_decay,
        lacking={name: [k for k, row in enumerate(place) if row in rows] for name, rows in (lacking or {}).items()},
        **{name: getattr(values, name) for name in OF_THE_LOSS if hasattr(values, name)},
    )


def slow_dev_js(
    fold: FoldData, parameters: Mapping[str, Tensor], fusion: str, lacking: Mapping[str, Sequence[int]] | None = None
) -> dict[str, float]:
    """Mean JS on dev by head, over the utterances that have it."""
    values: dict[str, list[float]] = {}
    sizes = {name: x.shape[1] for name, x in fold.dev.features.items()}
    for row, target in zip(fold.dev.index.tolist(), fold.dev.targets.tolist(), strict=True):
        logits = reference.head_logits(parameters, vectors_of(fold.dev.features, row, lacking or {}), fusion, sizes)
        for head, each in logits.items():
            values.setdefault(head, []).append(reference.js(target, each.softmax(-1).tolist()))
    return {head: sum(some) / len(some) for head, some in values.items()}


def vectors_of(rows: Mapping[str, Tensor], row: int, lacking: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """What one utterance has: modality → (D_m,)."""
    return {name: x[row].double() for name, x in rows.items() if row not in lacking.get(name, ())}
