"""What is known of a synthetic corpus as a whole, and corpus.json, which says it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from amber2_core.errors import CorpusError

from .perception import EMOTIONS, LAPSE, LED_BY_RELIABLE, MISTAKEN_FOR, PRIOR, RATERS, RELIABLE, js, lowest_js, oracle
from .turns import Turn

FORMAT = "amber2-synthetic"
FORMAT_VERSION = 1
# the law of the generator, for who reads corpus.json without this package
GENERATOR = {
    "prior": PRIOR,
    "reliable_modality": RELIABLE,
    "unreliable_modality_mistaken_for": MISTAKEN_FOR,
    "led_by_reliable": LED_BY_RELIABLE,
    "lapse": LAPSE,
    "external_raters": {str(raters): share for raters, share in RATERS.items()},
}


@dataclass(frozen=True, slots=True)
class Description:
    """The settings and the reachable scores. Every JS is a mean over utterances, in bits, against external votes."""

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
    # (the ceiling of an audio head, of a text head), and by who knows nothing (one prediction for all)
    lowest_js_from_audio: float
    lowest_js_from_text: float
    lowest_js_from_nothing: float


def describe(turns: Sequence[Turn], *, seed: int, conflict: float, seconds: float) -> Description:
    """The description of a corpus that consists of these turns."""
    return Description(
        utterances=len(turns),
        seed=seed,
        conflict=conflict,
        conflicts_drawn=float(np.mean([turn.latents.audio != turn.latents.text for turn in turns])),
        seconds=seconds,
        lowest_js=float(np.mean([oracle(turn.latents).js for turn in turns])),
        lowest_js_on_these_votes=float(np.mean([_js_of_oracle(turn) for turn in turns])),
        lowest_js_from_audio=lowest_js(conflict, knowing=["audio"]),
        lowest_js_from_text=lowest_js(conflict, knowing=["text"]),
        lowest_js_from_nothing=lowest_js(conflict, knowing=[]),
    )


def write_description(folder: Path, description: Description) -> None:
    """Write corpus.json."""
    fields = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(description), "generator": GENERATOR}
    (folder / "corpus.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def read_description(root: Path) -> Description:
    """What the corpus.json of a synthetic corpus says.

    Raises:
        CorpusError: there is none, or it is not of this format and of this generator.
    """
    path = root / "corpus.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        known = {"format": FORMAT, "format_version": FORMAT_VERSION, "generator": GENERATOR}
        if any(fields.pop(name) != value for name, value in known.items()):
            raise ValueError("written by another generator")
        return Description(**fields)
    except FileNotFoundError:
        raise CorpusError(f"No file {path}: write a corpus with python -m amber2_data.corpora.synthetic DIR") from None
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CorpusError(f"{path} describes no {FORMAT} corpus of version {FORMAT_VERSION}: write it anew") from None


def _js_of_oracle(turn: Turn) -> float:
    votes = [rating.label for rating in turn.ratings if rating.source == "external"]
    label = np.array([votes.count(emotion) for emotion in EMOTIONS]) / len(votes)
    return float(js(label, oracle(turn.latents).prediction))
