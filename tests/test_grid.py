"""The grid: what users type becomes settings, and what could not train is refused before anything does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from amber2_core.errors import SettingError
from amber2_core.fusion import FUSIONS
from amber2_train.grid import Setting, Variant, axes_of, check_axis, expand, own_axes, parse_axis
from amber2_train.stacked.system import StackedSystem
from amber2_train.systems.amber2 import DISTANCES, Amber2Settings
from amber2_train.systems.system import option, system_of

OURS = axes_of(["amber2", "cb-ce"])


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("kappa", "4", (4.0,)),
        ("kappa", "2, 4,8", (2.0, 4.0, 8.0)),
        ("lambda_mai", "0,0.5", (0.0, 0.5)),
        ("lr", "3e-4", (3e-4,)),
        ("batch_size", "64,128", (64, 128)),
        ("student", "audio,text,fusion", ("audio", "text", "fusion")),
        ("fusion", "gmu,concat", ("gmu", "concat")),
        ("loss", "js,kl,soft-ce", ("js", "kl", "soft-ce")),
    ],
)
def test_a_comma_list_becomes_the_values_of_an_axis(name: str, text: str, values: tuple[Any, ...]) -> None:
    assert parse_axis(name, OURS[name], text) == values


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("kappa", "-1", "Bad kappa -1, expected a number of at least 0"),
        ("kappa", "nan", "Bad kappa nan, expected a number of at least 0"),
        ("kappa", "inf", "Bad kappa inf, expected a number of at least 0"),
        ("lambda_mai", "abc", "Bad lambda-mai 'abc', expected numbers such as 0.5 or 0.3,0.5,0.7"),
        ("lambda_mai", "", "Bad lambda-mai '', expected numbers such as 0.5 or 0.3,0.5,0.7"),
        ("lambda_mai", "0.5,,0.7", "Bad lambda-mai '', expected numbers such as 0.5 or 0.3,0.5,0.7"),
        ("kappa", "2,4,2.0", "Bad kappa '2,4,2.0': a value stands twice"),
        ("lr", "0", "Bad lr 0, expected a number above 0"),
        ("dropout", "1", "Bad dropout 1, expected a number of at least 0 and below 1"),
        ("batch_size", "0", "Bad batch-size 0, expected a number of at least 1"),
        ("batch_size", "12.5", "Bad batch-size '12.5', expected numbers such as 128 or 64,128"),
        ("fusion", "fission", f"Bad fusion 'fission', expected one of {list(FUSIONS)}"),
        ("loss", "gain", f"Bad loss 'gain', expected one of {list(DISTANCES)}"),
        ("weight_gradient", "stop", "Bad weight-gradient 'stop', expected one of ['detach', 'flow']"),
    ],
)
def test_bad_values_are_told_in_one_line(name: str, text: str, line: str) -> None:
    with pytest.raises(SettingError) as error:
        parse_axis(name, OURS[name], text)
    assert str(error.value) == line


def test_values_of_a_file_are_checked_as_those_that_are_typed() -> None:
    assert check_axis("kappa", OURS["kappa"], [2, 4.5]) == (2.0, 4.5)
    assert check_axis("fusion", OURS["fusion"], ["concat"]) == ("concat",)
    for wrong, line in (
        ([True], "Bad kappa True, expected a number or a word"),
        ([[1]], r"Bad kappa \[1\], expected a number or a word"),
        ([1, 1.0], "Bad kappa '1,1.0': a value stands twice"),
    ):
        with pytest.raises(SettingError, match=f"^{line}"):
            check_axis("kappa", OURS["kappa"], wrong)


def test_the_defaults_are_the_papers() -> None:
    defaults = Amber2Settings()
    assert (defaults.lambda_rai, defaults.lambda_expert, defaults.student) == (1, 0, "fusion")
    assert (defaults.loss, defaults.weight_gradient, defaults.fusion, defaults.hidden) == ("js", "detach", "gmu", 256)
    assert (defaults.lr, defaults.weight_decay, defaults.batch_size, defaults.dropout) == (3e-4, 1e-2, 128, 0)


def test_a_grid_is_every_combination_and_the_baseline_does_not_multiply_by_what_it_has_not_got() -> None:
    settings = expand(["amber2", "cb-ce"], {"kappa": (2.0, 4.0, 8.0), "lambda_mai": (0.3, 0.5, 0.7)})
    amber = [s.values for s in settings if s.reference == "amber2"]
    assert {(s.kappa, s.lambda_mai) for s in amber} == {(k, m) for k in (2, 4, 8) for m in (0.3, 0.5, 0.7)}
    assert (len(amber), len(settings)) == (9, 10)
    both = expand(["amber2", "cb-ce"], {"kappa": (2.0, 4.0), "lr": (1e-3, 1e-4)})
    assert [s.values.lr for s in both if s.reference == "cb-ce"] == [1e-3, 1e-4]
    assert len(both) == 6


def test_axes_are_a_systems_own_first_then_what_it_shares() -> None:
    own = [
        "lambda_rai",
        "lambda_mai",
        "lambda_expert",
        "kappa",
        "student",
        "loss",
        "weight_gradient",
        "expert_gradient",
    ]
    shared = list(own_axes(system_of("cb-ce")))
    assert {"fusion", "hidden", "lr", "labels"} < set(shared)
    assert list(own_axes(system_of("amber2")))[: len(own)] == own
    assert sorted(own_axes(system_of("amber2"))) == sorted([*own, *shared])
    assert list(axes_of(["cb-ce", "amber2"])) == [*shared, *own]
    assert sorted(expand(["cb-ce"], {})[0].row()) == sorted(shared)


def test_two_systems_may_not_mean_different_things_by_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Settings:
        kappa: float = option(1.0, "Something else.")

    class Mine(StackedSystem):
        name = "mine"

    Mine.Settings = Settings
    monkeypatch.setattr("amber2_train.grid.system_of", lambda name: Mine() if name == "mine" else system_of(name))
    with pytest.raises(
        SettingError, match=r"^Bad system 'mine': its setting kappa is another system's, too: rename it$"
    ):
        axes_of(["amber2", "mine"])


def test_settings_have_a_name_for_results_and_a_point_in_words() -> None:
    setting = expand(["amber2"], {}, [Variant("sharp", {"kappa": 9.0})])[1]
    assert (setting.name, setting.point) == ("amber2-sharp", "amber2-sharp kappa 9.0")
    assert Setting("amber2", Amber2Settings()).point == "amber2"


def test_settings_of_one_shape_are_those_that_can_be_trained_together() -> None:
    def shape(system: str, **values: Any) -> object:
        return Setting(system, system_of(system).Settings(**values)).shape

    assert shape("amber2") == shape("amber2", kappa=9.0, student="audio", loss="kl", expert_gradient="own")
    assert shape("amber2") != shape("cb-ce")
    for name, other in {"fusion": "concat", "hidden": 5, "dropout": 0.1, "lr": 1.0, "weight_decay": 1.0,
                        "batch_size": 5, "labels": "hard"}.items():  # fmt: skip
        assert shape("amber2") != shape("amber2", **{name: other})


@pytest.mark.parametrize("systems", [[], ["amber2", "amber2"], ["amber3"], [""]])
def test_systems_are_a_list_of_different_ones_that_exist(systems: list[str]) -> None:
    with pytest.raises(SettingError, match="Bad system"):
        expand(systems, {})
