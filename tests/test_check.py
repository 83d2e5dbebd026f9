"""check-corpus: a release with every fault, counted by hand; the record, the lines, the picture and the exit code."""

from __future__ import annotations

import errno
import json
import os
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from amber2_core.label_spaces import POLICY_OPTIONS
from amber2_data.cli import check_corpus, describe
from amber2_train.cli import train_heads

# what other programs may count on
KEYS = {
    "utterances",
    "kept",
    "dropped",
    "speakers",
    "sessions",
    "hours",
    "emotions",
    "raters_per_utterance",
    "problems",
}


def wav(path: Path, seconds: float, *, seed: int = 0) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.1, round(16_000 * seconds))
    soundfile.write(path, noise, 16_000, subtype="PCM_16")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Eight utterances in seven recordings."""
    for name, seconds, seed in (("a", 3.6, 1), ("b", 1.8, 2), ("c", 1.8, 2), ("e", 0.0, 3), ("g", 1.8, 4)):
        wav(tmp_path / f"{name}.wav", seconds, seed=seed)
    (tmp_path / "f.wav").write_bytes(b"RIFF but no more")
    rows = [
        "id,audio,text,speaker,session,start,end,votes.neutral,votes.happy,votes.sad",
        "1,a.wav,Yes.,ann,s1,0,1.8,3,0,0",  # unanimous
        "2,a.wav,No.,bob,s1,1.8,3.6,1,1,0",  # tied, 1 bit
        "3,b.wav,,ann,s2,,,0,2,1",  # no transcript
        "4,c.wav,Well.,cid,s2,,,0,0,4",  # the bytes of b.wav
        "5,d.wav,Gone.,cid,s2,,,1,0,0",  # no such recording
        "6,e.wav,Silent.,,s2,,,0,1,0",  # no samples
        "7,f.wav,Broken.,,s2,,,0,0,1",
        "8,g.wav,Unrated.,dan,s3,,,0,0,0",
    ]
    (tmp_path / "corpus.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "corpus.csv"


def call(manifest: Path, *arguments: str) -> Result:
    return CliRunner().invoke(check_corpus, ["--corpus", "manifest", "--root", str(manifest), *arguments])


def record_of(manifest: Path, *arguments: str) -> dict[str, Any]:
    result = call(manifest, "--json", *arguments)
    assert result.exit_code in (0, 3), result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def test_everything_is_counted_as_by_hand(manifest: Path) -> None:
    record = record_of(manifest)
    assert record.keys() >= KEYS
    assert (record["utterances"], record["kept"], record["speakers"], record["sessions"]) == (8, 7, 4, 3)
    assert record["dropped"] == {"no counting vote": 1, "not keep=any-vote": 0}
    assert record["hours"] == pytest.approx(5 * 1.8 / 3600, abs=1e-4)
    assert record["seconds"] == {"shortest": 1.8, "median": 1.8, "longest": 1.8}
    assert record["emotions"] == {"neutral": 3, "happy": 2, "sad": 2}
    assert record["raters_per_utterance"] == pytest.approx((3 + 2 + 3 + 4 + 1 + 1 + 1) / 7, abs=1e-4)
    assert record["raters"] == {"1": 3, "2": 1, "3": 2, "4": 1}
    assert record["transcripts_missing"] == 1
    assert record["audio"] == {"missing": 1, "unreadable": 2, "duplicated": 1}
    # entropies: 0, 1, .918, 0, 0, 0, 0 bits in five bins up to log2 3 = 1.585
    assert record["ambiguity"]["counts"] == [5, 0, 1, 1, 0]
    assert (record["ambiguity"]["unanimous"], record["ambiguity"]["tied"]) == (5, 1)
    assert record["ambiguity"]["mean_bits"] == pytest.approx((1 + 0.9183) / 7, abs=1e-4)


def test_every_problem_has_a_file_a_line_and_a_sentence(manifest: Path) -> None:
    problems = record_of(manifest)["problems"]
    assert all(problem.keys() == {"file", "line", "what"} for problem in problems)
    told = {problem["file"]: problem["what"] for problem in problems}
    assert told["d.wav"] == "no such recording"
    assert told["e.wav"] == "holds no sample"
    assert told["f.wav"].startswith("cannot be decoded (")
    assert told["c.wav"] == "the same bytes as b.wav"


def test_a_pipe_in_place_of_a_recording_is_not_waited_for(manifest: Path) -> None:
    (manifest.parent / "g.wav").unlink()
    os.mkfifo(manifest.parent / "g.wav")
    told = {problem["file"]: problem["what"] for problem in record_of(manifest)["problems"]}
    assert told["g.wav"] == "is a folder, a pipe or a device, not a file"


def test_dropped_and_kept_are_all_utterances_under_any_policy(manifest: Path) -> None:
    for keep, kept in (("any-vote", 7), ("plurality", 6), ("majority", 6)):
        record = record_of(manifest, "--keep", keep)
        assert (record["kept"], record["kept"] + sum(record["dropped"].values())) == (kept, 8)
    two = record_of(manifest, "--emotions", "sad,happy", "--merge", "neutral=happy")
    assert two["emotions"] == {"sad": 2, "happy": 5}
    assert two["policy"]["merge"] == [["neutral", "happy"]]


def test_a_policy_without_any_label_is_told_among_the_rest(manifest: Path) -> None:
    result = call(manifest, "--json", "--emotions", "neutral,contempt")
    record = json.loads(result.stdout)
    assert (result.exit_code, record["kept"], record["dropped"]) == (3, 0, {"no label under the policy": 8})
    assert "No kept utterance has a vote for 'contempt'" in record["labels_error"]
    assert "none: No kept utterance" in describe(record)


def test_the_lines_say_the_same(manifest: Path) -> None:
    result = call(manifest)
    assert result.exit_code == 3
    for words in (
        "8, 0.00 h, 4 speakers, 3 sessions",
        "1 missing, 2 unreadable, 1 duplicated",
        "7 kept; dropped: 1 no counting vote",
        "5 unanimous, 1 tied",
        "c.wav: the same bytes as b.wav",
    ):
        assert words in result.stdout


def test_the_table_is_named_beside_its_recordings_and_problems_stand_in_the_list_alone(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    wav(tmp_path / "clips" / "a.wav", 1.0)
    (tmp_path / "corpus.csv").write_text("audio,rater1,rater2\nD:\\clips\\a.wav,Sad,happy\n")
    result = call(tmp_path / "corpus.csv", "--audio-root", str(tmp_path / "clips"))
    assert result.exit_code == 0
    first, *_ = result.output.splitlines()
    assert first == f"manifest at {tmp_path / 'corpus.csv'}, recordings in {tmp_path / 'clips'}"
    assert result.output.count("no column of transcripts") == 1
    assert "warning" not in result.output


def test_a_release_without_faults_exits_with_0(manifest: Path, tmp_path: Path) -> None:
    lines = manifest.read_text().splitlines()
    (tmp_path / "good.csv").write_text("\n".join([*lines[:4], lines[8]]) + "\n")
    assert call(tmp_path / "good.csv").exit_code == 0


def test_a_corpus_of_one_word_is_shown_as_what_it_is(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 1.0)
    (tmp_path / "one.csv").write_text("id,audio,text,label\n1,a.wav,Yes.,sad\n2,a.wav,No.,Sadness\n3,a.wav,Oh.,\n")
    record = record_of(tmp_path / "one.csv")
    assert (record["kept"], record["emotions"], record["utterances"]) == (0, {"sad": 2}, 3)
    assert record["labels_error"] == "'sad' is all that raters say, of 2 utterances: there is nothing to tell apart"
    assert "none: 'sad' is all that raters say" in describe(record)
    assert call(tmp_path / "one.csv", "--figure", str(tmp_path / "one.svg")).exit_code == 3


def test_the_same_sound_in_two_splits_is_told_once_for_each_copy(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        wav(tmp_path / f"{name}.wav", 2.0, seed=seed)
    rows = [
        "id,audio,text,label,split,start,end",
        "1,a.wav,Yes.,sad,train,0,1",
        "2,a.wav,No.,happy,test,1,2",  # another stretch of it
        "3,b.wav,Yes.,sad,test,0,1",  # the bytes of a.wav
        "4,c.wav,Oh.,happy,train,,",
        "5,c.wav,Oh.,happy,train,,",  # of one split
        "6,c.wav,Oh.,happy,dev,,",
    ]
    (tmp_path / "c.csv").write_text("\n".join(rows) + "\n")
    record = record_of(tmp_path / "c.csv")
    assert record["across_splits"] == 2
    told = [problem["what"] for problem in record["problems"] if "the same sound" in problem["what"]]
    assert told == ["'3' of test is the same sound as '1' of train", "'6' of dev is the same sound as '4' of train"]
    assert ", 2 in two splits" in describe(record)


def test_segments_pointers_and_text_are_looked_at_and_what_cannot_be_encoded_leads_to_3(manifest: Path) -> None:
    wav(manifest.parent / "a.wav", 2.0, seed=1)
    (manifest.parent / "c.wav").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    manifest.write_text(manifest.read_text().replace("No.", "Don\x92t.").replace("Well.", "b'Well.'"), "utf-8")
    record = record_of(manifest)
    assert record["failures"]["2"] == "a.wav: ends at 2.00 s, within the segment from 1.8 to 3.6 s"
    assert record["failures"]["4"].startswith("c.wav: is a Git LFS pointer")
    told = [problem["what"] for problem in record["problems"] if problem["file"] == "transcripts"]
    assert [what.partition(",")[0] for what in told] == [
        "1 of 8 hold C1 control characters",
        "1 of 8 are bytes as Python prints them",
    ]
    header, first, second, *_ = manifest.read_text("utf-8").splitlines()
    for rows, code in (([first], 0), ([first, second], 3)):
        rated = "9,b.wav,Oh.,ann,s1,,,0,1,1"
        (manifest.parent / "some.csv").write_text("\n".join([header, *rows, rated]), "utf-8")
        assert call(manifest.parent / "some.csv").exit_code == code


def test_only_decoding_hears_that_a_recording_is_silent(manifest: Path) -> None:
    soundfile.write(manifest.parent / "g.wav", np.zeros(16_000), 16_000)
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines[:4], lines[8]]) + "\n")
    assert call(manifest).exit_code == 0
    result = call(manifest, "--decode", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["failures"] == {"8": "g.wav: is silent: every sample is zero"}


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_picture_for_which_the_disk_has_no_room_is_one_line_and_no_file(
    suffix: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    before = sorted(tmp_path.iterdir())
    picture = tmp_path / f"corpus{suffix}"
    result = call(manifest, "--figure", str(picture))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"error: Cannot write {picture}: No space left on device"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".svg"])
def test_the_picture_is_drawn(suffix: str, manifest: Path, tmp_path: Path) -> None:
    assert call(manifest, "--figure", str(tmp_path / f"corpus{suffix}")).exit_code == 3
    head = {".png": b"\x89PNG", ".svg": b"<?xml"}[suffix]
    assert (tmp_path / f"corpus{suffix}").read_bytes().startswith(head)


def test_words_in_letters_that_the_font_lacks_are_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from amber2_data.cli import draw

    record = {"corpus": "ü", "version": "", "utterances": 3, "kept": 3, "hours": 0.1, "raters": {"1": 3}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw({**record, "emotions": {"sad": 2}}, [0.5], tmp_path / "y.svg")
        assert caplog.messages == []
        draw({**record, "emotions": {"\u60b2\u3057\u3044": 2, "\u5b09": 1}}, [0.5], tmp_path / "x.pdf")
    what = "the font lacks letters of the corpus's words; they are drawn as boxes"
    assert caplog.messages == [f"{tmp_path / 'x.pdf'}: {what}"]


@pytest.mark.parametrize(
    ("name", "what"), [("x.gif", "Bad figure suffix '.gif', expected one of"), ("no/x.png", "there is no folder")]
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(
    name: str, what: str, manifest: Path, tmp_path: Path
) -> None:
    result = call(manifest, "--figure", str(tmp_path / name))
    assert (result.exit_code, result.stdout) == (1, "")
    assert what in result.stderr


def test_the_real_sample_is_checked(test_data: Path) -> None:
    result = CliRunner().invoke(check_corpus, ["--corpus", "crema_d", "--root", str(test_data / "crema_d"), "--json"])
    record = json.loads(result.stdout)
    assert result.exit_code == 3
    assert record["kept"] == record["utterances"] == 7441
    assert record["audio"] == {"missing": 7441 - 367, "unreadable": 0, "duplicated": 0}
    assert sum(record["emotions"].values()) == record["kept"]


@pytest.mark.parametrize("name", POLICY_OPTIONS)
def test_the_options_of_the_policy_are_those_of_the_training(name: str) -> None:
    here, there = (
        next(option for option in command.params if option.name == name) for command in (check_corpus, train_heads)
    )
    assert isinstance(here, click.Option)
    assert isinstance(there, click.Option)
    assert (here.default, here.help) == (there.default, there.help)


def test_a_table_from_elsewhere_is_checked_where_its_recordings_are(tmp_path: Path) -> None:
    (tmp_path / "clips/ann").mkdir(parents=True)
    wav(tmp_path / "clips/ann/1.wav", 1.0)
    rows = ["clip,words,first,second", r"D:\study\clips\ann\1.wav,Well.,Sad,sad", "ann/2.wav,Oh.,HAPPY,"]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    options = ["--audio-root", str(tmp_path / "clips"), "--column=audio=clip", "--column=text=words"]
    options += ["--column=rater.ann=first", "--column=rater.ben=second"]
    record = record_of(tmp_path / "table.csv", *options)
    assert record["failures"] == {"2": "2.wav: No such file or directory"}
    assert (record["root"], record["emotions"]) == (str(tmp_path / "clips"), {"happy": 1, "sad": 1})
    assert record["raters"] == {"1": 1, "2": 1}
    refused = call(tmp_path / "table.csv", "--column=clip")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "Bad column 'clip', expected a role and a column such as id=filename" in refused.stderr
