"""What setup.cfg says of the project's own files: packages, folders, commands and dependencies."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def setup_cfg() -> ConfigParser:
    """setup.cfg, parsed."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def package_folders() -> dict[str, str]:
    """Package → folder, as setup.cfg maps them."""
    return dict(line.split(" = ") for line in setup_cfg()["options"]["package_dir"].split("\n") if line)


def module_names() -> list[str]:
    """Every module of every package, by the name that it is imported under."""
    paths = {package: sorted((ROOT / folder).glob("*.py")) for package, folder in package_folders().items()}
    return [f"{package}.{path.stem}".removesuffix(".__init__") for package, some in paths.items() for path in some]


def console_scripts() -> dict[str, str]:
    """Command → `module:function`."""
    scripts = setup_cfg()["options.entry_points"]["console_scripts"]
    return dict(line.split(" = ") for line in scripts.split("\n") if line)


def requirement_lines() -> list[str]:
    """requirements.txt without its comments."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def distribution_name(requirement: str) -> str:
    """`torch` of `torch>=2.11,<2.12`."""
    return re.split(r"[<>=!~ \[;]", requirement)[0]


def extras() -> dict[str, list[str]]:
    """Extra → its requirements."""
    return {name: lines.split("\n")[1:] for name, lines in setup_cfg()["options.extras_require"].items()}
