"""The command `train-heads`: options in, one run folder and one table out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from amber2_core.command import DONE, INCOMPLETE, command_body

if TYPE_CHECKING:
    from .presets import Grid
    from .request import Request

_WORDS = "amber2.words"
_log = logging.getLogger(__name__)
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
@click.option("--name", help="Name of the run. [default: the cache's]")
@click.option("--preset", help="A grid to start from: paper, ablation; other options change it.")
@click.option(
    "--grid", "grid_file", type=click.Path(path_type=Path), help="The same from a TOML file; see docs/commands.md."
)
@click.option("--system", metavar="LIST", help="Systems to train: amber2, cb-ce. [default: both]")
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
@click.option("--seeds", type=int, help="Number of seeds. [default: 5]")
@click.option("--epochs", type=int, help="Epochs; the best one on dev is kept. [default: 30]")
@click.option("--patience", type=int, help="Stop after so many epochs without a better one. [default: never]")
@click.option(
    "--precision", default="fp32", help="Of the largest products: fp32, bf16; tf32 on a GPU. Weights stay fp32."
)
@click.option("--score-all", is_flag=True, help="Score every setting on test, not only what dev chose.")
@click.option(
    "--plan", "only_plan", is_flag=True, help="Say what would be trained and how long it takes; train nothing."
)
@click.option("--inputs", default="raw", help="Features as cached, or standardised on train rows: raw, standardized.")
@click.option(
    "--missing",
    default="drop",
    help="Utterances without features of some modality: drop; mask: train with what is there.",
)
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
@click.option("--video", metavar="NAME", help="Video feature set, as a third modality. [default: none]")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:0, …")
@click.option(
    "--track",
    metavar="LIST",
    help="Log the finished run where you look already: csv (curves.csv, always written), tensorboard, mlflow.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@command_body
def train_heads(
    *,
    cache: Path | None,
    cache_dir: Path | None,
    output: Path | None,
    name: str | None,
    only_plan: bool,
    track: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Train emotion heads from a feature cache: AmbER² and its baselines, over folds, seeds and a grid.

    Options marked LIST take one value or a comma list; a list of settings makes a grid, and dev chooses its best point
    in each fold. Writes one run folder and prints mean ± sd over seeds of the fold mean, on test.

    \b
      train-heads --kappa 4 --lambda-mai 0.5
      train-heads --preset paper

    A sweep can be stopped: what was finished lies in NAME.unfinished beside the run folder, and the same command goes
    on from there.
    """
    from . import run, tracking
    from .table import print_plan, print_table, progress
    from .targets import find_cache

    wanted = tracking.trackers(track)
    source = find_cache(cache, cache_dir)
    request = _request(options, click.get_current_context().meta[_WORDS])
    if only_plan:
        print_plan(run.plan(source, request), as_json=as_json)
        return DONE
    with progress() as on_progress:
        report = run.train(source, output, request, name=name, on_progress=on_progress)
    if as_json:
        shown = {"table": report.table, "selected": report.selected, "weights": report.weights}
        click.echo(json.dumps({"run": str(report.folder), **shown}))
    else:
        print_table(report)
    failures = tracking.track(report.folder, wanted)
    for line in failures:
        _log.warning(line)
    return INCOMPLETE if failures else DONE


def _request(options: Mapping[str, Any], words: Sequence[str]) -> Request:
    """What was typed, and what it means."""
    from amber2_core.label_spaces import policy_changes

    from .request import Request

    modalities = {name: options[name] for name in ("audio", "text")}
    if options["video"]:
        modalities["video"] = options["video"]
    as_typed = ("folds", "patience", "inputs", "missing", "precision", "score_all", "device")  # `run` checks them
    return Request(
        grid=_grid(options),
        policy=policy_changes(options),
        modalities=modalities,
        command=words,
        **{name: options[name] for name in as_typed},
    )


def _grid(options: Mapping[str, Any]) -> Grid:
    """The preset's or the file's grid, changed by what else was typed."""
    from amber2_core.errors import SettingError

    from .grid import AXES, parse_axis
    from .presets import Grid, preset, read_grid

    if options["preset"] and options["grid_file"]:
        raise SettingError("--preset and --grid are both a grid to start from: give one of them")
    grid = Grid()
    if options["preset"]:
        grid = preset(options["preset"])
    elif options["grid_file"]:
        grid = read_grid(options["grid_file"])
    typed = {axis: parse_axis(axis, text) for axis in AXES if (text := options[axis]) is not None}
    changes = {key: value for key in ("seeds", "epochs") if (value := options[key]) is not None}
    if (systems := options["system"]) is not None:
        changes["systems"] = tuple(part.strip() for part in systems.split(","))
    return replace(grid, axes={**grid.axes, **typed}, **changes)
