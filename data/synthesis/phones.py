"""From spelt words to phones: what a vocal tract does for each, and for how long.

A small letter-to-sound table, far from English pronunciation but regular: equal words sound equal, and different words
differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phone:
    """A steady state of the vocal tract; amplitudes are linear, 1 is that of an open vowel."""

    milliseconds: float
    formants: tuple[float, float, float]  # Hz, of an adult male vocal tract
    voicing: float = 0.0
    aspiration: float = 0.0  # noise from the glottis, shaped by the formants
    frication: float = 0.0  # noise from a constriction, a band of its own
    noise_hertz: float = 5000.0  # centre of that band


PAUSE = Phone(70, (500, 1500, 2500))

# vowel formants after Peterson and Barney (1952), adult male speakers
PHONES: dict[str, Phone] = {
    "aa": Phone(110, (730, 1090, 2440), 1.0),
    "ae": Phone(110, (660, 1720, 2410), 1.0),
    "eh": Phone(90, (530, 1840, 2480), 1.0),
    "iy": Phone(110, (270, 2290, 3010), 0.9),
    "ih": Phone(75, (390, 1990, 2550), 0.9),
    "ao": Phone(110, (570, 840, 2410), 1.0),
    "uw": Phone(110, (300, 870, 2240), 0.9),
    "ah": Phone(75, (640, 1190, 2390), 1.0),
    "er": Phone(100, (490, 1350, 1690), 0.9),
    "m": Phone(70, (250, 1100, 2200), 0.45),
    "n": Phone(65, (250, 1600, 2500), 0.45),
    "ng": Phone(70, (250, 2100, 2700), 0.45),
    "l": Phone(65, (360, 1100, 2700), 0.6),
    "r": Phone(65, (330, 1100, 1500), 0.6),
    "w": Phone(60, (300, 700, 2200), 0.6),
    "y": Phone(55, (270, 2200, 3000), 0.6),
    "h": Phone(55, (500, 1500, 2500), 0.0, 0.3),
    "s": Phone(95, (400, 1700, 2600), 0.0, 0.0, 0.45, 6000),
    "z": Phone(75, (300, 1700, 2600), 0.35, 0.0, 0.25, 6000),
    "sh": Phone(100, (400, 1900, 2600), 0.0, 0.0, 0.5, 3200),
    "zh": Phone(70, (300, 1900, 2600), 0.35, 0.0, 0.3, 3200),
    "f": Phone(85, (350, 1200, 2300), 0.0, 0.0, 0.15, 4500),
    "v": Phone(60, (300, 1200, 2300), 0.4, 0.0, 0.08, 4500),
    "th": Phone(70, (350, 1400, 2600), 0.2, 0.0, 0.12, 5200),
    "hold": Phone(45, (400, 1500, 2500)),  # the closure of a voiceless stop
    "hum": Phone(40, (250, 1200, 2300), 0.12),  # the closure of a voiced one
    "p": Phone(25, (400, 1000, 2200), 0.0, 0.25, 0.25, 1200),
    "t": Phone(25, (400, 1800, 2700), 0.0, 0.2, 0.45, 4500),
    "k": Phone(30, (400, 1900, 2300), 0.0, 0.25, 0.4, 2200),
    "b": Phone(15, (300, 900, 2200), 0.4, 0.0, 0.15, 1200),
    "d": Phone(15, (300, 1700, 2700), 0.4, 0.0, 0.25, 4500),
    "g": Phone(20, (300, 2000, 2300), 0.4, 0.0, 0.25, 2200),
}

# longest spelling first; a letter without a sound of its own is silent
SPELLINGS: dict[str, str] = {
    "tion": "sh ah n", "ough": "ah f", "igh": "aa ih",
    "sh": "sh", "ch": "hold t sh", "th": "th", "ph": "f", "ng": "ng", "ck": "hold k", "qu": "hold k w", "wh": "w",
    "ee": "iy", "ea": "iy", "oo": "uw", "ou": "aa uw", "ow": "aa uw", "ai": "eh ih", "ay": "eh ih", "oy": "ao ih",
    "er": "er", "ir": "er", "ur": "er", "ar": "aa r", "or": "ao r",
    "a": "ae", "e": "eh", "i": "ih", "o": "ao", "u": "ah", "y": "iy",
    "b": "hum b", "d": "hum d", "g": "hum g", "p": "hold p", "t": "hold t", "k": "hold k", "c": "hold k",
    "f": "f", "v": "v", "s": "s", "z": "z", "h": "h", "j": "hum d zh", "x": "hold k s",
    "m": "m", "n": "n", "l": "l", "r": "r", "w": "w",
}  # fmt: skip
_SPELLING = re.compile("|".join(sorted(SPELLINGS, key=len, reverse=True)))


def phones_of(word: str) -> tuple[Phone, ...]:
    """The phones of a spelt word; a final e is silent, doubled consonants sound once."""
    letters = re.sub(r"([b-df-hj-np-tv-z])\1", r"\1", word.lower())
    if len(letters) > 2:
        letters = re.sub(r"e$", "", letters)
    names = [name for spelling in _SPELLING.findall(letters) for name in SPELLINGS[spelling].split()]
    return tuple(PHONES[name] for name in names)
