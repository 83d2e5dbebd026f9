"""Figures: every axis says what it shows, lines can be told apart without colour, names are words."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from run_folders import GRID, Sketch, write_run

import amber2_report.figures
from amber2_report.analysis import training_curve
from amber2_report.corpus_facts import CorpusFacts, corpus_facts
from amber2_report.drawing import DASHES, MARKERS, SERIES, canvas, drawing, house_style, legend, series
from amber2_report.figures import Figures, figures
from amber2_report.groups import Group, grouped
from amber2_report.runs import read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYSTEMS = ("amber2", "cb-ce", "third", "fourth", "fifth", "sixth", "seventh")
EMOTIONS = ("$x_{", "<b>&amp;", "حزين", "🙂")


def group_of(folder: Path, sketch: Sketch) -> tuple[Group, CorpusFacts]:
    write_run(folder / "run", sketch, cache=folder / "c.h5")
    (group,) = grouped([read_run(folder / "run")])
    return group, corpus_facts(group)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Every matplotlib figure that is drawn, by its name."""
    found: dict[str, Figure] = {}

    def keeping(figure: Figure, name: str, title: str, **rest: Any) -> Any:
        found[name] = figure
        return drawing(figure, name, title, page=True, paper=False)

    monkeypatch.setattr(amber2_report.figures, "drawing", keeping)
    return found


def test_every_axis_of_every_figure_says_what_it_shows(tmp_path: Path, seen: dict[str, Figure]) -> None:
    figures(*group_of(tmp_path, Sketch(grid=GRID)))
    assert len(seen) == 29
    for name, figure in seen.items():
        for axes in figure.axes:
            if axes.axison:
                assert axes.get_xlabel(), name
                assert axes.get_ylabel(), name


def test_what_is_measured_in_bits_says_so(tmp_path: Path, seen: dict[str, Figure]) -> None:
    figures(*group_of(tmp_path, Sketch()))
    for name in ("ambiguity-js", "entropy", "conflict-bin", "spread-folds", "spread-speakers"):
        assert "bits" in seen[name].axes[0].get_xlabel() + seen[name].axes[0].get_ylabel()
    assert "%" in seen["confusion-amber2-fusion"].axes[0].get_xlabel()


def test_training_curves_are_means_over_folds_and_seeds_with_the_kept_epochs_marked(
    tmp_path: Path, seen: dict[str, Figure]
) -> None:
    group, facts = group_of(tmp_path, Sketch())
    figures(group, facts)
    (axes,) = seen["training"].axes
    for line, marks, system in zip(axes.get_lines(), axes.collections[1::2], ("amber2", "cb-ce"), strict=True):
        own = [row for row in group.runs[0].curves if (row["system"], row["head"]) == (system, "fusion")]
        by_epoch = [[row["dev_js"] for row in own if row["epoch"] == epoch] for epoch in (1, 2, 3, 4)]
        assert [len(some) for some in by_epoch] == [6] * 4
        np.testing.assert_allclose(line.get_xydata(), [(e, np.mean(x)) for e, x in enumerate(by_epoch, start=1)])
        np.testing.assert_allclose(marks.get_offsets(), [(3, np.mean(by_epoch[2]))])
    assert [line.get_label() for line in seen["training-amber2"].axes[0].get_lines()] == ["audio", "text", "fusion"]


def test_runs_that_stop_early_leave_the_mean_to_the_others(tmp_path: Path) -> None:
    group, _ = group_of(tmp_path, Sketch(folds=3, seeds=1, systems=("amber2",)))
    run = group.runs[0]
    short = [row for row in run.curves if row["fold"] == 1 or row["epoch"] < 4]
    (shorter,) = grouped([replace(run, curves=short)])
    curve = training_curve(shorter.mains[0])
    (last,) = [r["dev_js"] for r in short if (r["head"], r["epoch"]) == ("fusion", 4)]
    assert curve is not None
    assert curve.mean[3] == last
    assert np.isnan(curve.sd[3])
    assert np.isfinite(curve.sd[:3]).all()
    assert curve.kept.tolist() == [0, 0, 3, 0]


def test_older_runs_without_curves_have_no_such_panel(tmp_path: Path) -> None:
    group, facts = group_of(tmp_path, Sketch(earlier=True))
    assert figures(group, facts).training == []


def test_no_more_lines_are_drawn_than_can_be_told_apart(tmp_path: Path, seen: dict[str, Figure]) -> None:
    drawn = figures(*group_of(tmp_path, Sketch(systems=SYSTEMS)))
    assert drawn.overlaid == 6 == len({(str(d), m) for d, m in zip(DASHES, MARKERS, strict=True)}) == len(set(SERIES))
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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """All figures in all forms, of emotions that would like to be formulas, markup or boxes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return figures(*group_of(tmp_path_factory.mktemp("figures"), Sketch(emotions=EMOTIONS)))


def test_names_are_words_whatever_signs_they_hold(drawn: Figures) -> None:
    words = "".join(ET.fromstring(drawn.confusions[0].svg.replace("xlink:", "")).itertext())
    for emotion in EMOTIONS:
        assert emotion in words


def test_a_figure_of_the_page_takes_its_colours_from_the_page(drawn: Figures) -> None:
    svg = drawn.ambiguity[1].svg
    assert "var(--ink)" in svg
    assert "var(--s1)" in svg
    assert not re.search(r"#(?:0072b2|1b1e23)", svg)
    assert 'role="img" aria-label="JS ↓ by ambiguity"' in svg
    assert drawn.ambiguity[1].pdf == b""
    ids = [name for one in (*drawn.ambiguity, *drawn.confusions) for name in re.findall(r'\bid="([^"]+)"', one.svg)]
    assert len(ids) == len(set(ids))
