"""The report: from run folders to one page that loads nothing from elsewhere, and the files of tables and figures."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from amber2_core.errors import RunFolderError
from amber2_core.run_folder import new_run_folder

from .causes import causes_tables
from .drawing import Drawing
from .ensembles import with_ensemble
from .figures import OVERLAID, figures
from .groups import Group, grouped, slug
from .notes import constant_notes
from .provenance import data_notes, differences, remarks, stimulus, stimulus_was_chosen
from .runs import read_run
from .significance import COLUMNS, DRAWS, compare, headlines, method_in_words, speaker_clusters
from .table import Table, csv_text, latex_text, markdown_text
from .tables import all_tables, confusion_frame, side_by_side
from .utterances import (
    CorpusFacts,
    Recordings,
    column_of,
    corpus_facts,
    interesting_rows,
    read_recordings,
    script_json,
    shown_rows,
    utterance_record,
)

HERE = Path(__file__).parent
# of settings.json, what the page tells of a run beside its features and folds
TOLD = (
    "created", "corpus", "cache", "digest", "emotions", "systems", "seeds", "epochs", "inputs", "missing", "targets",
    "device", "utterances", "policy", "grid", "versions",
)  # fmt: skip
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What may be chosen."""

    caches: Sequence[Path] = ()  # where caches lie now, if not where the runs remember
    recordings: int = 0  # how many of the first rows of each preset the page is to play
    root: Path | None = None  # of the recordings; None: AMBER2_<CORPUS>_ROOT, else ./corpora/<corpus>
    head: str | None = None  # the head that every system is told by; None: its own main one
    by: Sequence[str] = ()  # columns of utterances.csv to group scores by
    draws: int = DRAWS
    ensemble: Sequence[str] | None = None  # the systems whose heads are averaged, () for all; None: no ensemble


@dataclass(frozen=True)
class Chapter:
    """All of one group of runs."""

    title: str
    group: Group
    facts: CorpusFacts
    comparisons: pd.DataFrame  # of `significance.compare`
    drawn: str  # what its bootstrap draws, as `Clusters.drawn`
    tables: Mapping[str, Table]  # by name
    figures: Mapping[str, Sequence[Drawing]]  # by the part of the page
    utterances: str  # JSON for a script element
    notes: Sequence[str] = ()

    @property
    def data_notes(self) -> list[str]:
        """What must be known of the runs' data before their numbers are."""
        first = self.group.runs[0]
        notes = data_notes(self.group.runs)
        if stimulus(first) and first.settings.get("command") and not stimulus_was_chosen(first):
            notes.append(
                f"Targets are {stimulus(first)} votes: nobody chose these, the corpus has them by default (train-heads "
                "--stimulus)."
            )
        return notes

    @property
    def remarks(self) -> list[str]:
        """What the results of systems must not be read without."""
        return remarks(self.group.runs)

    @property
    def settings(self) -> list[Table]:
        """The tables of grids."""
        return [table for name, table in self.tables.items() if name.startswith("settings-")]

    @property
    def by(self) -> list[Table]:
        """The tables of groups that were asked for."""
        return [table for name, table in self.tables.items() if name.startswith("by-")]

    @property
    def headline(self) -> list[str]:
        """The first system against the others, or else against its own other heads: `headlines`."""
        names = self.group.runs[0].name if len(self.group.runs) == 1 else ""
        mains = self.group.mains
        ensembles = {entry.label for entry in mains if entry.members}
        lines = headlines(self.comparisons, {entry.label for entry in mains}, names, self.drawn, ensembles)
        return [*lines, *self.data_notes]


@dataclass(frozen=True)
class Report:
    """A finished report."""

    folder: Path
    chapters: Sequence[Chapter]

    @property
    def page(self) -> Path:
        return self.folder / "report.html"


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
    groups = grouped([read_run(run) for run in runs], options.head)
    if options.ensemble is not None:
        groups = [with_ensemble(groups, options.ensemble)]
    with new_run_folder(output) as folder:
        chapters = [chapter(group, options) for group in groups]
        for kind in ("tables", "figures"):
            (folder / kind).mkdir()
        for k, one in enumerate(chapters):
            _write_files(folder, one, "" if len(chapters) == 1 else f"{k + 1}-{slug(one.title)}-")
        notes, beside = _apart(groups), side_by_side(groups) if len(groups) > 1 else None
        if beside:
            _write_table(folder, beside, "")
        title = "Emotion recognition: " + ", ".join(dict.fromkeys(one.group.corpus or "?" for one in chapters))
        _write(folder / "report.html", page(chapters, title, notes, beside))
    return Report(output, chapters)


def chapter(group: Group, options: Options) -> Chapter:
    """Everything about runs with one test set."""
    names = ", ".join(run.name for run in group.runs)
    facts = corpus_facts(group, options.caches)
    if facts.missing:
        _log.warning("%s: %s", names, facts.missing)
    for note in constant_notes(group, group.entries):
        _log.warning("%s: %s", names, note)
    if not group.entries:  # all predict presence: there are no distributions to compare or draw
        if options.by or options.recordings:
            _log.warning("%s: predicts presence alone, so there are no scores by column and no utterances", names)
        nothing = pd.DataFrame(columns=COLUMNS)
        return Chapter(f"{group.corpus}: {names}", group, facts, nothing, "", all_tables(group, nothing, ""), {}, "")
    by = {name: column_of(group, name, facts.speaker) for name in options.by}
    clusters = speaker_clusters(group.predictions.fold, facts.speaker)
    comparisons = compare(group, clusters, draws=options.draws)
    _log.info("%s: %d comparisons, drawing figures", names, len(comparisons))
    recordings = _recordings(group, facts, options) if options.recordings else None
    return Chapter(
        title=f"{group.corpus}: {names}",
        group=group,
        facts=facts,
        comparisons=comparisons,
        drawn=clusters.drawn,
        tables=all_tables(group, comparisons, method_in_words(clusters, options.draws), by)
        | {table.name: table for table in causes_tables(group, clusters, draws=options.draws)},
        figures=figures(group, facts.speaker),
        utterances=script_json(utterance_record(group, facts, recordings)),
        notes=_notes(group, recordings),
    )


def page(chapters: Sequence[Chapter], title: str, notes: Sequence[str] = (), beside: Table | None = None) -> str:
    """The page as HTML; every text of a corpus or a run is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["quoted"] = lambda word: shlex.quote(str(word))
    return environment.get_template("page.html").render(
        chapters=chapters,
        title=title,
        notes=notes,
        beside=beside,
        overlaid=OVERLAID,
        told=TOLD,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
    )


def _apart(groups: Sequence[Group]) -> list[str]:
    """Why there are several chapters; told to the log too."""
    if len(groups) == 1:
        return []
    first, *others = (group.runs[0] for group in groups)
    notes = [f"Beside {first.name}, {run.name} has {'; '.join(differences(first, run))}." for run in others]
    for note in notes:
        _log.warning("not compared: %s", note)
    return [
        "These runs were not tested on the same utterances with the same targets and folds: each test set has a "
        "chapter of its own, and nothing is compared across them.",
        *notes,
    ]


def _notes(group: Group, recordings: Recordings | None) -> list[str]:
    """What the reader of the table of utterances must know."""
    notes = [recordings.note] if recordings else []
    shown, count = len(shown_rows(group)), len(group.predictions.id)
    if shown < count:
        notes.append(f"The table holds {shown:,} of {count:,} utterances: those that any preset shows first.")
    return notes


def _recordings(group: Group, facts: CorpusFacts, options: Options) -> Recordings:
    variable = f"AMBER2_{slug(group.corpus).replace('-', '_').upper()}_ROOT"
    root = options.root or Path(os.environ.get(variable) or Path("corpora") / group.corpus)
    root = root.expanduser()
    if not root.exists():
        raise RunFolderError(f"No recordings at {root}: name the root of the corpus with --root, or set {variable}")
    rows = interesting_rows(group, options.recordings)
    recordings = read_recordings(root if root.is_dir() else root.parent, list(facts.audio[rows]))
    _log.info("%s", recordings.note)
    return recordings


def _write_files(folder: Path, one: Chapter, prefix: str) -> None:
    for table in one.tables.values():
        _write_table(folder, table, prefix)
    for entry in one.group.entries:
        confusion = confusion_frame(one.group, entry).to_csv(index=False, lineterminator="\n")
        _write(folder / "tables" / f"{prefix}confusion-{one.group.slugs[entry.label]}.csv", confusion)
    for drawing in (some for part in one.figures.values() for some in part if some.pdf):
        path = folder / "figures" / f"{prefix}{drawing.name}"
        _write(path.with_suffix(".svg"), drawing.svg_file)
        path.with_suffix(".pdf").write_bytes(drawing.pdf)


def _write_table(folder: Path, table: Table, prefix: str) -> None:
    path = folder / "tables" / f"{prefix}{table.name}"
    _write(path.with_suffix(".csv"), csv_text(table))
    _write(path.with_suffix(".md"), markdown_text(table))
    _write(path.with_suffix(".tex"), latex_text(table, prefix))


def _write(path: Path, text: str) -> None:
    """As UTF-8; what of a path is none has become lone surrogates, and is written as a question mark."""
    path.write_bytes(text.encode("utf-8", "replace"))
