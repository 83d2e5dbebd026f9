"""CMU-MOSEI: the SDK's HDF5 files and arrays saved from it; a pickle is never opened."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from media_trees import MOSEI_LABELS, write_mosei

from amber2_core.errors import CorpusError
from amber2_data.corpora import mosei


def test_utterances_come_by_video_and_number_with_their_words(tmp_path: Path) -> None:
    write_mosei(tmp_path)
    corpus = mosei.read(tmp_path)
    assert corpus.problems == ()
    assert [(u.id, u.dialogue, u.start, u.duration) for u in corpus.utterances] == [
        ("-3g5yACwYnA[1]", "-3g5yACwYnA", 2.5, 7.0),
        ("-3g5yACwYnA[0]", "-3g5yACwYnA", 10.0, 2.0),
        ("abc_DEF[0]", "abc_DEF", 0.0, 4.0),
    ]
    assert [u.transcript for u in corpus.utterances] == ["key point", "three more", "über"]
    assert [u.audio for u in corpus.utterances] == ["wav/-3g5yACwYnA.wav"] * 2 + ["wav/abc_DEF.wav"]


def test_the_videos_of_the_release_are_recordings_too(tmp_path: Path) -> None:
    write_mosei(tmp_path)
    videos = tmp_path / "Raw" / "Videos" / "Full" / "Combined"
    videos.parent.mkdir(parents=True)
    (tmp_path / "wav").rename(videos)
    for path in list(videos.iterdir()):
        path.rename(path.with_suffix(".mp4"))
    found = [utterance.audio for utterance in mosei.read(tmp_path).utterances]
    assert found == [f"Raw/Videos/Full/Combined/{name}.mp4" for name in (*["-3g5yACwYnA"] * 2, "abc_DEF")]


def test_emotions_above_0_are_ratings_weighted_by_their_intensity(tmp_path: Path) -> None:
    write_mosei(tmp_path)
    none, one, several = mosei.read(tmp_path).utterances
    assert none.ratings == ()
    assert [(r.rater, r.label) for r in one.ratings] == [("mean", "happy")]
    assert {r.label: r.weight for r in several.ratings} == pytest.approx({"sad": 1.33, "anger": 0.67, "fear": 2.0})
    assert several.attributes == {"sentiment": -2.0}


def edit(root: Path, video: str, name: str, values: object) -> None:
    write_mosei(root)
    with h5py.File(root / "CMU_MOSEI_Labels.csd", "r+") as file:
        del file[f"All Labels/data/{video}/{name}"]
        if values is not None:
            file[f"All Labels/data/{video}/{name}"] = values


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("features", None, "object 'features' doesn't exist"),
        ("features", np.ones((1, 6)), "expected (n, 7)"),
        ("features", np.ones(7), "features is (7,), expected (segments, …)"),
        ("features", -np.ones((1, 7)), "intensities below 0"),
        ("features", np.full((1, 7), np.nan), "labels that are not finite"),
        ("features", np.array([[b"x"] * 7]), "labels that are not finite"),
        ("intervals", np.ones((2, 2)), "expected (n, 7) and (n, 2)"),
        ("intervals", np.full((1, 2), np.inf), "times that are not finite"),
        ("intervals", np.array([[4.0, 1.0]]), "segment 0 of abc_DEF lasts from 4 to 1 s; left out"),
    ],
)
def test_a_video_out_of_shape_is_left_out_with_its_name(name: str, values: object, what: str, tmp_path: Path) -> None:
    edit(tmp_path, "abc_DEF", name, values)
    corpus = mosei.read(tmp_path)
    assert len(corpus.utterances) == 2
    (problem,) = corpus.problems
    assert (problem.file, "abc_DEF" in problem.what) == ("CMU_MOSEI_Labels.csd", True)
    assert what in problem.what


def test_segments_that_begin_before_their_recording_begin_with_it(tmp_path: Path) -> None:
    edit(tmp_path, "-3g5yACwYnA", "intervals", np.array([[-0.04, 12.0], [-0.49, 9.5]]))
    corpus = mosei.read(tmp_path)
    assert [(u.id, u.start, u.duration) for u in corpus.utterances[:2]] == [
        ("-3g5yACwYnA[1]", 0.0, 9.5),
        ("-3g5yACwYnA[0]", 0.0, 12.0),
    ]
    (problem,) = corpus.problems
    assert problem.what == ("2 segments begin before their recording does, for one -3g5yACwYnA[1]; they begin at 0 s")


@pytest.mark.parametrize("interval", [[-0.6, 4.0], [-0.4, -0.1]])
def test_what_begins_long_before_or_ends_before_its_recording_is_left_out(
    interval: list[float], tmp_path: Path
) -> None:
    edit(tmp_path, "abc_DEF", "intervals", np.array([interval]))
    corpus = mosei.read(tmp_path)
    assert len(corpus.utterances) == 2
    assert "segment 0 of abc_DEF lasts from" in corpus.problems[0].what


def test_a_label_file_of_which_nothing_can_be_read_is_refused_for_that_and_not_for_its_recordings(
    tmp_path: Path,
) -> None:
    write_mosei(tmp_path)
    with h5py.File(tmp_path / "CMU_MOSEI_Labels.csd", "r+") as file:
        for video in list(file["All Labels/data"]):
            file.move(f"All Labels/data/{video}", f"All Labels/data/{video}[0]")
    with pytest.raises(
        CorpusError, match=r"No utterance in .*Labels\.csd .*a segment of a file that the SDK has aligned"
    ):
        mosei.read(tmp_path)


def test_missing_words_or_recordings_are_told_or_refused(tmp_path: Path) -> None:
    write_mosei(tmp_path)
    (tmp_path / "CMU_MOSEI_TimestampedWords.csd").unlink()
    (tmp_path / "wav/abc_DEF.wav").unlink()
    corpus = mosei.read(tmp_path)
    assert {u.transcript for u in corpus.utterances} == {""}
    told = {problem.file: problem.what for problem in corpus.problems}
    assert "missing; no utterance has a transcript" in told["CMU_MOSEI_TimestampedWords.csd"]
    assert "1 videos have no recording, for one abc_DEF" in told["wav"]
    (tmp_path / "wav/-3g5yACwYnA.wav").unlink()
    with pytest.raises(CorpusError, match=r"No video of .* has its recording"):
        mosei.read(tmp_path)
    (tmp_path / "CMU_MOSEI_Labels.csd").write_bytes(b"\x89HDF\r\n\x1a\nno")
    with pytest.raises(CorpusError, match=r"CMU_MOSEI_Labels\.csd is damaged"):
        mosei.read(tmp_path)


def test_arrays_of_the_corpus_are_read_without_recordings(tmp_path: Path) -> None:
    labels = np.concatenate(list(MOSEI_LABELS.values()))
    texts = np.array(["three more", "key point", "über"])
    np.savez(
        tmp_path / "m.npz", id=np.array(["a", "b", "c"]), labels=labels, raw_text=texts, split=["train", "dev", "test"]
    )
    corpus = mosei.read(tmp_path / "m.npz")
    assert [(u.id, u.transcript, u.split, u.audio) for u in corpus.utterances] == [
        ("a", "three more", "train", None),
        ("b", "key point", "dev", None),
        ("c", "über", "test", None),
    ]
    assert [len(u.ratings) for u in corpus.utterances] == [1, 0, 3]


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"labels": np.ones((2, 7))}, "holds no array 'id'"),
        ({"id": ["a", "b"], "labels": np.ones((2, 6))}, r"labels of .* are \(2, 6\), expected \(2, 7\) numbers"),
        ({"id": ["a", "b"], "labels": np.ones((2, 1, 7))}, r"labels of .* are \(2, 1, 7\), expected \(2, 7\) numbers"),
        (
            {"id": np.full((2, 3), "a"), "labels": np.ones((2, 7))},
            r"id of .* is \(2, 3\), expected \(utterances,\) \(an aligned",
        ),
        (
            {"id": ["a", "b"], "labels": np.ones((2, 7)), "raw_text": ["one"]},
            r"raw_text of .* is \(1,\), expected \(2,\), one text for each id",
        ),
        ({"id": ["a", "b"], "labels": np.full((2, 7), "x")}, r"labels of .* are 2 rows of object, expected"),
        ({"id": ["a", "a"], "labels": np.ones((2, 7))}, "id 'a' of row 1 is empty or stands there already"),
        ({"id": ["a", "b"], "labels": -np.ones((2, 7))}, "labels of 'a' are not finite, or intensities below 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, object], what: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(CorpusError, match=what):
        mosei.read(tmp_path / "m.npz")


def test_a_pickle_is_refused_unopened_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "aligned_50.pkl").write_bytes(b"cos\nsystem\n(S'touch exploded'\ntR.")
    with pytest.raises(CorpusError, match=r"is a pickle, and reading it could run code: .*numpy\.savez"):
        mosei.read(tmp_path / "aligned_50.pkl")
