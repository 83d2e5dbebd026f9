"""The summary: mean and sd over seeds of the mean over folds, and what has no number."""

from __future__ import annotations

import math
import statistics

import pytest
from run_folders import result_row

from amber2_core.metrics import METRICS
from amber2_core.summary import summarise


def test_the_summary_is_mean_and_sd_over_seeds_of_the_mean_over_folds() -> None:
    rows = [result_row(fold, seed) for fold in (1, 2, 3) for seed in range(4)]
    rows += [result_row(fold, seed, split="dev", js=99.0) for fold in (1, 2, 3) for seed in range(4)]
    rows += [result_row(fold, seed, head="audio", js=0.5) for fold in (1, 2, 3) for seed in range(4)]
    table = summarise(rows)
    per_seed = [sum(0.1 * fold + 0.013 * seed**2 for fold in (1, 2, 3)) / 3 for seed in range(4)]
    assert table["amber2"]["fusion"]["js"]["mean"] == pytest.approx(statistics.mean(per_seed))
    assert table["amber2"]["fusion"]["js"]["sd"] == pytest.approx(statistics.stdev(per_seed))
    assert table["amber2"]["audio"]["js"] == {"mean": pytest.approx(0.5), "sd": pytest.approx(0)}


def test_one_seed_has_no_sd_and_what_is_no_number_has_no_mean() -> None:
    table = summarise([result_row(1, 0), result_row(2, 0, accuracy_untied=math.nan)])
    assert table["amber2"]["fusion"]["js"]["sd"] is None
    assert table["amber2"]["fusion"]["accuracy_untied"] == {"mean": None, "sd": None}


def test_a_fold_with_nothing_to_score_is_left_out_of_the_mean_and_a_diverged_one_is_not() -> None:
    nothing, diverged = dict.fromkeys(METRICS, math.nan), dict.fromkeys(METRICS, math.nan)
    table = summarise([result_row(1, 0, js=0.2), {**result_row(2, 0), **nothing, "n": 0}, result_row(3, 0, js=0.5)])
    assert table["amber2"]["fusion"]["js"]["mean"] == pytest.approx(0.35)
    table = summarise(
        [result_row(1, 0, js=0.2), {**result_row(2, 0), **diverged, "epoch": 0}, result_row(3, 0, js=0.5)]
    )
    assert table["amber2"]["fusion"]["js"]["mean"] is None
    table = summarise([{**result_row(fold, 0), **nothing, "n": 0} for fold in (1, 2)])
    assert table["amber2"]["fusion"]["js"] == {"mean": None, "sd": None}
