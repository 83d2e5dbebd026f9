"""What a language model is to be asked of a cached corpus: one request of an utterance a line, as JSON.

A line holds `utterance` (its id), `annotator`, `style`, `focus`, `audio` (relative to the corpus root, "": none),
`start` and `duration` (s, null: from the recording's beginning, to its end), `prompt`, `temperature` and `seed`.
Nothing but the cache is read.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from amber2_core.cache import FeatureCache, read_cache
from amber2_core.errors import CacheError, SettingError, bad_choice
from amber2_core.files import written_whole
from amber2_core.label_spaces import policy_of
from amber2_core.tables import Texts, texts
from amber2_core.votes import LabelPolicy, Targets, codes, label_distributions

from .prompts import FOCI, STYLES, Before, Style, Turn, ask_for_label, ask_for_shares

Asked = Literal["labelled", "all"]
ASKED: tuple[Asked, ...] = get_args(Asked)
COLUMNS = ("speaker", "session", "dialogue", "split")
# seconds into a dialogue, as readers of corpora call them: the order of its turns where the cache's is another
TURN_START = "turn_start"
TRAIN = "train"
TEMPERATURES: Mapping[Style, tuple[float, float]] = {"aer-llm": (0.0, 0.0), "rater": (0.3, 1.1)}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Questions:
    """How utterances are asked about."""

    style: Style = "aer-llm"
    # rated examples in a prompt, drawn anew for each utterance
    shots: int = 0
    # turns of the same dialogue before the utterance
    context: int = 0
    # raters of style `rater`: their foci go round, their temperatures rise in equal steps from first to last
    annotators: int = 5
    # None: TEMPERATURES of the style
    temperatures: tuple[float, float] | None = None
    # attributes of the cache with numbers that the acoustic description tells, beside seconds and words per second
    acoustic: tuple[str, ...] = ()
    # a column or attribute of the cache by which folds are made: no shot has the utterance's own value. Of `split`,
    # shots are of train alone
    fold_column: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise SettingError(bad_choice("style", self.style, STYLES))
        low, high = self.span
        if not 0 <= low <= high < np.inf:
            raise SettingError(f"Bad temperatures {low:g}:{high:g}, expected two that rise from 0 or more")
        if self.style == "rater" and (self.shots or self.annotators < 1):
            raise SettingError("Style rater asks one annotator or more, and shows no shots: they are of style aer-llm")

    @property
    def span(self) -> tuple[float, float]:
        """The lowest temperature and the highest."""
        return self.temperatures or TEMPERATURES[self.style]

    @property
    def raters(self) -> list[tuple[str, str, float]]:
        """Name, focus and temperature of each that is asked; the one of style `aer-llm` is called so."""
        low, high = self.span
        if self.style == "aer-llm":
            return [("aer-llm", "", low)]
        names, foci = [f"synthetic{number + 1}" for number in range(self.annotators)], list(FOCI)
        steps = np.linspace(low, high, self.annotators).round(4).tolist()
        return [(name, foci[k % len(foci)], steps[k]) for k, name in enumerate(names)]


@dataclass(frozen=True)
class Written:
    """What a file of requests holds."""

    output: Path
    requests: int
    utterances: int
    # of the corpus, that have neither recording nor transcript
    empty: int
    # utterances whose prompt tells no number of a named attribute, by its name
    untold: Mapping[str, int]


def write_prompts(
    cache: Path,
    output: Path,
    questions: Questions,
    *,
    labels: Mapping[str, str | None] | None = None,
    asked: Asked = "labelled",
    force: bool = False,
) -> Written:
    """Write the requests of a cache's utterances, in their order; the same arguments give the same bytes.

    Args:
        cache: whose utterances are asked about.
        output: the file; it stands under that name only when it is complete.
        questions: how.
        labels: options of the label policy that gives the class list and the shares of shots.
        asked: utterances that have a label under that policy, or all.
        force: replace a file that holds something else.

    Raises:
        CacheError: the cache cannot be read, or there are too few shots, or another file stands at `output`.
        LabelError, SettingError: the policy or the questions have no meaning.
    """
    if asked not in ASKED:
        raise SettingError(bad_choice("utterances", asked, ASKED))
    held = read_cache(cache, only=())
    policy = policy_of(held.defaults, labels or {})
    targets = label_distributions(held.ratings, held.attributes, len(held.utterances), policy)
    table = held.utterances
    wanted = targets.rows if asked == "labelled" else np.arange(len(table))
    rows = [int(row) for row in wanted if table.audio[row] or table.transcript[row].strip()]
    source = Source(held, policy, targets, questions)
    with written_whole(output) as writing:
        with writing.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(
                json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
                for row in rows
                for record in source.requests(row)
            )
        if output.exists() and not force and not filecmp.cmp(writing, output, shallow=False):
            raise CacheError(f"{output} exists and holds other prompts: choose another --output, or --force")
    untold = {name: int(np.isnan(source.numbers[name][rows]).sum()) for name in questions.acoustic}
    return Written(output, len(rows) * len(questions.raters), len(rows), len(wanted) - len(rows), untold)


class Source:
    """The utterances of a cache as prompts tell of them."""

    def __init__(self, cache: FeatureCache, policy: LabelPolicy, targets: Targets, questions: Questions) -> None:
        """See what is asked for against what the cache has.

        Raises:
            SettingError: an attribute is not there or holds no numbers, or the fold column is not there or not whole.
        """
        self.cache, self.table, self.emotions = cache, cache.utterances, policy.classes
        self.targets, self.questions = targets, questions
        self.numbers = {name: self._attribute(name) for name in questions.acoustic}
        self._fold = None if questions.fold_column is None else self._fold_column(questions.fold_column)
        if questions.shots and self._fold is None and not (self.table.speaker != "").any():
            _log.warning("no speaker is known: shots may be the tested speaker's own; name a --fold-column")

    def requests(self, row: int) -> Iterator[dict[str, Any]]:
        """The requests of an utterance, one for each rater."""
        turn, context = self.turn(row), self.context(row)
        start, duration = float(self.table.start[row]), float(self.table.duration[row])
        for name, focus, temperature in self.questions.raters:
            if self.questions.style == "aer-llm":
                shots = [(self.turn(shot), self._shares[shot]) for shot in self.shots(row)]
                prompt = ask_for_shares(turn, self.emotions, context=context, shots=shots)
            else:
                prompt = ask_for_label(turn, self.emotions, focus, context=context)
            yield {
                "utterance": self.table.id[row],
                "annotator": name,
                "style": self.questions.style,
                "focus": focus,
                "audio": self.table.audio[row],
                "start": None if np.isnan(start) else round(start, 6),
                "duration": None if np.isnan(duration) else round(duration, 6),
                "prompt": prompt,
                "temperature": temperature,
                "seed": self._draw(self.table.id[row], name),
            }

    def turn(self, row: int) -> Turn:
        """What is told of an utterance; what the cache does not know is left out."""
        transcript, seconds = self.table.transcript[row].strip(), float(self.table.duration[row])
        acoustic = {}
        if seconds > 0:
            acoustic["length (s)"] = seconds
            if words := len(transcript.split()):
                acoustic["words per second"] = words / seconds
        acoustic |= {name: float(values[row]) for name, values in self.numbers.items() if not np.isnan(values[row])}
        return Turn(transcript, bool(self.table.audio[row]), acoustic)

    def context(self, row: int) -> list[Before]:
        """The last turns of the dialogue before an utterance that were transcribed, the earliest first."""
        dialogue, speaker = self.table.dialogue[row], self.table.speaker[row]
        if not self.questions.context or not dialogue:
            return []
        turns = self._dialogues[dialogue]
        before = [turn for turn in turns[: turns.index(row)] if self.table.transcript[turn].strip()]
        return [
            Before(
                self.table.transcript[turn].strip(),
                self.table.speaker[turn] == speaker if speaker and self.table.speaker[turn] else None,
            )
            for turn in before[-self.questions.context :]
        ]

    def shots(self, row: int) -> list[int]:
        """Rows of rated utterances of other speakers, dialogues, recordings and fold, drawn by seed and utterance.

        Raises:
            CacheError: there are fewer than asked for.
        """
        if not self.questions.shots:
            return []
        pool = self._pool
        allowed = pool != row
        for numbers in self._apart:
            allowed &= (numbers[pool] != numbers[row]) | (numbers[row] < 0)
        if self.questions.fold_column == "split":
            allowed &= self._is_train[pool]
        found = pool[allowed]
        if len(found) < self.questions.shots:
            raise CacheError(
                f"Only {len(found)} rated utterances of other speakers, dialogues and folds can be shots of "
                f"{self.table.id[row]!r}, {self.questions.shots} are asked for: ask for fewer --shots"
            )
        generator = np.random.default_rng(self._draw(self.table.id[row], "shots"))
        drawn: list[int] = generator.choice(found, self.questions.shots, replace=False).tolist()
        return drawn

    @cached_property
    def _pool(self) -> npt.NDArray[np.intp]:
        """Rows that can be shots: labelled and transcribed, for a shot is read and not heard."""
        has_words = np.array([bool(words.strip()) for words in self.table.transcript], dtype=bool)
        return np.asarray(self.targets.rows[has_words[self.targets.rows]])

    @cached_property
    def _shares(self) -> dict[int, npt.NDArray[np.float64]]:
        return dict(zip(self.targets.rows.tolist(), self.targets.soft_labels, strict=True))

    @cached_property
    def _apart(self) -> list[npt.NDArray[np.int64]]:
        """(N,) numbers of what a shot must not share with the utterance, -1 where nobody knows."""
        columns = [self.table.speaker, self.table.dialogue, self.table.audio, self.table.audio_sha256]
        if self._fold is not None and self.questions.fold_column != "split":
            columns.append(self._fold)
        return [np.where(column == "", -1, codes(column)[0]) for column in columns]

    @cached_property
    def _is_train(self) -> npt.NDArray[np.bool_]:
        return np.array([split.casefold() == TRAIN for split in self.table.split], dtype=bool)

    @cached_property
    def _dialogues(self) -> dict[str, list[int]]:
        """The turns of each dialogue, by when they begin where that is known of all of them, else as cached."""
        rows: dict[str, list[int]] = {}
        for row, dialogue in enumerate(self.table.dialogue):
            rows.setdefault(dialogue, []).append(row)
        return {dialogue: self._in_time(turns) for dialogue, turns in rows.items()}

    def _in_time(self, turns: list[int]) -> list[int]:
        begin = self.cache.attributes.get(TURN_START)
        if begin is None or begin.dtype == object:
            is_one = len(set(self.table.audio[turns])) == 1  # seconds of different recordings have no order
            begin = self.table.start if is_one else np.full(len(self.table), np.nan)
        if np.isnan(begin[turns]).any():
            return turns
        return sorted(turns, key=lambda turn: float(begin[turn]))

    def _attribute(self, name: str) -> npt.NDArray[np.float64]:
        values = self.cache.attributes.get(name)
        if values is None or values.dtype == object:
            held = [name for name, column in self.cache.attributes.items() if column.dtype != object]
            raise SettingError(bad_choice("acoustic", name, held) + ": an attribute of the cache that holds numbers")
        return values

    def _fold_column(self, name: str) -> Texts:
        if name in COLUMNS:
            column: Texts = getattr(self.table, name)
        elif name in self.cache.attributes:
            values = self.cache.attributes[name]
            column = values if values.dtype == object else texts(["" if np.isnan(v) else f"{v:g}" for v in values])
        else:
            raise SettingError(bad_choice("fold-column", name, (*COLUMNS, *self.cache.attributes)))
        unknown = int((column[self.targets.rows] == "").sum())
        if unknown:
            raise SettingError(f"Bad fold-column {name!r}: {unknown} labelled utterances have no value of it")
        return column

    def _draw(self, *words: str) -> int:
        """A number of 48 bits that JSON keeps whole, of the seed and some words."""
        text = json.dumps([self.questions.seed, *words])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])
