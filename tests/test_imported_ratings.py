"""Ratings that come after the encoding: both formats, the same file twice, what is refused, and what people's stay."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from extraction import Place, work_here
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_data import cache_of, write_small_cache

from amber2_core.cache import read_cache, write_cache
from amber2_core.errors import Amber2Error, CacheError
from amber2_core.tables import RatingTable, take, texts, with_ratings
from amber2_core.utterance import LabelDefaults
from amber2_core.votes import LabelPolicy, label_distributions
from amber2_extract.cli import import_ratings as command
from amber2_extract.cli import inspect_cache
from amber2_extract.imported_ratings import import_ratings
from amber2_extract.rows import work_folder

ROWS = (
    {"utterance": "u003", "rater": "listener", "label": "Happiness"},
    {"utterance": "u001", "rater": "listener", "label": "sad; angry", "weight": 0.5},
    {"utterance": "u001", "rater": "reader", "label": "sad"},
)
# (utterance, rater, source, stimulus, label, weight) of these, in the order of the utterances
TICKS = [
    ("u001", "listener", "synthetic", "audiovisual", "sad", 0.5),
    ("u001", "listener", "synthetic", "audiovisual", "angry", 0.5),
    ("u001", "reader", "synthetic", "audiovisual", "sad", 1.0),
    ("u003", "listener", "synthetic", "audiovisual", "Happiness", 1.0),
]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return write_small_cache(tmp_path / "cache", count=12)


def written(path: Path, rows: Sequence[Mapping[str, Any]] = ROWS) -> Path:
    """JSON lines, or a table with the columns of all rows."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    sign = "\t" if path.suffix == ".tsv" else ","
    header = list(dict.fromkeys(name for row in rows for name in row))
    lines = [header, *([str(row.get(name, "")) for name in header] for row in rows)]
    path.write_text("".join(sign.join(line) + "\n" for line in lines), encoding="utf-8")
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def ticks(path: Path, source: str = "synthetic") -> list[tuple[Any, ...]]:
    found = read_cache(path, only=())
    table = take(found.ratings, np.flatnonzero(found.ratings.source == source))
    ids = found.utterances.id[table.utterance]
    return list(zip(ids, table.rater, table.source, table.stimulus, table.label, table.weight.tolist(), strict=True))


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.tsv"])
def test_ratings_of_every_format_join_those_of_people_and_change_nothing_else(
    name: str, cache: Path, tmp_path: Path
) -> None:
    before = read_cache(cache)
    result = call(written(tmp_path / name), "--cache", cache)
    assert result.exit_code == 0, result.output
    assert "synthetic: 4 ratings of 2 utterances by 2 raters: sad 2, Happiness 1, angry 1" in result.stdout
    after = read_cache(cache)
    assert ticks(cache) == TICKS
    assert (np.diff(after.ratings.utterance) >= 0).all()
    people = take(after.ratings, np.flatnonzero(after.ratings.source != "synthetic"))
    for column in RatingTable.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(people, column), getattr(before.ratings, column))
    for one, other in zip(before.features, after.features, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        assert one.fingerprint == other.fingerprint
    policy = LabelPolicy.of_corpus(before.defaults)
    targets = [label_distributions(some.ratings, some.attributes, 12, policy).soft_labels for some in (before, after)]
    np.testing.assert_array_equal(*targets)
    assert {path.name for path in cache.parent.iterdir()} == {cache.name}


def test_the_same_file_again_leaves_the_very_bytes(cache: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "r.jsonl")
    assert import_ratings(file, cache).written
    import_ratings(written(tmp_path / "other.jsonl", [{**row, "rater": "third"} for row in ROWS]), cache)
    content = cache.read_bytes()
    assert not import_ratings(file, cache).written
    assert cache.read_bytes() == content
    assert f"{cache} was up to date" in call(file, "--cache", cache).stdout


def test_a_rating_with_another_weight_takes_the_place_of_the_one_that_was_there(cache: Path, tmp_path: Path) -> None:
    import_ratings(written(tmp_path / "r.jsonl"), cache)
    import_ratings(written(tmp_path / "r.jsonl", [{**ROWS[2], "weight": 3}]), cache)
    assert ticks(cache) == [*TICKS[:2], (*TICKS[2][:5], 3.0), TICKS[3]]


def test_what_a_rater_said_before_goes_where_that_is_asked_for_and_what_others_said_stays(
    cache: Path, tmp_path: Path
) -> None:
    people = ticks(cache, "external")
    import_ratings(written(tmp_path / "r.jsonl"), cache)
    again = written(tmp_path / "again.jsonl", [{"utterance": "u002", "rater": "listener", "label": "neutral"}])
    assert call(again, "--cache", cache, "--replace").exit_code == 0
    assert [tick[:2] for tick in ticks(cache)] == [("u001", "reader"), ("u002", "listener")]
    assert ticks(cache, "external") == people


def test_what_is_unknown_or_without_meaning_is_listed_and_left_out(cache: Path, tmp_path: Path) -> None:
    bad = [
        {"utterance": "u999", "rater": "listener", "label": "sad"},
        {"utterance": "u999", "rater": "reader", "label": "sad"},
        {"utterance": "u001", "rater": "", "label": "sad"},
        {"utterance": "", "rater": "reader", "label": "sad"},
        {"utterance": "u002", "rater": "reader", "label": "sad", "weight": -1},
        {"utterance": "u002", "rater": "reader", "label": "sad", "stimulus": "smell"},
        {"utterance": "u002", "rater": "reader", "label": ["sad", "angry"]},
        {"utterance": "u002", "rater": "reader", "label": None},
        {"utterance": "u003", "rater": "listener", "label": "Happiness", "weight": 2},
    ]
    result = call(written(tmp_path / "r.jsonl", [*ROWS, *bad]), "--cache", cache)
    assert result.exit_code == 3
    assert ticks(cache) == TICKS
    assert result.stderr.splitlines() == [
        "not in the cache, left out: u999",
        "left out: line 6: no rater",
        "left out: line 7: no utterance",
        "left out: line 8: the weight of 'reader' is '-1', expected a number from 0 to 10,000",
        "left out: line 9: stimulus 'smell' is not one of ['audio', 'video', 'audiovisual']",
        """left out: line 10: label '["sad", "angry"]' is no word: several stand between semicolons""",
        "left out: line 12: 'listener' gave 'Happiness' to 'u003' in line 1 already",
    ]
    assert "without a label, nobody's vote: 1" in result.stdout
    assert import_ratings(tmp_path / "r.jsonl", cache).unknown == {"u999": 2}


def test_the_stimulus_is_that_of_the_file_else_what_was_asked_for_else_the_corpuss(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_cache(path, replace(cache_of(12), defaults=LabelDefaults(("happy", "sad"), stimulus="audio")))
    rows = [{**ROWS[0], "stimulus": ""}, {**ROWS[2], "stimulus": "Video"}]
    import_ratings(written(tmp_path / "r.jsonl", rows), path)
    assert [tick[3] for tick in ticks(path)] == ["video", "audio"]
    import_ratings(tmp_path / "r.jsonl", path, stimulus="audiovisual")
    assert [tick[3] for tick in ticks(path)] == ["video", "audio", "audiovisual"]


def test_people_who_were_asked_later_may_come_in_as_people(cache: Path, tmp_path: Path) -> None:
    before = len(ticks(cache, "external"))
    assert call(written(tmp_path / "r.jsonl"), "--cache", cache, "--source", "external").exit_code == 0
    assert (len(ticks(cache, "external")), ticks(cache)) == (before + 4, [])


@pytest.mark.parametrize(
    ("name", "rows", "line"),
    [
        ("r.txt", ROWS, "Bad suffix of ratings '.txt', expected one of"),
        ("r.jsonl", [{"utterance": "u1", "label": "sad"}], "no 'rater'; expected ['utterance', 'rater', 'label']"),
        ("r.csv", [{"utterance": "u1", "rater": "a"}], "no 'label'; expected"),
        ("r.jsonl", [{**ROWS[0], "utterance": "x"}], "Not one of the 1 utterances of "),
        ("r.jsonl", [{**ROWS[0], "label": "n/a"}], "holds no rating that could be imported (no row has a label)"),
        ("r.jsonl", [{**ROWS[0], "rater": ""}], "holds no rating that could be imported (line 1: no rater)"),
    ],
)
def test_a_file_that_gives_nothing_is_refused_and_the_cache_stays(
    name: str, rows: list[dict[str, Any]], line: str, cache: Path, tmp_path: Path
) -> None:
    content = cache.read_bytes()
    result = call(written(tmp_path / name, rows), "--cache", cache)
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert line in result.stderr
    assert cache.read_bytes() == content


def test_a_cache_that_is_not_there_leaves_no_folder_behind(tmp_path: Path) -> None:
    file = written(tmp_path / "r.jsonl")
    assert "No feature cache at" in call(file, "--cache", tmp_path / "no" / "c.h5").stderr
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_one_writer_at_a_time(cache: Path, tmp_path: Path) -> None:
    file, content = written(tmp_path / "r.jsonl"), cache.read_bytes()
    with work_folder(cache), pytest.raises(CacheError, match="wait for it"):
        import_ratings(file, cache)
    assert cache.read_bytes() == content


def test_inspect_cache_counts_the_sources_and_tells_of_peoples_words(cache: Path, tmp_path: Path) -> None:
    told = [CliRunner().invoke(inspect_cache, [str(cache)]).stdout]
    import_ratings(written(tmp_path / "r.jsonl"), cache)
    told.append(CliRunner().invoke(inspect_cache, [str(cache)]).stdout)
    assert "by source" not in told[0]
    assert "by source: external 36, synthetic 4; raters and words are people's" in told[1]
    words = [line.partition("stimulus, ")[2] for text in told for line in text.splitlines() if "ratings  " in line]
    assert words[0] == words[1] != ""


def test_what_models_said_stays_when_the_corpus_is_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_here(monkeypatch)
    place = Place(tmp_path, count=6)
    place.extract()
    ids = place.cache().utterances.id
    rows = [{"utterance": str(id_), "rater": "listener", "label": "sad"} for id_ in ids[[4, 1]]]
    import_ratings(written(place.folder / "r.jsonl", rows), place.output)
    said = ticks(place.output)
    assert not place.extract().written
    shorter = replace(place.corpus, utterances=place.corpus.utterances[:0:-1][:-1])  # without the first two
    place.extract(shorter)
    assert ticks(place.output) == [tick for tick in said if tick[0] == ids[4]]


RATINGS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.sampled_from(["sad", "happy"]), st.sampled_from([0.5, 1.0])),
    unique_by=lambda tick: tick[:3],
)


def table_of(rows: Sequence[tuple[int, str, str, float]]) -> RatingTable:
    return RatingTable(
        utterance=np.array([row[0] for row in rows], dtype=np.int32),
        rater=texts([row[1] for row in rows]),
        source=texts(["synthetic"] * len(rows)),
        stimulus=texts(["audio"] * len(rows)),
        label=texts([row[2] for row in rows]),
        weight=np.array([row[3] for row in rows], dtype=np.float32),
    )


@given(RATINGS, RATINGS)
def test_tables_of_ratings_are_joined_as_a_dictionary_is_updated(
    old: list[tuple[int, str, str, float]], new: list[tuple[int, str, str, float]]
) -> None:
    expected = {tick[:3]: tick[3] for tick in sorted(old, key=lambda tick: tick[0])}
    expected |= {tick[:3]: tick[3] for tick in new}
    joined = with_ratings(table_of(old), table_of(new))
    found = list(zip(joined.utterance.tolist(), joined.rater, joined.label, joined.weight.tolist(), strict=True))
    assert found == sorted(((*tick, weight) for tick, weight in expected.items()), key=lambda tick: tick[0])


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".jsonl", ".csv"]))
def test_whatever_stands_in_the_file_is_read_or_refused_in_one_line(
    content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, line = tmp_path_factory.mktemp("fuzz"), ""
    file, path = folder / f"r{suffix}", write_small_cache(folder, count=4)
    head = b"utterance,rater,label\n" if suffix == ".csv" else b'{"utterance": "u001", "rater": "a", "label": "sad"}\n'
    file.write_bytes(head + content)
    try:
        import_ratings(file, path)
    except Amber2Error as problem:
        line = str(problem)
    assert "\n" not in line
    assert len(read_cache(path).utterances) == 4
