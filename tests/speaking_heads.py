"""A small synthetic corpus, small encoders, and heads trained on what these make of it: something to predict with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from small_models import save_classifier, save_speech, save_text

from amber2_core.run_folder import Predictions, read_predictions
from amber2_core.utterance import Corpus
from amber2_data.corpora import synthetic
from amber2_extract.pipeline import extract_features
from amber2_predict import Predictor
from amber2_train.cli import train_heads

COMMAND = "from amber2_predict.cli import predict_emotion; predict_emotion()"
TRAIN = "--device cpu --seeds 2 --epochs 3 --hidden 6 --lr 0.02 --batch-size 8 --inputs standardized"


@dataclass(frozen=True)
class Studio:
    """A folder with corpus/, run/, and the encoders wav2vec2/, bert/ and perhaps classifier/, of sentiment."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def table(self) -> Path:
        """The corpus as a table of recordings and words."""
        return self.folder / "corpus" / "utterances.csv"

    @property
    def models(self) -> dict[str, str]:
        """Where the encoders lie."""
        known = {"audio_model": "wav2vec2", "text_model": "bert", "sentiment_model": "classifier"}
        return {name: str(self.folder / own) for name, own in known.items() if (self.folder / own).is_dir()}

    @property
    def options(self) -> list[str]:
        """The same, as a command is told."""
        return [f"--{name.replace('_', '-')}={place}" for name, place in self.models.items()]

    @cached_property
    def corpus(self) -> Corpus:
        return synthetic.read(self.folder / "corpus")

    @cached_property
    def said(self) -> Predictions:
        """What the run predicted on test."""
        return read_predictions(self.run)

    @property
    def recordings(self) -> list[str]:
        """Of the utterances, in the order of the corpus."""
        return [str(self.corpus.root / str(utterance.audio)) for utterance in self.corpus.utterances]

    def predictor(self, heads: Path | None = None, **settings: Any) -> Predictor:
        """Of the first fold and seed of AmbER², or of other heads."""
        if heads is None:
            settings = {"system": "amber2", "fold": 1, "seed": 0, **settings}
        return Predictor.from_pretrained(heads or self.run, device="cpu", **{**self.models, **settings})

    def command(self, *arguments: str, cwd: Path) -> tuple[int, str, str]:
        """predict-emotion with the encoders in a process of its own."""
        words = [sys.executable, "-c", COMMAND, *arguments, *self.options, "--device=cpu"]
        done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, check=False)
        return done.returncode, done.stdout, done.stderr


def made_studio(
    folder: Path, *, utterances: int = 30, systems: Sequence[str] = ("amber2", "cb-ce"), options: str = ""
) -> Studio:
    """A corpus is written, encoded and trained from; cache.h5 is what nothing but training needs.

    With a system that reads frames or a sentiment, these are cached, too.
    """
    synthetic.write(folder / "corpus", utterances=utterances)
    save_speech(folder / "wav2vec2", "wav2vec2-group")
    save_text(folder / "bert", "bert")
    if "emo-ent" in systems:
        save_classifier(folder / "classifier", "bert", ("positive", "neutral", "negative"))
    studio = Studio(folder)
    extract_features(
        studio.corpus,
        folder / "cache.h5",
        frames=4 if "lddu" in systems else None,
        **studio.models,  # type: ignore[arg-type]
    )
    words = ["--cache", str(folder / "cache.h5"), "--output", str(studio.run), "--system", ",".join(systems)]
    result = CliRunner().invoke(train_heads, [*words, *TRAIN.split(), *options.split()])
    assert result.exit_code == 0, result.output
    return studio
