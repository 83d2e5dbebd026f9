"""Votes given after a corpus was encoded, as by models that stand in for raters, in the ratings of its cache.

The file is JSON lines or a CSV or TSV file, one row for each rater's answer on each utterance:
```
{"utterance": "a1", "rater": "model-a", "label": "happy"}
{"utterance": "a1", "rater": "model-b", "label": "sad", "weight": 0.5}
```
`utterance` is an id of the cache, `rater` a name, `label` a word as label policies know it; several between semicolons,
commas or bars are several ticks, and an empty cell or "n/a" is nobody's vote.
`weight` (1 where it is missing) and `stimulus` (audio, video or audiovisual) may be left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from amber2_core.cache import read_cache, read_feature_headers, stored_features, write_cache
from amber2_core.errors import CacheError, CorpusError, SettingError, bad_choice, parse_problem
from amber2_core.shards import warn_of_part
from amber2_core.tables import RatingTable, Texts, take, texts, with_ratings
from amber2_core.utterance import SOURCES, STIMULI, Rating, Source, Stimulus
from amber2_data.corpora.manifest import JSON_LINES, TABLES
from amber2_data.label_forms import of_stimulus, rater_votes
from amber2_data.release import Row, Table, read_json_lines, read_table

from .rows import work_folder

COLUMNS = ("utterance", "rater", "label")


@dataclass(frozen=True)
class ImportedRatings:
    """What an import of ratings did."""

    cache: Path
    ratings: int  # of the file, those that the cache holds now
    utterances: int  # that they are of
    raters: tuple[str, ...]
    words: Mapping[str, int]  # label → how many ratings say it, the most frequent first
    unlabelled: int  # rows without a label
    # ids that the cache does not know → how many rows name them; and rows that have no meaning, in words
    unknown: Mapping[str, int]
    failures: tuple[str, ...]
    written: bool  # False where the cache held all of it already


def import_ratings(
    path: Path,
    cache: Path,
    *,
    source: Source = "synthetic",
    stimulus: Stimulus | None = None,
    replace_raters: bool = False,
) -> ImportedRatings:
    """Add the ratings of a file to a cache; the same file again changes nothing.

    A rating of the same source, rater, stimulus, utterance and label is replaced, never doubled.

    Args:
        path: .jsonl, .ndjson, .csv or .tsv.
        cache: the cache, which is replaced when the new one is complete.
        source: who the raters are; `synthetic` ones are people under no label policy.
        stimulus: what the raters were given where the file does not say; None: what the corpus is labelled by.
        replace_raters: whether what the raters of the file said before, under this source, is removed first.

    Raises:
        SettingError: a source or a stimulus that does not exist.
        CorpusError: the file cannot be read, is no such table, or lacks a column.
        CacheError: the cache cannot be read or written, another process writes it, or it knows none of the utterances.
    """
    if source not in SOURCES:
        raise SettingError(bad_choice("source", source, SOURCES))
    if stimulus not in (None, *STIMULI):
        raise SettingError(bad_choice("stimulus", stimulus, STIMULI))
    read_feature_headers(cache)  # before a folder is made for the lock
    with work_folder(cache):
        before = read_cache(cache, only=())
        warn_of_part(cache, before.summary)
        found = _Found(before.utterances.id)
        for row in _table(path).rows:
            found.add(row, source, stimulus or before.defaults.stimulus)
        if not found.ticks:
            raise CacheError(found.nothing(path, cache))
        new, ratings = found.table(), before.ratings
        if replace_raters:
            gone = (ratings.source == source) & np.isin(ratings.rater, list(set(new.rater)))
            ratings = take(ratings, np.flatnonzero(~gone))
        after = replace(before, ratings=with_ratings(ratings, new))
        written = not _is_same(before.ratings, after.ratings)
        if written:
            with stored_features(cache) as features:
                write_cache(cache, after, features)
    return ImportedRatings(
        cache=cache,
        ratings=len(new),
        utterances=len(set(new.utterance.tolist())),
        raters=tuple(sorted(set(new.rater))),
        words=dict(Counter(new.label.tolist()).most_common()),
        unlabelled=found.unlabelled,
        unknown=found.unknown,
        failures=tuple(found.failures),
        written=written,
    )


class _Found:
    """What was read of a file so far."""

    def __init__(self, ids: Texts) -> None:
        self._row_of = {str(id_): row for row, id_ in enumerate(ids)}
        self.ticks: dict[tuple[int, Rating], int] = {}  # (row, rating of weight 1) → line
        self._weights: list[float] = []  # of the ticks
        self.unknown: Counter[str] = Counter()
        self.failures: list[str] = []
        self.unlabelled = 0

    def add(self, row: Row, source: Source, stimulus: Stimulus) -> None:
        """Take in a row, or write down why not."""
        cells = {name: row.cells.get(name, "").strip() for name in (*COLUMNS, "weight", "stimulus")}
        try:
            ratings = list(_ratings(cells, source, stimulus))
            ticks = [((self._row_of.get(cells["utterance"], -1), replace(one, weight=1.0)), one) for one in ratings]
            if twice := next((tick for tick, _ in ticks if tick in self.ticks), None):
                said = f"{cells['rater']!r} gave {twice[1].label!r} to {cells['utterance']!r}"
                raise ValueError(f"{said} in line {self.ticks[twice]} already")
        except ValueError as problem:
            self.failures.append(f"line {row.line}: {problem}")
            return
        self.unlabelled += not ratings
        if cells["utterance"] not in self._row_of:
            self.unknown[cells["utterance"]] += 1
            return
        for tick, one in ticks:
            self.ticks[tick] = row.line
            self._weights.append(one.weight)

    def table(self) -> RatingTable:
        """What was taken in, in the order of the file."""
        return RatingTable(
            utterance=np.array([row for row, _ in self.ticks], dtype=np.int32),
            rater=texts([one.rater for _, one in self.ticks]),
            source=texts([one.source for _, one in self.ticks]),
            stimulus=texts([one.stimulus for _, one in self.ticks]),
            label=texts([one.label for _, one in self.ticks]),
            weight=np.array(self._weights, dtype=np.float32),
        )

    def nothing(self, path: Path, cache: Path) -> str:
        """Why a file gave not a single rating, in one line."""
        if self.unknown:
            ours, theirs = next(iter(self._row_of), ""), next(iter(self.unknown))
            return (
                f"Not one of the {len(self.unknown):,} utterances of {path} ({theirs!r}, …) is in {cache} "
                f"({ours!r}, …): ids must be spelled alike"
            )
        why = self.failures[0] if self.failures else "no row has a label"
        return f"{path} holds no rating that could be imported ({why}); expected the columns {list(COLUMNS)}"


def _table(path: Path) -> Table:
    """The rows of a file that has the columns that there must be."""
    suffix = path.suffix.lower()
    if suffix not in (*TABLES, *JSON_LINES):
        raise CorpusError(f"{bad_choice('suffix of ratings', path.suffix, (*JSON_LINES, *TABLES))}: {path}")
    table = read_json_lines(path) if suffix in JSON_LINES else read_table(path, delimiters=",;\t")
    for name in COLUMNS:
        if name not in table.header:
            raise CorpusError(parse_problem(path, 1, f"no {name!r}; expected {list(COLUMNS)}, perhaps 'weight'"))
    return table


def _ratings(cells: Mapping[str, str], source: Source, stimulus: Stimulus) -> Iterator[Rating]:
    """The ticks of a row; a ValueError says what has no meaning."""
    for name in ("utterance", "rater"):
        if not cells[name]:
            raise ValueError(f"no {name}")
    if cells["label"].startswith(("[", "{")):
        raise ValueError(f"label {cells['label'][:40]!r} is no word: several stand between semicolons")
    for one in rater_votes({cells["rater"]: cells["label"]}, {cells["rater"]: cells["weight"]}):
        yield replace(of_stimulus(one, cells["stimulus"].casefold() or stimulus), source=source)


def _is_same(one: RatingTable, other: RatingTable) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in RatingTable.__dataclass_fields__
    )
