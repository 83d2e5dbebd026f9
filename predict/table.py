"""Predictions as rows: JSON lines, CSV or Parquet, whole under their name, and what is there of an interrupted call."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from amber2_core.errors import RunFolderError, SettingError, bad_choice
from amber2_core.files import behind_links, lock, sync, written_whole
from amber2_extract.recordings import storable

from .units import Key

Row = dict[str, Any]  # of JSON values, by column
Format = Literal["full", "hf"]
INDEX = ("file", "start", "end")
# the columns of tables, in order, before the probabilities
COLUMNS: Mapping[str, type] = {
    "file": str, "start": float, "end": float, "label": str, "predicted_by": str, "inputs": str, "present": str,
    "rater_ambiguity": float, "modality_ambiguity": float, "trusted_expert": str, "ensemble_spread": float,
    "short_window": bool, "transcript_from": str, "transcript": str, "error": str,
}  # fmt: skip
_VERSION = 1
_AT_ONCE = 1000  # rows of a row group of Parquet
JSON_LINES, CSV, PARQUET = (".jsonl", ".ndjson"), (".csv",), (".parquet",)


def check_output(path: Path, format: Format) -> None:
    """Refuse what no file of predictions can be, before the work begins.

    Raises:
        SettingError: another suffix, a library that is missing, or a format that is one of JSON lines alone.
    """
    suffix = path.suffix.lower()
    if suffix not in (*JSON_LINES, *CSV, *PARQUET):
        raise SettingError(f"{bad_choice('output suffix', path.suffix, ('.jsonl', '.csv', '.parquet'))}: {path}")
    if format != "full" and suffix not in JSON_LINES:
        raise SettingError(
            f"--format {format} is one of JSON lines: name an --output that ends in .jsonl, not {suffix}"
        )
    if suffix in PARQUET:
        _pyarrow()


def line_of(row: Row, format: Format = "full") -> str:
    """A row as a line of JSON; as "hf", its index and the list of labels with scores."""
    if format == "hf":
        said = {"error": row["error"]} if row["error"] is not None else {"scores": scores_of(_meant(row))}
        row = {**{name: row[name] for name in INDEX}, **said}
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def scores_of(distribution: Mapping[str, float]) -> list[dict[str, Any]]:
    """Emotion → probability, as a list of labels with their scores, the largest first."""
    pairs = sorted(distribution.items(), key=lambda pair: -pair[1])
    return [{"label": emotion, "score": share} for emotion, share in pairs]


def flat(row: Row, heads: Sequence[str], emotions: Sequence[str]) -> Row:
    """A row of a table: `COLUMNS`, then `<head>.<emotion>`; what is missing is None."""
    found = {name: row.get(name) for name in COLUMNS}
    for name in ("inputs", "present"):
        found[name] = None if row.get(name) is None else " ".join(row[name])
    said = row.get("heads", {})
    return found | {f"{head}.{emotion}": said.get(head, {}).get(emotion) for head in heads for emotion in emotions}


class Unfinished:
    """The rows of a call that is not through, beside its output as ``NAME.unfinished/rows.jsonl``.

    The first line says what the rows are made by; each other one holds a unit's key and its row, and of a key that
    comes again the last one counts. They survive the process as soon as they are written. Half a line, of a process
    that was killed, is cut off. An error of an earlier call is no row: its unit is to be tried again.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Go on with what lies in the folder.

        Raises:
            SettingError: it is of other heads, windows or recognisers.
        """
        self.path = folder / "rows.jsonl"
        # where each unit's line begins, in the order in which units first came; None: it is to be tried again
        self._places: dict[Key, int | None] = {}
        self.errors = 0
        head = {"format": "amber2-predictions", "format_version": _VERSION, "made_by": dict(identity)}
        self.path.touch()
        whole = 0
        for line in _whole_lines(self.path):
            record = _parsed(line)
            if whole == 0 and record != head:
                raise SettingError(
                    f"{folder} holds rows of other heads, encoders or windows: remove it, or name another --output"
                )
            if record is None:
                break
            if whole:
                self._places[_key(record["unit"])] = whole if record["row"]["error"] is None else None
            whole += len(line)
        os.truncate(self.path, whole)
        self._file: BinaryIO = self.path.open("ab")
        if not whole:
            self._write(head)

    def __len__(self) -> int:
        return sum(place is not None for place in self._places.values())

    def has(self, key: Key) -> bool:
        """Whether there is a row of a unit."""
        return self._places.get(key) is not None

    def add(self, key: Key, row: Row) -> None:
        """Write the row of a unit."""
        self._places[key] = self._file.tell()
        self._write({"unit": key, "row": row})
        self.errors += row["error"] is not None

    def rows(self) -> Iterator[Row]:
        """All rows, in the order in which their units first came."""
        with self.path.open("rb") as file:
            for place in self._places.values():
                if place is not None:
                    file.seek(place)
                    yield json.loads(file.readline())["row"]

    def close(self) -> None:
        """Bring the rows to the disk; once they are finished, there is nothing to bring."""
        if not self._file.closed:
            self._file.close()
            sync(self.path)

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(f"{json.dumps(record, allow_nan=False)}\n".encode())
        self._file.flush()


def rows_beside(output: Path) -> bool:
    """Whether rows lie beside an output: those of an interrupted call, or of one with errors."""
    return (_folder_of(output) / "rows.jsonl").exists()


def _folder_of(output: Path) -> Path:
    place = behind_links(output)
    return place.with_name(f"{place.name}.unfinished")


@contextmanager
def unfinished(output: Path, identity: Mapping[str, Any], *, resume: bool) -> Iterator[Unfinished]:
    """The rows that are to become `output`, held by this process alone.

    Raises:
        SettingError: they are of other heads; or they are there, and going on was not asked for.
        RunFolderError: another process holds them, or the place cannot be written.
    """
    folder = _folder_of(output)
    if rows_beside(output) and not resume:
        raise SettingError(f"{folder} holds the rows of an earlier call: go on with --resume, or remove it")
    try:
        with lock(folder / "lock"):
            held = Unfinished(folder, identity)
            try:
                yield held
            finally:
                held.close()
    except BlockingIOError as problem:
        raise RunFolderError(f"{output} is {problem.strerror}: wait for it, or choose another --output") from None
    except OSError as problem:
        reason = f"Cannot write {output}: {problem.strerror or problem}"
        raise RunFolderError(f"{reason}; with --resume the same command goes on from there") from None


def finish(output: Path, held: Unfinished, heads: Sequence[str], emotions: Sequence[str], format: Format) -> None:
    """Make `output` of the rows, whole or not at all, and remove them, unless errors are to be tried again."""
    suffix = output.suffix.lower()
    names = [*COLUMNS, *(f"{head}.{emotion}" for head in heads for emotion in emotions)]
    rows = (flat(row, heads, emotions) for row in held.rows())
    with written_whole(output) as path:
        if suffix in CSV:
            with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                writer_of_rows = csv.DictWriter(file, names, lineterminator="\n")
                writer_of_rows.writeheader()
                writer_of_rows.writerows(rows)
        elif suffix in PARQUET:
            _write_parquet(path, rows, names)
        else:
            with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{line_of(row, format)}\n" for row in held.rows())
    held.close()
    if not held.errors:
        shutil.rmtree(held.path.parent, ignore_errors=True)


def keys_of(path: Path) -> tuple[set[tuple[str, float]], int]:
    """File and start of every row of a finished file, (file, 0) where a row has no start; and how many are errors.

    Raises:
        SettingError: it is no file of predictions.
    """
    import pandas as pd

    names, suffix = ["file", "start", "error"], path.suffix.lower()
    try:
        if suffix in CSV:
            blank = {"start": "", "error": ""}
            found = pd.read_csv(path, usecols=names, dtype={"file": str}, keep_default_na=False, na_values=blank)
        elif suffix in PARQUET:
            found = pd.read_parquet(path, columns=names)
        else:
            with path.open("rb") as file:
                found = pd.DataFrame([{name: json.loads(line).get(name) for name in names} for line in file])
        pairs = zip(found["file"], found["start"].astype(float).fillna(0.0), strict=True)
        return {(str(name), float(start)) for name, start in pairs}, int(found["error"].notna().sum())
    except (ValueError, KeyError, TypeError, OSError) as problem:
        line = (str(problem) or type(problem).__name__).splitlines()[0]
        raise SettingError(f"{path} holds no predictions ({line}): name another --output") from None


def _meant(row: Row) -> Mapping[str, float]:
    found: Mapping[str, float] = row["heads"][row["predicted_by"]]
    return found


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _key(unit: Sequence[Any]) -> Key:
    file, start, end, problem = unit
    return file, start, end, problem


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise SettingError("Parquet needs pyarrow: pip install 'amber2[parquet]', or name a .csv or .jsonl") from None
    return pyarrow


def _write_parquet(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    """Write rows, so many at a time."""
    pyarrow = _pyarrow()
    kinds = {str: pyarrow.string(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds[COLUMNS.get(name, float)]) for name in names])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        left = iter(rows)
        while some := [_storable(row) for row in itertools.islice(left, _AT_ONCE)]:
            writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))


def _storable(row: Row) -> Row:
    """A row as Parquet can hold it: names of files need not be text in any encoding."""
    return {name: storable(value) if isinstance(value, str) else value for name, value in row.items()}
