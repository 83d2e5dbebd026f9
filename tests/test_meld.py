"""MELD: three tables with typographic quotes, ids that restart, one label each, and what the release is known for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_trees import MEDIA, write_meld

from amber2_core.errors import CorpusError
from amber2_data.corpora import meld

TRAIN = "train_sent_emo.csv"


def edited(root: Path, change: Callable[[str], str], file: str = TRAIN) -> Path:
    write_meld(root)
    (root / file).write_text(change((root / file).read_text("utf-8")), "utf-8")
    return root


def test_ids_are_prefixed_with_their_split_and_lines_keep_their_quotes(tmp_path: Path) -> None:
    write_meld(tmp_path)
    corpus = meld.read(tmp_path)
    assert [u.id for u in corpus.utterances] == [
        "train_dia0_utt0",
        "train_dia0_utt1",
        "train_dia1_utt0",
        "train_dia125_utt3",
        "dev_dia0_utt0",
        "test_dia0_utt0",
    ]
    assert corpus.utterances[2].transcript == "That I did. “That I did.”"
    assert [(u.speaker, u.dialogue, u.split) for u in corpus.utterances[1:3]] == [
        ("The Interviewer", "train_dia0", "train"),
        ("Chandler", "train_dia1", "train"),
    ]
    assert [r.label for u in corpus.utterances for r in u.ratings] == [
        "neutral", "neutral", "joy", "surprise", "surprise", "anger",
    ]  # fmt: skip
    assert corpus.utterances[5].audio == "output_repeated_splits_test/dia0_utt0.wav"
    assert corpus.utterances[0].attributes == {
        "consensus": "neutral",
        "sentiment": "neutral",
        "season": "8",
        "episode": "21",
        "start_time": "00:16:16,059",
        "end_time": "00:16:21,731",
    }


def test_what_is_broken_in_the_release_has_no_recording(tmp_path: Path) -> None:
    write_meld(tmp_path)
    corpus = meld.read(tmp_path)
    assert [u.id for u in corpus.utterances if u.audio is None] == ["train_dia125_utt3"]
    (problem,) = corpus.problems
    assert (problem.file, problem.what.split(";")[0]) == (
        "train_splits",
        "train_dia125_utt3 is known to be broken in the release",
    )


@pytest.mark.parametrize("name", ["train_dia125_utt3", "dev_dia110_utt7"])
def test_a_broken_clip_that_has_been_mended_is_read(name: str, tmp_path: Path) -> None:
    split, _, stem = name.partition("_")
    row = f"9,What?,Joey,surprise,negative,{stem[3:].replace('_utt', ',')},8,21,,\n"
    edited(tmp_path, lambda text: text if name in "train_dia125_utt3" else text + row, f"{split}_sent_emo.csv")
    file = tmp_path / MEDIA[split] / f"{stem}.wav"
    file.write_bytes(b"RIFF but no more")
    assert next(u for u in meld.read(tmp_path).utterances if u.id == name).audio is None
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write(file, noise, 16_000)
    mended = meld.read(tmp_path)
    assert next(u for u in mended.utterances if u.id == name).audio == f"{MEDIA[split]}/{stem}.wav"
    assert not any("broken" in problem.what for problem in mended.problems if name in problem.what)


def dyadic(text: str) -> str:
    """As MELD_Dyadic has it: dialogues of two are numbered anew, and the old ids stand beside the new ones."""
    header, *rows = text.splitlines()
    lines = [header.replace("Utterance_ID,", "Utterance_ID,Old_Dialogue_ID,Old_Utterance_ID,")]
    for number, (row, (old, new)) in enumerate(
        zip(rows, ((",0,0,8,", "0,1"), (",0,1,8,", "0,0"), (",1,0,8,", "7,3"), (",125,3,8,", "9,9")), strict=True)
    ):
        assert old in row, number
        lines.append(row.replace(old, f",{new}{old}"))
    return "\n".join(lines) + "\n"


def test_tables_of_meld_dyadic_go_by_the_old_ids(tmp_path: Path) -> None:
    write_meld(tmp_path / "meld")
    expected = {u.transcript: (u.id, u.audio, u.dialogue) for u in meld.read(tmp_path / "meld").utterances}
    corpus = meld.read(edited(tmp_path / "dyadic", dyadic))
    assert {u.transcript: (u.id, u.audio, u.dialogue) for u in corpus.utterances} == expected
    assert any(p.file == TRAIN and "a table of MELD_Dyadic" in p.what for p in corpus.problems)
    with pytest.raises(CorpusError, match="holds Old_Utterance_ID alone"):
        meld.read(edited(tmp_path / "half", lambda text: dyadic(text).replace("Old_Dialogue_ID", "Older")))


def test_the_tables_may_lie_where_the_repository_has_them(tmp_path: Path) -> None:
    write_meld(tmp_path)
    (tmp_path / "data/MELD").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}_sent_emo.csv").rename(tmp_path / f"data/MELD/{split}_sent_emo.csv")
    assert len(meld.read(tmp_path).utterances) == 6


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        (",joy,", ",bliss,", 4, "emotion 'bliss' is not one of"),
        (",0,1,8,", ",0,one,8,", 3, "Dialogue_ID '0' and Utterance_ID 'one' are not both whole numbers"),
        (",0,1,8,", ",0,0,8,", 3, "second row for train_dia0_utt0"),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_with_its_line(
    old: str, new: str, line: int, what: str, tmp_path: Path
) -> None:
    corpus = meld.read(edited(tmp_path, lambda text: text.replace(old, new)))
    assert len(corpus.utterances) == 5
    assert any((p.file, p.line) == (TRAIN, line) and what in p.what for p in corpus.problems)


def test_videos_are_recordings_and_what_lies_converted_beside_them_comes_first(tmp_path: Path) -> None:
    write_meld(tmp_path)
    (tmp_path / "dev_splits_complete/dia0_utt0.wav").unlink()
    audio = {utterance.id: utterance.audio for utterance in meld.read(tmp_path).utterances}
    assert audio["dev_dia0_utt0"] == "dev_splits_complete/dia0_utt0.mp4"
    assert audio["test_dia0_utt0"] == "output_repeated_splits_test/dia0_utt0.wav"
    (tmp_path / "dev_splits_complete/dia0_utt0.mp4").unlink()
    told = [problem.what for problem in meld.read(tmp_path).problems]
    assert any("1 utterances have no recording, for one dev_dia0_utt0" in what for what in told)
    for path in (*tmp_path.rglob("*.wav"), *tmp_path.rglob("*.mp4")):
        path.unlink()
    with pytest.raises(CorpusError, match=r"No recording .* has its row: the release's videos, as dia0_utt0\.mp4, lie"):
        meld.read(tmp_path)


def test_a_missing_split_is_told_and_no_table_at_all_refused(tmp_path: Path) -> None:
    write_meld(tmp_path)
    (tmp_path / "dev_sent_emo.csv").unlink()
    corpus = meld.read(tmp_path)
    assert {u.split for u in corpus.utterances} == {"train", "test"}
    assert any(p.file == "dev_sent_emo.csv" and "missing" in p.what for p in corpus.problems)
    with pytest.raises(CorpusError, match="No utterance in"):
        meld.read(tmp_path / "train_splits")
