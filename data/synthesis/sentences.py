"""From an emotion to a sentence whose words carry it.

Seven frames are shared by all emotions, and so are the nouns; two or three words of every sentence come from the lists
of its emotion. No word stands in the lists of two emotions.
"""

from __future__ import annotations

import re

import numpy as np

from .perception import Emotion

FRAMES = (
    "{opener}, the {thing} is {adjective} {time}.",
    "I {verb} the {adjective} {thing} {time}.",
    "{opener}, we {adverb} {verb} that {thing}.",
    "My {person} {adverb} left a {adjective} {thing}.",
    "They {adverb} said the {thing} was {adjective}.",
    "You know I {verb} this {adjective} {thing}.",
    "{opener}, I {adverb} {verb} my {person}.",
)

Lists = dict[str, tuple[str, ...]]

SHARED: Lists = {
    "thing": ("letter", "meeting", "garden", "ticket", "window", "paper", "picture", "office", "story", "house"),
    "person": ("brother", "sister", "teacher", "neighbor", "cousin", "doctor"),
    "time": ("today", "tonight", "again", "this morning", "in the end", "after all"),
}

CARRYING: dict[Emotion, Lists] = {
    "neutral": {
        "opener": ("well", "okay", "so", "anyway"),
        "adjective": ("ordinary", "usual", "regular", "plain", "average", "standard", "common", "normal"),
        "verb": ("see", "use", "check", "count", "place", "expect"),
        "adverb": ("usually", "normally", "roughly", "simply"),
    },
    "happy": {
        "opener": ("wow", "hooray", "great", "hurrah"),
        "adjective": ("wonderful", "lovely", "amazing", "brilliant", "delightful", "beautiful", "splendid", "funny"),
        "verb": ("love", "adore", "enjoy", "celebrate", "cherish", "welcome"),
        "adverb": ("happily", "gladly", "cheerfully", "joyfully"),
    },
    "angry": {
        "opener": ("damn", "enough", "nonsense", "rubbish"),
        "adjective": (
            "stupid",
            "ridiculous",
            "outrageous",
            "disgraceful",
            "rotten",
            "idiotic",
            "shameful",
            "nasty",
        ),
        "verb": ("hate", "resent", "despise", "reject", "condemn", "curse"),
        "adverb": ("angrily", "furiously", "spitefully", "fiercely"),
    },
    "sad": {
        "opener": ("alas", "sorry", "sigh", "no"),
        "adjective": ("miserable", "lonely", "hopeless", "gloomy", "tragic", "painful", "dreary", "mournful"),
        "verb": ("miss", "mourn", "regret", "lose", "lament", "bury"),
        "adverb": ("sadly", "tearfully", "wearily", "gloomily"),
    },
}


def sentence(emotion: Emotion, random: np.random.Generator) -> str:
    """A sentence of five to eight words, two or three of them carrying the emotion."""
    frame = FRAMES[random.integers(len(FRAMES))]
    lists = {**SHARED, **CARRYING[emotion]}
    words = {slot: choices[random.integers(len(choices))] for slot, choices in lists.items()}
    text = frame.format(**words)
    return text[0].upper() + text[1:]


def vocabulary() -> tuple[str, ...]:
    """Every word that a sentence can hold, lower case, in alphabetical order: enough for a tokenizer."""
    lists = [SHARED, *CARRYING.values()]
    choices = [choice for slots in lists for words in slots.values() for choice in words]
    return tuple(sorted({word for text in (*FRAMES, *choices) for word in _words(text)}))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", text.lower()))
