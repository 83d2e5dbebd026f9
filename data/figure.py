"""The record of a checked corpus → a picture of its labels, ambiguity, raters and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amber2_core.errors import SettingError, bad_choice

SUFFIXES = (".png", ".pdf", ".svg")
BLUE = "#3465a4"


def check_figure_path(path: Path) -> None:
    """Refuse a name that no picture can have, before the work begins.

    Raises:
        SettingError: of another suffix, or in a folder that does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise SettingError(f"{bad_choice('figure suffix', path.suffix, SUFFIXES)}: {path}")
    if not path.absolute().parent.is_dir():
        raise SettingError(f"Cannot write {path}: there is no folder {path.parent}")


def draw(record: Mapping[str, Any], seconds: Sequence[float], path: Path) -> None:
    """Write the picture: majority labels, entropies of the labels in bits, raters per utterance, lengths in seconds.

    Raises:
        SettingError: it cannot be written.
    """
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots(2, 2)
    title = f"{record['corpus']} {record['version']}".strip()
    figure.suptitle(f"{title}: {record['utterances']:,} utterances, {record['kept']:,} kept, {record['hours']:.1f} h")
    emotions = record["emotions"]
    _bars(axes[0, 0], list(emotions), list(emotions.values()), "largest share of the votes")
    if "ambiguity" in record:
        edges, counts = record["ambiguity"]["bin_edges"], record["ambiguity"]["counts"]
        axes[0, 1].bar(edges[:-1], counts, width=edges[1] - edges[0], align="edge", color=BLUE, edgecolor="white")
    _name(axes[0, 1], "entropy of the label (bits)")
    raters = record["raters"]
    _bars(axes[1, 0], list(raters), list(raters.values()), "raters per utterance")
    axes[1, 1].hist(seconds, bins=50, color=BLUE)
    _name(axes[1, 1], "length (s)")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise SettingError(f"Cannot write {path}: {error.strerror or error}") from None


def _bars(axes: Axes, names: list[str], counts: list[int], what: str) -> None:
    axes.bar(range(len(names)), counts, color=BLUE)
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 4 else 0)
    _name(axes, what)


def _name(axes: Axes, what: str) -> None:
    axes.set_xlabel(what)
    axes.set_ylabel("utterances")
    axes.spines[["top", "right"]].set_visible(False)
