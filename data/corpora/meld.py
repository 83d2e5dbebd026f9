"""MELD: a release folder → lines of the series Friends, each with one label.

```
<root>/
├── train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv       or in data/MELD/
├── train_splits/dia0_utt0.mp4
├── dev_splits_complete/dia0_utt0.mp4
└── output_repeated_splits_test/dia0_utt0.mp4
```
https://github.com/declare-lab/MELD, GPL-3.0. The videos are read as they are; a .wav file of the name beside one (or
.flac, and so on) is preferred to it. 13,708 utterances. There are no votes: the one label counts as one vote. Ids
restart in each split, so they are prefixed with it. MELD_Dyadic's tables may stand under these names: their columns
Old_Dialogue_ID and Old_Utterance_ID are MELD's ids, and are used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from amber2_core.errors import CorpusError
from amber2_core.utterance import Corpus, LabelDefaults, Problem, Rating, Utterance
from amber2_core.votes import CONSENSUS

from ..release import Row, Table, first_of, read_table
from ..sound import can_be_read, recordings_among
from ..transcripts import trimmed

ORIGIN = "The root is the folder of MELD's CSV files, see https://github.com/declare-lab/MELD."

DEFAULTS = LabelDefaults(
    emotions=("neutral", "joy", "sadness", "anger", "surprise", "fear", "disgust"),
    stimulus="audiovisual",
    keep="any-vote",
    folds="official",
)
# split → folder of its media
MEDIA = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
PLACES = ("", "data/MELD/")
REQUIRED = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
OLD = ("Old_Dialogue_ID", "Old_Utterance_ID")  # of MELD_Dyadic's tables, whose own ids name no recording
BROKEN = frozenset({"train_dia125_utt3", "dev_dia110_utt7"})  # in the release; a clip that has been mended is read
NUMBER = re.compile(r"[0-9]{1,6}")


def read(root: Path) -> Corpus:
    """The utterances of the splits that are there, in the order of their tables.

    Raises:
        CorpusError: there is no table, none of the recordings is there, or a table cannot be read as one. What
            concerns a row alone becomes a problem of the corpus.
    """
    problems: list[Problem] = []
    utterances: dict[str, Utterance] = {}
    for split in MEDIA:
        file = next((f"{p}{split}_sent_emo.csv" for p in PLACES if (root / f"{p}{split}_sent_emo.csv").is_file()), None)
        if file is None:
            problems.append(Problem(f"{split}_sent_emo.csv", None, "missing; the corpus is without this split"))
            continue
        recordings = _recordings(root, split, problems)
        before = len(utterances)
        table = read_table(root / file, required=REQUIRED)
        ids = _ids(file, table, problems)
        for row in table.rows:
            try:
                utterance = _utterance(row, ids, split, recordings)
                if utterance.id in utterances:
                    raise ValueError(f"second row for {utterance.id}")
            except ValueError as error:
                problems.append(Problem(file, row.line, f"{error}; row left out"))
                continue
            utterances[utterance.id] = utterance
        if len(utterances) == before:
            problems.append(Problem(file, None, "holds no utterance"))
        unused = recordings.keys() - {u.id.partition("_")[2] for u in utterances.values() if u.split == split}
        if unused:
            what = f"{len(unused):,} recordings have no row, for one {min(unused)}; left out"
            problems.append(Problem(MEDIA[split], None, what))
    if not utterances:
        raise CorpusError(f"No utterance in {root}/*_sent_emo.csv{first_of(problems)}. {ORIGIN}")
    problems += _missing(utterances)
    if not any(utterance.audio for utterance in utterances.values()):
        raise CorpusError(
            f"No recording of {root} has its row: the release's videos, as dia0_utt0.mp4, lie in "
            f"{', '.join(MEDIA.values())}"
        )
    return Corpus("meld", root, tuple(utterances.values()), DEFAULTS, problems=tuple(problems))


def _recordings(root: Path, split: str, problems: list[Problem]) -> dict[str, str]:
    """`dia0_utt0` → its recording relative to the root."""
    folder = MEDIA[split]
    try:
        names = os.listdir(root / folder)
    except OSError as error:
        problems.append(Problem(folder, None, f"no such folder ({error.strerror}); the split has no recordings"))
        return {}
    return {
        stem: f"{folder}/{name}"
        for stem, name in recordings_among(names).items()
        if f"{split}_{stem}" not in BROKEN or can_be_read(root / folder / name)
    }


def _ids(file: str, table: Table, problems: list[Problem]) -> tuple[str, str]:
    """The columns of the ids under which MELD has its recordings."""
    old = [column for column in OLD if column in table.header]
    if len(old) == 1:
        raise CorpusError(f"{table.path} holds {old[0]} alone: tables of MELD_Dyadic hold {' and '.join(OLD)}")
    if not old:
        return "Dialogue_ID", "Utterance_ID"
    problems.append(Problem(file, 1, f"a table of MELD_Dyadic: recordings go by {' and '.join(OLD)}"))
    return OLD


def _utterance(row: Row, ids: tuple[str, str], split: str, recordings: Mapping[str, str]) -> Utterance:
    cells = {name: text.strip() for name, text in row.cells.items()}
    dialogue, number = (cells[column] for column in ids)
    if not NUMBER.fullmatch(dialogue) or not NUMBER.fullmatch(number):
        raise ValueError(f"{ids[0]} {dialogue[:20]!r} and {ids[1]} {number[:20]!r} are not both whole numbers")
    if cells["Emotion"] not in DEFAULTS.emotions:
        raise ValueError(f"emotion {cells['Emotion'][:20]!r} is not one of {list(DEFAULTS.emotions)}")
    name = f"dia{int(dialogue)}_utt{int(number)}"
    attributes = {"season": "Season", "episode": "Episode", "start_time": "StartTime", "end_time": "EndTime"}
    return Utterance(
        id=f"{split}_{name}",
        audio=recordings.get(name),
        transcript=trimmed(row.cells["Utterance"]),
        ratings=(Rating("consensus", cells["Emotion"]),),
        speaker=cells["Speaker"],
        dialogue=f"{split}_dia{int(dialogue)}",
        split=split,
        language="en",
        attributes={
            CONSENSUS: cells["Emotion"],
            "sentiment": cells["Sentiment"],
            **{attribute: cells[column] for attribute, column in attributes.items() if cells.get(column)},
        },
    )


def _missing(utterances: Mapping[str, Utterance]) -> list[Problem]:
    problems = [
        Problem(MEDIA[utterances[name].split], None, f"{name} is known to be broken in the release; without recording")
        for name in sorted(BROKEN & utterances.keys())
        if not utterances[name].audio
    ]
    for split, folder in MEDIA.items():
        silent = [u.id for u in utterances.values() if u.split == split and not u.audio and u.id not in BROKEN]
        if silent:
            what = f"{len(silent):,} utterances have no recording, for one {silent[0]}"
            problems.append(Problem(folder, None, what))
    return problems
