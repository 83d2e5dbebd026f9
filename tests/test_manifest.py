"""Manifests: every label form, every spelling of a column, and the line that says what is wrong."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amber2_core.errors import CorpusError
from amber2_core.utterance import Corpus, Utterance
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


def test_the_labels_are_the_label_space_in_the_order_of_their_appearance(tmp_path: Path) -> None:
    corpus = read(tmp_path, "id,audio,text,label\n1,wav/a1.wav,x,sad\n2,b.wav,y,\n3,c.wav,z,angry\n4,d.wav,z,sad\n")
    assert corpus.defaults.emotions == ("sad", "angry")
    assert [votes(utterance) for utterance in corpus.utterances] == [{"sad": 1}, {}, {"angry": 1}, {"sad": 1}]


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


@pytest.mark.parametrize("cell", ["/etc/passwd", "C:\\a.wav", "c:a.wav", "\\\\server\\a.wav", "//server/a.wav"])
def test_an_absolute_recording_is_refused(cell: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.csv, line 2: recording .* is absolute"):
        read(tmp_path, f"id,audio,text,label\n1,{cell},x,sad\n")


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("audio,text,label", r"no column 'id', expected one of \['id'\]"),
        ("id,text,label", r"no column 'audio', expected one of \['audio', 'wav', .*\]"),
        ("id,audio,label", r"no column 'text', expected one of \['text', 'transcript', .*\]"),
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
        ('[{"rater": "r", "label": "sad", "weight": 2}]', "rating 1 is neither"),
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
        ("", "line 1: no column 'id'"),
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
    assert corpus.defaults.emotions == ("neutral", "happy", "angry")


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
