"""The grid: comma lists of values, and the settings of every system that a sweep trains, each checked at the door."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields
from typing import Any

from amber2_core.errors import SettingError, bad_choice
from amber2_core.heads import FUSION_HEAD
from amber2_core.kinds import Kind

from .systems.system import System, system_of, systems_of

Value = float | int | str
Axes = Mapping[str, "Field[Any]"]


@dataclass(frozen=True)
class Setting:
    """One point of the grid: a system and all that may differ between its runs besides fold and seed."""

    reference: str  # as `system_of` takes it
    values: Any  # of the system's `Settings`
    # what sets this apart from the system as it is, where several variants of one compete; part of its name in results
    variant: str = ""

    @property
    def system(self) -> System:
        return system_of(self.reference)

    @property
    def name(self) -> str:
        """What results call the system: "amber2", or "amber2-no-mai" for its variant "no-mai"."""
        return f"{self.system.name}-{self.variant}" if self.variant else self.system.name

    @property
    def shape(self) -> Hashable:
        """What is equal for settings that are fitted together."""
        return (self.reference, self.system.shape(self.values))

    @property
    def kind(self) -> Kind:
        """What it predicts."""
        return self.system.kind(self.values)

    @property
    def decides(self) -> str:
        """The metric by whose mean on dev it is compared with others."""
        return self.system.decides(self.values)

    def row(self) -> dict[str, Value]:
        """The system's own settings by name."""
        return asdict(self.values)

    @property
    def point(self) -> str:
        """In words: the name, and all that differs from the defaults."""
        changed = {f.name: value for f in fields(self.values) if (value := getattr(self.values, f.name)) != f.default}
        return " ".join([self.name, *(f"{name} {value}" for name, value in changed.items())])


def kinds_of(settings: Sequence[Setting]) -> dict[str, Kind]:
    """Name of the system → what it predicts.

    Raises:
        SettingError: settings of one system predict different kinds, and dev cannot choose between these.
    """
    kinds: dict[str, Kind] = {}
    for setting in settings:
        if kinds.setdefault(setting.name, setting.kind) != setting.kind:
            raise SettingError(
                f"{setting.name} is to predict both distributions and presence, and dev cannot choose between them: "
                "train one after the other, or as variants of a grid"
            )
    return kinds


def decider(setting: Setting, heads: Sequence[str]) -> str:
    """The head by whose dev JS a setting is compared with others; of one modality alone its own."""
    head = setting.system.chooses(setting.values)
    return heads[0] if head == FUSION_HEAD and len(heads) == 1 else head


@dataclass(frozen=True)
class Variant:
    """A system with some settings fixed, that competes and is shown for itself."""

    name: str
    changes: Mapping[str, Value]
    system: str = "amber2"


def axes_of(references: Sequence[str]) -> dict[str, Field[Any]]:
    """The axes of some systems by name: what is a system's own first, then what it shares with others.

    Systems that share one may each have a default of their own.

    Raises:
        SettingError: as `system_of`, or two systems mean different things by one name.
    """
    axes: dict[str, Field[Any]] = {}
    for reference in references:
        for name, axis in own_axes(system_of(reference)).items():
            other = axes.setdefault(name, axis)
            if (type(other.default), other.metadata) != (type(axis.default), axis.metadata):
                raise SettingError(f"Bad system {reference!r}: its setting {name} is another system's, too: rename it")
    return axes


def own_axes(system: System) -> dict[str, Field[Any]]:
    """A system's axes, those that its `Settings` add to what they derive from first."""
    own = inspect.get_annotations(system.Settings)
    return {f.name: f for f in sorted(fields(system.Settings), key=lambda f: f.name not in own)}


def parse_axis(name: str, axis: Field[Any], text: str) -> tuple[Value, ...]:
    """The values of one option, ``"0.3,0.5"`` → ``(0.3, 0.5)``.

    Raises:
        SettingError: not a list of what the setting takes, a value out of its range, or one given twice.
    """
    values = tuple(_parse(name, axis, part.strip()) for part in text.split(","))
    if len(set(values)) < len(values):
        raise SettingError(f"Bad {_flag(name)} {text!r}: a value stands twice")
    return values


def check_axis(name: str, axis: Field[Any], values: Sequence[object]) -> tuple[Value, ...]:
    """The values of one setting from a file, each checked as one that was typed.

    Raises:
        SettingError: as `parse_axis`.
    """
    for value in values:
        if isinstance(value, bool) or not isinstance(value, float | int | str):
            raise SettingError(f"Bad {_flag(name)} {value!r}, expected a number or a word, or a list of some")
    return parse_axis(name, axis, ",".join(str(value) for value in values))


def expand(
    systems: Sequence[str], axes: Mapping[str, Sequence[Value]], variants: Sequence[Variant] = ()
) -> tuple[Setting, ...]:
    """Every combination of the axes for every system and variant; what a system has not got does not multiply it.

    Raises:
        SettingError: an unknown system, or a system or variant named twice.
    """
    systems_of(systems)
    settings: list[Setting] = []
    for variant in [*(Variant("", {}, name) for name in systems), *variants]:
        system = system_of(variant.system)
        fixed = {axis: (value,) for axis, value in variant.changes.items()}
        own = {axis: values for axis, values in {**axes, **fixed}.items() if axis in own_axes(system)}
        for point in itertools.product(*own.values()):
            values = system.Settings(**dict(zip(own, point, strict=True)))
            settings.append(Setting(variant.system, values, variant.name))
    _check_names(systems, variants, settings)
    return tuple(settings)


def _check_names(systems: Sequence[str], variants: Sequence[Variant], settings: Sequence[Setting]) -> None:
    for variant in variants:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", variant.name):
            raise SettingError(f"Bad name {variant.name!r} of a variant, expected one such as no-mai")
    names = [system_of(name).name for name in systems]
    names += [f"{system_of(variant.system).name}-{variant.name}" for variant in variants]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingError(f"Bad grid: two of its variants are called {twice[0]!r}")


def _parse(name: str, axis: Field[Any], text: str) -> Value:
    limits = axis.metadata
    if isinstance(axis.default, str):
        if limits["choices"] and text not in limits["choices"]:
            raise SettingError(bad_choice(_flag(name), text, limits["choices"]))
        return text
    try:
        value: float | int = int(text) if isinstance(axis.default, int) else float(text)
    except ValueError:
        example = "128 or 64,128" if isinstance(axis.default, int) else "0.5 or 0.3,0.5,0.7"
        raise SettingError(f"Bad {_flag(name)} {text!r}, expected numbers such as {example}") from None
    if not (limits["least"] <= value < limits["below"] and limits["above"] < value < math.inf):
        raise SettingError(f"Bad {_flag(name)} {text}, expected a number {_range(limits)}")
    return value


def _range(limits: Mapping[str, Any]) -> str:
    words = {"least": "of at least", "above": "above", "below": "below"}
    return " and ".join(f"{word} {limits[key]:g}" for key, word in words.items() if math.isfinite(limits[key]))


def _flag(name: str) -> str:
    return name.replace("_", "-")
