"""The grid: comma lists of values go in, the settings that a sweep trains come out, each checked at the door."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args

from amber2_core.errors import SettingError, bad_choice
from amber2_core.fusion import FUSIONS
from amber2_core.losses import DISTANCES, WEIGHT_GRADIENTS, Distance, WeightGradient

from .labels import LABEL_KINDS, Labels
from .systems import registry

ExpertGradient = Literal["all", "own"]
EXPERT_GRADIENTS: tuple[ExpertGradient, ...] = get_args(ExpertGradient)
Value = float | int | str


# what a value may be: metadata of a Setting's fields, read by `parse_axis`
AT_LEAST_0 = {"kind": float, "accepts": lambda value: 0 <= value < math.inf, "range": "of at least 0"}
ABOVE_0 = {"kind": float, "accepts": lambda value: 0 < value < math.inf, "range": "above 0"}
BELOW_1 = {"kind": float, "accepts": lambda value: 0 <= value < 1, "range": "of at least 0 and below 1"}
COUNT = {"kind": int, "accepts": lambda value: value >= 1, "range": "of at least 1"}
WORD = {"kind": str}


@dataclass(frozen=True)
class Setting:
    """One point of the grid: all that may differ between runs besides fold and seed; the defaults are the paper's."""

    system: str = "amber2"
    # what sets this apart from the system as it is, where several variants of one compete; part of its name in results
    variant: str = ""
    # λ_RAI, λ_MAI, λ_E and κ of the loss of AmbER²
    lambda_rai: float = field(default=1.0, metadata=AT_LEAST_0)
    lambda_mai: float = field(default=0.5, metadata=AT_LEAST_0)
    lambda_expert: float = field(default=0.0, metadata=AT_LEAST_0)
    kappa: float = field(default=4.0, metadata=AT_LEAST_0)
    # the head that the others teach: "fusion", or the name of a modality
    student: str = field(default="fusion", metadata=WORD)
    loss: Distance = field(default="js", metadata={**WORD, "choices": DISTANCES})
    weight_gradient: WeightGradient = field(default="detach", metadata={**WORD, "choices": WEIGHT_GRADIENTS})
    # what the experts learn from: all terms, or λ_E's own alone
    expert_gradient: ExpertGradient = field(default="all", metadata={**WORD, "choices": EXPERT_GRADIENTS})
    # the raters' distribution, or its largest share alone
    labels: Labels = field(default="soft", metadata={**WORD, "choices": LABEL_KINDS})
    fusion: str = field(default="gmu", metadata={**WORD, "choices": FUSIONS})
    # units of every head's hidden layer and of the fused vector
    hidden: int = field(default=256, metadata=COUNT)
    dropout: float = field(default=0.0, metadata=BELOW_1)
    # AdamW, constant rate, no clipping
    lr: float = field(default=3e-4, metadata=ABOVE_0)
    weight_decay: float = field(default=1e-2, metadata=AT_LEAST_0)
    batch_size: int = field(default=128, metadata=COUNT)

    @property
    def name(self) -> str:
        """What results call the system: "amber2", or "amber2-no-mai" for its variant "no-mai"."""
        return f"{self.system}-{self.variant}" if self.variant else self.system

    def row(self) -> dict[str, Value | None]:
        """The setting as results.csv shows it: None where the system does not look at a value."""
        unused = LOSS_SETTINGS - registry.system(self.system).uses
        return {"system": self.name} | {name: None if name in unused else getattr(self, name) for name in AXES}

    @property
    def point(self) -> str:
        """In words: the name, and all that differs from the defaults."""
        changed = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        return " ".join([self.name, *(f"{name} {value}" for name, value in changed.items() if name in AXES)])

    @property
    def shape(self) -> tuple[Value, ...]:
        """What must be equal for runs to train in one stack."""
        return (self.fusion, self.hidden, self.dropout, self.lr, self.weight_decay, self.batch_size)


# what the loss reads, in contrast to what shapes the model and its optimizer; a system may ignore some of it
LOSS_SETTINGS = frozenset(
    {
        "lambda_rai", "lambda_mai", "lambda_expert", "kappa", "student", "loss", "weight_gradient", "expert_gradient",
    }
)  # fmt: skip
_FIELDS: Mapping[str, Field[Any]] = {f.name: f for f in fields(Setting) if f.name not in ("system", "variant")}
AXES = tuple(_FIELDS)


def parse_axis(name: str, text: str) -> tuple[Value, ...]:
    """The values of one option, ``"0.3,0.5"`` → ``(0.3, 0.5)``.

    Raises:
        SettingError: not a list of what the setting takes, a value out of its range, or one given twice.
    """
    values = tuple(_parse(name, part.strip()) for part in text.split(","))
    if len(set(values)) < len(values):
        raise SettingError(f"Bad {_flag(name)} {text!r}: a value stands twice")
    return values


def check_axis(name: str, values: Sequence[object]) -> tuple[Value, ...]:
    """The values of one setting from a file, each checked as one that was typed.

    Raises:
        SettingError: as `parse_axis`.
    """
    for value in values:
        if isinstance(value, bool) or not isinstance(value, float | int | str):
            raise SettingError(f"Bad {_flag(name)} {value!r}, expected a number or a word, or a list of some")
    return parse_axis(name, ",".join(str(value) for value in values))


@dataclass(frozen=True)
class Variant:
    """A system with some settings fixed, that competes and is shown for itself."""

    name: str
    changes: Mapping[str, Value]
    system: str = "amber2"


def expand(
    systems: Sequence[str], axes: Mapping[str, Sequence[Value]], variants: Sequence[Variant] = ()
) -> tuple[Setting, ...]:
    """Every combination of the axes for every system and variant; what a system ignores does not multiply its settings.

    Raises:
        SettingError: an unknown system, a system or variant named twice, or a combination that could not train.
    """
    if not systems or len(set(systems)) < len(systems):
        raise SettingError(f"Bad system {','.join(systems)!r}, expected a list of different ones")
    _check_names(systems, variants)
    settings: list[Setting] = []
    for variant in [*(Variant("", {}, name) for name in systems), *variants]:
        ignored = LOSS_SETTINGS - registry.system(variant.system).uses
        fixed = {axis: (value,) for axis, value in variant.changes.items()}
        own = {axis: values for axis, values in {**axes, **fixed}.items() if axis not in ignored}
        for point in itertools.product(*own.values()):
            values: dict[str, Any] = dict(zip(own, point, strict=True))
            settings.append(Setting(system=variant.system, variant=variant.name, **values))
            _check(settings[-1])
    return tuple(settings)


def _check_names(systems: Sequence[str], variants: Sequence[Variant]) -> None:
    names = [*systems, *(Setting(system=v.system, variant=v.name).name for v in variants)]
    for variant in variants:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", variant.name):
            raise SettingError(f"Bad name {variant.name!r} of a variant, expected one such as no-mai")
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingError(f"Bad grid: two of its variants are called {twice[0]!r}")


def _parse(name: str, text: str) -> Value:
    metadata = _FIELDS[name].metadata
    kind = metadata["kind"]
    if kind is str:
        if text not in metadata.get("choices", (text,)):
            raise SettingError(bad_choice(_flag(name), text, metadata["choices"]))
        return text
    try:
        value: float | int = kind(text)
    except ValueError:
        example = "128 or 64,128" if kind is int else "0.5 or 0.3,0.5,0.7"
        raise SettingError(f"Bad {_flag(name)} {text!r}, expected numbers such as {example}") from None
    if not metadata["accepts"](value):
        raise SettingError(f"Bad {_flag(name)} {text}, expected a number {metadata['range']}")
    return value


def _check(setting: Setting) -> None:
    uses = registry.system(setting.system).uses
    if "expert_gradient" in uses and setting.expert_gradient == "own":
        if setting.lambda_expert == 0:
            raise SettingError("expert-gradient own with lambda-expert 0: the experts would never train")
        if setting.weight_gradient == "flow":
            raise SettingError("expert-gradient own with weight-gradient flow: the weights' gradient runs into them")
    if {"lambda_rai", "lambda_mai"} <= uses and setting.lambda_rai == setting.lambda_mai == setting.lambda_expert == 0:
        raise SettingError("lambda-rai, lambda-mai and lambda-expert are all 0: nothing would be trained")


def _flag(name: str) -> str:
    return name.replace("_", "-")
