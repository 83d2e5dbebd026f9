"""The shards of a sweep as they are read to be merged, and all by which they may not fit together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amber2_core.errors import RunFolderError
from amber2_core.run_folder import read_settings
from amber2_core.shards import Shard, check_all, shard_of

from .tasks import FinishedTasks
from .unfinished import RECORD, Identity, difference, read_record


def check_shards(folders: Sequence[Path]) -> tuple[Identity, str]:
    """Check that these are all shards of one sweep, and finished: what its results depend on, and its device.

    Raises:
        SettingError: one is missing, named twice, or one of another number of shards.
        RunFolderError: one is no shard, is of another sweep, or is not finished.
    """
    records = dict[Path, dict[str, Any]]()
    shards = dict[Path, Shard]()
    for folder in folders:
        record = read_record(folder) if (folder / RECORD).is_file() else {}
        if (shard := shard_of(record)) is None:
            raise RunFolderError(f"{folder} is no shard of a sweep: shards are what train-heads --shard writes")
        if folder in shards:
            raise RunFolderError(f"{folder} is named twice: name each shard once")
        if differs := difference(records.get(folders[0], record)["identity"], record["identity"]):
            raise RunFolderError(f"{folders[0]} is of another sweep than {folder}: {differs}")
        records[folder], shards[folder] = record, shard
    check_all(shards, what="sweep")
    for folder, record in records.items():
        if (count := FinishedTasks(folder).count) < record["tasks"]:
            held = f"{folder} is not finished: it holds {count} of {record['tasks']} tasks"
            raise RunFolderError(f"{held}; run {shards[folder]} again, which goes on from there")
    first = folders[0]
    return records[first]["identity"], str(read_settings(first)["device"])
