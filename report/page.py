"""From groups of runs, their tables, figures and utterances to one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from .corpus_facts import CorpusFacts
from .figures import Figures
from .groups import Group
from .settings import run_settings
from .significance import Comparison
from .table import METRIC_TITLES, Interval, Number, PValue, Table, number_text

HERE = Path(__file__).parent
HEADLINES = 4


@dataclass(frozen=True)
class Chapter:
    """All of one group of runs."""

    title: str
    group: Group
    facts: CorpusFacts
    results: Sequence[Table]
    published: Table
    folds: Table
    ambiguity: Table
    ablation: Table | None
    settings: Sequence[Table]
    comparisons: Sequence[Comparison]
    significance: Table | None
    figures: Figures
    utterances: str  # JSON for a script element
    notes: Sequence[str] = ()

    @property
    def tables(self) -> list[Table]:
        """Every table, for files of their own."""
        sometimes = [table for table in (self.significance, self.ablation) if table is not None]
        return [*self.results, self.published, *sometimes, self.folds, self.ambiguity, *self.settings]

    @property
    def headline(self) -> list[str]:
        """The first system against the others, or else against its own other heads, in words."""
        lines = []
        systems = {entry.label for entry in self.group.mains}
        found = [c for c in self.comparisons if c.metric == "js"]
        for c in ([c for c in found if c.second in systems] or found)[:HEADLINES]:
            verdict = "lower" if c.difference < 0 else "higher"
            sure = "" if c.p_holm < 0.05 else "; the difference could be chance"
            lines.append(
                f"JS of {c.first} is {number_text(abs(c.difference), 4)} {verdict} than that of {c.second} "
                f"(95 % interval {number_text(c.low, 4, True)} to {number_text(c.high, 4, True)}, "
                f"p\N{NO-BREAK SPACE}{_equals(PValue(c.p_holm).text)}{sure})."
            )
        return lines

    @property
    def facts_of_runs(self) -> list[tuple[str, str, Mapping[str, Any]]]:
        """Of every run: its name, its command line and its settings."""
        runs = self.group.runs
        return [(run.name, " ".join(map(str, run.settings.get("command") or ())), _plain(run.settings)) for run in runs]

    @property
    def differing_settings(self) -> dict[str, list[str]]:
        """What sets the runs of this group apart."""
        return run_settings(self.group.runs) if len(self.group.runs) > 1 else {}


def page(chapters: Sequence[Chapter], title: str, notes: Sequence[str] = ()) -> str:
    """The page as HTML; every text of a corpus or a run is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.tests |= {
        "number": lambda cell: isinstance(cell, Number),
        "interval": lambda cell: isinstance(cell, Interval),
        "p_value": lambda cell: isinstance(cell, PValue),
    }
    return environment.get_template("page.html").render(
        chapters=chapters,
        title=title,
        notes=notes,
        metric_titles=METRIC_TITLES,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
    )


def _equals(p: str) -> str:
    """`< 0.001` as it is, `0.041` as `= 0.041`, never at the end of a line."""
    return (p if p.startswith("<") else f"= {p}").replace(" ", "\N{NO-BREAK SPACE}")


def _plain(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings in words, one line each, those that are records of records left out."""
    words = {}
    for name in ("created", "corpus", "cache", "emotions", "systems", "seeds", "epochs", "inputs", "missing", "device"):
        if name in settings:
            value = settings[name]
            words[name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    for name in ("utterances", "policy", "grid", "versions"):
        if isinstance(settings.get(name), Mapping):
            words[name] = "; ".join(f"{key}: {_words(value)}" for key, value in settings[name].items())
    for modality, features in (settings.get("features") or {}).items():
        words[f"{modality} features"] = f"{features.get('name')} ({str(features.get('fingerprint'))[:12]})"
    folds = settings.get("folds") or {}
    if folds:
        words["folds"] = f"{len(folds.get('sizes') or ())} by {folds.get('protocol')}"
    return words


def _words(value: Any) -> str:
    match value:
        case Mapping():
            return ", ".join(f"{key} {inner}" for key, inner in value.items()) or "none"
        case list():
            return ", ".join(map(str, value)) or "none"
        case _:
            return str(value)
