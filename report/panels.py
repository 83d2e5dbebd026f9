"""One panel of a figure: axes and arrays go in, and are painted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from .analysis import Bins, Curve
from .drawing import INK, LINE, MUTED, SERIES, series
from .runs import Floats
from .table import METRIC_TITLES

SHADES = LinearSegmentedColormap.from_list("shades", ["#f4f7fb", "#9cc3e4", "#2f74b5", "#0b2f5c"])
UNITS = {"js": ", bits"}


def counts(axes: Axes, bins: Bins) -> None:
    """How many utterances each bin of ambiguity holds."""
    axes.bar(bins.centres, bins.counts, width=0.85 * np.diff(bins.edges), color=LINE, edgecolor=MUTED, linewidth=0.7)
    for x, count in zip(bins.centres, bins.counts, strict=True):
        axes.annotate(str(count), (x, count), ha="center", va="bottom", fontsize=7, color=INK)
    axes.set(xlabel="ambiguity, bits", ylabel="utterances")
    axes.set_xticks(bins.edges, [f"{edge:.2f}" for edge in bins.edges])
    axes.margins(y=0.15)


def scores(axes: Axes, metric: str, bins: Bins, systems: Sequence[Mapping[str, Floats]]) -> None:
    """One metric by ambiguity: a line for each system, mean ± sd over its seeds (seeds, bins)."""
    for k, found in enumerate(systems):
        mean = found[metric].mean(0)
        axes.plot(bins.centres, mean, label=str(k), **series(k))
        if len(found[metric]) > 1:
            sd = found[metric].std(0, ddof=1)
            axes.fill_between(bins.centres, mean - sd, mean + sd, color=SERIES[k % len(SERIES)], alpha=0.2, linewidth=0)
    axes.set(xlabel="ambiguity, bits", ylabel=METRIC_TITLES[metric].rstrip(" ↓↑") + UNITS.get(metric, ""))
    axes.set_xticks(bins.edges, [f"{edge:.2f}" for edge in bins.edges])


def curve(axes: Axes, found: Curve, label: str, k: int) -> None:
    """Dev JS by epoch, mean ± sd; a mark where runs keep their weights, larger where more do."""
    epochs, style = np.arange(1, len(found.mean) + 1), series(k)
    axes.fill_between(
        epochs, found.mean - found.sd, found.mean + found.sd, color=style["color"], alpha=0.15, linewidth=0
    )
    share = found.kept / max(1, int(found.kept.sum()))
    axes.plot(epochs, found.mean, label=label, **{**style, "marker": ""})
    kept = np.flatnonzero(found.kept)
    axes.scatter(
        epochs[kept], found.mean[kept], s=8 + 60 * share[kept], color=style["color"], marker=style["marker"], zorder=3
    )


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


def entropy(axes: Axes, rated: Floats, predicted: Floats, limit: float, label: str, k: int) -> None:
    """Mean predicted entropy with the middle half of utterances, in ten bins of rater entropy."""
    edges = np.linspace(0, limit, 11)
    member = np.minimum(np.searchsorted(edges[1:-1], rated, side="right"), 9)
    filled = [b for b in range(10) if np.count_nonzero(member == b) > 1]
    centre = (edges[1:] + edges[:-1])[filled] / 2
    low, high = np.array([np.quantile(predicted[member == b], [0.25, 0.75]) for b in filled]).reshape(-1, 2).T
    axes.fill_between(centre, low, high, color=SERIES[k % len(SERIES)], alpha=0.15, linewidth=0)
    axes.plot(centre, [predicted[member == b].mean() for b in filled], label=label, **series(k))


def group_means(
    axes: Axes,
    members: Sequence[npt.NDArray[np.intp]],
    names: Sequence[str],
    lines: Mapping[str, Floats],
    *,
    apart: bool,
) -> None:
    """Means over groups of utterances, one line each, or marks where the groups stand `apart` in no order.

    NaN is left out of a mean.
    """
    for k, (label, values) in enumerate(lines.items()):
        known = [values[rows][~np.isnan(values[rows])] for rows in members]
        means = [float(some.mean()) if len(some) else np.nan for some in known]
        shift = 0.1 * (k - (len(lines) - 1) / 2) if apart else 0.0
        style = {**series(k), **({"linestyle": ""} if apart else {})}
        axes.plot(np.arange(len(members)) + shift, means, label=label, **style)
    axes.set_xticks(range(len(names)), names, rotation=30 if max(map(len, names)) > 6 else 0)
