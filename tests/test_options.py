"""What a sweep is asked for: refused where it has no meaning, and told by the names that the user knows."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from amber2_core.errors import SettingError
from amber2_train.options import PRESETS, Grid, TrainOptions, preset, read_grid
from amber2_train.systems.amber2 import Amber2Settings

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


# --- grids by name and from files ---


def test_the_papers_preset_is_225_and_25_fits() -> None:
    grid = preset("paper")
    settings = Counter(setting.name for setting in grid.settings())
    assert {name: count * 5 * grid.seeds for name, count in settings.items()} == {"amber2": 225, "cb-ce": 25}
    amber = [s.values for s in grid.settings() if s.reference == "amber2"]
    assert {(s.lambda_mai, s.kappa, s.lambda_rai) for s in amber} == {
        (mai, kappa, 1.0) for mai in (0.3, 0.5, 0.7) for kappa in (2.0, 4.0, 8.0)
    }
    assert grid.epochs == 30
    assert grid.varied == ["lambda_mai", "kappa"]


def test_the_ablations_preset_changes_one_thing_at_a_time() -> None:
    settings = {setting.name: setting for setting in preset("ablation").settings()}
    assert settings["amber2"].values == Amber2Settings()
    assert settings["amber2-no-mai"].values == Amber2Settings(lambda_mai=0.0)
    assert settings["amber2-no-rai"].values == Amber2Settings(lambda_rai=0.0, lambda_expert=1.0)
    assert settings["amber2-uniform-weights"].values == Amber2Settings(kappa=0.0)
    assert settings["amber2-hard-labels"].values == Amber2Settings(labels="hard")
    assert settings["amber2-student-audio"].values == Amber2Settings(student="audio")
    assert settings["amber2-student-text"].values == Amber2Settings(student="text")
    assert settings["cb-ce"].reference == "cb-ce"
    assert len(settings) == 8


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(SettingError, match=r"Bad preset 'best', expected one of \['paper', 'ablation'\]"):
        preset("best")
    assert set(PRESETS) == {"paper", "ablation"}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_gives_systems_values_and_variants(tmp_path: Path) -> None:
    path = written(tmp_path, """
        system = ["amber2"]
        seeds = 3
        lambda-mai = [0.3, 0.5]
        batch_size = 64
        [[variant]]
        name = "uniform"
        kappa = 0
        [[variant]]
        name = "smaller"
        system = "cb-ce"
        hidden = 64
    """)  # fmt: skip
    grid = read_grid(path)
    assert (grid.systems, grid.seeds, grid.epochs) == (("amber2",), 3, Grid.epochs)
    names = Counter(setting.name for setting in grid.settings())
    assert names == {"amber2": 2, "amber2-uniform": 2, "cb-ce-smaller": 1}
    uniform = [s.values for s in grid.settings() if s.variant == "uniform"]
    assert {(s.kappa, s.lambda_mai, s.batch_size) for s in uniform} == {(0.0, 0.3, 64), (0.0, 0.5, 64)}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kapa = 4", "Bad key 'kapa', expected one of ['system', 'seeds', 'epochs', 'variant', 'lambda_rai'"),
        ("kappa = -1", "Bad kappa -1, expected a number of at least 0"),
        ("kappa = [2, 2]", "Bad kappa '2,2': a value stands twice"),
        ("kappa = true", "Bad kappa True, expected a number or a word, or a list of some"),
        ("seeds = 0", "Bad seeds 0, expected a number of at least 1"),
        ("[[variant]]\nkappa = 0", "a variant is a table [[variant]] with a name"),
        ('[[variant]]\nname = "a"\nkapa = 0', "Bad key of variant a 'kapa', expected one of"),
        ("kappa = ", "is not a TOML file"),
        ('system = ["amber3"]', "Bad system 'amber3', expected one of"),
        ('system = "cb-ce"\nkappa = 4', "Bad key 'kappa', expected one of"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(SettingError) as error:
        read_grid(written(tmp_path, text))
    assert line in str(error.value)
    assert "grid.toml" in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[[variant]]\nname = "A b"', "Bad name 'A b' of a variant, expected one such as no-mai"),
        ('[[variant]]\nname = "a"\n[[variant]]\nname = "a"', "two of its variants are called 'amber2-a'"),
        ('expert_gradient = "own"', "expert-gradient own with lambda-expert 0: the experts would never train"),
        ('expert_gradient = "own"\nlambda_expert = [0, 1]', "expert-gradient own with lambda-expert 0"),
        ('expert_gradient = "own"\nlambda_expert = 1\nweight_gradient = "flow"', "expert-gradient own with weight-gr"),
    ],
)
def test_what_could_not_train_is_refused_with_the_whole_grid(tmp_path: Path, text: str, line: str) -> None:
    grid = read_grid(written(tmp_path, text))
    with pytest.raises(SettingError) as error:
        TrainOptions(grid=grid).settings()
    assert line in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"Cannot read the grid .*none.toml: No such file"):
        read_grid(tmp_path / "none.toml")


def test_the_grid_of_the_page_on_two_ambiguities_has_every_point_that_is_told_of() -> None:
    grid = read_grid(Path(__file__).parents[1] / "docs" / "causes.toml")
    points = {(s.values.lambda_mai, s.values.kappa) for s in grid.settings() if s.name.startswith("amber2")}
    told = {(mai, kappa) for mai in (0.3, 0.5, 1.0) for kappa in (0.0, 2.0, 4.0, 8.0)}
    assert points == {*told, (0.0, 0.0), (0.0, 4.0)}
