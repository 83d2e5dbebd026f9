"""Heads folders in a moment: random weights, everything else as export-heads writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from amber2_core.features import fingerprint
from amber2_core.files import sha256_of
from amber2_core.heads import Architecture, Heads, initial_parameters
from amber2_core.heads_folder import TrainedHeads
from amber2_core.lddu import Lddu, LdduHeads
from amber2_core.lddu import initial_parameters as lddu_parameters
from amber2_predict.folder import CONFIG, FORMAT, FORMAT_VERSION, facts_of

EMOTIONS = ("neutral", "happy", "sad")
SIZES = {"audio": 6, "text": 5}
RECIPES = {name: {"model": f"{name}-model", "pooling": "mean"} for name in SIZES}


def member(
    seed: int = 0, *, reads: Mapping[str, Any] | None = None, emotions: tuple[str, ...] = EMOTIONS, **shape: Any
) -> TrainedHeads:
    """A model of random weights and standardisation."""
    architecture = Architecture(tuple(SIZES.items()), len(emotions), hidden=4, fusion_width=4, **shape)
    stream = torch.Generator().manual_seed(seed)
    model = Heads(architecture, initial_parameters(architecture, stream))
    needs = reads or dict.fromkeys(SIZES, "vector")
    return trained(model, seed, stream, reads=needs, emotions=emotions, outputs="softmax")


def lddu_member(seed: int = 0, kind: Any = "distribution") -> TrainedHeads:
    """The same of LDDU."""
    shape = Lddu(tuple(SIZES.items()), len(EMOTIONS), kind, 8, 1, 2, 4, 3)
    stream = torch.Generator().manual_seed(seed)
    model = LdduHeads(shape, lddu_parameters(shape, stream))
    own: dict[str, Any] = {} if kind == "distribution" else {"threshold": 0.3 + 0.1 * seed}
    return trained(model, seed, stream, reads=dict.fromkeys(SIZES, "frames"), model="amber2_core.lddu", **own)


def ruled_member(seed: int = 0, decider: str = "sentiment") -> TrainedHeads:
    """Heads with a rule by which the text, or its sentiment, decides half of the time."""
    emotions = ("neutral", "happy", "sad", "angry")
    one = member(seed, emotions=emotions)
    rule = {"decider": decider, "emotions": [*emotions], "entropy": [1.2] * 4, "varentropy": [9.0] * 4}
    own = {"outputs": "amber2_core.handover.Rule", "rule": rule, "sentiment": {"model": "classifier"}}
    return replace(one, origin={**one.origin, **own})


def trained(
    made: Any, seed: int, stream: torch.Generator, *, emotions: tuple[str, ...] = EMOTIONS, **own: Any
) -> TrainedHeads:
    """A model as train-heads keeps it, with a standardisation at random."""
    statistics = {
        name: (torch.randn(size, generator=stream), torch.rand(size, generator=stream) + 0.5)
        for name, size in SIZES.items()
    }
    features = {m: {"name": f"{m}-model", "fingerprint": fingerprint(r), "recipe": r} for m, r in RECIPES.items()}
    origin = {
        "system": "cb-ce", "setting": {"hidden": 4}, "policy": {"stimulus": "audio"}, "features": features,
        "epochs": dict.fromkeys(made.architecture.heads, 2), "missing": {}, "untrained": [], "fold": 1, "seed": seed,
        **own,
    }  # fmt: skip
    return TrainedHeads(made, emotions, statistics, origin)


def config_of(*members: TrainedHeads) -> dict[str, Any]:
    """config.json of members, without digests."""
    config = {
        "format": FORMAT, "format_version": FORMAT_VERSION,
        "members": [f"heads-{k}.safetensors" for k in range(1, len(members) + 1)], **facts_of(members[0]),
        "corpus": {"name": "made-up", "version": "", "utterances": {"kept": 3}}, "protocol": {"protocol": "session"},
        "metrics": {"system": {}, "members": [], "ensemble": {}}, "remarks": [], "versions": {},
    }  # fmt: skip
    copy: dict[str, Any] = json.loads(json.dumps(config))
    return copy


def write_heads_folder(folder: Path, *members: TrainedHeads, digests: bool = False, **changes: Any) -> Path:
    """A folder of members, by default one; `changes` are of config.json."""
    folder.mkdir(parents=True)
    members = members or (member(),)
    config = config_of(*members)
    for name, one in zip(config["members"], members, strict=True):
        one.write(folder / name)
    if digests:
        config["digests"] = {name: sha256_of(folder / name) for name in config["members"]}
    (folder / CONFIG).write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


def inputs(count: int = 7, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Vectors of utterances."""
    stream = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, size, generator=stream) for name, size in SIZES.items()}
