"""From a sentence, a speaker and a manner of speaking to a waveform: a small source-filter synthesiser.

A glottal pulse train and noise, both shaped by a vocal tract whose resonances follow the phones (Fant's source-filter
theory with Klatt's second-order resonators). Filtering is short-time: Hann frames that sum to one are multiplied by the
tract's frequency response and added up again, which lets the tract move and keeps a corpus to seconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .perception import Emotion
from .phones import PAUSE, Phone, phones_of

Array = npt.NDArray[np.float64]
Response = npt.NDArray[np.complex128]  # (frames, bins)

SAMPLING_RATE = 16_000
HOP = 160  # samples between frames, 10 ms
TRANSFORM = 1024  # samples: a frame of two hops, and 44 ms for the resonances to ring out
BANDWIDTHS = (70.0, 100.0, 150.0)  # Hz, of the three formants that phones move
UPPER_FORMANTS, UPPER_BANDWIDTH = (3500.0, 4500.0), 280.0  # Hz, the same for every phone
NOISE_BANDWIDTH = 1500.0
FREQUENCIES = np.fft.rfftfreq(TRANSFORM, 1 / SAMPLING_RATE)


@dataclass(frozen=True, slots=True)
class Speaker:
    """What stays the same whatever a person says."""

    name: str
    pitch: float  # Hz, mean of the neutral voice
    tract: float  # formants relative to an adult male vocal tract
    tempo: float  # phones per time, relative
    tilt: float  # dB per octave


@dataclass(frozen=True, slots=True)
class Manner:
    """What an emotion does to a voice."""

    pitch: float = 1.0  # mean, relative to the speaker's
    melody: float = 2.0  # semitones, the size of accents
    slope: float = -3.0  # semitones from the first to the last phone
    tempo: float = 1.0
    tilt: float = 0.0  # dB per octave above 500 Hz
    level: float = -30.0  # dB, root mean square re full scale
    formants: float = 1.0  # lips spread or jaw opened raise them
    breath: float = 0.03  # noise added to voicing
    roughness: float = 0.01  # jitter and shimmer, relative standard deviation
    pauses: float = 0.05  # probability of a pause after a word


# directions of change after the review of Scherer (2003), exaggerated so that a small corpus shows them
MANNERS: dict[Emotion, Manner] = {
    "neutral": Manner(tilt=-1.0),
    "happy": Manner(pitch=1.6, melody=6.0, slope=2.0, tempo=1.1, tilt=3.0, level=-26.0, formants=1.1),
    "angry": Manner(
        pitch=1.1, melody=3.5, slope=-5.0, tempo=1.25, tilt=9.0, level=-21.0, formants=1.12, roughness=0.12
    ),
    "sad": Manner(pitch=0.85, melody=0.8, slope=-4.0, tempo=0.75, tilt=-9.0, level=-36.0, breath=0.1, pauses=0.3),
}


def speakers(sessions: int, random: np.random.Generator) -> list[tuple[Speaker, Speaker]]:
    """A woman and a man for each session, no two voices alike."""
    pairs = []
    for session in range(1, sessions + 1):
        woman = Speaker(f"Ses{session:02d}F", *_voice(random, pitch=205, tract=1.16))
        man = Speaker(f"Ses{session:02d}M", *_voice(random, pitch=118, tract=1.0))
        pairs.append((woman, man))
    return pairs


def speak(transcript: str, speaker: Speaker, emotion: Emotion, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """The waveform, (samples,) float32 within ±1 at 16 kHz, of a transcript spoken by a speaker in an emotion."""
    manner = MANNERS[emotion]
    phones, accented = _plan(transcript, manner, random)
    tempo = speaker.tempo * manner.tempo * random.normal(1, 0.05)
    # a frame lasts 10 ms, a phone at least two frames
    lengths = [max(2, round(phone.milliseconds / tempo / 10 * random.normal(1, 0.08))) for phone in phones]
    pitch = _pitch(np.repeat(accented, lengths), speaker, manner, random)
    tracks = _tracks(phones, lengths)
    tracks[:, :3] *= speaker.tract * manner.formants * random.normal(1, 0.015)
    tilt = speaker.tilt + manner.tilt + random.normal(0, 0.5)
    waveform = _filter(_glottis(pitch, tracks, manner, random), _tract(tracks[:, :3], tilt))
    hiss = random.standard_normal(len(waveform)) * _per_sample(tracks[:, 5])
    waveform += _filter(hiss, _band(tracks[:, 6]))
    waveform *= 10 ** ((manner.level + random.normal(0, 1)) / 20) / np.sqrt(np.mean(waveform**2))
    # a quiet room, 66 dB below full scale
    waveform += 5e-4 * random.standard_normal(len(waveform))
    return np.asarray(waveform * min(1.0, 0.98 / np.abs(waveform).max()), dtype=np.float32)


def _voice(random: np.random.Generator, *, pitch: float, tract: float) -> tuple[float, float, float, float]:
    return (
        pitch * random.uniform(0.9, 1.1),
        tract * random.uniform(0.96, 1.04),
        random.uniform(0.94, 1.06),
        random.uniform(-1, 1),
    )


def _plan(transcript: str, manner: Manner, random: np.random.Generator) -> tuple[list[Phone], list[float]]:
    """The phones with their pauses, and for each phone the height of the accent on it, in 0 … 1."""
    phones, accents = [PAUSE], [0.0]
    for word in re.findall(r"[a-z]+", transcript.lower()):
        sounds = phones_of(word)
        # long words carry the accent, on their first half
        height = random.uniform(0.5, 1.0) if len(sounds) > 3 else 0.0
        phones += sounds
        accents += [height if place <= len(sounds) // 2 else 0.0 for place in range(len(sounds))]
        if random.random() < manner.pauses:
            phones.append(PAUSE)
            accents.append(0.0)
    return [*phones, PAUSE, PAUSE], [*accents, 0.0, 0.0]


def _pitch(accents: Array, speaker: Speaker, manner: Manner, random: np.random.Generator) -> Array:
    """The pitch contour in Hz, (frames,): a line, accents on it, and a slow wobble."""
    progress = np.linspace(-0.5, 0.5, len(accents))
    wobble = _smooth(random.standard_normal(len(accents)), width=15)
    semitones = manner.slope * progress + manner.melody * (_smooth(accents, width=9) + wobble) + random.normal(0, 0.5)
    return np.asarray(speaker.pitch * manner.pitch * 2 ** (semitones / 12))


def _tracks(phones: Sequence[Phone], lengths: Sequence[int]) -> Array:
    """Formants, voicing, aspiration, frication and its centre, (frames, 7), gliding from phone to phone."""
    targets = np.array([(*p.formants, p.voicing, p.aspiration, p.frication, p.noise_hertz) for p in phones])
    steps = np.repeat(targets, lengths, axis=0)
    glides = [_smooth(column, width=7 if index < 3 else 3) for index, column in enumerate(steps.T)]
    return np.stack(glides, axis=1)


def _glottis(pitch: Array, tracks: Array, manner: Manner, random: np.random.Generator) -> Array:
    """Pulses (the derivative of Rosenberg's, 60 % open) with jitter, shimmer and breath, and aspiration; (samples,)."""
    jitter = 1 + manner.roughness * random.standard_normal(len(pitch))
    shimmer = 1 + 3 * manner.roughness * random.standard_normal(len(pitch))
    phase = np.cumsum(_per_sample(pitch * jitter)) / SAMPLING_RATE % 1
    opening, closing = 0.4, 0.2
    rising = np.sin(np.pi * phase / opening) / opening
    falling = -np.sin(np.pi / 2 * (phase - opening) / closing) / closing
    pulses = np.where(phase < opening, rising, np.where(phase < opening + closing, falling, 0))
    noise = random.standard_normal(len(phase))
    voicing, aspiration = _per_sample(tracks[:, 3] * shimmer), _per_sample(tracks[:, 4])
    return voicing * (pulses + 10 * manner.breath * noise) + aspiration * noise


def _tract(formants: Array, tilt: float) -> Response:
    """Frequency response (frames, bins) of five resonators in a row, unit gain at 0 Hz, and of the spectral tilt."""
    lower = np.prod([_resonator(track, width) for track, width in zip(formants.T, BANDWIDTHS, strict=True)], axis=0)
    upper = np.prod(_resonator(np.array(UPPER_FORMANTS), UPPER_BANDWIDTH), axis=0)
    return np.asarray(lower * (upper * (1 + (FREQUENCIES / 500) ** 2) ** (tilt / 12.04)))


def _band(centres: Array) -> Response:
    """Frequency response (frames, bins) of the frication band, unit gain at its centre."""
    response = _resonator(centres, NOISE_BANDWIDTH)
    return np.asarray(response / np.abs(response).max(axis=1, keepdims=True))


def _resonator(centres: Array, bandwidth: float) -> Response:
    """Klatt's digital resonator A / (1 − B z⁻¹ − C z⁻²) at centre frequencies in Hz, (frames, bins)."""
    c = -np.exp(-2 * np.pi * bandwidth / SAMPLING_RATE)
    b = 2 * np.exp(-np.pi * bandwidth / SAMPLING_RATE) * np.cos(2 * np.pi * centres / SAMPLING_RATE)[:, None]
    delay = np.exp(-2j * np.pi * FREQUENCIES / SAMPLING_RATE)
    return np.asarray((1 - b - c) / (1 - b * delay - c * delay**2))


def _filter(source: Array, responses: Response) -> Array:
    """The source (frames·HOP,) through a response that changes every frame, ringing beyond the end cut off."""
    frames = len(responses)
    padded = np.concatenate([np.zeros(HOP), source])
    window = np.hanning(2 * HOP + 1)[:-1]
    pieces = np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP)[::HOP][:frames] * window
    shaped = np.fft.irfft(np.fft.rfft(pieces, TRANSFORM) * responses[: len(pieces)], TRANSFORM)
    total = np.zeros((frames + 1) * HOP + TRANSFORM)
    for index, piece in enumerate(shaped):
        total[index * HOP : index * HOP + TRANSFORM] += piece
    return total[HOP : HOP + len(source)]


def _per_sample(track: Array) -> Array:
    """A track (frames,) drawn as lines between frames, (frames·HOP,)."""
    frames = len(track)
    return np.interp(np.arange(frames * HOP) / HOP, np.arange(frames), track)


def _smooth(track: Array, *, width: int) -> Array:
    """A moving Hann average over `width` frames, the ends held."""
    kernel = np.hanning(width + 2)[1:-1]
    held = np.pad(track, width // 2, mode="edge")
    return np.convolve(held, kernel / kernel.sum(), mode="valid")
