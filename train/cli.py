"""The command `train-heads`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from amber2_core.command import DONE, INCOMPLETE, Command, chosen_shard, command_body, fail, policy_options, ray_options
from amber2_core.errors import Amber2Error, SettingError

if TYPE_CHECKING:
    from amber2_core.shards import Shard

    from .options import Grid, TrainOptions

_WORDS = "amber2.words"
# what may stand beside --again: all that changes no number but by the way it is computed
_BESIDE_AGAIN = (
    "again", "cache", "cache_dir", "output", "name", "only_plan", "device", "track", "as_json", "quiet", "verbose",
    "engine", "ray_address", "gpus_per_worker",
)  # fmt: skip
_MACHINES = ("--engine", "--ray-address", "--gpus-per-worker")
_PLACES = ("--cache", "--cache-dir", "--output", "--name", "--track", "--shard", *_MACHINES)
_log = logging.getLogger(__name__)


class _Command(Command):
    """A command that has the options of the systems' settings, a user's own system's among them.

    It remembers the words it was given, for settings.json.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = (self.name, *args)
        try:
            groups, own = _settings(_named(ctx)), {param.name for param in super().get_params(ctx)}
        except Amber2Error as error:
            fail(str(error))
        for option in (option for _, some in groups for option in some if option.name in own):
            fail(f"Bad setting {option.name!r} of a system: train-heads has an option of that name; rename it")
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *(option for _, some in _settings(_named(ctx)) for option in some)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, then the settings of the systems in groups."""
        for title, some in [("Options", super().get_params(ctx)), *_settings(_named(ctx))]:
            with formatter.section(title):
                formatter.write_dl([record for param in some if (record := param.get_help_record(ctx)) is not None])


def _named(ctx: click.Context) -> tuple[str, ...]:
    """The systems that are named by what was typed."""
    words = [part for word in ctx.meta.get(_WORDS, ()) for part in word.split("=", 1)]
    places = [k for k, word in enumerate(words[:-1]) if word == "--system"]
    return tuple(_list(words[places[-1] + 1])) if places else ()


@cache
def _settings(named: tuple[str, ...]) -> list[tuple[str, list[click.Parameter]]]:
    """The options of all settings of our systems and those that are named, by title: what all have, what some have."""
    from .grid import axes_of, own_axes
    from .systems.system import ALL, OURS, system_of

    references = list(dict.fromkeys((*OURS, *(name for name in named if name != ALL))))
    groups: dict[tuple[str, ...], list[click.Parameter]] = {}
    for name, axis in axes_of(references).items():
        own = {r: mine[name] for r in references if name in (mine := own_axes(system_of(r)))}
        having = tuple(own)
        what, choices = axis.metadata["what"], ", ".join(axis.metadata["choices"])
        text = f"{what}: {choices}." if choices else what
        others = "".join(f"; {r} {_shown(a.default)}" for r, a in own.items() if a.default != axis.default)
        flag = "--" + name.replace("_", "-")
        option = click.Option([flag], metavar="LIST", help=f"{text} [default: {_shown(axis.default)}{others}]")
        groups.setdefault(having, []).append(option)
    return [
        ("Settings of " + ("all systems" if len(having) == len(references) else ", ".join(having)), some)
        for having, some in sorted(groups.items(), key=lambda group: len(group[0]))
    ]


def _shown(default: object) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


@click.command(cls=_Command, context_settings={"show_default": True, "max_content_width": 110})
@click.option("--cache", type=click.Path(path_type=Path), help="The feature cache. [default: the only one there is]")
@click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="Where to look for it. [default: $AMBER2_CACHE_DIR or ./cache]"
)
@click.option("--output", type=click.Path(path_type=Path), help="The run folder to write. [default: ./runs/TIME-NAME]")
@click.option("--name", help="Name of the run. [default: the cache's]")
@click.option(
    "--shard",
    callback=chosen_shard,
    metavar="K/N",
    help="Train this part of the sweep, for merge-shards: 3/16, or auto under SLURM or torchrun. [default: all]",
)
@click.option(
    "--again",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Run the command of this run folder again, and compare; see below.",
)
@click.option("--preset", help="A grid to start from: paper, ablation; other options change it.")
@click.option(
    "--grid", "grid_file", type=click.Path(path_type=Path), help="The same from a TOML file; see docs/commands.md."
)
@click.option(
    "--system",
    metavar="LIST",
    help="Systems to train (see docs/systems.md): amber2, cb-ce, …; all, as far as the cache can feed them; one of "
    "another package; or your own, path/to/my_system.py:MySystem. [default: amber2,cb-ce]",
)
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
@policy_options
@click.option(
    "--targets",
    default="human",
    help="Whose votes train learns from: human, synthetic (of models, see import-ratings), combined. "
    "Dev and test stay human.",
)
@click.option(
    "--audio",
    metavar="LIST",
    help="Audio feature set, or several, each with a head of its own; none. [default: the only one, if any]",
)
@click.option("--text", metavar="LIST", help="Text feature sets likewise; none. [default: the only one, if any]")
@click.option("--video", metavar="LIST", help="Video feature sets, as a further modality. [default: none]")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:0, …")
@ray_options
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
    shard: Shard | None,
    again: Path | None,
    only_plan: bool,
    engine: str,
    ray_address: str | None,
    gpus_per_worker: float,
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

    --again RUN takes the command and the cache from a run folder; --cache, --output, --name, --device and --track may
    stand beside it. It prints what of data, settings, versions and numbers differs, and exits with 3 if any but
    versions do: scores by more than 1e-5, or 1e-4 where the runs were computed on different kinds of device.

    A sweep can be stopped: what was finished lies in NAME.unfinished beside the run folder, and the same command goes
    on from there. With --shard it lies in NAME.shard-3-of-16, and merge-shards makes all shards one run folder.
    """
    from amber2_core.engine import prepare
    from amber2_core.ray_engine import machines

    from . import PRELOADED

    prepare(*PRELOADED)  # while all else is imported and read

    from . import run, tracking
    from .again import differences
    from .show import print_differences, print_plan, print_table, progress
    from .training_data import find_cache

    trackers = tracking.trackers(track)
    words = click.get_current_context().meta[_WORDS]
    if again is not None:
        cache, options, words = _command_of(again, cache, cache_dir, options)
    source = find_cache(cache, cache_dir)
    wanted = _options(options, words)
    if only_plan:
        if engine != "local":
            raise SettingError("--plan is measured on this machine: leave --engine out")
        print_plan(run.plan(source, wanted), as_json=as_json)
        return DONE
    with machines(engine, ray_address, gpus_per_worker=gpus_per_worker) as there, progress() as on_progress:
        if shard is not None:
            if output is None or track is not None:
                raise SettingError("--shard needs --output, by which shards know one another, and --track a whole run")
            wanted = replace(wanted, command=_without(words, ("--shard",)))
            folder = run.train_shard(source, output, wanted, shard, on_progress=on_progress, machines=there)
            click.echo(json.dumps({"shard": str(folder)}) if as_json else str(folder))
            return DONE
        report = run.train(source, output, wanted, name=name, on_progress=on_progress, machines=there)
    found, besides = differences(again, report.folder) if again is not None else ([], [])
    if as_json:
        shown: dict[str, Any] = {"table": report.table, "selected": report.selected, "weights": report.weights}
        if report.against_synthetic:
            shown["against_synthetic"] = report.against_synthetic
        if again is not None:
            shown["again"] = {"run": str(again), "differences": found, "besides": besides}
        click.echo(json.dumps({"run": str(report.folder), **shown}))
    else:
        print_table(report)
        if again is not None:
            print_differences(again, found, besides)
    failures = tracking.track(report.folder, trackers)
    for line in failures:
        _log.warning(line)
    return INCOMPLETE if failures or found else DONE


def _command_of(
    folder: Path, cache: Path | None, cache_dir: Path | None, typed: Mapping[str, Any]
) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The cache, the options and the words of a run folder's command, but for what was typed beside --again."""
    context = click.get_current_context()
    for name in context.params:
        if name not in _BESIDE_AGAIN and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            flag = "--" + name.replace("_", "-")
            raise SettingError(f"{flag} beside --again would make another run: leave one of them out")
    has_device = context.get_parameter_source("device") is ParameterSource.COMMANDLINE
    return _saved(folder, cache, cache_dir, device=typed["device"] if has_device else None)


def _saved(
    folder: Path, cache: Path | None, cache_dir: Path | None, *, device: str | None = None
) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The cache, the options and the words of the command in a folder's settings.json, perhaps on another device."""
    from .again import from_where_it_began, saved_cache, saved_command

    saved = from_where_it_began(folder, saved_command(folder))
    words = _without(saved, _PLACES if device is None else (*_PLACES, "--device"))
    words += [] if device is None else ["--device", device]
    try:
        options = train_heads.make_context("train-heads", list(words)).params
    except click.UsageError as problem:
        line = f"This version does not understand the command of {folder}: {problem.format_message()}"
        raise SettingError(line) from None
    if cache is None and cache_dir is None:
        cache = saved_cache(folder)
    aside = {*_BESIDE_AGAIN} - {"device"}
    return cache, {name: value for name, value in options.items() if name not in aside}, ["train-heads", *words]


def merge_sweep(shards: Sequence[Path], output: Path | None, cache: Path | None) -> None:
    """What `merge-shards` does with the shards of a sweep."""
    from amber2_core.shards import whole_of

    from . import run
    from .show import print_table
    from .training_data import find_cache
    from .unfinished import check_shards

    check_shards(shards)
    place, options, words = _saved(shards[0], cache, None)
    output = output or whole_of(shards[0])
    print_table(run.merge(shards, find_cache(place, None), output, _options(options, words)))


def _without(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """A command's words without some options and their values."""
    kept, rest = list[str](), iter(words)
    for word in rest:
        if word in flags:
            next(rest, None)
        elif word.partition("=")[0] not in flags:
            kept.append(word)
    return kept


def _options(typed: Mapping[str, Any], words: Sequence[str]) -> TrainOptions:
    """What was typed, and what it means."""
    from amber2_core.label_spaces import policy_changes

    from .options import TrainOptions

    modalities = {name: typed[name] for name in ("audio", "text", "video") if typed[name] != "none"}
    if typed["video"] is None:
        del modalities["video"]
    as_typed = ("folds", "patience", "inputs", "missing", "targets", "precision", "score_all", "device")
    return TrainOptions(
        grid=_grid(typed),
        policy=policy_changes(typed),
        modalities=modalities,
        command=words,
        **{name: typed[name] for name in as_typed},
    )


def _grid(typed: Mapping[str, Any]) -> Grid:
    """The preset's or the file's grid, changed by what else was typed."""
    from .grid import axes_of, parse_axis
    from .options import Grid, preset, read_grid
    from .systems.system import ALL, OURS, systems_of

    if typed["preset"] and typed["grid_file"]:
        raise SettingError("--preset and --grid are both a grid to start from: give one of them")
    grid = Grid()
    if typed["preset"]:
        grid = preset(typed["preset"])
    elif typed["grid_file"]:
        grid = read_grid(typed["grid_file"])
    changes = {key: value for key in ("seeds", "epochs") if (value := typed[key]) is not None}
    if typed["system"] is not None:
        changes["systems"] = tuple(_list(typed["system"]))
        systems_of([name for name in changes["systems"] if name != ALL] or list(OURS))
    named = [name for name in changes.get("systems", ()) if name != ALL]
    axes = axes_of(list(dict.fromkeys((*OURS, *named))))
    values = {name: parse_axis(name, axis, text) for name, axis in axes.items() if (text := typed[name]) is not None}
    return replace(grid, axes={**grid.axes, **values}, **changes)
