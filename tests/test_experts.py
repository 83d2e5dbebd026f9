"""Expert weights and disagreement against slow loops over utterances."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from synthetic_data import EMOTIONS, soft_labels

from amber2_core.run_folder import Predictions, read_experts, write_experts
from amber2_core.tables import texts
from amber2_train.experts import expert_rows
from amber2_train.grid import Setting

COUNT = 40


def predictions(heads: tuple[str, ...], systems: tuple[str, ...]) -> Predictions:
    random = np.random.default_rng(3)
    return Predictions(
        id=texts([str(i) for i in range(COUNT)]),
        fold=np.arange(COUNT) % 2 + 1,
        target=soft_labels(COUNT),
        emotions=EMOTIONS,
        probs={
            f"{system}/{head}": random.dirichlet([1] * 4, (2, COUNT)).astype(np.float32)
            for system in systems
            for head in heads
        },
    )


SELECTED = {
    ("amber2", 1): Setting(kappa=8.0),
    ("amber2", 2): Setting(kappa=2.0, student="audio"),
    ("cb-ce", 1): Setting(system="cb-ce"),
    ("cb-ce", 2): Setting(system="cb-ce"),
}


def members(found: Predictions, row: dict[str, Any]) -> list[int]:
    rows = [i for i in range(COUNT) if found.fold[i] == row["fold"]]
    if row["by"] == "class":
        return [i for i in rows if EMOTIONS[reference.argmax(found.target[i].tolist())] == row["group"]]
    if row["by"] == "ambiguity":
        low, high = map(float, row["group"].split("-"))
        return [i for i in rows if low <= reference.entropy(found.target[i].tolist()) + 1e-6 < high + 1e-5]
    return rows


def test_weights_and_disagreement_are_those_of_the_slow_formulas_in_every_group() -> None:
    heads = ("audio", "text", "fusion")
    found = predictions(heads, ("amber2", "cb-ce"))
    rows = expert_rows(found, SELECTED)
    for row in rows:
        setting = SELECTED[row["system"], row["fold"]]
        some = members(found, row)
        assert row["n"] == len(some) > 0
        probs = {h: found.probs[f"{row['system']}/{h}"][row["seed"]].astype(float).tolist() for h in heads}
        disagreement = [reference.js(probs["audio"][i], probs["text"][i]) for i in some]
        assert row["disagreement"] == pytest.approx(np.mean(disagreement), abs=1e-6)
        if row["system"] == "cb-ce":
            assert all(row[f"weight_{head}"] is None for head in heads)
            continue
        experts = [head for head in heads if head != setting.student]
        weights = [
            reference.expert_weights(found.target[i].tolist(), [probs[e][i] for e in experts], setting.kappa)
            for i in some
        ]
        for k, expert in enumerate(experts):
            assert row[f"weight_{expert}"] == pytest.approx(np.mean([w[k] for w in weights]), abs=1e-6)
        assert row[f"weight_{setting.student}"] is None


def test_every_utterance_is_in_one_class_and_one_ambiguity_bin() -> None:
    rows = expert_rows(predictions(("audio", "text", "fusion"), ("amber2", "cb-ce")), SELECTED)
    for system, fold, seed, by in itertools.product(("amber2", "cb-ce"), (1, 2), (0, 1), ("all", "class", "ambiguity")):
        own = [r for r in rows if (r["system"], r["fold"], r["seed"], r["by"]) == (system, fold, seed, by)]
        assert sum(row["n"] for row in own) == COUNT / 2


def test_equal_weights_without_kappa_and_pairs_of_three_modalities() -> None:
    heads = ("audio", "text", "video", "fusion")
    found = predictions(heads, ("amber2",))
    rows = expert_rows(found, {("amber2", 1): Setting(kappa=0.0)})
    for row in rows:
        assert [row[f"weight_{m}"] for m in heads[:3]] == pytest.approx([1 / 3] * 3)
        some = members(found, row)
        probs = {h: found.probs[f"amber2/{h}"][row["seed"]].astype(float).tolist() for h in heads}
        pairs = [reference.js(probs[a][i], probs[b][i]) for a, b in itertools.combinations(heads[:3], 2) for i in some]
        assert row["disagreement"] == pytest.approx(np.mean(pairs), abs=1e-6)


def test_the_rows_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = expert_rows(predictions(("audio", "text", "fusion"), ("amber2", "cb-ce")), SELECTED)
    write_experts(tmp_path / "experts.csv", rows)
    assert [{k: v or None for k, v in row.items()} for row in read_experts(tmp_path)] == [
        {k: v or None for k, v in row.items()} for row in rows
    ]
