"""The law of the synthetic corpus: from hidden emotions to words and votes, and to the lowest JS that can be reached.

Every utterance has a true emotion, an emotion that the voice carries and one that the words carry. For each true
emotion one modality is reliable and always carries it: the voice for angry and sad, the words for neutral and happy.
The other modality carries it with probability 1 − conflict, else the emotion that it is mistaken for. The voice tells
arousal: it takes happy for angry and neutral for sad. The words tell valence: they take angry for sad and sad for
angry. So voice and words conflict in a share `conflict` of the utterances of each emotion, and together they determine
the true one: angry voice and happy words are a happy utterance, angry voice and sad words an angry one.

A rater ticks anything with probability `LAPSE`, else what the reliable modality carries with probability
`LED_BY_RELIABLE`, else what the other one carries: the mixture is
q = (1 − LAPSE)·(LED_BY_RELIABLE·e_reliable + (1 − LED_BY_RELIABLE)·e_other) + LAPSE/4. Raters are independent.

A second cause of disagreement, where it is asked for: an emotion is more or less clear. The clarity c of an utterance
is one of `CLARITIES` numbers between the lowest and 1, equally likely, and independent of the emotion and of the
conflict. A rater is led by what he hears with probability c (1 − LAPSE) alone, in place of 1 − LAPSE, and else ticks
anything. Voice and words express it weakly: the voice lies between that of the emotion and the mean of all
(`voice.manner_of`), and each word that would carry the emotion is with probability 1 − c one of `PLAIN`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import factorial, prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from amber2_core.utterance import Rating, Utterance

from .voice import Manner, Speaker, manner_of, speakers

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
CLARITIES = 9
RATERS = 3  # of an utterance, as mostly in IEMOCAP

SESSIONS = 5
DIALOGUE = 20  # turns of a dialogue
RATER_POOL = tuple(f"E{number:02d}" for number in range(1, 13))

FRAMES = (
    "{opener}, the {thing} is {adjective} {time}.",
    "I {adverb} {verb} the {adjective} {thing}.",
    "{opener}, we {verb} that {adjective} {thing}.",
    "They {adverb} said the {thing} was {adjective}.",
)
SHARED = {"thing": "letter meeting garden ticket window paper", "time": "today tonight again"}
# what stands in the place of words that carry an emotion, where it is not clear
PLAIN = {
    "opener": "yes oh right", "adverb": "really also maybe", "verb": "have know bring",
    "adjective": "other certain second same",
}  # fmt: skip
# no word stands in the lists of two emotions
CARRYING: Mapping[Emotion, Mapping[str, str]] = {
    "neutral": {
        "opener": "well okay so", "adverb": "usually normally roughly", "verb": "see use check",
        "adjective": "ordinary usual regular plain",
    },
    "happy": {
        "opener": "wow hooray great", "adverb": "happily gladly joyfully", "verb": "love adore enjoy",
        "adjective": "wonderful lovely amazing funny",
    },
    "angry": {
        "opener": "damn enough nonsense", "adverb": "angrily furiously fiercely", "verb": "hate resent despise",
        "adjective": "stupid ridiculous rotten nasty",
    },
    "sad": {
        "opener": "alas sorry sigh", "adverb": "sadly tearfully wearily", "verb": "miss mourn regret",
        "adjective": "miserable lonely hopeless painful",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Latents:
    """What the generator knows of one utterance before anyone rates it."""

    true: Emotion
    audio: Emotion
    text: Emotion
    clarity: float = 1.0

    @property
    def is_conflict(self) -> bool:
        """Whether voice and words carry different emotions."""
        return self.audio != self.text

    @property
    def mixture(self) -> Array:
        """The probability (4,) with which one rater ticks each of `EMOTIONS`."""
        led: dict[Carrier, float] = {"audio": 1 - LED_BY_RELIABLE, "text": 1 - LED_BY_RELIABLE}
        led[RELIABLE[self.true]] = LED_BY_RELIABLE
        carried = [led["audio"] * (self.audio == e) + led["text"] * (self.text == e) for e in EMOTIONS]
        anything = LAPSE + (1 - LAPSE) * (1 - self.clarity)
        return (1 - LAPSE) * self.clarity * np.array(carried) + anything / len(EMOTIONS)


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance before it is spoken."""

    utterance: Utterance
    latents: Latents
    speaker: Speaker
    voice_seed: np.random.SeedSequence

    @property
    def manner(self) -> Manner:
        """How it is spoken."""
        return manner_of(self.latents.audio, clarity=self.latents.clarity)


def latents_of(true: Emotion, *, conflict: bool, clarity: float = 1.0) -> Latents:
    """The latents of an utterance whose voice and words conflict, or agree."""
    other = MISTAKEN_FOR[true] if conflict else true
    audio, text = (other, true) if RELIABLE[true] == "text" else (true, other)
    return Latents(true, audio, text, clarity)


def clarities(lowest: float) -> list[float]:
    """The clarities that occur, equally often; 1 alone where the lowest is 1."""
    return [1.0] if lowest == 1 else np.linspace(lowest, 1, CLARITIES).round(9).tolist()


def law(conflict: float, clarity: float = 1.0) -> dict[Latents, float]:
    """The latents that occur, with their probabilities: eight, unless voice and words always or never conflict.

    With a lowest clarity below 1 they are eight for each of the clarities.
    """
    shares = ((False, 1 - conflict), (True, conflict))
    levels = clarities(clarity)
    return {
        latents_of(e, conflict=c, clarity=level): PRIOR[e] * share / len(levels)
        for level in levels
        for e in EMOTIONS
        for c, share in shares
        if share > 0
    }


def sentence(emotion: Emotion, random: np.random.Generator, *, plain: Collection[str] = ()) -> str:
    """A sentence of five to seven words, two or three of them carrying the emotion but for those in `plain` slots."""
    carrying = {slot: PLAIN[slot] if slot in plain else words for slot, words in CARRYING[emotion].items()}
    lists = {slot: words.split() for slot, words in {**SHARED, **carrying}.items()}
    words = {slot: choices[random.integers(len(choices))] for slot, choices in lists.items()}
    text = FRAMES[random.integers(len(FRAMES))].format(**words)
    return text[0].upper() + text[1:]


def turns(count: int, *, seed: int, conflict: float, clarity: float = 1.0) -> Iterator[Turn]:
    """The first `count` turns, one of each session in turn; asking for more changes none of the earlier ones.

    Emotions and conflicts are the same whatever the lowest `clarity` is.
    """
    voices, utterances = np.random.SeedSequence(seed).spawn(2)
    cast = speakers(SESSIONS, np.random.default_rng(voices))
    for index, stream in enumerate(utterances.spawn(count)):
        drawn, voice_seed, clarity_seed = stream.spawn(3)
        random, unclear = np.random.default_rng(drawn), np.random.default_rng(clarity_seed)
        place, session = divmod(index, SESSIONS)
        speaker = cast[session][place % 2]
        true = EMOTIONS[random.choice(len(EMOTIONS), p=list(PRIOR.values()))]
        is_conflict, own = bool(random.random() < conflict), float(unclear.choice(clarities(clarity)))
        latents = latents_of(true, conflict=is_conflict, clarity=own)
        plain = [slot for slot in PLAIN if unclear.random() >= own]
        name = f"Ses{session + 1:02d}"
        dialogue = f"{name}_d{place // DIALOGUE:03d}"
        id_ = f"{dialogue}_{speaker.name[-1]}{place % DIALOGUE:03d}"
        utterance = Utterance(
            id=id_,
            audio=f"wav/{name}/{id_}.wav",
            transcript=sentence(latents.text, random, plain=plain),
            ratings=_ratings(latents, random),
            speaker=speaker.name,
            session=name,
            dialogue=dialogue,
            language="en",
            attributes=_truth(latents, causes=clarity < 1),
        )
        yield Turn(utterance, latents, speaker, voice_seed)


def _ratings(latents: Latents, random: np.random.Generator) -> tuple[Rating, ...]:
    raters = sorted(random.choice(RATER_POOL, size=RATERS, replace=False))
    ticks = random.choice(EMOTIONS, size=RATERS, p=latents.mixture)
    return tuple(Rating(str(rater), str(tick)) for rater, tick in zip(raters, ticks, strict=True))


def _truth(latents: Latents, *, causes: bool) -> dict[str, float | str]:
    """The truth of an utterance; the causes of disagreement by themselves where there are two."""
    mixture = {f"mixture.{e}": float(share) for e, share in zip(EMOTIONS, latents.mixture, strict=True)}
    emotions = {"true_emotion": latents.true, "audio_emotion": latents.audio, "text_emotion": latents.text}
    both = {"conflict": float(latents.is_conflict), "clarity": latents.clarity} if causes else {}
    return {**emotions, **mixture, "lowest_js": oracle(latents)[1], **both}


def best_prediction(mixtures: Sequence[Array], probabilities: Sequence[float]) -> tuple[Array, float]:
    """The prediction p, (4,), that minimises E[JS(y‖p)] when the raters' mixture is one of several, and the minimum.

    y = n/`RATERS` is what the raters say; the expectation runs over the mixtures and the votes and is a finite sum. It
    is convex in p, and exponentiated gradient steps descend until the duality gap p·g − min g, which bounds the
    distance to the minimum, is below 1e-9. The probabilities need not sum to one; no mixture holds a zero.
    """
    votes = [counts for counts in product(range(RATERS + 1), repeat=len(EMOTIONS)) if sum(counts) == RATERS]
    counts = np.array(votes)  # (outcomes, 4)
    ways = np.array([factorial(RATERS) / prod(map(factorial, n)) for n in votes])
    likelihoods = np.prod(np.array(mixtures)[:, None] ** counts, axis=2)  # (mixtures, outcomes)
    chances = ways * (np.array(probabilities) / np.sum(probabilities) @ likelihoods)
    labels = counts / RATERS
    prediction = np.full(len(EMOTIONS), 1 / len(EMOTIONS))
    while True:
        gradient = chances @ np.log2(2 * prediction / (labels + prediction)) / 2  # of E[JS] in p
        if prediction @ gradient - gradient.min() < 1e-9:
            return prediction, float(chances @ js(labels, prediction))
        prediction = prediction * np.exp2(-2 * gradient)
        prediction /= prediction.sum()


@cache
def oracle(latents: Latents) -> tuple[Array, float]:
    """What the generator itself would predict of an utterance before it draws votes, and the JS that it expects."""
    return best_prediction([latents.mixture], [1.0])


def js(label: Array, prediction: Array) -> Array:
    """Jensen–Shannon divergence in bits over the last axis; `prediction` has no zero."""
    middle = (label + prediction) / 2
    of_label = label * np.log2(np.where(label > 0, label, 1.0) / middle)
    return np.asarray((of_label + prediction * np.log2(prediction / middle)).sum(-1) / 2)


def lowest_js(conflict: float, *, clarity: float = 1.0, knowing: Collection[Carrier]) -> float:
    """The lowest expected JS of a predictor that is told, without error, which emotions some modalities carry.

    And how clear they are, if it is told of any modality. Whoever knows both knows the true emotion and the mixture,
    hence all that the generator knows before it draws votes.
    """
    told: dict[tuple[Emotion | float, ...], dict[Latents, float]] = {}
    for latents, probability in law(conflict, clarity).items():
        carried = [latents.audio if carrier == "audio" else latents.text for carrier in knowing]
        known = (latents.clarity, *carried) if carried else ()
        told.setdefault(known, {})[latents] = probability
    return sum(
        sum(cases.values()) * best_prediction([latents.mixture for latents in cases], list(cases.values()))[1]
        for cases in told.values()
    )
