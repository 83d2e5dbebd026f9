"""Manifests: every label form, every spelling of a column, and the line that says what is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amber2_core.errors import CorpusError, SettingError
from amber2_core.utterance import Corpus, Utterance
from amber2_core.votes import LabelPolicy
from amber2_data.corpora import manifest
from amber2_data.corpora.registry import read_corpus
from amber2_data.label_forms import smoothed, unsmoothed
from amber2_data.manifest_columns import NAMES

VOTES = """id,audio,text,speaker,session,votes.neutral,votes.happy,votes.angry
a1,wav/a1.wav,"Well, no.",mary,1,2,0,1
a2,wav/a2.wav,"She said ""yes"".",john,1,,3,
a3,wav/a3.wav,,mary,2,0,0,0
"""


@pytest.fixture(autouse=True)
def _recordings(tmp_path: Path) -> None:
    """A recording where the manifests look for theirs."""
    (tmp_path / "wav").mkdir()
    (tmp_path / "wav" / "a1.wav").touch()


def read(tmp_path: Path, table: str | bytes, *, name: str = "corpus.csv") -> Corpus:
    (tmp_path / name).write_bytes(table.encode() if isinstance(table, str) else table)
    return manifest.read(tmp_path / name)


def only(corpus: Corpus) -> Utterance:
    assert len(corpus.utterances) == 1
    return corpus.utterances[0]


def votes(utterance: Utterance) -> Counter[str]:
    return Counter(rating.label for rating in utterance.ratings)


def test_counts_of_votes_become_anonymous_raters(tmp_path: Path) -> None:
    corpus = read(tmp_path, VOTES)
    first, second, third = corpus.utterances
    assert [(rating.rater, rating.label) for rating in first.ratings] == [
        ("anonymous1", "neutral"),
        ("anonymous2", "neutral"),
        ("anonymous3", "angry"),
    ]
    assert votes(second) == {"happy": 3}
    assert third.ratings == ()
    assert {rating.stimulus for rating in first.ratings} == {"audiovisual"}
    assert (first.transcript, second.transcript, third.transcript) == ("Well, no.", 'She said "yes".', "")
    assert (first.speaker, first.session, first.start, first.duration) == ("mary", "1", None, None)


def test_the_root_is_the_file_and_recordings_are_found_beside_it(tmp_path: Path) -> None:
    (tmp_path / "corpus.csv").write_text(VOTES)
    corpus = read_corpus("manifest", tmp_path / "corpus.csv")
    assert (corpus.root / str(corpus.utterances[0].audio)).is_file()


def test_the_vote_columns_are_the_label_space_in_their_order(tmp_path: Path) -> None:
    defaults = read(tmp_path, VOTES).defaults
    assert defaults.emotions == ("neutral", "happy", "angry")
    assert (defaults.stimulus, defaults.keep, defaults.folds) == ("audiovisual", "any-vote", "session")


def test_the_words_are_the_label_space_folded_and_in_an_order_that_no_row_decides(tmp_path: Path) -> None:
    rows = ["1,wav/a1.wav,x,Sad", "2,b.wav,y,", "3,c.wav,z,ANGER", "4,d.wav,z,sad", "5,e.wav,z, sadness"]
    for order in (rows, rows[::-1]):
        corpus = read(tmp_path, "\n".join(["id,audio,text,label", *order]) + "\n")
        assert corpus.defaults.emotions == ("angry", "sad")
    by_id = {utterance.id: votes(utterance) for utterance in corpus.utterances}
    # the votes themselves stay as they were given
    assert by_id == {"1": {"Sad": 1}, "2": {}, "3": {"ANGER": 1}, "4": {"sad": 1}, "5": {"sadness": 1}}
    LabelPolicy.of_corpus(corpus.defaults)


def test_columns_of_one_emotion_in_two_spellings_are_one_class(tmp_path: Path) -> None:
    corpus = read(tmp_path, "id,audio,text,votes.Sad,votes.happy,votes.sadness\n1,wav/a1.wav,x,1,1,2\n")
    assert corpus.defaults.emotions == ("Sad", "happy")
    LabelPolicy.of_corpus(corpus.defaults)


@pytest.mark.parametrize("sessions", [("1", "2", "2"), ("1", "", "2")])
def test_folds_go_by_session_only_where_every_utterance_has_one(sessions: tuple[str, ...], tmp_path: Path) -> None:
    rows = "".join(f"{k},wav/a1.wav,x,sad,{session}\n" for k, session in enumerate(sessions))
    corpus = read(tmp_path, "id,audio,text,label,fold\n" + rows)
    assert [utterance.session for utterance in corpus.utterances] == list(sessions)
    assert corpus.defaults.folds == ("session" if all(sessions) else "speaker")


def test_ratings_are_labels_or_raters_with_labels(tmp_path: Path) -> None:
    ratings = ["sad", {"rater": "r7", "label": "angry"}, {"label": "sad", "rater": "r7"}, "sad"]
    cell = json.dumps(ratings).replace('"', '""')
    utterance = only(read(tmp_path, f'id,audio,text,ratings\n1,wav/a1.wav,x,"{cell}"\n'))
    assert [(rating.rater, rating.label) for rating in utterance.ratings] == [
        ("anonymous1", "sad"),
        ("r7", "angry"),
        ("r7", "sad"),
        ("anonymous4", "sad"),
    ]


def test_a_label_beside_votes_is_the_consensus(tmp_path: Path) -> None:
    first, second = read(
        tmp_path, "id,audio,text,votes.sad,votes.angry,label\n1,wav/a1.wav,x,2,1,sad\n2,b.wav,y,1,1,\n"
    ).utterances
    assert first.attributes == {"consensus": "sad"}
    assert len(first.ratings) == 3
    assert second.attributes == {}


@pytest.mark.parametrize(
    ("role", "column"),
    [(role, column) for role in ("audio", "text", "session") for column in NAMES[role]]
    + [("audio", "FileName"), ("text", "Utterance"), ("audio", "Audio_Path")],
)
def test_every_spelling_of_a_column_means_the_same(role: str, column: str, tmp_path: Path) -> None:
    header = ["id", "audio", "text", "session", "label"]
    header[header.index(role)] = column
    utterance = only(read(tmp_path, f"{','.join(header)}\n1,wav/a1.wav,hello,s3,sad\n"))
    assert (utterance.audio, utterance.transcript, utterance.session) == ("wav/a1.wav", "hello", "s3")


@pytest.mark.parametrize(
    ("delimiter", "mark", "ending"), [(",", "\ufeff", "\r\n"), (";", "", "\r\n"), ("\t", "\ufeff", "\n")]
)
def test_delimiter_line_ending_and_byte_order_mark_make_no_difference(
    delimiter: str, mark: str, ending: str, tmp_path: Path
) -> None:
    expected = read(tmp_path, VOTES)
    table = io.StringIO()
    csv.writer(table, delimiter=delimiter, lineterminator=ending).writerows(csv.reader(io.StringIO(VOTES)))
    assert read(tmp_path, mark + table.getvalue(), name="other.tsv").utterances == expected.utterances


def test_start_and_end_are_seconds_into_the_recording(tmp_path: Path) -> None:
    rows = "1,wav/a1.wav,x,sad,1.5,4\n2,wav/a1.wav,x,sad,,2.5\n3,wav/a1.wav,x,sad,3,\n"
    utterances = read(tmp_path, "id,audio,text,label,start,end\n" + rows).utterances
    assert [(u.start, u.duration) for u in utterances] == [(1.5, 2.5), (None, 2.5), (3.0, None)]


def test_other_columns_are_attributes_numbers_where_all_of_them_are(tmp_path: Path) -> None:
    rows = "0,1,wav/a1.wav,x,sad,3.5,7,=1+1\n1,2,wav/a1.wav,x,sad,,high,female\n"
    first, second = read(tmp_path, ",id,audio,text,label,valence,arousal,gender\n" + rows).utterances
    assert first.attributes == {"valence": 3.5, "arousal": "7", "gender": "=1+1"}
    assert second.attributes == {"arousal": "high", "gender": "female"}


@pytest.mark.parametrize("cell", ["wav/a1.wav", "./wav/a1.wav", "wav/../wav//a1.wav", "wav\\a1.wav"])
def test_recordings_are_written_relative_to_the_manifest(cell: str, tmp_path: Path) -> None:
    assert only(read(tmp_path, f"id,audio,text,label\n1,{cell},x,sad\n")).audio == "wav/a1.wav"


@pytest.mark.parametrize("cell", ["../a.wav", "wav/../../a.wav", "..", "..\\a.wav", "wav\\..\\..\\a.wav"])
def test_a_recording_that_climbs_out_of_the_folder_is_refused(cell: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.csv, line 3: recording .* climbs out of"):
        read(tmp_path, f"id,audio,text,label\n1,wav/a1.wav,x,sad\n2,{cell},x,sad\n")


def test_absolute_recordings_are_kept_and_told_once(tmp_path: Path) -> None:
    here = (tmp_path / "wav" / "a1.wav").as_posix()
    corpus = read(tmp_path, f"id,audio,text,label\n1,{here},x,sad\n2,/gone/a2.wav,x,sad\n3,wav/a1.wav,x,sad\n")
    assert [utterance.audio for utterance in corpus.utterances] == [here, "/gone/a2.wav", "wav/a1.wav"]
    assert corpus.root / str(corpus.utterances[0].audio) == tmp_path / "wav/a1.wav"
    (problem,) = corpus.problems
    assert (
        problem.what == f"2 recordings are absolute paths, for one {here}: they hold on this machine alone, unless "
        "--audio-root says where the recordings lie"
    )


@pytest.mark.skipif(os.name == "nt", reason="they are paths there")
@pytest.mark.parametrize("cell", ["C:\\a.wav", "c:a.wav", "D:/lab/a.wav", "\\\\server\\a.wav"])
def test_a_path_of_windows_asks_for_the_folder_here(cell: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"line 2: recording '[^\\]*' is a path of Windows: .* --audio-root"):
        read(tmp_path, f"id,audio,text,label\n1,{cell},x,sad\n")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("a1.wav", "a1.wav"),
        ("ann/a1.wav", "ann/a1.wav"),
        ("/home/lab/clips/ann/a1.wav", "ann/a1.wav"),  # not the a1.wav that lies above
        ("D:\\lab\\clips\\ann\\a1.wav", "ann/a1.wav"),
        ("D:\\lab\\clips\\a1.wav", "a1.wav"),
        ("..\\clips\\a1.wav", "a1.wav"),
        ("\\\\server\\share\\ann\\a1.wav", "ann/a1.wav"),
        ("/home/lab/gone.wav", "gone.wav"),
        ("ben/gone.wav", "ben/gone.wav"),
    ],
)
def test_below_an_audio_root_the_longest_end_of_a_path_counts_that_is_there(
    cell: str, expected: str, tmp_path: Path
) -> None:
    for place in ("clips/a1.wav", "clips/ann/a1.wav"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    (tmp_path / "corpus.csv").write_text(f"id,audio,text,label\n1,{cell},x,sad\n2,a1.wav,x,sad\n")
    corpus = read_corpus("manifest", tmp_path / "corpus.csv", audio_root=tmp_path / "clips")
    assert (corpus.utterances[0].audio, corpus.root) == (expected, tmp_path / "clips")
    assert corpus.problems == ()


def test_the_usual_table_of_a_lab_is_read_as_it_is(tmp_path: Path) -> None:
    rows = [
        "filename,Transcript,Speaker,rater1,Rater2,rater 3,gender",
        "wav/a1.wav,Well.,ann,Sad,sad,Happy,f",
        "wav/a2.wav,No.,ben,HAPPY,,Sad; Angry,m",
        "wav/a3.wav,Oh.,ben,n/a,-,,m",
    ]
    corpus = read(tmp_path, "\n".join(rows) + "\n")
    assert [u.id for u in corpus.utterances] == ["a1", "a2", "a3"]
    assert [[(r.rater, r.label) for r in u.ratings] for u in corpus.utterances] == [
        [("rater1", "Sad"), ("Rater2", "sad"), ("rater 3", "Happy")],
        [("rater1", "HAPPY"), ("rater 3", "Sad"), ("rater 3", "Angry")],
        [],
    ]
    assert corpus.defaults.emotions == ("angry", "happy", "sad")
    assert corpus.utterances[0].attributes == {"gender": "f"}


def test_raters_by_name_have_weights_and_a_label_beside_them_is_the_consensus(tmp_path: Path) -> None:
    header = "id,audio,text,rater.ann,rater.ben,weight.ann,weight.cid,label"
    first, second = read(tmp_path, f"{header}\n1,wav/a1.wav,x,sad,happy,2.5,7,sad\n2,b.wav,x,sad,,,,\n").utterances
    assert [(r.rater, r.label, r.weight) for r in first.ratings] == [("ann", "sad", 2.5), ("ben", "happy", 1.0)]
    assert [(r.rater, r.weight) for r in second.ratings] == [("ann", 1.0)]
    assert first.attributes == {"weight.cid": 7.0, "consensus": "sad"}
    with pytest.raises(CorpusError, match=r"line 2: the weight of 'ann' is '-1', expected a number from 0 to 10,000"):
        read(tmp_path, f"{header}\n1,wav/a1.wav,x,sad,happy,-1,7,sad\n")


@pytest.mark.parametrize("label", ["label", "votes.sad,votes.happy", "ratings"])
def test_columns_of_raters_that_hold_no_words_or_stand_beside_votes_are_attributes(label: str, tmp_path: Path) -> None:
    cell = {"label": "sad", "votes.sad,votes.happy": "1,2", "ratings": '"[""sad""]"'}[label]
    number = "3.5" if label == "label" else "calm"
    corpus = read(tmp_path, f"id,audio,text,{label},rater1,rater2\n1,wav/a1.wav,x,{cell},{number},\n")
    assert only(corpus).attributes == {"rater1": 3.5 if label == "label" else "calm"}
    assert votes(only(corpus))["sad"] == 1
    with pytest.raises(CorpusError, match=r"line 1: no label: .* rater1, rater2"):
        read(tmp_path, "id,audio,text,rater1\n1,wav/a1.wav,x,3.5\n")


def test_a_rating_has_a_weight_and_a_stimulus_of_its_own(tmp_path: Path) -> None:
    ratings = ["sad", {"rater": "r7", "label": "sad", "weight": 0.5, "stimulus": "audio"}]
    utterance = only(json_lines(tmp_path, {"id": 1, "audio": "wav/a1.wav", "text": "x", "ratings": ratings}))
    assert [(r.rater, r.weight, r.stimulus) for r in utterance.ratings] == [
        ("anonymous1", 1.0, "audiovisual"),
        ("r7", 0.5, "audio"),
    ]


@pytest.mark.parametrize("header", ["votes.sad,votes.happy", "rater1,rater2", "ratings,note"])
def test_votes_on_the_voice_are_the_default_where_there_are_no_others(header: str, tmp_path: Path) -> None:
    cells = {"votes.sad,votes.happy": "1,1", "rater1,rater2": "sad,happy", "ratings,note": '"[""sad"", ""happy""]",'}
    table = f"id,audio,text,stimulus,{header}\n1,wav/a1.wav,x,Audio,{cells[header]}\n"
    corpus = read(tmp_path, table)
    assert {rating.stimulus for rating in only(corpus).ratings} == {"audio"}
    assert (corpus.defaults.stimulus, set(corpus.defaults.emotions)) == ("audio", {"sad", "happy"})
    both = read(tmp_path, f"{table}2,wav/a1.wav,x,,{cells[header]}\n")
    assert both.defaults.stimulus == "audiovisual"


def test_a_column_called_stimulus_that_holds_something_else_is_an_attribute(tmp_path: Path) -> None:
    utterance = only(read(tmp_path, "id,audio,text,stimulus,label\n1,wav/a1.wav,x,clip 12,sad\n"))
    assert utterance.attributes == {"stimulus": "clip 12"}
    assert utterance.ratings[0].stimulus == "audiovisual"


def test_a_user_names_columns(tmp_path: Path) -> None:
    table = "clip,file,words,Ann's label,Ben,emotion\n7,wav/a1.wav,Well.,sad,happy,sad\n"
    (tmp_path / "corpus.csv").write_text(table)
    options = ["id=Clip", "text = words", "rater.ann=Ann's label", "rater.ben=Ben"]
    utterance = only(read_corpus("manifest", tmp_path / "corpus.csv", columns=options))
    assert (utterance.id, utterance.audio, utterance.transcript) == ("7", "wav/a1.wav", "Well.")
    assert [(r.rater, r.label) for r in utterance.ratings] == [("ann", "sad"), ("ben", "happy")]
    assert utterance.attributes == {"consensus": "sad"}


def test_a_column_that_is_named_may_keep_its_second_meaning_and_others_of_that_role_are_attributes(
    tmp_path: Path,
) -> None:
    (tmp_path / "corpus.csv").write_text("filename,text,transcript,label\nwav/a1.wav,one,two,sad\n")
    utterance = only(read_corpus("manifest", tmp_path / "corpus.csv", columns=["id=filename", "text=transcript"]))
    assert (utterance.id, utterance.audio, utterance.transcript) == ("wav/a1.wav", "wav/a1.wav", "two")
    assert utterance.attributes == {"text": "one"}


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        (["id"], SettingError, "Bad column 'id', expected a role and a column such as id=filename"),
        (["name=filename"], SettingError, "Bad column role 'name', expected one of ['id', 'audio', "),
        (["gender=sex"], SettingError, "'weight.NAME']: any other column keeps its own name"),
        (["rater.=filename"], SettingError, "Bad column role 'rater.'"),
        (["id=a", "id=b"], SettingError, "Bad column 'id=b': 'id' is 'a' already"),
        (["id=nowhere"], CorpusError, "line 1: no column 'nowhere' for 'id', the header is ['id', 'audio'"),
    ],
)
def test_columns_that_are_named_wrongly_are_refused(
    options: list[str], error: type[Exception], what: str, tmp_path: Path
) -> None:
    (tmp_path / "corpus.csv").write_text(VOTES)
    with pytest.raises(error, match=re.escape(what)):
        read_corpus("manifest", tmp_path / "corpus.csv", columns=options)
    with pytest.raises(CorpusError, match=r"--audio-root and --column are for tables \(manifest, hf\), not for 'meld'"):
        read_corpus("meld", tmp_path, audio_root=tmp_path)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("D:\\Lab\\Ann\\a1.wav", "ann/A1.WAV"),
        ("ANN/a1.WAV", "ann/A1.WAV"),
        ("/lab/ben/b1.wav", "ben/b1.wav"),  # as written, where both are there
        ("/lab/ben/B1.Wav", "B1.Wav"),  # two that differ from it alike: neither
        ("/lab/ann/b1.wav", "b1.wav"),  # there is none of ann's
    ],
)
def test_a_recording_that_differs_in_case_alone_is_the_same_unless_several_do(
    cell: str, expected: str, tmp_path: Path
) -> None:
    for place in ("ann/A1.WAV", "ben/b1.wav", "ben/B1.wav"):
        (tmp_path / "clips" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / place).touch()
    if len(os.listdir(tmp_path / "clips" / "ben")) == 1:
        pytest.skip("case does not matter to this file system")
    (tmp_path / "corpus.csv").write_text(f"id,audio,text,label\n1,{cell},x,sad\n2,ann/A1.WAV,x,sad\n")
    corpus = read_corpus("manifest", tmp_path / "corpus.csv", audio_root=tmp_path / "clips")
    assert corpus.utterances[0].audio == expected


@pytest.mark.parametrize(
    ("cell", "hint"),
    [("A1.WAV", r", where .*ann.a1\.wav is: write folders and names"), ("gone.wav", "--audio-root$")],
)
def test_a_name_that_is_in_a_folder_below_the_audio_root_is_told_and_not_guessed(
    cell: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / "clips" / "ann").mkdir(parents=True)
    (tmp_path / "clips" / "ann" / "a1.wav").touch()
    (tmp_path / "corpus.csv").write_text(f"audio,label\n{cell},sad\n")
    with pytest.raises(CorpusError, match=f"None of the 1 recordings .*: they are looked for in .*{hint}"):
        read_corpus("manifest", tmp_path / "corpus.csv", audio_root=tmp_path / "clips")


def test_recordings_of_the_same_name_need_ids(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"line 3: id 'a1' stands in line 2 already: names of recordings are ids"):
        read(tmp_path, "audio,text,label\nwav/a1.wav,x,sad\nother/a1.wav,x,sad\n")


def test_a_table_without_transcripts_is_read_and_told(tmp_path: Path) -> None:
    corpus = read(tmp_path, "id,audio,label\n1,wav/a1.wav,sad\n")
    assert only(corpus).transcript == ""
    assert corpus.problems[0].what == "no column of transcripts; all of them are empty"


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_table_of_utf_16_is_read_like_one_of_utf_8(codec: str, ending: str, tmp_path: Path) -> None:
    table = VOTES.replace("Well, no.", "Wëll, nø…").replace("\n", ending)
    expected = read(tmp_path, table).utterances
    assert read(tmp_path, ("\ufeff" + table).encode(codec)).utterances == expected
    with pytest.raises(CorpusError, match="line 1: a NUL byte: not a text file, or UTF-16 without its mark"):
        read(tmp_path, table.encode(codec))
    with pytest.raises(CorpusError, match=r"corpus\.csv, line \d: not UTF-16, as it begins: "):
        read(tmp_path, ("\ufeff" + table).encode(codec) + b"x")


def test_bare_columns_of_emotions_may_count_votes(tmp_path: Path) -> None:
    first, second = read(tmp_path, "id,audio,text,happy,sad\n1,wav/a1.wav,x,2.0,1.0\n2,b.wav,x,0,1\n").utterances
    assert (votes(first), votes(second)) == ({"happy": 2, "sad": 1}, {"sad": 1})
    assert {rating.weight for rating in (*first.ratings, *second.ratings)} == {1.0}


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("id,audio,text,rater.ann,ratings", r"columns rater\.<name> and ratings both hold the votes"),
        ("id,text,label", r"no column 'audio', expected one of \['audio', 'wav', .*\]"),
        ("id,audio,text", r"no label: expected columns votes\.<emotion>, distribution\.<emotion>, ratings or label"),
        ("id,audio,text,votes.", "no label"),
        ("id,audio,wav,text,label", "columns 'audio' and 'wav' mean the same"),
        ("id,audio,text,label,session,fold", "columns 'session' and 'fold' mean the same"),
        ("id,audio,text,votes.sad,Votes. sad", r"columns 'votes\.sad' and 'Votes\. sad' mean the same"),
        ("id,audio,text,label,label", "two columns are called 'label'"),
        ("id,audio,text,ratings,votes.sad", r"columns votes\.<emotion> and ratings both hold the votes"),
        ("id,audio,text,votes.sad,votes.angry,label,consensus", "both hold the consensus"),
        ("id,audio,text,label,a/b", "column 'a/b' cannot name an attribute"),
        ("id,audio;text,label", "the header holds comma and semicolon"),
        pytest.param(
            "id,audio,text,label," + ",".join(map(str, range(10**6))),
            "longer than|columns, more than",
            id="a million columns",
        ),
    ],
)
def test_an_unclear_header_is_refused(header: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=rf"corpus\.csv, line 1: .*({what})"):
        read(tmp_path, header + "\n")


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ("-1", "'-1' is not a number of votes for sad"),
        ("two", "'two' is not"),
        ("nan", "'nan' is not"),
        ("inf", "'inf' is not"),
        ("1e999", "'1e999' is not"),
        ("2.5", "'2.5' is not"),
        ("1_0", "'1_0' is not"),
        ("1000000000", "1000000000 votes for sad, more than the 10,000 allowed"),
    ],
)
def test_votes_that_are_no_count_are_refused(cell: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=re.escape(f"corpus.csv, line 3: {what}")):
        read(tmp_path, f"id,audio,text,votes.sad,votes.angry\n1,wav/a1.wav,x,1,1\n2,b.wav,x,{cell},1\n")


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ("sad", "ratings are not a JSON list"),
        ('{"rater": "r", "label": "sad"}', "ratings are not a JSON list"),
        pytest.param("[" * 100_000, "ratings are not a JSON list", id="deep nesting"),
        pytest.param(json.dumps(["x"] * 10_001), "ratings are not a JSON list", id="10,001 raters"),
        ("[1]", "rating 1 is neither a label nor an object with rater and label"),
        ('["sad", ["sad"]]', "rating 2 is neither"),
        ('[{"rater": "r"}]', "rating 1 is neither"),
        ('[{"rater": "r", "label": "sad", "mood": 2}]', "rating 1 is neither"),
        ('[{"rater": "r", "label": "sad", "weight": -2}]', "the weight of rating 1 is '-2', expected a number"),
        ('[{"rater": "r", "label": "sad", "weight": "2"}]', "the weight of rating 1 is '\"2\"', expected a number"),
        ('[{"rater": "r", "label": "sad", "stimulus": "smell"}]', "stimulus 'smell' is not one of"),
        ('["sad", " "]', "the label of rating 2 is no text"),
        ('[{"rater": 3, "label": "sad"}]', "the rater of rating 1 is no text"),
        ('["\\u0000"]', "the label of rating 1 is no text"),
        ('["\\ud800"]', "the label of rating 1 is no text"),
        ('[{"rater": "r", "label": "sad"}, {"rater": "r", "label": "sad"}]', "rater 'r' gives the label 'sad' 2 times"),
    ],
)
def test_ratings_that_are_none_are_refused(cell: str, what: str, tmp_path: Path) -> None:
    table = io.StringIO()
    csv.writer(table).writerows([["id", "audio", "text", "ratings"], ["1", "wav/a1.wav", "x", cell]])
    with pytest.raises(CorpusError, match=rf"corpus\.csv, line 2: {what}"):
        read(tmp_path, table.getvalue())


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("a,wav/a1.wav,x,sad,,\nb,b.wav,x,sad,,\na,c.wav,x,sad,,\n", "line 4: id 'a' stands in line 2 already"),
        (" ,wav/a1.wav,x,sad,,\n", "line 2: empty id"),
        ("a,wav/a1.wav,x,sad\n", "line 2: expected 6 cells, got 4"),
        ("a,wav/a1.wav,x,sad,,,\n", "line 2: expected 6 cells, got 7"),
        ("a,wav/a1.wav,x,sad,2,2\n", "line 2: end 2 s is not after start 2 s"),
        ("a,wav/a1.wav,x,sad,,0\n", "line 2: end 0 s is not after start 0 s"),
        ("a,wav/a1.wav,x,sad,-1,2\n", "line 2: start '-1' is not a time in seconds"),
        ("a,wav/a1.wav,x,sad,,nan\n", "line 2: end 'nan' is not a time in seconds"),
        ("a,wav/a1.wav,x,sad,0:10,\n", "line 2: start '0:10' is not a time in seconds"),
        ('a,wav/a1.wav,"two\nlines",sad,,\nb,b.wav,x\n', "line 4: expected 6 cells, got 3"),
        ('a,wav/a1.wav,"no end,sad,,\nb,b.wav,x,sad,,\n', "line 2: not a row of a table"),
        ('a,wav/a1.wav,"x"y,sad,,\n', "line 2: not a row of a table"),
        ("a,wav/a1.wav,\0,sad,,\n", "line 2: a NUL byte"),
        pytest.param(
            "a,wav/a1.wav," + "x" * 200_000 + ",sad,,\n", "line 2: not a row of a table: field larger", id="a long cell"
        ),
        pytest.param(
            "a,wav/a1.wav," + "x" * 5_000_000 + ",sad,,\n", "line 2: longer than 4,194,304 bytes", id="a long line"
        ),
    ],
)
def test_a_row_without_meaning_is_refused_with_its_line(rows: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=re.escape(f"corpus.csv, {what}")) as error:
        read(tmp_path, "id,audio,text,label,start,end\n" + rows)
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_utf_8_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.csv, line 3: byte 14 is not UTF-8"):
        read(tmp_path, b"id,audio,text,label\n1,wav/a1.wav,x,sad\n2,wav/a1.wav,\xe9t\xe9,sad\n")


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ("", "line 1: no column 'audio'"),
        ("id,audio,text,label\n", "the file ends after its header"),
        ("id,audio,text,label\n\n\n", "the file ends after its header"),
        ("id,audio,text,label\n1,wav/a1.wav,x,\n", "has a vote"),
        ("id,audio,text,label\n1,,x,sad\n", "names no recording"),
        ("id,audio,text,label\n1,a1.wav,x,sad\n2,a2.wav,x,sad\n", "None of the 2 recordings of .* exists, .*/a1.wav"),
    ],
)
def test_a_manifest_without_anything_to_learn_from_is_refused(table: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=what) as error:
        read(tmp_path, table)
    assert "corpus.csv" in str(error.value)


def test_a_manifest_of_another_format_names_the_formats(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"Bad manifest suffix '\.xlsx', expected one of \['\.csv', '\.tsv', '\.jsonl'"
    ):
        read(tmp_path, b"PK\3\4", name="corpus.xlsx")


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"No file .*gone\.csv"):
        manifest.read(tmp_path / "gone.csv")


LABELS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=8)


@given(st.lists(st.lists(st.tuples(LABELS, LABELS), max_size=5, unique=True), min_size=1, max_size=6))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_ratings_that_are_written_are_read(tmp_path: Path, ratings: list[list[tuple[str, str]]]) -> None:
    table = io.StringIO()
    cells = [json.dumps([{"rater": rater, "label": label} for rater, label in ticks]) for ticks in ratings]
    rows = [[str(number), "wav/a1.wav", "x", cell] for number, cell in enumerate(cells)]
    csv.writer(table).writerows([["id", "audio", "text", "ratings"], *rows, ["last", "b.wav", "x", '["sad"]']])
    *utterances, _ = read(tmp_path, table.getvalue()).utterances
    assert [[(tick.rater, tick.label) for tick in utterance.ratings] for utterance in utterances] == ratings


# --- JSON lines, distributions and EMO-SUPERB's tables ---


def json_lines(tmp_path: Path, *records: object) -> Corpus:
    return read(tmp_path, "\n".join(json.dumps(record) for record in records) + "\n\n", name="corpus.jsonl")


def test_json_lines_say_the_same_as_the_table(tmp_path: Path) -> None:
    records: tuple[dict[str, object], ...] = (
        {"id": "a1", "audio": "wav/a1.wav", "text": "Well, no.", "speaker": "mary", "session": 1,
         "votes": {"neutral": 2, "happy": 0, "angry": 1}},
        {"id": "a2", "audio": "wav/a2.wav", "text": 'She said "yes".', "speaker": "john", "session": "1",
         "votes": {"happy": 3}},
        {"id": "a3", "audio": "wav/a3.wav", "text": None, "speaker": "mary", "session": 2, "votes": {}},
    )  # fmt: skip
    corpus = json_lines(tmp_path, *records)
    assert corpus.utterances == read(tmp_path, VOTES).utterances
    # keys come in the order of the lines, which is no order of classes
    assert corpus.defaults.emotions == ("angry", "happy", "neutral")


def test_json_lines_hold_ratings_as_lists(tmp_path: Path) -> None:
    ratings = ["sad", {"rater": "r7", "label": "angry"}]
    utterance = only(json_lines(tmp_path, {"id": 1, "audio": "wav/a1.wav", "text": "x", "ratings": ratings, "v": 2.5}))
    assert [(rating.rater, rating.label) for rating in utterance.ratings] == [("anonymous1", "sad"), ("r7", "angry")]
    assert (utterance.id, utterance.attributes) == ("1", {"v": 2.5})


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("[1, 2]", "a line is one object, not list"),
        ('{"id": "b"', "line 2: not a JSON line"),
        ('{"id": "b", "id": "c"}', "the key 'id' stands twice"),
        ('{"id": "b", "v": NaN}', "NaN is no number of JSON"),
        ('{"id": "b", "v": {"x": 1}}', "'v' holds an object, which only votes and distribution may"),
        ('{"id": "b", "votes": {"sad": {"x": 1}}}', "holds an object in an object"),
        ('{"id": "b\\u0000", "label": "sad"}', "a NUL or half a surrogate pair"),
        ("[" * 99_999, "line 2: not a JSON line"),
        ('{"id": ' + "9" * 5000 + "}", "line 2: not a JSON line"),
        (json.dumps({f"k{n}": n for n in range(5000)}), "more than the 4,096 different keys"),
    ],
    ids=lambda text: text[:40],
)
def test_a_line_that_is_no_json_is_refused_with_its_number(line: str, what: str, tmp_path: Path) -> None:
    first = '{"id": "a", "audio": "wav/a1.wav", "text": "x", "label": "sad"}'
    with pytest.raises(CorpusError, match=r"corpus\.jsonl, line 2: ") as error:
        read(tmp_path, f"{first}\n{line}\n", name="corpus.jsonl")
    assert what in str(error.value)


@pytest.mark.parametrize("prefix", ["distribution.", ""])
def test_shares_are_the_weights_of_one_distribution(prefix: str, tmp_path: Path) -> None:
    header = f"id,audio,text,{prefix}neutral,{prefix}happy,{prefix}sad,raters"
    rows = "1,wav/a1.wav,x,0.5,0.25,0.25,8\n2,wav/a1.wav,x,1,,0,\n3,wav/a1.wav,x,,,,\n"
    first, second, third = read(tmp_path, f"{header}\n{rows}").utterances
    assert [(r.rater, r.label, r.weight) for r in first.ratings] == [
        ("distribution", "neutral", 4.0),
        ("distribution", "happy", 2.0),
        ("distribution", "sad", 2.0),
    ]
    assert [(r.label, r.weight) for r in second.ratings] == [("neutral", 1.0)]
    assert third.ratings == ()


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("0.5,0.4,", "the shares sum to 0.9, not to 1"),
        ("1.5,-0.5,", "'1.5' is not a share of happy, expected 0 … 1"),
        ("-0.5,1,", "'-0.5' is not a share of happy"),
        ("nan,1,", "'nan' is not a share of happy"),
        ("0.5,0.5,0", "'0' is not a number of raters"),
        ("0.5,0.5,many", "'many' is not a number of raters"),
        ("0.5,0.5,1e9", "'1e9' is not a number of raters"),
    ],
)
def test_shares_that_are_none_are_refused(row: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=re.escape(f"corpus.csv, line 2: {what}")):
        read(tmp_path, f"id,audio,text,happy,sad,raters\n1,wav/a1.wav,x,{row}\n")


def test_words_of_emotions_are_attributes_where_there_are_votes(tmp_path: Path) -> None:
    utterance = only(read(tmp_path, "id,audio,text,votes.sad,votes.angry,happy\n1,wav/a1.wav,x,1,1,0.25\n"))
    assert utterance.attributes == {"happy": 0.25}


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("id,audio,text,distribution.sad,ratings", "columns distribution.<emotion> and ratings both hold the votes"),
        ("id,audio,text,distribution.sad", "votes for one emotion alone, 'sad'"),
        ("id,audio,text,label,raters", "column 'raters' counts the raters of a distribution, and there is none"),
    ],
)
def test_an_unclear_distribution_is_refused(header: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=re.escape(f"corpus.csv, line 1: {what}")):
        read(tmp_path, header + "\n")


def emo_superb(tmp_path: Path, *, smooth: bool, digits: int = 17) -> Corpus:
    votes = {"wav/a1.wav": (3, 1, 0, 1), "wav/b.wav": (0, 0, 5, 0), "wav/c.wav": (2, 2, 0, 0)}
    rows = []
    for (name, counts), split in zip(votes.items(), ("Train", "Development", "Test1"), strict=True):
        shares = dict(zip("ASHN", (n / sum(counts) for n in counts), strict=True))
        written = smoothed(shares) if smooth else shares
        cells = ",".join(f"{share:.{digits}g}" for share in written.values())
        rows.append(f"{name},{cells},3.5,2,{'Unknown' if split == 'Test1' else '7'},Female,{split}\n")
    header = "FileName,Angry,Sad,Amused,Neutral,EmoAct,EmoVal,SpkrID,Gender,Split_Set\n"
    return read(tmp_path, header + "".join(rows))


@pytest.mark.parametrize(("smooth", "digits"), [(True, 17), (True, 7), (True, 3), (False, 17)])
def test_a_table_of_emo_superb_is_read_and_its_smoothing_undone(smooth: bool, digits: int, tmp_path: Path) -> None:
    corpus = emo_superb(tmp_path, smooth=smooth, digits=digits)
    weights = [{rating.label: rating.weight for rating in u.ratings} for u in corpus.utterances]
    expected = [{"Angry": 0.6, "Sad": 0.2, "Neutral": 0.2}, {"Amused": 1.0}, {"Angry": 0.5, "Sad": 0.5}]
    assert [found.keys() for found in weights] == [wanted.keys() for wanted in expected]
    for found, wanted in zip(weights, expected, strict=True):
        assert found == pytest.approx(wanted, abs=max(1e-9, 10.0**-digits))
    assert any("smoothed with ε = 0.05 over 4 classes; undone" in p.what for p in corpus.problems) == smooth
    assert corpus.defaults.emotions == ("Angry", "Sad", "Amused", "Neutral")
    assert corpus.defaults.folds == "official"
    assert [(u.id, u.speaker, u.split) for u in corpus.utterances] == [
        ("a1.wav", "7", "Train"),
        ("b.wav", "7", "Development"),
        ("c.wav", "", "Test1"),
    ]
    assert corpus.utterances[0].attributes == {"EmoAct": 3.5, "EmoVal": 2.0, "Gender": "Female"}


def test_the_table_of_nnime_whose_first_column_has_no_name_is_one_of_emo_superb(tmp_path: Path) -> None:
    rows = "wav/a1.wav,0.5,0.5,7,F,train\nb.wav,1,0,8,M,test1\n"
    corpus = read(tmp_path, ",Angry,Frustrated,SpkrID,Gender,Split_Set\n" + rows)
    assert [(u.id, u.audio, u.speaker) for u in corpus.utterances] == [
        ("a1.wav", "wav/a1.wav", "7"),
        ("b.wav", "b.wav", "8"),
    ]
    assert (corpus.defaults.emotions, corpus.defaults.folds) == (("Angry", "Frustrated"), "official")


def test_a_table_of_emo_superbs_challenge_needs_no_speakers(tmp_path: Path) -> None:
    header = "FileName,Angry,Sad,Neutral,EmoAct,Gender,Split_Set"
    rows = "wav/a1.wav,0.05,0.9,0.05,2.5,F,Train\nb.wav,0.025,0.95,0.025,3,M,Test1\n"
    corpus = read(tmp_path, f"{header}\n{rows}")
    assert [(u.id, u.speaker, u.split) for u in corpus.utterances] == [("a1.wav", "", "Train"), ("b.wav", "", "Test1")]
    assert corpus.utterances[0].attributes == {"EmoAct": 2.5, "Gender": "F"}
    assert any("smoothed" in problem.what for problem in corpus.problems)


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=16).filter(lambda counts: sum(counts) > 0),
    st.floats(0.001, 0.4),
)
@settings(max_examples=30)
def test_smoothing_and_its_inverse_cancel(counts: list[int], epsilon: float) -> None:
    shares = {str(place): count / sum(counts) for place, count in enumerate(counts)}
    written = smoothed(shares, epsilon)
    assert sum(written.values()) == pytest.approx(1, abs=1e-9)
    assert unsmoothed(written, epsilon) == pytest.approx(shares, abs=1e-9)
    assert smoothed(unsmoothed(written, epsilon), epsilon) == pytest.approx(written, abs=1e-9)


def test_a_share_below_what_smoothing_leaves_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.01 for b is below 0\.05, the least that smoothing leaves"):
        unsmoothed({"a": 0.99, "b": 0.01})


def test_cells_that_a_spreadsheet_would_compute_stay_text(tmp_path: Path) -> None:
    utterance = only(read(tmp_path, "id,audio,text,label\n=1+1,wav/a1.wav,@SUM(A1),-2+cmd|calc\n"))
    assert (utterance.id, utterance.transcript, votes(utterance)) == ("=1+1", "@SUM(A1)", {"-2+cmd|calc": 1})


def test_a_cell_over_several_lines_is_kept_and_told(tmp_path: Path) -> None:
    corpus = read(tmp_path, 'id,audio,text,label\n1,wav/a1.wav,"two\nlines",sad\n2,b.wav,x,sad\n')
    assert [u.transcript for u in corpus.utterances] == ["two\nlines", "x"]
    (problem,) = corpus.problems
    assert (problem.file, problem.line) == ("corpus.csv", 2)
    assert "a cell of '1' goes on over several lines: is a quote missing?" in problem.what
