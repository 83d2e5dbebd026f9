"""A seeded corpus of synthetic speech whose truth is known: written to disk, and read back as utterances with votes.

```
<root>/
├── corpus.json      settings, share of conflicts, the lowest JS that can be reached (`Description`)
├── utterances.csv   a manifest: id, audio, transcript, speaker, session, dialogue, language, ratings, and the truth:
│                    true_emotion, audio_emotion, text_emotion, mixture.<emotion> (how a rater ticks), lowest_js;
│                    with a lowest clarity below 1 both causes of disagreement, too: conflict (0, 1) and clarity
└── wav/Ses01/Ses01_d000_F000.wav   16 kHz mono PCM16
```
`python -m amber2_data.corpora.synthetic DIR` writes one. It has the shape of IEMOCAP: five sessions of a woman and a
man who take turns, four emotions, three raters. What voice, words and raters have to do with one another:
`amber2_data.synthesis`. Equal settings give equal bytes.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile

from amber2_core.command import Command, command_body
from amber2_core.errors import CorpusError, SettingError
from amber2_core.utterance import Corpus, LabelDefaults, Utterance

from ..synthesis import EMOTIONS, SESSIONS, Turn, js, lowest_js, oracle, turns
from ..voice import SAMPLING_RATE, speak
from . import manifest

ORIGIN = "Write one with: python -m amber2_data.corpora.synthetic DIR"
DEFAULTS = LabelDefaults(emotions=EMOTIONS, stimulus="audiovisual", keep="any-vote", folds="session")

DESCRIPTION, UTTERANCES = "corpus.json", "utterances.csv"
FORMAT = "amber2-synthetic"
# another version where the law of the generator changes. What emotions are all clear in is 2, in which corpus.json
# tells of no clarity; 3 has the second cause of disagreement
ALL_CLEAR, TWO_CAUSES = 2, 3


@dataclass(frozen=True, slots=True)
class Description:
    """The settings and the reachable scores. Every JS is a mean over utterances, in bits, against the votes."""

    utterances: int
    seed: int
    # share of utterances whose voice and words carry different emotions: as asked for, and as drawn
    conflict: float
    conflicts_drawn: float
    seconds: float
    # the lowest mean JS that any predictor can expect before the votes are drawn, even if it is told the true emotion,
    # the voice's, the words' and so the raters' mixture of each utterance: the ceiling of every trained head
    lowest_js: float
    # what that best predictor scores on the very votes that were drawn
    lowest_js_on_these_votes: float
    # over all corpora of this law: the lowest that can be expected by who knows without error what one modality carries
    # (the ceiling of an audio head, of a text head)
    lowest_js_from_audio: float
    lowest_js_from_text: float
    clarity: float = 1.0  # the lowest that occurs

    @property
    def version(self) -> int:
        """That of the format."""
        return ALL_CLEAR if self.clarity == 1 else TWO_CAUSES

    @property
    def record(self) -> dict[str, Any]:
        """What corpus.json holds."""
        fields = {name: value for name, value in asdict(self).items() if name != "clarity" or self.clarity != 1}
        return {"format": FORMAT, "format_version": self.version, **fields}


def write(
    root: Path, *, utterances: int = 600, seed: int = 0, conflict: float = 0.3, clarity: float = 1.0
) -> Description:
    """Write a corpus to a folder that does not exist or is empty; one of the same settings is left as it is.

    The folder appears when it is complete. Adding utterances changes none of the earlier ones.

    Raises:
        SettingError: fewer utterances than speakers, a negative seed, a share outside 0 … 1.
        CorpusError: something else is at the place, or it cannot be written to.
    """
    if utterances < 2 * SESSIONS:
        raise SettingError(f"Bad utterances {utterances}, expected at least {2 * SESSIONS}, one for each speaker")
    if seed < 0:
        raise SettingError(f"Bad seed {seed}, expected 0 or more")
    if not 0 <= conflict <= 1:
        raise SettingError(f"Bad conflict {conflict}, expected a share in 0 … 1")
    if not 0 <= clarity <= 1:
        raise SettingError(f"Bad clarity {clarity}, expected a number in 0 … 1")
    root = Path(os.path.abspath(root))
    partial = root.parent / f".{root.name}.{os.getpid()}.partial"
    try:
        if root.exists() and not (root.is_dir() and not any(root.iterdir())):
            return _same_corpus(root, (utterances, seed, conflict, clarity))
        partial.mkdir(parents=True)
        drawn = list(turns(utterances, seed=seed, conflict=conflict, clarity=clarity))
        description = _write_files(partial, drawn, seed, conflict, clarity)
        if root.exists():
            root.rmdir()
        partial.rename(root)
    except (OSError, soundfile.LibsndfileError) as error:
        raise CorpusError(f"Cannot write a synthetic corpus to {root}: {getattr(error, 'strerror', error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return description


def read(root: Path) -> Corpus:
    """The corpus of a folder that `write` made; the known truth stands in each utterance's attributes.

    Raises:
        CorpusError: a file is missing, of another format, or cannot be parsed.
    """
    description = read_description(root)
    corpus = manifest.read(root / UTTERANCES)
    if len(corpus.utterances) != description.utterances:
        counts = f"{description.utterances} but {len(corpus.utterances)}"
        raise CorpusError(f"Not {counts} utterances are in {root / UTTERANCES}: write the corpus anew")
    version = f"{description.version}, seed {description.seed}"
    return replace(corpus, name="synthetic", defaults=DEFAULTS, version=version)


def read_description(root: Path) -> Description:
    """What the corpus.json of a synthetic corpus says.

    Raises:
        CorpusError: there is none, or it is not of this format and version.
    """
    path = root / DESCRIPTION
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        description = Description(**{name: value for name, value in fields.items() if not name.startswith("format")})
        if fields != description.record:
            raise ValueError("written by another generator")
        return description
    except FileNotFoundError:
        raise CorpusError(f"No file {path}. {ORIGIN}") from None
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        what = f"{FORMAT} corpus of version {ALL_CLEAR} or {TWO_CAUSES}"
        raise CorpusError(f"{path} describes no {what}: write it anew") from None


def _same_corpus(root: Path, wanted: tuple[int, int, float, float]) -> Description:
    if not (root / DESCRIPTION).is_file():
        raise CorpusError(f"{root} exists and is no synthetic corpus: name another folder")
    there = read_description(root)
    if (there.utterances, there.seed, there.conflict, there.clarity) != wanted:
        lowest = "" if there.clarity == 1 else f", clarity {there.clarity:g}"
        raise CorpusError(
            f"{root} holds a synthetic corpus of {there.utterances} utterances, seed {there.seed}, conflict "
            f"{there.conflict:g}{lowest}: name another folder, or remove it"
        )
    return there


def _write_files(folder: Path, drawn: Sequence[Turn], seed: int, conflict: float, clarity: float) -> Description:
    samples = 0
    for turn in drawn:
        path = folder / str(turn.utterance.audio)
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(turn.voice_seed)
        waveform = speak(turn.utterance.transcript, turn.speaker, turn.manner, random)
        soundfile.write(path, waveform, SAMPLING_RATE, subtype="PCM_16")
        samples += len(waveform)
    rows = [_row(turn.utterance) for turn in drawn]
    with (folder / UTTERANCES).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    description = Description(
        utterances=len(drawn),
        seed=seed,
        conflict=conflict,
        conflicts_drawn=float(np.mean([turn.latents.is_conflict for turn in drawn])),
        seconds=samples / SAMPLING_RATE,
        lowest_js=float(np.mean([oracle(turn.latents)[1] for turn in drawn])),
        lowest_js_on_these_votes=float(np.mean([_js_of_oracle(turn) for turn in drawn])),
        lowest_js_from_audio=lowest_js(conflict, clarity=clarity, knowing=["audio"]),
        lowest_js_from_text=lowest_js(conflict, clarity=clarity, knowing=["text"]),
        clarity=clarity,
    )
    text = json.dumps(description.record, indent=2)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return description


def _row(utterance: Utterance) -> dict[str, Any]:
    named = ("id", "audio", "transcript", "speaker", "session", "dialogue", "language")
    ratings = json.dumps([{"rater": rating.rater, "label": rating.label} for rating in utterance.ratings])
    return {**{name: getattr(utterance, name) for name in named}, "ratings": ratings, **utterance.attributes}


def _js_of_oracle(turn: Turn) -> float:
    votes = [rating.label for rating in turn.utterance.ratings]
    label = np.array([votes.count(emotion) for emotion in EMOTIONS]) / len(votes)
    return float(js(label, oracle(turn.latents)[0]))


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--utterances", default=600, show_default=True, help="How many, over five sessions of two speakers.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal files.")
@click.option("--conflict", default=0.3, show_default=True, help="Share whose voice and words differ in emotion.")
@click.option(
    "--clarity",
    default=1.0,
    show_default=True,
    metavar="LOWEST",
    help="Emotions are between so and 1 clear, whether voice and words differ or not; 1: all are clear.",
)
@command_body
def main(folder: Path, utterances: int, seed: int, conflict: float, clarity: float) -> None:
    """Write a synthetic corpus to DIR, with the lowest JS that can be reached on it."""
    description = write(folder, utterances=utterances, seed=seed, conflict=conflict, clarity=clarity)
    click.echo(
        f"{folder}: {description.utterances} utterances, {description.seconds / 60:.1f} min of speech; voice and words "
        f"conflict in {description.conflicts_drawn:.0%} of them. No predictor can expect a JS below "
        f"{description.lowest_js:.3f}, the best one scores {description.lowest_js_on_these_votes:.3f} on these votes"
    )


if __name__ == "__main__":
    main()
