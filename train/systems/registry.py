"""Systems by name: our own, those of installed packages (entry points `amber2.systems`), and those of a user's file."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from amber2_core.errors import SettingError, bad_choice

from .system import System

ENTRY_POINTS = "amber2.systems"
# name → where its class is; what a worker is told, too
OURS: Mapping[str, str] = {
    "amber2": "amber2_train.systems.amber2:Amber2",
    "cb-ce": "amber2_train.systems.cb_ce:ClassBalancedCrossEntropy",
}


@cache
def system(reference: str) -> System:
    """The system of that name, or of a file's class: ``path/to/my_system.py:MySystem``.

    Raises:
        SettingError: there is none, or it cannot be loaded.
    """
    path, _, name = reference.rpartition(":")
    if path.endswith(".py"):
        return _made(reference, _module_of(Path(path)), name)
    ours = {each: EntryPoint(each, place, ENTRY_POINTS) for each, place in OURS.items()}
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)} if reference not in ours else {}
    found = (points | ours).get(reference)
    if found is None:
        known = [*ours, *points, "path/to/my_system.py:MySystem"]
        raise SettingError(bad_choice("system", reference, known))
    try:
        return _made(reference, importlib.import_module(found.module), found.attr)
    except ImportError as problem:
        raise SettingError(f"Cannot load the system {reference!r} from {found.value}: {problem}") from None


def systems(references: Sequence[str]) -> dict[str, System]:
    """Reference → system. SettingError: as `system`, or two go by one name."""
    found = {reference: system(reference) for reference in references}
    names = [each.name for each in found.values()]
    if not names or len(set(names)) < len(names) or len(found) < len(references):
        raise SettingError(f"Bad system {','.join(references)!r}, expected a list of different ones")
    return found


def _module_of(path: Path) -> Any:
    """A user's file as a module; the same one at the next call."""
    if not path.is_file():
        raise SettingError(f"Bad system: no file {path}; give path/to/my_system.py:MySystem")
    name = f"amber2_system_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as problem:  # the user's own code
            del sys.modules[name]
            what = f"{type(problem).__name__}: {problem}".partition("\n")[0]
            raise SettingError(f"Cannot load the system of {path}: {what}") from problem
    return sys.modules[name]


def _made(reference: str, module: Any, name: str) -> System:
    kind = getattr(module, name, None)
    if not isinstance(kind, type):
        raise SettingError(f"Bad system {reference!r}: {module.__file__} has no class {name!r}")
    made: Any = kind()
    for attribute in ("name", "Settings", "fit"):
        if not hasattr(made, attribute):
            raise SettingError(f"Bad system {reference!r}: {name} has no {attribute}; see docs/extend.md")
    return made  # type: ignore[no-any-return]
