"""What all commands share: --quiet and --verbose, the log, a user's error in one line, the exit code, any terminal.

And the options that several of them have.
"""

from __future__ import annotations

import functools
import io
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from .devices import is_out_of_memory, memory_in_words, watch_loading
from .errors import Amber2Error, SettingError
from .shards import Shard, shard_named

# exit codes; click itself exits with 2 on bad usage
DONE, FAILED, INCOMPLETE = 0, 1, 3
# Failures are listed up to here.
SHOWN = 20

_log = logging.getLogger(__name__)


class Command(click.Command):
    """A command whose words come through on any terminal: a sign that it cannot show is replaced."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command, as click does."""
        for stream in (sys.stdout, sys.stderr):
            # Latin-1, cp1252, ASCII; and names of files that are no text in any encoding. What else the user has chosen
            # with PYTHONIOENCODING fails for no sign.
            if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
                stream.reconfigure(errors="replace")
        return super().main(*args, **options)


def together(*options: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """One decorator of several options, which are shown in this order."""
    return lambda command: functools.reduce(lambda body, option: option(body), reversed(options), command)


# on which machines the workers of a command run
ray_options = together(
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where workers run: processes of this machine, or a Ray cluster (extra ray).",
    ),
    click.option(
        "--ray-address",
        metavar="HOST:PORT",
        help="Of --engine ray: the cluster's head, or auto. [default: RAY_ADDRESS, else Ray starts here]",
    ),
    click.option(
        "--gpus-per-worker",
        type=click.FloatRange(min=0, min_open=True),
        default=1.0,
        show_default=True,
        help="Of --engine ray: GPUs that a worker has to itself; below 1 several share one.",
    ),
)

# how votes become labels: the fields of a `LabelPolicy`, as `amber2_core.label_spaces` reads them
policy_options = together(
    click.option(
        "--emotions",
        metavar="LIST",
        help="Label space, in order, or its name: iemocap-4, iemocap-9, msp-podcast-8, msp-podcast-4, crema-d-6. "
        "[default: the corpus's own]",
    ),
    click.option("--stimulus", help="Whose votes: audio, video, audiovisual. [default: the corpus's own]"),
    click.option(
        "--raters",
        default="external",
        show_default=True,
        help="Other people's votes, or the speaker's own too: external, all.",
    ),
    click.option(
        "--multi-label", default="pooled", show_default=True, help="A rater's several ticks: pooled, split, first."
    ),
    click.option(
        "--out-of-space", default="drop", show_default=True, help="Votes outside the label space: drop, other."
    ),
    click.option(
        "--merge",
        metavar="LIST",
        help="Count a word for an emotion, as excited=happy; none. [default: the corpus's own]",
    ),
    click.option("--keep", help="Utterances: consensus, plurality, majority, any-vote. [default: the corpus's own]"),
    click.option(
        "--secondary",
        default="drop",
        show_default=True,
        help="Secondary labels of raters (MSP-Podcast): drop; merge: further ticks, which --multi-label weighs.",
    ),
)


def chosen_shard(ctx: click.Context, param: click.Parameter, value: str | None) -> Shard | None:
    """The callback of ``--shard``: what is meant by 3/16, or by auto; another word ends the command."""
    try:
        return None if value is None else shard_named(value)
    except SettingError as problem:
        raise click.BadParameter(str(problem), ctx, param) from None


def command_body(callback: Callable[..., int | None]) -> Callable[..., None]:
    """Decorate the function under ``@click.command(cls=Command)`` and its options.

    Adds ``--quiet`` and ``--verbose``, and sends the log to standard error. An exit code may be returned; None is 0.
    An `Amber2Error`, an `OSError` such as a full disk, or memory that ran out is printed in one line, and the command
    exits with 1.

    Example:
        >>> @click.command(cls=Command)
        ... @click.argument("cache")
        ... @command_body
        ... def show(cache: str) -> None:
        ...     '''Show a cache.'''
    """

    @click.option("--quiet", is_flag=True, help="Say nothing but warnings, errors and the result.")
    @click.option("--verbose", is_flag=True, help="Say everything, tracebacks of errors included.")
    @functools.wraps(callback)
    def body(*args: Any, quiet: bool, verbose: bool, **options: Any) -> None:
        _set_up_log(quiet=quiet, verbose=verbose)
        watch_loading()
        try:
            code = callback(*args, **options)
        except Amber2Error as error:
            fail(str(error))
        except BrokenPipeError:
            raise  # click ends quietly when the reader of a pipe has gone
        except (MemoryError, RuntimeError, ImportError) as error:
            if not is_out_of_memory(error):
                raise
            fail(f"memory ran out ({memory_in_words(error)})")
        except OSError as error:
            where = error.filename or ("standard output" if _is_full(sys.stdout) else "")
            reason = error.strerror or str(error)
            fail(f"{where}: {reason}" if where else reason)
        click.get_current_context().exit(code or DONE)

    return body


def list_lines(what: str, lines: Sequence[object], rest: str = "", *, shown: int = SHOWN) -> None:
    """Print lines on standard error, as far as they are not too many; `rest` says where the others are."""
    for line in lines[:shown]:
        click.echo(f"{what}: {line}", err=True)
    if len(lines) > shown:
        click.echo(f"{what}: {len(lines) - shown:,} more, {rest or f'{len(lines):,} in all'}", err=True)


def fail(line: str) -> None:
    """End the command that runs with one line on standard error, and exit code 1."""
    _log.debug("the error came from here", exc_info=True)
    click.echo(f"error: {' '.join(line.split())}", err=True)
    click.get_current_context().exit(FAILED)


def _is_full(stream: Any) -> bool:
    """Whether a stream has no room for another line; an error of its own names no file."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        return True
    return False


class _StandardError(logging.Handler):
    """Writes each record as one plain line, to what is standard error at that moment.

    Where a disk has no room for it the work goes on; where its reader has gone nobody waits for the work.
    """

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        try:
            click.echo(f"warning: {line}" if record.levelno >= logging.WARNING else line, err=True)
        except BrokenPipeError:
            raise
        except OSError:
            pass


def _set_up_log(*, quiet: bool, verbose: bool) -> None:
    """Our own packages log their stages, or every detail, all others only warnings; standard error may show less.

    What is not shown still reaches whoever keeps the log, such as a run folder's log.txt.
    """
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _StandardError)]
    root.addHandler(_StandardError(logging.WARNING if quiet else logging.NOTSET))
    root.setLevel(logging.WARNING)
    for package in ("amber2_core", "amber2_data", "amber2_extract", "amber2_train", "amber2_report", "amber2_predict"):
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)
