"""What a sweep trains on: kept utterances of a feature cache with their targets, their features left on the disk."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from amber2_core.cache import (
    FeatureCache,
    Features,
    MappedFeatures,
    mapped_features,
    read_cache,
    read_feature_headers,
)
from amber2_core.errors import CacheError, LabelError, SettingError
from amber2_core.features import Side, blocks
from amber2_core.files import cache_folder
from amber2_core.label_spaces import policy_with
from amber2_core.shards import is_part, warn_of_part
from amber2_core.tables import Texts, take, texts
from amber2_core.votes import LabelPolicy, Voters, all_ticks, counted_votes, label_distributions

FOLD_COLUMNS = ("speaker", "session", "dialogue", "split", "language")
# an utterance without features of some modality is left out, or kept with those that it has
Missing = Literal["drop", "mask"]
MISSING: tuple[Missing, ...] = get_args(Missing)
RowNumbers = npt.NDArray[np.intp]
# what there is to do where a cache lacks what is read beside the modalities, and no option names
_BESIDE = {
    "prediction": "bring them with import-predictions",
    "sentiment": "encode it with extract-features --sentiment-model",
}
# why an utterance was dropped
LACKING: Mapping[Missing, str] = {"drop": "features missing", "mask": "no features of any modality"}
UNRATED = "no synthetic vote, out of train alone"
ADD_THEM = "add some with import-ratings, or train with --targets human"


@dataclass(frozen=True, eq=False)
class TrainingData:
    """K utterances that have a target and features of every modality, or of some."""

    id: Texts  # (K,)
    speaker: Texts
    session: Texts
    split: Texts
    # by modality, `audio:<set>` where there are several sets of one, of all N utterances of the cache: in memory, or
    # where they lie on the disk
    inputs: Mapping[str, Features | MappedFeatures]
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
    # of the features
    checksum: str = ""
    # modalities whose vectors are all the same
    constant: tuple[str, ...] = ()
    # (K, C) what models that stand in for raters say, rows of NaN where none does; None where no utterance has any
    synthetic: npt.NDArray[np.float32] | None = None
    # (K, C) what train learns where that is not `targets`, rows of NaN where there is nothing to learn; dev and test
    # are scored by `targets` in any case
    learnt_targets: npt.NDArray[np.float32] | None = None
    # (K, C) the votes that what train learns is made of
    votes: npt.NDArray[np.float32] | None = None
    # key of a `Side` → what is read beside the modalities, of all N utterances
    sides: Mapping[str, Features | MappedFeatures] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.id)

    def presence(self, train: RowNumbers) -> npt.NDArray[np.bool_] | None:
        """(heads, K) which utterances have which head in a fold of these train rows, the fusion of several last.

        None where nothing is missing. A modality that no train row has is missing from the whole fold, since nothing
        could be learnt of it; who has no other has no fusion either.
        """
        if not self.present:
            return None
        every = np.ones(len(self), dtype=bool)
        masks = np.stack([self.present.get(name, every) for name in self.inputs])  # (modalities, K)
        masks &= masks[:, train].any(axis=1, keepdims=True)
        if len(masks) == 1:
            return masks
        return np.concatenate([masks, masks.any(axis=0, keepdims=True)])

    def learnable(self, fold: Fold) -> Fold:
        """A fold without the train rows of which there is nothing to learn.

        Raises:
            LabelError: none is left.
        """
        if self.learnt_targets is None:
            return fold
        train = fold.train[~np.isnan(self.learnt_targets[fold.train, 0])]
        if not len(train):
            raise LabelError(f"Fold {fold.number}: no utterance of train has synthetic votes: {ADD_THEM}")
        return replace(fold, train=train)

    @property
    def missing(self) -> dict[str, int]:
        """How many utterances lack a modality, of the modalities that some lack."""
        return {name: int((~mask).sum()) for name, mask in self.present.items()}


def find_cache(path: Path | None, cache_dir: Path | None) -> Path:
    """The cache a user means: the one named, else the only one in the cache folder that is no shard.

    The cache folder is `cache_dir`, else AMBER2_CACHE_DIR, else ./cache.

    Raises:
        CacheError: there is none, or more than one.
    """
    if path is not None:
        return path
    folder = cache_folder(cache_dir)
    found = sorted(folder.glob("*.h5")) if folder.is_dir() else []
    caches = [path for path in found if not is_part(path)]
    if len(caches) == 1:
        return caches[0]
    if found and not caches:
        raise CacheError(f"No feature cache in {folder} but shards, as {found[0].name}: merge-shards makes them one")
    if not caches:
        raise CacheError(
            f"No feature cache in {folder}: make one with extract-features, or name one with --cache, "
            f"or its folder with --cache-dir or AMBER2_CACHE_DIR"
        )
    raise CacheError(f"Several caches in {folder} ({', '.join(c.name for c in caches)}): name one with --cache")


def feature_keys(path: Path, names: Mapping[str, str | None]) -> dict[str, tuple[str, str]]:
    """Modality → (modality, name) of the feature set to read: the one named, else the only one that there is.

    Of several named, "a,b", each is a modality of its own here, `audio:a` and `audio:b`.

    Raises:
        CacheError: as `read_feature_headers`, or a modality has several and no name, or lacks the one that is named; or
            there is none at all.
    """
    held_of: dict[str, list[str]] = {modality: [] for modality in names}
    for header in read_feature_headers(path):
        held_of.setdefault(header.modality, []).append(header.name)
    if any(held_of[modality] for modality in names):
        names = {modality: name for modality, name in names.items() if name is not None or held_of[modality]}
    keys = {}
    for modality, named in names.items():
        wanted = [None] if named is None else [name.strip() for name in named.split(",")]
        for name in wanted:
            key = modality if len(wanted) == 1 else f"{modality}:{name}"
            if key in keys:
                raise CacheError(f"Bad {modality} {named!r}: a feature set stands twice")
            keys[key] = (modality, _named(path, modality, name, held_of[modality]))
    return keys


def _named(path: Path, modality: str, name: str | None, held: Sequence[str]) -> str:
    """The feature set of that name among those of a modality, or the only one."""
    chosen = [h for h in held if name in (None, h)]
    if len(chosen) == 1:
        return chosen[0]
    problem = "no" if not chosen else "several"
    what = f"{modality} features" + (f" called {name!r}" if name else "")
    where = f"{path} holds {problem} {what} (it has {', '.join(held) or 'none'})"
    if modality in _BESIDE:
        raise CacheError(f"{where}: {_BESIDE[modality] if not chosen else 'there may be one'}")
    raise CacheError(f"{where}: {'encode them with extract-features' if not held else f'name one: --{modality}'}")


def side_keys(path: Path, sides: Collection[Side]) -> dict[str, tuple[str, str]]:
    """Key → (modality, name) of what systems read beside the modalities; what is not needed may be missing.

    Raises:
        CacheError: as `feature_keys`.
    """
    held = {(header.modality, header.name) for header in read_feature_headers(path)}
    names = {side: sorted(name for modality, name in held if modality == side.modality) for side in sides}
    return {
        side.key: (side.modality, _named(path, side.modality, side.name, own))
        for side, own in names.items()
        if side.needed or side.name in own or (side.name is None and len(own) == 1)
    }


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of the training data in the three parts of one fold; fold k is tested once, by its own models.

    SettingError: an utterance stands in two parts.
    """

    number: int  # 1, 2, …
    train: RowNumbers
    dev: RowNumbers
    test: RowNumbers
    # speakers who stand in more than one part; 0 unless the protocol's name says otherwise
    shared_speakers: int

    def __post_init__(self) -> None:
        rows = np.concatenate((self.train, self.dev, self.test))
        if len(np.unique(rows)) < len(rows):
            raise SettingError(f"Fold {self.number}: an utterance stands in two of train, dev and test")


@dataclass(frozen=True, eq=False)
class Material:
    """What was read of a cache to train on."""

    path: Path
    cache: FeatureCache  # without its features, which `data` knows the places of
    policy: LabelPolicy
    data: TrainingData


def read_material(
    path: Path,
    names: Mapping[str, str | None],
    changes: Mapping[str, Any],
    *,
    missing: Missing = "drop",
    voters: Voters = "human",
    sides: Collection[Side] = (),
) -> Material:
    """Read a cache: the tables as they are, the features checked and left where they lie.

    Args:
        names: modality → name of the feature set, None: the only one, if the cache has features of the modality.
        changes: fields of the label policy that replace the corpus's own.
        missing: utterances without features of some modality.
        voters: whose votes train learns from.
        sides: what systems read beside the modalities.

    Raises:
        CacheError: as `amber2_core.cache.read_cache`, `feature_keys`, `side_keys` and `training_data`.
        LabelError: as `amber2_core.label_spaces.policy_with` and `training_data`.
    """
    keys, beside = feature_keys(path, names), side_keys(path, sides)
    cache = read_cache(path, only=())
    warn_of_part(path, cache.summary)
    policy = policy_with(cache.defaults, changes)
    held = {(some.modality, some.name): some for some in mapped_features(path, only=[*keys.values(), *beside.values()])}
    inputs, read = ({key: held[place] for key, place in places.items()} for places in (keys, beside))
    data = training_data(cache, inputs, policy, missing=missing, voters=voters, sides=read)
    return Material(path, cache, policy, data)


def training_data(
    cache: FeatureCache,
    inputs: Mapping[str, Features | MappedFeatures],
    policy: LabelPolicy,
    *,
    missing: Missing = "drop",
    voters: Voters = "human",
    sides: Mapping[str, Features | MappedFeatures] | None = None,
) -> TrainingData:
    """Apply a label policy to a cache and keep what has features of every modality.

    With `missing` "mask", keep what has features of any, and tell in `present` which. `voters` are those that train
    learns from; what is kept, and the targets of dev and test, people alone decide.

    Raises:
        LabelError: as `label_distributions`, or nothing that is kept has the synthetic votes that train is to learn.
        CacheError: nothing has features of every modality, or, with "mask", nothing has features of one of them; or a
            feature is not finite.
    """
    count = len(cache.utterances)
    labelled = label_distributions(cache.ratings, cache.attributes, count, policy)
    encoded = {modality: some.encoded[labelled.rows] for modality, some in inputs.items()}
    kept = _kept(encoded, missing)
    rows = labelled.rows[kept]
    table = take(cache.utterances, rows)
    ticks = all_ticks(cache.ratings, cache.attributes, count, policy)
    said, voted = (counted_votes(ticks, count, policy, who)[rows] for who in ("synthetic", voters))
    synthetic = _shares(said)
    rated = ~np.isnan(synthetic[:, 0])
    if voters != "human" and not rated.any():
        raise LabelError(f"No utterance has votes of synthetic raters on the {policy.stimulus} stimulus: {ADD_THEM}")
    checked = {modality: _checked(some, rows) for modality, some in inputs.items()}
    beside = [_checked(some, rows)[0] for some in (sides or {}).values()]
    return TrainingData(
        id=table.id,
        speaker=table.speaker,
        session=table.session,
        split=table.split,
        inputs=inputs,
        rows=rows.astype(np.int64),
        targets=labelled.soft_labels[kept].astype(np.float32),
        emotions=labelled.emotions,
        dropped={
            **labelled.dropped,
            LACKING[missing]: int((~kept).sum()),
            **({UNRATED: int((~rated).sum())} if voters == "synthetic" else {}),
        },
        ignored=labelled.ignored,
        columns={
            **{name: getattr(table, name) for name in FOLD_COLUMNS},
            **{name: _as_text(column[rows]) for name, column in cache.attributes.items() if name not in FOLD_COLUMNS},
        },
        present={modality: mask[kept] for modality, mask in encoded.items() if not mask[kept].all()},
        checksum="".join([*(checksum for checksum, _ in checked.values()), *beside]),
        constant=tuple(modality for modality, (_, is_constant) in checked.items() if is_constant),
        synthetic=synthetic if rated.any() else None,
        learnt_targets=None if voters == "human" else _shares(voted),
        votes=(labelled.votes[kept] if voters == "human" else voted).astype(np.float32),
        sides=sides or {},
    )


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


def _shares(votes: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Votes (K, C) as distributions, rows of NaN where there are none."""
    total = votes.sum(axis=1, keepdims=True)
    shares = np.divide(votes, total, out=np.full(votes.shape, np.nan), where=total > 0)
    return np.asarray(shares, dtype=np.float32)


def _as_text(column: npt.NDArray[Any]) -> Texts:
    """Numbers as text, "" for NaN; text as it is."""
    if column.dtype == object:
        return column
    return texts(["" if np.isnan(value) else f"{value:g}" for value in column])


def _checked(features: Features | MappedFeatures, kept: RowNumbers) -> tuple[str, bool]:
    """A checksum of a feature set's numbers, and whether several of the kept utterances have it, and all the same.

    Numbers are finite wherever something was encoded.

    Raises:
        CacheError: one is not.
    """
    values, encoded, checksum = features.values, features.encoded, 0
    looked_at = np.zeros(len(encoded), dtype=bool)
    looked_at[kept] = encoded[kept]
    is_constant, first = looked_at.sum() > 1, None
    for rows in blocks(values):
        block = np.ascontiguousarray(values[rows])
        checksum = zlib.crc32(block.reshape(-1).view(np.uint8).data, checksum)
        if not np.isfinite(block[encoded[rows]]).all():
            raise CacheError(
                f"The {features.modality} features hold a number that is not finite: encode the corpus again"
            )
        if is_constant and len(own := block[looked_at[rows]]):
            first = own[0] if first is None else first
            is_constant = (own == first).all()
    return f"{checksum:08x}", bool(is_constant)
