"""The contract of a system, what stage 2 asks of anything that it trains or scores; and systems by name.

A system's `Settings` are its axes on a grid, its options of `train-heads` and its columns of results.csv. What all
systems share stays outside of them: folds, targets, selection on dev, the test looked at once, results, report.
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from amber2_core.errors import SettingError, bad_choice
from amber2_core.heads import FUSION_HEAD, heads_of
from amber2_core.kinds import DISTRIBUTION, Kind

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from amber2_core.features import Side

    Floats = npt.NDArray[np.floating[Any]]

# What a system reads of a modality: one vector of an utterance (the last layer's), that of the layer of a number, from
# 0, all layers' vectors, or the sequence of its frames.
Need = Literal["vector", "layers", "frames"] | int
# Train utterances to learn from: all, or those of which raters agree so far: one largest share, or more than half
LearnFrom = Literal["all", "plurality", "majority"]
Precision = Literal["fp32", "tf32", "bf16"]
ENTRY_POINTS = "amber2.systems"
# in place of a system's name: every one of `OURS` that a cache can feed
ALL = "all"
# name → where its class is; what a worker is told, too
OURS: Mapping[str, str] = {
    "amber2": "amber2_train.systems.amber2:Amber2",
    "cb-ce": "amber2_train.systems.cb_ce:ClassBalancedCrossEntropy",
    "emo-ent": "amber2_train.systems.emo_ent:EmoEnt",
    "all-inclusive": "amber2_train.systems.all_inclusive:AllInclusive",
    "emo-superb": "amber2_train.systems.emo_superb:EmoSuperb",
    "evidential": "amber2_train.systems.evidential:Evidential",
    "ldl-kl": "amber2_train.systems.label_distribution:KullbackLeibler",
    "ldl-ce": "amber2_train.systems.label_distribution:CrossEntropy",
    "majority-ce": "amber2_train.systems.majority_ce:MajorityCrossEntropy",
    "sailer": "amber2_train.systems.sailer:Sailer",
    "medusa": "amber2_train.systems.medusa:Medusa",
    "lddu": "amber2_train.systems.lddu:LatentDistributions",
}


def option(
    default: float | int | str,
    what: str,
    *,
    choices: Sequence[str] = (),
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Any:
    """A field of a system's `Settings`: its default, the help of its option, and what values it takes.

    Numbers are of the default's kind, int or float, at least `least`, above `above` and below `below`; words are one
    of `choices`, any where there are none.
    """
    limits = {"least": least, "above": above, "below": below}
    return field(default=default, metadata={"what": what, "choices": tuple(choices), **limits})


def with_default(settings: type, name: str, default: float | int | str) -> Any:
    """An option of other settings, with a default of one's own."""
    (known,) = (each for each in fields(settings) if each.name == name)
    return field(default=default, metadata=known.metadata)


@dataclass(frozen=True)
class FitOptions:
    """How every setting of a sweep is trained."""

    epochs: int = 30
    # epochs without a better one after which a head is not looked at any more; None: never
    patience: int | None = None
    # of the largest products; parameters and moments are in single precision
    precision: Precision = "fp32"


@dataclass(frozen=True)
class History:
    """How one run trained."""

    # head → the dev JS after every epoch, as training saw it
    dev_js: Mapping[str, Sequence[float]] = field(default_factory=dict)
    # head → the epoch kept, from 1; 0: none, since its dev score never was a number; empty where there are no epochs
    epoch: Mapping[str, int] = field(default_factory=dict)
    # heads whose epoch nobody could choose, as no dev utterance has the head that decides
    unjudged: frozenset[str] = frozenset()


class Rows(Protocol):
    """Some utterances of a fold: their targets, and whatever a system reads of their features."""

    @property
    def features(self) -> Mapping[str, Tensor]:
        """All utterances' features by modality, (N, D_m) or (N, layers, D_m): a system needs their sizes alone."""

    @property
    def index(self) -> Tensor:
        """(n,) which of the N utterances these are."""

    @property
    def targets(self) -> Tensor:
        """(n, C) the raters' distributions; their type and device are those to compute in."""

    @property
    def standardisation(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Modality → mean and sd, (D_m,) or (layers, D_m), of the train rows; empty where features stay as they are."""

    @property
    def votes(self) -> Tensor | None:
        """(n, C) the votes that the targets are made of."""

    @property
    def sides(self) -> Mapping[str, Tensor]:
        """What there is to read beside the modalities, by key; see `side`."""

    def __len__(self) -> int: ...

    def some(self, rows: Tensor) -> Rows:
        """Some of these utterances (m,) of 0 … n−1, in that order."""

    def mixed(self, partners: Tensor, shares: Mapping[str, Tensor]) -> Rows:
        """These utterances with the features of two, λ h_i + (1 − λ) h_j: j of 0 … n−1 (n,), λ (n,) by modality.

        A modality that j lacks is h_i; one that i lacks stays missing.
        """

    def joined(self, others: Sequence[Any]) -> Rows:
        """These utterances, and after them those of other parts of the same train rows."""

    def inputs(self, rows: Tensor, needs: Mapping[str, Need]) -> dict[str, Any]:
        """What is needed of some of these utterances (…, batch) by modality, standardised, 0 where there is none.

        Of a "vector", or of one layer by its number, (…, batch, D_m); of "layers" (…, batch, layers, D_m); of "frames"
        (…, batch, T, D_m) and which are frames (…, batch, T).
        """

    def vectors(self, rows: Tensor) -> dict[str, Tensor]:
        """The last layer's vectors of some of these utterances, (…, batch) of 0 … n−1 → (…, batch, D_m) by modality.

        Zero, also after standardisation, where an utterance lacks the modality.
        """

    def layers(self, modality: str, rows: Tensor) -> Tensor:
        """All layers' vectors as cached, (…, batch) → (…, batch, layers, D_m), NaN where there are none."""

    def frames(self, modality: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences of some utterances (…, batch), padded with 0: (…, batch, T, D), and which are frames (…, batch, T).

        SettingError: the utterances are mixtures, of which there are no sequences.
        """

    def side(self, key: str, rows: Tensor) -> Tensor:
        """A `Side` by its key, (…, batch) → (…, batch, D), NaN where there is none."""

    def presence(self, rows: Tensor) -> Tensor | None:
        """Which heads some of these utterances have, (…, batch) of 0 … n−1 → (heads, …, batch); None: all of them.

        Heads are the modalities, then the fusion of several, which is there with any of them.
        """

    def having(self) -> npt.NDArray[np.bool_]:
        """Which of these utterances have which head, (heads, n)."""


class FoldData(Protocol):
    """The three parts of one fold."""

    @property
    def number(self) -> int:
        """From 1; part of every run's random stream."""

    @property
    def train(self) -> Rows: ...

    @property
    def dev(self) -> Rows: ...

    @property
    def test(self) -> Rows: ...

    @property
    def emotions(self) -> tuple[str, ...]:
        """C, as columns of the targets."""

    @property
    def side_recipes(self) -> Mapping[str, Mapping[str, Any]]:
        """Key of a `Side` → how it was made."""


class Fitted(Protocol):
    """One setting under one seed, trained."""

    @property
    def setting(self) -> Any:
        """Of the system's `Settings`."""

    @property
    def seed(self) -> int: ...

    @property
    def history(self) -> History: ...

    def probs(self, rows: Rows) -> Mapping[str, npt.NDArray[np.float32]]:
        """Head → predicted distributions (n, C); a row of NaN where the head predicts nothing.

        Of a multi-label system each class's probability of presence, in [0, 1]; above its `threshold`, one number that
        is chosen on dev, a class is predicted present.
        """

    def save(self, path: Path, origin: Mapping[str, Any]) -> None:
        """Write it into one file that predicts alone (`amber2_core.heads_folder`).

        `origin` is what the trainer knows of it: system and setting, fold, seed, emotions, label policy, features with
        their recipes, versions.
        """


class System(Protocol):
    """One way to predict raters' distributions, or which classes any of them chose.

    Own ones derive from this, or from `amber2_train.stacked.system`.
    """

    # as given to --system, and in results.csv
    name: str
    # a frozen dataclass of `option`s
    Settings: type
    # the --keep without which it would be another thing, as it learns from whatever is kept; "": any
    keeps: str = ""
    # the system of which it gives the very models, under another name; --system all has one of the two
    same_as: str = ""
    # where it reads frames, why vectors do not do: part of the line that refuses a cache without
    why_frames: str = ""

    def fit(
        self, fold: FoldData, settings: Sequence[Any], seeds: Sequence[int], options: FitOptions
    ) -> Iterator[Fitted]:
        """Every setting under every seed, in any order; of one `shape`. The rows of `fold.test` have no say."""
        ...

    def reads(self, setting: Any, modality: str) -> Need:
        """What it needs of the cache."""
        return "vector"

    def learns_from(self, setting: Any) -> LearnFrom:
        """Which train utterances it learns from; dev and test stay whole."""
        return "all"

    def sides(self, setting: Any) -> Sequence[Side]:
        """What it reads beside the modalities."""
        return ()

    def measures(self, fitted: Any, rows: Rows) -> Mapping[str, npt.NDArray[np.floating[Any]]]:
        """What else one of its `Fitted` tells of every utterance, as its uncertainty: name → numbers (n,)."""
        return {}

    def remarks(self, setting: Any) -> Sequence[str]:
        """Where it is another thing than its paper describes, a line each; a report shows them under its tables."""
        return ()

    def heads(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """The names of what it predicts; one named for a modality predicts for the utterances that have it."""
        return heads_of(modalities)

    def chooses(self, setting: Any) -> str:
        """The head whose dev JS, or what `decides` names, averaged over seeds, decides between settings.

        Of one modality alone its own stands for the fusion.
        """
        return FUSION_HEAD

    def kind(self, setting: Any) -> Kind:
        """What it predicts: distributions, or presence, which has metrics and tables of its own."""
        return DISTRIBUTION

    def decides(self, setting: Any) -> str:
        """The metric of its kind that decides on dev between settings."""
        return "js" if self.kind(setting) == DISTRIBUTION else "ml_macro_f1"

    def shape(self, setting: Any) -> Hashable:
        """What is equal for settings that are fitted together."""
        whole: Hashable = setting
        return whole

    def check(self, setting: Any, heads: Sequence[str]) -> None:
        """Raises SettingError for values that do not go together."""
        return

    def expert_weights(self, setting: Any, probs: Mapping[str, Floats], target: Floats) -> Mapping[str, Floats]:
        """How much each expert counted, (seeds, n) by head, from probabilities (seeds, n, C); none without experts."""
        return {}


@cache
def system_of(reference: str) -> System:
    """The system of that name, of a file's class, ``path/to/my_system.py:MySystem``, or of predictions of the cache,
    ``imported:NAME``.

    Raises:
        SettingError: there is none, or it cannot be loaded.
    """
    path, _, name = reference.rpartition(":")
    if path.endswith(".py"):
        return _made(reference, _module_of(Path(path)), name)
    if path == "imported":
        return _made(reference, importlib.import_module("amber2_train.systems.imported"), "Imported", name)
    ours = {each: EntryPoint(each, place, ENTRY_POINTS) for each, place in OURS.items()}
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)} if reference not in ours else {}
    found = (points | ours).get(reference)
    if found is None:
        known = [*ours, *points, "path/to/my_system.py:MySystem", "imported:NAME"]
        raise SettingError(bad_choice("system", reference, known))
    try:
        return _made(reference, importlib.import_module(found.module), found.attr)
    except ImportError as problem:
        raise SettingError(f"Cannot load the system {reference!r} from {found.value}: {problem}") from None


def systems_of(references: Sequence[str]) -> dict[str, System]:
    """Reference → system. SettingError: as `system_of`, or two go by one name."""
    found = {reference: system_of(reference) for reference in references}
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


def _made(reference: str, module: Any, name: str, *arguments: str) -> System:
    kind = getattr(module, name, None)
    if not isinstance(kind, type):
        held = [
            each
            for each, one in vars(module).items()
            if isinstance(one, type) and one.__module__ == module.__name__ and hasattr(one, "fit")
        ]
        line = f"Bad system {reference!r}: {module.__file__} has no class {name!r}"
        raise SettingError(f"{line}, it has {', '.join(held)}" if held else line)
    made: Any = kind(*arguments)
    for attribute in ("name", "Settings", "fit"):
        if not hasattr(made, attribute):
            raise SettingError(f"Bad system {reference!r}: {name} has no {attribute}; see docs/extend.md")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", made.name):
        raise SettingError(f"Bad system {reference!r}: its name {made.name!r} is to be a word such as my-system")
    frozen = getattr(getattr(made.Settings, "__dataclass_params__", None), "frozen", False)
    if not frozen or any("choices" not in each.metadata for each in fields(made.Settings)):
        what = f"the Settings of {name} are no frozen dataclass of options"
        raise SettingError(f"Bad system {reference!r}: {what}; see docs/extend.md")
    return made  # type: ignore[no-any-return]
