"""A folder with models and a corpus to extract, and workers that are in the test's own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_corpus import write_corpus
from small_models import save_speech, save_text

from amber2_core import engine
from amber2_core.cache import FeatureCache, read_cache
from amber2_core.utterance import Corpus
from amber2_extract.pipeline import FeatureSummary, Progress, Summary, extract_features


class Place:
    """A folder with two models, a corpus and an output."""

    def __init__(self, folder: Path, *, count: int = 12) -> None:
        self.folder = folder
        self.output = folder / "cache" / "example.h5"
        self.speech_model = save_speech(folder / "wav2vec2", "wav2vec2-group")
        self.text_model = save_text(folder / "bert", "bert")
        self.corpus = write_corpus(folder / "corpus", count=count)

    def extract(self, corpus: Corpus | None = None, **settings: Any) -> Summary:
        """Extract to the output, or to another one."""
        settings = {"audio_model": str(self.folder / "wav2vec2"), "text_model": str(self.folder / "bert"), **settings}
        return extract_features(corpus or self.corpus, settings.pop("output", self.output), **settings)

    def cache(self, name: str = "") -> FeatureCache:
        """The cache at the output, or the one of that name in the folder."""
        return read_cache(self.folder / name if name else self.output)

    def values(self, modality: str, name: str = "") -> Any:
        """Vectors of the cache's only feature set of a modality."""
        return self.cache(name).feature_set(modality).values

    def kept(self) -> int:
        """How many rows of recordings and transcripts are in work."""
        return sum(path.stat().st_size // 56 for path in self.output.parent.glob("*.parts/*/*.idx"))


def of(summary: Summary, modality: str) -> FeatureSummary:
    """What was done for the only feature set of a modality."""
    (features,) = [features for features in summary.features if features.modality == modality]
    return features


def counts(summary: Summary, modality: str) -> tuple[int, int, int]:
    """Utterances encoded, up to date, and failed."""
    features = of(summary, modality)
    return features.encoded, features.up_to_date, features.failed


def after(recordings: int, event: Callable[[], object]) -> Callable[[Progress], None]:
    """Something that comes in between when so many recordings are done."""
    seen: list[int] = []

    def on_progress(progress: Progress) -> None:
        if progress.features.startswith("audio/") and progress.done >= recordings and not seen:
            seen.append(progress.done)
            event()

    return on_progress


def work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers be in this process, one after the other, so that a test can reach into them."""

    def deal(
        function: Any, tasks: Any, *, setup: Any, workers: Sequence[Any], shared: Any = None, **_: Any
    ) -> Iterator[Any]:
        states = [setup(worker, shared) for worker in workers]
        for number, task in enumerate(tasks):
            yield task, function(states[number % len(states)], task)

    monkeypatch.setattr(engine, "prepare", lambda *modules: None)
    monkeypatch.setattr(engine, "deal", deal)
    monkeypatch.setattr(engine, "call", lambda function, *arguments: function(*arguments))


def deal_singly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every batch be a portion."""
    monkeypatch.setattr("amber2_extract.crew.portions", lambda batches, **settings: [[batch] for batch in batches])
