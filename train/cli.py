"""The command `train-heads`: options in, one run folder and one table out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from amber2_core.command import command_body

_WORDS = "amber2.words"
FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])


def _axis(flag: str, default: str, what: str) -> Callable[[FunctionType], FunctionType]:
    return click.option(flag, metavar="LIST", help=f"{what} [default: {default}]")


class _Recorded(click.Command):
    """A command that remembers the words it was given, for settings.json."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = (self.name, *args)
        return super().parse_args(ctx, args)


@click.command(cls=_Recorded, context_settings={"show_default": True, "max_content_width": 110})
@click.option("--cache", type=click.Path(path_type=Path), help="The feature cache. [default: the only one there is]")
@click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="Where to look for it. [default: $AMBER2_CACHE_DIR or ./cache]"
)
@click.option("--output", type=click.Path(path_type=Path), help="The run folder to write. [default: ./runs/TIME-NAME]")
@click.option("--name", help="Name of the run. [default: the corpus]")
@click.option("--system", default="amber2,cb-ce", metavar="LIST", help="Systems to train: amber2, cb-ce.")
@_axis("--lambda-mai", "0.5", "Weight of the modality-ambiguity loss.")
@_axis("--kappa", "4", "Sharpness of the expert weights; 0 weighs all alike.")
@_axis("--lambda-rai", "1", "Weight of the rater-ambiguity loss.")
@_axis("--lambda-expert", "0", "Weight of the experts' own rater loss; 0 is the paper's Eq. 6.")
@_axis("--student", "fusion", "The head that the others teach: fusion, audio, text.")
@_axis("--loss", "js", "Distance in the rater-ambiguity loss: js, kl, soft-ce.")
@_axis("--weight-gradient", "detach", "Expert weights as constants, or with their gradient: detach, flow.")
@_axis("--expert-gradient", "all", "What experts learn from: all terms, or their own rater loss alone: all, own.")
@_axis("--labels", "soft", "The raters' distribution, or its largest share alone, one-hot: soft, hard.")
@_axis("--fusion", "gmu", "Fusion layer: gmu, concat, softmax-gate, self-gate.")
@_axis("--hidden", "256", "Units of each head's hidden layer and of the fused vector.")
@_axis("--dropout", "0", "Share of hidden units dropped in training.")
@_axis("--lr", "3e-4", "Learning rate of AdamW.")
@_axis("--weight-decay", "1e-2", "Weight decay of AdamW.")
@_axis("--batch-size", "128", "Utterances in a step.")
@click.option("--seeds", type=int, default=5, help="Number of seeds.")
@click.option("--epochs", type=int, default=30, help="Epochs; the best one on dev is kept.")
@click.option("--inputs", default="raw", help="Features as cached, or standardised on train rows: raw, standardized.")
@click.option(
    "--folds",
    help="Fold protocol: session, speaker, stratified, official, official:SPLIT, column:NAME. "
    "[default: the corpus's own]",
)
@click.option(
    "--emotions",
    metavar="LIST",
    help="Label space, in order, or its name: iemocap-4, iemocap-9, msp-podcast-8, msp-podcast-4, crema-d-6. "
    "[default: the corpus's own]",
)
@click.option("--stimulus", help="Whose votes: audio, video, audiovisual. [default: the corpus's own]")
@click.option("--raters", default="external", help="Other people's votes, or the speaker's own too: external, all.")
@click.option("--multi-label", default="pooled", help="A rater's several ticks: pooled, split, first.")
@click.option("--out-of-space", default="drop", help="Votes outside the label space: drop, other.")
@click.option(
    "--merge", metavar="LIST", help="Count a word for an emotion, as excited=happy; none. [default: the corpus's own]"
)
@click.option("--keep", help="Utterances: consensus, plurality, majority, any-vote. [default: the corpus's own]")
@click.option("--audio", metavar="NAME", help="Audio feature set. [default: the only one]")
@click.option("--text", metavar="NAME", help="Text feature set. [default: the only one]")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:0, …")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@command_body
def train_heads(
    *,
    cache: Path | None,
    cache_dir: Path | None,
    output: Path | None,
    name: str | None,
    system: str,
    seeds: int,
    epochs: int,
    inputs: str,
    folds: str | None,
    audio: str | None,
    text: str | None,
    device: str,
    as_json: bool,
    **options: str | None,
) -> None:
    """Train emotion heads from a feature cache: AmbER² and its baselines, over folds, seeds and a grid.

    Options marked LIST take one value or a comma list; a list of settings makes a grid, and dev chooses its best point
    in each fold. Writes one run folder and prints mean ± sd over seeds of the fold mean, on test.

    \b
      train-heads --kappa 4 --lambda-mai 0.5
      train-heads --kappa 2,4,8 --lambda-mai 0.3,0.5,0.7
    """
    from amber2_core.label_spaces import policy_changes

    from .run import Request, train
    from .table import print_table, progress
    from .targets import find_cache

    source = find_cache(cache, cache_dir)
    request = Request(
        policy=policy_changes(options),
        folds=folds,
        systems=[part.strip() for part in system.split(",")],
        axes=_axes(options),
        seeds=seeds,
        epochs=epochs,
        inputs=inputs,  # type: ignore[arg-type]  # checked by `train`
        modalities={"audio": audio, "text": text},
        device=device,
        command=click.get_current_context().meta[_WORDS],
    )
    folder = output or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name or source.stem}"
    with progress() as on_progress:
        report = train(source, folder, request, on_progress=on_progress)
    if as_json:
        click.echo(json.dumps({"run": str(report.folder), "table": report.table, "selected": report.selected}))
    else:
        print_table(report)


def _axes(options: Mapping[str, str | None]) -> dict[str, Any]:
    from .grid import AXES, parse_axis

    return {name: parse_axis(name, text) for name in AXES if (text := options[name]) is not None}
