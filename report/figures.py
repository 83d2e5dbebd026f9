"""From a group of runs to its figures, each a `Drawing`: what Figure 2 of the paper shows, and what lies behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from .groups import Group, slug
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
            name = f"{kind}-{slug(entry.label)}"
            drawings.append(drawing(figure, name, f"{entry.label}: {title}"))
    return drawings


def calibration_figures(group: Group) -> list[Drawing]:
    """Reliability, and predicted against rater entropy, all systems overlaid."""
    shown = group.mains[:OVERLAID]
    figure, (axes,) = canvas()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    for k, entry in enumerate(shown):
        confidence, accuracy, _ = analysis.reliability(group, entry)
        axes.plot(confidence, accuracy, label=entry.label, **series(k))
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence of the predicted class", ylabel="accuracy")
    legend(axes, "upper left")
    reliable = drawing(figure, "reliability", "Reliability of the predicted class")
    figure, (axes,) = canvas()
    limit = float(np.log2(len(group.predictions.emotions)))
    axes.plot([0, limit], [0, limit], color=MUTED, linewidth=0.8)
    for k, entry in enumerate(shown):
        entropies(axes, *analysis.entropies(group, entry), limit, entry.label, k)
    axes.set(xlabel="entropy of the raters, bits", ylabel="entropy of the prediction, bits", ylim=(0, None))
    legend(axes)
    return [reliable, drawing(figure, "entropy", "Predicted against rater entropy")]


def modality_figures(group: Group) -> list[Drawing]:
    """Expert weight u and disagreement of the modalities, by class and by ambiguity."""
    bins, emotions = analysis.bins_of(group), group.predictions.emotions
    labels = distributions.label(group.predictions.target)
    by_class = [np.flatnonzero(labels == c) for c in range(len(emotions))]
    by_bin = [np.flatnonzero(bins.member == b) for b in range(len(bins.counts))]
    places = ((by_class, list(emotions), "class", "label"), (by_bin, _bin_names(bins), "bin", "ambiguity, bits"))
    drawings = []
    weighted = next(((m, u) for m in group.mains if (u := analysis.expert_weights(group, m)) is not None), None)
    conflict = {
        entry.label: values
        for entry in group.mains[:OVERLAID]
        if (values := analysis.disagreement(group, entry)) is not None
    }
    for members, names, kind, axis in places:
        plots: list[tuple[str, str, str, Mapping[str, Floats], float | None]] = []
        if weighted is not None:
            main, weights = weighted
            plots.append(("experts", f"{main.label}: weight of each expert", "expert weight u", weights, 1))
        if conflict:
            plots.append(("conflict", "Disagreement of the modalities", "JS between heads, bits", conflict, None))
        for name, title, ylabel, lines, top in plots:
            figure, (axes,) = canvas()
            group_means(axes, members, names, lines, apart=kind == "class")
            axes.set(xlabel=axis, ylabel=ylabel, ylim=(0, top))
            legend(axes)
            drawings.append(drawing(figure, f"{name}-{kind}", f"{title} by {kind}"))
    return drawings


def spread_figures(group: Group, speaker: Texts) -> list[Drawing]:
    """JS by fold and by speaker."""
    shown = group.mains[:OVERLAID]
    figure, (axes,) = canvas()
    folds = list(group.predictions.folds)
    for k, entry in enumerate(shown):
        places = np.searchsorted(folds, entry.tested["fold"]) + 0.16 * (k - (len(shown) - 1) / 2)
        axes.plot(places, entry.tested["js"], label=entry.label, **{**series(k), "linestyle": ""})
    axes.set(xlabel="test fold", ylabel="JS, bits (each mark a seed)")
    axes.set_xticks(range(len(folds)), [str(fold) for fold in folds])
    legend(axes)
    drawings = [drawing(figure, "spread-folds", "JS by fold and seed")]
    if any(speaker):
        figure, (axes,) = canvas()
        for k, entry in enumerate(shown):
            means = analysis.speaker_scores(group, entry, speaker)
            axes.plot(np.arange(1, len(means) + 1), means, label=entry.label, **{**series(k), "markersize": 2.5})
        axes.set(xlabel="speakers, from the best predicted to the worst", ylabel="JS, bits")
        legend(axes, "upper left")
        drawings.append(drawing(figure, "spread-speakers", "JS by speaker"))
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
        drawings.append(drawing(figure, f"grid-{slug(main.label)}", f"{main.label}: JS on dev, bits"))
    return drawings


def training_figures(group: Group) -> list[Drawing]:
    """Dev JS by epoch: the main heads overlaid, then all heads of each system; none for runs without curves."""
    drawings = []
    lines = {entry.label: entry for entry in group.mains[:OVERLAID]}
    plots = [("training", "JS on dev by epoch", lines)]
    for main in group.mains[:CURVES]:
        own = {entry.head: entry for entry in group.heads(main).values()}
        if len(own) > 1:
            system = main.label.removesuffix(f" {main.head}")
            plots.append((f"training-{slug(system)}", f"{system}: JS on dev by epoch, every head", own))
    for name, title, entries in plots:
        curves = {
            label: found for label, entry in entries.items() if (found := analysis.training_curve(entry)) is not None
        }
        if not curves:
            continue
        figure, (axes,) = canvas()
        for k, (label, found) in enumerate(curves.items()):
            curve(axes, found, label, k)
        axes.set(xlabel="epoch", ylabel="JS on dev, bits")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
        drawings.append(drawing(figure, name, title))
    return drawings


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
    return drawing(
        figure,
        f"ambiguity-{metric.replace('_', '-')}",
        f"{title_of(metric)} by ambiguity",
        paper=False,
    )


def _draw_scores(axes: Axes, metric: str, bins: analysis.Bins, scores: Sequence[Mapping[str, Floats]]) -> None:
    unit = ", bits" if metric == "js" else ""
    bin_scores(axes, bins.edges, [found[metric] for found in scores], title_of(metric).rstrip(" ↓↑") + unit)


def _bin_names(bins: analysis.Bins) -> list[str]:
    return [f"{low:.1f}–{high:.1f}" for low, high in zip(bins.edges[:-1], bins.edges[1:], strict=True)]
