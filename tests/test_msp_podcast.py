"""MSP-Podcast: every layout of its labels gives the same turns and votes, and what is wrong has a file and a line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from podcast_tree import LAYOUTS, Turn, turns, write

from amber2_core.errors import CorpusError
from amber2_core.label_spaces import policy_of
from amber2_core.tables import attribute_columns, rating_table
from amber2_core.utterance import Corpus
from amber2_core.votes import LabelPolicy, MultiLabel, label_distributions
from amber2_data import release
from amber2_data.corpora import msp_podcast
from amber2_data.corpora.msp_podcast import CODES
from amber2_data.release import json_members

COUNT = 120
WRITTEN = tuple(turns(COUNT))


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus]:
    root = tmp_path_factory.mktemp("podcast") / request.param
    write(root, WRITTEN, request.param)
    return root, msp_podcast.read(root)


def secondary(turn: Turn) -> str:
    return "; ".join(f"{rater}: {words}" for rater, _, words in turn.votes if words)


def test_every_layout_gives_every_vote_of_every_rater(layout: tuple[Path, Corpus]) -> None:
    corpus = layout[1]
    assert [u.id for u in corpus.utterances] == [turn.stem for turn in WRITTEN]
    for u, turn in zip(corpus.utterances, WRITTEN, strict=True):
        assert [(r.rater, r.label) for r in u.ratings] == [(rater, word) for rater, word, _ in turn.votes]
        assert {(r.source, r.stimulus) for r in u.ratings} == {("external", "audio")}
        assert u.attributes.get("secondary", "") == secondary(turn)


@pytest.mark.parametrize("multi_label", get_args(MultiLabel))
def test_secondary_labels_count_as_further_ticks_of_their_raters(
    layout: tuple[Path, Corpus], multi_label: MultiLabel
) -> None:
    corpus = layout[1]
    policy = replace(LabelPolicy.of_corpus(corpus.defaults), secondary="merge", multi_label=multi_label)
    found = label_distributions(rating_table(corpus), attribute_columns(corpus), len(corpus.utterances), policy)
    words = [word.capitalize() for word in policy.emotions]
    for row, votes in zip(found.rows, found.votes, strict=True):
        u = corpus.utterances[row]
        ballots = reference.ticks_with_secondary(
            [(r.rater, r.label) for r in u.ratings], str(u.attributes.get("secondary", ""))
        )
        np.testing.assert_allclose(votes, [float(x) for x in reference.counted(ballots, words, multi_label)])
    dropped = label_distributions(
        rating_table(corpus), attribute_columns(corpus), len(corpus.utterances), replace(policy, secondary="drop")
    )
    assert np.array_equal(found.votes, dropped.votes) == (multi_label == "first")


def test_every_layout_gives_speakers_splits_consensus_and_transcripts(layout: tuple[Path, Corpus]) -> None:
    root, corpus = layout
    for u, turn in zip(corpus.utterances, WRITTEN, strict=True):
        assert u.speaker == ("" if turn.speaker == "Unknown" else turn.speaker)
        assert u.split == {"Development": "dev"}.get(turn.split, turn.split.lower())
        assert u.attributes["consensus"] == CODES[turn.code]
        assert u.attributes["valence"] == 4.0
        assert u.transcript == (turn.transcript or "")
        assert (root / str(u.audio)).is_file()
        assert u.dialogue == turn.stem[:16]
    missing = sum(turn.transcript is None for turn in WRITTEN)
    (problem,) = corpus.problems
    assert (problem.file, problem.what.split(", for")[0]) == (
        "Transcripts",
        f"{missing} of {COUNT} turns have no transcript",
    )


@pytest.mark.parametrize(("space", "size"), [(None, 8), ("msp-podcast-4", 4)])
def test_the_fields_label_spaces_count_the_primary_labels(space: str | None, size: int, tmp_path: Path) -> None:
    write(tmp_path / "release", WRITTEN, "json")
    corpus = msp_podcast.read(tmp_path / "release")
    policy = policy_of(corpus.defaults, {"emotions": space})
    targets = label_distributions(rating_table(corpus), attribute_columns(corpus), COUNT, policy)
    assert len(targets.emotions) == size
    for row, votes in zip(targets.rows, targets.votes, strict=True):
        said = Counter(word.lower() for _, word, _ in WRITTEN[row].votes)
        assert list(votes) == [said[emotion] for emotion in targets.emotions]


def test_a_release_without_labels_of_its_own_takes_splits_and_consensus_from_where_they_are(tmp_path: Path) -> None:
    write(tmp_path / "release", WRITTEN[:20], "txt")
    (tmp_path / "release/label/labels_concensus.csv").unlink()
    with (tmp_path / "release/Partition.txt").open("a") as file:
        file.write("Test3; MSP-PODCAST_9999_0001.wav\n")
    corpus = msp_podcast.read(tmp_path / "release")
    assert len(corpus.utterances) == 21
    assert (corpus.utterances[-1].split, corpus.utterances[-1].ratings) == ("test3", ())
    assert corpus.utterances[3].split == "dev"
    assert any("missing; no speakers" in problem.what for problem in corpus.problems)
    assert any("1 of 21 turns have no recording" in problem.what for problem in corpus.problems)


def edited(root: Path, layout: str, file: str, change: Callable[[str], str]) -> Corpus:
    write(root, WRITTEN[:6], layout)
    path = root / file
    path.write_text(change(path.read_text()))
    return msp_podcast.read(root)


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


RATER = WRITTEN[0].votes[1][0]
FIRST = WRITTEN[0].stem


@pytest.mark.parametrize(
    ("layout", "file", "old", "new", "line", "what"),
    [
        ("detail", "labels/labels_detailed.csv", f'"{FIRST}.wav"', '"../x.wav"', 2, "is not the name of a recording"),
        (
            "detail",
            "labels/labels_detailed.csv",
            "; A:3.0; V:3.0; D:4.0;",
            "; A:3; A:3; V:3; D:4",
            2,
            "not rater; label",
        ),
        ("detail", "labels/labels_detailed.csv", RATER, WRITTEN[0].votes[0][0], 3, "stands twice under"),
        ("detail", "labels/labels_detailed.csv", RATER, "", 3, "'' is not the name of a rater"),
        ("columns-2.0", "Labels/labels_detailed.csv", f"{RATER},{WRITTEN[0].votes[1][1]}", f"{RATER},", 3, "no label"),
        ("json", "labels/labels_detailed.json", f'"{WRITTEN[1].stem}.wav"', f'"{FIRST}.wav"', 3, "stands twice"),
        ("json", "labels/labels_detailed.json", '"EmoClass_Major": "', '"EmoClass_Major": 1, "x": "', 2, "no label"),
        ("txt", "label/labels.txt", f"{WRITTEN[1].stem}.wav", f"{FIRST}.wav", 9, "second block of"),
        ("txt", "label/labels.txt", f"{FIRST}.wav; ", "", 1, "no recording stands above"),
        ("detail", "labels/labels_concensus.csv", ",2.4,", ",high,", 2, "'high' in column EmoAct is no number"),
        ("detail", "labels/labels_concensus.csv", f"wav,{WRITTEN[0].code},", "wav,Q,", 2, "class 'Q' is not one of"),
        ("detail", "labels/labels_concensus.csv", ",Train", ",Training", 2, "unknown partition 'Training'"),
        ("detail", "labels/labels_concensus.csv", WRITTEN[1].stem, FIRST, 3, "second row for"),
        ("detail", "Partitions.txt", "Train; ", "Train ", 1, "not partition; recording"),
        ("detail", "Partitions.txt", "Train; ", "Test1; ", None, "1 turns are in another partition than the consensus"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(
    layout: str, file: str, old: str, new: str, line: int | None, what: str, tmp_path: Path
) -> None:
    problems = edited(tmp_path / "r", layout, file, replaced(old, new)).problems
    assert next((p.file, p.line) for p in problems if what in p.what) == (file, line), problems


@pytest.mark.parametrize(
    ("layout", "file", "change", "what"),
    [
        (
            "detail",
            "labels/labels_detailed.csv",
            lambda t: t.replace("EmoDetail", "Detail"),
            "line 1: expected columns",
        ),
        ("detail", "labels/labels_detailed.csv", lambda t: t + 'x,"', "not a row of a table"),
        ("detail", "labels/labels_concensus.csv", lambda t: t.replace("EmoClass", "Class"), "line 1: no column 'EmoC"),
        ("json", "labels/labels_detailed.json", lambda t: t[:-200], "line 7: not JSON"),
        ("json", "labels/labels_detailed.json", lambda t: "[" + t + "]", "line 1: not a JSON object"),
        ("json", "labels/labels_detailed.json", lambda t: t + "}", "line 9: something stands after"),
        ("json", "labels/labels_detailed.json", lambda t: t.replace("3.0", "NaN", 1), "line 2: .*NaN is no number"),
        ("json", "labels/labels_detailed.json", lambda t: t.replace('"EmoAct"', '"EmoVal"', 1), "stands twice"),
        ("json", "labels/labels_detailed.json", lambda t: t.replace("{", "{" * 9 + "[" * 99_999, 1), "line 1: "),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    layout: str, file: str, change: Callable[[str], str], what: str, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=what) as error:
        edited(tmp_path / "r", layout, file, change)
    assert file in str(error.value)
    assert "\n" not in str(error.value)


def test_a_root_without_labels_or_recordings_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"None of \['labels_detailed.csv'"):
        msp_podcast.read(tmp_path)
    write(tmp_path / "r", WRITTEN[:3], "detail")
    (tmp_path / "r/Audios").rename(tmp_path / "r/sounds")
    with pytest.raises(CorpusError, match="No folder Audios in"):
        msp_podcast.read(tmp_path / "r")
    (tmp_path / "r/Audios").mkdir()
    with pytest.raises(CorpusError, match="Not one of 3 turns has its recording"):
        msp_podcast.read(tmp_path / "r")


# --- a JSON object read member by member ---

VALUES: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=5) | st.just(0.5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=5), st.sampled_from([None, 0, 2]), st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_members_are_those_that_json_reads_wherever_a_chunk_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, object], indent: int | None, escaped: bool
) -> None:
    monkeypatch.setattr(release, "CHUNK", 1)
    text = json.dumps(record, indent=indent, ensure_ascii=escaped)
    (tmp_path / "x.json").write_text(f"\n {text}\n\n", "utf-8")
    assert {key: value for _, key, value in json_members(tmp_path / "x.json")} == record


def test_members_longer_than_a_chunk_are_read_with_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "CHUNK", 64)
    record = {f"k{n}": {"text": "ü" * 50 + str(n)} for n in range(9)}
    (tmp_path / "x.json").write_text(json.dumps(record, indent=1, ensure_ascii=False), "utf-8")
    found = list(json_members(tmp_path / "x.json"))
    assert {key: value for _, key, value in found} == record
    assert [line for line, _, _ in found] == [2 + 3 * n for n in range(9)]


def test_an_endless_member_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "MAX_MEMBER", 1000)
    monkeypatch.setattr(release, "CHUNK", 64)
    (tmp_path / "x.json").write_text('{"a": 1,\n"b": "' + "x" * 10_000 + '"}')
    with pytest.raises(CorpusError, match=r"x\.json, line 2: not JSON"):
        list(json_members(tmp_path / "x.json"))
