"""The command merge-shards: the shards of a corpus become one cache, those of a sweep one run folder."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import click

from amber2_core.command import INCOMPLETE, Command, command_body, list_lines

# Stage 2, which this room does not know, says by an entry point of this group how its shards are merged.
_GROUP = "amber2.merge_shards"


@click.command(cls=Command)
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The cache or the run folder to write. [default: as the shards are called without their numbers]",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the cache of a sweep lies now. [default: where its shards found it]",
)
@command_body
def merge_shards(shards: tuple[Path, ...], output: Path | None, cache: Path | None) -> int | None:
    """Make all SHARDS of a corpus one feature cache, or all of a sweep one run folder.

    They are what extract-features --shard and train-heads --shard wrote. Whatever does not fit, as where a shard is
    missing, is told by name, and nothing is written. Caches of shards are left; the folders of a sweep's shards are
    removed when the run folder is complete. The exit code is 3 when utterances failed.

    \b
      merge-shards cache/iemocap.shard-*.h5
      merge-shards runs/paper.shard-*
    """
    from amber2_core.errors import SettingError

    are_folders = {shard.is_dir() for shard in shards}
    if len(are_folders) > 1:
        raise SettingError("Shards of a corpus are files and those of a sweep folders: name either")
    if are_folders.pop():
        (sweeps,) = entry_points(group=_GROUP, name="sweeps")
        sweeps.load()(shards, output, cache)
        return None
    if cache is not None:
        raise SettingError("--cache says where the cache of a sweep lies: shards of a corpus have none")
    return _merge_caches(shards, output)


def _merge_caches(shards: tuple[Path, ...], output: Path | None) -> int | None:
    from .merging import merge_caches

    merged = merge_caches(shards, output)
    for stage, count in merged.features.items():
        click.echo(f"{stage}: {count:,} of {merged.utterances:,} utterances")
    list_lines("failed", merged.failures, f"see inspect-cache {merged.output}")
    click.echo(str(merged.output))
    return INCOMPLETE if merged.failures else None
