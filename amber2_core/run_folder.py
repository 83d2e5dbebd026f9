"""The run folder: what one call of `train-heads` leaves behind, so that anyone can recompute every number of it.

```
settings.json     `format_version`, 1 where it is not said; the command, and `started_in`, the folder from which its
                  paths go; corpus and cache (path, feature sets with fingerprints, what of them was read), label
                  policy, utterances kept and dropped by reason, folds with their sizes, `heard_before`, how many are
                  tested on though train or dev holds the same recording, grid, seeds, versions; and what the other
                  files hold: `axes`, the columns of results.csv that are settings, and `metrics`, those that are
                  scores, both in order; `digest`, one sha256 over the ids, inputs and raw votes that the run was
                  trained and tested on, and `digests`, its parts: ids, each modality's inputs, votes; `remarks`,
                  system → lines that its results must not be read without, such as what was changed against its
                  paper; `kinds`, system → distribution or multi-label, distribution where it is not said
results.csv       one row per (system, head, split, fold, seed, setting): `KEY_COLUMNS`, the axes by their names,
                  `epoch` (from 1) and `n` utterances, then the metrics. split is dev for every setting, test for the
                  selected one (with --score-all for every one), and test_synthetic for its predictions on test once
                  more, against synthetic raters on the utterances that have any, where the cache held some: dev and
                  test are people's targets. selected is 1 where dev chose the setting. A head is
                  scored on the utterances that have its modality (with --missing mask some may lack it), or that have
                  a prediction where predictions were imported, and `n` says how many. Metrics are nan where n is 0, and
                  where epoch is 0, since no epoch was kept: the run
                  diverged at once, or (n is 0 then on test) no dev utterance has the head; r2 is nan of two classes
                  (earlier versions wrote a number, which `load` leaves out). epoch is empty where a system trains by
                  none. Systems that predict which classes are present have metrics of their own, in columns beside
                  those of distributions; either are empty for the other kind.
                  A setting that a system does not look at is empty. Any other column is carried along: it is
                  neither a setting nor a score
curves.csv        how the selected settings trained: one row per (system, head, fold, seed, epoch), `dev_js` is the JS
                  on dev after that epoch, at the precision of training; nan where no dev utterance has the head. With
                  --patience a head's rows end where it stopped. The epoch that was kept is in results.csv
experts.csv       what the selected settings learnt about modalities, on test: one row per (system, fold, seed, by,
                  group), `by` is all, class (the target's largest share) or ambiguity (its entropy in bits, five
                  bins); `n` utterances; `weight_<head>` the mean expert weight u (Eq. 5), which is 0 for an expert that
                  an utterance has not got; empty for the student and for systems without experts; `disagreement` the
                  mean JS(p_A‖p_T), of more modalities over their pairs, of the utterances that have both; empty where
                  none has
predictions.npz   id (N,), fold (N,), target (N, C), emotions (C,), perhaps synthetic (N, C), what synthetic raters
                  say, rows of NaN where none rated the utterance; and for every system and head `<system>/<head>`
                  (seeds, N, C) float32: probabilities of the selected setting on test, seeds ascending; N runs over all
                  folds' test rows. A row is NaN, whole, where the head predicts nothing: the utterance lacks its
                  modality, or no epoch of it was kept. The test and test_synthetic rows of results.csv are the metrics
                  of exactly these numbers. `measure/<system>/<name>` (seeds, N), where a system measures more of an
                  utterance than its distribution, such as the vacuity of its evidence; NaN where it measures nothing.
                  Of a multi-label system there are probabilities of presence, each in [0, 1], and
                  `threshold:<system>` (seeds, folds) tells above what a class is predicted present, folds ascending
utterances.csv    who and what was tested: one row for each of the N of predictions.npz, in their order:
                  `UTTERANCE_COLUMNS`, then the corpus's attributes of text by their names; empty where it is unknown
heads/            <system>-fold<k>-seed<s>.safetensors: the selected heads (`amber2_core.heads_folder`)
summary.json      table: system → head → metric → mean and sd (`summarise`); against_synthetic: the same of the rows
                  test_synthetic, where there are any; selected: system → fold → setting
log.txt           what was logged, line by line
tensorboard/      with --track tensorboard: event files, made from the files above when they were complete
```
CSV is UTF-8 with a header; numbers stand in full, so that they read back as the same, and an empty cell is missing.
A run folder stands under its name only when it is complete. What is not lies beside it, as NAME.unfinished.

Folders of every earlier version are read, those of a later one are refused. Where `axes` is not declared it is
`EARLIER_AXES`; curves.csv, utterances.csv and `digest` may be missing; a metric that is younger than the folder is
computed from predictions.npz (`load`).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import RunFolderError, parse_problem
from .files import folder_written_whole
from .files import write_json as write_json  # settings.json and summary.json are written by it
from .kinds import DISTRIBUTION, MULTI_LABEL, Kind
from .metrics import METRICS_OF, R2_CLASSES, metrics_of_kinds, present
from .tables import Texts

if TYPE_CHECKING:  # it takes half a second to load, for which no command should wait that does not need it
    from pandas import DataFrame, Series

FORMAT_VERSION = 3  # 1: folders that do not declare what they hold; 2: those that hold distributions alone
THRESHOLD = "threshold:"  # before the name of a system in predictions.npz
KEY_COLUMNS = ("system", "head", "split", "fold", "seed", "selected")
EXPERT_COLUMNS = ("system", "fold", "seed", "by", "group", "n", "disagreement")
AGAINST_SYNTHETIC = "test_synthetic"  # the split of rows that are scored against synthetic raters
SYNTHETIC_VOTES = "synthetic votes"  # the digest of what these said
CURVE_COLUMNS = ("system", "head", "fold", "seed", "epoch", "dev_js")
UTTERANCE_COLUMNS = ("id", "fold", "speaker", "session", "dialogue", "split", "language")
# the settings of folders that do not declare theirs
EARLIER_AXES = (
    "lambda_rai", "lambda_mai", "lambda_expert", "kappa", "student", "loss", "weight_gradient", "expert_gradient",
    "labels", "fusion", "hidden", "dropout", "lr", "weight_decay", "batch_size",
)  # fmt: skip
# what readers look into must be of these types, a whole before its parts; null is as good as nothing
SETTING_TYPES: Mapping[str, type] = {
    "command": list, "started_in": str, "corpus": str, "cache": str, "features": dict, "policy": dict, "emotions": list,
    "folds": dict, "utterances": dict, "systems": list, "axes": list, "metrics": list, "digest": str, "digests": dict,
    "remarks": dict, "remarks.*": list, "features.*": dict, "folds.sizes": dict, "policy.emotions": list,
    "digests.*": str, "kinds": dict, "kinds.*": str,
}  # fmt: skip
MEASURE = "measure/"  # what the names of measures begin with in predictions.npz
JSON_WORDS: Mapping[type, str] = {list: "a list", str: "text", dict: "an object"}

Row = Mapping[str, Any]  # one row of a table
Floats = npt.NDArray[np.float64]
# system → head → metric → {"mean", "sd"}
Summary = dict[str, dict[str, dict[str, dict[str, float | None]]]]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities of the selected settings on every fold's test rows."""

    id: Texts  # (N,)
    fold: npt.NDArray[np.int64]  # (N,)
    target: npt.NDArray[np.float32]  # (N, C)
    emotions: tuple[str, ...]  # C
    probs: Mapping[str, npt.NDArray[np.float32]]  # "<system>/<head>" → (seeds, N, C), NaN rows: no prediction
    # (N, C) what synthetic raters say, NaN rows where none rated the utterance; None where none rated any
    synthetic: npt.NDArray[np.float32] | None = None
    measures: Mapping[str, Floats] = field(default_factory=dict)  # "<system>/<name>" → (seeds, N), NaN: not measured
    # multi-label system → (seeds, folds) above what a class is predicted present; nothing of other systems
    thresholds: Mapping[str, Floats] = field(default_factory=dict)

    @cached_property
    def folds(self) -> dict[int, npt.NDArray[np.intp]]:
        """The rows of each fold, by its number."""
        return {int(number): np.flatnonzero(self.fold == number) for number in np.unique(self.fold)}


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A run folder as tables of pandas; what is missing in them is NaN, of the words of utterances ""."""

    name: str  # of the folder
    path: Path
    settings: Mapping[str, Any]  # settings.json
    axes: tuple[str, ...]  # the columns of `results` that are settings
    # one row per row of results.csv; and every metric that can be computed, for the tested rows if the file lacks it
    results: DataFrame
    arrays: Predictions  # predictions.npz
    # one row per row of predictions.npz: id, fold, the rest of utterances.csv where there is such a file, and the rated
    # share of each emotion under `rated_<emotion>`; where synthetic raters rated, theirs under `synthetic_<emotion>`
    utterances: DataFrame
    experts: DataFrame  # one row per row of experts.csv; empty where a run has none
    curves: DataFrame  # one row per row of curves.csv; empty where a run has none

    @cached_property
    def tested(self) -> DataFrame:
        """The test rows of the settings that dev chose; a run may have scored the others on test as well."""
        return self.results[(self.results["split"] == "test") & (self.results["selected"] == 1)]

    @cached_property
    def against_synthetic(self) -> DataFrame:
        """The same predictions' rows against synthetic raters; none where nobody but people rated."""
        return self.results[(self.results["split"] == AGAINST_SYNTHETIC) & (self.results["selected"] == 1)]

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """What each system predicts, in the order of results.csv."""
        told = self.settings.get("kinds", {})
        return {
            str(name): MULTI_LABEL if told.get(name) == MULTI_LABEL else DISTRIBUTION
            for name in self.results["system"].unique()
        }

    @property
    def probs(self) -> Iterator[tuple[str, str, Any, npt.NDArray[np.float32]]]:
        """(system, head, seed, (N, C)) of every head whose predictions fit its tested rows."""
        for (system, head), rows in self.tested.groupby(["system", "head"], sort=False):
            seeds, probs = sorted(rows["seed"].unique()), self.arrays.probs.get(f"{system}/{head}", ())
            if len(seeds) == len(probs):
                yield from ((str(system), str(head), *pair) for pair in zip(seeds, probs, strict=True))

    @cached_property
    def predictions(self) -> DataFrame:
        """One row per test utterance, system, head and seed, with its fold and the shares as `predicted_<emotion>`.

        No row where the head predicts nothing.
        """
        import pandas as pd

        p, parts = self.arrays, []
        columns = [f"predicted_{emotion}" for emotion in p.emotions]
        for system, head, seed, probs in self.probs:
            key = {"id": p.id, "fold": p.fold, "system": system, "head": head, "seed": seed}
            part = pd.DataFrame(key).join(pd.DataFrame(probs, columns=columns))
            parts.append(part.iloc[np.flatnonzero(~np.isnan(probs).any(axis=-1))])
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


@contextmanager
def new_run_folder(path: Path) -> Iterator[Path]:
    """A folder to write a run into; it takes the name `path` when the block ends well, and is gone when it does not.

    Raises:
        RunFolderError: something stands under that name already, or the place cannot be written.
    """
    if path.exists():
        raise RunFolderError(f"{path} exists already: name another folder with --output, or remove that one")
    begun = False
    try:
        with folder_written_whole(path) as writing:
            begun = True
            yield writing
    except OSError as problem:
        then = "nothing stands under that name" if begun else "choose another place with --output"
        raise RunFolderError(f"Cannot write {path}: {problem.strerror}; {then}") from None


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Write results.csv; None, and what a row lacks and others have, is an empty cell, numbers stand in full."""
    _write_rows(path, rows, (*KEY_COLUMNS, "epoch", "n"))


def write_curves(path: Path, rows: Sequence[Row]) -> None:
    """Write curves.csv, as `write_results`."""
    _write_rows(path, rows, CURVE_COLUMNS)


def write_experts(path: Path, rows: Sequence[Row]) -> None:
    """Write experts.csv, as `write_results`."""
    _write_rows(path, rows, EXPERT_COLUMNS)


def write_utterances(path: Path, rows: Sequence[Row]) -> None:
    """Write utterances.csv, as `write_results`; the rows stand in the order of the predictions."""
    _write_rows(path, rows, UTTERANCE_COLUMNS)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions.npz, without pickled objects."""
    arrays: dict[str, Any] = {
        "id": predictions.id.astype(np.str_),
        "fold": predictions.fold,
        "target": predictions.target,
        "emotions": np.array(predictions.emotions, dtype=np.str_),
        **predictions.probs,
        **{MEASURE + name: values for name, values in predictions.measures.items()},
    }
    arrays |= {f"{THRESHOLD}{system}": some for system, some in predictions.thresholds.items()}
    if predictions.synthetic is not None:
        arrays["synthetic"] = predictions.synthetic
    np.savez_compressed(path, **arrays)


def shown_name(folder: Path) -> str:
    """The name of a folder as it can be written anywhere: bytes of it that are no UTF-8 are shown as �."""
    return os.fsencode(folder.resolve().name).decode("utf-8", "replace")


def read_settings(folder: Path) -> dict[str, Any]:
    """settings.json of a run folder; a fold protocol that stands there as a word is made a record of it.

    Raises:
        RunFolderError: not a run folder, or one of a later version, or damaged: what readers look into is not of its
            type.
    """
    path = folder / "settings.json"
    settings = _read_json(path)
    version = settings.get("format_version", 1)
    if type(version) is int and version > FORMAT_VERSION:
        raise RunFolderError(
            f"{folder} is a run folder of version {version}, and this amber2 reads up to version {FORMAT_VERSION}: "
            "install a newer one"
        )
    if type(version) is not int or version < 1:
        raise RunFolderError(_odd(path, "format_version", version, "a whole number from 1"))
    settings = {name: value for name, value in settings.items() if value is not None or name not in SETTING_TYPES}
    for name, kind in SETTING_TYPES.items():
        whole, _, part = name.partition(".")
        values = settings if not part else settings.get(whole, {})
        for key in values if part == "*" else {part or whole} & values.keys():
            if not isinstance(value := values[key], kind):
                where = f"{whole}.{key}" if part else key
                raise RunFolderError(_odd(path, where, value, JSON_WORDS[kind]))
    return settings


def remembered_cache(folder: Path, settings: Mapping[str, Any]) -> tuple[Path | None, bool]:
    """Where the cache of a run lies, and whether it is a guess; None where the run does not say.

    A path that is not absolute goes from where the run was started. Where that is not known, or the cache is not there,
    it is looked for from here and, a guess, from the run folder and what it lies in.
    """
    named = str(settings.get("cache") or "")
    if not named:
        return None, False
    here = [Path(started, named) for started in (settings.get("started_in") or ".", ".")]
    beside = [parent / named for parent in folder.resolve().parents[:3]]
    return next(
        ((place, place in beside and place not in here) for place in (*here, *beside) if place.is_file()),
        (Path(named), False),
    )


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run folder. RunFolderError: as `read_settings`."""
    return _read_json(folder / "summary.json")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The rows of results.csv: whole numbers as int, other numbers as float, "" as None, the rest as text.

    Raises:
        RunFolderError: not a run folder, or the file is damaged.
    """
    path = _file(folder / "results.csv")
    rows = _read_rows(path, (*KEY_COLUMNS, "epoch", "n"))
    if not rows:
        raise RunFolderError(f"{path} has no rows: train again")
    return rows


def read_predictions(folder: Path) -> Predictions:
    """predictions.npz of a run folder.

    Raises:
        RunFolderError: not a run folder, or the file is damaged, or its parts do not fit.
    """
    path = _file(folder / "predictions.npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            measures = {name for name in arrays.files if name.startswith(MEASURE) and name.count("/") > 1}
            predictions = Predictions(
                id=arrays["id"].astype(object),
                fold=arrays["fold"],
                target=arrays["target"],
                emotions=tuple(arrays["emotions"].tolist()),
                probs={name: arrays[name] for name in arrays.files if "/" in name and name not in measures},
                synthetic=arrays["synthetic"] if "synthetic" in arrays.files else None,
                measures={n.removeprefix(MEASURE): arrays[n].astype(np.float64) for n in arrays.files if n in measures},
                thresholds={
                    name.removeprefix(THRESHOLD): arrays[name] for name in arrays.files if name.startswith(THRESHOLD)
                },
            )
    except Exception as problem:  # zipfile and zlib raise many things on damaged bytes
        raise RunFolderError(f"{path} is damaged ({problem}): train again") from None
    _check_shapes(path, predictions)
    return predictions


def read_experts(folder: Path) -> list[dict[str, Any]]:
    """The rows of experts.csv, values as in `read_results`. RunFolderError: not a run folder, or damaged."""
    return _read_rows(_file(folder / "experts.csv"), EXPERT_COLUMNS)


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """The rows of curves.csv, values as in `read_results`; none where an earlier version wrote the folder.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = folder / "curves.csv"
    return _read_rows(path, CURVE_COLUMNS) if path.is_file() else []


def read_utterances(folder: Path) -> DataFrame | None:
    """utterances.csv: `fold` in whole numbers, all else text, ""; None where an earlier version wrote the folder.

    Raises:
        RunFolderError: the file is damaged.
    """
    import pandas as pd

    path = folder / "utterances.csv"
    if not path.is_file():
        return None
    header, rows = _cells(path, UTTERANCE_COLUMNS)
    try:
        return pd.DataFrame(rows, columns=header, dtype=object).astype({"fold": np.int64})
    except (ValueError, OverflowError) as problem:
        raise RunFolderError(f"{path} is damaged (fold: {problem}): train again") from None


def axes_of(settings: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """Which columns of results.csv are settings: those that settings.json declares, else those of earlier versions."""
    declared = settings.get("axes")
    declared = EARLIER_AXES if declared is None else declared
    return tuple(name for name in columns if name in declared and name not in KEY_COLUMNS)


def load(folder: Path | str) -> RunFolder:
    """A run folder as tables of pandas.

    A metric that results.csv lacks is computed for the tested rows from predictions.npz; where that cannot be, there is
    no column of it. Blank is `r2` of two classes, which earlier versions wrote down.

    Raises:
        RunFolderError: not a run folder, one of its files is damaged, or utterances.csv is of another run.
    """
    import pandas as pd

    folder = Path(folder)
    settings, rows, arrays = read_settings(folder), read_results(folder), read_predictions(folder)
    found, count = read_utterances(folder), len(arrays.id)
    if found is None:
        found = pd.DataFrame({"id": arrays.id, "fold": arrays.fold})
    elif len(found) != count or (found["id"] != arrays.id).any() or (found["fold"] != arrays.fold).any():
        raise RunFolderError(f"{folder / 'utterances.csv'} and predictions.npz are not of the same run: train again")
    rated = pd.DataFrame(arrays.target, columns=[f"rated_{emotion}" for emotion in arrays.emotions])
    if arrays.synthetic is not None:
        said = pd.DataFrame(arrays.synthetic, columns=[f"synthetic_{emotion}" for emotion in arrays.emotions])
        rated = pd.concat([rated, said], axis=1)
    results = _table(rows)
    if "r2" in results and len(arrays.emotions) < R2_CLASSES:
        results["r2"] = math.nan
    run = RunFolder(
        name=shown_name(folder),
        path=folder,
        settings=settings,
        axes=axes_of(settings, list(results.columns)),
        results=results,
        arrays=arrays,
        utterances=pd.concat([found.drop(columns=rated.columns, errors="ignore"), rated], axis=1),
        experts=_table(read_experts(folder) if (folder / "experts.csv").is_file() else []),
        curves=_table(read_curves(folder)),
    )
    return _with_younger_metrics(run)


def scores_again(run: RunFolder, metrics: Sequence[str], *, split: str = "test") -> DataFrame:
    """The scores that predictions.npz gives: one row per system, head, fold and seed, with `n` and the metrics.

    Against people's targets, or, of the split `AGAINST_SYNTHETIC`, against synthetic raters; no row where it has none.
    """
    import pandas as pd

    p, rows = run.arrays, []
    target = p.synthetic if split == AGAINST_SYNTHETIC else p.target
    if target is None:
        return pd.DataFrame()
    for (system, head, seed, probs), (fold, members) in itertools.product(run.probs, p.folds.items()):
        own = members[~np.isnan(probs[members, 0]) & ~np.isnan(target[members, 0])]
        known, said = METRICS_OF[run.kinds[system]], probs[own]
        if run.kinds[system] == MULTI_LABEL:
            said = present(said, _threshold(run, system, seed, fold))
        scores = {name: float(known[name](target[own], said)) if name in known else math.nan for name in metrics}
        rows.append({"system": system, "head": head, "fold": fold, "seed": seed, "n": len(own), **scores})
    return pd.DataFrame(rows)


def _threshold(run: RunFolder, system: str, seed: int, fold: int) -> float:
    """Above what a class was predicted present. RunFolderError: predictions.npz does not tell."""
    of_system = run.tested.loc[run.tested["system"] == system, "seed"]
    seeds, folds = sorted(of_system.unique()), list(run.arrays.folds)
    found = run.arrays.thresholds.get(system, np.empty(0))
    if found.shape != (len(seeds), len(folds)):
        raise RunFolderError(f"{run.path / 'predictions.npz'} has no thresholds of {system}: train again")
    return float(found[seeds.index(seed), folds.index(fold)])


def version_of(kinds: Mapping[str, Kind]) -> int:
    """The version of a folder of these systems: one of distributions alone is read by earlier amber2, too."""
    return FORMAT_VERSION if MULTI_LABEL in kinds.values() else 2


def fold_means(rows: DataFrame, metrics: Sequence[str]) -> Floats:
    """Metrics of rows of results.csv, averaged over the folds of each seed → (metrics, seeds), seeds ascending.

    A fold with nothing to score (n 0) is left out; NaN where no fold had anything.
    """
    scores, seed = rows[list(metrics)].to_numpy(np.float64), rows["seed"].to_numpy()
    scored = rows["n"].to_numpy() > 0
    of_seeds = [np.ascontiguousarray(scores[scored & (seed == one)].T) for one in np.unique(seed)]  # (metrics, folds)
    means = [some.mean(-1) if some.size else np.full(len(metrics), np.nan) for some in of_seeds]
    return np.stack(means, axis=-1)


def summarise(rows: Sequence[Row], *, split: str = "test", kinds: Mapping[str, Kind] | None = None) -> Summary:
    """system → head → metric → mean and sd, over the rows of a split of the selected settings.

    Of every system the metrics of its kind, distributions where `kinds` does not tell.

    A metric is averaged over the folds of each seed first (`fold_means`); mean and sd (ddof 1, None for a single seed)
    are over seeds. None for a head that was scored nowhere, or diverged.
    """
    table: Summary = {}
    results = _table([row for row in rows if row["split"] == split and row["selected"]])
    if not len(results):
        return table
    for (system, head), own in results.groupby(["system", "head"], sort=False):
        metrics = [name for name in METRICS_OF[(kinds or {}).get(str(system), DISTRIBUTION)] if name in results]
        scores = fold_means(own, metrics)
        table.setdefault(str(system), {})[str(head)] = {
            metric: mean_and_sd(of_seeds) for metric, of_seeds in zip(metrics, scores, strict=True)
        }
    return table


def mean_and_sd(values: Floats) -> dict[str, float | None]:
    """Of values (seeds,): mean, and sd with ddof 1; None for what is no number."""
    mean = float(np.mean(values))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {"mean": mean if math.isfinite(mean) else None, "sd": sd if math.isfinite(sd) else None}


def _check_shapes(path: Path, p: Predictions) -> None:
    count, classes, again = len(p.id), len(p.emotions), "it is not as train-heads writes it; train again"
    if not p.probs or not count or p.target.shape != (count, classes) or p.fold.shape != (count,):
        raise RunFolderError(f"{path} holds no predictions that fit its targets: {again}")
    said = p.target if p.synthetic is None else p.synthetic
    if said.shape != p.target.shape or (~np.isfinite(said)).any(axis=-1).sum() != np.isnan(said).all(axis=-1).sum():
        raise RunFolderError(f"{path}: synthetic is no distributions that fit its targets: {again}")
    for name, probs in p.probs.items():
        if probs.ndim != 3 or probs.shape[1:] != (count, classes) or not len(probs):
            expected = f"(seeds, {count}, {classes})"
            raise RunFolderError(f"{path}: {name} has shape {probs.shape}, expected {expected}: {again}")
        no_number = ~np.isfinite(probs)  # allowed in whole rows of NaN alone: the head predicts nothing there
        odd = no_number.any(axis=-1) & ~np.isnan(probs).all(axis=-1)
        if odd.any() or not np.isfinite(p.target).all():
            raise RunFolderError(f"{path}: {name} or its targets hold no number: {again}")
    systems = {name.partition("/")[0]: len(probs) for name, probs in p.probs.items()}
    for name, values in p.measures.items():
        seeds = systems.get(name.partition("/")[0])
        if seeds is None:
            raise RunFolderError(f"{path}: {MEASURE}{name} is of a system without predictions: {again}")
        if values.shape != (seeds, count) or np.isinf(values).any():
            raise RunFolderError(f"{path}: {MEASURE}{name} is not ({seeds}, {count}) of numbers: {again}")


def _with_younger_metrics(run: RunFolder) -> RunFolder:
    """Filled in is what there are metrics of, and results.csv does not hold, where the predictions fit the results."""
    import pandas as pd

    younger = [name for name in metrics_of_kinds(run.kinds.values()) if name not in run.results]
    key, parts = ["system", "head", "fold", "seed"], []
    for split, rows in (("test", run.tested), (AGAINST_SYNTHETIC, run.against_synthetic)):
        again = scores_again(run, younger, split=split) if younger else pd.DataFrame()
        if not again.empty:
            in_order = again.set_index(key).reindex(pd.MultiIndex.from_frame(rows[key])).set_axis(rows.index)
            parts.append(in_order[younger])
    return replace(run, results=run.results.join(pd.concat(parts))) if parts else run


def _write_rows(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Write rows; where there are none, the header alone with the columns that there must be."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _names(rows) or columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)


def _read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    header, rows = _cells(path, columns)
    return [{name: _value(cell) for name, cell in zip(header, row, strict=True)} for row in rows]


def _cells(path: Path, columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a file that must have some columns; RunFolderError if it lost anything."""
    try:  # not pandas, which fills up lines that were cut off
        text = path.read_bytes().decode("utf-8")
        header, *rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as problem:
        raise RunFolderError(f"{path} is damaged ({problem}): train again") from None
    missing = [name for name in columns if name not in header]
    if missing:
        raise RunFolderError(f"{path} has no column {missing[0]!r}: it was not written by train-heads")
    if len(set(header)) < len(header):
        raise RunFolderError(f"{path} is damaged (two columns of one name): train again")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            cut_off = parse_problem(path, line, f"expected {len(header)} columns, got {len(row)}")
            raise RunFolderError(f"{cut_off}: train again")
    if not text.endswith("\n"):
        raise RunFolderError(f"{parse_problem(path, len(rows) + 1, 'the line is cut off')}: train again")
    return header, rows


def _value(text: str) -> Any:
    if not text:
        return None
    with suppress(ValueError):
        if abs(whole := int(text)) < 2**63:  # what tables can hold
            return whole
    with suppress(ValueError):
        return float(text)
    return text


def _names(rows: Sequence[Row]) -> list[str]:
    """All that rows name, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _table(rows: Sequence[Row]) -> DataFrame:
    """Rows as a table: whole numbers, else numbers, where all that is there is such, else words."""
    import pandas as pd

    return pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in _names(rows)})


def _column(values: Sequence[Any]) -> Series[Any]:
    import pandas as pd

    there = [value for value in values if value is not None]
    if there and all(isinstance(value, int) for value in there):
        return pd.Series(values, dtype="int64" if len(there) == len(values) else "Int64")
    if all(isinstance(value, int | float) for value in there):
        return pd.Series([math.nan if value is None else value for value in values], dtype="float64")
    return pd.Series([value if value is None else str(value) for value in values], dtype="str")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_file(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise RunFolderError(f"{path} is damaged ({problem}): train again") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} is damaged (not a JSON object): train again")
    return value


def _odd(path: Path, name: str, value: Any, expected: str) -> str:
    return f"{path}: {name} is {json.dumps(value)[:60]}, expected {expected}: it was changed by hand, train again"


def _file(path: Path) -> Path:
    if not path.is_file():
        raise RunFolderError(f"{path.parent} is not a run folder: it has no {path.name}")
    return path
