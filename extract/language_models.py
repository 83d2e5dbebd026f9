"""The commands of language models: write-prompts, ask-model, and import-predictions for whatever predicts elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from amber2_core.command import INCOMPLETE, SHOWN, Command, command_body, list_lines, together
from amber2_core.errors import SettingError

from .prompts import STYLES

# which words stand for which emotion
label_options = together(
    click.option("--emotions", metavar="LIST", help="Label space by name, or a comma list. [default: the cache's own]"),
    click.option("--merge", metavar="LIST", help="Words that count for an emotion: excited=happy, or none."),
)


@click.command(cls=Command)
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
@click.option("--style", type=click.Choice(STYLES), default="aer-llm", show_default=True, help="How they are asked.")
@click.option("--shots", type=click.IntRange(min=0), default=0, show_default=True, help="Rated examples in a prompt.")
@click.option("--context", type=click.IntRange(min=0), default=0, show_default=True, help="Turns before the utterance.")
@click.option(
    "--annotators", type=click.IntRange(min=1), default=5, show_default=True, help="Raters asked, of style rater."
)
@click.option(
    "--temperature",
    metavar="T|FROM:TO",
    help="Of sampling; a range rises from the first rater to the last. [default: 0; of style rater 0.3:1.1]",
)
@click.option("--acoustic", metavar="LIST", default="", help="Attributes of the cache to tell, numbers such as f0.")
@click.option("--fold-column", metavar="NAME", help="Column that makes the folds: no example is of the same value.")
@label_options
@click.option("--keep", help="Which utterances have a label, as of train-heads.")
@click.option("--stimulus", help="Which ratings count, as of train-heads.")
@click.option(
    "--utterances", type=click.Choice(["labelled", "all"]), default="labelled", show_default=True, help="Which to ask."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of examples and of sampling.")
@click.option("--force", is_flag=True, help="Replace a file that holds other prompts.")
@command_body
def write_prompts(
    cache: Path,
    output: Path,
    style: Literal["aer-llm", "rater"],
    shots: int,
    context: int,
    annotators: int,
    temperature: str | None,
    acoustic: str,
    fold_column: str | None,
    emotions: str | None,
    merge: str | None,
    keep: str | None,
    stimulus: str | None,
    utterances: Literal["labelled", "all"],
    seed: int,
    force: bool,
) -> None:
    """Write what a language model is to be asked of the utterances of the feature cache CACHE, as JSON lines.

    Style aer-llm asks for a distribution over the emotions; style rater asks each of several raters, of different
    focus and temperature, for one label. The recordings are not read.
    """
    from . import requests

    names = tuple(name.strip() for name in acoustic.split(",") if name.strip())
    questions = requests.Questions(
        style=style,
        shots=shots,
        context=context,
        annotators=annotators,
        temperatures=_range(temperature),
        acoustic=names,
        fold_column=fold_column,
        seed=seed,
    )
    labels = {"emotions": emotions, "merge": merge, "keep": keep, "stimulus": stimulus}
    done = requests.write_prompts(cache, output, questions, labels=labels, asked=utterances, force=force)
    if style == "rater":
        told = ", ".join(f"{name} {focus} {heat:g}" for name, focus, heat in questions.raters)
        click.echo(f"annotators: {told}", err=True)
    if not names:
        told = "prompts tell length and words per second alone, as far as the cache knows them; see --acoustic"
        click.echo(f"no acoustic attribute is named: {told}", err=True)
    for name, count in done.untold.items():
        if count:
            click.echo(f"{name}: unknown of {count:,} utterances, left out of their prompts", err=True)
    if done.empty:
        click.echo(f"{done.empty:,} utterances have neither recording nor transcript: left out", err=True)
    click.echo(f"{done.output}: {done.requests:,} requests of {done.utterances:,} utterances")


@click.command(cls=Command)
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="A language model of transformers: an id of the hub, or a folder.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
@click.option("--root", type=click.Path(path_type=Path, file_okay=False), help="Where the corpus's recordings lie.")
@click.option(
    "--recordings",
    type=click.Choice(["attached", "left-out"]),
    default="attached",
    show_default=True,
    help="Whether a model that listens is given them.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, mps, cuda or cuda:N.")
@click.option(
    "--precision",
    type=click.Choice(["as-saved", "fp32", "bf16", "fp16"]),
    default="as-saved",
    show_default=True,
    help="Of weights and products.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Requests answered together. [default: 8 on a GPU, 1 on a CPU]"
)
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Of an answer.")
@click.option("--force", is_flag=True, help="Replace the file at --output.")
@command_body
def ask_model(
    prompts: Path,
    model: str,
    output: Path,
    precision: Literal["as-saved", "fp32", "bf16", "fp16"],
    **settings: Any,
) -> int | None:
    """Ask a local language model what write-prompts wrote to PROMPTS, and write its answers as JSON lines.

    A model that listens is given the recordings. Interrupted at any moment, the same command goes on where it
    stopped. The exit code is 3 when recordings could not be read; they are listed.
    """
    from . import asking

    done = asking.ask_model(prompts, model, output, weights=precision, **settings)
    if done.cut:
        click.echo(f"{done.cut:,} recordings are longer than the model listens: it heard their beginning", err=True)
    _list([f"{utterance}: {reason}" for utterance, reason in done.failures], "not asked")
    before = f", {done.resumed:,} of them by an earlier call" if done.resumed else ""
    click.echo(f"{done.output}: {done.requests:,} requests{before}")
    return INCOMPLETE if done.failures else None


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="The cache whose utterances they are of.")
@click.option("--name", help="What the cache calls them: prediction/NAME.")
@click.option(
    "--as-ratings",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the labels among the answers here, as ratings by their annotators.",
)
@label_options
@click.option("--origin", default="", help="Who predicted: model, prompts; kept in the recipe.")
@click.option("--output", type=click.Path(path_type=Path), help="The cache to write. [default: the same]")
@click.option("--force", is_flag=True, help="Replace predictions of the same name, and files at the outputs.")
@command_body
def import_predictions(
    file: Path,
    cache: Path,
    name: str | None,
    as_ratings: Path | None,
    emotions: str | None,
    merge: str | None,
    origin: str,
    output: Path | None,
    force: bool,
) -> int | None:
    """Add distributions that were predicted elsewhere, or a language model's answers, to a feature cache.

    FILE is JSON lines, {"utterance": ID, "distribution": {"happy": 0.5, …}} or {"utterance": ID, "answer": TEXT}, or
    CSV with the columns utterance and one per emotion. An answer is a JSON object of shares, or one label and nothing
    else. Several of one utterance become their mean. What cannot be read is counted, listed and never replaced; the
    exit code is 3 then.

    \b
      import-predictions answers.jsonl --cache cache/iemocap.h5 --name gpt
      train-heads --system imported:gpt,amber2,cb-ce --cache cache/iemocap.h5
    """
    from . import predictions

    if name is None and as_ratings is None:
        raise SettingError("Nothing to do: give the predictions a --name, or write ratings with --as-ratings")
    labels = {"emotions": emotions, "merge": merge}
    bad: tuple[tuple[int, str, str], ...] = ()
    if name is not None:
        counts = predictions.import_predictions(
            file, cache, name, output=output, labels=labels, origin=origin, force=force
        )
        bad = counts.unparsable
        _list([f"line {number}, {utterance}: {why}" for number, utterance, why in bad], "cannot be read")
        _list(counts.unknown, "not in the cache, left out")
        several = f", {counts.several:,} of them with several" if counts.several else ""
        click.echo(
            f"prediction/{name}: {counts.covered:,} of {counts.utterances:,} utterances{several}; of "
            f"{counts.answers:,} answers {len(bad):,} cannot be read, {len(counts.unknown):,} utterances are unknown"
        )
        click.echo(str(output or cache))
    if as_ratings is not None:
        written, bad = predictions.write_ratings(file, as_ratings, cache, labels=labels, force=force)
        _list([f"line {number}, {utterance}: {why}" for number, utterance, why in bad], "no label")
        click.echo(f"{as_ratings}: {written:,} ratings; {len(bad):,} answers are no label")
    return INCOMPLETE if bad else None


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, sign, high = text.partition(":")
    try:
        return float(low), float(high if sign else low)
    except ValueError:
        raise SettingError(
            f"Bad temperature {text!r}, expected a number such as 0.7, or a range such as 0.3:1"
        ) from None


def _list(lines: Sequence[str], what: str) -> None:
    """Some lines on standard error, all of them with ``--verbose``."""
    shown = len(lines) if click.get_current_context().params["verbose"] else SHOWN
    list_lines(what, lines, f"{len(lines):,} in all; --verbose lists them", shown=shown)
