"""A corpus as columns: the utterances, their ratings and their attributes, as a feature cache holds them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import CorpusError
from .utterance import Corpus, Utterance

Texts = npt.NDArray[np.object_]  # (rows,) of str
Numbers = npt.NDArray[np.float32]
TableType = TypeVar("TableType", "UtteranceTable", "RatingTable")


@dataclass(frozen=True, eq=False)
class UtteranceTable:
    """One row per utterance; every column has shape (N,)."""

    id: Texts  # unique
    speaker: Texts
    session: Texts
    dialogue: Texts
    split: Texts
    language: Texts
    transcript: Texts
    audio: Texts  # relative to the corpus root, "" where there is none
    audio_sha256: Texts  # of the whole file, "" until stage 1 has read it
    start: Numbers  # seconds, NaN: from the beginning
    duration: Numbers  # seconds, NaN: unknown

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True, eq=False)
class RatingTable:
    """One row per tick of a rater, in the order of the utterances; every column has shape (R,)."""

    utterance: npt.NDArray[np.int32]  # row of the utterance table
    rater: Texts
    source: Texts
    stimulus: Texts
    label: Texts
    weight: Numbers

    def __len__(self) -> int:
        return len(self.utterance)


AttributeColumns = dict[str, npt.NDArray[Any]]  # name → (N,) float64 (NaN: unknown) or str ("": unknown)


def texts(values: Sequence[str]) -> Texts:
    """Strings as a column of shape (rows,)."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def is_storable_name(name: str) -> bool:
    """Whether a cache can call a column or a feature set so: UTF-8, and HDF5 reads "/" and "." as places."""
    return name not in ("", ".") and not {"/", "\0"} & set(name) and name == name.encode(errors="ignore").decode()


def utterance_table(corpus: Corpus) -> UtteranceTable:
    """The utterances of a corpus as columns.

    Raises:
        CorpusError: there is no utterance, or two share an id.
    """
    utterances = corpus.utterances
    if not utterances:
        raise CorpusError(f"No utterance in {corpus.root}: check that it is the root of the corpus {corpus.name!r}")
    seen: set[str] = set()
    for utterance in utterances:
        if utterance.id in seen:
            raise CorpusError(f"Two utterances of {corpus.root} are called {utterance.id!r}: ids must be unique")
        seen.add(utterance.id)
    return UtteranceTable(
        id=texts([u.id for u in utterances]),
        speaker=texts([u.speaker for u in utterances]),
        session=texts([u.session for u in utterances]),
        dialogue=texts([u.dialogue for u in utterances]),
        split=texts([u.split for u in utterances]),
        language=texts([u.language for u in utterances]),
        transcript=texts([u.transcript for u in utterances]),
        audio=texts([u.audio or "" for u in utterances]),
        audio_sha256=texts([""] * len(utterances)),
        start=_seconds([u.start for u in utterances]),
        duration=_seconds([u.duration for u in utterances]),
    )


def rating_table(corpus: Corpus) -> RatingTable:
    """All ratings of a corpus as columns, in the order of its utterances.

    Raises:
        CorpusError: a rating's weight is negative or not finite.
    """
    utterances = corpus.utterances
    for utterance in utterances:
        for rating in utterance.ratings:
            if not 0 <= rating.weight < math.inf:
                raise CorpusError(f"Bad weight {rating.weight} of a rating of {utterance.id!r}, expected 0 or more")
    counts = [len(u.ratings) for u in utterances]
    return RatingTable(
        utterance=np.repeat(np.arange(len(utterances), dtype=np.int32), counts),
        rater=texts([r.rater for u in utterances for r in u.ratings]),
        source=texts([r.source for u in utterances for r in u.ratings]),
        stimulus=texts([r.stimulus for u in utterances for r in u.ratings]),
        label=texts([r.label for u in utterances for r in u.ratings]),
        weight=np.array([r.weight for u in utterances for r in u.ratings], dtype=np.float32),
    )


def attribute_columns(corpus: Corpus) -> AttributeColumns:
    """The attributes of all utterances, one column per name; a column that holds any text is all text.

    Raises:
        CorpusError: a feature cache cannot hold an attribute of that name.
    """
    names = dict.fromkeys(name for u in corpus.utterances for name in u.attributes)
    for name in names:
        if not is_storable_name(name):
            raise CorpusError(f"Bad attribute name {name!r} in {corpus.root}, expected one without '/': rename it")
    return {name: _attribute_column(corpus.utterances, name) for name in names}


def with_ratings(table: RatingTable, more: RatingTable) -> RatingTable:
    """A table with further ticks, of which `more` holds none twice; one that is there already gets the new weight.

    A tick is the same where utterance, source, rater, stimulus and label are. Rows stay in the order of the utterances;
    on each, what is added comes last.
    """
    weight_of, old = dict(zip(_ticks(more), more.weight, strict=True)), list(_ticks(table))
    there = set(old)
    added = np.array([tick not in there for tick in _ticks(more)], dtype=bool)
    weights = [weight_of.get(tick, weight) for tick, weight in zip(old, table.weight, strict=True)]
    table = replace(table, weight=np.array(weights, dtype=np.float32))
    columns = {
        column.name: np.concatenate([getattr(table, column.name), getattr(more, column.name)[added]])
        for column in fields(RatingTable)
    }
    return take(RatingTable(**columns), np.argsort(columns["utterance"], kind="stable"))


def take(table: TableType, rows: npt.NDArray[np.intp]) -> TableType:
    """The given rows of every column."""
    return type(table)(**{field.name: getattr(table, field.name)[rows] for field in fields(table)})


def _ticks(table: RatingTable) -> Iterator[tuple[Any, ...]]:
    """What tells the ticks of a table apart."""
    return zip(table.utterance.tolist(), table.source, table.rater, table.stimulus, table.label, strict=True)


def _seconds(values: Sequence[float | None]) -> Numbers:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


def _attribute_column(utterances: Sequence[Utterance], name: str) -> npt.NDArray[Any]:
    values = [u.attributes.get(name) for u in utterances]
    if any(isinstance(value, str) for value in values):
        return texts(["" if value is None else str(value) for value in values])
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def attribute_of(attributes: Mapping[str, npt.NDArray[Any]], name: str, count: int) -> Texts:
    """A text attribute of (N,) utterances, empty text where the corpus does not give it."""
    column = attributes.get(name)
    if column is None or column.dtype != object:
        return texts([""] * count)
    return column
