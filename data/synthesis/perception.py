"""From hidden emotions to the votes of raters, and to the lowest JS that anyone can reach on them, exactly.

Every utterance has a true emotion, an emotion that the voice carries and one that the words carry. For each true
emotion one modality is reliable and always carries it: the voice for angry and sad, the words for neutral and happy.
The other modality carries it with probability 1 − conflict, else the emotion that it is mistaken for. The voice tells
arousal: it takes happy for angry and neutral for sad. The words tell valence: they take angry for sad and sad for
angry. So voice and words conflict in a share `conflict` of the utterances of each emotion, and together they determine
the true one: angry voice and happy words are a happy utterance, angry voice and sad words an angry one.

A rater ticks anything with probability `LAPSE`, else what the reliable modality carries with probability
`LED_BY_RELIABLE`, else what the other one carries: the mixture is
q = (1 − LAPSE)·(LED_BY_RELIABLE·e_reliable + (1 − LED_BY_RELIABLE)·e_other) + LAPSE/4. Raters are independent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import factorial, prod
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Emotion = Literal["neutral", "happy", "angry", "sad"]
Carrier = Literal["audio", "text"]

EMOTIONS: tuple[Emotion, ...] = ("neutral", "happy", "angry", "sad")
# shares of IEMOCAP's 5,531 utterances: 1,708 neutral, 1,636 happy or excited, 1,103 angry, 1,084 sad
PRIOR: dict[Emotion, float] = {"neutral": 0.309, "happy": 0.296, "angry": 0.199, "sad": 0.196}
RELIABLE: dict[Emotion, Carrier] = {"neutral": "text", "happy": "text", "angry": "audio", "sad": "audio"}
# what the unreliable modality of an utterance carries when it does not carry the true emotion
MISTAKEN_FOR: dict[Emotion, Emotion] = {"neutral": "sad", "happy": "angry", "angry": "sad", "sad": "angry"}
LED_BY_RELIABLE = 0.75
LAPSE = 0.16
# number of external raters of an utterance → probability; IEMOCAP has three, sometimes four
RATERS: dict[int, float] = {3: 0.7, 4: 0.3}


@dataclass(frozen=True, slots=True)
class Latents:
    """What the generator knows of one utterance before anyone rates it."""

    true: Emotion
    audio: Emotion
    text: Emotion

    @property
    def mixture(self) -> Array:
        """The probability (4,) with which one rater ticks each of `EMOTIONS`."""
        led: dict[Carrier, float] = {"audio": 1 - LED_BY_RELIABLE, "text": 1 - LED_BY_RELIABLE}
        led[RELIABLE[self.true]] = LED_BY_RELIABLE
        carried = led["audio"] * _one_hot(self.audio) + led["text"] * _one_hot(self.text)
        return (1 - LAPSE) * carried + LAPSE / len(EMOTIONS)


def latents_of(true: Emotion, *, conflict: bool) -> Latents:
    """The latents of an utterance whose voice and words conflict, or agree."""
    other = MISTAKEN_FOR[true] if conflict else true
    return Latents(true, audio=other, text=true) if RELIABLE[true] == "text" else Latents(true, audio=true, text=other)


def draw_latents(random: np.random.Generator, *, conflict: float) -> Latents:
    """The latents of one utterance."""
    true = EMOTIONS[random.choice(len(EMOTIONS), p=[PRIOR[emotion] for emotion in EMOTIONS])]
    return latents_of(true, conflict=bool(random.random() < conflict))


def law(conflict: float) -> dict[Latents, float]:
    """The latents that occur, with their probabilities: eight, unless voice and words always or never conflict."""
    agreeing = {latents_of(true, conflict=False): PRIOR[true] * (1 - conflict) for true in EMOTIONS}
    conflicting = {latents_of(true, conflict=True): PRIOR[true] * conflict for true in EMOTIONS}
    return {latents: probability for latents, probability in (agreeing | conflicting).items() if probability > 0}


@dataclass(frozen=True, slots=True)
class Oracle:
    """The best prediction for what is known of an utterance, and the JS that it can expect."""

    prediction: Array  # (4,) over EMOTIONS
    js: float  # bits; no other prediction expects a lower one, to 1e-9


def best_prediction(mixtures: Sequence[Array], probabilities: Sequence[float]) -> Oracle:
    """The prediction p that minimises E[JS(y‖p)] when the raters' mixture is one of several.

    y = n/N is what N raters, drawn from `RATERS`, say; the expectation runs over the mixtures, N and the votes and is a
    finite sum. It is convex in p, and exponentiated gradient steps descend until the duality gap p·g − min g, which
    bounds the distance to the minimum, is below 1e-9. The probabilities need not sum to one; no mixture holds a zero.
    """
    labels, chances = _votes_and_chances(mixtures, np.array(probabilities) / np.sum(probabilities))
    prediction = np.full(len(EMOTIONS), 1 / len(EMOTIONS))
    while True:
        middle = (labels + prediction) / 2
        gradient = chances @ np.log2(prediction / middle) / 2  # of E[JS] in p
        if prediction @ gradient - gradient.min() < 1e-9:
            return Oracle(prediction, float(chances @ js(labels, prediction)))
        prediction = prediction * np.exp2(-2 * gradient)
        prediction /= prediction.sum()


@cache
def oracle(latents: Latents) -> Oracle:
    """What the generator itself would predict of an utterance before it draws votes."""
    return best_prediction([latents.mixture], [1.0])


def js(label: Array, prediction: Array) -> Array:
    """Jensen–Shannon divergence in bits over the last axis; `prediction` has no zero."""
    middle = (label + prediction) / 2
    of_label = label * np.log2(np.where(label > 0, label, 1.0) / middle)
    of_prediction = prediction * np.log2(prediction / middle)
    return np.asarray((of_label + of_prediction).sum(-1) / 2)


def lowest_js(conflict: float, *, knowing: Collection[Carrier]) -> float:
    """The lowest expected JS of a predictor that is told, without error, which emotions some modalities carry.

    Whoever knows both knows the true emotion and the mixture, hence all that the generator knows before it draws votes.
    """
    told: dict[tuple[Emotion | None, Emotion | None], list[tuple[Latents, float]]] = {}
    for latents, probability in law(conflict).items():
        heard = latents.audio if "audio" in knowing else None
        read = latents.text if "text" in knowing else None
        told.setdefault((heard, read), []).append((latents, probability))
    expected = 0.0
    for cases in told.values():
        best = best_prediction([latents.mixture for latents, _ in cases], [probability for _, probability in cases])
        expected += sum(probability for _, probability in cases) * best.js
    return expected


def _one_hot(emotion: Emotion) -> Array:
    return np.array([float(emotion == other) for other in EMOTIONS])


def _votes_and_chances(mixtures: Sequence[Array], probabilities: Array) -> tuple[Array, Array]:
    """Every label distribution that raters can give, (outcomes, 4), and how probable it is, (outcomes,)."""
    labels: list[Array] = []
    chances: list[float] = []
    for raters, share in RATERS.items():
        for counts in _compositions(raters):
            votes = np.array(counts)
            ways = factorial(raters) / prod(factorial(count) for count in counts)
            likelihood = probabilities @ np.array([np.prod(mixture**votes) for mixture in mixtures])
            labels.append(votes / raters)
            chances.append(share * ways * float(likelihood))
    return np.array(labels), np.array(chances)


def _compositions(total: int) -> Iterator[tuple[int, ...]]:
    for counts in product(range(total + 1), repeat=len(EMOTIONS)):
        if sum(counts) == total:
            yield counts
