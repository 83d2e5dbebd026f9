"""Trained heads on disk: one safetensors file per model, with all that is needed to use it on new recordings.

The metadata entry `amber2` is a JSON object with `format_version` and

    system, setting    what was trained, and with which values
    emotions           the classes, in order
    policy             how votes became distributions over them (the fields of `amber2_core.votes.LabelPolicy`)
    features           modality → name, fingerprint and whole recipe of the feature set that is expected
    versions           of amber2, torch and numpy

and with whatever else a system records: `model` is the module whose parameters they are, where that is not
`amber2_core.heads`; `threshold` of a multi-label model is what a probability must exceed for its class to be present;
`rule` is an `amber2_core.handover.Rule`, and `sentiment` the recipe of the classifier's feature set that it reads.
`train-heads` adds `architecture`, `outputs` (of `amber2_core.outputs`, or the function of a system of its own that
makes log-probabilities of them), `reads` (see `TrainedHeads.probs`), `fold`, `seed`, `epochs` (head → epoch kept; 0:
none, the head is as it began), `targets` (whose votes were learnt: human, synthetic or combined), `missing` (modality →
how many train utterances lacked it, where some did) and `untrained` (the modalities that all lacked).

Tensors are a system's parameters, those of heads as `amber2_core.heads` names them, plus `inputs.<modality>.mean` and
`.sd` (D_m,) where it was trained on standardised features. Version 1 had neither policy nor recipes nor versions:
reading it, these are None or empty.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from .errors import RunFolderError, SettingError
from .files import written_whole
from .handover import Rule
from .heads import FUSION_HEAD, Architecture, Heads
from .lddu import Lddu, LdduHeads
from .outputs import OUTPUTS, SOFTMAX

FORMAT_VERSION = 2
HEADS = "amber2_core.heads"  # what a file is a model of where `model` does not tell
LDDU = "amber2_core.lddu"
HANDOVER = "amber2_core.handover.Rule"  # the outputs of heads of which a rule makes the fusion
SENTIMENT = "sentiment"  # what such a rule may read beside the modalities
NEEDED = ("system", "setting", "emotions", "policy", "features")
NEEDED_OF_FEATURES = ("name", "fingerprint", "recipe")
Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class TrainedHeads:
    """A trained model and where it comes from."""

    model: Heads | LdduHeads
    emotions: tuple[str, ...]
    # modality → (mean, sd), each (D_m,); empty where features are used as they are
    standardisation: Mapping[str, tuple[Tensor, Tensor]]
    # all else that the file tells: system, setting, policy, features, …
    origin: Mapping[str, Any]

    @cached_property
    def rule(self) -> Rule | None:
        """What makes the fusion of the other heads, where a rule does."""
        return Rule.of_record(self.origin["rule"]) if self.origin.get("outputs") == HANDOVER else None

    @property
    def reads_sentiment(self) -> bool:
        """Whether its rule reads a transcript's sentiment."""
        return self.rule is not None and self.rule.decider == SENTIMENT

    @property
    def heads(self) -> tuple[str, ...]:
        """What it predicts: the modalities, then the fusion of several, or of a rule."""
        own = self.model.architecture.heads
        return own if self.rule is None or FUSION_HEAD in own else (*own, FUSION_HEAD)

    @torch.no_grad()
    def probs(self, features: Mapping[str, Any], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Features (N, D_m) by modality, as the cache holds them → probabilities (N, C) by head.

        `origin["reads"]` tells what of a modality is read: "vector" or the number of a layer, as above; "layers", all
        of them (N, layers, D_m); "frames", a pair of frames (N, T, D_m) and which are frames (N, T).

        Where utterances lack a modality, `present` has booleans (N,) under its name; a modality that is not among the
        features, or that no train utterance had, is missing everywhere. The rows of its head then are NaN, those of the
        fusion where there is none at all, and all of a head of which training kept no epoch. `origin["missing"]` tells
        whether the heads met such utterances in training.

        A rule may read "sentiment", probabilities of negative, neutral and positive (N, 3), which may be missing, too.

        Raises:
            RunFolderError: the system makes distributions of its outputs in a way of its own, which it alone knows.
        """
        outputs = SOFTMAX if self.rule is not None else self.origin.get("outputs", SOFTMAX)
        if outputs not in OUTPUTS:
            raise RunFolderError(f"These heads of {self.origin['system']} predict through {outputs} alone")
        inputs = {name: _standardised_input(x, self.standardisation.get(name)) for name, x in features.items()}
        masks, some = dict(present or {}), next(iter(features.values()))
        first, shape = some[0] if isinstance(some, tuple) else some, self.model.architecture
        sentiment = self._sentiment(inputs, masks, first)
        for name, nothing in shape.nothing(first).items():
            inputs.setdefault(name, nothing)
            if name not in features or name in self.origin.get("untrained", ()):
                masks[name] = first.new_zeros(first.shape[:1], dtype=torch.bool)
        probs = self.model.probs(
            inputs, present=masks or None, log_probs=None if outputs == SOFTMAX else OUTPUTS[outputs]
        )
        if FUSION_HEAD in probs and masks.keys() >= set(shape.modalities):
            masks[FUSION_HEAD] = torch.stack([masks[name] for name in shape.modalities]).any(0)
        for name in probs.keys() & masks.keys():
            probs[name] = probs[name].masked_fill(~masks[name].unsqueeze(-1), torch.nan)
        never = {name for name, epoch in self.origin.get("epochs", {}).items() if epoch == 0}
        probs = {name: torch.full_like(own, torch.nan) if name in never else own for name, own in probs.items()}
        if self.rule is not None:
            probs[FUSION_HEAD] = self.rule.of_tensors(probs, sentiment)
        return probs

    def _sentiment(self, inputs: dict[str, Any], masks: dict[str, Tensor], like: Tensor) -> Tensor | None:
        """What the rule reads of inputs and masks (N, 3), NaN where there is none; it is taken from them."""
        if not self.reads_sentiment:
            return None
        mask = masks.pop(SENTIMENT, None)
        sentiment: Tensor = inputs.pop(SENTIMENT, like.new_full((len(like), 3), torch.nan))
        return sentiment if mask is None else sentiment.masked_fill(~mask.unsqueeze(-1), torch.nan)

    def write(self, path: Path) -> None:
        """Write the model, as `write_heads` does."""
        tensors = dict(self.model.parameters)
        for modality, (mean, sd) in self.standardisation.items():
            tensors |= {f"inputs.{modality}.mean": mean, f"inputs.{modality}.sd": sd}
        own = {"architecture": asdict(self.model.architecture), "emotions": self.emotions}
        write_heads(path, tensors, {**self.origin, **own})


def standardised(x: Tensor, statistics: tuple[Tensor, Tensor] | None) -> Tensor:
    """(x − mean) / sd, (…, D); x itself without statistics."""
    return x if statistics is None else (x - statistics[0]) / statistics[1]


def _standardised_input(x: Any, statistics: tuple[Tensor, Tensor] | None) -> Any:
    """The same of frames, whose padding stays zero, with their mask."""
    if not isinstance(x, tuple):
        return standardised(x, statistics)
    return standardised(x[0], statistics) * x[1].unsqueeze(-1), x[1]


def write_heads(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write one model of any system: its tensors, and a record of JSON values with all that is `NEEDED`.

    Readable for whom the umask allows it. Versions of the software are added.

    Raises:
        RunFolderError: the place cannot be written, or is full.
        ValueError: the record is not complete.
    """
    lacking = [name for name in NEEDED if name not in record]
    for modality, features in record.get("features", {}).items():
        lacking += [f"{name} of {modality}" for name in NEEDED_OF_FEATURES if name not in features]
    if lacking:
        raise ValueError(f"A record of heads needs {', '.join(lacking)}")
    versions = {name: importlib.metadata.version(name) for name in ("amber2", "numpy", "torch")}
    whole = {"versions": versions, **record, "format_version": FORMAT_VERSION}
    metadata = {"amber2": json.dumps(whole, ensure_ascii=False, sort_keys=True)}
    try:
        with written_whole(path) as writing:
            save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, writing, metadata)
    except (OSError, SafetensorError) as problem:
        raise RunFolderError(f"Cannot write {path}: {problem}") from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Record]:
    """What `write_heads` of this version or an earlier one wrote.

    Raises:
        RunFolderError: no such file, or another one.
    """
    with _understood(path):
        whole = path.read_bytes()  # safetensors opens no file whose name is not UTF-8
        tensors = load(whole)
        header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
        record = json.loads(header.get("__metadata__", {})["amber2"])
        version = record.pop("format_version")
        if version not in READERS:
            raise RunFolderError(f"{path} was written by a newer version of amber2: use that one, or train again")
        return tensors, READERS[version](record)


def read_heads(path: Path) -> TrainedHeads:
    """Read one model of `amber2_core.heads` or `amber2_core.lddu`.

    Raises:
        RunFolderError: as `read_tensors`, or the file is of a system with parameters of its own.
    """
    return heads_of_record(path, *read_tensors(path))


def heads_of_record(path: Path, tensors: dict[str, Tensor], record: Record) -> TrainedHeads:
    """What `read_tensors` read of a file as a model, as `read_heads`; both are used up.

    Raises:
        RunFolderError: as `read_heads`.
    """
    with _understood(path):
        if (kind := record.get("model", HEADS)) not in (HEADS, LDDU):
            raise ValueError(f"it is a model of {kind}, which alone reads it")
        shape = record.pop("architecture")
        inputs = tuple((name, size) for name, size in shape.pop("inputs"))
        counts = tuple(shape.pop("layer_counts", ()))
        emotions = tuple(record.pop("emotions"))
        architecture = Lddu(inputs, **shape) if kind == LDDU else Architecture(inputs, **shape, layer_counts=counts)
        own = [name for name in tensors if name.startswith("inputs.") and name.endswith(".mean")]
        means = sorted(name.removeprefix("inputs.").removesuffix(".mean") for name in own)
        statistics = {m: (tensors.pop(f"inputs.{m}.mean"), tensors.pop(f"inputs.{m}.sd")) for m in means}
        if {name: tuple(x.shape) for name, x in tensors.items()} != architecture.shapes:
            raise ValueError("its tensors are not those of its architecture")
    model = LdduHeads(architecture, tensors) if isinstance(architecture, Lddu) else Heads(architecture, tensors)
    return TrainedHeads(model, emotions, statistics, record)


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """Within, a file is read; whatever is wrong with it is told in one line."""
    try:
        yield
    except FileNotFoundError:
        raise RunFolderError(f"No trained heads at {path}: train some with train-heads") from None
    except (
        SafetensorError, SettingError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError
    ) as problem:  # fmt: skip
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise RunFolderError(f"{path} does not hold trained heads ({reason})") from None


def _read_version_1(record: Record) -> Record:
    features = {modality: {"recipe": None, **own} for modality, own in record.get("features", {}).items()}
    return {"policy": None, "versions": {}, **record, "features": features}


def _read_version_2(record: Record) -> Record:
    return record


# format version → what makes a record of this version of it
READERS: Mapping[int, Callable[[Record], Record]] = {1: _read_version_1, 2: _read_version_2}
