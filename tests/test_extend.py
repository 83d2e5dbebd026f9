"""Every example of docs/extend.md, built into a copy of the packages, run there, and looked for in what it changes."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from golden_files import FEATURES, MODELS, RUN
from house import ROOT, console_scripts, package_folders

from amber2_core.errors import SettingError
from amber2_core.run_folder import read_results, read_settings
from amber2_train.systems.system import system_of

pytestmark = pytest.mark.thorough

PAGE = ROOT / "docs" / "extend.md"
# a block with the path above it, if it has one of its own
BLOCK = re.compile(
    r"^(?:`(?P<path>[\w./-]+)`\n\n)?(?P<fence>`{3,})(?P<kind>\w+)\n(?P<text>.*?)^(?P=fence)$", re.M | re.S
)
# what the page leaves at its defaults, small enough for a test
SMALL = {
    "train-heads": "--epochs 2 --seeds 2 --hidden 8 --batch-size 32 --device cpu --quiet",
    "extract-features": f"--audio-model {MODELS / 'wav2vec2'} --text-model {MODELS / 'bert'} --device cpu --quiet",
    "report-runs": "--quiet",
}
# tests of what the examples touch, without the slow oracles of other metrics: they pass with all examples in place
TOUCHED = [
    *(f"tests/test_{name}.py" for name in ("metrics", "fusion", "losses", "grid", "run_folder")),
    "tests/test_page.py::test_every_number_of_the_result_tables_is_that_of_results_csv",
    "-k", "not scipy and not scikit_learn",
]  # fmt: skip
# runs the lines that it is given, one after the other, in one process: [exit code, what was printed] of each
DRIVER = """
import collections, contextlib, io, json, runpy, sys
from importlib.metadata import EntryPoint
from click.testing import CliRunner

def tested(arguments):
    import pytest
    from amber2_report import page
    nothing = collections.defaultdict(list)  # drawing has its own tests, and takes long
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "figures", lambda group, speaker: nothing)
        code = pytest.main(["-q", "-p", "no:cacheprovider", "--hypothesis-profile", "few", *arguments])
    return [int(code), printed.getvalue()]

def script(words):
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
    return [0, ""]

def called(place, arguments):
    found = CliRunner().invoke(EntryPoint("command", place, "").load(), arguments)
    return [found.exit_code, found.output + repr(found.exception or "")]

(scripts, lines), earlier = json.loads(sys.argv[1]), sys.argv[2]
other = {"pytest": tested, "python": script}
done = [other[name](words) if name in other else called(scripts[name], words) for name, *words in lines]
from amber2_core.run_folder import load
done.append([0, json.dumps(load(earlier).tested["brier"].tolist())])
print(json.dumps(done))
"""


@dataclass
class Examples:
    """What the page holds."""

    files: dict[str, str] = field(default_factory=dict)
    # (path, diff), in order
    changes: list[tuple[str, str]] = field(default_factory=list)
    lines: list[list[str]] = field(default_factory=list)
    packaging: dict[str, Any] = field(default_factory=dict)


def examples() -> Examples:
    found, path = Examples(), ""
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        path = block["path"] or path
        match block["kind"]:
            case "python":
                found.files[path] = block["text"]
            case "diff":
                found.changes.append((path, block["text"]))
            case "toml":
                found.packaging |= tomllib.loads(block["text"])
            case "sh":
                found.lines += [_words(line) for line in block["text"].splitlines()]
            case kind:
                pytest.fail(f"docs/extend.md has a block of kind {kind!r}, which nothing tries")
    found.lines += [["pytest", *(path for path in found.files if path.startswith("tests/"))], ["pytest", *TOUCHED]]
    return found


def _words(line: str) -> list[str]:
    name, *words = shlex.split(line)
    if name == "make":
        return ["pytest", *shlex.split(words[1].removeprefix("PYTEST_ARGS="))]
    return [name, *shlex.split(SMALL.get(name, "")), *words]


def changed(text: str, diff: str) -> str:
    """The text with one change, whose context and removed lines stand in it once, as whole lines."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    places = [found.start() for found in re.finditer(f"^{re.escape(before)}", text, re.M)]
    assert len(places) == 1, f"{len(places)} places for this change:\n{diff}"
    return text[: places[0]] + after + text[places[0] + len(before) :]


@pytest.mark.parametrize(
    ("path", "diff"), [change for change in examples().changes if not re.search("^-", change[1], re.M)]
)
def test_a_change_that_adds_has_its_place_where_others_did_as_it_does(path: str, diff: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    once = changed(text, diff)
    added = sum(line.startswith("+") for line in diff.splitlines())
    assert len(changed(once, diff).splitlines()) == len(text.splitlines()) + 2 * added


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with every example in it, a cache to train from, and a release to read."""
    tree, page = tmp_path_factory.mktemp("tree"), examples()
    places = {"tests": "tests"}
    for package, folder in package_folders().items():
        if "." not in package:
            shutil.copytree(ROOT / folder, tree / package, ignore=shutil.ignore_patterns("*.pyc.*"))
            places[folder] = package
    (tree / "tests").mkdir()
    for path in (ROOT / "tests").glob("*.py"):
        shutil.copy(path, tree / "tests")

    def place(path: str) -> Path:
        folder, _, rest = path.partition("/")
        return tree / places.get(folder, folder) / rest

    for path, text in page.files.items():
        place(path).parent.mkdir(exist_ok=True)
        assert not place(path).exists(), f"{path} is there already"
        place(path).write_text(text, encoding="utf-8")
    for path, diff in page.changes:
        place(path).write_text(changed(place(path).read_text(encoding="utf-8"), diff), encoding="utf-8")
    installed = tree / "my_systems-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: my-systems\nVersion: 1\n")
    for group, points in page.packaging["project"]["entry-points"].items():
        lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        (installed / "entry_points.txt").write_text("\n".join(lines))
    (tree / "cache").mkdir()
    shutil.copy(FEATURES, tree / "cache")
    _write_release(tree / "path" / "to" / "cafe")
    _write_codec(tree / "path" / "to" / "encodec")
    return tree


def _write_release(root: Path) -> None:
    from small_corpus import write_recording

    (root / "clips").mkdir(parents=True)
    for number, clip in enumerate(("mary_0001", "john_0002", "john_0003")):
        write_recording(root / "clips" / f"{clip}.wav", 0.2, seed=number)
    rows = ["mary_0001,The voice.,r1,happy", "mary_0001,The voice.,r2,Amused", "john_0002,One voice.,r1,sad"]
    rows.append("john_0003,They know.,r1,neutral")
    (root / "votes.csv").write_text("\n".join(["clip,text,rater,emotion", *rows]) + "\n")


def _write_codec(folder: Path) -> None:
    import transformers

    model: Any = transformers.EncodecModel
    sizes = {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "codebook_size": 8, "upsampling_ratios": [8, 4]}
    model(transformers.EncodecConfig(**sizes)).save_pretrained(folder)
    preprocessor: Any = transformers.EncodecFeatureExtractor
    preprocessor(sampling_rate=16_000).save_pretrained(folder)


@pytest.fixture(scope="module")
def done(tree: Path) -> dict[str, tuple[int, str]]:
    """Every line of the page, run where the examples are: its exit code, and what it printed."""
    lines = examples().lines
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    given = json.dumps([console_scripts(), lines])
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER, given, str(RUN)], cwd=tree, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout.splitlines()[-1])
    names = [*map(shlex.join, lines), "an earlier run"]
    return {name: (code, printed) for name, (code, printed) in zip(names, results, strict=True)}


def rows(tree: Path, run: str, **wanted: object) -> list[dict[str, Any]]:
    """Rows of a run's results.csv."""
    found = read_results(tree / "runs" / run)
    return [row for row in found if all(row[name] == value for name, value in wanted.items())]


def test_every_line_of_the_page_does_its_work_and_every_test_on_it_passes(done: dict[str, tuple[int, str]]) -> None:
    assert len(done) > 12
    failures = [f"{line}\n{printed}" for line, (code, printed) in done.items() if code]
    assert not failures, "\n\n".join(failures)
    tests = [printed for line, (_, printed) in done.items() if line.startswith("pytest")]
    assert all(re.search(r"\d+ passed", printed) for printed in tests)


@pytest.mark.usefixtures("done")
def test_the_setting_of_an_own_system_is_an_option_an_axis_and_a_column(tree: Path) -> None:
    assert {row["gamma"] for row in rows(tree, "focal", system="focal", split="dev")} == {0, 1, 2}
    assert {row["gamma"] for row in rows(tree, "focal", system="cb-ce")} == {None}
    assert read_settings(tree / "runs" / "focal")["axes"][0] == "gamma"
    by_path, by_name = (
        {
            (row["head"], row["fold"], row["seed"]): row["js"]
            for row in rows(tree, run, system="focal", split="dev", gamma=2)
        }
        for run in ("focal", "focal-by-name")
    )
    assert by_path == pytest.approx(by_name)


@pytest.mark.usefixtures("done")
def test_a_system_without_a_gradient_is_scored_like_any_other_and_has_no_epochs(tree: Path) -> None:
    from amber2_core.heads_folder import read_tensors

    own = rows(tree, "neighbours", system="neighbours")
    assert {row["neighbours"] for row in own if row["split"] == "dev"} == {3, 5, 10}
    assert {row["head"] for row in own} == {"audio", "text", "fusion"}
    assert all(row["epoch"] is None and math.isfinite(row["js"]) for row in own)
    tensors, record = read_tensors(next((tree / "runs" / "neighbours" / "heads").glob("neighbours-*")))
    assert (len(tensors["targets"]), record["system"]) == (len(tensors["audio"]), "neighbours")


@pytest.mark.usefixtures("done")
def test_a_term_without_weight_leaves_the_system_that_it_is_added_to(tree: Path) -> None:
    keys = ("head", "fold", "seed")
    plain = {
        tuple(row[key] for key in keys): row["js"] for row in rows(tree, "confident", system="amber2", split="dev")
    }
    for weight in (0, 0.1):
        own = rows(tree, "confident", system="amber2-confident", split="dev", lambda_entropy=weight)
        found = {tuple(row[key] for key in keys): row["js"] for row in own}
        assert (found == pytest.approx(plain, abs=1e-7)) is (weight == 0)


@pytest.mark.usefixtures("done")
def test_a_new_distance_and_a_new_fusion_are_trained_beside_the_old_ones(tree: Path) -> None:
    for run, axis, values in (("hellinger", "loss", {"js", "hellinger"}), ("fusions", "fusion", {"gmu", "mean"})):
        own = rows(tree, run, split="dev", head="fusion", system="amber2")
        assert {row[axis] for row in own} == values
        scores = [{row["js"] for row in own if row[axis] == value} for value in values]
        assert not set.intersection(*scores)
        assert all(map(math.isfinite, set.union(*scores)))


def test_a_new_metric_is_a_column_of_new_runs_and_is_computed_for_earlier_ones(
    tree: Path, done: dict[str, tuple[int, str]]
) -> None:
    assert all(0 < row["brier"] < 2 for row in rows(tree, "focal"))
    earlier = json.loads(done["an earlier run"][1])
    assert len(earlier) == len([row for row in read_results(RUN) if row["split"] == "test" and row["selected"]])
    assert all(0 < score < 2 for score in earlier)
    table = (tree / "reports" / "focal" / "tables" / "all-metrics.md").read_text(encoding="utf-8")
    assert "Brier ↓" in table
    assert any("ece ↓" in printed and "brier ↓" in printed for _, printed in done.values())


@pytest.mark.usefixtures("done")
def test_a_new_column_is_in_the_tables_of_the_report_and_on_its_page(tree: Path) -> None:
    report = tree / "reports" / "focal"
    header, *lines = (report / "tables" / "folds.csv").read_text(encoding="utf-8").splitlines()
    assert "epoch" in header.split(",")
    assert len(lines) == 2 * 3 * 5  # systems, heads, folds
    assert "epoch kept" in (report / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("done")
def test_a_new_family_and_a_new_pooling_stand_beside_the_old_ones(tree: Path) -> None:
    from amber2_core.cache import read_cache

    sets = {some.name: some for some in read_cache(tree / "cache" / "cafe.h5").features}
    assert {*sets} == {"wav2vec2", "encodec", "wav2vec2-max", "bert", "spectra"}
    assert {name: some.recipe.get("pooling") for name, some in sets.items() if name.startswith("wav2vec2")} == {
        "wav2vec2": "mean",
        "wav2vec2-max": "max",
    }
    assert (sets["wav2vec2-max"].values > sets["wav2vec2"].values).all()
    assert sets["encodec"].values.shape == (3, 8)


@pytest.mark.usefixtures("done")
def test_vectors_made_elsewhere_stand_beside_those_of_the_encoders(tree: Path) -> None:
    from amber2_core.cache import read_cache

    sets = {(some.modality, some.name): some for some in read_cache(tree / "cache" / "cafe.h5").features}
    spectra = sets["audio", "spectra"]
    assert spectra.values.shape == (3, 80)
    assert (spectra.values[:, 40:] >= spectra.values[:, :40]).all()
    assert "log spectrum" in str(spectra.recipe)


@pytest.mark.parametrize(
    ("decorator", "value"), [("@dataclass(frozen=True)", "3"), ("@dataclass", "option(3, 'Depth.')"), ("", "3")]
)
def test_settings_that_are_no_frozen_dataclass_of_options_are_refused_in_one_line(
    decorator: str, value: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom amber2_train.systems.system import System, option\n"
        f"{decorator}\nclass Own:\n    depth: int = {value}\n"
        "class Mine(System):\n    name, Settings = 'mine', Own\n"
    )
    with pytest.raises(SettingError, match="the Settings of Mine are no frozen dataclass of options; see docs/extend"):
        system_of(f"{path}:Mine")


def test_a_new_corpus_is_checked_and_encoded_with_every_vote(tree: Path, done: dict[str, tuple[int, str]]) -> None:
    from amber2_core.cache import read_cache

    ((_, printed),) = [result for line, result in done.items() if line.startswith("check-corpus")]
    assert "cafe at path/to/cafe" in printed
    assert "4 ratings in all" in printed
    cache = read_cache(tree / "cache" / "cafe.h5")
    assert (cache.corpus, cache.utterances.id.tolist()) == ("cafe", ["mary_0001", "john_0002", "john_0003"])
    assert cache.ratings.label.tolist() == ["happy", "Amused", "sad", "neutral"]
