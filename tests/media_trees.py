"""Writes small releases of MELD, M3ED and CMU-MOSEI in their formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

MELD_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
MELD_ROWS = {
    "train": [
        '1,"also I was the point person, you know",Chandler,neutral,neutral,0,0,8,21,"00:16:16,059","00:16:21,731"',
        '2,"You must’ve had your hands full.",The Interviewer,neutral,neutral,0,1,8,21,"00:16:21,940","00:16:23,442"',
        '3,"That I did. “That I did.”",Chandler,joy,positive,1,0,8,21,"00:16:23,442","00:16:26,389"',
        '4,What?,Joey,surprise,negative,125,3,8,21,"00:16:26,820","00:16:29,572"',
    ],
    "dev": ['1,"Oh my God!",Phoebe,surprise,negative,0,0,4,7,"00:20:57,256","00:21:00,049"'],
    "test": [
        '1,Why do all you’re coffee mugs have numbers?,Mark,anger,negative,0,0,3,19,"00:14:38,127","00:14:40,378"'
    ],
}
MEDIA = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}


def write_meld(root: Path) -> None:
    """Six utterances; one is known to be broken in the release."""
    for split, rows in MELD_ROWS.items():
        (root / MEDIA[split]).mkdir(parents=True)
        (root / f"{split}_sent_emo.csv").write_text("\n".join([MELD_HEADER, *rows]) + "\n", "utf-8")
        for row in rows:
            dialogue, number = row.split(",")[-8:-6] if '"' in row.rsplit(",", 2)[1] else row.split(",")[-6:-4]
            for suffix in ("mp4", "wav"):
                (root / MEDIA[split] / f"dia{dialogue}_utt{number}.{suffix}").touch()
        (root / MEDIA[split] / "._dia0_utt0.mp4").touch()


def m3ed_annotations() -> dict[str, Any]:
    """Two movies of one clip each."""

    def entry(speaker: str, *ticked: str) -> dict[str, Any]:
        emotions = {f"EmoAnnotator{k + 1}": labels for k, labels in enumerate(ticked)}
        final = {"final_mul_emo": ticked[0], "final_main_emo": ticked[0].split(",")[0]}
        times = {"StartTime": "00:00:05:12", "EndTime": "00:00:07:03", "Text": "你怎么来了", "Speaker": speaker}
        return {**times, "EmoAnnotation": {**emotions, **final}}

    return {
        "anjia": {
            "anjia_1": {
                "SpeakerInfo": {"A": {"Name": "x", "Gender": "Female"}},
                "Dialog": {
                    "A_anjia_1_1": entry("A", "Happy", "Happy,Surprise", "Neutral"),
                    "B_anjia_1_2": entry("B", "Anger", "Anger", "Sad"),
                },
            }
        },
        "zhihu": {"zhihu_7": {"Dialog": {"A_zhihu_7_1": entry("A", "Sad", "Sad", "Sad")}}},
    }


def write_m3ed(root: Path) -> None:
    """Three utterances, one recording each."""
    (root / "splitInfo").mkdir(parents=True)
    (root / "annotation.json").write_text(json.dumps(m3ed_annotations(), ensure_ascii=False, indent=1), "utf-8")
    for name, movies in (("train", "anjia\n"), ("val", ""), ("test", "zhihu\n")):
        (root / "splitInfo" / f"movie_list_{name}.txt").write_text(movies)
    for movie, clips in m3ed_annotations().items():
        (root / "wav" / movie).mkdir(parents=True)
        for content in clips.values():
            for name in content["Dialog"]:
                (root / "wav" / movie / f"{name}.wav").touch()


MOSEI_LABELS = {
    "-3g5yACwYnA": np.array([[1.0, 0.66, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], dtype=np.float32),
    "abc_DEF": np.array([[-2.0, 0, 1.33, 0.67, 0, 0, 2.0]], dtype=np.float32),
}
MOSEI_TIMES = {
    "-3g5yACwYnA": np.array([[10.0, 12.0], [2.5, 9.5]], dtype=np.float32),
    "abc_DEF": np.array([[0.0, 4.0]], dtype=np.float32),
}
MOSEI_WORDS = {
    "-3g5yACwYnA": [("key", 2.6, 3.0), ("sp", 3.0, 3.5), ("point", 9.0, 9.9), ("three", 9.9, 10.4), ("more", 11, 11.5)],
    "abc_DEF": [("über", 0.5, 1.0), ("out", 4.2, 4.4)],
}


def write_mosei(root: Path) -> None:
    """Three utterances of two videos, as the SDK stores them."""
    (root / "wav").mkdir(parents=True)
    with h5py.File(root / "CMU_MOSEI_Labels.csd", "w") as file:
        for video, labels in MOSEI_LABELS.items():
            file[f"All Labels/data/{video}/features"] = labels
            file[f"All Labels/data/{video}/intervals"] = MOSEI_TIMES[video]
            (root / "wav" / f"{video}.wav").touch()
    with h5py.File(root / "CMU_MOSEI_TimestampedWords.csd", "w") as file:
        for video, words in MOSEI_WORDS.items():
            file[f"words/data/{video}/features"] = np.array([[word.encode()] for word, _, _ in words], dtype="S32")
            file[f"words/data/{video}/intervals"] = np.array([times for _, *times in words], dtype=np.float64)
