"""What `train-heads` is asked for: a grid, typed, named or written in a TOML file, and how it is trained."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from amber2_core.errors import SettingError, bad_choice
from amber2_core.metrics import METRICS_OF, metrics_of_kinds
from amber2_core.run_folder import KEY_COLUMNS
from amber2_core.votes import VOTERS, Voters

from .grid import Setting, Value, Variant, axes_of, check_axis, decider, expand, kinds_of
from .systems.system import FitOptions, Precision
from .training_data import MISSING, Missing

InputScale = Literal["raw", "standardized"]


@dataclass(frozen=True)
class Grid:
    """What to train: systems, the values of their settings, and variants that each compete for themselves."""

    systems: Sequence[str] = ("amber2", "cb-ce")
    # setting → values; what is absent stands at its default
    axes: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    variants: Sequence[Variant] = ()
    seeds: int = 5
    epochs: int = 30

    def settings(self) -> tuple[Setting, ...]:
        """Every setting of the grid. SettingError: as `expand`."""
        return expand(self.systems, self.axes, self.variants)

    @property
    def varied(self) -> list[str]:
        """The settings that have several values on the grid."""
        return [axis for axis in self.columns if len(self.axes.get(axis, ())) > 1]

    @property
    def columns(self) -> list[str]:
        """The axes of all its systems: the columns of settings in results.csv."""
        return [*axes_of([*self.systems, *(variant.system for variant in self.variants)])]


@dataclass(frozen=True)
class TrainOptions:
    """What `train-heads` is asked for; everything but the cache and the place of the run folder."""

    grid: Grid = field(default_factory=Grid)
    # fields of LabelPolicy that replace the corpus's defaults
    policy: Mapping[str, Any] = field(default_factory=dict)
    # the fold protocol; None: the corpus's own default
    folds: str | None = None
    patience: int | None = None
    # features as they are cached, or standardised by the fold's train rows
    inputs: InputScale = "raw"
    # utterances without features of some modality
    missing: Missing = "drop"
    # whose votes train learns from; dev and test are scored by people's
    targets: Voters = "human"
    precision: Precision = "fp32"
    score_all: bool = False
    # modality → name of the feature set, None: the only one, if the cache has features of the modality
    modalities: Mapping[str, str | None] = field(default_factory=lambda: {"audio": None, "text": None})
    device: str = "auto"
    # for the record: the words that were typed
    command: Sequence[str] = ()

    @property
    def fit(self) -> FitOptions:
        return FitOptions(self.grid.epochs, self.patience, self.precision)

    def settings(self) -> tuple[Setting, ...]:
        """Every setting of the grid, checked, as far as that can be done without the data.

        Raises:
            SettingError: something has no meaning.
        """
        if not self.modalities:
            raise SettingError("no modality is left to train on: leave out one of --audio none and --text none")
        settings = self.grid.settings()
        counts = {"seeds": self.grid.seeds, "epochs": self.grid.epochs, "patience": self.patience}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise SettingError(f"Bad {name} {value}, expected a number of at least 1")
        for name, word, choices in (
            ("inputs", self.inputs, get_args(InputScale)),
            ("missing", self.missing, MISSING),
            ("targets", self.targets, VOTERS),
            ("precision", self.precision, get_args(Precision)),
        ):
            if word not in choices:
                raise SettingError(bad_choice(name, word, choices))
        for axis in self.grid.columns:
            if axis in (*KEY_COLUMNS, "epoch", "n", *metrics_of_kinds([*METRICS_OF])):
                raise SettingError(f"Bad setting {axis!r} of a system: results.csv has such a column; rename it")
        check_modalities(settings, tuple(self.modalities))
        kinds_of(settings)
        for setting in settings:
            if setting.decides not in (known := METRICS_OF[setting.kind]):
                raise SettingError(bad_choice(f"metric that decides for {setting.name}", setting.decides, known))
        return settings

    def named(self, device: str) -> dict[str, Any]:
        """What results depend on beside settings and data, by the names that the user knows."""
        return {
            "seeds": self.grid.seeds,
            "epochs": self.grid.epochs,
            "patience": self.patience,
            "inputs": self.inputs,
            "missing": self.missing,
            "targets": self.targets,
            "precision": self.precision,
            "score-all": self.score_all,
            "device": device.partition(":")[0],
        }


def check_modalities(settings: Sequence[Setting], modalities: Sequence[str]) -> None:
    """Raises SettingError where a setting cannot be trained on these modalities."""
    for setting in settings:
        heads = setting.system.heads(modalities)
        setting.system.check(setting.values, heads)
        if (chosen := decider(setting, heads)) not in heads:
            raise SettingError(f"{setting.name} is chosen by its head {chosen!r}, and has {', '.join(heads)} alone")


# The paper's protocol: 9 × 5 folds × 5 seeds = 225 fits of AmbER², 25 of the baseline.
PAPER = Grid(axes={"lambda_mai": (0.3, 0.5, 0.7), "kappa": (2.0, 4.0, 8.0)})

# What each part of AmbER² is worth, at one point of the grid. Without the rater term the student learns from the
# experts alone, so these learn from the raters directly: with λ_E = 0 nothing would.
ABLATION = Grid(
    variants=(
        Variant("no-mai", {"lambda_mai": 0.0}),
        Variant("no-rai", {"lambda_rai": 0.0, "lambda_expert": 1.0}),
        Variant("uniform-weights", {"kappa": 0.0}),
        Variant("hard-labels", {"labels": "hard"}),
        Variant("student-audio", {"student": "audio"}),
        Variant("student-text", {"student": "text"}),
    )
)
PRESETS: Mapping[str, Grid] = {"paper": PAPER, "ablation": ABLATION}


def preset(name: str) -> Grid:
    """The grid of that name. SettingError: there is none."""
    if name not in PRESETS:
        raise SettingError(bad_choice("preset", name, PRESETS))
    return PRESETS[name]


def read_grid(path: Path) -> Grid:
    """A grid from a TOML file.

    Keys are those of `Grid` (`system`, `seeds`, `epochs`) and of the settings, each with one value or a list; a table
    `[[variant]]` has a `name`, perhaps a `system`, and the settings in which it differs:

        lambda_mai = [0.3, 0.5, 0.7]
        [[variant]]
        name = "uniform-weights"
        kappa = 0

    Raises:
        SettingError: no such file, no TOML, a key or a value that has no meaning.
    """
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise SettingError(f"Cannot read the grid {path}: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingError(f"{path} is not a TOML file: {problem}") from None
    values = {_name(key): value for key, value in record.items()}
    try:
        systems = tuple(map(str, _list(values.get("system", Grid.systems))))
        variants = tuple(_variant(some) for some in _list(values.get("variant", [])))
        axes = axes_of([*systems, *(variant.system for variant in variants)])
        known = ("system", "seeds", "epochs", "variant", *axes)
        for key in values:
            if key not in known:
                raise SettingError(bad_choice("key", key, known))
        return Grid(
            systems=systems,
            axes={name: check_axis(name, axis, _list(values[name])) for name, axis in axes.items() if name in values},
            variants=variants,
            seeds=_count("seeds", values.get("seeds", Grid.seeds)),
            epochs=_count("epochs", values.get("epochs", Grid.epochs)),
        )
    except SettingError as problem:
        raise SettingError(f"{path}: {problem}") from None


def _variant(record: Any) -> Variant:
    if not isinstance(record, dict) or not isinstance(record.get("name"), str):
        raise SettingError("a variant is a table [[variant]] with a name")
    changes = {_name(key): value for key, value in record.items() if key not in ("name", "system")}
    system = str(record.get("system", "amber2"))
    axes = axes_of([system])
    for key in changes:
        if key not in axes:
            raise SettingError(bad_choice(f"key of variant {record['name']}", key, axes))
    values = {key: check_axis(key, axes[key], [value])[0] for key, value in changes.items()}
    return Variant(record["name"], values, system)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _count(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise SettingError(f"Bad {name} {value!r}, expected a number of at least 1")
    return value


def _name(key: str) -> str:
    return key.replace("-", "_")
