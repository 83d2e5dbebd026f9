"""Vectors made elsewhere as feature sets of a cache, matched with its utterances by id, never by order.

A file of arrays that also holds votes becomes a whole cache. Its arrays, each with N rows: `id`; `votes_audio`,
`votes_video`, `votes_audiovisual` or `votes` (N, C), how many raters chose each of the C names in `emotions` (or their
shares); and, as far as known, `speaker`, `session`, `dialogue`, `split`, `language`, `transcript`, `audio` (a path),
`start` and `duration` (s). Any other column of N numbers or texts is an attribute.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from amber2_core.cache import FeatureCache, Features, Frames, read_cache, write_cache
from amber2_core.errors import CacheError
from amber2_core.features import IMPORTED, check_fit, repeated_rows
from amber2_core.files import sha256_of
from amber2_core.shards import warn_of_part
from amber2_core.tables import Texts, is_storable_name, texts
from amber2_core.utterance import STIMULI, Corpus, LabelDefaults, Rating, Stimulus, Utterance
from amber2_data.arrays import Array, ArrayFile, open_arrays

from .inspection import without_content
from .previous import with_features
from .recordings import blank_cache, storable, versions_of
from .rows import work_folder

ID_NAMES = ("id", "ids")
EMOTIONS = "emotions"
VOTES: Mapping[str, Stimulus] = {"votes": "audiovisual", **{f"votes_{stimulus}": stimulus for stimulus in STIMULI}}
TEXT_COLUMNS = ("speaker", "session", "dialogue", "split", "language", "transcript", "audio")
NUMBER_COLUMNS = ("start", "duration")
MAX_VOTES = 10_000  # of one utterance for one emotion
SOFTWARE = ("amber2", "numpy", "h5py")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """One array that becomes a feature set."""

    modality: str
    name: str
    array: str
    # of an array (N, steps, D): over time, not over layers
    is_sequence: bool = False


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    output: Path
    utterances: int
    # modality/name → (rows with features, their size)
    features: Mapping[str, tuple[int, tuple[int, ...]]]
    # utterances of the cache without a vector, and ids of the file that the cache does not know
    missing: tuple[str, ...]
    extra: tuple[str, ...]


def import_features(
    path: Path,
    wanted: Sequence[Wanted],
    output: Path,
    *,
    cache: Path | None = None,
    corpus: Corpus | None = None,
    ids: str | None = None,
    origin: str = "",
    name: str = "",
    defaults: LabelDefaults | None = None,
    force: bool = False,
) -> Imported:
    """Import vectors into an existing cache, or make a cache of a corpus and the file, or of the file alone.

    Args:
        path: .npy, .npz, HDF5 or safetensors.
        wanted: the arrays that become feature sets.
        output: the cache to write; may be `cache` itself.
        cache: the cache whose utterances the vectors belong to.
        corpus: the corpus whose utterances they belong to, where there is no cache of it yet.
        ids: name of the array of ids, or a text file with one a line, or a .npy file of text.
        origin: what made the vectors, for the recipe.
        name: what the corpus of a whole cache is called; the file's name by default.
        defaults: the label policy of a whole cache; by default its emotions in their order, any vote.
        force: replace an existing `output`, or a feature set of the same name.

    Raises:
        CacheError: a file is missing, damaged or foreign, ids are not unique or match nothing, an array does not fit,
            or something would be overwritten.
    """
    for one in wanted:
        if not is_storable_name(one.name):
            raise CacheError(f"Bad feature set name {one.name!r}, expected one without '/'")
    if not wanted:
        raise CacheError("Nothing to import: name an array with --audio, --text or --video")
    file = open_arrays(path)
    found = _ids(file, ids)
    with work_folder(output):
        if cache is not None:
            before = read_cache(cache)
            warn_of_part(cache, before.summary)
        elif output.exists() and not force:
            raise CacheError(f"{output} exists: add to it with --cache, choose another --output, or --force")
        else:
            before = replace(
                blank_cache(corpus or _corpus_of_arrays(file, found, name or storable(path.stem), defaults)),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                versions=versions_of(SOFTWARE),
                summary={"imported": storable(path.name)},
            )
        source = _rows_of(found, before, path)
        made_by = {"file": storable(path.name), "sha256": sha256_of(path), "origin": storable(origin)}
        sets = [_features(file, one, before, source, ids=len(found), origin=made_by) for one in wanted]
        after = before
        for features in sets:
            lacking = f"no vector, or one that is not finite, in {storable(path.name)}"
            after = with_features(after, features, lacking=lacking, force=force)
        try:
            check_fit(after)
        except CacheError as problem:
            raise CacheError(f"{path} cannot be imported: {problem}") from None
        write_cache(output, after)
    for features in sets:
        if counts := repeated_rows(features.values):
            why = without_content(features.modality, counts, before.utterances.transcript)
            _log.warning("%s/%s: %s", features.modality, features.name, why)
    known = set(before.utterances.id)
    return Imported(
        output=output,
        utterances=len(known),
        features={f"{f.modality}/{f.name}": (int(f.encoded.sum()), f.values.shape[1:]) for f in sets},
        missing=tuple(id_ for id_, row in zip(before.utterances.id, source, strict=True) if row < 0),
        extra=tuple(id_ for id_ in found if id_ not in known),
    )


def _rows_of(ids: Texts, cache: FeatureCache, path: Path) -> npt.NDArray[np.intp]:
    """(N,) the row of the file for every utterance of a cache, -1 where it has none."""
    place = {id_: row for row, id_ in enumerate(ids)}
    source = np.array([place.get(id_, -1) for id_ in cache.utterances.id], dtype=np.intp)
    if not (source >= 0).any():
        raise CacheError(
            f"Not one of the {len(ids):,} ids of {path} ({ids[0]!r}, …) is in the corpus {cache.corpus} "
            f"({cache.utterances.id[0]!r}, …): ids must be spelled alike"
        )
    return source


def _ids(file: ArrayFile, name: str | None) -> Texts:
    """The id of every row."""
    if name is not None and name not in file.shapes:
        path = Path(name)
        if not path.is_file():
            raise CacheError(f"--ids {name} is neither a file nor one of {[*file.shapes]} in {file.path}")
        if path.suffix.lower() == ".npy":
            found, where = open_arrays(path).read(path.stem), str(path)
        else:
            from amber2_data.release import text_lines

            found, where = texts([line.strip() for _, line in text_lines(path) if line.strip()]), str(path)
    else:
        inside = name or next((one for one in ID_NAMES if one in file.shapes), None)
        if inside is None:
            raise CacheError(f"{file.path} holds no ids ({[*file.shapes]}): name their array or their file with --ids")
        found, where = file.read(inside), f"{inside} of {file.path}"
    if found.dtype != object:
        found = texts([str(value) for value in found.ravel().tolist()])
    id_, count = Counter(found).most_common(1)[0] if len(found) else ("", 0)
    if count != 1 or "" in found:
        what = f"the id {id_!r} stands there twice" if count > 1 else "an id is empty" if count else "no id"
        raise CacheError(f"Bad ids in {where}: {what}; each row needs one of its own")
    return found


def _features(
    file: ArrayFile,
    wanted: Wanted,
    cache: FeatureCache,
    source: npt.NDArray[np.intp],
    *,
    ids: int,
    origin: Mapping[str, str],
) -> Features:
    """The rows of an array in the order of the cache's utterances; NaN where there is none."""
    vectors, frames = _vectors(file, wanted, ids), None
    if wanted.is_sequence:
        rows, frames = _means_and_frames(vectors, source)
    else:
        dtype = np.float16 if vectors.dtype == np.float16 else np.float32
        rows = np.full((len(source), *vectors.shape[1:]), np.nan, dtype=dtype)
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and is none
            rows[source >= 0] = vectors[source[source >= 0]]
    finite = np.asarray(np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
    rows[~finite] = np.nan
    if not finite.any():
        raise CacheError(f"array {wanted.array!r} of {file.path} has no finite row")
    recipe = {"modality": wanted.modality, "imported": True, "array": storable(wanted.array), **origin}
    if frames is not None:
        recipe["sequence"] = "steps of zeros are padding, values are the mean of the others"
    return Features(wanted.modality, wanted.name, rows, _inputs(cache, wanted.modality, finite), recipe, frames)


def _vectors(file: ArrayFile, wanted: Wanted, ids: int) -> Array:
    """The array of a feature set; an error if it is not (ids, …) of numbers."""
    vectors = file.read(wanted.array)
    shapes = "(ids, steps, D)" if wanted.is_sequence else "(ids, D) or (ids, layers, D)"
    ndims = (3,) if wanted.is_sequence else (2, 3)
    if vectors.dtype.kind not in "fiu" or vectors.ndim not in ndims or len(vectors) != ids or 0 in vectors.shape:
        raise CacheError(
            f"array {wanted.array!r} of {file.path} is {vectors.shape} {vectors.dtype}, expected {shapes} numbers of "
            f"{ids:,} ids"
        )
    return vectors


def _means_and_frames(vectors: Array, source: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.float32], Frames]:
    """Mean (N, D) over the steps of each utterance, and the steps themselves; steps of zeros are padding.

    An utterance that has no step, or one that is not finite, has no frames, and NaN for its mean.
    """
    means = np.full((len(source), vectors.shape[2]), np.nan, dtype=np.float32)
    held: list[npt.NDArray[np.float32]] = []
    lengths = np.zeros(len(source) + 1, dtype=np.int64)
    for row, place in enumerate(source):
        with np.errstate(over="ignore"):
            steps = vectors[place].astype(np.float32) if place >= 0 else np.empty((0, vectors.shape[2]), np.float32)
        steps = steps[(steps != 0).any(axis=1)]
        if len(steps) and np.isfinite(steps).all():
            means[row] = steps.mean(axis=0, dtype=np.float64)
            held.append(steps)
            lengths[row + 1] = len(steps)
    values = np.concatenate(held) if held else np.empty((0, vectors.shape[2]), np.float32)
    return means, Frames(values, np.cumsum(lengths))


def _inputs(cache: FeatureCache, modality: str, held: npt.NDArray[np.bool_]) -> Texts:
    """What each row counts as encoded from: as other sets of the modality, so that extract-features sees a change."""
    others = [features.inputs for features in cache.features if features.modality == modality]
    digests = []
    for row, is_held in enumerate(held):
        known = next((inputs[row] for inputs in others if inputs[row]), "")
        if not known and modality == "text":
            known = hashlib.sha256(cache.utterances.transcript[row].encode()).hexdigest()
        digests.append((known or IMPORTED) if is_held else "")
    return texts(digests)


# --- whole caches ---


def holds_votes(file: ArrayFile) -> bool:
    """Whether a file may become a whole cache."""
    return EMOTIONS in file.shapes and any(array in file.shapes for array in VOTES)


def _corpus_of_arrays(file: ArrayFile, ids: Texts, name: str, defaults: LabelDefaults | None) -> Corpus:
    """The corpus that a file holds; by default it is labelled with its emotions in their order, any vote."""
    if not holds_votes(file):
        raise CacheError(
            f"{file.path} holds no votes ({[*file.shapes]}): add its vectors to a cache with --cache CACHE, "
            f"or to a corpus with --corpus NAME; a whole cache needs {EMOTIONS!r} and one of {[*VOTES]}"
        )
    emotions = tuple(str(emotion).strip() for emotion in file.read(EMOTIONS))
    votes = {VOTES[name]: _votes(file, name, (len(ids), len(emotions))) for name in VOTES if name in file.shapes}
    attributes = {column: values.tolist() for column, values in _columns(file, len(ids))}
    words = {column: attributes.pop(column, [""] * len(ids)) for column in TEXT_COLUMNS}
    spans = {column: attributes.pop(column, [math.nan] * len(ids)) for column in NUMBER_COLUMNS}
    known = {column: [None if math.isnan(value) else value for value in values] for column, values in spans.items()}
    utterances = tuple(
        Utterance(
            id=str(id_),
            audio=words["audio"][row] or None,
            ratings=tuple(_ratings(votes, emotions, row)),
            start=known["start"][row],
            duration=known["duration"][row],
            attributes={column: values[row] for column, values in attributes.items() if is_storable_name(column)},
            **{column: values[row] for column, values in words.items() if column != "audio"},
        )
        for row, id_ in enumerate(ids)
    )
    folds: Literal["session", "speaker", "stratified"] = "stratified"
    if all(words["session"]):
        folds = "session"
    elif all(words["speaker"]):
        folds = "speaker"
    stimulus: Stimulus = "audiovisual" if "audiovisual" in votes else next(iter(votes))
    defaults = defaults or LabelDefaults(emotions=emotions, stimulus=stimulus, keep="any-vote", folds=folds)
    return Corpus(name, file.path.parent, utterances, defaults)


def _ratings(votes: Mapping[Stimulus, Array], emotions: Sequence[str], row: int) -> Iterator[Rating]:
    """One for each vote of an anonymous rater on an utterance; where votes are no whole numbers, one for each share."""
    for stimulus, counts in votes.items():
        ticked = [(emotion, float(count)) for emotion, count in zip(emotions, counts[row], strict=True) if count]
        if (counts == np.floor(counts)).all():
            people = [emotion for emotion, count in ticked for _ in range(int(count))]
            for number, emotion in enumerate(people, start=1):
                yield Rating(f"anonymous{number}", emotion, stimulus=stimulus)
        else:
            for emotion, share in ticked:
                yield Rating("distribution", emotion, stimulus=stimulus, weight=share)


def _columns(file: ArrayFile, count: int) -> Iterator[tuple[str, Array]]:
    """Every array of one value per utterance, as columns of the cache."""
    for name, shape in file.shapes.items():
        if name in (*ID_NAMES, EMOTIONS) or shape != (count,):
            continue
        values = file.read(name)
        if name in TEXT_COLUMNS and values.dtype != object:
            values = texts([str(value) for value in values.tolist()])
        if name in NUMBER_COLUMNS and values.dtype.kind not in "fiu":
            raise CacheError(f"array {name!r} of {file.path} holds no numbers")
        if values.dtype.kind in "fiub":
            yield name, values.astype(np.float64)
        elif values.dtype == object:
            yield name, values


def _votes(file: ArrayFile, name: str, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    values = file.read(name)
    if values.shape != shape or values.dtype.kind not in "fiu":
        raise CacheError(f"array {name!r} of {file.path} is {values.shape} {values.dtype}, expected {shape} of votes")
    votes = values.astype(np.float64)
    if not (np.isfinite(votes).all() and (votes >= 0).all() and (votes <= MAX_VOTES).all()):
        raise CacheError(f"array {name!r} of {file.path} holds votes below 0, above {MAX_VOTES:,} or not finite")
    return votes
