"""From a seed to the turns of a corpus: who speaks when, what and in which emotion, and what the raters say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from amber2_core.utterance import Rating

from .perception import EMOTIONS, RATERS, Latents, draw_latents
from .sentences import sentence
from .voice import Speaker, speakers

SESSIONS = 5
DIALOGUE = 20  # turns of a dialogue
RATER_POOL = tuple(f"E{number:02d}" for number in range(1, 13))
SELF_REPORTS = 0.4  # share of utterances on which the speaker reports too
SELF_KNOWLEDGE = 0.9  # probability that such a report is the true emotion, else anything


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance before it is spoken."""

    id: str
    session: str
    dialogue: str
    speaker: Speaker
    transcript: str
    latents: Latents
    ratings: tuple[Rating, ...]
    voice_seed: np.random.SeedSequence


def turns(count: int, *, seed: int, conflict: float) -> Iterator[Turn]:
    """The first `count` turns, one of each session in turn; asking for more changes none of the earlier ones."""
    voices, utterances = np.random.SeedSequence(seed).spawn(2)
    cast = speakers(SESSIONS, np.random.default_rng(voices))
    for index, stream in enumerate(utterances.spawn(count)):
        drawn, voice_seed = stream.spawn(2)
        random = np.random.default_rng(drawn)
        place, session = divmod(index, SESSIONS)
        speaker = cast[session][place % 2]
        dialogue = f"Ses{session + 1:02d}_d{place // DIALOGUE:03d}"
        latents = draw_latents(random, conflict=conflict)
        yield Turn(
            id=f"{dialogue}_{speaker.name[-1]}{place % DIALOGUE:03d}",
            session=f"Ses{session + 1:02d}",
            dialogue=dialogue,
            speaker=speaker,
            transcript=sentence(latents.text, random),
            latents=latents,
            ratings=_ratings(latents, speaker.name, random),
            voice_seed=voice_seed,
        )


def _ratings(latents: Latents, speaker: str, random: np.random.Generator) -> tuple[Rating, ...]:
    count = random.choice(list(RATERS), p=list(RATERS.values()))
    raters = sorted(random.choice(RATER_POOL, size=count, replace=False))
    ticks = random.choice(EMOTIONS, size=count, p=latents.mixture)
    ratings = [Rating(str(rater), str(tick)) for rater, tick in zip(raters, ticks, strict=True)]
    if random.random() < SELF_REPORTS:
        known = random.random() < SELF_KNOWLEDGE
        ratings.append(Rating(speaker, latents.true if known else str(random.choice(EMOTIONS)), source="self"))
    return tuple(ratings)
