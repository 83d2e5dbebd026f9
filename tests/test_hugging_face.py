"""Datasets of the `datasets` library: saved folders and parquet files, with sound inside or beside them.

Most of these need the extra amber2[hf]; they are skipped where it is not installed.
"""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from amber2_core.errors import CorpusError
from amber2_data.corpora import hugging_face

HAS_DATASETS = importlib.util.find_spec("datasets") is not None
needs_datasets = pytest.mark.skipif(not HAS_DATASETS, reason="the extra amber2[hf] is not installed")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMBER2_CACHE_DIR", str(tmp_path / "cache"))


def wav(seed: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).normal(0, 0.1, 800), 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def write_parquet(path: Path, *, inside: bool = True, names: tuple[str, ...] = (), **columns: list[Any]) -> Path:
    """Three rows as the library writes them, without its optional encoder of sound; `names` are those of `label`."""
    import datasets
    import pyarrow as arrow
    from pyarrow import parquet

    sound = [{"bytes": wav(k), "path": f"clip{k}.wav"} for k in range(3)]
    rows = {"audio": sound if inside else [s["path"] for s in sound], "text": ["Yes.", "", "Über"], **columns}
    table = arrow.table(rows)
    features = datasets.Features.from_arrow_schema(table.schema)
    if inside:
        features["audio"] = datasets.Audio()
    if names:
        features["label"] = datasets.ClassLabel(names=list(names))
    metadata = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    return path


def saved(path: Path, scratch: Path, **columns: Any) -> Any:
    import datasets

    return datasets.Dataset.from_parquet(str(write_parquet(path, **columns)), cache_dir=str(scratch))


@needs_datasets
def test_a_saved_dataset_is_unpacked_and_its_class_labels_are_words(tmp_path: Path) -> None:
    columns = {"names": ("sad", "happy"), "label": [1, 0, 1], "speaker": ["ann", "bob", "ann"]}
    saved(tmp_path / "x.parquet", tmp_path / "scratch", **columns).save_to_disk(str(tmp_path / "saved"))
    corpus = hugging_face.read(tmp_path / "saved")
    assert [(u.id, u.transcript, u.speaker) for u in corpus.utterances] == [
        ("clip0", "Yes.", "ann"),
        ("clip1", "", "bob"),
        ("clip2", "Über", "ann"),
    ]
    assert [[r.label for r in u.ratings] for u in corpus.utterances] == [["happy"], ["sad"], ["happy"]]
    assert [(corpus.root / str(u.audio)).read_bytes() for u in corpus.utterances] == [wav(k) for k in range(3)]
    assert corpus.root.is_relative_to(tmp_path / "cache")
    again = hugging_face.read(tmp_path / "saved")
    assert again.utterances == corpus.utterances
    assert len(list(corpus.root.iterdir())) == 3


@needs_datasets
def test_splits_of_a_dataset_are_splits_of_the_corpus(tmp_path: Path) -> None:
    import datasets

    ids = {"train": [*"abc"], "test": [*"def"]}
    parts = {k: saved(tmp_path / f"{k}.parquet", tmp_path / k, id=v, label=[*"xyx"]) for k, v in ids.items()}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    corpus = hugging_face.read(tmp_path / "saved")
    assert [(u.id, u.split) for u in corpus.utterances] == [(i, "train") for i in "abc"] + [(i, "test") for i in "def"]


@needs_datasets
@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "data/test1-00000-of-00001.parquet"])
def test_parquet_files_hold_votes_and_lists_of_ratings(name: str, tmp_path: Path) -> None:
    votes = [{"happy": 2, "sad": 0}, {"happy": 0, "sad": 3}, {"happy": 1, "sad": None}]
    write_parquet(tmp_path / "d" / name, id=[*"abc"], votes=votes)
    corpus = hugging_face.read(tmp_path / "d")
    assert [[r.label for r in u.ratings] for u in corpus.utterances] == [["happy"] * 2, ["sad"] * 3, ["happy"]]
    assert {u.split for u in corpus.utterances} == {name.split("/")[-1].split("-")[0]}
    write_parquet(tmp_path / "one.parquet", id=[*"abc"], ratings=[["sad", "happy"], ["sad"], []])
    one = hugging_face.read(tmp_path / "one.parquet")
    assert [[r.label for r in u.ratings] for u in one.utterances] == [["sad", "happy"], ["sad"], []]


@needs_datasets
@pytest.mark.parametrize(
    ("happy", "sad", "expected"),
    [
        ([0.75, 1.0, 0.0], [0.25, 0.0, 1.0], [[("happy", 0.75), ("sad", 0.25)], [("happy", 1.0)], [("sad", 1.0)]]),
        ([2.0, 1.0, 0.0], [1.0, 0.0, 1.0], [[("happy", 1.0)] * 2 + [("sad", 1.0)], [("happy", 1.0)], [("sad", 1.0)]]),
    ],
)
def test_one_column_of_numbers_for_each_emotion_holds_shares_or_counts(
    happy: list[float], sad: list[float], expected: list[list[tuple[str, float]]], tmp_path: Path
) -> None:
    """As in AbstractTTS/CREMA-D, which has a column of files beside that of sound, too."""
    columns = {"file": [f"{k}.wav" for k in range(3)], "major_emotion": ["happy", "happy", "sad"], "rms": [0.1] * 3}
    write_parquet(tmp_path / "train-0.parquet", happy=happy, sad=sad, **columns)
    corpus = hugging_face.read(tmp_path / "train-0.parquet")
    assert [[(r.label, r.weight) for r in u.ratings] for u in corpus.utterances] == expected
    assert [u.id for u in corpus.utterances] == ["clip0", "clip1", "clip2"]
    assert corpus.utterances[0].attributes == {"file": "0.wav", "major_emotion": "happy", "rms": 0.1}
    assert corpus.defaults.emotions == ("happy", "sad")


@needs_datasets
def test_a_full_disk_while_sound_is_unpacked_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "all.parquet", id=[*"abc"], label=[*"xyx"])
    whole = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        whole(path, data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CorpusError, match=r"line 1: its recording cannot be unpacked: .*No space left"):
        hugging_face.read(tmp_path / "all.parquet")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    monkeypatch.setenv("AMBER2_CACHE_DIR", str(tmp_path / "cache"))
    assert len(hugging_face.read(tmp_path / "all.parquet").utterances) == 3


@needs_datasets
def test_paths_below_the_root_are_left_where_they_are(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"clip{k}.wav").write_bytes(wav(k))
    write_parquet(tmp_path / "all.parquet", inside=False, id=[*"abc"], label=[*"xyx"])
    corpus = hugging_face.read(tmp_path / "all.parquet")
    assert [u.audio for u in corpus.utterances] == ["clip0.wav", "clip1.wav", "clip2.wav"]
    assert corpus.root == tmp_path
    assert not (tmp_path / "cache").exists()


@needs_datasets
@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"id": [*"aab"], "label": [*"xyx"]}, "line 2: id 'a' stands in line 1 already"),
        ({"id": [*"abc"]}, "no label: expected columns"),
        ({"id": [*"abc"], "label": [*"xyx"], "meta": [{"a": 1}] * 3}, "line 1: 'meta' holds an object"),
        ({"id": [*"abc"], "label": ["x\0", "y", "x"]}, "line 1: a NUL"),
    ],
)
def test_rows_without_meaning_are_refused_with_their_number(columns: dict[str, Any], what: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", **columns)
    with pytest.raises(CorpusError, match=what):
        hugging_face.read(tmp_path / "x.parquet")


@needs_datasets
def test_what_is_no_dataset_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"No dataset at .* The root is a folder that the datasets library saved"):
        hugging_face.read(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no more PAR1")
    (tmp_path / "state.json").write_text("{}")
    for root in (tmp_path, tmp_path / "x.parquet"):
        with pytest.raises(CorpusError, match="Cannot read the dataset") as error:
            hugging_face.read(root)
        assert "\n" not in str(error.value)


@needs_datasets
@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_a_path_that_is_no_text_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xe9t\xe9")
    folder.mkdir()
    write_parquet(tmp_path / "all.parquet", id=[*"abc"], label=[*"xyx"]).rename(folder / "all.parquet")
    assert len(hugging_face.read(folder / "all.parquet").utterances) == 3
    saved(tmp_path / "x.parquet", tmp_path, id=[*"abc"], label=[*"xyx"]).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved").rename(folder / "saved")
    with pytest.raises(CorpusError, match="is not UTF-8, as the datasets library needs it; rename it"):
        hugging_face.read(folder / "saved")


@needs_datasets
def test_a_place_for_temporary_files_that_has_no_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    write_parquet(tmp_path / "all.parquet", id=[*"abc"], label=[*"xyx"])
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(CorpusError, match=r"No locks available; it works in .* \(set TMPDIR to another folder\)"):
        hugging_face.read(tmp_path / "all.parquet")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CorpusError, match=r"install the extra: pip install 'amber2\[hf\]'"):
        hugging_face.read(tmp_path)
