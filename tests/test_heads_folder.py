"""Trained heads on disk: what is read gives the numbers of what was written, and knows where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from amber2_core.errors import RunFolderError
from amber2_core.fusion import FUSIONS, Fusion
from amber2_core.heads import Architecture, MultimodalHeads
from amber2_core.heads_folder import TrainedHeads, read_heads, write_heads

ORIGIN = {
    "system": "amber2",
    "setting": {"kappa": 4.0, "lambda_rai": None},
    "fold": 2,
    "seed": 1,
    "epochs": {"audio": 3},
}


def trained(fusion: Fusion = "gmu", *, standardise: bool = True) -> TrainedHeads:
    shape = Architecture((("audio", 6), ("text", 5)), 3, fusion, hidden=4, fusion_width=4, dropout=0.5)
    model = MultimodalHeads(shape, generator=torch.Generator().manual_seed(0)).eval()
    statistics = {"audio": (torch.randn(6), torch.rand(6) + 0.5), "text": (torch.randn(5), torch.rand(5) + 0.5)}
    return TrainedHeads(model, ("neutral", "happy", "sad"), statistics if standardise else {}, ORIGIN)


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_heads_are_read_back_as_they_were_written(tmp_path: Path, fusion: Fusion, standardise: bool) -> None:
    written = trained(fusion, standardise=standardise)
    path = tmp_path / "heads.safetensors"
    write_heads(path, written)
    back = read_heads(path)
    assert (back.emotions, back.origin) == (written.emotions, ORIGIN)
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
    for head, logits in heads.model(by_hand).items():
        torch.testing.assert_close(heads.probs(features)[head], logits.softmax(-1))


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_lacks_a_modality_is_predicted_by_the_other_heads_whatever_is_stored(
    fusion: Fusion, standardise: bool
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
        write_heads(tmp_path / name, heads)
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
    write_heads(path, trained())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunFolderError, match="does not hold trained heads"):
        read_heads(path)
    write_heads(path, trained())
    record = metadata(path) | {"format_version": 2}
    save_file({"x": torch.zeros(2)}, path, metadata={"amber2": json.dumps(record)})
    with pytest.raises(RunFolderError, match="written by another version of amber2"):
        read_heads(path)


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError) as error:
        read_heads(tmp_path)
    assert "\n" not in str(error.value)
