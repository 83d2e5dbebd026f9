"""Trained heads on disk: what is read gives the numbers of what was written, and knows all that it needs."""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from amber2_core.errors import RunFolderError
from amber2_core.fusion import FUSIONS
from amber2_core.heads import Architecture, Heads, initial_parameters
from amber2_core.heads_folder import FORMAT_VERSION, TrainedHeads, read_heads, read_tensors, write_heads

GOLDEN = Path(__file__).with_name("golden") / "heads_v1.safetensors"  # of format version 1; it never changes
FEATURES = {
    name: {"name": f"{name}-model", "fingerprint": name * 9, "recipe": {"model": name, "pooling": "mean"}}
    for name in ("audio", "text")
}
ORIGIN = {
    "system": "amber2",
    "setting": {"kappa": 4.0, "lambda_rai": None},
    "fold": 2,
    "seed": 1,
    "epochs": {"audio": 3},
    "policy": {"stimulus": "audio", "merge": [["excited", "happy"]]},
    "features": FEATURES,
}


def trained(fusion: str = "gmu", *, standardise: bool = True) -> TrainedHeads:
    shape = Architecture((("audio", 6), ("text", 5)), 3, fusion, hidden=4, fusion_width=4, dropout=0.5)
    model = Heads(shape, initial_parameters(shape, torch.Generator().manual_seed(0)))
    statistics = {"audio": (torch.randn(6), torch.rand(6) + 0.5), "text": (torch.randn(5), torch.rand(5) + 0.5)}
    return TrainedHeads(model, ("neutral", "happy", "sad"), statistics if standardise else {}, ORIGIN)


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_heads_are_read_back_as_they_were_written(tmp_path: Path, fusion: str, standardise: bool) -> None:
    written = trained(fusion, standardise=standardise)
    path = tmp_path / "heads.safetensors"
    written.write(path)
    back = read_heads(path)
    versions = {name: importlib.metadata.version(name) for name in ("amber2", "numpy", "torch")}
    assert (back.emotions, back.origin) == (written.emotions, {**ORIGIN, "versions": versions})
    assert back.model.architecture == written.model.architecture
    features = {"audio": torch.randn(7, 6), "text": torch.randn(7, 5)}
    expected = written.probs(features)
    for head, probs in back.probs(features).items():
        assert torch.equal(probs, expected[head])
        torch.testing.assert_close(probs.sum(-1), torch.ones(7))


def test_probabilities_are_those_of_standardised_features() -> None:
    heads = trained()
    features = {"audio": torch.randn(7, 6), "text": torch.randn(7, 5)}
    by_hand = {m: (x - heads.standardisation[m][0]) / heads.standardisation[m][1] for m, x in features.items()}
    for head, probs in heads.model.probs(by_hand).items():
        torch.testing.assert_close(heads.probs(features)[head], probs)


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_lacks_a_modality_is_predicted_by_the_other_heads_whatever_is_stored(
    fusion: str, standardise: bool
) -> None:
    heads = trained(fusion, standardise=standardise)
    audio, text = torch.randn(7, 6), torch.randn(7, 5)
    present = torch.tensor([1, 1, 0, 1, 0, 1, 1]).bool()
    whole = heads.probs({"audio": audio, "text": text})
    some = heads.probs({"audio": audio, "text": text.masked_fill(~present.unsqueeze(-1), torch.nan)}, {"text": present})
    speech = heads.probs({"audio": audio})  # no transcript at all
    assert list(some) == list(speech) == ["audio", "text", "fusion"]
    for head in ("audio", "text", "fusion"):
        assert torch.equal(some[head][present], whole[head][present])
    assert some["text"][~present].isnan().all()
    assert speech["text"].isnan().all()
    for head in ("audio", "fusion"):
        assert torch.equal(some[head][~present], speech[head][~present])
    assert torch.equal(speech["audio"], whole["audio"])
    assert not torch.allclose(speech["fusion"], whole["fusion"])


def test_the_same_heads_are_the_same_bytes(tmp_path: Path) -> None:
    heads = trained()
    for name in ("a", "b"):
        heads.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        record: dict[str, Any] = json.loads(file.metadata()["amber2"])
    return record


def test_a_missing_foreign_damaged_or_newer_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    with pytest.raises(RunFolderError, match=r"No trained heads at .*heads.safetensors"):
        read_heads(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(RunFolderError, match="does not hold trained heads"):
        read_heads(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(RunFolderError, match="does not hold trained heads"):
        read_heads(path)
    trained().write(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunFolderError, match="does not hold trained heads"):
        read_heads(path)
    trained().write(path)
    record = metadata(path)
    save_file({"x": torch.zeros(2)}, path, metadata={"amber2": json.dumps(record)})
    with pytest.raises(RunFolderError, match=r"does not hold trained heads \(its tensors are not those of its arch"):
        read_heads(path)
    record["architecture"]["fusion"] = "sum"
    save_file({"x": torch.zeros(2)}, path, metadata={"amber2": json.dumps(record)})
    with pytest.raises(RunFolderError, match=r"does not hold trained heads \(Bad fusion 'sum'"):
        read_heads(path)
    record["format_version"] = FORMAT_VERSION + 1
    save_file({"x": torch.zeros(2)}, path, metadata={"amber2": json.dumps(record)})
    with pytest.raises(RunFolderError, match="written by a newer version of amber2"):
        read_heads(path)


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError) as error:
        read_heads(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_of_the_first_version_opens_and_predicts() -> None:
    heads = read_heads(GOLDEN)
    assert heads.emotions == ("neutral", "happy", "sad")
    assert (heads.origin["system"], heads.origin["fold"], heads.origin["missing"]) == ("amber2", 2, {"text": 4})
    assert heads.origin["features"]["text"] == {"name": "text-model", "fingerprint": "text" * 9, "recipe": None}
    assert heads.origin["policy"] is None  # it did not tell
    features = {"audio": torch.randn(4, 6), "text": torch.randn(4, 5)}
    probs = heads.probs(features)
    for row in range(4):
        vectors = {m: (x[row] - heads.standardisation[m][0]) / heads.standardisation[m][1] for m, x in features.items()}
        for head, logits in reference.head_logits(heads.model.parameters, vectors, "gmu").items():
            if head == "fusion":  # no epoch of it was kept
                assert probs[head][row].isnan().all()
            else:
                torch.testing.assert_close(probs[head][row], logits.softmax(-1))


def test_where_there_is_nothing_at_all_there_is_no_fusion() -> None:
    present = {"audio": torch.tensor([True, False, False]), "text": torch.tensor([False, False, True])}
    probs = trained().probs({"audio": torch.randn(3, 6), "text": torch.randn(3, 5)}, present)
    assert probs["fusion"].isnan().all(-1).tolist() == [False, True, False]


def test_a_rule_by_which_the_text_decides_is_applied_where_the_audio_is_unsure() -> None:
    features = {"audio": torch.randn(40, 6), "text": torch.randn(40, 5)}
    heads = trained()
    plain = heads.probs(features)
    spread = torch.tensor([reference.nats(p) for p in plain["audio"].tolist()])
    least = spread.sort().values[19:21].mean().item()
    rule = {"decider": "text", "emotions": list(heads.emotions), "entropy": [least] * 3, "varentropy": [9.0] * 3}
    origin = {**ORIGIN, "outputs": "amber2_core.handover.Rule", "rule": rule}
    probs = replace(heads, origin=origin).probs(features)
    unsure = spread >= least
    for head in ("audio", "text"):
        assert torch.equal(probs[head], plain[head])
    assert torch.equal(probs["fusion"], torch.where(unsure.unsqueeze(-1), plain["text"], plain["audio"]))


def test_another_system_keeps_tensors_of_its_own_in_the_same_file(tmp_path: Path) -> None:
    path, record = tmp_path / "rule", {**ORIGIN, "system": "rule", "emotions": ["neutral", "happy"], "shift": 0.5}
    write_heads(path, {"table": torch.arange(6.0).view(2, 3).T}, record)
    tensors, told = read_tensors(path)
    assert torch.equal(tensors["table"], torch.arange(6.0).view(2, 3).T)
    assert {name: told[name] for name in record} == record
    with pytest.raises(RunFolderError, match=r"does not hold trained heads \('architecture'\)"):
        read_heads(path)


@pytest.mark.parametrize("lacking", ["policy", "features", "recipe"])
def test_a_file_that_could_not_predict_alone_is_not_written(tmp_path: Path, lacking: str) -> None:
    record = {**ORIGIN, "emotions": ["neutral", "happy"]}
    record["features"] = {m: {k: v for k, v in own.items() if k != lacking} for m, own in FEATURES.items()}
    record.pop(lacking, None)
    with pytest.raises(ValueError, match=f"A record of heads needs {lacking}"):
        write_heads(tmp_path / "heads", {}, record)
    assert list(tmp_path.iterdir()) == []


def test_who_may_read_a_file_is_what_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        trained().write(tmp_path / "heads")
    finally:
        os.umask(before)
    assert (tmp_path / "heads").stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "heads").mkdir()
    with pytest.raises(RunFolderError, match=r"Cannot write .*heads"):
        trained().write(tmp_path / "heads")
    assert [path.name for path in tmp_path.iterdir()] == ["heads"]
