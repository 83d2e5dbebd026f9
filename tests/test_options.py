"""What a sweep is asked for: refused where it has no meaning, and told by the names that the user knows."""

from __future__ import annotations

import re
from typing import Any

import pytest

from amber2_core.errors import SettingError
from amber2_train.options import TrainOptions
from amber2_train.presets import Grid

BAD: list[tuple[dict[str, Any], str]] = [
    ({"grid": Grid(seeds=0)}, "Bad seeds 0, expected a number of at least 1"),
    ({"grid": Grid(epochs=-1)}, "Bad epochs -1, expected a number of at least 1"),
    ({"patience": 0}, "Bad patience 0, expected a number of at least 1"),
    ({"inputs": "whitened"}, "Bad inputs 'whitened', expected one of ['raw', 'standardized']"),
    ({"missing": "impute"}, "Bad missing 'impute', expected one of ['drop', 'mask']"),
    ({"precision": "fp8"}, "Bad precision 'fp8', expected one of ['fp32', 'tf32', 'bf16']"),
    (
        {"grid": Grid(axes={"student": ("video",)})},
        "Bad student 'video', expected one of ['audio', 'text', 'fusion']",
    ),
    (
        {"grid": Grid(axes={"lambda_rai": (1.0, 0.0), "lambda_mai": (0.0,)})},
        "lambda-rai, lambda-mai and lambda-expert are all 0",
    ),
    ({"grid": Grid(systems=("amber3",))}, "Bad system 'amber3'"),
]


@pytest.mark.parametrize(("asked", "line"), BAD, ids=[line.split(",")[0] for _, line in BAD])
def test_what_has_no_meaning_is_refused_before_any_data_is_read(asked: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingError, match=f"^{re.escape(line)}"):
        TrainOptions(**asked).settings()


def test_a_modality_that_is_asked_for_may_be_the_student() -> None:
    three = {"audio": None, "text": None, "video": None}
    settings = TrainOptions(grid=Grid(axes={"student": ("video", "fusion")}), modalities=three).settings()
    assert {s.values.student for s in settings if s.reference == "amber2"} == {"video", "fusion"}


def test_which_of_several_accelerators_trains_changes_no_result() -> None:
    assert TrainOptions().named("cuda:0") == TrainOptions().named("cuda:1")
    assert TrainOptions().named("cuda:0") != TrainOptions().named("cpu")
