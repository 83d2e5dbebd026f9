"""A dataset of the Hugging Face `datasets` library on disk → a corpus; needs the extra amber2[hf].

```
<root>/dataset_info.json, state.json, data-00000-of-00001.arrow     as Dataset.save_to_disk writes it, or
<root>/dataset_dict.json, <split>/…                                 as DatasetDict.save_to_disk does, or
<root>/[data/]train-00000-of-00001.parquet, …                       or one .parquet file
```
Columns mean what they mean in a manifest (`amber2_data.corpora.manifest`): an Audio column, or `audio` with paths below
the root; `text`; `label` (words, or a ClassLabel), `ratings` (a list of labels), `votes` (an object of counts) or one
column of numbers for each emotion; `speaker`, `session`, …. Without `id`, the name of a recording is the id of its
utterance, without `split` the split of the dataset is. Sound that is stored inside the dataset is unpacked once, into
`hf/` in the cache folder (AMBER2_CACHE_DIR, else ./cache), which becomes the root of the corpus. Nothing is downloaded,
and no code that comes with a dataset is run.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amber2_core.errors import CorpusError, parse_problem
from amber2_core.files import cache_folder, written_whole
from amber2_core.utterance import Corpus

from ..manifest_columns import NAMES
from ..release import Row, Table, flat_cells
from ..table_recordings import Recordings
from .manifest import described_corpus

ORIGIN = "The root is a folder that the datasets library saved, a folder of .parquet files, or one of them."

SAVED = ("state.json", "dataset_dict.json")
SPLIT = re.compile(r"(train|validation|valid|val|dev|test\d?)\b", flags=re.IGNORECASE)
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")
BATCH = 64  # rows, with the sound of all of them
Records = list[tuple[int, dict[str, str]]]  # (row from 1, column → cell)


def read(root: Path, *, audio_root: Path | None = None, columns: Mapping[str, str] | None = None) -> Corpus:
    """The rows of a dataset, in their order, split by split.

    Args:
        root: the dataset.
        audio_root: where recordings lie that are not inside of it; None: below the root.
        columns: role → column, as `named_columns` gives it.

    Raises:
        CorpusError: the datasets library is missing or cannot read it, or a row has no meaning; the message names it.
    """
    try:
        import datasets
    except ImportError:
        raise CorpusError(
            f"To read {root}, install the extra: pip install 'amber2[hf]' (the datasets library)"
        ) from None
    folder = cache_folder() / "hf" / _digest(os.fsencode(root.resolve()))[:16]
    records: Records = []
    named = dict(columns or {})
    is_unpacked = False
    with tempfile.TemporaryDirectory() as scratch:
        for split, dataset in _splits(datasets, root, scratch):
            stored = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Audio)]
            is_unpacked |= bool(stored)
            records += _records(root, split, dataset, stored[:1], folder, {*named}, len(records))
            if stored:  # other columns of files, which many datasets have beside it, name what it holds
                named["audio"] = _place(stored[0])
    header = tuple(dict.fromkeys(name for _, cells in records for name in cells))
    below = root if root.is_dir() else root.parent
    place = Recordings(folder) if is_unpacked else Recordings(audio_root or below, is_given=audio_root is not None)

    def table() -> Table:
        return Table(root, header, (Row(n, {name: cells.get(name, "") for name in header}) for n, cells in records))

    return described_corpus("hf", root, place, table, named)


def _splits(datasets: Any, root: Path, scratch: str) -> Iterator[tuple[str, Any]]:
    """(name of the split, dataset)."""
    try:
        if any((root / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(str(root))
            yield from found.items() if isinstance(found, Mapping) else [(str(found.split or ""), found)]
            return
        files = [root] if root.is_file() else sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")])
        if not files or any(file.suffix != ".parquet" for file in files):
            raise CorpusError(f"No dataset at {root}. {ORIGIN}")
        for file in files:
            split = SPLIT.match(file.name)
            name = split[1].lower() if split else ""
            yield name, datasets.Dataset.from_parquet(str(file), cache_dir=scratch, keep_in_memory=False)
    except CorpusError:
        raise
    except UnicodeEncodeError:  # of pyarrow
        what = "its path, or that of TMPDIR, is not UTF-8, as the datasets library needs it; rename it"
        raise CorpusError(f"Cannot read the dataset {root}: {what}") from None
    except Exception as problem:  # of pyarrow, of datasets, of the file system
        # no room, no locks: of the place where the library puts what it reads from
        hint = f"; it works in {scratch} (set TMPDIR to another folder)" if getattr(problem, "errno", None) else ""
        raise CorpusError(f"Cannot read the dataset {root}: {' '.join(str(problem).split())[:200]}{hint}") from None


def _records(
    root: Path, split: str, dataset: Any, audio: list[str], folder: Path, named: set[str], before: int
) -> Records:
    """The rows as text cells, their sound unpacked into files of `folder`."""
    meanings = {alias: name for name, aliases in NAMES.items() for alias in aliases}
    roles = {meanings.get(name.lower()) for name in dataset.features} | named
    records: Records = []
    for number, row in enumerate(_rows(root, dataset), start=before + 1):
        record = {name: _word(dataset.features[name], value) for name, value in row.items() if name not in audio}
        for name in audio:
            stored = row[name] or {}
            record[_place(name)] = _unpacked(root, stored, folder, number)
            if "id" not in roles:
                record["id"] = Path(str(stored.get("path") or f"row{number}")).stem
        if "split" not in roles and split:
            record["split"] = split
        try:
            records.append((number, dict(flat_cells(record))))
        except (ValueError, TypeError) as problem:
            raise CorpusError(parse_problem(root, number, str(problem)[:200])) from None
    return records


def _place(column: str) -> str:
    """The column of the table in which the names of unpacked recordings stand."""
    return column if column.lower() in NAMES["audio"] else "audio"


def _rows(root: Path, dataset: Any) -> Iterator[Mapping[str, Any]]:
    try:
        for batch in dataset.with_format("arrow").iter(BATCH):  # as it is stored: sound is not decoded
            yield from batch.to_pylist()
    except Exception as problem:  # damage is met where the rows are read
        raise CorpusError(f"Cannot read the dataset {root}: {' '.join(str(problem).split())[:200]}") from None


def _word(feature: Any, value: Any) -> Any:
    """The names in place of the numbers of a ClassLabel, or of a list of them."""
    inner = getattr(feature, "feature", None)
    if isinstance(value, list) and inner is not None:
        return [_word(inner, item) for item in value]
    names = getattr(feature, "names", None)
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return value


def _unpacked(root: Path, stored: Mapping[str, Any], folder: Path, number: int) -> str:
    """The name of the file in `folder` that holds a recording; empty text where there is none."""
    path = Path(str(stored.get("path") or ""))
    sound = stored.get("bytes")
    try:
        if sound is None and path.name:
            sound = path.read_bytes()
        if not sound:
            return ""
        name = _digest(sound)[:32] + (path.suffix if SUFFIX.fullmatch(path.suffix) else ".wav")
        if not (folder / name).exists():
            with written_whole(folder / name) as writing:
                writing.write_bytes(sound)
    except OSError as problem:
        what = f"its recording cannot be unpacked: {problem.filename}: {problem.strerror}"
        raise CorpusError(parse_problem(root, number, what)) from None
    return name


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
