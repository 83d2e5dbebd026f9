"""The forms in which releases write labels: counts of votes, shares, smoothed shares, lists of ratings, one word.

A ValueError says what in a cell has no meaning; the caller knows the file and the line. Whatever the form, an empty
cell is nobody's vote.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from amber2_core.utterance import STIMULI, Rating, Stimulus

# more raters than any corpus has: a larger count is a mistake, and would be as many ratings in memory
MAX_VOTES = 10_000
RATING_FIELDS = {"rater", "label", "weight", "stimulus"}
NOBODY = {"", "-", "n/a", "na", "nan"}  # cells in which a rater said nothing
SUM_ROUNDING = 1e-2  # of a score of shares that were written with three digits
EMO_SUPERB_EPSILON = 0.05
ROUNDING = 5e-4  # of shares that were written with three digits; one vote of a hundred is far more


def anonymous_ratings(counts: Mapping[str, int], *, stimulus: Stimulus) -> tuple[Rating, ...]:
    """One rating for each vote that is counted; the raters are numbered through ("anonymous1", "anonymous2", …)."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return tuple(_tick(number, label, stimulus) for number, label in enumerate(labels, start=1))


# few different ticks make up a corpus: sharing them keeps a large one small
@lru_cache(maxsize=65_536)
def _tick(number: int, label: str, stimulus: Stimulus) -> Rating:
    return Rating(rater=f"anonymous{number}", label=label, stimulus=stimulus)


def counted_votes(cells: Mapping[str, str]) -> tuple[Rating, ...]:
    """Emotion → number of raters who chose it, as text."""
    counts = {emotion: _count(emotion, text.strip()) for emotion, text in cells.items()}
    return anonymous_ratings(counts, stimulus="audiovisual")


def distributed_votes(cells: Mapping[str, str], *, raters: str = "", is_smoothed: bool = False) -> tuple[Rating, ...]:
    """Emotion → share of the votes, as text; all cells empty is nobody's vote.

    Args:
        cells: shares that sum to 1 within `SUM_ROUNDING`.
        raters: how many people stand behind them, empty text if it is not known; weights are shares of so many votes.
        is_smoothed: whether the shares are smoothed as EMO-SUPERB's; it is undone.
    """
    if not any(text.strip() for text in cells.values()):
        return ()
    shares = {emotion: _share(emotion, text.strip()) for emotion, text in cells.items()}
    if abs(math.fsum(shares.values()) - 1) > SUM_ROUNDING:
        raise ValueError(f"the shares sum to {math.fsum(shares.values()):g}, not to 1")
    people = finite_number(raters or "1")
    if people is None or not 0 < people <= MAX_VOTES:
        raise ValueError(f"{raters!r} is not a number of raters")
    if is_smoothed:
        # what is left of rounding to few digits is nothing
        shares = {name: share if share > 2 * ROUNDING else 0.0 for name, share in unsmoothed(shares).items()}
    return tuple(
        Rating("distribution", emotion, weight=share * people) for emotion, share in shares.items() if share > 0
    )


def rater_votes(words: Mapping[str, str], weights: Mapping[str, str]) -> tuple[Rating, ...]:
    """What each rater said: a word, or several between semicolons, commas or bars; nobody votes with an empty cell.

    Args:
        words: rater → cell.
        weights: rater → what a tick of that rater weighs, 1 where the cell is empty or missing.
    """
    ratings = []
    for rater, text in words.items():
        ticks = dict.fromkeys(part.strip() for part in re.split("[;,|]", text))
        weight = _weight(f"the weight of {rater!r}", weights.get(rater, "").strip() or "1")
        ratings += [_rated(rater, tick, weight) for tick in ticks if tick.casefold() not in NOBODY]
    return tuple(ratings)


@lru_cache(maxsize=65_536)
def _rated(rater: str, label: str, weight: float) -> Rating:
    return Rating(rater, label, weight=weight)


@lru_cache(maxsize=65_536)
def of_stimulus(rating: Rating, stimulus: str) -> Rating:
    """The rating as one that was given to the voice (audio), the face (video) or both (audiovisual)."""
    if stimulus not in STIMULI:
        raise ValueError(f"stimulus {stimulus!r} is not one of {[*STIMULI]}")
    return replace(rating, stimulus=stimulus)


def listed_ratings(text: str) -> tuple[Rating, ...]:
    """A JSON list of labels, each by another anonymous rater, or of objects with rater and label.

    An object may have a weight and a stimulus, too.
    """
    try:
        ticks = json.loads(text or "[]")
    except (ValueError, RecursionError):
        ticks = None
    if not isinstance(ticks, list) or len(ticks) > MAX_VOTES:
        raise ValueError(f"ratings are not a JSON list of labels or of {{rater, label}}: {text[:60]!r}")
    ratings = [_rating(tick, number) for number, tick in enumerate(ticks, start=1)]
    for rating, count in Counter(ratings).items():
        if count > 1:
            raise ValueError(f"rater {rating.rater!r} gives the label {rating.label!r} {count} times")
    return tuple(ratings)


def single_label(text: str) -> tuple[Rating, ...]:
    """One label for the utterance, as if one rater had given it."""
    return anonymous_ratings({text: 1} if text else {}, stimulus="audiovisual")


def smoothed(shares: Mapping[str, float], epsilon: float = EMO_SUPERB_EPSILON) -> dict[str, float]:
    """y' = (1 − ε) y + ε (1 − y) / (C − 1) for C classes.

    >>> smoothed({"happy": 1.0, "sad": 0.0})
    {'happy': 0.95, 'sad': 0.05}
    """
    others = len(shares) - 1
    return {name: (1 - epsilon) * share + epsilon * (1 - share) / others for name, share in shares.items()}


def unsmoothed(shares: Mapping[str, float], epsilon: float = EMO_SUPERB_EPSILON) -> dict[str, float]:
    """y = (y' − ε / (C − 1)) / (1 − ε C / (C − 1)), the inverse of `smoothed`; rounding below 0 becomes 0.

    Raises:
        ValueError: a share lies below what smoothing gives to a class that nobody chose.
    """
    floor = smoothing_floor(len(shares), epsilon)
    for name, share in shares.items():
        if share < floor - ROUNDING:
            raise ValueError(f"{share:g} for {name} is below {floor:g}, the least that smoothing leaves")
    scale = 1 - epsilon * len(shares) / (len(shares) - 1)
    return {name: max(0.0, (share - floor) / scale) for name, share in shares.items()}


def smoothing_floor(classes: int, epsilon: float = EMO_SUPERB_EPSILON) -> float:
    """What smoothing makes of a share of 0."""
    return epsilon / (classes - 1)


def finite_number(text: str) -> float | None:
    """The finite number that a text is, if it is one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def _count(emotion: str, text: str) -> int:
    number = finite_number(text or "0")
    if number is None or number < 0 or number != int(number):
        raise ValueError(f"{text!r} is not a number of votes for {emotion}")
    if number > MAX_VOTES:
        raise ValueError(f"{text} votes for {emotion}, more than the {MAX_VOTES:,} allowed")
    return int(number)


def _share(emotion: str, text: str) -> float:
    number = finite_number(text or "0")
    if number is None or not 0 <= number <= 1 + SUM_ROUNDING:
        raise ValueError(f"{text!r} is not a share of {emotion}, expected 0 … 1")
    return number


def _rating(tick: Any, number: int) -> Rating:
    fields = {"rater": f"anonymous{number}", "label": tick} if isinstance(tick, str) else tick
    if not isinstance(fields, dict) or not {"rater", "label"} <= fields.keys() <= RATING_FIELDS:
        raise ValueError(
            f"rating {number} is neither a label nor an object with rater and label, and perhaps weight and stimulus"
        )
    for name, value in ((name, fields[name]) for name in ("rater", "label")):
        # HDF5 stores neither a NUL nor half a surrogate pair
        if not isinstance(value, str) or not value.strip() or re.search("[\0\ud800-\udfff]", value):
            raise ValueError(f"the {name} of rating {number} is no text: {value!r}")
    weight = _weight(f"the weight of rating {number}", json.dumps(fields.get("weight", 1)))
    rating = Rating(rater=fields["rater"].strip(), label=fields["label"].strip(), weight=weight)
    return of_stimulus(rating, str(fields["stimulus"])) if "stimulus" in fields else rating


def _weight(what: str, text: str) -> float:
    number = finite_number(text)
    if number is None or not 0 <= number <= MAX_VOTES:
        raise ValueError(f"{what} is {text!r}, expected a number from 0 to {MAX_VOTES:,}")
    return number
