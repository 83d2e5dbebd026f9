"""M3ED: three raters who tick one or several emotions, movies in splits, and annotations out of shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from media_trees import m3ed_annotations, write_m3ed

from amber2_core.errors import CorpusError
from amber2_core.label_spaces import policy_of
from amber2_core.tables import attribute_columns, rating_table
from amber2_core.utterance import Corpus
from amber2_core.votes import label_distributions
from amber2_data.corpora import m3ed


def test_every_tick_of_the_three_raters_is_kept(tmp_path: Path) -> None:
    write_m3ed(tmp_path)
    corpus = m3ed.read(tmp_path)
    assert corpus.problems == ()
    first, second, third = corpus.utterances
    assert [(r.rater, r.label) for r in first.ratings] == [
        ("annotator1", "Happy"),
        ("annotator2", "Happy"),
        ("annotator2", "Surprise"),
        ("annotator3", "Neutral"),
    ]
    assert (first.id, first.speaker, first.dialogue, first.split) == ("A_anjia_1_1", "anjia_A", "anjia_1", "train")
    assert (first.transcript, first.language, first.audio) == ("你怎么来了", "zh", "wav/anjia/A_anjia_1_1.wav")
    assert first.attributes == {"consensus": "Happy", "start_time": "00:00:05:12", "end_time": "00:00:07:03"}
    assert (second.speaker, third.split) == ("anjia_B", "test")


def test_videos_of_utterances_are_recordings_too(tmp_path: Path) -> None:
    write_m3ed(tmp_path)
    (tmp_path / "wav/anjia/A_anjia_1_1.wav").rename(tmp_path / "wav/anjia/A_anjia_1_1.mp4")
    assert m3ed.read(tmp_path).utterances[0].audio == "wav/anjia/A_anjia_1_1.mp4"


def test_ticks_become_shares_as_the_policy_says(tmp_path: Path) -> None:
    write_m3ed(tmp_path)
    corpus = m3ed.read(tmp_path)
    # pooled: four ticks of three raters; split: the second rater gives half a vote to each
    for multi_label, expected in (("pooled", [1 / 4, 2 / 4, 1 / 4]), ("split", [1 / 3, 1.5 / 3, 0.5 / 3])):
        policy = policy_of(corpus.defaults, {"multi_label": multi_label, "emotions": "neutral,happy,surprise"})
        targets = label_distributions(rating_table(corpus), attribute_columns(corpus), 3, policy)
        assert list(targets.soft_labels[0]) == pytest.approx(expected)


def changed(root: Path, change: Callable[[dict[str, Any]], object]) -> Corpus:
    write_m3ed(root)
    annotations = m3ed_annotations()
    change(annotations)
    (root / "annotation.json").write_text(json.dumps(annotations, indent=1), "utf-8")
    return m3ed.read(root)


def of_first(annotations: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = annotations["anjia"]["anjia_1"]["Dialog"]["A_anjia_1_1"]
    return entry


@pytest.mark.parametrize(
    ("change", "count", "what"),
    [
        (lambda a: of_first(a).update(EmoAnnotation=None), 2, "no name, or no object EmoAnnotation; left out"),
        (lambda a: of_first(a).update(Speaker=3), 2, "Speaker is no text; left out"),
        (lambda a: of_first(a)["EmoAnnotation"].update(EmoAnnotator2=["Happy"]), 2, "EmoAnnotator2 is no text"),
        (lambda a: of_first(a)["EmoAnnotation"].update(EmoAnnotator2="Bliss"), 3, "unknown label 'Bliss' of EmoAnno"),
        (lambda a: of_first(a).update(Text="\ud800"), 2, "Text is no text"),
        (lambda a: a["anjia"].update(anjia_1=[]), 1, "clip 'anjia_1' has no object Dialog; left out"),
        (lambda a: a.update(anjia=3), 1, "not the name of a movie with an object of clips; left out"),
        (lambda a: a["zhihu"]["zhihu_7"]["Dialog"].update(A_anjia_1_1=of_first(a)), 3, "stands there already"),
    ],
)
def test_what_is_out_of_shape_is_left_out_with_the_line_of_its_movie(
    change: Callable[[dict[str, Any]], object], count: int, what: str, tmp_path: Path
) -> None:
    corpus = changed(tmp_path, change)
    assert len(corpus.utterances) == count
    assert any(what in p.what and p.file == "annotation.json" and p.line for p in corpus.problems), corpus.problems


def test_missing_parts_are_told_or_refused(tmp_path: Path) -> None:
    write_m3ed(tmp_path)
    (tmp_path / "splitInfo/movie_list_val.txt").unlink()
    (tmp_path / "wav/zhihu/A_zhihu_7_1.wav").rename(tmp_path / "wav/stray.wav")
    told = {problem.file: problem.what for problem in m3ed.read(tmp_path).problems}
    assert "missing" in told["splitInfo/movie_list_val.txt"]
    assert "1 recordings are annotated by nobody, for one stray" in told["wav"]
    for path in tmp_path.rglob("*.wav"):
        path.unlink()
    with pytest.raises(CorpusError, match="No recording of an utterance in"):
        m3ed.read(tmp_path)
    (tmp_path / "annotation.json").write_text("{}")
    with pytest.raises(CorpusError, match="No utterance in"):
        m3ed.read(tmp_path)
    (tmp_path / "annotation.json").unlink()
    with pytest.raises(CorpusError, match=r"No file .*annotation\.json"):
        m3ed.read(tmp_path)
