"""Trained heads on disk: one safetensors file per model, with all that is needed to use it on new features.

Tensors are named as `MultimodalHeads` names its parameters, plus `inputs.<modality>.mean` and `.sd` (D_m,) where the
heads were trained on standardised features. The metadata entry `amber2` is a JSON object with `format_version`,
`architecture`, `emotions` (the classes in order), `system`, `setting`, `fold`, `seed`, `epochs` (head → epoch kept; 0:
none, the head is as it began), `features` (modality → name, fingerprint and recipe of the feature set), `missing`
(modality → how many train utterances lacked it, where some did) and `untrained` (the modalities that all lacked).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import RunFolderError
from .heads import Architecture, MultimodalHeads

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class TrainedHeads:
    """A trained model and where it comes from."""

    model: MultimodalHeads
    emotions: tuple[str, ...]
    # modality → (mean, sd), each (D_m,); empty where features are used as they are
    standardisation: Mapping[str, tuple[Tensor, Tensor]]
    # system, setting, fold, seed, epochs, features, missing, untrained
    origin: Mapping[str, Any]

    @torch.no_grad()
    def probs(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Features (N, D_m) by modality, as the cache holds them → probabilities (N, C) by head.

        Where utterances lack a modality, `present` has booleans (N,) under its name; a modality that is not among the
        features, or that no train utterance had, is missing everywhere. The rows of its head then are NaN.
        `origin["missing"]` tells whether the heads met such utterances in training.
        """
        vectors = {name: standardised(x, self.standardisation.get(name)) for name, x in features.items()}
        masks, first = dict(present or {}), next(iter(features.values()))
        for name, size in self.model.architecture.inputs:
            if name not in vectors:
                vectors[name] = first.new_zeros(len(first), size)
            if name not in features or name in self.origin.get("untrained", ()):
                masks[name] = first.new_zeros(len(first), dtype=torch.bool)
        probs = {head: logits.softmax(-1) for head, logits in self.model(vectors, masks or None).items()}
        for name, mask in masks.items():
            probs[name] = probs[name].masked_fill(~mask.unsqueeze(-1), torch.nan)
        return probs


def standardised(x: Tensor, statistics: tuple[Tensor, Tensor] | None) -> Tensor:
    """(x − mean) / sd, (…, D); x itself without statistics."""
    return x if statistics is None else (x - statistics[0]) / statistics[1]


def write_heads(path: Path, heads: TrainedHeads) -> None:
    """Write one model."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in heads.model.state_dict().items()}
    for modality, (mean, sd) in heads.standardisation.items():
        tensors |= {f"inputs.{modality}.mean": mean, f"inputs.{modality}.sd": sd}
    record = {
        "format_version": FORMAT_VERSION,
        "architecture": asdict(heads.model.architecture),
        "emotions": heads.emotions,
        **heads.origin,
    }
    save_file(tensors, path, metadata={"amber2": json.dumps(record, ensure_ascii=False, sort_keys=True)})


def read_heads(path: Path) -> TrainedHeads:
    """Read one model.

    Raises:
        RunFolderError: no such file, or not one that `write_heads` of this format version wrote.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["amber2"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if record.pop("format_version") != FORMAT_VERSION:
            raise RunFolderError(f"{path} was written by another version of amber2: train again")
        shape = record.pop("architecture")
        shape["inputs"] = tuple((name, size) for name, size in shape["inputs"])
        means = {name.split(".")[1] for name in tensors if name.startswith("inputs.")}
        statistics = {m: (tensors.pop(f"inputs.{m}.mean"), tensors.pop(f"inputs.{m}.sd")) for m in sorted(means)}
        model = MultimodalHeads(Architecture(**shape))
        model.load_state_dict(tensors)
    except FileNotFoundError:
        raise RunFolderError(f"No trained heads at {path}: train some with train-heads") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as problem:
        raise RunFolderError(f"{path} does not hold trained heads ({str(problem).splitlines()[0]})") from None
    return TrainedHeads(model.eval(), tuple(record.pop("emotions")), statistics, record)
