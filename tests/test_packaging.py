"""The package as others get it: every folder is listed, typed and in the wheel, and the pinned versions fit."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from house import ROOT, console_scripts, distribution_name, extras, package_folders, requirement_lines, setup_cfg
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NO_ROOMS = {"tests", "benchmarks", "docs", "typings", "build", "dist", "demo", "cache", "runs", "corpora"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy, so that an old build folder cannot put removed modules into it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for folder in {Path(folder).parts[0] for folder in package_folders().values()}:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def folders_with_modules() -> set[str]:
    """Every folder that holds modules, outside of tests, benchmarks and what tools and users make."""
    tops = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in NO_ROOMS]
    return {module.parent.relative_to(ROOT).as_posix() for top in tops for module in top.rglob("*.py")}


def pins() -> dict[str, str]:
    """Distribution → version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_folder_of_modules_is_listed_as_package_and_as_folder() -> None:
    listed = setup_cfg()["options"]["packages"].split()
    assert sorted(listed) == sorted(package_folders())
    assert sorted(package_folders().values()) == sorted(folders_with_modules())


def test_every_room_is_checked_for_types() -> None:
    checked = set(re.split(r"[,\s]+", setup_cfg()["mypy"]["packages"].strip()))
    assert checked == {package for package in package_folders() if "." not in package}


@pytest.mark.parametrize("package", sorted(package_folders()))
def test_every_package_says_that_it_is_typed(package: str) -> None:
    folder = ROOT / package_folders()[package]
    assert (folder / "py.typed").is_file()
    assert (folder / "__init__.py").is_file()


@pytest.mark.parametrize("package", sorted(name for name in package_folders() if "." not in name))
def test_type_checkers_find_every_room_under_its_package_name(package: str) -> None:
    folder, link = Path(package_folders()[package]), ROOT / "typings" / package
    assert (link if folder.name != package else ROOT / folder).resolve() == ROOT / folder
    assert link.is_symlink() == (folder.name != package)


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in package_folders().items()
        for path in (ROOT / folder).iterdir()
        if path.is_file()
    }
    held = {name for name in wheel.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert held == expected


def test_the_wheel_carries_the_commands_the_licence_and_the_dependencies(wheel: zipfile.ZipFile) -> None:
    info = next(name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    points = ConfigParser()
    points.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert dict(points["console_scripts"]) == console_scripts()
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    assert {str(one) for one in required if one.marker is None} == {
        str(Requirement(one)) for one in requirement_lines()
    }


def test_every_requirement_has_a_tested_version_inside_of_its_range() -> None:
    lines = [*requirement_lines(), *(line for extra in extras().values() for line in extra)]
    requirements = {canonicalize_name(one.name): one for one in map(Requirement, lines)}
    assert [name for name in requirements if name not in pins()] == []
    assert [str(one) for name, one in requirements.items() if not one.specifier.contains(pins()[name])] == []


def test_torch_and_torchaudio_are_a_pair_that_loads() -> None:
    release = {name: pins()[name].split(".")[:2] for name in ("torch", "torchaudio")}
    assert release["torch"] == release["torchaudio"]


def test_what_is_built_with_is_what_is_tested_with() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert {distribution_name(line) for line in needed} == {"setuptools"}
    assert all(Requirement(line).specifier.contains(pins()["setuptools"]) for line in needed)


@pytest.mark.parametrize(
    "name", ["setup.cfg", "pyproject.toml", "requirements.txt", "constraints.txt", "Makefile", ".ci/run"]
)
def test_where_packages_come_from_is_left_to_the_user(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"--(?:extra-)?index-url|--find-links|--trusted-host|(?<!\w)-i http|\S+ @ \w+:", text) == []
