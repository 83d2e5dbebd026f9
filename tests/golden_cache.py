"""What tests/golden/cache_v1.h5 holds, and how caches are compared. `python tests/golden_cache.py` wrote the file.

A file of format version 1 must read to these values for good: whoever changes the format raises its version and adds a
file beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from amber2_core.cache import Failure, FeatureCache, Features, Frames, write_cache
from amber2_core.tables import RatingTable, UtteranceTable, texts
from amber2_core.utterance import LabelDefaults

GOLDEN = Path(__file__).parent / "golden" / "cache_v1.h5"


def golden_cache() -> FeatureCache:
    """A cache with something of everything that the format can hold."""
    return FeatureCache(
        corpus="example",
        utterances=_utterances(),
        ratings=_ratings(),
        defaults=LabelDefaults(
            emotions=("neutral", "happy", "sad"),
            stimulus="audio",
            merge=(("excited", "happy"), ("Glück", "happy")),
            keep="plurality",
            folds="session",
        ),
        features=_features(),
        attributes={
            "consensus": texts(["happy", "", "neutral", "sad", ""]),
            "valence, 1–5": np.array([1.5, np.nan, -0.0, 1e300, np.inf]),
        },
        failures=(Failure("c", "audio", "no such file: wav/c.wav"), Failure("e", "text", "leer «»")),
        corpus_version="1.12",
        created="2026-01-02T03:04:05+00:00",
        versions={"amber2": "0.1.0", "torch": "2.11.0"},
        summary={"truncated": 1, "seconds": 2.5, "notes": ["ü", None, True]},
    )


def _utterances() -> UtteranceTable:
    return UtteranceTable(
        id=texts(["a", "b/1", "c", "d d", "é"]),
        speaker=texts(["F1", "M1", "F1", "M1", ""]),
        session=texts(["1", "1", "2", "2", ""]),
        dialogue=texts(["x", "x", "y", "y", ""]),
        split=texts(["train", "train", "dev", "test", ""]),
        language=texts(["en", "ar", "zh", "de", ""]),
        transcript=texts(["Well, no.", "مرحبا بالعالم", "你好 👩‍👩‍👧 e\u0301", " two\nlines\t", ""]),
        audio=texts(["wav/a.wav", "wav/b 1.wav", "wav/c.wav", "wav/ü.wav", ""]),
        audio_sha256=texts(["0" * 64, "1" * 64, "", "3" * 64, ""]),
        start=np.array([np.nan, 0.0, 1.25, 2.5, np.nan], dtype=np.float32),
        duration=np.array([1.0, 0.1, np.nan, 34.14, np.nan], dtype=np.float32),
    )


def _ratings() -> RatingTable:
    return RatingTable(
        utterance=np.array([0, 0, 0, 1, 3, 3], dtype=np.int32),
        rater=texts(["E1", "E1", "F1", "anonymous1", "model", "عين"]),
        source=texts(["external", "external", "self", "external", "synthetic", "external"]),
        stimulus=texts(["audio", "audio", "audio", "video", "audiovisual", "audio"]),
        label=texts(["Happiness", "Other-confused, 😕", "sad", "neutral", "excited", "Glück"]),
        weight=np.array([1, 1, 1, 1, 0.3, 0.1], dtype=np.float32),
    )


def _features() -> tuple[Features, ...]:
    pooled = _numbers((5, 6), np.float32)
    pooled[[2, 4]] = np.nan
    layers = _numbers((5, 3, 4), np.float16)
    frames = Frames(_numbers((7, 6), np.float16), np.array([0, 3, 4, 4, 7, 7], dtype=np.int64))
    hashes = ["a" * 64, "b" * 64, "c" * 64, "d" * 64, "e" * 64]
    heard = texts([*hashes[:2], "", hashes[3], ""])
    recipe = {
        "model": "example/wav2vec2",
        "max_seconds": None,
        "sampling_rate": 16000,
        "resampler": {"rolloff": 0.9476},
    }
    return (
        Features("audio", "layers of é", layers, texts(hashes), {"model": "example/hubert", "layers": "all"}),
        Features("audio", "wav2vec2", pooled, heard, recipe, frames),
        Features("text", "bert", _numbers((5, 2), np.float32), texts(hashes), {"model": "example/bert", "lower": True}),
    )


def _numbers(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Numbers that both types hold exactly, none like its neighbour."""
    return (((np.arange(np.prod(shape)) * 37) % 101 - 50) / 8).astype(dtype).reshape(shape)


def contents(value: Any, place: str = "") -> dict[str, Any]:
    """Everything that a cache, or a part of it, holds: place → value, arrays with type, shape and bytes."""
    if is_dataclass(value):
        parts = {column.name: getattr(value, column.name) for column in fields(value)}
    elif isinstance(value, Mapping):
        parts = dict(value)
    elif isinstance(value, tuple | list):
        parts = {str(index): part for index, part in enumerate(value)}
    elif isinstance(value, np.ndarray):
        return {place: (str(value.dtype), value.shape, value.tolist() if value.dtype == object else value.tobytes())}
    else:
        return {place: value}
    held: dict[str, Any] = {place: sorted(parts)}
    for name, part in parts.items():
        held |= contents(part, f"{place}/{name}")
    return held


def tree(path: Path) -> dict[str, Any]:
    """How a file holds it: place → how a dataset is stored, and the types and values of all attributes."""
    held: dict[str, Any] = {}

    def add(place: str, thing: h5py.Group | h5py.Dataset) -> None:
        attributes = {name: (str(thing.attrs.get_id(name).dtype), thing.attrs[name]) for name in thing.attrs}
        if isinstance(thing, h5py.Dataset):
            text, filters = h5py.check_string_dtype(thing.dtype), (thing.compression, thing.compression_opts)
            stored = (thing.shape, thing.maxshape, str(thing.dtype), text, thing.chunks, *filters, thing.fletcher32)
            held[place] = (*stored, thing.shuffle, attributes)
        else:
            held[place] = attributes

    with h5py.File(path, "r") as file:
        add("/", file)
        file.visititems(add)
    return held


if __name__ == "__main__":
    write_cache(GOLDEN, golden_cache())
