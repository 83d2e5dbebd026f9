"""IEMOCAP: a full-size tree with every trap of the release, and small ones with one fault each."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
from iemocap_tree import CONSENSUS, IN_FOUR, TURNS, WORD, Written, write

from amber2_core.errors import CorpusError
from amber2_core.label_spaces import policy_of
from amber2_core.tables import attribute_columns, rating_table
from amber2_core.utterance import Corpus, Problem
from amber2_core.votes import Targets, label_distributions
from amber2_data.corpora import iemocap

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
BLOCK = (
    "[10.0100 - 11.3925]\tSes01F_impro01_F001\tneu\t[2.5000, 2.5000, 3.0000]\n"
    "C-E2:\tNeutral;\t()\nC-E3:\tNeutral; Anger;\t(or so)\nC-F1:\tSadness;\t()\n"
    "A-E3:\tval 3; act 2; dom  2;\t()\nA-F1:\tval 2; act 3; dom  ;\t()\n"
)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    root = tmp_path_factory.mktemp("licensed") / "IEMOCAP_full_release"
    return root, write(root)


@pytest.fixture(scope="module")
def corpus(release: tuple[Path, Written]) -> Corpus:
    return iemocap.read(release[0])


def targets(corpus: Corpus, **options: str) -> Targets:
    policy = policy_of(corpus.defaults, options)
    return label_distributions(rating_table(corpus), attribute_columns(corpus), len(corpus.utterances), policy)


def test_the_full_release_has_10039_turns_of_ten_speakers_in_151_dialogues(corpus: Corpus) -> None:
    assert len(corpus.utterances) == len({u.id for u in corpus.utterances}) == 10_039
    assert tuple(Counter(u.session for u in corpus.utterances).values()) == TURNS
    assert {u.speaker for u in corpus.utterances} == {f"Ses0{k}{letter}" for k in range(1, 6) for letter in "FM"}
    assert len({u.dialogue for u in corpus.utterances}) == 151
    assert "Ses05M_script01_1b" in {u.dialogue for u in corpus.utterances}
    assert all(u.speaker[-1] == u.id[-4] for u in corpus.utterances)


def test_every_tick_of_every_rater_is_there_and_no_other(corpus: Corpus, release: tuple[Path, Written]) -> None:
    written = release[1]
    assert written.several_labels == 1750
    assert written.without_dominance == 36
    for u in corpus.utterances:
        external = [(r.rater, r.label) for r in u.ratings if r.source == "external"]
        own = [(r.rater, r.label) for r in u.ratings if r.source == "self"]
        assert sorted(external) == sorted(written.external[u.id])
        assert own == written.own[u.id]
        assert u.attributes["consensus"] == WORD.get(written.consensus[u.id], "")


def test_transcripts_are_joined_by_id_and_recordings_are_there(corpus: Corpus, release: tuple[Path, Written]) -> None:
    root, written = release
    assert {u.id: u.transcript for u in corpus.utterances} == written.transcript
    assert all(u.audio and (root / u.audio).is_file() and Path(u.audio).stem == u.id for u in corpus.utterances)


def test_only_the_repeated_transcripts_are_problems_of_a_full_release(corpus: Corpus) -> None:
    assert len(corpus.problems) == 151
    assert all("second transcript of" in problem.what and problem.line for problem in corpus.problems)


def test_the_fields_set_has_5531_turns_with_their_counts_by_session(corpus: Corpus) -> None:
    kept = targets(corpus)
    assert len(kept.rows) == 5_531
    assert tuple(Counter(corpus.utterances[row].session for row in kept.rows).values()) == IN_FOUR
    consensus = Counter(str(corpus.utterances[row].attributes["consensus"]) for row in kept.rows)
    assert consensus == {"Neutral": 1708, "Happiness": 595, "Excited": 1041, "Anger": 1103, "Sadness": 1084}
    assert dict(kept.dropped) == {
        "no counting vote": kept.dropped["no counting vote"],
        "not keep=consensus": 10_039 - 5_531 - kept.dropped["no counting vote"],
    }


def test_without_the_merge_the_excited_turns_leave_and_with_nine_classes_all_agreed_ones_come(corpus: Corpus) -> None:
    assert len(targets(corpus, merge="none").rows) == 5_531 - CONSENSUS["exc"]
    nine = targets(corpus, emotions="iemocap-9")
    assert len(nine.rows) == 10_039 - CONSENSUS["xxx"] - CONSENSUS["oth"]
    assert len(nine.emotions) == 9


def test_the_folder_that_holds_the_release_will_do(tmp_path: Path) -> None:
    inside = small(tmp_path / iemocap.RELEASE, HEADER + BLOCK)
    assert iemocap.read(tmp_path).utterances == inside.utterances


def test_other_counts_than_those_of_the_full_release_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        corpus = small(tmp_path, HEADER + BLOCK)
    assert len(corpus.utterances) == 1
    assert "Session1: 1 rated turns, 1 of them" in caplog.text
    assert "the full release has 1,819 and 1,085" in caplog.text
    assert [p.file for p in corpus.problems] == [f"Session{k}" for k in range(1, 6)]


def small(root: Path, evaluation: str | bytes, transcript: str = "") -> Corpus:
    """A release of one dialogue."""
    base = root / "Session1"
    for folder in ("dialog/EmoEvaluation", "dialog/transcriptions", "sentences/wav/Ses01F_impro01"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    raw = evaluation.encode() if isinstance(evaluation, str) else evaluation
    (base / "dialog/EmoEvaluation/Ses01F_impro01.txt").write_bytes(raw)
    (base / "dialog/transcriptions/Ses01F_impro01.txt").write_text(transcript)
    (base / "sentences/wav/Ses01F_impro01/Ses01F_impro01_F001.wav").touch()
    return iemocap.read(root)


def own_problems(corpus: Corpus) -> list[Problem]:
    """All but those that say that this is not the full release."""
    return [p for p in corpus.problems if "full release" not in p.what]


def test_a_block_is_read_as_it_stands(tmp_path: Path) -> None:
    corpus = small(tmp_path, HEADER + BLOCK, "Ses01F_impro01_F001 [010.0100-011.3925]: It's at [six]: no.\n")
    (turn,) = corpus.utterances
    assert [(r.rater, r.label, r.source) for r in turn.ratings] == [
        ("E2", "Neutral", "external"),
        ("E3", "Neutral", "external"),
        ("E3", "Anger", "external"),
        ("F1", "Sadness", "self"),
    ]
    assert turn.transcript == "It's at [six]: no."
    assert turn.attributes == {
        "consensus": "Neutral",
        "turn_start": 10.01,
        "turn_end": 11.3925,
        "valence": 2.5,
        "activation": 2.5,
        "dominance": 3.0,
    }
    assert own_problems(corpus) == []


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("C-E2:\tNeutral;", "C-E2: Neutral;", 4, "not C-rater"),
        ("C-E2:\tNeutral;", "C-E2:\tNeutr", 4, "not C-rater"),
        ("C-E2:\tNeutral;", "C-E2:\tneutrall;", 4, "unknown label 'neutrall' of rater E2; kept"),
        ("C-E2:\tNeutral;", "C-E2:\tNeutral; Neutral;", 4, "rater E2 gives the label 'Neutral' twice; it counts once"),
        ("C-E2:\tNeutral;", "C-G2:\tNeutral;", 4, "not C-rater"),
        ("A-E3:", "B-E3:", 7, "not a line of an evaluation"),
    ],
)
def test_a_line_that_cannot_be_read_is_told_with_its_number(
    old: str, new: str, line: int, what: str, tmp_path: Path
) -> None:
    (problem,) = own_problems(small(tmp_path, HEADER + BLOCK.replace(old, new)))
    assert (problem.file, problem.line) == ("Session1/dialog/EmoEvaluation/Ses01F_impro01.txt", line)
    assert what in problem.what


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("\tneu\t", "\tnew\t", "'new' is not one of ['neu', 'hap'"),
        ("[10.0100", "[12.0100", "the turn ends at 11.3925 s, before it starts at 12.0100 s"),
        ("Ses01F_impro01_F001", "Ses01F_impro02_F001", "'Ses01F_impro02_F002' is not the name of a turn of Ses01F"),
        ("Ses01F_impro01_F001", "Ses01F_impro01_FXX1", "is not the name of a turn"),
        ("]\tSes01F", "] Ses01F", "separated by tabs"),
        ("3.0000]", "]", "not [start - end]"),
    ],
)
def test_a_turn_whose_head_cannot_be_read_is_left_out_with_its_votes(
    old: str, new: str, what: str, tmp_path: Path
) -> None:
    damaged = BLOCK.replace(old, new).replace("_F001", "_F002")
    corpus = small(tmp_path, HEADER + BLOCK + "\n" + damaged)
    assert [(u.id, len(u.ratings)) for u in corpus.utterances] == [("Ses01F_impro01_F001", 4)]
    assert any(p.line == 10 and what in p.what for p in corpus.problems)


def test_a_second_block_of_a_turn_is_told_and_the_first_one_counts(tmp_path: Path) -> None:
    corpus = small(tmp_path, HEADER + BLOCK + "\n" + BLOCK.replace("\tneu\t", "\tang\t"))
    assert [u.attributes["consensus"] for u in corpus.utterances] == ["Neutral"]
    assert own_problems(corpus)[0].line == 10


def test_what_is_missing_is_told_with_its_place(tmp_path: Path) -> None:
    blocks = BLOCK + "\n" + BLOCK.replace("_F001", "_M002")
    corpus = small(tmp_path, HEADER + blocks, "Ses01F_impro01_F001 [010.0100-011.3925]: Yes.\nwhat is this\n")
    told = {(p.file, p.line): p.what for p in own_problems(corpus)}
    assert "1 rated turns have no recording, for one" in told["Session1/sentences/wav/Ses01F_impro01", None]
    transcripts = "Session1/dialog/transcriptions/Ses01F_impro01.txt"
    assert "not turn [start-end]: words; left out: 'what is this'" in told[transcripts, 2]
    assert "no transcript of 1 rated turns" in told[transcripts, None]


@pytest.mark.parametrize(
    ("damage", "what"), [(b"\xff", r"line 3: byte 1 is not UTF-8"), (b"\0", r"line 3: a NUL byte")]
)
def test_a_file_that_is_no_text_is_refused_with_its_line(damage: bytes, what: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=rf"Ses01F_impro01\.txt, {what}"):
        small(tmp_path, HEADER.encode() + damage + BLOCK.encode())


def test_a_folder_without_sessions_turns_or_recordings_is_refused_with_the_origin(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"No folder Session1 … Session5 in .*sail\.usc\.edu"):
        iemocap.read(tmp_path)
    with pytest.raises(CorpusError, match="No turn is rated"):
        small(tmp_path, HEADER)
    (tmp_path / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F001.wav").unlink()
    (tmp_path / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt").write_text(HEADER + BLOCK)
    with pytest.raises(CorpusError, match="No recording of a rated turn"):
        iemocap.read(tmp_path)
