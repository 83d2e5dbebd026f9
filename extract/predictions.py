"""Distributions predicted elsewhere, or a language model's answers, as a feature set `prediction/NAME` of a cache.

A file is JSON lines, `{"utterance": id, "distribution": {"happy": 0.5, …}}` or `{"utterance": id, "answer": text}`,
perhaps with an `annotator`; or CSV, `utterance` (or `id`) and one column per emotion. Values are (N, E) float32, rows
that sum to one, NaN for an utterance of which there is nothing that can be read. The recipe holds the emotions in the
order of the columns, and what was counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amber2_core.cache import FeatureCache, Features, read_cache, write_cache
from amber2_core.errors import CacheError, CorpusError, parse_problem
from amber2_core.features import IMPORTED
from amber2_core.files import sha256_of, written_whole
from amber2_core.label_spaces import policy_of
from amber2_core.shards import warn_of_part
from amber2_core.tables import texts
from amber2_core.votes import LabelPolicy
from amber2_data.release import read_table, refuse_constant, text_lines, unique_keys

from .answers import AnswerReader, UnparsableError
from .previous import with_features
from .recordings import storable
from .rows import work_folder

PREDICTION = "prediction"
NAME = re.compile(r"[A-Za-z0-9._+-]+")
ID_COLUMNS = ("utterance", "id")


@dataclass(frozen=True)
class Line:
    """One answer about an utterance."""

    number: int  # of the line, from 1
    utterance: str
    # an object of shares, or free text: whatever stood there
    said: object
    annotator: str = ""


@dataclass(frozen=True)
class Counts:
    """What became of the answers of a file."""

    answers: int
    # utterances of the cache, those that have an answer that can be read, and those that have several
    utterances: int
    covered: int
    several: int
    # (line, utterance, reason)
    unparsable: tuple[tuple[int, str, str], ...]
    # utterances that the cache does not have
    unknown: tuple[str, ...]

    def record(self) -> dict[str, int]:
        """For a recipe."""
        numbers = {"unparsable": len(self.unparsable), "unknown_utterances": len(self.unknown)}
        return {"answers": self.answers, "utterances": self.covered, "several_answers": self.several, **numbers}


def import_predictions(
    path: Path,
    cache: Path,
    name: str,
    *,
    output: Path | None = None,
    labels: Mapping[str, str | None] | None = None,
    origin: str = "",
    force: bool = False,
) -> Counts:
    """Add a file's distributions to a cache; several of one utterance become their mean.

    Args:
        path: JSON lines or CSV.
        cache: whose utterances they are about.
        name: what the feature set is called.
        output: the cache to write, by default the same.
        labels: `emotions` and `merge`, as options of a label policy; by default the cache's own.
        origin: who predicted, for the recipe.
        force: replace an existing `output`, or predictions of the same name.

    Raises:
        CacheError: the cache cannot be read or written, something would be overwritten, or nothing can be read.
        CorpusError: the file is not there, or a line is not what it should be; an answer in it may be anything.
    """
    if not NAME.fullmatch(name):
        raise CacheError(f"Bad name {name!r}, expected a word such as qwen2-audio: a system is called so, too")
    output = output or cache
    if output.exists() and output.resolve() != cache.resolve() and not force:
        raise CacheError(f"{output} exists: choose another --output, or --force")
    with work_folder(output):
        held = read_cache(cache)
        warn_of_part(cache, held.summary)
        reader = AnswerReader(answer_policy(held, labels))
        sums, counts = _summed(path, held, reader)
        answered = np.array([one is not None for one in sums], dtype=bool)
        values = np.full((len(sums), len(reader.emotions)), np.nan, np.float32)
        values[answered] = [one / one.sum() for one in sums if one is not None]
        recipe = {
            "modality": PREDICTION,
            "imported": True,
            "emotions": [*reader.emotions],
            "file": storable(path.name),
            "sha256": sha256_of(path),
            "origin": storable(origin),
            "counts": counts.record(),
        }
        inputs = texts([IMPORTED if one else "" for one in answered])
        features = Features(PREDICTION, name, values, inputs, recipe)
        write_cache(output, with_features(held, features, force=force))
    return counts


def write_ratings(
    path: Path,
    output: Path,
    cache: Path,
    *,
    labels: Mapping[str, str | None] | None = None,
    force: bool = False,
) -> tuple[int, tuple[tuple[int, str, str], ...]]:
    """Write the labels of answers as ratings, JSON lines `utterance`, `rater` (the annotator) and `label`.

    A label is written as it was answered: what it counts for is a matter of label policies.

    Returns:
        How many were written, and (line, utterance, reason) of the answers that are no label.

    Raises:
        CacheError: the cache cannot be read, or no answer is a label.
        CorpusError: a line is not what it should be, or names no annotator.
    """
    reader = AnswerReader(answer_policy(read_cache(cache, only=()), labels))
    ratings, bad = [], []
    for line in read_answers(path):
        if not line.annotator:
            raise CorpusError(parse_problem(path, line.number, "no annotator: a rating is by somebody"))
        try:
            label = reader.label(line.said)
            ratings.append({"utterance": line.utterance, "rater": line.annotator, "label": label})
        except UnparsableError as problem:
            bad.append((line.number, line.utterance, str(problem)))
    if not ratings:
        raise CacheError(f"{path} holds no answer that is one label: {bad[0][2] if bad else 'no line'}")
    with written_whole(output) as writing:
        if output.exists() and not force:
            raise CacheError(f"{output} exists: choose another name, or --force")
        lines = [json.dumps(rating, ensure_ascii=False) + "\n" for rating in ratings]
        writing.write_text("".join(lines), encoding="utf-8")
    return len(ratings), tuple(bad)


def answer_policy(cache: FeatureCache, labels: Mapping[str, str | None] | None = None) -> LabelPolicy:
    """The emotions that answers are read in, and which words are merged into them."""
    return policy_of(cache.defaults, labels or {})


def read_answers(path: Path) -> Iterator[Line]:
    """The lines of a file of answers.

    Raises:
        CorpusError: no such file, or a line is not what it should be.
    """
    return _table_lines(path) if path.suffix.lower() == ".csv" else _json_lines(path)


def _json_lines(path: Path) -> Iterator[Line]:
    for number, text in text_lines(path):
        if not text.strip():
            continue
        try:
            record = json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
            yield _line(number, record)
        except (ValueError, RecursionError) as problem:
            raise CorpusError(parse_problem(path, number, str(problem)[:200])) from None


def _line(number: int, record: Any) -> Line:
    """A ValueError says what is missing."""
    if not isinstance(record, dict) or not isinstance(record.get("utterance"), str):
        raise ValueError('expected an object with "utterance", the id')
    given = [key for key in ("distribution", "answer") if key in record]
    if len(given) != 1:
        raise ValueError('expected "distribution" or "answer", one of the two')
    said = record[given[0]]
    if given == ["distribution"] and not isinstance(said, dict):
        raise ValueError('"distribution" is no object of shares')
    return Line(number, record["utterance"], said, str(record.get("annotator") or ""))


def _table_lines(path: Path) -> Iterator[Line]:
    table = read_table(path)
    named = next((name for name in ID_COLUMNS if name in table.header), None)
    if named is None:
        raise CorpusError(parse_problem(path, 1, f"no column {' or '.join(map(repr, ID_COLUMNS))}"))
    for row in table.rows:
        cells = {name: _cell(text) for name, text in row.cells.items() if name not in (named, "annotator")}
        yield Line(row.line, row.cells[named], cells, row.cells.get("annotator", ""))


def _cell(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _summed(path: Path, cache: FeatureCache, reader: AnswerReader) -> tuple[list[Any], Counts]:
    """Of every utterance the sum of its distributions (E,), None where there is none; and what was counted."""
    place = {id_: row for row, id_ in enumerate(cache.utterances.id)}
    sums: list[Any] = [None] * len(place)
    read, bad, unknown, total = Counter[str](), [], dict[str, None](), 0
    for line in read_answers(path):
        total += 1
        if line.utterance not in place:
            unknown[line.utterance] = None
            continue
        try:
            said = line.said
            shares = reader.of_shares(said) if isinstance(said, dict) else reader.distribution(said)
        except UnparsableError as problem:
            bad.append((line.number, line.utterance, str(problem)))
            continue
        row = place[line.utterance]
        sums[row] = shares if sums[row] is None else sums[row] + shares
        read[line.utterance] += 1
    if not read:
        told = f"; line {bad[0][0]}: {bad[0][2]}; name the emotions with --emotions" if bad else ""
        told = told or (f" ({next(iter(unknown))!r}, …): ids must be spelled alike" if unknown else "")
        what = "can be read" if bad else f"is of an utterance of {cache.corpus}"
        raise CacheError(f"Not one of the {total:,} answers of {path} {what}{told}")
    several = sum(count > 1 for count in read.values())
    return sums, Counts(total, len(place), len(read), several, tuple(bad), tuple(unknown))
