"""A sweep that is ready to be trained: what was asked for, checked, with its data read and divided, and its records."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import os
import zlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core import engine
from amber2_core.cache import Features, MappedFeatures, read_feature_headers
from amber2_core.errors import Amber2Error, CacheError, SettingError
from amber2_core.features import IMPORTED, Side
from amber2_core.metrics import metrics_of_kinds
from amber2_core.ray_engine import Cluster, Place
from amber2_core.run_folder import SYNTHETIC_VOTES, version_of
from amber2_core.shards import Shard
from amber2_core.tables import RatingTable, take, texts
from amber2_core.votes import LabelPolicy, all_ticks

from . import PRELOADED, tasks
from .folds import heard_before, make_folds
from .grid import Setting, kinds_of
from .options import TrainOptions, check_modalities
from .selection import check_deciders
from .systems.system import ALL, OURS, Need
from .tasks import Task
from .training_data import Fold, Material, TrainingData, read_material, side_keys
from .worker import Sweep, look_at


@dataclass(frozen=True, eq=False)
class Request:
    """A sweep that is ready to be trained: checked, with its data read and divided."""

    options: TrainOptions
    settings: tuple[Setting, ...]
    device: str
    has_bfloat16: bool  # whether the device multiplies it, and not only rounds to it
    material: Material
    protocol: str
    folds: tuple[Fold, ...]
    # of all systems that were asked for, which the cache cannot feed, and why
    left_out: Mapping[str, str] = field(default_factory=dict)
    # a cluster, and where on it there is room for workers
    machines: Cluster | None = None
    places: Sequence[Place] = ()

    @property
    def shapes(self) -> list[Hashable]:
        """What is equal for settings that are fitted together, of every setting."""
        return [setting.shape for setting in self.settings]

    @property
    def tasks(self) -> list[tasks.Task]:
        folds = [fold.number for fold in self.folds]
        return tasks.tasks_of(self.shapes, self.options.grid.seeds, folds, self.device)

    def part(self, shard: Shard) -> list[Task]:
        """The tasks of a shard, fold by fold: of each kind of task, and of each fold, about as many as other shards."""
        order = sorted(self.tasks, key=lambda task: (task.number, task.fold))
        return sorted(shard.of(order), key=lambda task: (task.fold, task.number))

    def sweep(self, folder: Path) -> Sweep:
        """What workers are told; they keep finished tasks in `folder`."""
        material, is_afar = self.material, self.machines is not None
        origin = {
            "emotions": list(material.data.emotions),
            "policy": json.loads(json.dumps(asdict(material.policy))),
            "features": {m: feature_record(some) for m, some in material.data.inputs.items()},
            "targets": self.options.targets,
        }
        settings = tuple((setting.reference, setting.row()) for setting in self.settings)
        names = tuple(setting.name for setting in self.settings)
        folds = {fold.number: fold for fold in self.folds}
        standardise = self.options.inputs == "standardized"
        # digests of what was encoded are large, and no worker's business
        inputs, sides = (
            {name: _carried(some, is_afar=is_afar) for name, some in sets.items()}
            for sets in (material.data.inputs, material.data.sides)
        )
        return Sweep(
            replace(material.data, inputs=inputs, sides=sides, columns={}),
            folds,
            settings,
            names,
            self.options.fit,
            self.device,
            standardise,
            self.options.score_all,
            origin,
            folder,
        )

    @property
    def reads(self) -> dict[str, str]:
        """What of each feature set its systems read, in words, by modality."""
        needs = {
            modality: {setting.system.reads(setting.values, modality) for setting in self.settings}
            for modality in self.material.data.inputs
        }
        return {modality: _read(some, needs[modality]) for modality, some in self.material.data.inputs.items()}

    @property
    def heard_before(self) -> int:
        """How many utterances are tested on though train or dev of their fold holds the same stretch of a recording."""
        table, rows = self.material.cache.utterances, self.material.data.rows
        stretches = zip(table.audio_sha256[rows], table.start[rows], strict=True)
        return heard_before(texts([sha256 and f"{sha256} {start:g}" for sha256, start in stretches]), self.folds)

    @property
    def workers(self) -> Sequence[Any]:
        """The threads of each worker: one worker for each core, as far as there are tasks; one for a GPU.

        On a cluster, where each is besides.

        How many tasks were finished earlier plays no part: the threads of a task are in its last digits.
        """
        if self.machines is not None:
            return [(place, place.threads) for place in self.places]
        if self.device != "cpu":
            return [cores()]
        count = min(cores(), len(self.tasks))
        return [max(1, cores() // count)] * count


def prepared(
    cache_path: Path, options: TrainOptions, *, machines: Cluster | None = None, trained_on: str | None = None
) -> Request:
    """Check what is asked for, read its data and divide it, to be trained here or on the machines of a cluster.

    Args:
        trained_on: the device that all is trained on already, which need not be here; None: the one that is asked for.

    Raises:
        Amber2Error: anything of it cannot be had.
    """
    if trained_on is None:
        engine.prepare(*PRELOADED)
    left_out: dict[str, str] = {}
    if ALL in options.grid.systems:
        options, left_out = _of_all_systems(cache_path, options)
    settings = options.settings()
    places: list[Place] = []
    if trained_on is not None:
        device, has_bfloat16 = trained_on, True
    elif machines is None:
        device, has_bfloat16 = engine.call(look_at, options.device)
    else:
        places = machines.places(options.device, threads=1)
        device, has_bfloat16 = engine.call(look_at, places[0].device, worker=(places[0], None), engine=machines)
    if options.precision == "tf32" and device == "cpu":
        raise SettingError("Bad precision 'tf32' on a CPU: only GPUs have it; use --precision fp32 or --device cuda")
    sides = {Side(*side) for setting in settings for side in setting.system.sides(setting.values)}
    material = _material(cache_path, options, sides)
    check_modalities(settings, tuple(material.data.inputs))
    _check_keeps(material.policy, settings)
    protocol = options.folds or material.cache.defaults.folds
    folds = tuple(map(material.data.learnable, make_folds(protocol, material.data)))
    check_deciders(material.data, folds, settings)
    _check_reads(material.data, settings)
    return Request(options, settings, device, has_bfloat16, material, protocol, folds, left_out, machines, places)


def _carried(some: Features | MappedFeatures, *, is_afar: bool) -> Features | MappedFeatures:
    """A feature set as workers are told of it: of other machines, which may not see the file, with its values."""
    some = replace(some, inputs=some.inputs[:0])
    if not is_afar:
        return some
    frames = some.frames
    if frames is not None:
        frames = replace(frames, values=np.asarray(frames.values[:]))  # type: ignore[arg-type]
    return replace(some, values=np.asarray(some.values[:]), frames=frames)  # type: ignore[arg-type]


def _material(cache_path: Path, options: TrainOptions, sides: Collection[Side] = ()) -> Material:
    return read_material(
        cache_path, options.modalities, options.policy, missing=options.missing, voters=options.targets, sides=sides
    )


def _of_all_systems(cache_path: Path, options: TrainOptions) -> tuple[TrainOptions, dict[str, str]]:
    """The same with every system that the cache can feed, and what was imported; of the others, why not.

    Raises:
        SettingError: none can be fed.
    """
    grid, fed, left_out = options.grid, list[str](), dict[str, str]()
    headers = read_feature_headers(cache_path)
    imported = [f"imported:{header.name}" for header in headers if header.modality == "prediction"]
    named = [name for name in grid.systems if name != ALL]
    whole = _material(cache_path, options)
    for name in dict.fromkeys([*named, *OURS, *imported]):
        try:
            settings = replace(options, grid=replace(grid, systems=(name,), variants=())).settings()
            check_modalities(settings, tuple(whole.data.inputs))
            _check_keeps(whole.policy, settings)
            _check_reads(whole.data, settings)
            side_keys(cache_path, {Side(*side) for one in settings for side in one.system.sides(one.values)})
            if (other := settings[0].system.same_as) in fed and name not in named:
                raise SettingError(f"its models are those of {other}, whose row says it all")
        except Amber2Error as problem:
            if name in named:
                raise
            left_out[name] = str(problem)
        else:
            fed.append(name)
    if not fed:
        raise SettingError(f"No system can be trained from this cache: {'; '.join(left_out.values())}")
    return replace(options, grid=replace(grid, systems=tuple(fed))), left_out


def identity(request: Request) -> dict[str, Any]:
    """All that a sweep's results depend on, by the names that the user knows, as JSON values."""
    settings, options, data = request.settings, request.options, request.material.data
    rows = [setting.row() for setting in settings]
    columns = options.grid.columns
    grid = {axis.replace("_", "-"): list(dict.fromkeys(r[axis] for r in rows if axis in r)) for axis in columns}
    whole: dict[str, Any] = {
        "system": list(dict.fromkeys(setting.name for setting in settings)),
        **grid,
        "file of a system": {path: _checksum(Path(path).read_bytes()) for path in _files(settings)},
        "settings in all": _checksum(repr([(setting.name, setting.row()) for setting in settings]).encode()),
        **options.named(request.device),
        "folds": request.protocol,
        "policy": asdict(request.material.policy),
        "features": {m: [some.name, some.fingerprint] for m, some in [*data.inputs.items(), *data.sides.items()]},
        "cache's contents": _contents(data, request.folds),
        # how finished tasks are numbered
        "runs in a task": tasks.RUNS[request.device.partition(":")[0]],
        "version of torch": importlib.metadata.version("torch"),
    }
    read_back: dict[str, Any] = json.loads(json.dumps(whole))
    return read_back


def _files(settings: Sequence[Setting]) -> list[str]:
    """The users' own files that systems come from."""
    paths = [setting.reference.rpartition(":")[0] for setting in settings]
    return list(dict.fromkeys(path for path in paths if path.endswith(".py")))


def _contents(data: TrainingData, folds: Sequence[Fold]) -> str:
    """A checksum of ids, folds, targets, what is learnt instead of them, and features."""
    checksum = _checksum("\0".join(data.id).encode()) + data.checksum
    targets = [data.targets] if data.learnt_targets is None else [data.targets, data.learnt_targets]
    for array in [*targets, *(part for fold in folds for part in (fold.train, fold.dev, fold.test))]:
        checksum += _checksum(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return _checksum(checksum.encode())


def _checksum(content: bytes | memoryview) -> str:
    return f"{zlib.crc32(content):08x}"


def cores() -> int:
    """How many cores there are for this process, or as many as OMP_NUM_THREADS says."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def feature_record(features: Features | MappedFeatures) -> dict[str, Any]:
    """What a run folder and its heads tell of a feature set that they expect."""
    return {"name": features.name, "fingerprint": features.fingerprint, "recipe": features.recipe}


def settings_record(request: Request) -> dict[str, Any]:
    """settings.json (see `amber2_core.run_folder`)."""
    material, data, folds, options = request.material, request.material.data, request.folds, request.options
    cache, digests, kinds = material.cache, _digests(material), kinds_of(request.settings)
    return {
        "format_version": version_of(kinds),
        "command": _whole_command(options.command, material.path),
        "started_in": os.getcwd(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "corpus": cache.corpus,
        "corpus_version": cache.corpus_version,
        "cache": str(material.path),
        "features": {m: feature_record(some) for m, some in data.inputs.items()},
        "reads": request.reads,
        "policy": json.loads(json.dumps(asdict(material.policy))),
        "emotions": list(data.emotions),
        "utterances": {
            "in the cache": len(cache.utterances),
            "kept": len(data),
            "dropped": dict(data.dropped),
            "missing": data.missing,
        },
        "ratings": {"in the cache": len(cache.ratings), "ignored": dict(data.ignored)},
        "folds": {
            "protocol": request.protocol,
            "shared_speakers": max(fold.shared_speakers for fold in folds),
            "sizes": {str(f.number): {"train": len(f.train), "dev": len(f.dev), "test": len(f.test)} for f in folds},
        },
        "heard_before": request.heard_before,
        "versions": {name: importlib.metadata.version(name) for name in ("amber2", "numpy", "torch")},
        "digest": _sha256(itertools.chain.from_iterable(digests.items())),
        "digests": digests,
        "systems": list(dict.fromkeys(setting.name for setting in request.settings)),
        "remarks": _remarks(request.settings, data.inputs.values()),
        "axes": options.grid.columns,
        "metrics": metrics_of_kinds(kinds.values()),
        "kinds": kinds,
        "grid": {axis: list(values) for axis, values in options.grid.axes.items()},
        **options.named(request.device),
        "device": request.device,
    }


def _remarks(settings: Sequence[Setting], inputs: Iterable[Features | MappedFeatures]) -> dict[str, list[str]]:
    """Of each system, where it is another thing than its paper describes, and what its features stand in for."""
    towers = [
        f"heads on the frozen audio tower of {some.recipe.get('model')} ({tower}) stand in for tuning that model"
        for some in inputs
        if (tower := some.recipe.get("tower"))
    ]
    remarks: dict[str, list[str]] = {}
    for setting in settings:
        known = remarks.setdefault(setting.name, [*towers])
        known += [line for line in setting.system.remarks(setting.values) if line not in known]
    return {name: lines for name, lines in remarks.items() if lines}


def _whole_command(words: Sequence[str], cache: Path) -> list[str]:
    """The words that were typed, with the cache where it was found without being named; none from Python."""
    named = any(word.partition("=")[0] == "--cache" for word in words)
    return [*words, *([] if named or not words else ["--cache", str(cache)])]


def _digests(material: Material) -> dict[str, str]:
    """sha256 over what the numbers rest on, of what is kept: ids, what each modality was encoded from, raw votes.

    People's votes and, where there are any, those of synthetic raters apart.

    How votes became targets is the policy's, which stands beside it.
    """
    data = material.data
    found = {"ids": _sha256(data.id)}
    found |= {modality: _sha256(_inputs(some, data.rows)) for modality, some in data.inputs.items()}
    cache = material.cache
    ratings = all_ticks(cache.ratings, cache.attributes, len(cache.utterances), material.policy)
    is_synthetic = ratings.source == "synthetic"
    for name, own in (("votes", ~is_synthetic), (SYNTHETIC_VOTES, is_synthetic)):
        if own.any() or name == "votes":
            found[name] = _sha256(_votes(take(ratings, np.flatnonzero(own)), data.rows))
    return found


def _inputs(features: Features | MappedFeatures, rows: npt.NDArray[np.int64]) -> Iterator[str]:
    """What each row was encoded from; of vectors that were made elsewhere, the vector itself."""
    values: Any = None
    for row in rows:
        if features.inputs[row] == IMPORTED:
            if values is None:
                values = features.values if isinstance(features.values, np.ndarray) else features.values.open()
            yield hashlib.sha256(values[row].tobytes()).hexdigest()
        else:
            yield features.inputs[row]


def _votes(ratings: RatingTable, rows: npt.NDArray[np.int64]) -> Iterator[str]:
    """Every tick that the utterances of these rows were given, whether it counts or not."""
    own = np.flatnonzero(np.isin(ratings.utterance, rows))
    places = np.searchsorted(rows, ratings.utterance[own])
    columns = (ratings.rater, ratings.source, ratings.stimulus, ratings.label, ratings.weight.astype(str))
    for words in zip(places.astype(str), *(column[own] for column in columns), strict=True):
        yield "\t".join(words)


def _sha256(words: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def utterance_rows(request: Request) -> list[dict[str, Any]]:
    """One row per test utterance, in the order of predictions.npz: who spoke, and what people group by."""
    data = request.material.data
    return [
        {"id": data.id[k], "fold": fold.number, **{name: column[k] for name, column in data.columns.items()}}
        for fold in request.folds
        for k in fold.test
    ]


def _read(features: Features | MappedFeatures, needs: Collection[Need]) -> str:
    """What is read of a feature set, and what is not, in words."""
    shape, words = features.values.shape, []
    if "vector" in needs:
        words.append(f"the vectors of the last of {shape[1]} layers" if len(shape) == 3 else "the vectors")
    numbers = [str(need) for need in needs if isinstance(need, int)]
    if numbers:
        words.append(f"the vectors of layer {' and '.join(sorted(numbers, key=int))} of {shape[1]}")
    if "layers" in needs:
        words.append(f"all {shape[1]} layers")
    if features.frames is not None:
        words.append("the frames" if "frames" in needs else "not the frames")
    return ", ".join(words)


def _check_keeps(policy: LabelPolicy, settings: Sequence[Setting]) -> None:
    """Raises SettingError where the policy keeps other utterances than a system is to learn from."""
    for setting in settings:
        if (needed := setting.system.keeps) not in ("", policy.keep):
            raise SettingError(
                f"{setting.name} learns from every utterance that is kept, and --keep is {policy.keep}: give --keep "
                f"{needed}, and --learn-from plurality for what the others learn from"
            )


def _check_reads(data: TrainingData, settings: Sequence[Setting]) -> None:
    """Raises CacheError where a feature set lacks what a system reads of it."""
    for setting, (modality, features) in itertools.product(settings, data.inputs.items()):
        need, shape = setting.system.reads(setting.values, modality), features.values.shape
        place = f"{features.modality}/{features.name}"
        if need == "layers" and len(shape) < 3:
            raise CacheError(
                f"{setting.name} reads all layers, and {place} has one: encode with extract-features --layers all"
            )
        if need == "frames" and features.frames is None:
            why = f" ({setting.system.why_frames})" if setting.system.why_frames else ""
            raise CacheError(
                f"{setting.name} reads frames, and {place} has none{why}: encode with extract-features --frames"
            )
        if isinstance(need, int) and need >= (shape[1] if len(shape) == 3 else 0):
            held = f"layers 0 to {shape[1] - 1}" if len(shape) == 3 else "one, which is --input-layers last"
            raise CacheError(f"{setting.name} reads layer {need}, and {place} has {held}")
