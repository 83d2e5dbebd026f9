"""The heads that a user means, wherever they are, and what they say of encoders' rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amber2_core.errors import SettingError
from amber2_core.features import canonical_json

from .export import choose
from .folder import HeadsFolder, facts_of, read_folder
from .members import read_member

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from amber2_extract.rows import Row

    Probs = Mapping[str, npt.NDArray[np.float64]]  # head → (members, N, C)


def find_heads(
    place: str,
    *,
    system: str | None = None,
    fold: int | None = None,
    seed: int | None = None,
    ensemble: bool = False,
) -> HeadsFolder:
    """Heads from what `export-heads` wrote, a run folder, one file of its heads/, or an id of the hub.

    Args:
        place: of them.
        system, fold, seed, ensemble: of a run; as of `amber2_predict.export.choose`.

    Raises:
        RunFolderError: there are no heads, or they are not as they should be.
        SettingError: a run has nothing of that system, fold or seed; or something is chosen of what is no run.
    """
    path = Path(place).expanduser()
    if (path / "settings.json").is_file():
        return choose(path, system=system, fold=fold, seed=seed, ensemble=ensemble).heads
    if ensemble or not (system is fold is seed is None):
        raise SettingError(f"{place} is no run folder, of which a system, a fold, a seed or an ensemble is chosen")
    if path.is_file():
        member = read_member(path, within=path.parent)
        return HeadsFolder((member,), facts_of(member))
    return read_folder(path if path.is_dir() else place)


def inputs_of(heads: HeadsFolder) -> tuple[str, ...]:
    """The feature sets that are read: ``audio`` and ``text``, or ``audio:NAME`` where there are several of one."""
    return heads.members[0].model.architecture.modalities


def has_met(heads: HeadsFolder, lacking: Sequence[str]) -> bool:
    """Whether every member met utterances without these feature sets in training."""
    return all(member.origin.get("missing", {}).get(name) for member in heads.members for name in lacking)


def digest_of(heads: HeadsFolder) -> str:
    """sha256 of all that predictions depend on: weights, statistics, and what is told beside them."""
    found = hashlib.sha256()
    for member in heads.members:
        found.update(canonical_json(dict(member.origin)).encode())
        parts = dict(member.model.parameters)
        for name, (mean, sd) in member.standardisation.items():
            parts |= {f"{name}.mean": mean, f"{name}.sd": sd}
        for name in sorted(parts):
            found.update(name.encode() + parts[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def probs_of(heads: HeadsFolder, rows: Mapping[str, Sequence[Row | None]]) -> Probs:
    """What every member says of N utterances, NaN where a head predicts nothing.

    Args:
        heads: any.
        rows: feature set → what its encoder gives, None where an utterance has nothing to encode; some of any.
    """
    import torch

    features, present = {}, {}
    for name, own in rows.items():
        mask = torch.tensor([row is not None for row in own])
        if mask.any():
            features[name] = _read(own, heads.reads[name])
            if not mask.all():
                present[name] = mask
    return {head: x.double().numpy() for head, x in heads.each(features, present).items()}


def _read(rows: Sequence[Row | None], need: str | int) -> Tensor | tuple[Tensor, Tensor]:
    """What is read of the rows of a feature set, zeros where there is none (see `TrainedHeads.probs`)."""
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
