"""How figures look: one set of inks for paper and page, the panels that they are made of, and how they are rendered."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from .runs import Floats

# On paper these colours; on the page each is a CSS variable, so that a figure follows the reader's colour scheme.
INK, MUTED, LINE = "#1b1e23", "#5c6370", "#d5d9e0"
# Okabe and Ito's colours, which colour-blind readers can tell apart; dash and marker tell them apart in greyscale
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b8609a", "#3a9bd0", "#a87000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {c: f"--s{k}" for k, c in enumerate(SERIES, start=1)}
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    # names of emotions and runs are words, whatever signs they hold
    "text.parse_math": False,
    # glyphs travel inside of the file
    "pdf.fonttype": 42,
    "svg.hashsalt": "amber2",
}
SHADES = LinearSegmentedColormap.from_list("shades", ["#f4f7fb", "#9cc3e4", "#2f74b5", "#0b2f5c"])
PANEL = (3.4, 2.5)  # inches
LABELS_INSIDE = 2
LABEL_HEIGHT = 0.16  # inches


@dataclass(frozen=True)
class Drawing:
    """A figure in the three forms that a report needs."""

    name: str
    title: str
    svg: str  # for the page: inks are CSS variables, text is text
    svg_file: str  # on its own: text is outlines
    pdf: bytes  # fonts embedded


def house_style() -> AbstractContextManager[None]:
    """While it lasts, figures are made in `STYLE`."""
    return matplotlib.rc_context(cast(Any, STYLE))


def canvas(rows: int = 1, columns: int = 1, size: tuple[float, float] = PANEL) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure and its axes, row by row; to be called, and filled, in the `house_style`."""
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def drawing(figure: Figure, name: str, title: str, *, page: bool = True, paper: bool = True) -> Drawing:
    """Render a figure for the page, for paper, or for both."""
    on_page = _for_page(_render(figure, "svg", "none").decode(), title) if page else ""
    on_paper = (_render(figure, "svg", "path").decode(), _render(figure, "pdf", "path")) if paper else ("", b"")
    return Drawing(name, title, on_page, *on_paper)


def legend(axes: Axes, loc: str = "best", labels: Sequence[str] | None = None) -> None:
    """Name the lines: inside where there are few, below the axes, in a taller figure, where they would cover data."""
    handles, own = axes.get_legend_handles_labels()
    if len(handles) <= LABELS_INSIDE:
        axes.legend(handles, labels or own, loc=cast(Any, loc))
        return
    figure = cast(Figure, axes.figure)
    figure.legend(handles, labels or own, loc="outside lower center", ncols=1)
    figure.set_figheight(figure.get_figheight() + LABEL_HEIGHT * len(handles))


def series(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the index-th line."""
    k = index % len(SERIES)
    return {"color": SERIES[k], "linestyle": DASHES[k], "marker": MARKERS[k]}


def bin_counts(axes: Axes, edges: Floats, counts: npt.NDArray[np.intp]) -> None:
    """How many utterances each bin of ambiguity holds."""
    centres = (edges[1:] + edges[:-1]) / 2
    axes.bar(centres, counts, width=0.85 * np.diff(edges), color=LINE, edgecolor=MUTED, linewidth=0.7)
    for x, count in zip(centres, counts, strict=True):
        axes.annotate(str(count), (x, count), ha="center", va="bottom", fontsize=7, color=INK)
    axes.set(xlabel="ambiguity, bits", ylabel="utterances")
    axes.set_xticks(edges, [f"{edge:.2f}" for edge in edges])
    axes.margins(y=0.15)


def bin_scores(axes: Axes, edges: Floats, systems: Sequence[Floats], ylabel: str) -> None:
    """A metric by bin of ambiguity: a line for each system, mean ± sd over its seeds (seeds, bins)."""
    centres = (edges[1:] + edges[:-1]) / 2
    for k, found in enumerate(systems):
        mean = found.mean(0)
        axes.plot(centres, mean, label=str(k), **series(k))
        if len(found) > 1:
            sd = found.std(0, ddof=1)
            axes.fill_between(centres, mean - sd, mean + sd, color=SERIES[k % len(SERIES)], alpha=0.2, linewidth=0)
    axes.set(xlabel="ambiguity, bits", ylabel=ylabel)
    axes.set_xticks(edges, [f"{edge:.2f}" for edge in edges])


def curve(axes: Axes, found: pd.DataFrame, label: str, k: int) -> None:
    """A mean by epoch ± sd; a mark where runs keep their weights, larger where more do."""
    style, mean, sd = series(k), found["mean"], found["sd"]
    axes.fill_between(found.index, mean - sd, mean + sd, color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(found.index, mean, label=label, **{**style, "marker": ""})
    kept = found[found["kept"] > 0]
    sizes = 8 + 60 * kept["kept"] / max(1, kept["kept"].sum())
    axes.scatter(kept.index, kept["mean"], s=sizes, color=style["color"], marker=style["marker"], zorder=3)


def heat_map(
    axes: Axes,
    values: Floats,
    columns: Sequence[str],
    rows: Sequence[str],
    words: Sequence[Sequence[str]],
    span: tuple[float, float],
) -> None:
    """Cells (rows, columns) shaded between the ends of `span`, with words in them; NaN stays empty."""
    low, high = span
    axes.pcolormesh(np.nan_to_num(values, nan=low), cmap=SHADES, vmin=low, vmax=high, edgecolors="white", linewidth=1.5)
    for i, line in enumerate(words):
        for j, word in enumerate(line):
            if np.isfinite(values[i, j]):
                dark = values[i, j] > low + 0.5 * (high - low)
                colour = "#ffffff" if dark else "#111111"
                axes.annotate(word, (j + 0.5, i + 0.5), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def entropies(axes: Axes, rated: Floats, predicted: Floats, limit: float, label: str, k: int) -> None:
    """Mean predicted entropy with the middle half of utterances, in ten bins of rater entropy."""
    edges = np.linspace(0, limit, 11)
    member = np.minimum(np.searchsorted(edges[1:-1], rated, side="right"), 9)
    bins = pd.Series(predicted).groupby(member)
    table = pd.DataFrame({"mean": bins.mean(), "low": bins.quantile(0.25), "high": bins.quantile(0.75)})[
        bins.size() > 1
    ]
    centre = (edges[table.index] + edges[table.index + 1]) / 2
    axes.fill_between(centre, table["low"], table["high"], color=SERIES[k % len(SERIES)], alpha=0.15, linewidth=0)
    axes.plot(centre, table["mean"], label=label, **series(k))


def group_means(
    axes: Axes, member: npt.NDArray[np.intp], names: Sequence[str], lines: Mapping[str, Floats], *, apart: bool
) -> None:
    """Means over named groups of utterances (N,), one line each, or marks where the groups stand `apart` in no order.

    NaN is left out of a mean.
    """
    for k, (label, values) in enumerate(lines.items()):
        means = pd.Series(values).groupby(member).mean().reindex(range(len(names)))
        shift = 0.1 * (k - (len(lines) - 1) / 2) if apart else 0.0
        style = {**series(k), **({"linestyle": ""} if apart else {})}
        axes.plot(means.index + shift, means, label=label, **style)
    axes.set_xticks(range(len(names)), names, rotation=30 if max(map(len, names)) > 6 else 0)


def _render(figure: Figure, kind: str, text: str) -> bytes:
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": text}), warnings.catch_warnings():
        # a box stands for it; the page has its own fonts
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        # names of hundreds of letters leave no room for anything else
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        undated = {"Date": None} if kind == "svg" else {"CreationDate": None}
        figure.savefig(out, format=kind, metadata=undated, transparent=text == "none")
    figure.set_layout_engine("none")  # the places are found; finding them takes as long as drawing
    return out.getvalue()


def _for_page(svg: str, title: str) -> str:
    """An SVG as part of an HTML page: no prolog, ids of its own, the page's fonts and colours, a size that follows."""
    own = f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}"
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{own}-", svg)
    svg = re.sub(r"font: ([^\"';]*?)([\d.]+)px [^;\"]*", r"font-size: \2px", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    width = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    opening = (
        f'<svg role="img" aria-label="{label}" style="max-width:{float(width[1]) * 1.45:.0f}px"' if width else "<svg"
    )
    return re.sub(
        r'<svg([^>]*?) (?:width|height)="[^"]*"([^>]*?) (?:width|height)="[^"]*"', rf"{opening}\1\2", svg, count=1
    )
