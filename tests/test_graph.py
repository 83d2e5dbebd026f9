"""Heads as graphs: of every fusion and every way to read what is cached, and none that predicts something else."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from heads_folders import EMOTIONS, config_of, lddu_member, member, ruled_member

from amber2_core.errors import ModelError
from amber2_core.fusion import FUSIONS
from amber2_core.heads_folder import TrainedHeads
from amber2_core.inputs import LAYER_NORMS, POOLINGS
from amber2_predict.folder import HeadsFolder, stacked
from amber2_predict.graph import check_graph, description, inputs_of, random_inputs, write_graph

LAYERED: dict[str, Any] = {"reads": dict.fromkeys(("audio", "text"), "layers"), "layer_counts": (3, 2)}


def folder_of(*members: TrainedHeads) -> HeadsFolder:
    return HeadsFolder(members, config_of(*members))


def read_by(pooling: str) -> dict[str, Any]:
    return {"pooling": pooling, "reads": dict.fromkeys(("audio", "text"), POOLINGS[pooling].reads)}


CASES: list[dict[str, Any]] = [
    *({"fusion": name} for name in FUSIONS),
    *({**LAYERED, "layer_norm": name} for name in LAYER_NORMS),
    *map(read_by, POOLINGS),
]


def name_of(shape: dict[str, Any]) -> str:
    """Of a case, its first word."""
    return next((value for value in shape.values() if isinstance(value, str)), "layers")


@pytest.mark.thorough
@pytest.mark.parametrize("shape", CASES, ids=name_of)
def test_a_graph_of_any_heads_predicts_what_they_predict(tmp_path: Path, shape: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    heads = folder_of(member(0, **shape), member(2, **shape))
    write_graph(tmp_path, heads)  # compares them
    told = json.loads((tmp_path / "description.json").read_text())
    assert told == description(heads)
    with pytest.raises(ModelError, match=r"model\.onnx predicts other numbers \(Tensor-likes are not close"):
        check_graph(tmp_path / "model.onnx", folder_of(member(0, **shape), member(1, **shape)))
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"model\.onnx cannot be run"):
        check_graph(tmp_path / "model.onnx", heads)


OTHERS: list[Any] = [
    lddu_member, partial(lddu_member, kind="multi-label"), ruled_member, partial(ruled_member, decider="text"),
]  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("make", OTHERS, ids=["lddu", "presence", "sentiment", "text"])
def test_so_does_one_of_lddu_and_of_a_rule(tmp_path: Path, make: Any) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    heads = folder_of(make(0), make(2))
    write_graph(tmp_path, heads)  # compares them
    with pytest.raises(ModelError, match=r"model\.onnx predicts other numbers"):
        check_graph(tmp_path / "model.onnx", folder_of(make(0), make(1)))


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize(
    "make",
    [*(partial(member, **shape) for shape in CASES), *OTHERS[:2]],
    ids=[*map(name_of, CASES), "lddu", "presence"],
)
def test_members_that_are_alike_predict_at_once_what_each_predicts_alone(make: Any, standardise: bool) -> None:
    members = [make(seed) for seed in range(3)]
    if not standardise:
        members = [replace(one, standardisation={}) for one in members]
    heads, given = folder_of(*members), random_inputs(folder_of(make()), 9)
    assert stacked(members) is not None
    present = {name: given[f"{name}.present"] for name in ("audio", "text")}
    features: dict[str, Any] = {
        name: (given[name], given[f"{name}.valid"]) if f"{name}.valid" in given else given[name] for name in present
    }
    for some, masks in ((features, present), (features, None), ({"audio": features["audio"]}, None)):
        found = heads.each(some, masks)
        for head, probs in found.items():
            own = torch.stack([one.probs(some, masks)[head] for one in members])
            torch.testing.assert_close(probs, own, equal_nan=True)
        assert not found["fusion"].isnan().all()


def test_members_that_differ_in_more_than_numbers_are_asked_one_by_one() -> None:
    one = member(1)
    others = [
        replace(one, origin={**one.origin, "epochs": {"audio": 0}}), replace(one, standardisation={}),
        replace(one, origin={**one.origin, "untrained": ["text"]}), member(1, activation="none"),
        replace(one, origin={**one.origin, "outputs": "evidence-relu"}),
    ]  # fmt: skip
    given = random_inputs(folder_of(one), 5)
    features = {name: given[name] for name in ("audio", "text")}
    for other in others:
        assert stacked([one, other]) is None
        each = folder_of(one, other).each(features)
        for k, alone in enumerate((one, other)):
            for head, probs in alone.probs(features).items():
                assert torch.equal(each[head][k].nan_to_num(-1), probs.nan_to_num(-1))


def test_what_a_graph_reads_is_named_by_modality_with_a_mask() -> None:
    assert inputs_of(folder_of(member())) == {
        "audio": ["batch", 6], "audio.present": ["batch"], "text": ["batch", 5], "text.present": ["batch"],
    }  # fmt: skip
    assert inputs_of(folder_of(member(**LAYERED)))["audio"] == ["batch", 3, 6]
    ruled = inputs_of(folder_of(ruled_member()))
    assert (ruled["sentiment"], ruled["sentiment.present"]) == (["batch", 3], ["batch"])
    frames = inputs_of(folder_of(member(**read_by("attentive"))))
    assert frames["audio"] == ["batch", "frames of audio", 6]
    assert frames["text.valid"] == ["batch", "frames of text"]


def test_a_description_names_every_output_with_its_labels_and_the_main_one() -> None:
    told = description(folder_of(member()))
    assert list(told["outputs"]) == ["probs.audio", "probs.text", "probs.fusion", "probs"]
    assert told["main"] == "fusion"
    for output in told["outputs"].values():
        assert output == {"shape": ["batch", 3], "dtype": "float32", "labels": [*EMOTIONS]}
    assert told["inputs"]["audio.present"] == {"shape": ["batch"], "dtype": "bool"}


def test_random_inputs_lack_some_modalities_and_some_frames() -> None:
    given = random_inputs(folder_of(member(**read_by("attentive"))), 40)
    assert given["audio"].shape == (40, 5, 6)
    for name in ("audio.present", "text.present", "audio.valid"):
        assert given[name].any()
        assert not given[name].all()
    assert given["audio.valid"].any(-1).all()
