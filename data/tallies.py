"""From counts of votes to the ticks of anonymous raters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from amber2_core.utterance import Rating, Stimulus


def anonymous_ratings(counts: Mapping[str, int], *, stimulus: Stimulus) -> tuple[Rating, ...]:
    """One rating for each vote that is counted; the raters are numbered through ("anonymous1", "anonymous2", …)."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return tuple(_tick(number, label, stimulus) for number, label in enumerate(labels, start=1))


# few different ticks make up a corpus: sharing them keeps a large one small
@lru_cache(maxsize=65_536)
def _tick(number: int, label: str, stimulus: Stimulus) -> Rating:
    return Rating(rater=f"anonymous{number}", label=label, stimulus=stimulus)
