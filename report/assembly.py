"""Run folders go in; a folder with the page, tables and figures comes out, complete or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amber2_core.errors import RunFolderError
from amber2_core.run_folder import new_run_folder

from .bootstrap import DRAWS, Clusters, smallest_p, speaker_clusters
from .corpus_facts import CorpusFacts, corpus_facts
from .figures import figures
from .groups import Group, grouped, slug
from .page import Chapter, page
from .runs import read_run
from .significance import compare
from .table import csv_text, latex_text, markdown_text
from .tables import (
    ablation_table,
    ambiguity_table,
    fold_table,
    published_table,
    result_tables,
    setting_tables,
    significance_table,
)
from .utterances import Recordings, interesting_rows, read_recordings, script_json, shown_rows, utterance_record

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioRequest:
    """Which recordings go into the page."""

    # None: AMBER2_<CORPUS>_ROOT, else ./corpora/<corpus>
    root: Path | None = None
    # of the first rows of each preset
    count: int = 100


@dataclass(frozen=True)
class Report:
    """A finished report."""

    folder: Path
    chapters: Sequence[Chapter]

    @property
    def page(self) -> Path:
        return self.folder / "report.html"


@dataclass(frozen=True)
class Options:
    """What may be chosen."""

    # where caches lie now, if not where the runs remember
    caches: Sequence[Path] = field(default_factory=tuple)
    # None: no recording is part of the page
    audio: AudioRequest | None = None
    draws: int = DRAWS


def write_report(runs: Sequence[Path], output: Path, options: Options | None = None) -> Report:
    """Write `report.html`, `tables/` and `figures/` of one or several run folders.

    Raises:
        RunFolderError: a run folder is named twice, or is not one, or `output` exists.
        OSError: the report cannot be written.
    """
    options = options or Options()
    twice = [run for k, run in enumerate(runs) if run.resolve() in {other.resolve() for other in runs[:k]}]
    if twice:
        raise RunFolderError(f"{twice[0]} is named twice: name each run folder once")
    groups = grouped([read_run(run) for run in runs])
    with new_run_folder(output) as folder:
        chapters = [chapter(group, options, first=k == 0) for k, group in enumerate(groups)]
        for kind in ("tables", "figures"):
            (folder / kind).mkdir()
        for k, one in enumerate(chapters):
            _write_files(folder, one, "" if len(chapters) == 1 else f"{k + 1}-{slug(one.title)}-")
        notes = []
        if len(groups) > 1:
            notes.append(
                "These runs were not tested on the same utterances with the same targets and folds: each test set has "
                "a chapter of its own, and nothing is compared across them."
            )
        title = "Emotion recognition: " + ", ".join(dict.fromkeys(one.group.corpus or "?" for one in chapters))
        (folder / "report.html").write_text(page(chapters, title, notes), encoding="utf-8")
    return Report(output, chapters)


def chapter(group: Group, options: Options, *, first: bool) -> Chapter:
    """Everything about runs with one test set."""
    names = ", ".join(run.name for run in group.runs)
    facts = corpus_facts(group, options.caches)
    if facts.missing:
        _log.warning("%s: %s", names, facts.missing)
    clusters = speaker_clusters(group.predictions.fold, facts.speaker)
    comparisons = compare(group, clusters, draws=options.draws)
    _log.info("%s: %d comparisons, drawing figures", names, len(comparisons))
    recordings = _recordings(group, facts, options.audio) if options.audio else None
    return Chapter(
        title=f"{group.corpus}: {names}",
        group=group,
        facts=facts,
        results=result_tables(group),
        published=published_table(group),
        folds=fold_table(group),
        ambiguity=ambiguity_table(group),
        ablation=ablation_table(group),
        settings=setting_tables(group),
        comparisons=comparisons,
        significance=significance_table(comparisons, words(clusters, options.draws)) if comparisons else None,
        figures=figures(group, facts),
        utterances=script_json(utterance_record(group, facts, recordings)),
        notes=_notes(group, recordings),
    )


def words(clusters: Clusters, draws: int) -> str:
    """What was tested, in words."""
    count = sum(clusters.sizes)
    drawn = (
        f"the {count} speakers" if clusters.by_speaker else f"the {count} utterances, since their speakers are unknown,"
    )
    text = (
        "Difference of the scores in the tables above, averaged over seeds and folds. Tested is whether it is 0 for "
        f"other speakers like these: paired bootstrap, {draws:,} draws of {drawn} with replacement within each test "
        "fold, both systems on the same draws; the heads are not trained again. Intervals are percentile intervals "
        f"widened for the number of speakers (Student's t, {clusters.freedom} degrees of freedom); p is two-sided. "
        "Holm's correction is over the comparisons of one metric, not over metrics. Seeds that agree: share of seeds "
        "whose own difference has the same sign."
    )
    if clusters.by_speaker and clusters.freedom < 15:
        text += f" With {count} speakers intervals are wide, and no p can fall below {smallest_p(clusters, draws):.3f}."
    return text if clusters.by_speaker else text.replace("other speakers like these", "other utterances like these")


def _notes(group: Group, recordings: Recordings | None) -> list[str]:
    """What the reader of the table of utterances must know."""
    notes = [recordings.note] if recordings else []
    shown, count = len(shown_rows(group)), len(group.predictions.id)
    if shown < count:
        notes.append(f"The table holds {shown:,} of {count:,} utterances: those that any preset shows first.")
    return notes


def _recordings(group: Group, facts: CorpusFacts, request: AudioRequest) -> Recordings:
    variable = f"AMBER2_{slug(group.corpus).replace('-', '_').upper()}_ROOT"
    root = request.root or Path(os.environ.get(variable) or Path("corpora") / group.corpus)
    root = root.expanduser()
    if not root.exists():
        raise RunFolderError(f"No recordings at {root}: name the root of the corpus with --root, or set {variable}")
    recordings = read_recordings(
        root if root.is_dir() else root.parent, list(facts.audio[interesting_rows(group, request.count)])
    )
    _log.info("%s", recordings.note)
    return recordings


def _write_files(folder: Path, one: Chapter, prefix: str) -> None:
    for table in one.tables:
        path = folder / "tables" / f"{prefix}{table.name}"
        path.with_suffix(".csv").write_text(csv_text(table), encoding="utf-8")
        path.with_suffix(".md").write_text(markdown_text(table), encoding="utf-8")
        path.with_suffix(".tex").write_text(latex_text(table), encoding="utf-8")
    for drawing in one.figures.for_paper:
        path = folder / "figures" / f"{prefix}{drawing.name}"
        path.with_suffix(".svg").write_text(drawing.svg_file, encoding="utf-8")
        path.with_suffix(".pdf").write_bytes(drawing.pdf)
