"""The import rules of the rooms, read from the syntax tree of every module: who may import whom, what, and where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from house import ROOT, distribution_name, extras, module_names, package_folders, requirement_lines

# Data flows one way; train and report meet the other rooms only on disk.
MAY_IMPORT: dict[str, set[str]] = {
    "amber2_core": set(),
    "amber2_data": {"amber2_core"},
    "amber2_extract": {"amber2_core", "amber2_data"},
    "amber2_predict": {"amber2_core", "amber2_data", "amber2_extract"},
    "amber2_train": {"amber2_core"},
    "amber2_report": {"amber2_core"},
}
# All that core stands on, and click where it is what commands share; other rooms may use whatever is declared …
CORE_STANDS_ON = {"numpy", "torch", "h5py", "safetensors"}
# … except what hears and reads: a corpus may look at its recordings, only stage 1 and prediction encode them.
ENCODING = {"transformers", "tokenizers", "huggingface_hub", "torchaudio", "soundfile"}
FORBIDDEN: dict[str, set[str]] = {
    "amber2_core": ENCODING,
    "amber2_data": ENCODING - {"soundfile"},
    "amber2_train": ENCODING,
    "amber2_report": ENCODING,
}
# What takes long to import; `--help` must not wait for it.
HEAVY = {
    "h5py",
    "matplotlib",
    "numpy",
    "pandas",
    "scipy",
    "sklearn",
    "soundfile",
    "torch",
    "torchaudio",
    "transformers",
}
# What a test imports inside of the function that uses it: who runs one test waits for no other's oracle.
SLOW_TO_COLLECT = {"matplotlib", "pandas", "scipy", "sklearn", "torchaudio", "transformers"}
LIGHT_MODULES = {"cli", "command", "__init__", "__main__"}
HOMELESS = re.compile(r"(^|_)(utils?|helpers?|common|misc)(_|$)")


@dataclass(frozen=True, slots=True)
class Module:
    """One module of one room, parsed."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement: its whole target, where it stands, and whether it runs when its module is imported."""

    target: str
    place: str
    at_import: bool

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.place} imports {self.target}"


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for package, folder in package_folders().items():
        for path in sorted((ROOT / folder).glob("*.py")):
            name = package if path.stem == "__init__" else f"{package}.{path.stem}"
            found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path))))
    return tuple(found)


def imports(module: Module) -> Iterator[Import]:
    """All imports of a module, those inside of functions and under `if TYPE_CHECKING:` among them."""
    pending: list[tuple[ast.AST, bool]] = [(module.tree, True)]
    while pending:
        node, at_import = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            place = f"{module.path.relative_to(ROOT)}:{node.lineno}"
            names = [absolute(module, node)] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            yield from (Import(name, place, at_import) for name in names)
        inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        asleep = node.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) else []
        pending.extend((child, inside and child not in asleep) for child in ast.iter_child_nodes(node))


def absolute(module: Module, node: ast.ImportFrom) -> str:
    """The full name behind `from .x import y`."""
    if not node.level:
        return node.module or ""
    package = module.name if module.path.stem == "__init__" else module.name.rpartition(".")[0]
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - node.level + 1], *([node.module] if node.module else [])])


def imports_of(room: str) -> list[Import]:
    return [found for module in modules() if module.room == room for found in imports(module)]


def none_of(offences: list[Import]) -> None:
    """Fail with one line for each import that breaks the rule."""
    assert not offences, "\n" + "\n".join(map(str, offences))


def test_every_room_has_its_place_in_the_import_rules() -> None:
    assert {module.room for module in modules()} <= set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_that_it_may_know(room: str) -> None:
    known = {room, *MAY_IMPORT[room]}
    none_of([found for found in imports_of(room) if found.top.startswith("amber2_") and found.top not in known])


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_inside_of_a_room_run_down_at_most_six_floors_and_in_no_circle(room: str) -> None:
    names = {module.name for module in modules() if module.room == room}
    below = {module.name: {f.target for f in _targets(module) if f.target in names} for module in modules()}

    def floors(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, f"a circle: {' → '.join((*above, name))}"
        return 1 + max((floors(other, (*above, name)) for other in below[name] - {name}), default=0)

    assert max(map(floors, sorted(names)), default=0) <= 6


def _targets(module: Module) -> Iterator[Import]:
    """What a module imports, and what of a package it names."""
    yield from imports(module)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            yield from (Import(f"{base}.{a.name}", "", False) for a in node.names)


def test_core_stands_on_arrays_tensors_and_their_files_only() -> None:
    known = sys.stdlib_module_names | CORE_STANDS_ON | {"amber2_core"}
    own = {"click": "amber2_core/command.", "pandas": "amber2_core/run_folder.", "ray": "amber2_core/ray_engine."}
    strange = [found for found in imports_of("amber2_core") if found.top not in known]
    none_of([found for found in strange if not found.place.startswith(own.get(found.top, "nowhere"))])


@pytest.mark.parametrize("room", FORBIDDEN)
def test_only_stage_1_and_prediction_can_encode(room: str) -> None:
    none_of([found for found in imports_of(room) if found.top in FORBIDDEN[room]])


def test_every_library_that_is_imported_is_declared() -> None:
    # at the top of a module: requirements.txt; inside of a function, behind a message: an extra is enough
    needed = sys.stdlib_module_names | set(MAY_IMPORT) | {distribution_name(line) for line in requirement_lines()}
    optional = {distribution_name(line) for lines in extras().values() for line in lines}
    found = [found for module in modules() for found in imports(module)]
    none_of([one for one in found if one.top not in needed and (one.at_import or one.top not in optional)])


def test_commands_and_packages_import_nothing_heavy_at_their_top() -> None:
    light = [module for module in modules() if module.path.stem in LIGHT_MODULES]
    none_of([found for module in light for found in imports(module) if found.at_import and found.top in HEAVY])


@pytest.mark.parametrize(
    "name", [name for name in module_names() if "." not in name or name.rpartition(".")[2] in LIGHT_MODULES]
)
def test_importing_a_command_or_a_package_loads_nothing_heavy_by_any_way(name: str) -> None:
    code = f"import sys, {name}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_tests_import_nothing_at_their_top_that_all_others_would_wait_for() -> None:
    paths = sorted((ROOT / "tests").glob("*.py"))
    tests = [Module(path.stem, path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]
    none_of([found for test in tests for found in imports(test) if found.at_import and found.top in SLOW_TO_COLLECT])


def test_no_module_is_named_for_having_no_home() -> None:
    assert [module.name for module in modules() if any(map(HOMELESS.search, module.name.split(".")))] == []


def test_every_module_says_what_it_is_for() -> None:
    beside = [path for folder in ("tests", "benchmarks", "docs") for path in (ROOT / folder).glob("*.py")]
    trees = {module.name: module.tree for module in modules()}
    trees |= {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in beside}
    assert [name for name, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_the_oracle_of_the_other_tests_imports_nothing_of_ours() -> None:
    path = ROOT / "tests" / "reference.py"
    oracle = Module("reference", path, ast.parse(path.read_text(encoding="utf-8")))
    none_of([found for found in imports(oracle) if found.top.startswith("amber2")])
