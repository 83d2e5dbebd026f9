"""An earlier cache is gone on from row by row: what it holds may be larger than memory."""

from __future__ import annotations

import logging
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extraction import work_here
from small_corpus import with_utterance, write_corpus
from small_models import save_text

from amber2_core.cache import Features, Frames, read_cache, write_cache
from amber2_core.errors import CacheError
from amber2_core.tables import texts
from amber2_core.utterance import Corpus
from amber2_extract.pipeline import Summary, extract_features
from amber2_extract.previous import read_previous


class Place:
    """A cache with the features of a small text encoder, and with a set that is large."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "example.h5"
        self.text_model = str(folder / "bert")
        save_text(folder / "bert", "bert")
        self.corpus = write_corpus(folder / "corpus")
        self.extract(self.corpus)
        cache = read_cache(self.output)
        self.values = np.random.default_rng(0).standard_normal((12, 500_000), dtype=np.float32)
        self.frames = Frames(self.values.reshape(-1, 20), np.arange(13, dtype=np.int64) * 25_000)
        imported = texts(["imported"] * 12)
        large = Features("video", "large", self.values, imported, {"from": "elsewhere"}, self.frames)
        write_cache(self.output, replace(cache, features=(*cache.features, large)))

    def extract(self, corpus: Corpus) -> Summary:
        return extract_features(corpus, self.output, audio_model=None, text_model=self.text_model)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    work_here(monkeypatch)
    return Place(tmp_path)


def _peak(action: Any) -> tuple[Any, int]:
    tracemalloc.start()
    try:
        return action(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_finished_cache_is_looked_at_without_its_numbers_in_memory(place: Place) -> None:
    summary, peak = _peak(lambda: place.extract(place.corpus))
    assert not summary.written
    assert peak < place.values.nbytes


def test_rows_that_move_are_copied_without_all_of_them_in_memory(place: Place) -> None:
    order = [11, 3, 0, 7, 5]
    moved = replace(place.corpus, utterances=tuple(place.corpus.utterances[row] for row in order))
    summary, peak = _peak(lambda: place.extract(moved))
    assert summary.written
    # There are as many numbers again in the sequences.
    assert peak < place.values.nbytes
    after = read_cache(place.output).feature_set("video")
    np.testing.assert_array_equal(after.values, place.values[order])
    assert after.frames is not None
    np.testing.assert_array_equal(after.frames.values, place.values[order].reshape(-1, 20))
    np.testing.assert_array_equal(after.frames.offsets, np.arange(6) * 25_000)
    assert [path.name for path in place.output.parent.glob("example.h5*")] == ["example.h5"]


def test_one_new_transcript_leaves_the_rest_as_it_was(place: Place) -> None:
    summary = place.extract(with_utterance(place.corpus, 2, transcript="we heard one voice"))
    assert summary.features[0].encoded == 1
    after = read_cache(place.output).feature_set("video")
    np.testing.assert_array_equal(after.values, place.values)


def test_what_cannot_be_gone_on_from_is_an_error_or_with_force_a_warning(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray(place.output.read_bytes())
    data[len(data) // 2] ^= 1  # among the numbers
    place.output.write_bytes(data)
    with (
        pytest.raises(CacheError, match=r"does not match its checksum.*; or replace it with --force$"),
        read_previous(place.output, "example", force=False),
    ):
        pass
    with caplog.at_level(logging.WARNING), read_previous(place.output, "example", force=True) as found:
        assert found is None
    assert len(caplog.messages) == 1
    with read_previous(place.output.with_name("none.h5"), "example", force=False) as found:
        assert found is None
