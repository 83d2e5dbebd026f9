"""CMU-MOSEI: the SDK's label file, or arrays saved from it → utterances with the mean intensity of six emotions.

```
<root>/
├── CMU_MOSEI_Labels.csd             HDF5: All Labels/data/<video>/{features (n, 7), intervals (n, 2)}
├── CMU_MOSEI_TimestampedWords.csd   HDF5: words/data/<video>/{features (w, 1), intervals (w, 2)}; may be missing
└── wav/<video>.wav                  or Raw/Audio/Full/WAV_16000/<video>.wav, or Raw/Videos/Full/Combined/<video>.mp4
```
Or the root is one .npz file with `id` (N,), `labels` (N, 7), and as far as known `raw_text`, `split`, `video`; such a
corpus has no recordings: its vectors come with import-features. http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset.
The seven numbers are sentiment, happy, sad, anger, surprise, disgust, fear. An emotion above 0 is present; its mean
intensity over three raters (0 … 3) is the weight of one rating, so that a label distribution is the share of each
emotion in all that was seen. Utterances without any emotion have no rating. A pickle is never read: unpickling a
stranger's file runs his code; `numpy.savez("mosei.npz", id=…, raw_text=…, labels=…)` converts one that you trust.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from amber2_core.errors import CacheError, CorpusError
from amber2_core.utterance import Corpus, LabelDefaults, Problem, Rating, Utterance

from ..arrays import ArrayFile, open_arrays
from ..release import first_of
from ..sound import recordings_among

ORIGIN = "The root is a folder with CMU_MOSEI_Labels.csd and wav/, or one .npz file with id, labels and raw_text."

LABELS, WORDS = "CMU_MOSEI_Labels.csd", "CMU_MOSEI_TimestampedWords.csd"
AUDIO = (
    *("wav", "Raw/Audio/Full/WAV_16000", "Audio/Full/WAV_16000"),
    *("Raw/Videos/Full/Combined", "Videos/Full/Combined"),
)
EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")  # columns 1 … 6 of the labels
DEFAULTS = LabelDefaults(
    emotions=("happy", "sad", "angry", "surprise", "disgust", "fear"),
    stimulus="audiovisual",
    keep="any-vote",
    folds="stratified",
)
PICKLES = (".pkl", ".pickle")
VIDEO = re.compile(r"[\w-]{1,100}")
PAUSE = "sp"
EARLIEST = 0.5  # s before their recording at which segments of the release begin
ALIGNED = re.compile(r"[\w-]{1,100}\[\d+\]")
MAX_NUMBERS = 2_000_000  # of one video: more is a damaged file

Numbers = npt.NDArray[np.float64]


def read(root: Path) -> Corpus:
    """The utterances of the label file, by video and start, or of the .npz file in its order.

    Raises:
        CorpusError: it is a pickle, damaged or of another shape, or no recording is there. What concerns a video or an
            utterance alone becomes a problem of the corpus.
    """
    if root.is_dir():
        return _read_folder(root)
    if root.suffix.lower() in PICKLES:
        raise CorpusError(
            f"{root} is a pickle, and reading it could run code: save what you trust with "
            "numpy.savez('mosei.npz', id=…, raw_text=…, labels=…)"
        )
    return _read_arrays(root)


def _read_folder(root: Path) -> Corpus:
    problems: list[Problem] = []
    words = _words(root, problems)
    folder = next((name for name in AUDIO if (root / name).is_dir()), None)
    if folder is None:
        raise CorpusError(f"None of the folders {list(AUDIO)} is in {root}. {ORIGIN}")
    recordings = recordings_among(os.listdir(root / folder))
    utterances: list[Utterance] = []
    silent, early = [], []
    for video, labels, intervals in _segments(root / LABELS, "All Labels", 7, problems):
        if video not in recordings:
            silent.append(video)
        for number in np.argsort(intervals[:, 0], kind="stable"):
            start, end = (float(value) for value in intervals[number])
            if -EARLIEST <= start < 0 < end:
                start = 0.0
                early.append(f"{video}[{number}]")
            if not 0 <= start < end:
                what = f"segment {number} of {video} lasts from {start:g} to {end:g} s; left out"
                problems.append(Problem(LABELS, None, what))
                continue
            ratings, attributes = _ratings(labels[number])
            utterances.append(
                Utterance(
                    id=f"{video}[{number}]",
                    audio=f"{folder}/{recordings[video]}" if video in recordings else None,
                    transcript=_said(words.get(video), start, end),
                    ratings=ratings,
                    dialogue=video,
                    language="en",
                    start=start,
                    duration=end - start,
                    attributes=attributes,
                )
            )
    if not utterances:
        raise CorpusError(f"No utterance in {root / LABELS}{first_of(problems)}. {ORIGIN}")
    if early:
        what = f"{len(early):,} segments begin before their recording does, for one {early[0]}; they begin at 0 s"
        problems.append(Problem(LABELS, None, what))
    if not any(utterance.audio for utterance in utterances):
        raise CorpusError(
            f"No video of {root / LABELS} has its recording in {root / folder}{first_of(problems)}. {ORIGIN}"
        )
    if silent:
        problems.append(Problem(folder, None, f"{len(silent):,} videos have no recording, for one {silent[0]}"))
    return Corpus("mosei", root, tuple(utterances), DEFAULTS, problems=tuple(problems))


def _ratings(labels: Numbers) -> tuple[tuple[Rating, ...], dict[str, float | str]]:
    """The ratings and attributes of one row of seven numbers."""
    ratings = tuple(
        Rating("mean", emotion, weight=float(intensity))
        for emotion, intensity in zip(EMOTIONS, labels[1:], strict=True)
        if intensity > 0
    )
    return ratings, {"sentiment": float(labels[0])}


def _segments(path: Path, group: str, width: int, problems: list[Problem]) -> Iterator[tuple[str, Numbers, Numbers]]:
    """(video, features, intervals) of the videos of a computational sequence; those out of shape become problems."""
    if not path.is_file():
        raise CorpusError(f"No file {path}. {ORIGIN}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            if f"{group}/data" not in file or not isinstance(file[f"{group}/data"], h5py.Group):
                raise CorpusError(f"{path} holds no group {group}/data: it is another file of the SDK")
            videos = file[f"{group}/data"]
            for video in videos:
                try:
                    features, intervals = _dataset(videos[video], "features"), _dataset(videos[video], "intervals")
                    _check_shapes(video, features, intervals, width)
                except (KeyError, ValueError, TypeError, AttributeError) as error:
                    what = " ".join(str(error).split())[:200]
                    problems.append(Problem(path.name, None, f"video {video[:60]!r}: {what}; left out"))
                    continue
                yield video, features, intervals
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError) as error:
        raise CorpusError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None


def _dataset(video: Any, name: str) -> Any:
    dataset = video[name]
    if dataset.ndim != 2 or dataset.size > MAX_NUMBERS:
        raise ValueError(f"{name} is {dataset.shape}, expected (segments, …)")
    values = dataset[...]
    return values if values.dtype.kind in "SO" else values.astype(np.float64)


def _check_shapes(video: str, features: Any, intervals: Any, width: int) -> None:
    if ALIGNED.fullmatch(video):
        raise ValueError("a segment of a file that the SDK has aligned, not a video: take the file as it was before")
    if not VIDEO.fullmatch(video):
        raise ValueError("not the name of a video")
    if features.shape[1] != width or intervals.shape != (len(features), 2) or intervals.dtype != np.float64:
        raise ValueError(f"features {features.shape} and intervals {intervals.shape}, expected (n, {width}) and (n, 2)")
    if width > 1 and not (
        features.dtype == np.float64 and np.isfinite(features).all() and (features[:, 1:] >= 0).all()
    ):
        raise ValueError("labels that are not finite, or intensities below 0")
    if not np.isfinite(intervals).all():
        raise ValueError("times that are not finite")


def _words(root: Path, problems: list[Problem]) -> dict[str, tuple[list[str], Numbers]]:
    """Video → its words and their intervals."""
    if not (root / WORDS).is_file():
        problems.append(Problem(WORDS, None, "missing; no utterance has a transcript"))
        return {}
    found = {}
    for video, features, intervals in _segments(root / WORDS, "words", 1, problems):
        words = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in features[:, 0]]
        found[video] = (words, intervals)
    return found


def _said(words: tuple[list[str], Numbers] | None, start: float, end: float) -> str:
    """The words whose middle lies in an interval."""
    if words is None:
        return ""
    middles = words[1].mean(axis=1)
    return " ".join(words[0][k] for k in np.flatnonzero((middles >= start) & (middles < end)) if words[0][k] != PAUSE)


def _count(path: Path, file: ArrayFile) -> int:
    """How many utterances a file of arrays is of, all of which have one row in each of its arrays that are read."""
    shape = file.shapes["id"]
    if len(shape) != 1:
        hint = " (an aligned file has video, start and end there: join them into one id)" if len(shape) == 2 else ""
        raise CorpusError(f"id of {path} is {shape}, expected (utterances,){hint}")
    if file.shapes["labels"] != (*shape, 7):
        raise CorpusError(f"labels of {path} are {file.shapes['labels']}, expected {(*shape, 7)} numbers")
    for name in ("raw_text", "split", "video"):
        if file.shapes.get(name, shape) != shape:
            raise CorpusError(f"{name} of {path} is {file.shapes[name]}, expected {shape}, one text for each id")
    return shape[0]


def _read_arrays(path: Path) -> Corpus:
    try:
        file = open_arrays(path)
        missing = [name for name in ("id", "labels") if name not in file.shapes]
        if missing:
            raise CorpusError(f"{path} holds no array {missing[0]!r} ({[*file.shapes]}). {ORIGIN}")
        count = _count(path, file)
        ids = [str(id_) for id_ in file.read("id")]
        labels = file.read("labels")
        columns = {
            name: file.read(name) if name in file.shapes else [""] * count for name in ("raw_text", "split", "video")
        }
    except CacheError as error:
        raise CorpusError(str(error)) from None
    if labels.dtype.kind not in "fiu" or not ids:
        raise CorpusError(f"labels of {path} are {len(ids)} rows of {labels.dtype}, expected (utterances, 7) numbers")
    utterances: dict[str, Utterance] = {}
    for row, (id_, numbers) in enumerate(zip(ids, labels.astype(np.float64), strict=True)):
        if id_ in utterances or not id_:
            raise CorpusError(f"{path}: id {id_!r} of row {row} is empty or stands there already")
        if not all(math.isfinite(number) for number in numbers) or (numbers[1:] < 0).any():
            raise CorpusError(f"{path}: labels of {id_!r} are not finite, or intensities below 0")
        ratings, attributes = _ratings(numbers)
        text, split, video = (str(columns[name][row]) for name in ("raw_text", "split", "video"))
        utterances[id_] = Utterance(
            id_, None, text, ratings, dialogue=video, split=split, language="en", attributes=attributes
        )
    problem = Problem(path.name, None, "a file of arrays: no recordings; bring the vectors with import-features")
    return Corpus("mosei", path.parent, tuple(utterances.values()), DEFAULTS, problems=(problem,))
