"""A sweep that is ready to be trained: what was asked for, checked, with its data read and divided into folds."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amber2_core import engine
from amber2_core.cache import Features, MappedFeatures
from amber2_core.errors import SettingError

from . import tasks
from .folds import Fold, make_folds
from .grid import Setting
from .options import TrainOptions
from .selection import check_deciders
from .training_data import Material, TrainingData, check_reads, read_material
from .worker import Sweep, look_at

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Request:
    """A sweep that is ready to be trained: checked, with its data read and divided."""

    options: TrainOptions
    settings: tuple[Setting, ...]
    device: str
    material: Material
    protocol: str
    folds: tuple[Fold, ...]

    @property
    def tasks(self) -> list[tasks.Task]:
        folds = [fold.number for fold in self.folds]
        return tasks.tasks_of(self.settings, self.options.grid.seeds, folds, self.device)

    def sweep(self, folder: Path) -> Sweep:
        """What workers are told; they keep finished tasks in `folder`."""
        material = self.material
        origin = {
            "emotions": list(material.data.emotions),
            "policy": json.loads(json.dumps(asdict(material.policy))),
            "features": {m: feature_record(some) for m, some in material.data.inputs.items()},
        }
        settings = tuple((setting.reference, setting.row()) for setting in self.settings)
        names = tuple(setting.name for setting in self.settings)
        folds = {fold.number: fold for fold in self.folds}
        return Sweep(material.data, folds, settings, names, self.options, self.device, origin, folder)

    @property
    def workers(self) -> list[int]:
        """The threads of each worker: one worker for each core, as far as there are tasks; one for a GPU.

        How many tasks were finished earlier plays no part: the threads of a task are in its last digits.
        """
        if self.device != "cpu":
            return [cores()]
        count = min(cores(), len(self.tasks))
        return [max(1, cores() // count)] * count


def prepared(cache_path: Path, options: TrainOptions) -> Request:
    """Check what is asked for, read its data and divide it.

    Raises:
        Amber2Error: anything of it cannot be had.
    """
    engine.prepare("amber2_train.worker", "amber2_train.fold_data", "amber2_train.stacked.loop")
    settings = options.settings()
    material = read_material(cache_path, options.modalities, options.policy, missing=options.missing)
    protocol = options.folds or material.cache.defaults.folds
    folds = make_folds(protocol, material.data)
    check_deciders(material.data, folds, settings)
    for setting in settings:
        for modality, inputs in material.data.inputs.items():
            check_reads(inputs, setting.system.reads(setting.values, modality), setting.name)
    device, has_bfloat16 = engine.call(look_at, options.device)
    if options.precision == "tf32" and device == "cpu":
        raise SettingError("Bad precision 'tf32' on a CPU: only GPUs have it; use --precision fp32 or --device cuda")
    if options.precision == "bf16" and not has_bfloat16:
        _log.warning(
            "this processor does not multiply bfloat16: --precision bf16 rounds like one that does, but is not faster "
            "than fp32"
        )
    return Request(options, settings, device, material, protocol, folds)


def identity(request: Request) -> dict[str, Any]:
    """All that a sweep's results depend on, by the names that the user knows, as JSON values."""
    settings, options, data = request.settings, request.options, request.material.data
    rows = [setting.row() for setting in settings]
    columns = options.grid.columns
    grid = {axis.replace("_", "-"): list(dict.fromkeys(r[axis] for r in rows if axis in r)) for axis in columns}
    whole: dict[str, Any] = {
        "system": list(dict.fromkeys(setting.name for setting in settings)),
        **grid,
        "settings in all": _checksum(repr([(setting.name, setting.row()) for setting in settings]).encode()),
        **options.named(request.device),
        "folds": request.protocol,
        "policy": asdict(request.material.policy),
        "features": {m: [some.name, some.fingerprint] for m, some in data.inputs.items()},
        "cache's contents": _contents(data, request.folds),
        # how finished tasks are numbered
        "runs in a task": tasks.RUNS[request.device.partition(":")[0]],
        "version of torch": importlib.metadata.version("torch"),
    }
    read_back: dict[str, Any] = json.loads(json.dumps(whole))
    return read_back


def _contents(data: TrainingData, folds: Sequence[Fold]) -> str:
    """A checksum of ids, folds, targets and features."""
    checksum = _checksum("\0".join(data.id).encode()) + data.checksum
    for array in [data.targets, *(part for fold in folds for part in (fold.train, fold.dev, fold.test))]:
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
