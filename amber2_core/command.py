"""The body that all commands share: --quiet and --verbose, the log, a user's error in one line, the exit code."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import click

from .errors import Amber2Error, lack_of_memory

# exit codes; click itself exits with 2 on bad usage
DONE, FAILED, INCOMPLETE = 0, 1, 3

_log = logging.getLogger(__name__)


def command_body(callback: Callable[..., int | None]) -> Callable[..., None]:
    """Decorate the function under ``@click.command()`` and its options.

    Adds ``--quiet`` and ``--verbose``, and sends the log to standard error. An exit code may be returned; None is 0.
    An `Amber2Error`, or an `OSError` such as a full disk, is printed in one line, and the command exits with 1.

    Example:
        >>> @click.command()
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
        try:
            code = callback(*args, **options)
        except Amber2Error as error:
            fail(str(error))
        except BrokenPipeError:
            raise  # click ends quietly when the reader of a pipe has gone
        except (MemoryError, ImportError) as error:
            if not (what := lack_of_memory(error)):
                raise
            fail(f"memory ran out ({what}): allow this command more")
        except OSError as error:
            reason = error.strerror or str(error)
            fail(f"{error.filename}: {reason}" if error.filename else reason)
        click.get_current_context().exit(code or DONE)

    return body


def fail(line: str) -> None:
    """End the command that runs with one line on standard error, and exit code 1."""
    _log.debug("the error came from here", exc_info=True)
    click.echo(f"error: {' '.join(line.split())}", err=True)
    click.get_current_context().exit(FAILED)


class _StandardError(logging.Handler):
    """Writes each record as one plain line, to what is standard error at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        click.echo(f"warning: {line}" if record.levelno >= logging.WARNING else line, err=True)


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
