"""A small speech synthesiser: letters as sounds, a speaker, and what an emotion does to a voice.

A sawtooth at the pitch of the voice, and noise, pass through four resonators whose frequencies change from letter to
letter (Fant's source-filter theory with Klatt's second-order resonators). Far from English, but regular: equal words
sound equal, different words differ, and emotions change pitch, melody, tempo, brightness, loudness and breath.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SAMPLING_RATE = 16_000
SECONDS = 0.055  # of a letter
BANDWIDTHS = np.array([80.0, 110.0, 160.0, 280.0])  # Hz
UPPER_FORMANTS = (2500.0, 3500.0)  # Hz, of every letter
PAUSE = (500.0, 1500.0, 0.0, 0.0)
# letter → first and second formant (Hz, of an adult male), how much voice and how much noise
SOUNDS: Mapping[str, tuple[float, float, float, float]] = {
    " ": PAUSE,
    "a": (730, 1090, 1, 0), "e": (530, 1840, 1, 0), "i": (270, 2290, 1, 0), "o": (570, 840, 1, 0),
    "u": (300, 870, 1, 0), "y": (390, 1990, 1, 0), "r": (490, 1350, 0.7, 0), "l": (360, 1100, 0.6, 0),
    "w": (300, 700, 0.6, 0), "m": (250, 1100, 0.5, 0), "n": (250, 1600, 0.5, 0), "v": (300, 1200, 0.4, 0.05),
    "z": (300, 1700, 0.4, 0.06), "j": (300, 1900, 0.4, 0.06), "b": (300, 900, 0.3, 0.02), "d": (300, 1700, 0.3, 0.05),
    "g": (300, 2000, 0.3, 0.05), "h": (500, 1500, 0, 0.04), "f": (1200, 2800, 0, 0.04), "s": (2600, 3900, 0, 0.08),
    "x": (2400, 3600, 0, 0.08), "c": (2000, 3200, 0, 0.06), "q": (900, 2100, 0, 0.06), "k": (900, 2300, 0, 0.06),
    "t": (1800, 3400, 0, 0.06), "p": (600, 1000, 0, 0.06),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Speaker:
    """What stays the same whatever a person says."""

    name: str
    pitch: float  # Hz
    tract: float  # formants relative to an adult male's
    tempo: float  # letters per time, relative


@dataclass(frozen=True, slots=True)
class Manner:
    """What an emotion does to a voice."""

    pitch: float = 1.0  # relative to the speaker's
    melody: float = 1.5  # semitones, standard deviation
    tempo: float = 1.0
    brightness: float = 0.0  # -1 … 1, weight of what is high against what is low
    level: float = -30.0  # dB, root mean square re full scale
    breath: float = 0.02  # noise added to voice
    pause: float = 1.0  # between words, relative to a letter


# directions of change after the review of Scherer (2003), exaggerated so that a small corpus shows them
MANNERS: Mapping[str, Manner] = {
    "neutral": Manner(),
    "happy": Manner(pitch=1.6, melody=3.5, tempo=1.1, brightness=0.5, level=-26.0),
    "angry": Manner(pitch=1.15, melody=2.5, tempo=1.25, brightness=0.85, level=-21.0, breath=0.15, pause=0.5),
    "sad": Manner(pitch=0.8, melody=0.6, tempo=0.8, brightness=-0.9, level=-36.0, breath=0.1, pause=3.5),
}


def manner_of(emotion: str, *, clarity: float = 1.0) -> Manner:
    """What an emotion does to a voice: c times its manner and 1 − c times the mean of all, which tells of none."""
    manners = [asdict(manner) for manner in MANNERS.values()]
    own = asdict(MANNERS[emotion])
    mean = {name: sum(manner[name] for manner in manners) / len(manners) for name in own}
    return Manner(**{name: clarity * own[name] + (1 - clarity) * mean[name] for name in own})


def speakers(sessions: int, random: np.random.Generator) -> list[tuple[Speaker, Speaker]]:
    """A woman and a man for each session, no two voices alike."""

    def speaker(name: str, pitch: float, tract: float) -> Speaker:
        pitch, tract = pitch * random.uniform(0.96, 1.04), tract * random.uniform(0.98, 1.02)
        return Speaker(name, pitch, tract, tempo=random.uniform(0.94, 1.06))

    names = [f"Ses{session:02d}" for session in range(1, sessions + 1)]
    return [(speaker(f"{name}F", 205, 1.16), speaker(f"{name}M", 118, 1.0)) for name in names]


def speak(transcript: str, speaker: Speaker, manner: Manner, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """The waveform, (samples,) float32 within ±1 at 16 kHz, of a transcript spoken by a speaker in a manner."""
    letters = [letter for letter in f" {transcript.lower()} " if letter in SOUNDS]
    sounds = np.array([SOUNDS[letter] for letter in letters])  # (letters, 4)
    stretches = np.array([manner.pause if letter == " " else 1.0 for letter in letters])
    stretches *= random.uniform(0.8, 1.2, len(letters))
    tempo = speaker.tempo * manner.tempo * random.normal(1, 0.05)
    lengths = (SAMPLING_RATE * SECONDS / tempo * stretches).astype(int)
    semitones = manner.melody * random.standard_normal(len(sounds))
    pitch = _drawn(speaker.pitch * manner.pitch * 2 ** (semitones / 12), lengths)
    voice, noise = (_drawn(track, lengths) for track in sounds.T[2:])
    hiss = random.standard_normal(len(pitch))
    sawtooth = 1 - 2 * (np.cumsum(pitch) / SAMPLING_RATE % 1)
    source = voice * (sawtooth + manner.breath * hiss) + noise * hiss
    waveform = _filtered(source, lengths, sounds[:, :2] * speaker.tract * random.normal(1, 0.015), manner.brightness)
    waveform *= 10 ** ((manner.level + random.normal(0, 1)) / 20) / np.sqrt(np.mean(waveform**2))
    # a quiet room, 66 dB below full scale
    waveform += 5e-4 * random.standard_normal(len(waveform))
    return np.asarray(waveform * min(1.0, 0.98 / np.abs(waveform).max()), dtype=np.float32)


def _drawn(values: Array, lengths: npt.NDArray[np.int_]) -> Array:
    """One value a letter (letters,), drawn as lines from middle to middle, (samples,)."""
    return np.interp(np.arange(lengths.sum()), np.cumsum(lengths) - lengths / 2, values)


def _filtered(source: Array, lengths: npt.NDArray[np.int_], formants: Array, brightness: float) -> Array:
    """The source (samples,) through the resonators A / (1 - B/z - C/z²) of each letter in turn, and a tilt."""
    from scipy.signal import sosfilt  # takes longer to import than a corpus to read

    upper = np.broadcast_to(UPPER_FORMANTS, formants.shape)
    centres = 2 * np.pi * np.hstack([formants, upper]) / SAMPLING_RATE  # (letters, 4)
    c = -np.exp(-2 * np.pi * BANDWIDTHS / SAMPLING_RATE) + 0 * centres
    b = 2 * np.exp(-np.pi * BANDWIDTHS / SAMPLING_RATE) * np.cos(centres)
    none = np.zeros_like(b)
    resonators = np.stack([1 - b - c, none, none, none + 1, -b, -c], axis=-1)  # (letters, 4, 6)
    pieces, state = [], np.zeros((4, 2))
    for piece, sections in zip(np.split(source, np.cumsum(lengths)[:-1]), resonators, strict=True):
        sounded, state = sosfilt(sections, piece, zi=state)
        pieces.append(sounded)
    return np.asarray(sosfilt([[1, -brightness, 0, 1, 0, 0]], np.concatenate(pieces)))
