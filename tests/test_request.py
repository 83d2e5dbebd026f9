"""What a sweep is asked for: refused at the door where it has no meaning, and told by the names that the user knows."""

from __future__ import annotations

import re

import pytest
import torch

from amber2_core.errors import SettingError
from amber2_train.presets import Grid
from amber2_train.request import Request, checked, options_of

BAD = [
    (Request(Grid(seeds=0)), "Bad seeds 0, expected a number of at least 1"),
    (Request(Grid(epochs=-1)), "Bad epochs -1, expected a number of at least 1"),
    (Request(patience=0), "Bad patience 0, expected a number of at least 1"),
    (Request(inputs="whitened"), "Bad inputs 'whitened', expected one of ['raw', 'standardized']"),  # type: ignore[arg-type]
    (Request(missing="impute"), "Bad missing 'impute', expected one of ['drop', 'mask']"),  # type: ignore[arg-type]
    (Request(precision="fp8"), "Bad precision 'fp8', expected one of ['fp32', 'tf32', 'bf16']"),  # type: ignore[arg-type]
    (Request(device="tpu"), "Bad device 'tpu', expected one of ['auto', 'cpu', 'cuda', 'cuda:N']"),
    (
        Request(Grid(axes={"student": ("video",)})),
        "Bad student 'video', expected one of ['audio', 'text', 'fusion']",
    ),
]


@pytest.mark.parametrize(("request_", "line"), BAD, ids=[line.split(",")[0] for _, line in BAD])
def test_what_has_no_meaning_is_refused_before_any_data_is_read(request_: Request, line: str) -> None:
    with pytest.raises(SettingError, match=f"^{re.escape(line)}"):
        checked(request_)


def test_a_modality_that_is_asked_for_may_be_the_student() -> None:
    three = {"audio": None, "text": None, "video": None}
    settings, _ = checked(Request(Grid(axes={"student": ("video", "fusion")}), modalities=three, device="cpu"))
    assert {setting.student for setting in settings if setting.system == "amber2"} == {"video", "fusion"}


def test_the_device_is_the_one_that_is_there() -> None:
    assert checked(Request())[1] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert checked(Request(device="cpu"))[1] == "cpu"


def test_tensorfloat_is_refused_where_there_is_none() -> None:
    with pytest.raises(SettingError, match=r"^Bad precision 'tf32' on a CPU: only GPUs have it; use --precision fp32"):
        checked(Request(precision="tf32", device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_an_accelerator_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingError, match=r"Bad device 'cuda:0': torch finds no CUDA device here; use --device cpu"):
        checked(Request(device="cuda:0"))


def test_which_of_several_accelerators_trains_changes_no_result() -> None:
    assert options_of(Request(), "cuda:0") == options_of(Request(), "cuda:1")
    assert options_of(Request(), "cuda:0") != options_of(Request(), "cpu")
