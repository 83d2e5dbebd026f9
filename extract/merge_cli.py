"""The command merge-shards."""

from __future__ import annotations

from pathlib import Path

import click

from amber2_core.command import INCOMPLETE, Command, command_body, list_failures


@click.command(cls=Command)
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The cache to write. [default: as the shards are called without their numbers]",
)
@command_body
def merge_shards(shards: tuple[Path, ...], output: Path | None) -> int | None:
    """Make all SHARDS of a corpus, which extract-features --shard wrote, one feature cache.

    Whatever does not fit, as where a shard is missing, is told by name, and nothing is written. The shards are left.
    The exit code is 3 when utterances failed; they are listed, and the cache is complete without them.

    \b
      merge-shards cache/iemocap.shard-*.h5
    """
    from .merging import merge_caches

    merged = merge_caches(shards, output)
    for stage, count in merged.features.items():
        click.echo(f"{stage}: {count:,} of {merged.utterances:,} utterances")
    list_failures(merged.failures, f"see inspect-cache {merged.output}")
    click.echo(str(merged.output))
    return INCOMPLETE if merged.failures else None
