"""One member of a heads folder, read with suspicion: nothing in it runs, and what could not predict is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amber2_core import limits
from amber2_core.errors import RunFolderError, SettingError
from amber2_core.features import fingerprint
from amber2_core.handover import Rule
from amber2_core.heads_folder import (
    HANDOVER,
    HEADS,
    LDDU,
    NEEDED_OF_FEATURES,
    TrainedHeads,
    heads_of_record,
    read_tensors,
)
from amber2_core.kinds import MULTI_LABEL
from amber2_core.outputs import OUTPUTS, SOFTMAX

SYSTEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # as `amber2_train` names systems
WORDS: Mapping[type, str] = {dict: "an object", list: "a list", str: "text", int: "a whole number"}
RECORD_TYPES: Mapping[str, type] = {
    "system": str, "setting": dict, "emotions": list, "features": dict, "architecture": dict, "reads": dict,
    "epochs": dict, "missing": dict, "untrained": list, "outputs": str, "model": str, "sentiment": dict,
    "versions": dict,
}  # fmt: skip
ARCHITECTURE_TYPES: Mapping[str, type] = {
    "inputs": list, "classes": int, "fusion": str, "hidden": int, "fusion_width": int, "activation": str,
    "pooling": str, "layer_counts": list, "layer_norm": str, "kind": str, "width": int, "layers": int,
    "attention_heads": int, "feed_forward": int, "latent": int,
}  # fmt: skip


def read_member(path: Path, *, within: Path) -> TrainedHeads:
    """One model of a heads folder, if it is what it says, and predicts.

    Args:
        path: of the file.
        within: the folder that it must lie in, also by any link.

    Raises:
        RunFolderError: it is missing, no regular file, outside of the folder, too large, no safetensors file of
            `amber2_core.heads_folder`, of types or shapes that do not fit, holds a number that is not finite, or
            predicts in a way that is its system's own.
    """
    check_file(path, within=within, most=limits.FOLDER_BYTES)
    with refused(path), path.open("rb") as file:
        if (size := int.from_bytes(file.read(8), "little")) > limits.HEADER_BYTES:
            raise ValueError(f"its header has {size} bytes, the most are {limits.HEADER_BYTES}")
    tensors, record = read_tensors(path)
    with refused(path):
        _check_record(record)
        for name, x in tensors.items():
            _check_numbers(name, x)
    heads = heads_of_record(path, tensors, record)
    with refused(path):
        _check_heads(heads)
    return heads


def check_file(path: Path, *, within: Path, most: int) -> int:
    """The bytes of a regular file. RunFolderError: there is none, it lies elsewhere, or has more bytes than `most`."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(within)):
        raise RunFolderError(f"{path} leads out of the folder: it is not opened")
    if not real.is_file():
        raise RunFolderError(f"{path} is {'no file' if real.exists() else 'missing'}: export the heads again")
    if (size := real.stat().st_size) > most:
        raise RunFolderError(f"{path} has {size} bytes, the most are {most}: it is not opened")
    return size


def cannot_predict(record: Mapping[str, Any]) -> str | None:
    """Why the heads of a record predict no new speech, as the end of a sentence; None: they do."""
    outputs, model = record.get("outputs", SOFTMAX), record.get("model", HEADS)
    if "architecture" not in record:
        return "hold nothing that predicts new speech"
    if model not in (HEADS, LDDU):
        return f"are a model of their own, {model}, which no heads folder holds"
    known = (*OUTPUTS, HANDOVER) if model == HEADS else (SOFTMAX,)
    return None if outputs in known else f"predict through {outputs} alone, which is code of their system's"


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Within, a file is looked through; a ValueError, and whatever odd values make of it, is told in one line."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError, SettingError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise RunFolderError(f"{path} is refused ({reason[:300]})") from None


def check_types(values: Mapping[str, Any], types: Mapping[str, type], what: str) -> None:
    """ValueError: one of the values that there are is not of its type."""
    for name, kind in types.items():
        value = values.get(name, kind())
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} of its {what} is {shown(value)}, expected {WORDS[kind]}")


def check_names(names: Iterable[Any], what: str) -> None:
    """ValueError: a name is no text, none at all, too long, or holds what a terminal would obey."""
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= limits.NAME_LETTERS or not name.isprintable():
            raise ValueError(f"{what} {shown(name)} is no name of at most {limits.NAME_LETTERS} letters")


def shown(value: Any) -> str:
    """The beginning of any value, on one line."""
    return ascii(value)[:60]


def _check_record(record: Mapping[str, Any]) -> None:
    """What can be seen of a record before a model is made of it."""
    check_types(record, RECORD_TYPES, "record")
    if why := cannot_predict(record):
        raise ValueError(f"its heads {why}")
    if not SYSTEM.fullmatch(record["system"]):
        raise ValueError(f"its system {shown(record['system'])} is no word")
    check_names([record["system"]], "system")
    check_names(record["emotions"], "emotion")
    if len(set(record["emotions"])) < len(record["emotions"]):
        raise ValueError("an emotion stands twice")
    shape = record["architecture"]
    check_types(shape, ARCHITECTURE_TYPES, "architecture")
    if not 0 < len(shape["inputs"]) <= limits.MODALITIES:
        raise ValueError(f"it has {len(shape['inputs'])} modalities, the most are {limits.MODALITIES}")
    sizes = [size for _, size in shape["inputs"]] + shape.get("layer_counts", [])
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"its sizes {shown(sizes)} are no whole numbers")
    if (layers := shape.get("layers", 0)) > limits.LAYERS:
        raise ValueError(f"it has {layers} layers, the most are {limits.LAYERS}")
    if not isinstance(shape.get("dropout", 0.0), int | float):
        raise ValueError(f"its dropout {shown(shape['dropout'])} is no number")
    names = [name for name, _ in shape["inputs"]]
    check_names(names, "modality")
    if sorted(record["features"]) != sorted(names):
        raise ValueError(f"its features are {shown(sorted(record['features']))}, its modalities {shown(names)}")
    for name, features in record["features"].items():
        _check_features(name, features)


def _check_features(modality: str, features: Mapping[str, Any]) -> None:
    """That they say how they are made, and are those of their fingerprint."""
    name, digest, recipe = (features[key] for key in NEEDED_OF_FEATURES)
    check_names([name], "feature set")
    if not isinstance(recipe, dict):
        raise ValueError(f"it does not tell how its {modality} features are made: train again with this version")
    if fingerprint(recipe) != digest:
        raise ValueError(f"the recipe of its {modality} features is not that of their fingerprint")


def _check_numbers(name: str, x: Tensor) -> None:
    if x.dtype != torch.float32:
        raise ValueError(f"{shown(name)} is of {x.dtype}, expected torch.float32")
    if not torch.isfinite(x).all():
        raise ValueError(f"{shown(name)} holds a number that is not finite")


def _check_heads(heads: TrainedHeads) -> None:
    """What can be seen of a model, whose tensors are those of its architecture."""
    shape, origin = heads.model.architecture, heads.origin
    if len(heads.emotions) != shape.classes:
        raise ValueError(f"it has {len(heads.emotions)} emotions for {shape.classes} classes")
    if not set(origin.get("untrained", ())) <= set(shape.modalities):
        raise ValueError(f"untrained {shown(origin['untrained'])} are not among its modalities")
    epochs = origin.get("epochs", {})
    if not epochs.keys() <= set(shape.heads) or not all(type(epoch) is int and epoch >= 0 for epoch in epochs.values()):
        raise ValueError(f"epochs {shown(epochs)} are not those of its heads")
    for place, (name, size) in enumerate(shape.inputs):
        layers = shape.layer_counts[place] if shape.layer_counts else None
        _check_read(name, origin.get("reads", {}).get(name, "vector"), shape.needs[name])
        if name in heads.standardisation:
            _check_statistics(name, heads.standardisation[name], size, layers)
    if not heads.standardisation.keys() <= set(shape.modalities):
        raise ValueError("it standardises what is no modality")
    if shape.kind == MULTI_LABEL and not 0 <= origin["threshold"] <= 1:
        raise ValueError(f"its threshold {shown(origin['threshold'])} is no probability")
    if heads.rule is not None:
        _check_rule(heads.rule, heads.emotions, shape.heads)
    if heads.reads_sentiment:
        check_names([origin["sentiment"]["model"]], "sentiment")
        fingerprint(origin["sentiment"])


def _check_read(modality: str, need: Any, expected: str) -> None:
    """Vectors may be those of any layer; else what is read is as the architecture says."""
    if need == expected or (expected == "vector" and type(need) is int and 0 <= need < limits.LAYERS):
        return
    raise ValueError(f"it says that it reads {shown(need)} of {modality}, expected {expected}")


def _check_statistics(modality: str, statistics: tuple[Tensor, Tensor], size: int, layers: int | None) -> None:
    mean, sd = statistics
    fits = {(size,)} | ({(layers, size)} if layers else set())
    if mean.shape != sd.shape or tuple(mean.shape) not in fits:
        raise ValueError(f"mean and sd of {modality} have shapes {tuple(mean.shape)} and {tuple(sd.shape)}")
    if not (sd > 0).all():
        raise ValueError(f"an sd of {modality} is not above 0")


def _check_rule(rule: Rule, emotions: Sequence[str], heads: Sequence[str]) -> None:
    thresholds = (*rule.entropy, *rule.varentropy)
    numbers = all(x is None or (isinstance(x, int | float) and x == x) for x in thresholds)
    if rule.emotions != tuple(emotions) or len(thresholds) != 2 * len(emotions) or not numbers:
        raise ValueError("its rule does not fit its emotions")
    needed = {"text": ("audio", "text"), "sentiment": ("audio",)}[rule.decider]
    if missing := [name for name in needed if name not in heads]:
        raise ValueError(f"its rule needs a head of {missing[0]}")
