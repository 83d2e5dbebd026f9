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
summary.json      table: system → head → metric → mean and sd (`amber2_core.summary`); selected: system → fold → setting
log.txt           what was logged, line by line
tensorboard/      with --track tensorboard: event files, made from the files above when they were complete
```
A run folder stands under its name only when it is complete. What is not lies beside it, as NAME.unfinished.
"""

from __future__ import annotations

import json
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
from .csv_rows import Columns, Row, columns_of, read_rows, write_rows
from .errors import RunFolderError
from .metrics import METRICS
from .tables import Texts

KEY_COLUMNS = ("system", "head", "split", "fold", "seed", "selected")
EXPERT_COLUMNS = ("system", "fold", "seed", "by", "group", "n", "disagreement")
CURVE_COLUMNS = ("system", "head", "fold", "seed", "epoch", "dev_js")


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
    write_rows(path, rows)


def write_curves(path: Path, rows: Sequence[Row]) -> None:
    """Write curves.csv, as `write_results`."""
    write_rows(path, rows)


def write_experts(path: Path, rows: Sequence[Row]) -> None:
    """Write experts.csv, as `write_results`."""
    write_rows(path, rows)


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
    return read_rows(_file(folder / "results.csv"), (*KEY_COLUMNS, "epoch", "n", *METRICS))


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
    return read_rows(_file(folder / "experts.csv"), EXPERT_COLUMNS)


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """The rows of curves.csv, values as in `read_results`; none where an older version wrote the folder.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = folder / "curves.csv"
    return read_rows(path, CURVE_COLUMNS) if path.is_file() else []


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
        results=columns_of(results),
        utterances={"id": predictions.id, "fold": predictions.fold, **rated},
        predictions={column: np.concatenate(parts) for column, parts in long.items()},
        experts=columns_of(read_experts(folder)) if (folder / "experts.csv").is_file() else {},
        curves=columns_of(read_curves(folder)),
    )


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
