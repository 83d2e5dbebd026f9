"""A corpus goes in; its feature cache without features comes out, checked before hours go into encoding it."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from amber2_core.cache import FeatureCache
from amber2_core.errors import CorpusError
from amber2_core.tables import attribute_columns, rating_table, texts, utterance_table
from amber2_core.utterance import Corpus

_SOFTWARE = ("amber2", "torch", "torchaudio", "transformers", "tokenizers", "soundfile", "numpy", "h5py")


def blank_cache(corpus: Corpus) -> FeatureCache:
    """Everything a cache holds of a corpus but features and failures.

    Raises:
        CorpusError: there is no utterance, two share an id, a rating or an attribute is of no use, or a text cannot be
            stored.
    """
    table = utterance_table(corpus)
    table = replace(table, transcript=texts([storable(transcript) for transcript in table.transcript]))
    blank = FeatureCache(
        corpus=corpus.name,
        corpus_version=corpus.version,
        utterances=table,
        ratings=rating_table(corpus),
        attributes=attribute_columns(corpus),
        defaults=corpus.defaults,
        features=(),
        versions=_versions(),
    )
    for columns in (_columns(blank.utterances), _columns(blank.ratings), blank.attributes):
        for name, column in columns.items():
            if column.dtype == object:
                _check_storable(corpus, name, list(column))
    return blank


def storable(transcript: str) -> str:
    """A transcript as a cache can hold it: NUL and halves of characters become ``\\ufffd``."""
    return transcript.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def _columns(table: Any) -> dict[str, Any]:
    return {field.name: getattr(table, field.name) for field in fields(table)}


def _check_storable(corpus: Corpus, name: str, column: list[str]) -> None:
    """Transcripts are mended; an id, a speaker or a label that cannot be stored as it is would be another one."""
    if (joined := "".join(column)).isascii() and "\0" not in joined:
        return
    for text in column:
        if text != storable(text):
            raise CorpusError(f"Bad {name} {text!r} in {corpus.root}: it holds NUL or half a character; correct it")


def _versions() -> dict[str, str]:
    found = {}
    for name in _SOFTWARE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
