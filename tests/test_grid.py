"""The grid: what users type becomes settings, and what could not train is refused before anything does."""

from __future__ import annotations

from typing import Any

import pytest

from amber2_core.errors import SettingError
from amber2_train.grid import AXES, Setting, expand, parse_axis


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
    assert parse_axis(name, text) == values


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
        ("fusion", "sum", "Bad fusion 'sum', expected one of ['gmu', 'concat', 'softmax-gate', 'self-gate']"),
        ("loss", "mse", "Bad loss 'mse', expected one of ['js', 'kl', 'soft-ce']"),
        ("weight_gradient", "stop", "Bad weight-gradient 'stop', expected one of ['detach', 'flow']"),
    ],
)
def test_bad_values_are_told_in_one_line(name: str, text: str, line: str) -> None:
    with pytest.raises(SettingError) as error:
        parse_axis(name, text)
    assert str(error.value) == line


def test_the_defaults_are_the_papers() -> None:
    setting = Setting()
    assert (setting.system, setting.lambda_rai, setting.lambda_expert, setting.student) == ("amber2", 1, 0, "fusion")
    assert (setting.loss, setting.weight_gradient, setting.fusion, setting.hidden) == ("js", "detach", "gmu", 256)
    assert (setting.lr, setting.weight_decay, setting.batch_size, setting.dropout) == (3e-4, 1e-2, 128, 0)


def test_a_grid_is_every_combination_and_the_baseline_does_not_multiply_by_what_it_ignores() -> None:
    settings = expand(["amber2", "cb-ce"], {"kappa": (2.0, 4.0, 8.0), "lambda_mai": (0.3, 0.5, 0.7)})
    amber = [s for s in settings if s.system == "amber2"]
    assert {(s.kappa, s.lambda_mai) for s in amber} == {(k, m) for k in (2, 4, 8) for m in (0.3, 0.5, 0.7)}
    assert (len(amber), len(settings)) == (9, 10)
    both = expand(["amber2", "cb-ce"], {"kappa": (2.0, 4.0), "lr": (1e-3, 1e-4)})
    assert [(s.system, s.lr) for s in both if s.system == "cb-ce"] == [("cb-ce", 1e-3), ("cb-ce", 1e-4)]
    assert len(both) == 6


def test_a_row_leaves_empty_what_the_system_does_not_look_at() -> None:
    row = Setting(system="cb-ce").row()
    assert {name for name, value in row.items() if value is None} == {
        "lambda_rai", "lambda_mai", "lambda_expert", "kappa", "student", "loss", "weight_gradient",
        "expert_gradient",
    }  # fmt: skip
    assert None not in Setting().row().values()
    assert list(row) == ["system", *AXES] == list(Setting().row())


@pytest.mark.parametrize("systems", [[], ["amber2", "amber2"], ["amber3"], [""]])
def test_systems_are_a_list_of_different_ones_that_exist(systems: list[str]) -> None:
    with pytest.raises(SettingError, match="Bad system"):
        expand(systems, {})


def test_a_loss_that_is_nothing_is_refused() -> None:
    with pytest.raises(SettingError, match="lambda-rai, lambda-mai and lambda-expert are all 0"):
        expand(["amber2"], {"lambda_rai": (0.0, 1.0), "lambda_mai": (0.0,)})
