"""The command `import-features`: a file of vectors made elsewhere in, a feature cache out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amber2_core.command import INCOMPLETE, command_body

if TYPE_CHECKING:
    from .imported import Wanted

_SHOWN = 20


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--audio", metavar="ARRAY", help="Array of audio vectors; NAME=ARRAY gives the feature set a name.")
@click.option("--text", metavar="ARRAY", help="Array of text vectors; NAME=ARRAY gives the feature set a name.")
@click.option("--video", metavar="ARRAY", help="Array of video vectors; NAME=ARRAY gives the feature set a name.")
@click.option(
    "--ids",
    metavar="ARRAY|FILE",
    help="Ids of the rows: an array of FILE, a text file with one a line, or a .npy file.",
)
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Add to this cache. [default: a whole cache is made of FILE]"
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The cache to write. [default: the cache that is added to, else <file>.h5 in the cache folder]",
)
@click.option("--origin", default="", help="What made the vectors: model, layer, pooling; kept in the recipe.")
@click.option("--corpus", help="Corpus whose label defaults a whole cache takes, such as crema_d. [default: none]")
@click.option("--force", is_flag=True, help="Replace the cache at --output, or a feature set of the same name.")
@command_body
def import_features(
    file: Path,
    audio: str | None,
    text: str | None,
    video: str | None,
    ids: str | None,
    cache: Path | None,
    output: Path | None,
    origin: str,
    corpus: str | None,
    force: bool,
) -> int | None:
    """Make vectors from elsewhere in FILE (.npy, .npz, HDF5 or safetensors) a feature set of a cache.

    Rows are matched by id, never by order. A FILE that also holds votes, speakers and transcripts becomes a whole
    cache. The exit code is 3 when utterances of the cache have no vector; they are listed.

    \b
      import-features hubert.npy --ids ids.txt --audio hubert --cache cache/iemocap.h5
      import-features corpus.npz --audio audio_vectors --text text_vectors --output cache/corpus.h5
    """
    from . import imported

    wanted = [
        _wanted(modality, given, file)
        for modality, given in (("audio", audio), ("text", text), ("video", video))
        if given
    ]
    folder = Path(os.environ.get("AMBER2_CACHE_DIR") or "cache")
    defaults = None
    if corpus is not None:
        from amber2_data.corpora.registry import label_defaults

        defaults = label_defaults(corpus)
    done = imported.import_features(
        file,
        wanted,
        output or cache or folder / f"{file.stem}.h5",
        cache=cache,
        ids=ids,
        origin=origin,
        name=corpus or "",
        defaults=defaults,
        force=force,
    )
    for name, (rows, shape) in done.features.items():
        click.echo(f"{name}: {rows:,} of {done.utterances:,} utterances, {' × '.join(map(str, shape))} numbers each")
    _list(done.missing, "without a vector")
    _list(done.extra, "not in the cache, left out")
    click.echo(str(done.output))
    return INCOMPLETE if any(rows < done.utterances for rows, _ in done.features.values()) else None


def _wanted(modality: str, given: str, file: Path) -> Wanted:
    from .imported import Wanted

    name, sign, array = given.partition("=")
    if file.suffix.lower() == ".npy":  # its only array has no name of its own
        return Wanted(modality, name, array or file.stem)
    return Wanted(modality, name if sign else given.rpartition("/")[2], array if sign else given)


def _list(ids: tuple[str, ...], what: str) -> None:
    for id_ in ids[:_SHOWN]:
        click.echo(f"{what}: {id_}", err=True)
    if len(ids) > _SHOWN:
        click.echo(f"{what}: {len(ids) - _SHOWN:,} more, {len(ids):,} in all", err=True)
