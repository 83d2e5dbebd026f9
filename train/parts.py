"""Finished stacks of a sweep on disk, so that a sweep can be stopped: dev rows and best runs go in, the same come out.

One safetensors file per fold and stack, which takes its name only when it is complete. Tensors are called
`<candidate>.<seed>.<parameter>`; the metadata entry `part` is JSON: how many `runs` were trained, the `rows` of
results.csv, and for every candidate its setting, dev JS, architecture, epochs and curves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from amber2_core.cache import sync
from amber2_core.errors import RunFolderError
from amber2_core.heads import Architecture

from .grid import Setting
from .select import Candidate, Run


@dataclass(frozen=True, eq=False)
class Part:
    """What training one stack of settings on one fold has given."""

    runs: int
    rows: list[dict[str, Any]]  # of results.csv
    candidates: Mapping[str, Candidate]  # by name of the system


@dataclass(frozen=True)
class Parts:
    """The finished stacks in a folder."""

    folder: Path

    @property
    def count(self) -> int:
        return len(list(self.folder.glob("fold*-stack*.safetensors")))

    def write(self, fold: int, stack: int, part: Part) -> None:
        """Keep a finished stack. RunFolderError: the place cannot be written, or is full."""
        tensors: dict[str, Tensor] = {}
        candidates = []
        for number, candidate in enumerate(part.candidates.values()):
            for seed, run in enumerate(candidate.runs):
                tensors |= {f"{number}.{seed}.{name}": tensor.contiguous() for name, tensor in run.state.items()}
            candidates.append(_record(candidate))
        record = {"runs": part.runs, "rows": part.rows, "candidates": candidates}
        path = self._path(fold, stack)
        writing = path.with_suffix(".writing")
        try:
            save_file(tensors, writing, metadata={"part": json.dumps(record)})
            sync(writing)
            os.replace(writing, path)
            sync(self.folder)
        except (OSError, SafetensorError) as problem:
            writing.unlink(missing_ok=True)
            raise RunFolderError(f"Cannot write {path}: {problem}") from None

    def read(self, fold: int, stack: int) -> Part | None:
        """A finished stack; None where it is not there yet.

        Raises:
            RunFolderError: the file is damaged.
        """
        path = self._path(fold, stack)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads(file.metadata()["part"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            candidates = [_candidate(some, k, tensors) for k, some in enumerate(record["candidates"])]
        except (SafetensorError, KeyError, ValueError, TypeError) as problem:
            raise RunFolderError(f"{path} is damaged ({problem}): remove it, and it is trained again") from None
        return Part(record["runs"], record["rows"], {candidate.setting.name: candidate for candidate in candidates})

    def _path(self, fold: int, stack: int) -> Path:
        return self.folder / f"fold{fold}-stack{stack}.safetensors"


def _record(candidate: Candidate) -> dict[str, Any]:
    return {
        "setting": asdict(candidate.setting),
        "dev_js": candidate.dev_js,
        "architecture": asdict(candidate.runs[0].architecture),
        "epochs": [run.epochs for run in candidate.runs],
        "curves": [run.curves for run in candidate.runs],
    }


def _candidate(record: Mapping[str, Any], number: int, tensors: Mapping[str, Tensor]) -> Candidate:
    inputs = tuple((name, size) for name, size in record["architecture"]["inputs"])
    architecture = Architecture(**{**record["architecture"], "inputs": inputs})
    runs = []
    for seed, (epochs, curves) in enumerate(zip(record["epochs"], record["curves"], strict=True)):
        prefix = f"{number}.{seed}."
        state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        runs.append(Run(architecture, state, epochs, curves))
    return Candidate(Setting(**record["setting"]), record["dev_js"], tuple(runs))
