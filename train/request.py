"""What `train-heads` is asked for goes in; checked settings, the device, and options by the user's names come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from amber2_core.devices import choose_device
from amber2_core.errors import SettingError, bad_choice
from amber2_core.heads import FUSION_HEAD

from .grid import Setting
from .precision import PRECISIONS, Precision, check_precision
from .presets import Grid
from .rows import Inputs
from .targets import MISSING, Missing


@dataclass(frozen=True)
class Request:
    """What `train-heads` is asked for."""

    grid: Grid = field(default_factory=Grid)
    # fields of LabelPolicy that replace the corpus's defaults
    policy: Mapping[str, Any] = field(default_factory=dict)
    # None: the corpus's own default
    folds: str | None = None
    patience: int | None = None
    inputs: Inputs = "raw"
    # utterances without features of some modality
    missing: Missing = "drop"
    precision: Precision = "fp32"
    score_all: bool = False
    # modality → name of the feature set, None where the cache has one
    modalities: Mapping[str, str | None] = field(default_factory=lambda: {"audio": None, "text": None})
    device: str = "auto"
    # for the record: the words that were typed
    command: Sequence[str] = ()


def checked(request: Request) -> tuple[tuple[Setting, ...], str]:
    """The settings to train and the device.

    Raises:
        SettingError: something has no meaning, as far as that can be said without the data.
    """
    settings = request.grid.settings()
    counts = {"seeds": request.grid.seeds, "epochs": request.grid.epochs, "patience": request.patience}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise SettingError(f"Bad {name} {value}, expected a number of at least 1")
    for name, word, choices in (
        ("inputs", request.inputs, get_args(Inputs)),
        ("missing", request.missing, MISSING),
        ("precision", request.precision, PRECISIONS),
    ):
        if word not in choices:
            raise SettingError(bad_choice(name, word, choices))
    heads = [*request.modalities, FUSION_HEAD]
    for setting in settings:
        if setting.student not in heads:
            raise SettingError(bad_choice("student", setting.student, heads))
    device = str(choose_device(request.device, ("cpu", "cuda")))
    check_precision(request.precision, device)
    return settings, device


def options_of(request: Request, device: str) -> dict[str, Any]:
    """What results depend on beside settings and data, by the names that the user knows."""
    return {
        "seeds": request.grid.seeds,
        "epochs": request.grid.epochs,
        "patience": request.patience,
        "inputs": request.inputs,
        "missing": request.missing,
        "precision": request.precision,
        "score-all": request.score_all,
        "device": device.split(":")[0],
    }
