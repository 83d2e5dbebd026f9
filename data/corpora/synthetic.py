"""A seeded corpus of synthetic speech whose truth is known: written to disk, and read back as utterances with votes.

```
<root>/
├── corpus.json      settings of the generator, share of conflicts, the lowest JS that can be reached (`Description`)
├── utterances.csv   id, audio, transcript, speaker, session, dialogue, and the truth: true_emotion, audio_emotion,
│                    text_emotion, mixture.<emotion> (how a rater ticks), lowest_js (expected at best, bits)
├── ratings.csv      utterance, rater, source, label
└── wav/Ses01/Ses01_d000_F000.wav   16 kHz mono PCM16
```
`python -m amber2_data.corpora.synthetic DIR` writes one. It has the shape of IEMOCAP: five sessions of a woman and a
man who take turns, four emotions, three or four external raters and sometimes the speaker's own report. What voice,
words and raters have to do with one another: `amber2_data.synthesis.perception`. Equal settings give equal bytes.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import soundfile

from amber2_core.command import command_body
from amber2_core.errors import CorpusError, SettingError, bad_choice, parse_problem
from amber2_core.utterance import SOURCES, Corpus, LabelDefaults, Rating, Utterance

from ..label_forms import finite_number
from ..rows import Row, read_table
from ..synthesis.description import FORMAT_VERSION, Description, describe, read_description, write_description
from ..synthesis.perception import EMOTIONS, oracle
from ..synthesis.turns import SESSIONS, Turn, turns
from ..synthesis.voice import SAMPLING_RATE, speak

ORIGIN = "Write one with: python -m amber2_data.corpora.synthetic DIR"
DEFAULTS = LabelDefaults(emotions=EMOTIONS, stimulus="audiovisual", keep="any-vote", folds="session")

TRUTH = ("true_emotion", "audio_emotion", "text_emotion")
NUMBERS = (*(f"mixture.{emotion}" for emotion in EMOTIONS), "lowest_js")
UTTERANCE_COLUMNS = ("id", "audio", "transcript", "speaker", "session", "dialogue", *TRUTH, *NUMBERS)
RATING_COLUMNS = ("utterance", "rater", "source", "label")


def write(root: Path, *, utterances: int = 600, seed: int = 0, conflict: float = 0.3) -> Description:
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
    root = Path(os.path.abspath(root))
    partial = root.parent / f".{root.name}.{os.getpid()}.partial"
    try:
        if root.exists() and not (root.is_dir() and not any(root.iterdir())):
            return _same_corpus(root, utterances=utterances, seed=seed, conflict=conflict)
        partial.mkdir(parents=True)
        description = _write_files(partial, utterances=utterances, seed=seed, conflict=conflict)
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
    ratings, lines = _read_ratings(root / "ratings.csv")
    utterances: dict[str, Utterance] = {}
    table = read_table(root / "utterances.csv", required=UTTERANCE_COLUMNS)
    for row in table.rows:
        utterance = _read_utterance(table.path, row, tuple(ratings.pop(row.cells["id"], ())))
        if utterance.id in utterances:
            raise CorpusError(parse_problem(table.path, row.line, f"second row for {utterance.id}"))
        utterances[utterance.id] = utterance
    if ratings:
        first = next(iter(ratings))
        raise CorpusError(parse_problem(root / "ratings.csv", lines[first], f"{table.path.name} does not hold {first}"))
    if len(utterances) != description.utterances:
        raise CorpusError(f"{table.path} holds {len(utterances)} utterances, not {description.utterances}. {ORIGIN}")
    version = f"{FORMAT_VERSION}, seed {description.seed}"
    return Corpus("synthetic", root, tuple(utterances.values()), DEFAULTS, version)


def _same_corpus(root: Path, *, utterances: int, seed: int, conflict: float) -> Description:
    if not (root / "corpus.json").is_file():
        raise CorpusError(f"{root} exists and is no synthetic corpus: name another folder")
    there = read_description(root)
    if (there.utterances, there.seed, there.conflict) != (utterances, seed, conflict):
        raise CorpusError(
            f"{root} holds a synthetic corpus of {there.utterances} utterances, seed {there.seed}, conflict "
            f"{there.conflict:g}: name another folder, or remove it"
        )
    return there


def _write_files(folder: Path, *, utterances: int, seed: int, conflict: float) -> Description:
    drawn = list(turns(utterances, seed=seed, conflict=conflict))
    samples = 0
    for turn in drawn:
        path = folder / _recording(turn)
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(turn.voice_seed)
        waveform = speak(turn.transcript, turn.speaker, turn.latents.audio, random)
        soundfile.write(path, waveform, SAMPLING_RATE, subtype="PCM_16")
        samples += len(waveform)
    _write_table(folder / "utterances.csv", UTTERANCE_COLUMNS, [_utterance_row(turn) for turn in drawn])
    ratings = [(turn.id, tick.rater, tick.source, tick.label) for turn in drawn for tick in turn.ratings]
    _write_table(folder / "ratings.csv", RATING_COLUMNS, ratings)
    description = describe(drawn, seed=seed, conflict=conflict, seconds=samples / SAMPLING_RATE)
    write_description(folder, description)
    return description


def _recording(turn: Turn) -> str:
    return f"wav/{turn.session}/{turn.id}.wav"


def _utterance_row(turn: Turn) -> Sequence[object]:
    latents = turn.latents
    said = (turn.id, _recording(turn), turn.transcript, turn.speaker.name, turn.session, turn.dialogue)
    return (*said, latents.true, latents.audio, latents.text, *latents.mixture.tolist(), oracle(latents).js)


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _read_ratings(path: Path) -> tuple[dict[str, list[Rating]], dict[str, int]]:
    """Utterance → its ratings, and the line of the first of them."""
    lines: dict[str, int] = {}
    ratings: dict[str, list[Rating]] = defaultdict(list)
    for row in read_table(path, required=RATING_COLUMNS).rows:
        utterance, rater, source, label = (row.cells[column] for column in RATING_COLUMNS)
        if source not in SOURCES:
            raise CorpusError(parse_problem(path, row.line, bad_choice("source", source, SOURCES)))
        ratings[utterance].append(Rating(rater, label, source=source))
        lines.setdefault(utterance, row.line)
    return ratings, lines


def _read_utterance(path: Path, row: Row, ratings: tuple[Rating, ...]) -> Utterance:
    numbers = {column: finite_number(row.cells[column]) for column in NUMBERS}
    attributes: dict[str, float | str] = {column: row.cells[column] for column in TRUTH}
    for column, number in numbers.items():
        if number is None:
            raise CorpusError(parse_problem(path, row.line, f"{row.cells[column]!r} in column {column} is no number"))
        attributes[column] = number
    cells = row.cells
    return Utterance(
        id=cells["id"],
        audio=cells["audio"],
        transcript=cells["transcript"],
        ratings=ratings,
        speaker=cells["speaker"],
        session=cells["session"],
        dialogue=cells["dialogue"],
        language="en",
        attributes=attributes,
    )


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--utterances", default=600, show_default=True, help="How many, over five sessions of two speakers.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal files.")
@click.option("--conflict", default=0.3, show_default=True, help="Share whose voice and words differ in emotion.")
@command_body
def main(folder: Path, utterances: int, seed: int, conflict: float) -> None:
    """Write a synthetic corpus to DIR, with the lowest JS that can be reached on it."""
    description = write(folder, utterances=utterances, seed=seed, conflict=conflict)
    click.echo(
        f"{folder}: {description.utterances} utterances, {description.seconds / 60:.1f} min of speech; voice and words "
        f"conflict in {description.conflicts_drawn:.0%} of them. No predictor can expect a JS below "
        f"{description.lowest_js:.3f}, the best one scores {description.lowest_js_on_these_votes:.3f} on these votes"
    )


if __name__ == "__main__":
    main()
