"""The systems by name."""

from __future__ import annotations

from collections.abc import Mapping

from amber2_core.errors import SettingError, bad_choice

from .amber2 import Amber2
from .cb_ce import ClassBalancedCrossEntropy
from .system import System

SYSTEMS: Mapping[str, System] = {system.name: system for system in (Amber2(), ClassBalancedCrossEntropy())}


def system(name: str) -> System:
    """The system of that name.

    Raises:
        SettingError: there is none.
    """
    if name not in SYSTEMS:
        raise SettingError(bad_choice("system", name, SYSTEMS))
    return SYSTEMS[name]
