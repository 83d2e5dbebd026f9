"""From a group of runs to its figures, each a `Drawing`: what Figure 2 of the paper shows, and what lies behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from amber2_core import distributions
from amber2_core.metrics import METRICS

from . import analysis, panels
from .corpus_facts import CorpusFacts
from .drawing import MUTED, Drawing, canvas, drawing, house_style, legend, series
from .groups import Group, slug
from .runs import Floats
from .table import METRIC_TITLES

# the paper's Figure 2, then the rest
PAPER_METRICS = ("js", "bc", "r2", "accuracy", "weighted_f1", "macro_f1")
# beyond that many lines a figure cannot be read
OVERLAID = 6
CONFUSIONS = 3
CURVES = 3


@dataclass(frozen=True)
class Figures:
    """All figures of a group, by what they show."""

    paper_figure: Drawing  # Figure 2 of the paper, whole
    ambiguity: Sequence[Drawing]  # its panels
    other_metrics: Sequence[Drawing]  # the same of the other metrics
    confusions: Sequence[Drawing]
    calibration: Sequence[Drawing]
    modalities: Sequence[Drawing]
    spread: Sequence[Drawing]
    grid: Sequence[Drawing]
    training: Sequence[Drawing]
    overlaid: int = OVERLAID  # systems at most

    @property
    def for_paper(self) -> list[Drawing]:
        """Those that have files of their own."""
        parts = (self.confusions, self.calibration, self.modalities, self.spread, self.grid, self.training)
        every = [self.paper_figure, *(drawing for part in parts for drawing in part)]
        return [drawing for drawing in every if drawing.pdf]


def figures(group: Group, facts: CorpusFacts) -> Figures:
    """Draw everything that a group has."""
    with house_style():
        return Figures(
            *ambiguity_figures(group),
            confusions=confusion_figures(group),
            calibration=calibration_figures(group),
            modalities=modality_figures(group),
            spread=spread_figures(group, facts),
            grid=grid_figures(group),
            training=training_figures(group),
        )


def ambiguity_figures(group: Group) -> tuple[Drawing, list[Drawing], list[Drawing]]:
    """Figure 2 as one file, its panels for the page, and the panels of the other metrics."""
    bins = analysis.bins_of(group)
    shown = group.mains[:OVERLAID]
    scores = [analysis.scores_by_bin(group, entry, bins) for entry in shown]
    labels = [entry.label for entry in shown]
    figure, axes = canvas(2, 4, (2.7, 2.3))
    panels.counts(axes[0], bins)
    axes[0].set_title("utterances")
    for place, metric in zip((1, 2, 3, 5, 6, 7), PAPER_METRICS, strict=True):
        panels.scores(axes[place], metric, bins, scores)
        axes[place].set_title(METRIC_TITLES[metric])
    axes[4].axis("off")
    handles, _ = axes[1].get_legend_handles_labels()
    axes[4].legend(handles, labels, loc="center")
    whole = drawing(figure, "ambiguity", "Scores by ambiguity of the raters", page=False)
    shown_panels = [_counts_panel(bins), *(_metric_panel(metric, bins, scores, labels) for metric in PAPER_METRICS)]
    rest = [_metric_panel(metric, bins, scores, labels) for metric in METRICS if metric not in PAPER_METRICS]
    return whole, shown_panels, rest


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
            panels.heat_map(
                axes, shares, emotions, emotions, [[f"{x:.0%}"[:-1] for x in row] for row in shares], (0, 1)
            )
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
        panels.entropy(axes, *analysis.entropies(group, entry), limit, entry.label, k)
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
            panels.group_means(axes, members, names, lines, apart=kind == "class")
            axes.set(xlabel=axis, ylabel=ylabel, ylim=(0, top))
            legend(axes)
            drawings.append(drawing(figure, f"{name}-{kind}", f"{title} by {kind}"))
    return drawings


def spread_figures(group: Group, facts: CorpusFacts) -> list[Drawing]:
    """JS by fold and by speaker."""
    shown = group.mains[:OVERLAID]
    figure, (axes,) = canvas()
    folds = sorted(set(group.predictions.fold.tolist()))
    for k, entry in enumerate(shown):
        of_fold = [[float(row["js"]) for row in entry.tested if row["fold"] == fold] for fold in folds]
        shift = 0.16 * (k - (len(shown) - 1) / 2)
        style = {**series(k), "linestyle": ""}
        for place, values in enumerate(of_fold):
            where = np.full(len(values), place + shift)
            axes.plot(where, values, label=entry.label if not place else None, **style)
    axes.set(xlabel="test fold", ylabel="JS, bits (each mark a seed)")
    axes.set_xticks(range(len(folds)), [str(fold) for fold in folds])
    legend(axes)
    drawings = [drawing(figure, "spread-folds", "JS by fold and seed")]
    if any(facts.speaker):
        figure, (axes,) = canvas()
        for k, entry in enumerate(shown):
            _, means = analysis.speaker_scores(group, entry, facts.speaker)
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
        if found is None or not np.isfinite(found.js).any():
            continue
        words = [
            [f"{x:.4f}" + (f"\nchosen {n}×" if n else "") for x, n in zip(*row, strict=True)]
            for row in zip(found.js, found.chosen, strict=True)
        ]
        figure, (axes,) = canvas(size=(0.9 * len(found.kappa) + 1.2, 0.55 * len(found.lambda_mai) + 0.9))
        span = (float(np.nanmin(found.js)), float(np.nanmax(found.js)))
        panels.heat_map(
            axes, found.js, [f"{x:g}" for x in found.kappa], [f"{x:g}" for x in found.lambda_mai], words, span
        )
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
        curves = {label: found for label, entry in entries.items() if (found := analysis.training_curve(entry))}
        if not curves:
            continue
        figure, (axes,) = canvas()
        for k, (label, found) in enumerate(curves.items()):
            panels.curve(axes, found, label, k)
        axes.set(xlabel="epoch", ylabel="JS on dev, bits")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
        drawings.append(drawing(figure, name, title))
    return drawings


def _counts_panel(bins: analysis.Bins) -> Drawing:
    figure, (axes,) = canvas()
    panels.counts(axes, bins)
    return drawing(figure, "ambiguity-counts", "Utterances by ambiguity", paper=False)


def _metric_panel(
    metric: str, bins: analysis.Bins, scores: Sequence[Mapping[str, Floats]], labels: Sequence[str]
) -> Drawing:
    figure, (axes,) = canvas()
    panels.scores(axes, metric, bins, scores)
    legend(axes, labels=labels)
    return drawing(
        figure, f"ambiguity-{metric.replace('_', '-')}", f"{METRIC_TITLES[metric]} by ambiguity", paper=False
    )


def _bin_names(bins: analysis.Bins) -> list[str]:
    return [f"{low:.1f}–{high:.1f}" for low, high in zip(bins.edges[:-1], bins.edges[1:], strict=True)]
