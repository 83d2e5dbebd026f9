"""The command `import-features`: a file of vectors made elsewhere in, a feature cache out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
@click.option(
    "--sequence", is_flag=True, help="Arrays (ids, steps, D) are steps in time, not layers; steps of zeros are padding."
)
@click.option("--origin", default="", help="What made the vectors: model, layer, pooling; kept in the recipe.")
@click.option("--corpus", help="Corpus whose utterances and votes FILE has vectors for, such as iemocap.")
@click.option("--root", help="Where the corpus lies. [default: AMBER2_<CORPUS>_ROOT, else ./corpora/<corpus>]")
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
    sequence: bool,
    origin: str,
    corpus: str | None,
    root: str | None,
    force: bool,
) -> int | None:
    """Make vectors from elsewhere in FILE (.npy, .npz, HDF5 or safetensors) a feature set of a cache.

    Rows are matched by id, never by order, with the utterances of --cache, or with those of --corpus. A FILE that
    also holds votes, speakers and transcripts becomes a whole cache, with the label defaults of --corpus if that is
    given. The exit code is 3 when utterances have no vector; they are listed.

    \b
      import-features hubert.npy --ids ids.txt --audio hubert --cache cache/iemocap.h5
      import-features hubert.npy --ids ids.txt --audio hubert --corpus iemocap --output cache/iemocap.h5
      import-features corpus.npz --audio audio_vectors --text text_vectors --output cache/corpus.h5
    """
    from . import imported

    wanted = [
        replace(_wanted(modality, given, file), is_sequence=sequence)
        for modality, given in (("audio", audio), ("text", text), ("video", video))
        if given
    ]
    folder = Path(os.environ.get("AMBER2_CACHE_DIR") or "cache")
    done = imported.import_features(
        file,
        wanted,
        output or cache or folder / f"{file.stem}.h5",
        cache=cache,
        ids=ids,
        origin=origin,
        force=force,
        **_target(corpus, root, file, cache),
    )
    for name, (rows, shape) in done.features.items():
        click.echo(f"{name}: {rows:,} of {done.utterances:,} utterances, {' × '.join(map(str, shape))} numbers each")
    _list(done.missing, "without a vector")
    _list(done.extra, "not in the cache, left out")
    click.echo(str(done.output))
    return INCOMPLETE if any(rows < done.utterances for rows, _ in done.features.values()) else None


def _target(corpus: str | None, root: str | None, file: Path, cache: Path | None) -> dict[str, Any]:
    """What else `imported.import_features` is to know of the corpus."""
    from amber2_core.arrays import open_arrays
    from amber2_core.errors import SettingError
    from amber2_data.corpora.registry import corpus_root, label_defaults, read_corpus

    from .vote_arrays import holds_votes

    if corpus is None or cache is not None:
        if root is not None or corpus is not None:
            raise SettingError("--root and --corpus say whose utterances FILE has vectors for, and so does --cache")
        return {}
    if root is None and holds_votes(open_arrays(file)):
        return {"name": corpus, "defaults": label_defaults(corpus)}
    return {"corpus": read_corpus(corpus, corpus_root(corpus, root))}


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
