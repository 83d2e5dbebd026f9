"""Distributions from elsewhere in a cache: by utterance, folded, averaged, counted; and labels as ratings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from synthetic_data import cache_of

from amber2_core.cache import read_cache, write_cache
from amber2_core.errors import Amber2Error, CacheError, CorpusError
from amber2_extract.language_models import import_predictions as command
from amber2_extract.predictions import import_predictions, write_ratings


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache.h5", cache_of(6))
    return tmp_path / "cache.h5"


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def said(utterance: str, answer: object, annotator: str = "") -> dict[str, object]:
    return {"utterance": utterance, "annotator": annotator, "answer": answer}


def shares(utterance: str, **distribution: object) -> dict[str, object]:
    return {"utterance": utterance, "distribution": distribution}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_distributions_and_answers_stand_in_the_row_of_their_utterance(cache: Path, tmp_path: Path) -> None:
    file = lines(
        tmp_path / "p.jsonl",
        shares("u004", sadness=0.25, Happy=0.75),
        said("u001", 'It is {"angry": 30, "neutral": 70}.'),
        said("u000", "Happiness."),
    )
    counts = import_predictions(file, cache, "gpt", origin="a model")
    assert (counts.covered, counts.utterances, counts.answers, counts.unparsable) == (3, 6, 3, ())
    features = read_cache(cache).feature_set("prediction", "gpt")
    expected = np.full((6, 4), np.nan, np.float32)  # neutral, happy, angry, sad
    expected[[4, 1, 0]] = [[0, 0.75, 0, 0.25], [0.7, 0, 0.3, 0], [0, 1, 0, 0]]
    np.testing.assert_allclose(features.values, expected, rtol=1e-6)
    assert features.values.dtype == np.float32
    assert list(features.inputs) == ["imported", "imported", "", "", "imported", ""]
    assert features.recipe["emotions"] == ["neutral", "happy", "angry", "sad"]
    assert (features.recipe["origin"], features.recipe["counts"]["answers"]) == ("a model", 3)
    assert read_cache(cache).failures == ()


def test_several_answers_become_their_mean_and_are_counted(cache: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "p.jsonl", said("u000", "happy", "a"), said("u000", "sad", "b"), said("u000", "?", "c"))
    counts = import_predictions(file, cache, "raters")
    assert read_cache(cache).feature_set("prediction").values[0].tolist() == [0, 0.5, 0, 0.5]
    assert counts.record() == {
        "answers": 3,
        "utterances": 1,
        "several_answers": 1,
        "unparsable": 1,
        "unknown_utterances": 0,
    }


def test_what_cannot_be_read_is_counted_listed_and_never_replaced(cache: Path, tmp_path: Path) -> None:
    file = lines(
        tmp_path / "p.jsonl", said("u000", "joyful"), shares("u001", happy=-1), said("u002", "sad"), said("zz", "sad")
    )
    done = call(file, "--cache", cache, "--name", "gpt")
    assert done.exit_code == 3, done.stderr
    assert "prediction/gpt: 1 of 6 utterances; of 4 answers 2 cannot be read, 1 utterances are unknown" in done.stdout
    assert "cannot be read: line 1, u000" in done.stderr
    assert "cannot be read: line 2, u001" in done.stderr
    assert "not in the cache, left out: zz" in done.stderr
    features = read_cache(cache).feature_set("prediction")
    assert features.encoded.tolist() == [False, False, True, False, False, False]
    assert features.recipe["counts"]["unparsable"] == 2


def test_a_table_has_one_column_per_emotion(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,sad,happy\nu002,0.2,0.6\nu003,,1\n")
    counts = import_predictions(tmp_path / "p.csv", cache, "table")
    np.testing.assert_allclose(read_cache(cache).feature_set("prediction").values[2], [0, 0.75, 0, 0.25])
    assert [(line, utterance) for line, utterance, _ in counts.unparsable] == [(3, "u003")]


def test_another_label_space_has_its_own_columns(cache: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "p.jsonl", shares("u000", fear=0.5, joy=0.25, sad=0.25))
    with pytest.raises(CacheError, match=r"'fear' is not one of .* name the emotions with --emotions"):
        import_predictions(file, cache, "gpt")
    import_predictions(file, cache, "gpt", labels={"emotions": "fear,happy,sad", "merge": "joy=happy"})
    features = read_cache(cache).feature_set("prediction")
    assert (features.recipe["emotions"], features.values[0].tolist()) == (["fear", "happy", "sad"], [0.5, 0.25, 0.25])


def test_nothing_is_replaced_without_force(cache: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "p.jsonl", said("u000", "sad"))
    import_predictions(file, cache, "gpt")
    before = cache.read_bytes()
    with pytest.raises(CacheError, match="holds prediction/gpt already"):
        import_predictions(file, cache, "gpt")
    (tmp_path / "other.h5").write_bytes(b"mine")
    with pytest.raises(CacheError, match=r"other\.h5 exists"):
        import_predictions(file, cache, "more", output=tmp_path / "other.h5")
    assert cache.read_bytes() == before
    import_predictions(file, cache, "gpt", force=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"utterance": "u000"}\n', 'line 1: expected "distribution" or "answer"'),
        ('{"utterance": "u000", "answer": "sad", "distribution": {}}\n', "line 1: expected"),
        ('{"utterance": 7, "answer": "sad"}\n', "line 1: expected an object with"),
        ('{"utterance": "u000", "distribution": "sad"}\n', "no object of shares"),
        ('\n{"utterance": "u000", "ans', "line 2: "),
        ("[1]\n", "line 1: expected an object"),
        ("[" * 100_000, "line 1: "),
        ("", "Not one of the 0 answers"),
        ('{"utterance": "ses1", "answer": "sad"}\n', "'ses1', ….*spelled alike"),
        ('{"utterance": "u000", "answer": null}\n', "line 1: no answer"),
    ],
)
def test_a_file_of_no_use_is_one_line(cache: Path, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    before = cache.read_bytes()
    with pytest.raises(Amber2Error, match=why) as caught:
        import_predictions(tmp_path / "p.jsonl", cache, "gpt")
    assert "\n" not in str(caught.value)
    assert cache.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.h5", "p.jsonl"]


def test_labels_become_ratings_in_the_words_that_were_said(cache: Path, tmp_path: Path) -> None:
    answers = [said("u000", "Happiness.", "synthetic1"), said("u000", '{"sad": 1}', "synthetic2")]
    file = lines(tmp_path / "p.jsonl", *answers, said("u001", "sad", "synthetic1"))
    done = call(file, "--cache", cache, "--as-ratings", tmp_path / "r.jsonl")
    assert done.exit_code == 3
    assert "2 ratings; 1 answers are no label" in done.stdout
    assert [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()] == [
        {"utterance": "u000", "rater": "synthetic1", "label": "Happiness"},
        {"utterance": "u001", "rater": "synthetic1", "label": "sad"},
    ]
    with pytest.raises(CacheError, match="exists"):
        write_ratings(file, tmp_path / "r.jsonl", cache)
    with pytest.raises(CorpusError, match="line 1: no annotator"):
        write_ratings(lines(tmp_path / "q.jsonl", said("u000", "sad")), tmp_path / "s.jsonl", cache)
    assert "Nothing to do" in call(file, "--cache", cache).stderr
