"""CREMA-D: the real sample, read a second way, and small releases with every fault."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from amber2_core.errors import CorpusError
from amber2_core.utterance import Corpus, Problem
from amber2_data.corpora import crema_d

HEADER = '"","A","D","F","H","N","S","fileName","numResponses","agreement","emoVote"\n'
ROWS = (
    '"100001",1,0,0,0,8,0,"1001_IEO_NEU_XX",9,0.88,"N"\n',
    '"200001",0,0,1,0,9,0,"1001_IEO_NEU_XX",10,0.9,"N"\n',
    '"300001",0,0,0,0,8,0,"1001_IEO_NEU_XX",8,1,"N"\n',
    '"100002",4,4,0,0,0,0,"1002_TIE_ANG_HI",8,0.5,"A:D"\n',
)
ACTORS = (
    '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","Asian","Not Hispanic"\n1002,21,"Female","X","Hispanic"\n'
)


def release(root: Path, *, votes: str | bytes = HEADER + "".join(ROWS), clips: tuple[str, ...] = ()) -> Path:
    """A release with the recordings of two clips, and of others by name."""
    (root / "processedResults").mkdir(parents=True, exist_ok=True)
    (root / "AudioWAV").mkdir(exist_ok=True)
    table = votes.encode() if isinstance(votes, str) else votes
    (root / "processedResults" / "tabulatedVotes.csv").write_bytes(table)
    (root / "VideoDemographics.csv").write_text(ACTORS)
    for clip in ("1001_IEO_NEU_XX", "1002_TIE_ANG_HI", *clips):
        (root / "AudioWAV" / f"{clip}.wav").write_bytes(clip.encode() * 200)
    return root


def wav(path: Path) -> None:
    """A short recording of noise."""
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 8_000), 16_000)


@pytest.fixture(scope="module")
def sample(test_data: Path) -> Corpus:
    """The clips whose recordings are there, and what is wrong with the whole."""
    corpus = crema_d.read(test_data / "crema_d")
    heard = tuple(utterance for utterance in corpus.utterances if utterance.audio)
    assert len(corpus.utterances) == 7441, "all that have votes, but for the one that is silent"
    return replace(corpus, utterances=heard)


def only_problem(corpus: Corpus) -> Problem:
    assert len(corpus.problems) == 1, corpus.problems
    return corpus.problems[0]


def test_the_sample_has_367_clips_of_32_actors(sample: Corpus) -> None:
    assert len(sample.utterances) == 367
    assert all((sample.root / str(utterance.audio)).is_file() for utterance in sample.utterances)
    assert len({utterance.speaker for utterance in sample.utterances}) == 32
    assert sample.defaults.stimulus == "audio"
    assert sample.defaults.emotions == ("neutral", "happy", "angry", "sad", "disgust", "fear")
    problem = only_problem(sample)
    assert problem.file == "AudioWAV"
    assert "7,074 of 7,442 clips with votes have no recording" in problem.what


def test_the_votes_of_the_sample_are_those_of_the_table(sample: Corpus, test_data: Path) -> None:
    words = ["angry", "disgust", "fear", "happy", "neutral", "sad"]
    stimuli = ["audio", "video", "audiovisual"]
    row_of = {utterance.id: row for row, utterance in enumerate(sample.utterances)}
    expected = np.zeros((len(row_of), 3, 6), dtype=int)
    with (test_data / "crema_d" / "processedResults" / "tabulatedVotes.csv").open(newline="") as file:
        lines = csv.reader(file)
        next(lines)
        for line in lines:
            if line[7] in row_of:
                expected[row_of[line[7]], int(line[0][0]) - 1] += np.array(line[1:7], dtype=int)
    found = np.zeros_like(expected)
    for utterance in sample.utterances:
        for rating in utterance.ratings:
            found[row_of[utterance.id], stimuli.index(rating.stimulus), words.index(rating.label)] += 1
    assert expected.sum() > 9000
    np.testing.assert_array_equal(found, expected)


def test_the_emotion_that_the_sample_names_is_the_one_with_most_votes(sample: Corpus, test_data: Path) -> None:
    # emoVote is the release's own reading of the counts: a check of which column is which emotion
    letters = {"A": "angry", "D": "disgust", "F": "fear", "H": "happy", "N": "neutral", "S": "sad"}
    votes = {utterance.id: utterance.ratings for utterance in sample.utterances}
    modes = {"1": "audio", "2": "video", "3": "audiovisual"}
    with (test_data / "crema_d" / "processedResults" / "tabulatedVotes.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            if line["fileName"] in votes:
                ticks = [r.label for r in votes[line["fileName"]] if r.stimulus == modes[line[""][0]]]
                counts = Counter(ticks)
                winners = {label for label, count in counts.items() if count == max(counts.values())}
                assert winners == {letters[letter] for letter in line["emoVote"].split(":")}


def test_a_clip_tells_actor_sentence_and_acted_emotion(tmp_path: Path) -> None:
    corpus = crema_d.read(release(tmp_path))
    neutral, angry = corpus.utterances
    assert (neutral.id, neutral.speaker, neutral.audio) == ("1001_IEO_NEU_XX", "1001", "AudioWAV/1001_IEO_NEU_XX.wav")
    assert (neutral.transcript, neutral.language) == ("It's eleven o'clock.", "en")
    assert angry.transcript == "That is exactly what happened."
    assert angry.attributes == {
        "acted_emotion": "angry",
        "acted_level": "high",
        "sentence": "TIE",
        "age": 21.0,
        "sex": "Female",
        "race": "X",
        "ethnicity": "Hispanic",
    }
    assert corpus.problems == ()


def test_raters_of_one_stimulus_are_told_apart(tmp_path: Path) -> None:
    neutral, _ = crema_d.read(release(tmp_path)).utterances
    for stimulus, count in (("audio", 9), ("video", 10), ("audiovisual", 8)):
        raters = [rating.rater for rating in neutral.ratings if rating.stimulus == stimulus]
        assert raters == [f"anonymous{number}" for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ('"100009",1,0,0,0,8,-1,"1002_TIE_ANG_HI",8,1,"N"\n', "'-1' in column S is not a count"),
        ('"100009",1,0,0,nan,8,0,"1002_TIE_ANG_HI",9,1,"N"\n', "'nan' in column H is not a count"),
        ('"100009",1e9,0,0,0,8,0,"1002_TIE_ANG_HI",9,1,"N"\n', "'1e9' in column A is not a count"),
        ('"100009",1,0,0,0,8,0,"1002_TIE_ANG_HI",many,1,"N"\n', "'many' in column numResponses is not a count"),
        ('"100009",1,0,0,0,8,0,"1002_TIE_ANG_HI",10,1,"N"\n', "the votes sum to 9, numResponses says 10"),
        ('"400009",1,0,0,0,8,0,"1002_TIE_ANG_HI",9,1,"N"\n', "row name '400009' is not a mode 1, 2 or 3"),
        ('"100009",1,0,0,0,8,0,"1002_TIE_JOY_HI",9,1,"N"\n', "'1002_TIE_JOY_HI' is not the name of a clip"),
        ('"100009",1,0,0,0,8,0,"1001_IEO_NEU_XX",9,1,"N"\n', "second row for 1001_IEO_NEU_XX, audio"),
    ],
)
def test_a_row_that_cannot_be_used_is_a_problem_with_its_line(row: str, what: str, tmp_path: Path) -> None:
    good = crema_d.read(release(tmp_path / "good"))
    corpus = crema_d.read(release(tmp_path / "bad", votes=HEADER + "".join(ROWS) + row))
    problem = only_problem(corpus)
    assert (problem.file, problem.line) == ("processedResults/tabulatedVotes.csv", 6)
    assert what in problem.what
    assert corpus.utterances == good.utterances


@pytest.mark.parametrize(
    ("votes", "what"),
    [
        (HEADER + ROWS[0] + '"100002",1,2\n', "line 3: expected 11 cells, got 3"),
        (HEADER + ROWS[0] + '"100002\n' + ROWS[1], "line 3: "),
        (HEADER.encode() + b'"100001",\xff\n', "line 2: byte 10 is not UTF-8"),
        (HEADER.encode() + ROWS[0].encode() + b"\0\n", "line 3: a NUL byte"),
        (HEADER.replace('"N",', "") + ROWS[0], "line 1: no column 'N'"),
        ("", "line 1: no column ''"),
        (HEADER, "No recording in .* has votes in"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_line(votes: str | bytes, what: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=what) as error:
        crema_d.read(release(tmp_path, votes=votes))
    assert "tabulatedVotes.csv" in str(error.value)


@pytest.mark.parametrize("missing", ["AudioWAV", "processedResults/tabulatedVotes.csv"])
def test_a_release_without_a_needed_file_says_which(missing: str, tmp_path: Path) -> None:
    root = release(tmp_path / "release")
    (root / missing).rename(tmp_path / "gone")
    with pytest.raises(CorpusError, match=f"{missing} in .*github.com/CheyneyComputerScience/CREMA-D"):
        crema_d.read(root)


def test_a_release_without_demographics_is_read_and_says_so(tmp_path: Path) -> None:
    root = release(tmp_path)
    (root / "VideoDemographics.csv").unlink()
    corpus = crema_d.read(root)
    assert only_problem(corpus).file == "VideoDemographics.csv"
    assert "age" not in corpus.utterances[0].attributes


def test_recordings_without_votes_are_left_out_one_by_one(tmp_path: Path) -> None:
    corpus = crema_d.read(release(tmp_path, clips=("1003_DFA_SAD_XX", "holiday", "._1001_IEO_NEU_XX")))
    assert [utterance.id for utterance in corpus.utterances] == ["1001_IEO_NEU_XX", "1002_TIE_ANG_HI"]
    assert {problem.file: problem.what for problem in corpus.problems} == {
        "AudioWAV/1003_DFA_SAD_XX.wav": "no votes on it in processedResults/tabulatedVotes.csv; left out",
        "AudioWAV/holiday.wav": "not named actor_sentence_emotion_level; left out",
    }


def test_clips_without_a_recording_are_utterances_that_fail_and_are_counted_in_one_problem(tmp_path: Path) -> None:
    from amber2_data.cli import check_corpus

    root = release(tmp_path)
    for clip in ("1001_IEO_NEU_XX", "1002_TIE_ANG_HI"):
        wav(root / "AudioWAV" / f"{clip}.wav")
    command = ["--corpus", "crema_d", "--root", str(root), "--emotions", "neutral,angry,disgust"]
    assert CliRunner().invoke(check_corpus, command).exit_code == 0
    (root / "AudioWAV" / "1002_TIE_ANG_HI.wav").unlink()
    corpus = crema_d.read(root)
    assert [utterance.audio for utterance in corpus.utterances] == ["AudioWAV/1001_IEO_NEU_XX.wav", None]
    assert only_problem(corpus) == Problem(
        "AudioWAV", None, "1 of 2 clips with votes have no recording, for one 1002_TIE_ANG_HI"
    )
    result = CliRunner().invoke(check_corpus, command)
    assert result.exit_code == 3
    assert "1 of 2 clips with votes have no recording" in result.output


def test_the_recording_that_is_known_to_be_silent_is_left_out(tmp_path: Path) -> None:
    row = '"100003",0,0,0,0,0,9,"1076_MTI_SAD_XX",9,1,"S"\n'
    corpus = crema_d.read(release(tmp_path, votes=HEADER + "".join(ROWS) + row, clips=("1076_MTI_SAD_XX",)))
    assert len(corpus.utterances) == 2
    assert corpus.problems[0].file == "AudioWAV/1076_MTI_SAD_XX.wav"
    wav(tmp_path / "AudioWAV/1076_MTI_SAD_XX.wav")
    mended = crema_d.read(tmp_path)
    assert [utterance.id for utterance in mended.utterances][-1] == "1076_MTI_SAD_XX"
    assert mended.problems == ()


@pytest.mark.parametrize("same", [True, False])
def test_recordings_that_are_known_to_be_the_same_are_kept_and_told(same: bool, tmp_path: Path) -> None:
    rows = [f'"10000{k}",0,0,0,9,0,0,"1006_TIE_{acted}_XX",9,1,"H"\n' for k, acted in ((3, "HAP"), (4, "NEU"))]
    clips = ("1006_TIE_HAP_XX", "1006_TIE_NEU_XX")
    root = release(tmp_path, votes=HEADER + "".join(ROWS) + "".join(rows), clips=clips)
    if same:
        (root / "AudioWAV" / f"{clips[1]}.wav").write_bytes((root / "AudioWAV" / f"{clips[0]}.wav").read_bytes())
    corpus = crema_d.read(root)
    assert len(corpus.utterances) == 4
    assert [problem.file for problem in corpus.problems] == (["AudioWAV/1006_TIE_NEU_XX.wav"] if same else [])


def test_a_clone_without_its_lfs_files_says_how_to_get_them(tmp_path: Path) -> None:
    root = release(tmp_path)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (root / "AudioWAV" / "1001_IEO_NEU_XX.wav").write_bytes(pointer)
    corpus = crema_d.read(root)
    # extraction fails it by its name, and whoever pulls it later needs no other command
    assert [utterance.id for utterance in corpus.utterances] == ["1001_IEO_NEU_XX", "1002_TIE_ANG_HI"]
    assert any("1 recordings are Git LFS pointers" in problem.what for problem in corpus.problems)
    (root / "AudioWAV" / "1002_TIE_ANG_HI.wav").write_bytes(pointer)
    with pytest.raises(CorpusError, match="git lfs pull"):
        crema_d.read(root)
