"""What `train-heads` is asked for, and what of it a run's numbers depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from amber2_core.errors import SettingError, bad_choice

from .grid import Setting
from .presets import Grid
from .systems.system import FitOptions, Precision
from .training_data import MISSING, Missing

InputScale = Literal["raw", "standardized"]


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
    precision: Precision = "fp32"
    score_all: bool = False
    # modality → name of the feature set, None where the cache has one
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
        settings = self.grid.settings()
        counts = {"seeds": self.grid.seeds, "epochs": self.grid.epochs, "patience": self.patience}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise SettingError(f"Bad {name} {value}, expected a number of at least 1")
        for name, word, choices in (
            ("inputs", self.inputs, get_args(InputScale)),
            ("missing", self.missing, MISSING),
            ("precision", self.precision, get_args(Precision)),
        ):
            if word not in choices:
                raise SettingError(bad_choice(name, word, choices))
        for setting in settings:
            setting.system.check(setting.values, setting.system.heads(tuple(self.modalities)))
        return settings

    def named(self, device: str) -> dict[str, Any]:
        """What results depend on beside settings and data, by the names that the user knows."""
        return {
            "seeds": self.grid.seeds,
            "epochs": self.grid.epochs,
            "patience": self.patience,
            "inputs": self.inputs,
            "missing": self.missing,
            "precision": self.precision,
            "score-all": self.score_all,
            "device": device.partition(":")[0],
        }
