"""The commands of stage 1: extract-features, import-features and import-ratings write a cache, inspect-cache tells."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from amber2_core.command import INCOMPLETE, Command, chosen_shard, command_body, list_lines, ray_options, together
from amber2_core.files import cache_folder
from amber2_data.cli import corpus_options, table_options

from .encoders import AUDIO_POOLINGS, TEXT_POOLINGS

if TYPE_CHECKING:
    from .imported import Wanted
    from .pipeline import OnProgress, Progress, Summary

_LINE_SECONDS = 30.0

_log = logging.getLogger(__name__)


# of the encoder that is run
encoder_options = together(
    click.option(
        "--layer",
        type=click.IntRange(min=0),
        help="Take this hidden state instead of the last: 0 is the input of the first layer. [default: the last]",
    ),
    click.option(
        "--audio-pooling",
        type=click.Choice(list(AUDIO_POOLINGS)),
        default="mean",
        show_default=True,
        help="How the hidden states of a recording become one vector.",
    ),
    click.option(
        "--text-pooling",
        type=click.Choice(["auto", *TEXT_POOLINGS]),
        default="auto",
        show_default=True,
        help="Those of a transcript; auto: as the checkpoint says for sentence-transformers, else the mean.",
    ),
    click.option(
        "--window",
        type=click.Choice(["trained", "fit"]),
        help="Of Whisper and its like: as trained, or as long as the utterance, much faster. [default: trained]",
    ),
    click.option(
        "--attention",
        type=click.Choice(["eager", "sdpa"]),
        help="How attention is computed. [default: as transformers chooses]",
    ),
)


@click.command(cls=Command)
@corpus_options
@click.option(
    "--audio-model",
    default="facebook/wav2vec2-base",
    show_default=True,
    help="Speech encoder: an id of the Hugging Face hub, with @REVISION if need be, a folder, or FILE.py:CLASS.",
)
@click.option(
    "--text-model",
    default="bert-base-uncased",
    show_default=True,
    help="Text encoder: an id of the Hugging Face hub, with @REVISION if need be, or a folder.",
)
@click.option(
    "--sentiment-model",
    help="Classifier, an id or a folder, that adds how negative, neutral and positive transcripts are. [default: none]",
)
@click.option(
    "--sentiment-labels",
    metavar="NAMES",
    help="What the classifier's outputs are, such as negative,neutral,positive. [default: as its config says]",
)
@click.option(
    "--modality",
    type=click.Choice(["both", "audio", "text", "sentiment"]),
    default="both",
    show_default=True,
    help="What to encode now, beside the sentiment if asked for; what else the cache holds is kept.",
)
@click.option(
    "--layers",
    type=click.Choice(["last", "all"]),
    default="last",
    show_default=True,
    help="Store the last hidden state, or every layer's beside it.",
)
@click.option(
    "--frames",
    type=click.IntRange(min=1),
    help="Store the sequence, too, pooled to at most so many bins. [default: the vector alone]",
)
@encoder_options
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of products and convolutions (torch's autocast; weights and means over time stay fp32).",
)
@click.option("--audio-name", help="What the cache calls the speech features. [default: as the encoder is called]")
@click.option("--text-name", help="What the cache calls the text features. [default: as the encoder is called]")
@click.option(
    "--max-seconds", type=click.FloatRange(min=0, min_open=True), help="Cut longer utterances. [default: no cut]"
)
@click.option(
    "--repair-text",
    type=click.Choice(["none", "cp1252"]),
    default="none",
    show_default=True,
    help="Undo damage of transcripts: cp1252 that was read as Latin-1, which left C1 control characters.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The feature cache to write or to go on with. [default: <corpus>.h5 in the cache folder]",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The cache folder. [default: AMBER2_CACHE_DIR, else ./cache]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, mps, cuda, cuda:N, or cuda:0,cuda:1.")
@ray_options
@click.option(
    "--rows",
    type=click.Choice(["driver", "shared"]),
    default="driver",
    show_default=True,
    help="Of --engine ray: rows come back to this process, or workers write them to a folder that all machines share.",
)
@click.option(
    "--batch-seconds",
    type=click.FloatRange(min=0),
    help="Audio per batch, padding included; 0 encodes one utterance at a time. [default: 120 on a GPU, 0 on a CPU]",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=0),
    help="Tokens per batch, padding included. [default: 16384 on a GPU, 1024 on a CPU]",
)
@click.option(
    "--shard",
    callback=chosen_shard,
    metavar="K/N",
    help="Encode this part into a cache of its own, for merge-shards: 3/16, or auto under SLURM or torchrun. "
    "[default: everything]",
)
@click.option("--force", is_flag=True, help="Encode again what is up to date; replace a cache that cannot be read.")
@click.option("--strict", is_flag=True, help="Take failures for an error: exit with 1, and write no cache.")
@command_body
def extract_features(
    corpus: str,
    root: str | None,
    audio_root: Path | None,
    columns: tuple[str, ...],
    audio_model: str,
    text_model: str,
    modality: Literal["both", "audio", "text", "sentiment"],
    repair_text: Literal["none", "cp1252"],
    output: Path | None,
    cache_dir: Path | None,
    **settings: Any,
) -> int | None:
    """Encode a corpus with frozen speech and text encoders into one feature cache (stage 1).

    Only what is new or has changed is encoded. Interrupted at any moment, the same command goes on where it stopped.
    The exit code is 3 when utterances failed; they are listed, and the cache is complete without them.
    """
    from amber2_data.corpora.registry import corpus_root, read_corpus

    from . import pipeline
    from .batches import Effort

    effort = Effort(**{field.name: settings.pop(field.name) for field in fields(Effort)})
    folder = cache_folder(cache_dir)
    with _progress_shown() as on_progress:
        summary = pipeline.extract_features(
            read_corpus(corpus, corpus_root(corpus, root), audio_root=audio_root, columns=columns),
            output or folder / f"{corpus}.h5",
            audio_model=audio_model if modality in ("both", "audio") else None,
            text_model=text_model if modality in ("both", "text") else None,
            repair=None if repair_text == "none" else repair_text,
            effort=effort,
            on_progress=on_progress,
            **settings,
        )
    _print_summary(summary)
    return INCOMPLETE if summary.failures else None


@click.command(cls=Command)
@click.argument("encoder")
@encoder_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, mps, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_body
def check_encoder(encoder: str, *, as_json: bool, **settings: Any) -> None:
    """Load ENCODER, an id, a folder or FILE.py:CLASS, and tell what it is and whether its batches are exact.

    Inputs of lengths that tell are encoded in batches and each alone. Where a row differs by more than 1e-5,
    extract-features encodes with it one utterance at a time.

    \b
      check-encoder openai/whisper-base --window fit
      check-encoder path/to/my.py:MyEncoder
    """
    from . import trial

    record = trial.check_encoder(encoder, **settings)
    click.echo(json.dumps(record, indent=2, ensure_ascii=False) if as_json else trial.describe_trial(record))


@click.command(cls=Command)
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read everything and check every checksum.")
@click.option("--diff", "other", type=click.Path(path_type=Path), metavar="CACHE", help="Compare with another cache.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_body
def inspect_cache(cache: Path, verify: bool, other: Path | None, as_json: bool) -> int | None:
    """Tell what the feature cache CACHE holds: utterances, ratings, feature sets, recipes, failures.

    With --diff, tell how another cache differs: utterances, ratings, recipes, and the values of each utterance. The
    exit code is then 3 when anything differs.
    """
    from . import inspection

    if other is not None:
        record, words = inspection.compare(cache, other), inspection.describe_comparison
    else:
        record, words = inspection.read_description(cache, verify=verify), inspection.describe
    click.echo(json.dumps(record, indent=2, ensure_ascii=False) if as_json else words(record))
    return INCOMPLETE if other is not None and not record["same"] else None


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--audio", metavar="ARRAY", help="Array of audio vectors; NAME=ARRAY gives the feature set a name.")
@click.option("--text", metavar="ARRAY", help="Array of text vectors; NAME=ARRAY gives the feature set a name.")
@click.option("--video", metavar="ARRAY", help="Array of video vectors; NAME=ARRAY gives the feature set a name.")
@click.option(
    "--ids",
    metavar="ARRAY|FILE",
    help="Ids of the rows: an array of FILE, a text file with one a line, or a .npy file.",
)
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Add to this cache. [default: a whole cache is made of FILE]"
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The cache to write. [default: the cache that is added to, else <file>.h5 in the cache folder]",
)
@click.option(
    "--sequence", is_flag=True, help="Arrays (ids, steps, D) are steps in time, not layers; steps of zeros are padding."
)
@click.option("--origin", default="", help="What made the vectors: model, layer, pooling; kept in the recipe.")
@click.option("--corpus", help="Corpus whose utterances and votes FILE has vectors for, such as iemocap.")
@click.option("--root", help="Where the corpus lies. [default: AMBER2_<CORPUS>_ROOT, else ./corpora/<corpus>]")
@table_options
@click.option("--force", is_flag=True, help="Replace the cache at --output, or a feature set of the same name.")
@command_body
def import_features(
    file: Path,
    audio: str | None,
    text: str | None,
    video: str | None,
    ids: str | None,
    cache: Path | None,
    output: Path | None,
    sequence: bool,
    origin: str,
    corpus: str | None,
    root: str | None,
    audio_root: Path | None,
    columns: tuple[str, ...],
    force: bool,
) -> int | None:
    """Make vectors from elsewhere in FILE (.npy, .npz, HDF5 or safetensors) a feature set of a cache.

    Rows are matched by id, never by order, with the utterances of --cache, or with those of --corpus. A FILE that
    also holds votes, speakers and transcripts becomes a whole cache, with the label defaults of --corpus if that is
    given. The exit code is 3 when utterances have no vector; they are listed.

    \b
      import-features hubert.npy --ids ids.txt --audio hubert --cache cache/iemocap.h5
      import-features hubert.npy --ids ids.txt --audio hubert --corpus iemocap --output cache/iemocap.h5
      import-features corpus.npz --audio audio_vectors --text text_vectors --output cache/corpus.h5
    """
    from . import imported

    wanted = [
        replace(_wanted(modality, given, file), is_sequence=sequence)
        for modality, given in (("audio", audio), ("text", text), ("video", video))
        if given
    ]
    folder = cache_folder()
    done = imported.import_features(
        file,
        wanted,
        output or cache or folder / f"{file.stem}.h5",
        cache=cache,
        ids=ids,
        origin=origin,
        force=force,
        **_target(corpus, root, file, cache, audio_root=audio_root, columns=columns),
    )
    for name, (rows, shape) in done.features.items():
        click.echo(f"{name}: {rows:,} of {done.utterances:,} utterances, {' × '.join(map(str, shape))} numbers each")
    list_lines("without a vector", done.missing)
    list_lines("not in the cache, left out", done.extra)
    click.echo(str(done.output))
    return INCOMPLETE if any(rows < done.utterances for rows, _ in done.features.values()) else None


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--cache", required=True, type=click.Path(path_type=Path), help="The cache whose ratings they join.")
@click.option(
    "--source",
    type=click.Choice(["synthetic", "external", "self"]),
    default="synthetic",
    show_default=True,
    help="Who the raters are: models, other people, or the speakers themselves.",
)
@click.option(
    "--stimulus",
    type=click.Choice(["audio", "video", "audiovisual"]),
    help="What they were given where FILE does not say. [default: what the corpus is labelled by]",
)
@click.option("--replace", "replace_raters", is_flag=True, help="First remove what the raters of FILE said before.")
@command_body
def import_ratings(
    file: Path,
    cache: Path,
    source: Literal["synthetic", "external", "self"],
    stimulus: Literal["audio", "video", "audiovisual"] | None,
    replace_raters: bool,
) -> int | None:
    """Add the votes in FILE to a cache: of models that stand in for raters, or of people who were asked later.

    FILE is JSON lines, or a CSV file with the same columns: utterance, rater, label, perhaps weight and stimulus. The
    same file again changes nothing. Targets stay people's; what models say is learnt from where train-heads --targets
    asks for it. The exit code is 3 when rows were left out; they are listed.

    \b
      import-ratings listener.jsonl --cache cache/iemocap.h5
    """
    from .imported_ratings import import_ratings as imported

    done = imported(file, cache, source=source, stimulus=stimulus, replace_raters=replace_raters)
    words = ", ".join(f"{word} {count:,}" for word, count in list(done.words.items())[:12])
    click.echo(
        f"{source}: {done.ratings:,} ratings of {done.utterances:,} utterances by {len(done.raters):,} raters: {words}"
    )
    if done.unlabelled:
        click.echo(f"without a label, nobody's vote: {done.unlabelled:,}")
    list_lines("not in the cache, left out", tuple(done.unknown))
    list_lines("left out", done.failures)
    click.echo(f"{done.cache}" if done.written else f"{done.cache} was up to date")
    return INCOMPLETE if done.unknown or done.failures else None


def _print_summary(summary: Summary) -> None:
    for features in summary.features:
        counts = f"{features.encoded} encoded, {features.up_to_date} up to date, {features.failed} failed"
        speed = ""
        if features.encoded and features.seconds:
            hours = f"{features.seconds / 3600:.2f} h" if features.seconds >= 360 else f"{features.seconds:.0f} s"
            rate = features.seconds / max(features.elapsed, 1e-9)
            speed = f"; {hours} of audio in {features.elapsed:.0f} s, {rate:.0f} times real time"
        cut = f"; {features.truncated} cut to the model's limit" if features.truncated else ""
        click.echo(f"{features.modality}/{features.name}: {counts}{speed}{cut}")
    list_lines("failed", summary.failures, f"see inspect-cache {summary.output}")
    click.echo(f"{summary.output}" if summary.written else f"{summary.output} was up to date")


@contextmanager
def _progress_shown() -> Iterator[OnProgress | None]:
    """A bar on a terminal, a line of the log every half minute elsewhere, nothing with ``--quiet``."""
    if click.get_current_context().params["quiet"]:
        yield None
        return
    if not sys.stderr.isatty():
        yield ProgressLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {}

        def on_progress(progress: Progress) -> None:
            if progress.features not in tasks:
                tasks[progress.features] = bar.add_task(progress.features, total=1.0, words="")
            bar.update(tasks[progress.features], completed=progress.share, words=describe(progress))

        yield on_progress


class ProgressLines:
    """Says how far the encoding is, in a line of the log, as often as it is time for one."""

    def __init__(self, *, every: float = _LINE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every
        self._clock = clock
        self._said = clock()

    def __call__(self, progress: Progress) -> None:
        """Take notice of a batch that is done."""
        if self._clock() - self._said >= self._every:
            self._said = self._clock()
            _log.info("%s: %s", progress.features, describe(progress))


def describe(progress: Progress) -> str:
    """Utterances, hours, speed against real time, padding and time left.

    Example:
        >>> from amber2_extract.pipeline import Progress
        >>> describe(Progress("audio/hubert", 120, 400, 900.0, 3600.0, 0.25, 60.0, 0.005))
        '120 of 400, 0.25 of 1.00 h, 15.0 times real time, 0.5 % padding, 3 min left'
    """
    words = [f"{progress.done:,} of {progress.total:,}"]
    if progress.seconds_total > 0:
        words.append(f"{progress.seconds_done / 3600:.2f} of {progress.seconds_total / 3600:.2f} h")
        if progress.elapsed > 0:
            words.append(f"{progress.seconds_done / progress.elapsed:.1f} times real time")
    words.append(f"{100 * progress.padding:.1f} % padding")
    if progress.share > 0:
        words.append(f"{_duration(progress.elapsed * (1 - progress.share) / progress.share)} left")
    return ", ".join(words)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _target(corpus: str | None, root: str | None, file: Path, cache: Path | None, **table: Any) -> dict[str, Any]:
    """What else `imported.import_features` is to know of the corpus."""
    from amber2_core.errors import SettingError
    from amber2_data.arrays import open_arrays
    from amber2_data.corpora.registry import corpus_root, label_defaults, read_corpus

    from .imported import holds_votes

    if corpus is None or cache is not None:
        if root is not None or corpus is not None:
            raise SettingError("--root and --corpus say whose utterances FILE has vectors for, and so does --cache")
        return {}
    if root is None and holds_votes(open_arrays(file)):
        return {"name": corpus, "defaults": label_defaults(corpus)}
    return {"corpus": read_corpus(corpus, corpus_root(corpus, root), **table)}


def _wanted(modality: str, given: str, file: Path) -> Wanted:
    from .imported import Wanted

    name, sign, array = given.partition("=")
    if file.suffix.lower() == ".npy":  # its only array has no name of its own
        return Wanted(modality, name, array or file.stem)
    return Wanted(modality, name if sign else given.rpartition("/")[2], array if sign else given)
