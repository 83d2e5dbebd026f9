"""From the commands' own --help to the blocks of docs/commands.md that quote it: `make docs`."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path

import click

PAGE = Path(__file__).resolve().with_name("commands.md")
# run as `python -m`
MODULES = ("amber2_data.corpora.synthetic", "amber2_extract.stand_ins")
# ## name, prose of any length, then the quoted help
BLOCK = re.compile(r"(^## (?P<command>[\w. -]+)\n(?:(?!^## ).*\n)*?```text\n)(?:(?!```).*\n)*(```\n)", re.MULTILINE)


def commands() -> dict[str, click.Command]:
    """Every command by what a user types: the console scripts of the installed package, and `MODULES`."""
    points = distribution("amber2").entry_points.select(group="console_scripts")
    modules = {f"python -m {name}": import_module(name).main for name in MODULES}
    return {point.name: point.load() for point in points} | modules


def help_text(name: str, command: click.Command) -> str:
    """What `name --help` prints on a terminal of 100 columns."""
    context = command.make_context(name, [], resilient_parsing=True, terminal_width=100, max_content_width=100)
    return command.get_help(context).rstrip() + "\n"


def refreshed(page: str) -> str:
    """The page with the help of today in its blocks; a KeyError for a block of a command that does not exist."""
    known = commands()
    return BLOCK.sub(lambda m: m[1] + help_text(m["command"], known[m["command"]]) + m[3], page)


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")


if __name__ == "__main__":
    main()
