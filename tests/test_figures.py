"""Figures: every axis says what it shows, lines can be told apart without colour, names are words."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from run_folders import GRID, Sketch, write_run

import amber2_report.figures
from amber2_core.metrics import METRICS
from amber2_core.run_folder import read_curves, read_results
from amber2_report.analysis import training_curve
from amber2_report.drawing import DASHES, MARKERS, SERIES, Drawing, canvas, drawing, house_style, legend, series
from amber2_report.figures import OVERLAID, ambiguity_figures, figures, training_figures
from amber2_report.groups import Group, grouped
from amber2_report.runs import read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYSTEMS = ("amber2", "cb-ce", "third", "fourth", "fifth", "sixth", "seventh")
EMOTIONS = ("$x_{", "<b>&amp;", "حزين", "🙂")


def group_of(folder: Path, sketch: Sketch) -> Group:
    return grouped([read_run(write_run(folder / "run", sketch))])[0]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """With emotions that would like to be formulas, markup or boxes."""
    return group_of(tmp_path_factory.mktemp("figures"), Sketch(grid=GRID, emotions=EMOTIONS))


@pytest.fixture(scope="module")
def drawn(group: Group) -> tuple[dict[str, list[Drawing]], dict[str, Figure]]:
    """Everything for the page, confusions for paper too, by the part of the page; and what matplotlib made, by name."""
    made: dict[str, Figure] = {}

    def keeping(figure: Figure, name: str, title: str, *, page: bool = True, paper: bool = True) -> Drawing:
        made[name] = figure
        return drawing(figure, name, title, page=page, paper=paper and name.startswith("confusion"))

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patched:
        warnings.simplefilter("error")
        patched.setattr(amber2_report.figures, "drawing", keeping)
        return figures(group, group.runs[0].utterances["speaker"].to_numpy(object)), made


@pytest.fixture(scope="module")
def parts(drawn: tuple[dict[str, list[Drawing]], dict[str, Figure]]) -> dict[str, list[Drawing]]:
    return drawn[0]


@pytest.fixture(scope="module")
def made(drawn: tuple[dict[str, list[Drawing]], dict[str, Figure]]) -> dict[str, Figure]:
    return drawn[1]


def test_every_axis_of_every_figure_says_what_it_shows(made: dict[str, Figure]) -> None:
    assert len(made) == 18 + len(METRICS)  # each metric has one by ambiguity
    for name, figure in made.items():
        for axes in figure.axes:
            if axes.axison:
                assert axes.get_xlabel(), name
                assert axes.get_ylabel(), name


def test_what_is_measured_in_bits_says_so(made: dict[str, Figure]) -> None:
    for name in ("ambiguity-js", "entropy", "conflict-bin", "spread-folds", "spread-speakers"):
        assert "bits" in made[name].axes[0].get_xlabel() + made[name].axes[0].get_ylabel()
    assert "%" in made["confusion-amber2-fusion"].axes[0].get_xlabel()


def test_training_curves_are_means_over_folds_and_seeds_with_the_kept_epochs_marked(
    group: Group, made: dict[str, Figure]
) -> None:
    (axes,) = made["training"].axes
    rows = read_curves(group.runs[0].path)
    for line, marks, system in zip(axes.get_lines(), axes.collections[1::2], ("amber2", "cb-ce"), strict=True):
        own = [row for row in rows if (row["system"], row["head"]) == (system, "fusion")]
        by_epoch = [[row["dev_js"] for row in own if row["epoch"] == epoch] for epoch in (1, 2, 3, 4)]
        assert [len(some) for some in by_epoch] == [6] * 4
        np.testing.assert_allclose(line.get_xydata(), [(e, np.mean(x)) for e, x in enumerate(by_epoch, start=1)])
        np.testing.assert_allclose(marks.get_offsets(), [(3, np.mean(by_epoch[2]))])
    assert [line.get_label() for line in made["training-amber2"].axes[0].get_lines()] == ["audio", "text", "fusion"]


def test_every_seed_of_every_fold_has_its_mark(group: Group, made: dict[str, Figure]) -> None:
    for line, entry in zip(made["spread-folds"].axes[0].get_lines(), group.mains, strict=True):
        marks = sorted((round(x), y) for x, y in line.get_xydata().tolist())
        rows = [row for row in read_results(entry.run.path) if row["split"] == "test" and row["system"] == entry.system]
        assert marks == sorted((row["fold"] - 1, row["js"]) for row in rows if row["head"] == "fusion")


def test_runs_that_stop_early_leave_the_mean_to_the_others(tmp_path: Path) -> None:
    run = group_of(tmp_path, Sketch(seeds=1, systems=("amber2",))).runs[0]
    curves = run.curves[(run.curves["fold"] == 1) | (run.curves["epoch"] < 4)]
    curve = training_curve(grouped([replace(run, curves=curves)])[0].mains[0])
    assert curve is not None
    (last,) = curves[(curves["head"] == "fusion") & (curves["epoch"] == 4)]["dev_js"]
    assert curve["mean"][4] == last
    assert curve["sd"].isna().tolist() == [False, False, False, True]
    assert curve["kept"].tolist() == [0, 0, 3, 0]


def test_earlier_runs_without_curves_have_no_such_panel(tmp_path: Path) -> None:
    assert training_figures(group_of(tmp_path, Sketch(earlier=True))) == []


def test_no_more_lines_are_drawn_than_can_be_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Figure] = {}
    monkeypatch.setattr(amber2_report.figures, "drawing", lambda figure, name, *_, **__: seen.update({name: figure}))
    ambiguity_figures(group_of(tmp_path, Sketch(systems=SYSTEMS)))
    assert len({(str(d), m) for d, m in zip(DASHES, MARKERS, strict=True)}) == len(set(SERIES)) == OVERLAID == 6
    assert len(seen["ambiguity-js"].axes[0].get_lines()) == 6
    assert [series(k)["color"] for k in range(6)] == list(SERIES)


def test_a_long_legend_stands_below_the_data() -> None:
    with house_style():
        figure, (axes,) = canvas()
        before = figure.get_figheight()
        for k in range(5):
            axes.plot([0, 1], [k, k], label=str(k), **series(k))
        legend(axes)
    assert axes.get_legend() is None
    assert figure.get_figheight() > before


def test_names_are_words_whatever_signs_they_hold(parts: dict[str, list[Drawing]]) -> None:
    words = "".join(ET.fromstring(parts["confusions"][0].svg.replace("xlink:", "")).itertext())
    for emotion in EMOTIONS:
        assert emotion in words


def test_a_figure_of_the_page_takes_its_colours_from_the_page(parts: dict[str, list[Drawing]]) -> None:
    svg = parts["ambiguity"][1].svg
    assert "var(--ink)" in svg
    assert "var(--s1)" in svg
    assert not re.search(r"#(?:0072b2|1b1e23)", svg)
    assert 'role="img" aria-label="JS ↓ by ambiguity"' in svg
    assert parts["ambiguity"][1].pdf == b""
    ids = [
        name for one in (*parts["ambiguity"], *parts["confusions"]) for name in re.findall(r'\bid="([^"]+)"', one.svg)
    ]
    assert len(ids) == len(set(ids))
