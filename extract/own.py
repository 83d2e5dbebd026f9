"""A user's own encoder: a class in a Python file, as ``path/to/my.py:MyEncoder``."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from amber2_core.errors import ModelError

from .checkpoint import Checkpoint

_WANTED = "sampling_rate (Hz), size (of its frames) and encode(waveforms) → frames, lengths; see docs/encoders.md"


def own_class(checkpoint: Checkpoint) -> Any:
    """The class that a file holds. What it imports, torch most likely, is imported here: for workers alone.

    Raises:
        ModelError: the file cannot be imported, or its class is no encoder.
    """
    path, name = checkpoint.weights[0], checkpoint.name
    spec = importlib.util.spec_from_file_location(f"amber2_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look for it there
    try:
        spec.loader.exec_module(module)
    except Exception as problem:  # a user's file may raise anything
        raise ModelError(f"Cannot import {path}: {type(problem).__name__}: {_line(problem)}") from problem
    kind = getattr(module, name, None)
    if kind is None:
        raise ModelError(f"Cannot load {name!r}: {path} holds no such class")
    wrong = [one for one in ("sampling_rate", "size") if not _is_count(getattr(kind, one, None))]
    if wrong or not callable(getattr(kind, "encode", None)):
        raise ModelError(f"Cannot use {name!r} of {path}: it lacks {(wrong or ['encode'])[0]}; wanted are {_WANTED}")
    return kind


def own_sampling_rate(checkpoint: Checkpoint) -> int:
    """Hz of the waveforms that it wants.

    Raises:
        ModelError: as `own_class`.
    """
    return int(own_class(checkpoint).sampling_rate)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [""])[0]
