"""The command `check-corpus`, and how it shows what was found: lines for people, JSON, and a picture."""

from __future__ import annotations

import io
import itertools
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amber2_core.command import INCOMPLETE, Command, command_body, policy_options, together
from amber2_core.errors import SettingError, bad_choice
from amber2_core.files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_PROBLEMS = 20
BAR = 30  # characters
SUFFIXES = (".png", ".pdf", ".svg")
BLUE = "#3465a4"

_log = logging.getLogger(__name__)


# how a table of the user's own is to be read
table_options = together(
    click.option(
        "--audio-root",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Where the recordings of a manifest lie; of longer paths in it the end counts. [default: in its folder]",
    ),
    click.option(
        "--column",
        "columns",
        metavar="ROLE=COLUMN",
        multiple=True,
        help="Role of a column of a manifest, as id=filename or rater.ann=Ann's label; may be repeated.",
    ),
)
# which corpus is read
corpus_options = together(
    click.option(
        "--corpus",
        required=True,
        help="Name of a corpus, such as iemocap, msp_podcast, crema_d, manifest or synthetic.",
    ),
    click.option(
        "--root",
        help="Where the corpus lies (a manifest: its file). [default: AMBER2_<CORPUS>_ROOT, else ./corpora/<corpus>]",
    ),
    table_options,
)


@click.command(cls=Command)
@corpus_options
@policy_options
@click.option("--decode", is_flag=True, help="Read all recordings to their end, as encoding them does.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="As in extract-features, which cuts longer utterances. [default: no cut]",
)
@click.option("--figure", type=click.Path(path_type=Path), help="Draw it, too: a .png, .pdf or .svg file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_body
def check_corpus(
    corpus: str,
    root: str | None,
    audio_root: Path | None,
    columns: tuple[str, ...],
    decode: bool,
    max_seconds: float | None,
    figure: Path | None,
    as_json: bool,
    **options: str | None,
) -> int | None:
    """Look at a corpus before encoding it: utterances, hours, speakers, raters, labels, and all that is wrong with it.

    What would fail in extract-features fails here, for the same reason: headers and sizes of all recordings are read,
    with --decode all that is in them. The exit code is 3 when recordings are missing or of no use, or when no utterance
    has a label under the policy that the options name.
    """
    from amber2_core.label_spaces import policy_of
    from amber2_core.votes import OTHER

    from .check import check, check_recordings
    from .corpora.registry import corpus_root, read_corpus

    if figure is not None:
        check_figure_path(figure)
    place = corpus_root(corpus, root)
    found = read_corpus(corpus, place, audio_root=audio_root, columns=columns, warns=False)
    only_word = found.defaults.emotions[0] if len(found.defaults.emotions) == 1 and not options["emotions"] else ""
    defaults = replace(found.defaults, emotions=(only_word, OTHER)) if only_word else found.defaults
    recordings = check_recordings(found, decoded=decode, max_seconds=max_seconds)
    record = check(found, policy_of(defaults, options), recordings, only_word=only_word)
    if place.is_file():
        record["table"] = str(place)
    click.echo(json.dumps(record, indent=2, ensure_ascii=False) if as_json else describe(record))
    if figure is not None:
        draw(record, [seconds for seconds in recordings.seconds if seconds is not None], figure)
    return INCOMPLETE if "labels_error" in record or recordings.failures else None


def describe(record: Mapping[str, Any]) -> str:
    """The lines for people."""
    return "\n".join(_lines(record))


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    version = f" {record['version']}" if record["version"] else ""
    place = f"{record['table']}, recordings in {record['root']}" if "table" in record else record["root"]
    yield f"{record['corpus']}{version} at {place}"
    yield (
        f"utterances  {record['utterances']:,}, {record['hours']:.2f} h, {record['speakers']:,} speakers, "
        f"{record['sessions']} sessions, {record['dialogues']:,} dialogues"
    )
    if record["splits"]:
        yield "splits      " + ", ".join(f"{split} {count:,}" for split, count in record["splits"].items())
    if record["seconds"]:
        yield "lengths     " + ", ".join(f"{name} {value:.2f} s" for name, value in record["seconds"].items())
    audio = record["audio"]
    yield (
        f"audio       {audio['missing']:,} missing, {audio['unreadable']:,} unreadable, "
        f"{audio['duplicated']:,} duplicated"
        + (f", {record['across_splits']:,} in two splits" if record["across_splits"] else "")
    )
    yield f"transcripts {record['transcripts_missing']:,} missing"
    yield f"raters      {record['raters_per_utterance']:.2f} per rated utterance; {record['ratings']:,} ratings in all"
    yield from _bar_lines({f"{count} raters": number for count, number in record["raters"].items()})
    yield f"labels      under {_policy(record['policy'])}:"
    if "labels_error" in record:
        yield f"            none: {record['labels_error']}"
    else:
        yield from _label_lines(record)
    yield f"problems    {len(record['problems']):,}"
    for problem in record["problems"][:SHOWN_PROBLEMS]:
        place = problem["file"] if problem["line"] is None else f"{problem['file']}, line {problem['line']}"
        yield f"            {place}: {problem['what']}"
    if len(record["problems"]) > SHOWN_PROBLEMS:
        yield f"            … {len(record['problems']) - SHOWN_PROBLEMS:,} more: --json lists all"


def _label_lines(record: Mapping[str, Any]) -> Iterator[str]:
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in record["dropped"].items() if count) or "none"
    yield f"            {record['kept']:,} kept; dropped: {dropped}"
    ignored = ", ".join(f"{count:,} {reason}" for reason, count in record["ignored_ratings"].items() if count)
    if ignored:
        yield f"            ratings ignored: {ignored}"
    yield from _bar_lines(record["emotions"])
    ambiguity = record["ambiguity"]
    yield (
        f"ambiguity   {ambiguity['mean_bits']:.3f} bits on average; {ambiguity['unanimous']:,} unanimous, "
        f"{ambiguity['tied']:,} tied"
    )
    edges = ambiguity["bin_edges"]
    names = [f"{low:.2f} … {high:.2f} bits" for low, high in itertools.pairwise(edges)]
    yield from _bar_lines(dict(zip(names, ambiguity["counts"], strict=True)))


def _policy(settings: Mapping[str, Any]) -> str:
    words = [f"{name} {value}" for name, value in settings.items() if name != "merge"]
    merges = ", ".join(f"{word}={emotion}" for word, emotion in settings["merge"]) or "none"
    return ", ".join([*words, f"merge {merges}"]).replace("_", "-")


def _bar_lines(counts: Mapping[str, int]) -> Iterator[str]:
    """One bar for each count, the largest of full length."""
    largest = max([*counts.values(), 1])
    width = max(map(len, counts), default=0)
    for name, count in counts.items():
        yield f"            {name:<{width}}  {count:>8,}  {'█' * round(BAR * count / largest)}".rstrip()


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
    from matplotlib.figure import Figure

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
    # in memory first: where the disk is full, writers of formats fail in ways of their own
    drawn = io.BytesIO()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")  # matplotlib has one for each letter and size
        figure.savefig(drawn, dpi=150, format=path.suffix[1:].lower())
    if any("missing from font" in str(one.message) for one in told):
        _log.warning("%s: the font lacks letters of the corpus's words; they are drawn as boxes", path)
    try:
        with written_whole(path) as writing:
            writing.write_bytes(drawn.getvalue())
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
