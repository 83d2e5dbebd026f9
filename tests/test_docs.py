"""The documents say what the commands do: every option is explained, and none is mentioned that does not exist."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import click
import help_texts
import pytest
from house import ROOT, console_scripts, module_names, setup_cfg

from amber2_data.corpora.registry import READERS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# its options and lines are those of its examples: test_extend runs them
OF_EXAMPLES = ROOT / "docs" / "extend.md"
OF_COMMANDS = [page for page in PAGES if page != OF_EXAMPLES]
NAMES = [*sorted(console_scripts()), *(f"python -m {name}" for name in help_texts.MODULES)]
# other people's programs that the pages mention, and their options
PROGRAMS = {"git", "cd", "curl", "pip", "python", ".venv/bin/pip", "export", "pytest"}
FOREIGN = {"--constraint", "--data-binary", "--editable", "--strict", "--extra", "--logdir"}
# those of Ray and of sbatch
FOREIGN |= {"--address", "--disable-usage-stats", "--generate", "--head", "--min-nodes", "--port"}
FOREIGN |= {"--array", "--cpus-per-task", "--dependency", "--exclusive", "--gpus-per-node", "--gres", "--job-name"}
FOREIGN |= {"--mem", "--nodes", "--ntasks-per-node", "--parsable", "--time"}


@cache
def commands() -> dict[str, click.Command]:
    return help_texts.commands()


def options(command: click.Command) -> list[click.Option]:
    return [own for own in command.get_params(click.Context(command)) if isinstance(own, click.Option)]


def flags(command: click.Command) -> set[str]:
    return {"--help", *(flag for option in options(command) for flag in [*option.opts, *option.secondary_opts])}


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's shell blocks, continued lines joined, comments and prompts removed."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [bare for line in lines if (bare := re.sub(r"(^|\s)#.*", "", line).removeprefix("$ ").strip())]


def test_the_installed_commands_are_those_of_setup_cfg() -> None:
    assert {name for name in commands() if not name.startswith("python -m ")} == set(console_scripts())


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_every_option_says_what_it_does(name: str) -> None:
    assert (commands()[name].help or "").strip()
    assert [option.name for option in options(commands()[name]) if not (option.help or "").strip()] == []


def test_the_page_of_the_commands_quotes_their_help_of_today() -> None:
    page = help_texts.PAGE.read_text(encoding="utf-8")
    assert sorted(match["command"] for match in help_texts.BLOCK.finditer(page)) == sorted(commands())
    assert page == help_texts.refreshed(page), "run `make docs`"


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_on_the_page_of_the_commands(name: str) -> None:
    page = help_texts.PAGE.read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert section is not None
    missing = flags(commands()[name]) - set(re.findall(r"--?[a-zA-Z][\w-]*", section[1]))
    assert missing == set()


@pytest.mark.parametrize("page", OF_COMMANDS, ids=lambda page: page.name)
def test_no_page_mentions_an_option_that_does_not_exist(page: Path) -> None:
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text(encoding="utf-8")))
    assert mentioned - FOREIGN - set().union(*map(flags, commands().values())) == set()


@pytest.mark.parametrize("page", OF_COMMANDS, ids=lambda page: page.name)
def test_every_command_line_on_a_page_can_be_parsed(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in shell_lines(page):
        # sbatch has a command line of its own
        if re.match(r"(\w+=\$\()?sbatch ", line):
            continue
        # what another program is told to run
        program, *arguments = shlex.split(line.partition(" -- ")[2] or line)
        if arguments[:1] == ["-m"]:
            program, arguments = f"python -m {arguments[1]}", arguments[2:]
        if program in commands():
            parser = commands()[program].make_parser(click.Context(commands()[program]))
            parser.parse_args(arguments)  # raises on an option that does not exist, or that misses its value
        elif program == "make":
            assert {word for word in arguments if "=" not in word} <= targets, line
        else:
            assert program.partition("=")[0] in PROGRAMS, line


@pytest.mark.parametrize("page", ["README.md", "docs/corpora.md"])
def test_every_corpus_that_can_be_read_is_named(page: str) -> None:
    named = set(re.findall(r"`([\w-]+)`", (ROOT / page).read_text(encoding="utf-8")))
    assert set(READERS) - named == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_into_the_project_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [to for to in targets if "://" not in to and not (page.parent / to).exists()] == []


def test_the_citation_is_of_this_version_under_this_licence() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    metadata = setup_cfg()["metadata"]
    assert re.findall(r"^version: (.+)", citation, re.MULTILINE) == [metadata["version"]]
    assert re.findall(r"^license: (.+)", citation, re.MULTILINE) == [metadata["license"]]


@pytest.mark.parametrize("name", module_names())
def test_every_example_in_a_docstring_gives_what_it_shows(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
