"""From a feature cache to what a sweep trains on: the kept utterances with their targets, their features on the disk."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from amber2_core.cache import FeatureCache, StoredArray, StoredFeatures, mapped_features, read_cache
from amber2_core.errors import CacheError
from amber2_core.tables import Texts, take, texts
from amber2_core.votes import LabelPolicy, label_distributions

CHECKED_ROWS = 4096  # looked at together for numbers that are not finite: bounds memory
CACHE_DIR_VARIABLE = "AMBER2_CACHE_DIR"
FOLD_COLUMNS = ("speaker", "session", "dialogue", "split", "language")
# an utterance without features of some modality is left out, or kept with those that it has
Missing = Literal["drop", "mask"]
MISSING: tuple[Missing, ...] = get_args(Missing)
# why an utterance was dropped
LACKING: Mapping[Missing, str] = {"drop": "features missing", "mask": "no features of any modality"}
Numbers = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one modality's systems read, of all N utterances of the cache: in memory, or where it lies on the disk."""

    name: str  # of the feature set
    fingerprint: str
    values: Numbers | StoredArray  # (N, D) or (N, layers, D), NaN rows where nothing was encoded
    recipe: Mapping[str, Any] = field(default_factory=dict)
    frames: Numbers | StoredArray | None = None  # (ΣT, D)
    offsets: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))  # (N + 1,)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """K utterances that have a target and features of every modality, or of some."""

    id: Texts  # (K,)
    speaker: Texts
    session: Texts
    split: Texts
    inputs: Mapping[str, Inputs]  # by modality
    rows: npt.NDArray[np.int64]  # (K,) ascending, which of the N utterances of the cache they are
    targets: npt.NDArray[np.float32]  # (K, C)
    emotions: tuple[str, ...]
    # utterances left out, and ratings ignored, by reason
    dropped: Mapping[str, int]
    ignored: Mapping[str, int]
    # what folds and reports may go by: the columns of the utterance table and the attributes, each (K,) as text
    columns: Mapping[str, Texts] = field(default_factory=dict)
    # modality → (K,) who has features of it, of the modalities that some lack; empty where all have all
    present: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.id)

    @property
    def missing(self) -> dict[str, int]:
        """How many utterances lack a modality, of the modalities that some lack."""
        return {name: int((~mask).sum()) for name, mask in self.present.items()}


def find_cache(path: Path | None, cache_dir: Path | None) -> Path:
    """The cache a user means: the one named, else the only one in the cache folder.

    The cache folder is `cache_dir`, else AMBER2_CACHE_DIR, else ./cache.

    Raises:
        CacheError: there is none, or more than one.
    """
    if path is not None:
        return path
    folder = cache_dir or Path(os.environ.get(CACHE_DIR_VARIABLE) or "cache")
    caches = sorted(folder.glob("*.h5")) if folder.is_dir() else []
    if len(caches) == 1:
        return caches[0]
    if not caches:
        raise CacheError(
            f"No feature cache in {folder}: make one with extract-features, or name one with --cache, "
            f"or its folder with --cache-dir or {CACHE_DIR_VARIABLE}"
        )
    raise CacheError(f"Several caches in {folder} ({', '.join(c.name for c in caches)}): name one with --cache")


def feature_keys(path: Path, names: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """(modality, name) of the feature sets to read: those named, else the only one of each modality.

    Raises:
        CacheError: as `read_feature_headers`, or a modality has none, or several and no name.
    """
    headers = read_feature_headers(path)
    keys = []
    for modality, name in names.items():
        held = [h.name for h in headers if h.modality == modality]
        chosen = [h for h in held if name in (None, h)]
        if len(chosen) != 1:
            problem = "no" if not chosen else "several"
            what = f"{modality} features" + (f" called {name!r}" if name else "")
            where = f"{path} holds {problem} {what} (it has {', '.join(held) or 'none'})"
            raise CacheError(
                f"{where}: {'encode them with extract-features' if not held else f'name one: --{modality}'}"
            )
        keys.append((modality, chosen[0]))
    return keys


def training_data(path: Path, cache: FeatureCache, policy: LabelPolicy, keys, *, missing: Missing = "drop") -> TrainingData:
def _kept(encoded: Mapping[str, npt.NDArray[np.bool_]], missing: Missing) -> npt.NDArray[np.bool_]:
    """Which labelled utterances have features enough, from who has features of each modality, all (labelled,)."""
    see = "see inspect-cache for the failures"
    if missing == "mask":
        for modality, mask in encoded.items():
            if not mask.any():
                raise CacheError(f"No labelled utterance has {modality} features: {see}")
    masks = np.stack(list(encoded.values()))  # (modalities, labelled)
    kept = np.asarray(masks.all(axis=0) if missing == "drop" else masks.any(axis=0))
    if not kept.any():
        raise CacheError(f"No labelled utterance has features of every modality: {see}")
    return kept


def _as_text(column: npt.NDArray[Any]) -> Texts:
    """Numbers as text, "" for NaN; text as it is."""
    if column.dtype == object:
        return column
    return texts(["" if np.isnan(value) else f"{value:g}" for value in column])


def _vectors(
    modality: str,
    values: npt.NDArray[np.floating],
    rows: npt.NDArray[np.intp],
    present: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[np.float32]:
    """The last layer of some rows, checked where they are present."""
    last_layer = values if values.ndim == 2 else values[:, -1]
    chosen = last_layer if len(rows) == len(values) else last_layer[rows]  # rows ascend
    vectors = np.ascontiguousarray(chosen, dtype=np.float32)
    for first in range(0, len(vectors), CHECKED_ROWS):
        some = slice(first, first + CHECKED_ROWS)
        if not np.isfinite(vectors[some] if present is None else vectors[some][present[some]]).all():
            raise CacheError(f"The {modality} features hold a number that is not finite: encode the corpus again")
    return vectors
