"""The heads folder: trained heads as others get them, one or an ensemble, that need neither cache nor run folder.

```
config.json            `format` "amber2-heads", `format_version`; `members`, the names of the files below; `system`,
                       `emotions`, `policy`, `features` (modality → name, fingerprint, recipe) and `reads` (modality →
                       vector, layers, frames or the number of a layer), which are those of every member, and `kind`,
                       distribution (where it is not said) or multi-label; `corpus`, `protocol`, `metrics`, `remarks`,
                       `versions`, what is known of their training; `digests`, the sha256 of each member
heads-1.safetensors …  the members, complete files of `amber2_core.heads_folder`, each readable alone
README.md              the card
model.onnx             perhaps, the same as a graph, and description.json, its inputs and outputs
```
Whatever comes from others may be broken or hostile. Nothing in a folder runs or is unpickled, only files that
config.json names are opened, within `amber2_core.limits`, and what does not fit is refused with a reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amber2_core import limits
from amber2_core.errors import RunFolderError
from amber2_core.features import fingerprint
from amber2_core.files import sha256_of
from amber2_core.heads import FUSION_HEAD, Heads
from amber2_core.heads_folder import NEEDED_OF_FEATURES, SENTIMENT, TrainedHeads
from amber2_core.kinds import DISTRIBUTION, Kind
from amber2_core.lddu import Lddu, LdduHeads
from amber2_core.outputs import OUTPUTS, SOFTMAX

from .hub import ID, fetched, held_in
from .members import check_file, check_types, read_member, refused, shown

FORMAT, FORMAT_VERSION = "amber2-heads", 1
CONFIG, CARD, GRAPH, DESCRIPTION = "config.json", "README.md", "model.onnx", "description.json"
MEMBER = re.compile(r"heads-[1-9][0-9]{0,8}\.safetensors")
# weights that are pickled run code when they are opened
PICKLED = frozenset((".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"))
CONFIG_TYPES: Mapping[str, type] = {
    "members": list, "system": str, "emotions": list, "features": dict, "reads": dict, "corpus": dict,
    "protocol": dict, "metrics": dict, "remarks": list, "versions": dict, "digests": dict,
}  # fmt: skip
NEEDED = ("members", "system", "emotions", "policy", "features", "reads")


@dataclass(frozen=True, eq=False)
class HeadsFolder:
    """Trained heads of one system: a model, or an ensemble whose prediction is the mean of its members'."""

    members: tuple[TrainedHeads, ...]
    config: Mapping[str, Any]  # config.json

    @property
    def emotions(self) -> tuple[str, ...]:
        """C."""
        return self.members[0].emotions

    @property
    def heads(self) -> tuple[str, ...]:
        """The modalities, then the fusion of several; or the one prediction of all of them."""
        return self.members[0].heads

    @property
    def kind(self) -> Kind:
        """Of what is predicted: distributions, or presence."""
        return self.members[0].model.architecture.kind

    @property
    def threshold(self) -> float:
        """What a probability of presence must exceed: the mean of the members'."""
        return float(sum(member.origin["threshold"] for member in self.members) / len(self.members))

    @cached_property
    def head(self) -> str:
        """The head to go by: the student, where all members have the same one, else the fusion, else the only one."""
        students = {str(member.origin["setting"].get("student", FUSION_HEAD)) for member in self.members}
        wanted = (*students, FUSION_HEAD) if len(students) == 1 else (FUSION_HEAD,)
        return next((name for name in wanted if name in self.heads), self.heads[-1])

    @cached_property
    def at_once(self) -> TrainedHeads | None:
        """All members as one model, where they are alike; see `stacked`."""
        return stacked(self.members)

    @property
    def reads(self) -> dict[str, Any]:
        """Modality → what is read of it: "vector", "layers", "frames" or the number of a layer."""
        return reads_of(self.members[0])

    def each(self, features: Mapping[str, Any], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Probabilities (members, N, C) by head of every member, of what `TrainedHeads.probs` reads."""
        if self.at_once is not None:
            shape, some = self.members[0].model.architecture, next(iter(features.values()))
            nothing = shape.nothing(some[0] if isinstance(some, tuple) else some)
            nowhere = {name: torch.zeros(len(x[0] if isinstance(x, tuple) else x), dtype=torch.bool)
                       for name, x in nothing.items() if name not in features}  # fmt: skip
            return self.at_once.probs({**nothing, **features}, {**(present or {}), **nowhere})
        found = [member.probs(features, present) for member in self.members]
        return {head: torch.stack([probs[head] for probs in found]) for head in self.heads}

    def probs(self, features: Mapping[str, Any], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Probabilities (N, C) by head, the mean of `each`."""
        return {head: mean_of(probs) for head, probs in self.each(features, present).items()}


def stacked(members: Sequence[TrainedHeads]) -> TrainedHeads | None:
    """Members as one model with a run axis, which predicts (members, N, C) at once; None: they differ in more than
    their numbers, or are one."""
    first, shape = members[0], members[0].model.architecture
    if len(members) == 1 or len({_kind(member) for member in members}) > 1 or _kind(first)[1] not in OUTPUTS:
        return None
    parameters = {name: torch.stack([m.model.parameters[name] for m in members]) for name in first.model.parameters}
    statistics = {}
    for name in first.standardisation:
        pairs = zip(*(member.standardisation[name] for member in members), strict=True)
        mean, sd = (torch.stack(some).unsqueeze(1) for some in pairs)  # (members, 1, D) or (members, 1, layers, D)
        if shape.needs[name] != "vector" and mean.ndim == 3:
            mean, sd = mean.unsqueeze(1), sd.unsqueeze(1)
        statistics[name] = mean, sd
    model = LdduHeads(shape, parameters) if isinstance(shape, Lddu) else Heads(shape, parameters)
    return replace(first, model=model, standardisation=statistics)


def _kind(member: TrainedHeads) -> tuple[Any, ...]:
    """What is equal for members that are stacked."""
    origin, statistics = member.origin, {name: mean.shape for name, (mean, _) in member.standardisation.items()}
    never = tuple(name for name, epoch in origin.get("epochs", {}).items() if epoch == 0)
    outputs, untrained = origin.get("outputs", SOFTMAX), tuple(origin.get("untrained", ()))
    shape = member.model.architecture
    alike = shape if isinstance(shape, Lddu) else replace(shape, dropout=0.0)
    return alike, outputs, untrained, never, tuple(statistics.items())


def mean_of(probs: Tensor) -> Tensor:
    """The mean (N, C) of the members' distributions (members, N, C), of those that predict; NaN where none does."""
    there = ~probs.isnan()
    return probs.masked_fill(~there, 0.0).sum(0) / there.sum(0)


def reads_of(member: TrainedHeads) -> dict[str, Any]:
    """Modality → what a member reads of it; a sentiment is read as a vector."""
    found = {name: member.origin.get("reads", {}).get(name, "vector") for name in member.model.architecture.modalities}
    return found | ({SENTIMENT: "vector"} if member.reads_sentiment else {})


def facts_of(member: TrainedHeads) -> dict[str, Any]:
    """What all members of a folder have in common, as config.json has it."""
    origin = member.origin
    features = dict(origin["features"])
    if member.reads_sentiment:
        recipe = origin["sentiment"]
        features[SENTIMENT] = {"name": recipe["model"], "fingerprint": fingerprint(recipe), "recipe": recipe}
    return {
        "system": origin["system"],
        "emotions": list(member.emotions),
        "policy": origin["policy"],
        "features": {m: {key: features[m][key] for key in NEEDED_OF_FEATURES} for m in features},
        "reads": reads_of(member),
        "kind": member.model.architecture.kind,
    }


def read_folder(source: Path | str) -> HeadsFolder:
    """Read a heads folder, or fetch one by its id on the hub, ``owner/name`` or ``owner/name@revision``.

    Raises:
        RunFolderError: there is none, it is of a later version, or anything in it is not as it should be: one line that
            says what.
    """
    folder = Path(source)
    if folder.is_dir():
        return _read(folder, within=folder)
    if folder.exists() or not ID.fullmatch(str(source)):
        raise RunFolderError(f"No heads folder at {source}: make one with export-heads, or give an id as owner/name")
    place = fetched(str(source))
    return _read(place, within=held_in(place))


def _read(folder: Path, *, within: Path) -> HeadsFolder:
    with refused(folder):
        held = sorted(folder.iterdir())
    for path in held:
        if path.suffix.lower() in PICKLED:
            raise RunFolderError(
                f"{path} is refused: heads are safetensors alone, and pickled files run code when they are opened"
            )
    config = _read_config(folder / CONFIG, within=within)
    sizes = [check_file(folder / name, within=within, most=limits.FOLDER_BYTES) for name in config["members"]]
    if sum(sizes) > limits.FOLDER_BYTES:
        raise RunFolderError(f"{folder} holds {sum(sizes)} bytes of heads, the most are {limits.FOLDER_BYTES}")
    members = []
    for name in config["members"]:
        _check_digest(folder / name, config.get("digests", {}).get(name))
        members.append(read_member(folder / name, within=within))
    with refused(folder / CONFIG):
        check_alike(members, config)
    return HeadsFolder(tuple(members), config)


def check_alike(members: list[TrainedHeads], config: Mapping[str, Any]) -> None:
    """ValueError: members are not alike, or not what config.json says of them."""
    for number, member in enumerate(members, 1):
        told = {"kind": DISTRIBUTION, **config}
        for name, said in facts_of(member).items():
            if said != told[name]:
                raise ValueError(f"{name} of member {number} is {shown(said)}, of the folder {shown(told[name])}")
        if member.model.architecture.inputs != members[0].model.architecture.inputs:
            raise ValueError(f"member {number} reads features of other sizes than member 1")
        if member.model.architecture.layer_counts != members[0].model.architecture.layer_counts:
            raise ValueError(f"member {number} reads other layers than member 1")


def _read_config(path: Path, *, within: Path) -> dict[str, Any]:
    check_file(path, within=within, most=limits.CONFIG_BYTES)
    with refused(path):
        config = json.loads(path.read_bytes().decode(), parse_constant=_no_number)
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if (version := config.get("format_version")) != FORMAT_VERSION or type(version) is not int:
            newer = type(version) is int and version > FORMAT_VERSION
            again = "use a newer amber2" if newer else "export the heads again"
            raise ValueError(f"its version is {shown(version)}, and {FORMAT_VERSION} is read: {again}")
        check_types(config, CONFIG_TYPES, "config")
        if lacking := [name for name in NEEDED if name not in config]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        members = config["members"]
        for name in members:
            if not isinstance(name, str) or not MEMBER.fullmatch(name):
                raise ValueError(f"a member {shown(name)}, expected names such as heads-1.safetensors")
        if not 0 < len(set(members)) == len(members) <= limits.MEMBERS:
            raise ValueError(f"it has {len(members)} members, expected different ones, from 1 to {limits.MEMBERS}")
        return config


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _check_digest(path: Path, digest: Any) -> None:
    if digest is not None and digest != sha256_of(path):
        raise RunFolderError(f"{path} is not the file that was exported: copy the folder again")
