"""What a language model answered, as a distribution over emotions; or, where it is none, why it cannot be read.

An answer is read as a JSON object of shares, with any words around it, or as one label and nothing else. Whatever else
it may have meant is not guessed: no distribution comes out that was not written there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amber2_core.votes import LabelPolicy, canonical, places
from amber2_data.release import refuse_constant, unique_keys

# around a label; a hyphen may be a part of it
MARKS = " \t\r\n.,;:!?*_#()[]\"'`“”\u2018\u2019„«»"
NO_SHARES = "no JSON object of shares and no label alone"
_SHOWN = 60


class UnparsableError(ValueError):
    """Why an answer cannot be read."""


class AnswerReader:
    """Reads answers in the words of a label policy, which says what is the same word and what is merged."""

    def __init__(self, policy: LabelPolicy) -> None:
        self.emotions = policy.emotions
        self._places = places(policy)
        self._decoder = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=refuse_constant)

    def distribution(self, answer: object) -> npt.NDArray[np.float64]:
        """(E,) what an answer in free text says; one label is all of the distribution.

        Raises:
            UnparsableError: it says nothing, or not one thing.
        """
        if not isinstance(answer, str):
            raise UnparsableError("no answer")
        if "{" in answer:
            return self.of_shares(self._object(answer))
        one = np.zeros(len(self.emotions))
        one[self._places[canonical(self.label(answer))]] = 1.0
        return one

    def label(self, answer: object) -> str:
        """The one label that an answer is, as it stands there without marks around it.

        Raises:
            UnparsableError: it is none, or more than that.
        """
        word = answer.strip(MARKS) if isinstance(answer, str) else ""
        if canonical(word) not in self._places:
            raise UnparsableError(f"{NO_SHARES}: {_short(answer)}" if word else "no answer")
        return word

    def of_shares(self, shares: Mapping[str, Any]) -> npt.NDArray[np.float64]:
        """(E,) the shares divided by their sum: parts, percentages or counts. Emotions that are not named have 0.

        Raises:
            UnparsableError: a share is no number of 0 or more, an emotion with a share is not known, or all are 0.
        """
        found = [0.0] * len(self.emotions)  # numpy would warn where the sum is infinite
        for word, share in shares.items():
            place, number = self._places.get(canonical(word)), _number(share)
            if number is None:
                raise UnparsableError(f"the share of {_short(word)} is {_short(share)}, no number of 0 or more")
            if place is not None:
                found[place] += number
            elif number:
                raise UnparsableError(f"{_short(word)} is not one of {list(self.emotions)}")
        total = sum(found)
        if not 0 < total < math.inf:
            raise UnparsableError(f"the shares add up to {total:g}")
        return np.array(found) / total

    def _object(self, answer: str) -> Mapping[str, Any]:
        """The only object of numbers in an answer; the same object twice is one."""
        try:
            found = [shares for value in self._values(answer) for shares in _objects_of_numbers(value)]
        except (ValueError, RecursionError) as problem:
            raise UnparsableError(f"bad JSON ({str(problem)[:_SHOWN]}): {_short(answer)}") from None
        if not found:
            raise UnparsableError(f"{NO_SHARES}: {_short(answer)}")
        if any(shares != found[0] for shares in found):
            raise UnparsableError(f"{len(found)} different objects of shares: {_short(answer)}")
        return found[0]

    def _values(self, answer: str) -> Iterator[Any]:
        """Every value of JSON that begins with a brace.

        A ValueError where one cannot be read to its end, or ends before the answer's last brace: then it was cut.
        """
        end, at = 0, answer.find("{")
        while at >= 0:
            value, end = self._decoder.raw_decode(answer, at)
            yield value
            at = answer.find("{", end)
            if "}" in answer[end : None if at < 0 else at]:
                raise ValueError("a brace that closes nothing")


def _objects_of_numbers(value: Any) -> Iterator[Mapping[str, Any]]:
    """The objects in a value of JSON that hold numbers and nothing else, however deep."""
    if isinstance(value, dict) and value and all(_is_number(one) for one in value.values()):
        yield value
    elif isinstance(value, dict | list):
        inner: Sequence[Any] = [*value.values()] if isinstance(value, dict) else value
        for one in inner:
            yield from _objects_of_numbers(one)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(share: object) -> float | None:
    """A share of 0 or more; None for anything else."""
    try:
        number = float(share) if isinstance(share, int | float) and not isinstance(share, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if 0 <= number < math.inf else None


def _short(value: object) -> str:
    words = " ".join(str(value).split())
    return repr(words if len(words) <= _SHOWN else words[:_SHOWN] + "…")
