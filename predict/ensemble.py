"""Trained heads that predict together, and where they are found: a folder, a run, an id of the hub, a file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amber2_core.errors import ModelError, RunFolderError, SettingError, bad_choice
from amber2_core.features import canonical_json
from amber2_core.heads import FUSION_HEAD
from amber2_core.heads_folder import TrainedHeads, read_heads

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from amber2_extract.rows import Row

    Probs = npt.NDArray[np.float64]

# a file of heads in a run folder
_NAME = re.compile(r"(?P<system>.+)-fold(?P<fold>\d+)-seed(?P<seed>\d+)")


@dataclass(frozen=True, eq=False)
class Ensemble:
    """One trained model or several, of one system, on the same features and emotions."""

    name: str
    members: tuple[TrainedHeads, ...]

    def __post_init__(self) -> None:
        first = self.members[0]
        for member in self.members[1:]:
            if member.emotions != first.emotions:
                raise RunFolderError(f"{self.name}: its members predict different emotions: export them again")
            if member.model.architecture.heads != first.model.architecture.heads:
                raise RunFolderError(f"{self.name}: its members have different heads: export them again")
            if _fingerprints(member) != _fingerprints(first):
                raise RunFolderError(f"{self.name}: its members read different features: export them again")
        for member in self.members:
            for features in member.origin["features"].values():
                if not features["recipe"]:
                    raise RunFolderError(f"{self.name} does not tell how its features were made: train again")

    @property
    def emotions(self) -> tuple[str, ...]:
        return self.members[0].emotions

    @property
    def heads(self) -> tuple[str, ...]:
        """Their names: of the modalities, then of the fusion."""
        return self.members[0].model.architecture.heads

    @property
    def inputs(self) -> tuple[str, ...]:
        """The feature sets that are read, ``audio`` and ``text``, or ``audio:NAME`` where there are several of one."""
        return self.members[0].model.architecture.modalities

    @property
    def features(self) -> Mapping[str, Mapping[str, Any]]:
        """Feature set → its name, fingerprint and recipe."""
        found: Mapping[str, Mapping[str, Any]] = self.members[0].origin["features"]
        return {name: found[name] for name in self.inputs}

    @cached_property
    def student(self) -> str:
        """The head that the system means by its prediction."""
        setting = self.members[0].origin.get("setting") or {}
        named = setting.get("student") or FUSION_HEAD
        return named if named in self.heads else self.heads[-1]

    @property
    def digest(self) -> str:
        """sha256 of all that predictions depend on: weights, statistics, what they read, and features."""
        found = hashlib.sha256()
        for member in self.members:
            found.update(canonical_json(dict(member.origin)).encode())
            parts = {
                **member.model.parameters,
                **{f"{n}.{k}": x for n, s in member.standardisation.items() for k, x in enumerate(s)},
            }
            for name in sorted(parts):
                found.update(name.encode() + parts[name].contiguous().numpy().tobytes())
        return found.hexdigest()

    def has_met(self, lacking: Sequence[str]) -> bool:
        """Whether every member met utterances without these feature sets in training."""
        return all(member.origin.get("missing", {}).get(name) for member in self.members for name in lacking)

    def probs(self, rows: Mapping[str, Sequence[Row | None]]) -> dict[str, Probs]:
        """Head → distributions (members, N, C), NaN where a head predicts nothing.

        Args:
            rows: feature set → what its encoder gives of N utterances, None where an utterance has nothing to encode.

        Raises:
            RunFolderError: the system predicts in a way that it alone knows.
        """
        import numpy as np

        found = [_probs(member, rows) for member in self.members]
        return {head: np.stack([one[head] for one in found]) for head in self.heads}


def find_ensemble(
    place: str,
    *,
    system: str | None = None,
    fold: int | None = None,
    seed: int | None = None,
    ensemble: bool = False,
) -> Ensemble:
    """The heads that a user means.

    Args:
        place: what `export-heads` wrote, the run folder of `train-heads`, one file of its heads/, or an id of the hub.
        system: of a run with several.
        fold: of a run: the models of this fold.
        seed: of a run: the models of this seed.
        ensemble: of a run: all models that are left together; else the one that is best on dev.

    Raises:
        RunFolderError: there are no heads, or they do not fit together.
        SettingError: a run has several systems, or nothing of that name.
        ModelError: it is an id, and cannot be downloaded.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return Ensemble(path.name, (read_heads(path),))
    if not path.is_dir():
        path = _downloaded(place)
    if (path / "settings.json").is_file():
        files = _of_run(path, system=system, fold=fold, seed=seed, ensemble=ensemble)
        return Ensemble(path.resolve().name, tuple(map(read_heads, files)))
    if ensemble or not (system is fold is seed is None):
        raise SettingError(f"{place} is no run folder: a system, a fold, a seed or an ensemble is chosen of a run")
    from .folder import read_folder

    return Ensemble(path.resolve().name, tuple(read_folder(path).members))


def _of_run(folder: Path, *, system: str | None, fold: int | None, seed: int | None, ensemble: bool) -> list[Path]:
    """The files of a run that are meant."""
    named = {
        path: match for path in sorted(folder.glob("heads/*.safetensors")) if (match := _NAME.fullmatch(path.stem))
    }
    systems = list(dict.fromkeys(match["system"] for match in named.values()))
    if not systems:
        raise RunFolderError(f"{folder} holds no trained heads: train again, or name another run")
    if system is None and len(systems) > 1:
        raise SettingError(f"{folder} holds heads of {', '.join(systems)}: say which by --system")
    chosen = systems[0] if system is None else system
    if chosen not in systems:
        raise SettingError(bad_choice("system", chosen, systems))
    wanted = {
        (int(match["fold"]), int(match["seed"])): path
        for path, match in named.items()
        if match["system"] == chosen and fold in (None, int(match["fold"])) and seed in (None, int(match["seed"]))
    }
    if not wanted:
        raise SettingError(f"{folder} holds no heads of {chosen} with that fold and seed")
    return list(wanted.values()) if ensemble or len(wanted) == 1 else [_best_on_dev(folder, chosen, wanted)]


def _best_on_dev(folder: Path, system: str, files: Mapping[tuple[int, int], Path]) -> Path:
    """Of lowest JS on dev among the selected settings, by the head that the system means by its prediction."""
    from amber2_core.run_folder import read_results

    student = Ensemble(folder.name, (read_heads(next(iter(files.values()))),)).student
    scores = {
        (row["fold"], row["seed"]): row["js"]
        for row in read_results(folder)
        if row["system"] == system and row["split"] == "dev" and row["selected"] and row["head"] == student
    }
    known = {key: path for key, path in files.items() if isinstance(scores.get(key), float)}
    if not known:
        raise RunFolderError(f"{folder} has no dev scores of {system}: name a --fold and a --seed")
    return known[min(known, key=lambda key: (scores[key], key))]


def _downloaded(place: str) -> Path:
    """The folder of an id of the hub; nothing of it is run, and files of weights and text alone are fetched."""
    name, _, revision = place.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise RunFolderError(f"No heads at {place}: there is no such folder, run or file")
    import huggingface_hub

    settings: dict[str, Any] = {"revision": revision or None, "allow_patterns": ["*.safetensors", "*.json"]}
    try:
        return Path(huggingface_hub.snapshot_download(name, **settings))
    except Exception as problem:  # the hub's client raises its HTTP library's errors, which change with its versions
        reason = (str(problem) or type(problem).__name__).strip().splitlines()[0]
        raise ModelError(f"No heads at {place}: there is no such folder, and downloading failed ({reason})") from None


def _fingerprints(member: TrainedHeads) -> dict[str, str]:
    return {name: features["fingerprint"] for name, features in member.origin["features"].items()}


def _probs(member: TrainedHeads, rows: Mapping[str, Sequence[Row | None]]) -> dict[str, Probs]:
    """Head → (N, C) of one model."""
    import numpy as np
    import torch

    features, present = {}, {}
    for name, own in rows.items():
        mask = torch.tensor([row is not None for row in own])
        if mask.any():
            features[name] = _read(own, member.origin.get("reads", {}).get(name, "vector"))
            if not mask.all():
                present[name] = mask
    if not features:
        count, classes = len(next(iter(rows.values()))), len(member.emotions)
        return {head: np.full((count, classes), np.nan) for head in member.model.architecture.heads}
    probs = member.probs(features, present)
    return {head: x.double().numpy() for head, x in probs.items()}


def _read(rows: Sequence[Row | None], need: str | int) -> Tensor | tuple[Tensor, Tensor]:
    """What a model reads of the rows of a feature set, zeros where there is none (see `TrainedHeads.probs`)."""
    import numpy as np
    import torch
    from torch.nn.utils.rnn import pad_sequence

    held = next(row for row in rows if row is not None)
    if need == "frames":
        assert held.frames is not None, "a recipe with frames gives them"
        nothing = np.zeros_like(held.frames[:1])
        parts = [nothing if row is None or row.frames is None else row.frames for row in rows]
        lengths = torch.tensor([len(part) for part in parts])
        padded = pad_sequence([torch.from_numpy(np.array(part)) for part in parts], batch_first=True)  # (N, T, D)
        return padded, torch.arange(padded.shape[1]) < lengths[:, None]
    values = [np.zeros_like(held.values) if row is None else row.values for row in rows]
    x = torch.from_numpy(np.stack(values))  # (N, D) or (N, layers, D)
    if need == "layers" or x.ndim == 2:
        return x
    return x[:, need if isinstance(need, int) else -1]
