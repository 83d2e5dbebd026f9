"""Heads folders of strangers: whatever is wrong with one is told in one line, and nothing of it runs."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from heads_folders import EMOTIONS, config_of, inputs, lddu_member, member, ruled_member, write_heads_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from amber2_core import limits
from amber2_core.errors import RunFolderError
from amber2_predict.folder import CONFIG, read_folder
from amber2_predict.graph import random_inputs

HEADS = "heads-1.safetensors"
Changes = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def record_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        record: dict[str, Any] = json.loads(file.metadata()["amber2"])
    return record


def changed(folder: Path, change: Changes) -> None:
    """A member whose record and tensors are changed."""
    path = folder / HEADS
    record, tensors = record_of(path), load_file(path)
    change(record, tensors)
    save_file(tensors, path, {"amber2": json.dumps(record)})


def refuse(folder: Path, words: str) -> None:
    with pytest.raises(RunFolderError, match=words) as error:
        read_folder(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_heads_folder(tmp_path / "heads")


def test_an_honest_folder_is_read(folder: Path) -> None:
    heads = read_folder(folder)
    assert (heads.emotions, heads.heads, heads.head) == (EMOTIONS, ("audio", "text", "fusion"), "fusion")
    for probs in heads.probs(inputs()).values():
        torch.testing.assert_close(probs.sum(-1), torch.ones(7))


# --- members and their places ---


@pytest.mark.parametrize(
    "name", ["../heads-1.safetensors", "/etc/passwd", "a/heads-1.safetensors", "heads-1.safetensors\n", "heads-1.pt",
             "heads-01.safetensors", "..", "", 1, None, ["heads-1.safetensors"]],
)  # fmt: skip
def test_members_have_plain_names(tmp_path: Path, name: Any) -> None:
    folder = write_heads_folder(tmp_path / "heads", members=[name])
    member().write(tmp_path / HEADS)  # where the path leads
    refuse(folder, "a member .* expected names such as heads-1.safetensors")


@pytest.mark.parametrize("members", [[], [HEADS, HEADS], [f"heads-{k}.safetensors" for k in range(1, 1003)]])
def test_members_are_some_different_ones_and_not_too_many(tmp_path: Path, members: list[str]) -> None:
    refuse(write_heads_folder(tmp_path / "heads", members=members), "members, expected different ones, from 1 to 1000")


@pytest.mark.parametrize("name", [HEADS, CONFIG])
def test_a_link_out_of_the_folder_is_not_followed(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    refuse(folder, f"{name} leads out of the folder: it is not opened")


def test_what_is_no_regular_file_is_not_opened(folder: Path) -> None:
    (folder / HEADS).unlink()
    refuse(folder, f"{HEADS} is missing")
    os.mkfifo(folder / HEADS)  # whoever opens it waits for ever
    refuse(folder, f"{HEADS} is no file")


def test_a_member_that_is_not_the_one_exported_is_refused(tmp_path: Path) -> None:
    folder = write_heads_folder(tmp_path / "heads", digests=True)
    read_folder(folder)
    raw = bytearray((folder / HEADS).read_bytes())
    raw[-1] ^= 1  # a mantissa's bit: still a number
    (folder / HEADS).write_bytes(raw)
    refuse(folder, "is not the file that was exported")


# --- pickled files ---


class Bomb:
    """An object that makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.PKL", "y.npz", "z.ckpt"])
def test_pickled_files_beside_the_heads_are_refused_and_never_run(folder: Path, name: str) -> None:
    mark = folder.parent / "ran"
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    refuse(folder, f"{name} is refused: heads are safetensors alone")
    assert not mark.exists()
    pickle.loads((folder / name).read_bytes())
    assert mark.exists()  # it would have


def test_a_pickled_file_under_the_name_of_heads_never_runs(folder: Path) -> None:
    mark = folder.parent / "ran"
    (folder / HEADS).write_bytes(pickle.dumps(Bomb(mark)))
    refuse(folder, "is refused|does not hold trained heads")
    torch.save({"x": Bomb(mark)}, folder / HEADS)
    refuse(folder, "is refused|does not hold trained heads")
    assert not mark.exists()


# --- config.json ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is refused"),
        ("[]", "its format is not amber2-heads"),
        ("{}", "its format is not amber2-heads"),
        ("[" * 100_000, "is refused"),
        ('{"format": "amber2-heads", "format_version": 1, "x": NaN}', "NaN is no number"),
        ('{"format": "amber2-heads", "format_version": 1, "x": ' + "9" * 5000 + "}", "is refused"),
        ('{"format": "amber2-heads", "format_version": 1}', "it lacks members, system, emotions"),
        ('{"format": "amber2-heads", "format_version": 2}', "its version is 2, and 1 is read: use a newer amber2"),
        ('{"format": "amber2-heads", "format_version": true}', "its version is True"),
        ('{"format": "amber2-heads", "format_version": 1, "members": {}}', "members of its config is {}"),
        ("\udcff", "is refused"),
    ],
)
def test_a_config_that_is_none_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / CONFIG).write_bytes(text.encode(errors="surrogateescape"))
    refuse(folder, words)


def test_a_huge_config_is_not_read(folder: Path) -> None:
    with (folder / CONFIG).open("ab") as file:
        file.truncate(limits.CONFIG_BYTES + 1)
    refuse(folder, f"config.json has {limits.CONFIG_BYTES + 1} bytes, the most are {limits.CONFIG_BYTES}: it is not op")


@pytest.mark.parametrize(
    ("name", "value"),
    [("system", "amber2"), ("emotions", ["a", "b", "c"]), ("policy", {}), ("features", {}), ("reads", {"audio": 1})],
)
def test_a_config_that_says_other_things_than_its_heads_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    refuse(write_heads_folder(tmp_path / "heads", **{name: value}), f"{name} of member 1 is ")


def test_members_of_an_ensemble_are_alike(tmp_path: Path) -> None:
    other = member(1)
    other.origin["policy"]["stimulus"] = "audiovisual"  # type: ignore[index]
    refuse(write_heads_folder(tmp_path / "a", member(), other), "policy of member 2 is ")
    layered = [member(k, reads=dict.fromkeys(("audio", "text"), "layers"), layer_counts=(3, 3 + k)) for k in (0, 1)]
    refuse(write_heads_folder(tmp_path / "b", *layered), "member 2 reads other layers than member 1")


# --- weights ---


def reshaped(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["heads.audio.hidden.weight"] = torch.zeros(4, 7)


def of_a_billion_units(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    record["architecture"]["hidden"] = 10**9


def of_many_modalities(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    record["architecture"]["inputs"] = [[f"m{k}", 5] for k in range(100_000)]


def holding(value: float) -> Changes:
    def change(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors["fusion.gate.weight"][1, 2] = value

    return change


def in_halves(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["heads.audio.hidden.weight"] = tensors["heads.audio.hidden.weight"].half()


def without_spread(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["inputs.audio.sd"][3] = 0


def with_odd_statistics(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors |= {f"inputs.audio.{name}": torch.ones(1_000, 6) for name in ("mean", "sd")}


def with_foreign_statistics(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors |= {f"inputs.video.{name}": torch.ones(6) for name in ("mean", "sd")}


def saying(value: Any, *keys: str) -> Changes:
    def change(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


RULE = {"decider": "text", "emotions": [*EMOTIONS], "entropy": [0.1] * 3, "varentropy": [None] * 3}


def ruled(**changes: Any) -> Changes:
    def change(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        record["outputs"], record["rule"] = "amber2_core.handover.Rule", {**RULE, **changes}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (reshaped, "its tensors are not those of its architecture"),
        (of_a_billion_units, "its tensors are not those of its architecture"),
        (of_many_modalities, "it has 100000 modalities, the most are 32"),
        (holding(float("nan")), "'fusion.gate.weight' holds a number that is not finite"),
        (holding(float("inf")), "'fusion.gate.weight' holds a number that is not finite"),
        (in_halves, "is of torch.float16, expected torch.float32"),
        (without_spread, "an sd of audio is not above 0"),
        (with_odd_statistics, r"mean and sd of audio have shapes \(1000, 6\)"),
        (with_foreign_statistics, "it standardises what is no modality"),
        (saying(4.0, "architecture", "hidden"), "hidden of its architecture is 4.0, expected a whole number"),
        (saying(True, "architecture", "classes"), "classes of its architecture is True"),
        (saying([["audio", 6.0], ["text", 5]], "architecture", "inputs"), "are no whole numbers"),
        (saying([["audio"]], "architecture", "inputs"), "is refused"),
        (saying("code", "architecture", "activation"), "Bad activation 'code'"),
        (saying(["a"], "architecture", "pooling"), "pooling of its architecture"),
        (saying(1, "architecture", "trust_remote_code"), "trust_remote_code"),
        (saying("../x", "system"), "its system '../x' is no word"),
        (saying(["neutral", "happy"], "emotions"), "it has 2 emotions for 3 classes"),
        (saying(["neutral", "happy", "happy"], "emotions"), "an emotion stands twice"),
        (saying(["neutral", "happy", "\x1b[2Jsad"], "emotions"), "is no name of at most 200 letters"),
        (saying(["neutral", "happy", "s" * 201], "emotions"), "is no name of at most 200 letters"),
        (saying("os.system", "outputs"), "its heads predict through os.system alone, which is code"),
        (saying(["softmax"], "outputs"), "outputs of its record"),
        (saying("os.system", "model"), "its heads are a model of their own, os.system, which no"),
        (saying("amber2_core.lddu", "model"), "does not hold trained heads"),
        (saying("frames", "reads", "audio"), "it says that it reads 'frames' of audio, expected vector"),
        (saying(-1, "reads", "audio"), "it says that it reads -1 of audio"),
        (saying(["video"], "untrained"), "are not among its modalities"),
        (saying([[1]], "untrained"), "is refused"),
        (saying({"audio": "never"}, "epochs"), "epochs .* are not those of its heads"),
        (saying({"model": "another"}, "features", "audio", "recipe"), "is not that of their fingerprint"),
        (saying(None, "features", "audio", "recipe"), "does not tell how its audio features are made"),
        (saying({}, "features"), "its features are"),
        (saying([], "setting"), "setting of its record is"),
        (saying(3, "format_version"), "newer version of amber2"),
        (saying([], "format_version"), "does not hold trained heads"),
        (ruled(decider="sentiment"), "there is no angry among neutral, happy, sad"),
        (ruled(decider="os.system"), "is refused"),
        (ruled(entropy=[0.1]), "its rule does not fit its emotions"),
        (ruled(entropy=["a"] * 3), "its rule does not fit its emotions"),
        (ruled(emotions=["a", "b", "c"]), "its rule does not fit its emotions"),
    ],
)
def test_a_member_that_could_not_predict_is_refused(folder: Path, change: Changes, words: str) -> None:
    changed(folder, change)
    refuse(folder, words)


def test_the_rule_of_the_text_is_taken(folder: Path) -> None:
    changed(folder, ruled())
    read_folder(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (saying(10**9, "architecture", "layers"), "it has 1000000000 layers, the most are 1000"),
        (saying(0, "architecture", "attention_heads"), "Bad sizes"),
        (saying(3, "architecture", "attention_heads"), "Bad width 8, expected a multiple of 4 and of 3 heads"),
        (saying("code", "architecture", "kind"), "Bad modalities or kind"),
        (saying([["audio", 6], ["audio", 5]], "architecture", "inputs"), "its features are"),
        (saying("vector", "reads", "audio"), "it says that it reads 'vector' of audio, expected frames"),
        (saying(2, "threshold"), "its threshold 2 is no probability"),
        (saying("amber2_core.handover.Rule", "outputs"), "predict through amber2_core.handover.Rule alone"),
    ],
)
def test_lddu_that_could_not_predict_is_refused(tmp_path: Path, change: Changes, words: str) -> None:
    folder = write_heads_folder(tmp_path / "heads", lddu_member(kind="multi-label"))
    assert read_folder(folder).kind == "multi-label"
    changed(folder, change)
    refuse(folder, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (saying({}, "sentiment"), "is refused"),
        (saying({"model": 3}, "sentiment"), "sentiment 3 is no name"),
        (saying({"model": "x", "labels": float("nan")}, "sentiment"), "is refused"),
        (saying({"model": "another"}, "sentiment"), "features of member 1 is "),
        (saying(["a", "b", "c", "d"], "rule", "emotions"), "there is no happy among a, b, c, d"),
    ],
)
def test_a_rule_without_its_sentiment_is_refused(tmp_path: Path, change: Changes, words: str) -> None:
    folder = write_heads_folder(tmp_path / "heads", ruled_member())
    assert read_folder(folder).reads == {"audio": "vector", "text": "vector", "sentiment": "vector"}
    changed(folder, change)
    refuse(folder, words)


def test_a_file_that_says_that_its_header_is_huge_is_refused(folder: Path) -> None:
    raw = bytearray((folder / HEADS).read_bytes())
    raw[:8] = (2**63).to_bytes(8, "little")
    (folder / HEADS).write_bytes(raw)
    refuse(folder, f"its header has {2**63} bytes, the most are {limits.HEADER_BYTES}")


def test_a_file_that_is_larger_than_memory_may_be_is_not_read(folder: Path) -> None:
    with (folder / HEADS).open("ab") as file:
        file.truncate(limits.FOLDER_BYTES + 1)  # sparse: it takes no place
    refuse(folder, "it is not opened")


def test_members_that_are_too_much_together_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_heads_folder(tmp_path / "heads", member(0), member(1))
    monkeypatch.setattr(limits, "FOLDER_BYTES", (folder / HEADS).stat().st_size + 1)
    refuse(folder, "bytes of heads, the most are")


# --- fuzz ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("softmax"),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=5), some, max_size=3),
    max_leaves=5,
)


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a value of JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, some in inside for found in places(some, (*place, key)))][bool(not place) :]


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> None:
    for key in place[:-1]:
        value = value[key]
    value[place[-1]] = new


def read_or_refused(folder: Path) -> None:
    """Either it predicts distributions, or one line says why it does not."""
    refused = ""
    try:
        heads = read_folder(folder)
    except RunFolderError as error:
        refused = str(error)
    if refused:
        assert "\n" not in refused
        return
    assert heads.head in heads.heads
    assert heads.reads.keys() - {"sentiment"} == {"audio", "text"}
    given = random_inputs(heads, 7)
    features = {name: (given[name], given[f"{name}.valid"]) if f"{name}.valid" in given else given[name]
                for name in heads.reads}  # fmt: skip
    for probs in heads.probs(features).values():
        there = probs[~probs.isnan().any(-1)]
        if heads.kind == "distribution":
            torch.testing.assert_close(there.sum(-1), torch.ones(len(there)))
        else:
            assert ((there >= 0) & (there <= 1)).all()
            assert 0 <= heads.threshold <= 1


@settings(max_examples=150)
@given(st.data())
def test_any_value_in_a_record_may_be_anything(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    make: Any = data.draw(st.sampled_from([member, ruled_member, partial(lddu_member, kind="multi-label")]))
    folder = write_heads_folder(tmp_path_factory.mktemp("fuzz") / "heads", make())
    record = record_of(folder / HEADS)
    place, value = data.draw(st.sampled_from(places(record))), data.draw(JSON)
    changed(folder, lambda record, tensors: replaced(record, place, value))
    read_or_refused(folder)


@settings(max_examples=100)
@given(st.data())
def test_any_value_in_a_config_may_be_anything(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    config = config_of(member())
    replaced(config, data.draw(st.sampled_from(places(config))), data.draw(JSON))
    read_or_refused(write_heads_folder(tmp_path_factory.mktemp("fuzz") / "heads", **config))


@settings(max_examples=150)
@given(at=st.floats(0, 1, exclude_max=True), bits=st.binary(min_size=1, max_size=12))
def test_any_bytes_of_a_file_may_be_anything(tmp_path_factory: pytest.TempPathFactory, at: float, bits: bytes) -> None:
    folder = write_heads_folder(tmp_path_factory.mktemp("fuzz") / "heads")
    raw = bytearray((folder / HEADS).read_bytes())
    place = int(at * len(raw))
    raw[place : place + len(bits)] = bits
    (folder / HEADS).write_bytes(raw)
    read_or_refused(folder)
