"""A corpus of a few noisy recordings on disk, and what its features must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from small_models import noise

from amber2_core.utterance import Corpus, LabelDefaults, Rating, Utterance

SENTENCES = (
    "we do not know what the raters heard",
    "they were not of one mind.",
    "one voice",
    "the voice",
    "",
    "what do they know, what do we know",
)
EMOTIONS = ("neutral", "happy", "sad")


def write_corpus(root: Path, *, count: int = 12, seed: int = 0) -> Corpus:
    """Write `count` recordings of 0.1 to 0.5 s; every sixth transcript is the same."""
    (root / "wav").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    utterances = []
    for number in range(count):
        write_recording(root / f"wav/u{number:02d}.wav", generator.uniform(0.1, 0.5), seed=1000 * seed + number)
        ratings = tuple(Rating(f"r{rater}", EMOTIONS[(number + rater * rater) % 3]) for rater in range(3))
        utterances.append(
            Utterance(
                f"u{number:02d}",
                f"wav/u{number:02d}.wav",
                SENTENCES[number % len(SENTENCES)],
                ratings,
                speaker=f"s{number % 4}",
                session=f"Ses{number % 2}",
                attributes={"valence": number / 10},
            )
        )
    return Corpus("example", root, tuple(utterances), LabelDefaults(EMOTIONS), version="1")


def write_recording(path: Path, seconds: float, *, seed: int) -> None:
    """Write noise at 16 kHz, as floats."""
    (waveform,) = noise(seconds, seed=seed)
    soundfile.write(path, waveform, 16_000, subtype="FLOAT")


def with_utterance(corpus: Corpus, row: int, **changes: Any) -> Corpus:
    """The corpus with another utterance in that row."""
    utterances = list(corpus.utterances)
    utterances[row] = replace(utterances[row], **changes)
    return replace(corpus, utterances=tuple(utterances))


def expected_speech(corpus: Corpus, model: Any) -> npt.NDArray[np.float32]:
    """What transformers gives for each recording alone, normalised, averaged over its frames."""
    rows = []
    for utterance in corpus.utterances:
        samples, _ = soundfile.read(corpus.root / str(utterance.audio))
        samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        with torch.no_grad():
            hidden = model(torch.tensor(samples, dtype=torch.float32)[None]).last_hidden_state
        rows.append(hidden[0].mean(dim=0).numpy())
    return np.array(rows)


def expected_text(transcripts: Sequence[str], model: Any, tokenizer: Any) -> npt.NDArray[np.float32]:
    """What transformers gives for each transcript alone, averaged over its tokens."""
    rows = []
    for transcript in transcripts:
        with torch.no_grad():
            hidden = model(**tokenizer(transcript, return_tensors="pt")).last_hidden_state
        rows.append(hidden[0].mean(dim=0).numpy())
    return np.array(rows)
