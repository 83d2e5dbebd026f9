"""The run folder: what one call of `train-heads` leaves behind, so that anyone can recompute every number of it.

```
settings.json     the command, corpus and cache (path, feature sets with fingerprints), label policy, utterances kept
                  and dropped by reason, folds with their sizes, grid, seeds, versions
results.csv       one row per (system, head, split, fold, seed, setting): `KEY_COLUMNS`, the settings by their names,
                  `epoch` (from 1) and `n` utterances, then every metric of `amber2_core.metrics`. split is dev for
                  every setting, test for the selected one (with --score-all for every one); selected is 1 where dev
                  chose the setting. A head is scored on the utterances that have its modality (with --missing mask
                  some may lack it), and `n` says how many. Metrics are nan where n is 0, and where epoch is 0, since
                  no epoch was kept: the run diverged at once, or (n is 0 then on test) no dev utterance has the head.
                  A setting that a system does not look at is empty.
curves.csv        how the selected settings trained: one row per (system, head, fold, seed, epoch), `dev_js` is the JS
                  on dev after that epoch, at the precision of training; nan where no dev utterance has the head. With
                  --patience a head's rows end where it stopped. The epoch that was kept is in results.csv. Folders of
                  older versions have no such file
experts.csv       what the selected settings learnt about modalities, on test: one row per (system, fold, seed, by,
                  group), `by` is all, class (the target's largest share) or ambiguity (its entropy in bits, five
                  bins); `n` utterances; `weight_<head>` the mean expert weight u (Eq. 5), which is 0 for an expert that
                  an utterance has not got; empty for the student and for systems without experts; `disagreement` the
                  mean JS(p_A‖p_T), of more modalities over their pairs, of the utterances that have both; empty where
                  none has
predictions.npz   id (N,), fold (N,), target (N, C), emotions (C,), and for every system and head `<system>/<head>`
                  (seeds, N, C) float32: probabilities of the selected setting on test; N runs over all folds' test
                  rows. A row is NaN, whole, where the head predicts nothing: the utterance lacks its modality, or no
                  epoch of it was kept. The test rows of results.csv are the metrics of exactly these numbers.
heads/            <system>-fold<k>-seed<s>.safetensors: the selected heads (`amber2_core.heads_folder`)
summary.json      table: system → head → metric → mean and sd (`summarise`); selected: system → fold → setting
log.txt           what was logged, line by line
tensorboard/      with --track tensorboard: event files, made from the files above when they were complete
```
A run folder stands under its name only when it is complete. What is not lies beside it, as NAME.unfinished.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cache import sync
from .errors import RunFolderError, parse_problem
from .metrics import METRICS
from .tables import Texts

KEY_COLUMNS = ("system", "head", "split", "fold", "seed", "selected")
EXPERT_COLUMNS = ("system", "fold", "seed", "by", "group", "n", "disagreement")
CURVE_COLUMNS = ("system", "head", "fold", "seed", "epoch", "dev_js")
Row = Mapping[str, Any]  # one row of a table
Summary = dict[str, dict[str, dict[str, dict[str, float | None]]]]
Columns = dict[str, npt.NDArray[Any]]  # a tidy table: name → (rows,); `pandas.DataFrame(columns)` takes it as it is


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities of the selected settings on every fold's test rows."""

    id: Texts  # (N,)
    fold: npt.NDArray[np.int64]  # (N,)
    target: npt.NDArray[np.float32]  # (N, C)
    emotions: tuple[str, ...]  # C
    probs: Mapping[str, npt.NDArray[np.float32]]  # "<system>/<head>" → (seeds, N, C), NaN rows: no prediction


@dataclass(frozen=True, eq=False)
class RunTables:
    """A run folder as tidy tables; a number that is missing is NaN, a missing word is ""."""

    settings: Mapping[str, Any]  # settings.json
    results: Columns  # one row per row of results.csv
    # one row per test utterance: id, fold, and the rated share of each emotion under `rated_<emotion>`
    utterances: Columns
    # one row per test utterance, system, head and seed: these and fold, and the shares under `predicted_<emotion>`;
    # none where the head predicts nothing
    predictions: Columns
    experts: Columns  # one row per row of experts.csv; empty where a run has none
    curves: Columns  # one row per row of curves.csv; empty where a run has none


@contextmanager
def new_run_folder(path: Path) -> Iterator[Path]:
    """A folder to write a run into; it takes the name `path` when the block ends well, and is gone when it does not.

    Raises:
        RunFolderError: something stands under that name already, or the place cannot be written.
    """
    if path.exists():
        raise RunFolderError(f"{path} exists already: name another folder with --output, or remove that one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".writing", dir=path.parent))
    except OSError as problem:
        raise RunFolderError(f"Cannot write {path}: {problem.strerror}; choose another place with --output") from None
    try:
        yield writing
        for file in [*writing.rglob("*"), writing]:
            sync(file)
        writing.chmod(0o755)
        writing.rename(path)
        sync(path.parent)
    except OSError as problem:
        raise RunFolderError(f"Cannot write {path}: {problem.strerror}; nothing stands under that name") from None
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write settings.json or summary.json."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Write results.csv; numbers in full, so that they read back as the same."""
    _write_table(path, rows)


def write_curves(path: Path, rows: Sequence[Row]) -> None:
    """Write curves.csv, as `write_results`."""
    _write_table(path, rows)


def write_experts(path: Path, rows: Sequence[Row]) -> None:
    """Write experts.csv, as `write_results`."""
    _write_table(path, rows)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions.npz, without pickled objects."""
    arrays: dict[str, Any] = {
        "id": predictions.id.astype(np.str_),
        "fold": predictions.fold,
        "target": predictions.target,
        "emotions": np.array(predictions.emotions, dtype=np.str_),
        **predictions.probs,
    }
    np.savez_compressed(path, **arrays)


def read_settings(folder: Path) -> dict[str, Any]:
    """settings.json of a run folder.

    Raises:
        RunFolderError: not a run folder, or damaged.
    """
    return _read_json(folder / "settings.json")


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run folder. RunFolderError: as `read_settings`."""
    return _read_json(folder / "summary.json")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The rows of results.csv: whole numbers as int, other numbers as float, "" as None, the rest as text.

    Raises:
        RunFolderError: not a run folder, or the file is damaged.
    """
    return _read_table(folder / "results.csv", (*KEY_COLUMNS, "epoch", "n", *METRICS))


def read_predictions(folder: Path) -> Predictions:
    """predictions.npz of a run folder.

    Raises:
        RunFolderError: not a run folder, or the file is damaged.
    """
    path = _file(folder / "predictions.npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Predictions(
                id=arrays["id"].astype(object),
                fold=arrays["fold"],
                target=arrays["target"],
                emotions=tuple(arrays["emotions"].tolist()),
                probs={name: arrays[name] for name in arrays.files if "/" in name},
            )
    except Exception as problem:  # zipfile and zlib raise many things on damaged bytes
        raise RunFolderError(f"{path} is damaged ({problem}): train again") from None


def read_experts(folder: Path) -> list[dict[str, Any]]:
    """The rows of experts.csv, values as in `read_results`. RunFolderError: not a run folder, or damaged."""
    return _read_table(folder / "experts.csv", EXPERT_COLUMNS)


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """The rows of curves.csv, values as in `read_results`; none where an older version wrote the folder.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = folder / "curves.csv"
    return _read_table(path, CURVE_COLUMNS) if path.is_file() else []


def load(folder: Path | str) -> RunTables:
    """A run folder as tables for numpy, pandas or polars.

    Raises:
        RunFolderError: not a run folder, or one of its files is damaged.
    """
    folder = Path(folder)
    predictions, results = read_predictions(folder), read_results(folder)
    emotions = predictions.emotions
    seeds = sorted({row["seed"] for row in results})
    long: dict[str, list[npt.NDArray[Any]]] = {}
    for (name, probs), k in ((item, k) for item in predictions.probs.items() for k in range(len(item[1]))):
        system, _, head = name.partition("/")
        words = {"system": system, "head": head, "seed": seeds[k]}
        part = {"id": predictions.id, "fold": predictions.fold}
        part |= {column: np.full(len(predictions.id), value) for column, value in words.items()}
        part |= {f"predicted_{emotion}": probs[k, :, c] for c, emotion in enumerate(emotions)}
        there = ~np.isnan(probs[k]).any(axis=-1)
        for column, values in part.items():
            long.setdefault(column, []).append(values if there.all() else values[there])
    rated = {f"rated_{emotion}": predictions.target[:, c] for c, emotion in enumerate(emotions)}
    return RunTables(
        settings=read_settings(folder),
        results=_columns(results),
        utterances={"id": predictions.id, "fold": predictions.fold, **rated},
        predictions={column: np.concatenate(parts) for column, parts in long.items()},
        experts=_columns(read_experts(folder)) if (folder / "experts.csv").is_file() else {},
        curves=_columns(read_curves(folder)),
    )


def summarise(rows: Sequence[Row]) -> Summary:
    """system → head → metric → mean and sd, over the test rows of the selected settings.

    A metric is averaged over the folds of each seed first, those with nothing to score (n 0) left out; mean and sd
    (ddof 1, None for a single seed) are over seeds. None for a head that was scored nowhere, or diverged.
    """
    table: Summary = {}
    tested = [row for row in rows if row["split"] == "test" and row["selected"]]
    for system, head in dict.fromkeys((row["system"], row["head"]) for row in tested):
        own = [row for row in tested if (row["system"], row["head"]) == (system, head)]
        seeds = sorted({row["seed"] for row in own})
        table.setdefault(system, {})[head] = {
            metric: _mean_and_sd([fold_mean([row for row in own if row["seed"] == seed], metric) for seed in seeds])
            for metric in METRICS
        }
    return table


def fold_mean(rows: Sequence[Row], metric: str) -> float:
    """A metric averaged over rows of results.csv, one per fold; NaN where no fold had anything to score."""
    values = [row[metric] for row in rows if row["n"]]
    return float(np.mean(np.array(values, dtype=np.float64))) if values else math.nan


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)


def _read_table(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    try:
        with _file(path).open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as problem:
        raise RunFolderError(f"{path} is damaged ({problem}): train again") from None
    missing = [name for name in columns if name not in header]
    if missing:
        raise RunFolderError(f"{path} has no column {missing[0]!r}: it was not written by train-heads")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            cut_off = parse_problem(path, line, f"expected {len(header)} columns, got {len(row)}")
            raise RunFolderError(f"{cut_off}: train again")
    return [{name: _value(text) for name, text in zip(header, row, strict=True)} for row in rows]


def _columns(rows: Sequence[Row]) -> Columns:
    """Rows as columns: numbers where all that is there is numbers, else words."""
    table: Columns = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        if all(isinstance(value, int) for value in values):
            table[name] = np.array(values, dtype=np.int64)
        elif all(isinstance(value, int | float | None) for value in values):
            table[name] = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        else:
            table[name] = np.array(["" if value is None else str(value) for value in values], dtype=object)
    return table


def _mean_and_sd(per_seed: Sequence[Any]) -> dict[str, float | None]:
    mean = float(np.mean(per_seed))
    sd = float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else math.nan
    return {"mean": mean if math.isfinite(mean) else None, "sd": sd if math.isfinite(sd) else None}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_file(path).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise RunFolderError(f"{path} is damaged ({problem}): train again") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} is damaged (not a JSON object): train again")
    return value


def _file(path: Path) -> Path:
    if not path.is_file():
        raise RunFolderError(f"{path.parent} is not a run folder: it has no {path.name}")
    return path


def _value(text: str | None) -> Any:
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
