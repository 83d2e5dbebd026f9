"""Emo_ent's rule: where the audio's distribution is spread, and evenly so, the text decides.

After Chua et al., "Speech Emotion Recognition via Entropy-Aware Score Selection" (arXiv 2508.20796), and their code.
numpy, float64; nothing here loads torch, save `Rule.of_tensors`, of which graphs are made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .distributions import FloatArray, entropy, label, varentropy
from .errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor

Decider = Literal["sentiment", "text"]
# what a sentiment decides for; negative is the likelier of angry and sad
EMOTIONS_OF_SENTIMENT = ("happy", "neutral", "angry", "sad")
# thresholds that are tried, for each of the two, and between which quantiles of the wrong predictions on dev
STEPS = 200
ENTROPY_QUANTILES = (0.65, 0.85)
VARENTROPY_QUANTILES = (0.15, 0.35)


@dataclass(frozen=True)
class Rule:
    """When the text decides, by the class c that the audio predicts: H ≥ τ_H[c] and V ≤ τ_V[c], and how it does.

    H = −Σ p ln p and V = Σ p (ln p + H)² of the audio's distribution p, in nats and nats².
    """

    decider: Decider
    emotions: tuple[str, ...]  # C
    # (C,) τ_H and τ_V; None: never
    entropy: tuple[float | None, ...]
    varentropy: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if self.decider == "sentiment":
            check_emotions(self.emotions)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Rule:
        """The rule of which `dataclasses.asdict` and JSON made a record."""
        return cls(record["decider"], *(tuple(record[name]) for name in ("emotions", "entropy", "varentropy")))

    def flags(self, audio: ArrayLike) -> NDArray[np.bool_]:
        """Where the audio's distributions (n, C) are to be left to the text (n,); nowhere among NaN."""
        p = np.asarray(audio, np.float64)
        predicted = p.argmax(-1)
        least, most = (np.array(limits, np.float64)[predicted] for limits in (self.entropy, self.varentropy))
        return np.asarray((entropy(p) * math.log(2) >= least) & (varentropy(p) <= most))

    def applied(
        self, probs: Mapping[str, NDArray[Any]], sentiment: ArrayLike | None = None
    ) -> tuple[NDArray[Any], FloatArray]:
        """The rule's distributions (n, C), and whether the text decided, 1 or 0 (n,).

        Where it did, the distribution is that of the text head, or, with a sentiment, the audio's with its largest
        share and that of the class decided for exchanged. Without audio (then whether the text decided is NaN) it is
        the text head's, without a text side the audio's.

        Args:
            probs: (n, C) by head, ``audio`` and perhaps ``text``, NaN where there is none.
            sentiment: (n, 3) probabilities of negative, neutral, positive, NaN where there is none.
        """
        audio = probs["audio"]
        text = probs.get("text", np.full_like(audio, np.nan))
        if self.decider == "sentiment":
            other = exchanged(audio, sentiment_classes(np.asarray(sentiment), audio, self.emotions))
        else:
            other = text
        decides = self.flags(audio) & ~np.isnan(other).any(-1)
        there = ~np.isnan(audio).any(-1)
        found = np.where(decides[:, None], other, np.where(there[:, None], audio, text))
        return found, np.where(there, decides.astype(np.float64), np.nan)

    def of_tensors(self, probs: Mapping[str, Tensor], sentiment: Tensor | None = None) -> Tensor:
        """The distributions of `applied`, of tensors and in what a graph can hold; they differ by rounding alone."""
        import torch

        audio = probs["audio"].double()
        text = probs["text"].double() if "text" in probs else torch.full_like(audio, torch.nan)
        ln_p, predicted = torch.where(audio == 0, 1.0, audio).log(), audio.argmax(-1, keepdim=True)
        h = -(audio * ln_p).sum(-1, keepdim=True)
        v = (audio * (ln_p + h) ** 2).sum(-1, keepdim=True)
        least, most = (
            audio.new_tensor([never if x is None else x for x in limits])[predicted]
            for limits, never in ((self.entropy, math.inf), (self.varentropy, -math.inf))
        )
        other = text if sentiment is None else self._exchanged(audio, predicted, sentiment)
        decides = (h >= least) & (v <= most) & ~other.isnan().any(-1, keepdim=True)
        found = torch.where(decides, other, torch.where(audio.isnan().any(-1, keepdim=True), text, audio))
        return found.to(probs["audio"])

    def _exchanged(self, audio: Tensor, predicted: Tensor, sentiment: Tensor) -> Tensor:
        """`exchanged` for the `sentiment_classes`, of tensors."""
        import torch

        happy, neutral, angry, sad = (self.emotions.index(emotion) for emotion in EMOTIONS_OF_SENTIMENT)
        said = sentiment.argmax(-1, keepdim=True)
        negative = torch.where(audio[:, angry, None] >= audio[:, sad, None], angry, sad)
        classes = torch.where(said == 0, negative, torch.where(said == 1, neutral, happy))
        places = torch.arange(audio.shape[-1], device=audio.device)
        of_class, largest = audio.gather(-1, classes), audio.gather(-1, predicted)
        found = torch.where(places == classes, largest, torch.where(places == predicted, of_class, audio))
        return found.masked_fill(sentiment.isnan().any(-1, keepdim=True), torch.nan)


def check_emotions(emotions: Sequence[str]) -> None:
    """See that a sentiment has something to decide for. SettingError: an emotion is missing."""
    if missing := [emotion for emotion in EMOTIONS_OF_SENTIMENT if emotion not in emotions]:
        raise SettingError(
            f"A sentiment decides between {', '.join(EMOTIONS_OF_SENTIMENT)}, and there is no {missing[0]} among "
            f"{', '.join(emotions)}: use --decider text, or other --emotions"
        )


def sentiment_classes(sentiment: ArrayLike, audio: ArrayLike, emotions: Sequence[str]) -> NDArray[np.intp]:
    """The class that a sentiment decides for (n,), −1 where there is none.

    Positive is happy, neutral is neutral, and negative is angry or sad, whichever the audio finds likelier (angry where
    it finds them alike).

    Args:
        sentiment: (n, 3) probabilities of negative, neutral, positive.
        audio: (n, C) the audio's distributions.
        emotions: C.
    """
    given, p = np.asarray(sentiment, np.float64), np.asarray(audio, np.float64)
    happy, neutral, angry, sad = (list(emotions).index(emotion) for emotion in EMOTIONS_OF_SENTIMENT)
    negative = np.where(p[:, angry] >= p[:, sad], angry, sad)
    classes = np.select([given.argmax(-1) == 0, given.argmax(-1) == 1], [negative, np.full(len(p), neutral)], happy)
    return np.where(np.isnan(given).any(-1), -1, classes)


def exchanged(p: NDArray[Any], classes: NDArray[np.intp]) -> NDArray[Any]:
    """Distributions (n, C) with the largest share and that of a class (n,) exchanged; NaN for a class of −1."""
    found, rows, largest = p.copy(), np.arange(len(p)), p.argmax(-1)
    found[rows, largest], found[rows, classes] = p[rows, classes], p[rows, largest]
    found[classes < 0] = np.nan
    return found


def chosen_rule(
    decider: Decider, emotions: Sequence[str], audio: ArrayLike, target: ArrayLike, *, on_dev: ArrayLike
) -> Rule:
    """The rule whose thresholds find wrong predictions most precisely, class by class.

    Of the utterances of train and dev that are predicted as a class, the pair of thresholds is taken under which the
    largest share of those that are flagged is wrong; of equals the one that flags most, then the lowest. Tried are
    `STEPS` thresholds each, between quantiles of H and V of that class's wrong predictions on dev. A class without any,
    or of which no pair flags a wrong one, is never left to the text.

    Args:
        audio: (n, C) the audio's distributions on train and dev; NaN where there is none.
        target: (n, C) the raters'.
        on_dev: (n,) whether an utterance is of dev.
    """
    p, dev = np.asarray(audio, np.float64), np.asarray(on_dev, np.bool_)
    predicted, there = p.argmax(-1), ~np.isnan(p).any(-1)
    wrong = predicted != label(target)
    spread = np.stack([entropy(p) * math.log(2), varentropy(p)])  # (2, n)
    pairs = []
    for c in range(p.shape[-1]):
        own = there & (predicted == c)
        pairs.append(_most_precise(spread[:, own], wrong[own], spread[:, own & wrong & dev]))
    least, most = zip(*pairs, strict=True)
    return Rule(decider, tuple(emotions), least, most)


def _most_precise(
    spread: FloatArray, wrong: NDArray[np.bool_], wrong_on_dev: FloatArray
) -> tuple[float, float] | tuple[None, None]:
    """τ_H and τ_V for H and V (2, n) of one class, of which some are wrong (n,), and for those wrong on dev (2, m)."""
    if wrong_on_dev.shape[1] == 0:
        return None, None
    least, most = (
        np.linspace(np.quantile(some, low), np.quantile(some, high), STEPS)
        for some, (low, high) in zip(wrong_on_dev, (ENTROPY_QUANTILES, VARENTROPY_QUANTILES), strict=True)
    )
    # an utterance is flagged by the first so many steps of H, and from that step of V on
    steps, first = np.searchsorted(least, spread[0], side="right"), np.searchsorted(most, spread[1], side="left")
    counts = np.zeros((2, STEPS + 1, STEPS + 1))
    np.add.at(counts, (wrong.astype(int), steps, first), 1)
    right, found = counts[:, ::-1].cumsum(1)[:, -2::-1, :-1].cumsum(2)  # flagged by each pair, (steps, steps)
    flagged = right + found
    precision = np.divide(found, flagged, out=np.zeros_like(found), where=flagged > 0)
    best = np.lexsort((-flagged.ravel(), -precision.ravel()))[0]
    i, j = np.unravel_index(best, precision.shape)
    return (float(least[i]), float(most[j])) if precision[i, j] > 0 else (None, None)
