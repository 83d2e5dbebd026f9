"""From a group of runs to its figures, each a `Drawing`: what Figure 2 of the paper shows, and what lies behind it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from amber2_core import distributions
from amber2_core.metrics import METRICS
from amber2_core.tables import Texts

from . import analysis
from .drawing import (
    MUTED,
    Drawing,
    bin_counts,
    bin_scores,
    canvas,
    curve,
    drawing,
    entropies,
    group_means,
    heat_map,
    house_style,
    legend,
    series,
)
from .groups import Group, slugs
from .runs import Floats
from .table import title_of

# the paper's Figure 2, then the rest
PAPER_METRICS = ("js", "bc", "r2", "accuracy", "weighted_f1", "macro_f1")
# beyond that many lines a figure cannot be read
OVERLAID = 6
CONFUSIONS = 3
CURVES = 3


def figures(group: Group, speaker: Texts) -> dict[str, list[Drawing]]:
    """Everything that can be drawn of a group, by the part of the page; `whole` is Figure 2 of the paper in one.

    Args:
        group: runs with one test set.
        speaker: (N,) of the test utterances, "": unknown.
    """
    with house_style():
        return {
            **ambiguity_figures(group),
            "confusions": confusion_figures(group),
            "calibration": calibration_figures(group),
            "modalities": modality_figures(group),
            "spread": spread_figures(group, speaker),
            "grid": grid_figures(group),
            "training": training_figures(group),
        }


def ambiguity_figures(group: Group) -> dict[str, list[Drawing]]:
    """Figure 2 as one file, its panels for the page, and the panels of the other metrics."""
    bins = analysis.bins_of(group)
    shown = group.mains[:OVERLAID]
    scores = [analysis.scores_by_bin(group, entry, bins) for entry in shown]
    labels = [entry.label for entry in shown]
    figure, axes = canvas(2, 4, (2.7, 2.3))
    bin_counts(axes[0], bins.edges, bins.counts)
    axes[0].set_title("utterances")
    for place, metric in zip((1, 2, 3, 5, 6, 7), PAPER_METRICS, strict=True):
        _draw_scores(axes[place], metric, bins, scores)
        axes[place].set_title(title_of(metric))
    axes[4].axis("off")
    handles, _ = axes[1].get_legend_handles_labels()
    axes[4].legend(handles, labels, loc="center")
    whole = drawing(figure, "ambiguity", "Scores by ambiguity of the raters", page=False)
    shown_panels = [_counts_panel(bins), *(_metric_panel(metric, bins, scores, labels) for metric in PAPER_METRICS)]
    rest = [_metric_panel(metric, bins, scores, labels) for metric in METRICS if metric not in PAPER_METRICS]
    return {"whole": [whole], "ambiguity": shown_panels, "other_metrics": rest}


def confusion_figures(group: Group) -> list[Drawing]:
    """The confusion of the predicted class, and of the votes, of every system's main head."""
    drawings = []
    for entry in group.mains[:CONFUSIONS]:
        for kind, shares, title, axis in (
            ("confusion", analysis.confusion_shares(group, entry), "label and predicted class", "predicted class"),
            ("votes", analysis.vote_shares(group, entry), "votes and predicted shares", "predicted share"),
        ):
            size = max(2.6, 0.45 * len(shares) + 1.0)
            figure, (axes,) = canvas(size=(size + 0.3, size))
            emotions = group.predictions.emotions
            heat_map(axes, shares, emotions, emotions, [[f"{x:.0%}"[:-1] for x in row] for row in shares], (0, 1))
            axes.set(xlabel=f"{axis}, %", ylabel="label" if kind == "confusion" else "votes for")
            axes.tick_params(axis="x", rotation=45)
            name = f"{kind}-{group.slugs[entry.label]}"
            drawings.append(drawing(figure, name, f"{entry.label}: {title}"))
    return drawings


def calibration_figures(group: Group) -> list[Drawing]:
    """Reliability, and predicted against rater entropy, all systems overlaid."""
    drawings: list[Drawing] = []
    axis: dict[str, Any] = {"xlabel": "confidence of the predicted class", "ylabel": "accuracy", "ylim": (0, 1)}
    with _panel(drawings, "reliability", "Reliability of the predicted class", "upper left", **axis) as axes:
        axes.set_xlim(0, 1)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
        for k, entry in enumerate(group.mains[:OVERLAID]):
            confidence, accuracy, _ = analysis.reliability(group, entry)
            axes.plot(confidence, accuracy, label=entry.label, **series(k))
    axis = {"xlabel": "entropy of the raters, bits", "ylabel": "entropy of the prediction, bits", "ylim": (0, None)}
    with _panel(drawings, "entropy", "Predicted against rater entropy", **axis) as axes:
        limit = float(np.log2(len(group.predictions.emotions)))
        axes.plot([0, limit], [0, limit], color=MUTED, linewidth=0.8)
        for k, entry in enumerate(group.mains[:OVERLAID]):
            entropies(axes, *analysis.entropies(group, entry), limit, entry.label, k)
    return drawings


def modality_figures(group: Group) -> list[Drawing]:
    """Expert weight u and disagreement of the modalities, by class and by ambiguity."""
    bins, drawings = analysis.bins_of(group), list[Drawing]()
    edges = [f"{low:.1f}–{high:.1f}" for low, high in itertools.pairwise(bins.edges)]
    weighted = [(main, u) for main in group.mains if (u := analysis.expert_weights(group, main)) is not None]
    conflict = {main.label: analysis.disagreement(group, main) for main in group.mains[:OVERLAID]}
    lines = {label: values for label, values in conflict.items() if values is not None}
    for member, names, kind, xlabel in (
        (distributions.label(group.predictions.target), group.predictions.emotions, "class", "label"),
        (bins.member, edges, "bin", "ambiguity, bits"),
    ):
        for main, weights in weighted[:1]:
            title, axis = f"{main.label}: weight of each expert by {kind}", {"ylabel": "expert weight u"}
            with _panel(drawings, f"experts-{kind}", title, xlabel=xlabel, ylim=(0, 1), **axis) as axes:
                group_means(axes, member, names, weights, apart=kind == "class")
        if lines:
            title, axis = f"Disagreement of the modalities by {kind}", {"ylabel": "JS between heads, bits"}
            with _panel(drawings, f"conflict-{kind}", title, xlabel=xlabel, ylim=(0, None), **axis) as axes:
                group_means(axes, member, names, lines, apart=kind == "class")
    return drawings


def spread_figures(group: Group, speaker: Texts) -> list[Drawing]:
    """JS by fold and by speaker."""
    shown, folds, drawings = group.mains[:OVERLAID], list(group.predictions.folds), list[Drawing]()
    axis = {"xlabel": "test fold", "ylabel": "JS, bits (each mark a seed)"}
    with _panel(drawings, "spread-folds", "JS by fold and seed", **axis) as axes:
        for k, entry in enumerate(shown):
            places = np.searchsorted(folds, entry.tested["fold"]) + 0.16 * (k - (len(shown) - 1) / 2)
            axes.plot(places, entry.tested["js"], label=entry.label, **{**series(k), "linestyle": ""})
        axes.set_xticks(range(len(folds)), [str(fold) for fold in folds])
    if any(speaker):
        axis = {"xlabel": "speakers, from the best predicted to the worst", "ylabel": "JS, bits"}
        with _panel(drawings, "spread-speakers", "JS by speaker", "upper left", **axis) as axes:
            for k, entry in enumerate(shown):
                means = analysis.speaker_scores(group, entry, speaker)
                axes.plot(np.arange(1, len(means) + 1), means, label=entry.label, **{**series(k), "markersize": 2.5})
    return drawings


def grid_figures(group: Group) -> list[Drawing]:
    """Dev JS over λ_MAI × κ of every system that has such a grid; how many folds chose a point is in brackets."""
    drawings = []
    for main in group.mains:
        found = analysis.grid_map(main)
        if found is None or not np.isfinite(found[0]).any(axis=None):
            continue
        js, chosen = found[0].to_numpy(), found[1].to_numpy()
        words = [
            [f"{x:.4f}" + (f"\nchosen {n}×" if n else "") for x, n in zip(*row, strict=True)]
            for row in zip(js, chosen, strict=True)
        ]
        lambdas, kappas = ([f"{x:g}" for x in axis] for axis in (found[0].index, found[0].columns))
        figure, (axes,) = canvas(size=(0.9 * len(kappas) + 1.2, 0.55 * len(lambdas) + 0.9))
        heat_map(axes, js, kappas, lambdas, words, (float(np.nanmin(js)), float(np.nanmax(js))))
        axes.set(xlabel="κ", ylabel="λ_MAI")
        drawings.append(drawing(figure, f"grid-{group.slugs[main.label]}", f"{main.label}: JS on dev, bits"))
    return drawings


def training_figures(group: Group) -> list[Drawing]:
    """Dev JS by epoch: the main heads overlaid, then all heads of each system; none for runs without curves."""
    drawings: list[Drawing] = []
    plots = [("training", "JS on dev by epoch", {entry.label: entry for entry in group.mains[:OVERLAID]})]
    names = slugs(main.label.removesuffix(f" {main.head}") for main in group.mains)
    for main in group.mains[:CURVES]:
        if len(own := group.heads(main)) > 1:
            system = main.label.removesuffix(f" {main.head}")
            plots.append((f"training-{names[system]}", f"{system}: JS on dev by epoch, every head", own))
    for name, title, entries in plots:
        found = {label: analysis.training_curve(entry) for label, entry in entries.items()}
        curves = {label: some for label, some in found.items() if some is not None}
        if curves:
            with _panel(drawings, name, title, xlabel="epoch", ylabel="JS on dev, bits") as axes:
                for k, (label, some) in enumerate(curves.items()):
                    curve(axes, some, label, k)
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return drawings


@contextmanager
def _panel(found: list[Drawing], name: str, title: str, loc: str = "best", **axis: Any) -> Iterator[Axes]:
    """Axes to draw named lines on; with the labels and limits of `axis` they are one more of the drawings `found`."""
    figure, (axes,) = canvas()
    yield axes
    axes.set(**axis)
    legend(axes, loc)
    found.append(drawing(figure, name, title))


def _counts_panel(bins: analysis.Bins) -> Drawing:
    figure, (axes,) = canvas()
    bin_counts(axes, bins.edges, bins.counts)
    return drawing(figure, "ambiguity-counts", "Utterances by ambiguity", paper=False)


def _metric_panel(
    metric: str, bins: analysis.Bins, scores: Sequence[Mapping[str, Floats]], labels: Sequence[str]
) -> Drawing:
    figure, (axes,) = canvas()
    _draw_scores(axes, metric, bins, scores)
    legend(axes, labels=labels)
    name = f"ambiguity-{metric.replace('_', '-')}"
    return drawing(figure, name, f"{title_of(metric)} by ambiguity", paper=False)


def _draw_scores(axes: Axes, metric: str, bins: analysis.Bins, scores: Sequence[Mapping[str, Floats]]) -> None:
    unit = ", bits" if metric == "js" else ""
    bin_scores(axes, bins.edges, [found[metric] for found in scores], title_of(metric).rstrip(" ↓↑") + unit)
