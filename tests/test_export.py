"""From a run to a folder that predicts alone: the run's own numbers elsewhere, by another process, as a graph."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner, Result
from heads_folders import config_of, member
from hypothesis import given
from hypothesis import strategies as st
from small_models import save_classifier
from speaking_heads import Studio, made_studio
from synthetic_data import cache_of, write_layered_cache

from amber2_core.cache import Features, read_cache, write_cache
from amber2_core.errors import ModelError, RunFolderError, SettingError
from amber2_core.metrics import evaluate
from amber2_core.run_folder import read_predictions, read_results
from amber2_predict import Predictor
from amber2_predict.card import card, text
from amber2_predict.chosen import choose
from amber2_predict.cli import export_heads
from amber2_predict.folder import read_folder
from amber2_predict.graph import write_graph
from amber2_train.cli import train_heads

Arrays = dict[str, npt.NDArray[Any]]


def run(command: Any, *words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def exported(*words: object) -> Result:
    done = run(export_heads, *words)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of several systems on a small cache, which lies beside it as made-up.h5; some read a sentiment."""
    place = tmp_path_factory.mktemp("plain")
    cache = cache_of(90)
    inputs, random = cache.features[0].inputs, np.random.default_rng(0)
    shares = {size: random.dirichlet(np.ones(size), 90).astype(np.float32) for size in (3, 4)}
    held = (
        Features("sentiment", "classifier", shares[3], inputs, {"model": "classifier"}),
        Features("prediction", "gpt", shares[4], inputs, {"emotions": ["neutral", "happy", "angry", "sad"]}),
    )
    write_cache(place / "made-up.h5", replace(cache, features=(*cache.features, *held)))
    systems = "amber2,cb-ce,emo-ent,evidential,imported:gpt"
    command = ["--cache", place / "made-up.h5", "--system", systems, "--decider", "text", "--hidden", 6, "--epochs", 3]
    done = run(train_heads, *command, "--lr", 0.01, "--batch-size", 16, "--seeds", 2, "--output", place / "run")
    assert done.exit_code == 0, done.output
    return place / "run"


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on a cache of layers and frames, standardised, in which some utterances lack a modality."""
    place = tmp_path_factory.mktemp("layered")
    write_layered_cache(place, count=60, missing={"audio": [2, 21, 40], "text": [3, 4, 5]})
    for name, option in (("attentive", "--input-pooling"), ("weighted", "--input-layers")):
        command = ["--cache", place / "layered.h5", "--system", "cb-ce", option, name, "--inputs", "standardized"]
        command += ["--missing", "mask", "--hidden", 6, "--epochs", 2, "--lr", 0.01, "--seeds", 1]
        done = run(train_heads, *command, "--output", place / name)
        assert done.exit_code == 0, done.output
    command = ["--cache", place / "layered.h5", "--system", "lddu", *SMALL.split()[2:], "--lddu-mode", "multi-label"]
    command += ["--missing", "mask", "--epochs", 2, "--seeds", 2, "--output", place / "presence"]
    done = run(train_heads, *command)
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture(scope="module")
def graphed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seeds of AmbER² on the third fold as a folder with a graph: to be read, not to be moved."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("graphed") / "heads"
    exported(plain, "--output", folder, "--system", "amber2", "--fold", 3, "--ensemble", "--onnx")
    return folder


def read_of(run: Path, cache: Path, fold: int, reads: str) -> tuple[Arrays, npt.NDArray[np.intp]]:
    """What a fold's test utterances read of a cache, by the names of a graph's inputs, and their rows of the run."""
    held, predictions = read_cache(cache), read_predictions(run)
    rows = np.flatnonzero(predictions.fold == fold)
    place = {name: k for k, name in enumerate(held.utterances.id)}
    own = np.array([place[name] for name in predictions.id[rows]])
    found: Arrays = {}
    for modality in sorted({some.modality for some in held.features} & {"audio", "text", "sentiment"}):
        some = held.feature_set(modality)
        present = some.encoded[own]
        found[f"{modality}.present"] = present
        if reads == "frames" and some.frames is not None:
            starts, ends = some.frames.offsets[own], some.frames.offsets[own + 1]
            longest = int((ends - starts).max())
            valid = np.arange(longest) < (ends - starts)[:, None]
            frames = np.zeros((len(own), longest, some.frames.values.shape[1]), np.float32)
            frames[valid] = np.concatenate([some.frames.values[a:b] for a, b in zip(starts, ends, strict=True)])
            found[modality], found[f"{modality}.valid"] = frames, valid
        else:
            values = some.values[own] if some.values.ndim == 2 or reads == "layers" else some.values[own][:, -1]
            found[modality] = np.where(present.reshape(-1, *[1] * (values.ndim - 1)), values, 0).astype(np.float32)
    return found, rows


ALONE = """
import sys
import numpy as np, torch
from amber2_predict.folder import read_folder
from amber2_predict.graph import write_graph
heads = read_folder(sys.argv[1])
given = {name: torch.from_numpy(x) for name, x in np.load(sys.argv[2]).items()}
features, present = {}, {}
for name in heads.reads:
    features[name] = (given[name], given[name + ".valid"]) if name + ".valid" in given else given[name]
    present[name] = given[name + ".present"]
np.savez(sys.argv[3], **{name: probs.numpy() for name, probs in heads.probs(features, present).items()})
"""
AS_GRAPH = """
import json, sys
import numpy as np, onnxruntime
told = json.load(open(sys.argv[1] + "/description.json"))
session = onnxruntime.InferenceSession(sys.argv[1] + "/" + told["path"])
given = {name: x for name, x in np.load(sys.argv[2]).items()}
assert given.keys() == told["inputs"].keys()
found = dict(zip(told["outputs"], session.run(list(told["outputs"]), given), strict=True))
assert np.array_equal(found["probs"], found["probs." + told["main"]], equal_nan=True)
assert not any(name.startswith(("torch", "amber2")) for name in sys.modules)
np.savez(sys.argv[3], **{name.removeprefix("probs."): probs for name, probs in found.items() if name != "probs"})
"""


def elsewhere(code: str, folder: Path, given: Arrays, place: Path) -> Arrays:
    """What a fresh process predicts from a folder that has been moved, and some arrays."""
    shutil.move(folder, place / "moved")
    np.savez(place / "given.npz", **given)  # type: ignore[arg-type]
    words = [str(place / name) for name in ("moved", "given.npz", "found.npz")]
    subprocess.run([sys.executable, "-c", code, *words], check=True, cwd=place)
    with np.load(place / "found.npz") as found:
        return dict(found)


def equals_run(found: Arrays, run: Path, system: str, seeds: Sequence[int], rows: npt.NDArray[np.intp]) -> None:
    """What was found are the run's own predictions, those of several seeds averaged."""
    predictions = read_predictions(run)
    heads = {name.partition("/")[2]: p for name, p in predictions.probs.items() if name.partition("/")[0] == system}
    assert found.keys() == heads.keys()
    for head, probs in heads.items():
        assert not np.isnan(found[head]).all()
        np.testing.assert_allclose(found[head], probs[list(seeds)][:, rows].mean(0), rtol=0, atol=1e-5)


SYSTEMS = ("amber2", "cb-ce", "evidential", "lddu", "emo-ent")
SMALL = "--decider sentiment --lddu-width 8 --lddu-layers 1 --lddu-attention-heads 2 --lddu-latent 4"
FOLD = 4
# of every folder of heads in a place, the predictions of recordings with their words
SPOKEN = """
import json, sys
from pathlib import Path
from amber2_predict import Predictor
from amber2_predict.units import Unit
place, models, asked = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
for heads in sorted(place.iterdir()):
    own = {name: path for name, path in models.items() if name != "sentiment_model" or "emo-ent" in heads.name}
    rows = Predictor.from_pretrained(heads, device="cpu", **own).rows(
        Unit(file, Path(file), transcript=words) for file, words in asked
    )
    print(json.dumps([heads.name, list(rows)]))
"""


@dataclass(frozen=True)
class Exported:
    """Heads of every system as folders, ``SYSTEM`` one model and ``SYSTEM-ensemble`` two; cache and run are gone."""

    heads: Path
    studio: Studio
    read: dict[str, Arrays]  # what a graph of vectors, and of frames, takes of the fold's test utterances
    rows: npt.NDArray[np.intp]  # of the run's predictions

    def equals_run(self, name: str, found: Mapping[str, Any]) -> None:
        """What was found of a folder is what the run predicted on test, averaged over an ensemble's seeds."""
        system, said = name.removesuffix("-ensemble"), self.studio.said
        seeds = [1] if name == system else [0, 1]
        heads = {head.partition("/")[2] for head in said.probs if head.partition("/")[0] == system}
        assert found.keys() == heads
        for head in heads:
            expected = said.probs[f"{system}/{head}"][seeds][:, self.rows].mean(0)
            np.testing.assert_allclose(found[head], expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    place = tmp_path_factory.mktemp("spoken")
    studio = made_studio(place, utterances=60, systems=SYSTEMS, options=SMALL)
    for system in SYSTEMS:
        own = ["--system", system, "--fold", FOLD, "--output"]
        exported(studio.run, *own, place / "made" / system, "--seed", 1)
        exported(studio.run, *own, place / "made" / f"{system}-ensemble", "--ensemble")
    said = {reads: read_of(studio.run, place / "cache.h5", FOLD, reads) for reads in ("vector", "frames")}
    assert studio.said.measures["emo-ent/flagged"][:, said["vector"][1]].any(1).all()  # a sentiment decides of some
    shutil.move(place / "made", place / "moved")
    shutil.rmtree(studio.run)
    (place / "cache.h5").unlink()
    return Exported(place / "moved", studio, {name: own for name, (own, _) in said.items()}, said["vector"][1])


def test_a_fresh_process_predicts_a_fold_s_recordings_as_the_run_did_without_cache_and_run(spoken: Exported) -> None:
    studio = spoken.studio
    known = {u.id: (str(studio.corpus.root / str(u.audio)), u.transcript) for u in studio.corpus.utterances}
    asked = [known[studio.said.id[row]] for row in spoken.rows]
    words = [sys.executable, "-c", SPOKEN, str(spoken.heads), json.dumps(studio.models), json.dumps(asked)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=spoken.heads.parent, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(map(json.loads, done.stdout.splitlines()))
    assert found.keys() == {*SYSTEMS, *(f"{system}-ensemble" for system in SYSTEMS)}
    for name, rows in found.items():
        heads = rows[0]["heads"]
        spoken.equals_run(name, {head: [[*row["heads"][head].values()] for row in rows] for head in heads})


def test_the_command_is_told_where_the_classifier_of_sentiment_lies(spoken: Exported, tmp_path: Path) -> None:
    studio = spoken.studio
    code, said, complained = studio.command("--heads", str(spoken.heads / "emo-ent"), str(studio.table), cwd=tmp_path)
    assert code == 0, complained
    every = dict(zip([u.id for u in studio.corpus.utterances], map(json.loads, said.splitlines()), strict=True))
    rows = [every[studio.said.id[row]] for row in spoken.rows]
    found = {head: [[*row["heads"][head].values()] for row in rows] for head in ("audio", "text", "fusion")}
    spoken.equals_run("emo-ent", found)
    assert {tuple(row["inputs"]) for row in rows} == {("audio", "text")}


def test_another_classifier_of_sentiment_is_refused(spoken: Exported, tmp_path: Path) -> None:
    save_classifier(tmp_path / "other", "bert", ("positive", "neutral", "negative"), seed=1)
    models = {**spoken.studio.models, "sentiment_model": str(tmp_path / "other")}
    with pytest.raises(ModelError, match=r"trained on classifier for sentiment, .*: weights_digest changed"):
        Predictor.from_pretrained(spoken.heads / "emo-ent", device="cpu", **models)  # type: ignore[arg-type]
    del models["sentiment_model"]
    with pytest.raises(ModelError, match="called classifier for sentiment: say where it lies by --sentiment-model"):
        Predictor.from_pretrained(spoken.heads / "emo-ent", device="cpu", **models)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="these heads read no sentiment"):
        Predictor.from_pretrained(spoken.heads / "amber2", device="cpu", **spoken.studio.models)  # type: ignore[arg-type]


@pytest.mark.thorough
@pytest.mark.parametrize("system", SYSTEMS)
def test_so_does_its_graph(spoken: Exported, tmp_path: Path, system: str) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    shutil.copytree(spoken.heads / f"{system}-ensemble", tmp_path / "heads")
    write_graph(tmp_path / "heads", read_folder(tmp_path / "heads"))
    given = spoken.read["frames" if system == "lddu" else "vector"]
    if system != "emo-ent":
        given = {name: x for name, x in given.items() if not name.startswith("sentiment")}
    spoken.equals_run(f"{system}-ensemble", elsewhere(AS_GRAPH, tmp_path / "heads", given, tmp_path))


@pytest.mark.parametrize(("name", "reads"), [("attentive", "frames"), ("weighted", "layers")])
def test_a_fresh_process_predicts_of_layers_and_frames_where_some_lack_a_modality(
    layered: Path, tmp_path: Path, name: str, reads: str
) -> None:
    exported(layered / name, "--output", tmp_path / "heads", "--fold", 1)
    given, rows = read_of(layered / name, layered / "layered.h5", 1, reads)
    assert not all(given[f"{modality}.present"].all() for modality in ("audio", "text"))
    equals_run(elsewhere(ALONE, tmp_path / "heads", given, tmp_path), layered / name, "cb-ce", [0], rows)


def test_the_graph_of_an_ensemble_of_a_fold_is_the_mean_of_its_seeds(
    plain: Path, graphed: Path, tmp_path: Path
) -> None:
    shutil.copytree(graphed, tmp_path / "heads")
    given, rows = read_of(plain, plain.parent / "made-up.h5", 3, "vector")
    given = {name: x for name, x in given.items() if not name.startswith("sentiment")}
    equals_run(elsewhere(AS_GRAPH, tmp_path / "heads", given, tmp_path), plain, "amber2", [0, 1], rows)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "reads"), [("attentive", "frames"), ("weighted", "layers")])
def test_graphs_of_layers_and_frames_predict_what_the_run_predicted(
    layered: Path, tmp_path: Path, name: str, reads: str
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported(layered / name, "--output", tmp_path / "heads", "--fold", 1, "--onnx")
    given, rows = read_of(layered / name, layered / "layered.h5", 1, reads)
    equals_run(elsewhere(AS_GRAPH, tmp_path / "heads", given, tmp_path), layered / name, "cb-ce", [0], rows)


def test_presence_is_predicted_as_the_run_did_and_scored_at_the_threshold(layered: Path, tmp_path: Path) -> None:
    from sklearn.metrics import f1_score

    source, folder = layered / "presence", tmp_path / "heads"
    exported(source, "--output", folder, "--fold", 1, "--ensemble")
    config = json.loads((folder / "config.json").read_text())
    heads = read_folder(folder)
    assert (config["kind"], heads.kind) == ("multi-label", "multi-label")
    assert "probability that any rater would hear each of neutral" in (folder / "README.md").read_text()
    given, rows = read_of(source, layered / "layered.h5", 1, "frames")
    found = elsewhere(ALONE, folder, given, tmp_path)
    equals_run(found, source, "lddu", [0, 1], rows)
    rated = read_predictions(source).target[rows] > 0
    expected = f1_score(rated, found["fusion"] > heads.threshold, average="macro", zero_division=0)
    assert config["metrics"]["ensemble"]["fusion"]["ml_macro_f1"] == pytest.approx(expected)
    (best,) = choose(source).models
    dev = [row for row in read_results(source) if row["split"] == "dev" and row["selected"]]
    assert -best.dev_loss == max(row["ml_macro_f1"] for row in dev)


# --- which models ---


def dev_js(run: Path, system: str) -> dict[tuple[int, int], float]:
    rows = [row for row in read_results(run) if row["split"] == "dev" and row["selected"] and row["head"] == "fusion"]
    return {(row["fold"], row["seed"]): row["js"] for row in rows if row["system"] == system}


def test_the_model_of_the_lowest_dev_js_is_taken_of_the_system_with_the_lowest_mean(plain: Path) -> None:
    scores = {system: dev_js(plain, system) for system in ("amber2", "cb-ce", "emo-ent", "evidential")}
    best = min(scores, key=lambda system: float(np.mean(list(scores[system].values()))))
    (model,) = choose(plain).models
    assert (model.system, (model.fold, model.seed)) == (best, min(scores[best], key=scores[best].__getitem__))
    (model,) = choose(plain, system="cb-ce", fold=3).models
    of_fold = {key: js for key, js in scores["cb-ce"].items() if key[0] == 3}
    assert (model.fold, model.seed) == min(of_fold, key=of_fold.__getitem__)
    assert model.dev_loss == min(of_fold.values())


def test_an_ensemble_is_of_all_folds_and_seeds_or_of_those_asked_for(plain: Path) -> None:
    def of(**what: Any) -> list[tuple[int, int]]:
        return [(model.fold, model.seed) for model in choose(plain, system="amber2", ensemble=True, **what).models]

    assert of() == [(fold, seed) for fold in (1, 2, 3) for seed in (0, 1)]
    assert of(fold=2) == [(2, 0), (2, 1)]
    assert of(seed=1) == [(1, 1), (2, 1), (3, 1)]


def test_members_tell_each_what_they_say_and_those_that_say_nothing_have_no_say() -> None:
    heads = choose_in_memory(3)
    given = {"audio": torch.randn(5, 6), "text": torch.randn(5, 5)}
    present = {"text": torch.tensor([True, True, False, True, False])}
    each = heads.each(given, present)
    for head, probs in heads.probs(given, present).items():
        assert each[head].shape == (3, 5, 3)
        torch.testing.assert_close(probs, each[head].nanmean(0), equal_nan=True)
    unsaid = replace(heads.members[0], origin={**heads.members[0].origin, "epochs": {"audio": 0}})
    some = replace(heads, members=(unsaid, *heads.members[1:])).probs(given)
    torch.testing.assert_close(some["audio"], each["audio"][1:].mean(0))
    torch.testing.assert_close(some["fusion"][:2], each["fusion"].mean(0)[:2])


def choose_in_memory(count: int) -> Any:
    from amber2_predict.folder import HeadsFolder

    members = tuple(member(seed) for seed in range(count))
    return HeadsFolder(members, config_of(*members))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            {"system": "lddu"},
            r"Bad system 'lddu', expected one of \['amber2', 'cb-ce', 'emo-ent', 'evid",
        ),
        ({"system": "cb-ce", "fold": 4}, r"Bad fold '4', expected one of \['1', '2', '3'\]"),
        ({"system": "cb-ce", "seed": 2}, r"Bad seed '2', expected one of \['0', '1'\]"),
        ({"system": "imported-gpt"}, "Cannot export imported-gpt: its heads hold nothing that predicts new speech"),
    ],
)
def test_what_is_not_there_or_cannot_predict_is_one_line(plain: Path, what: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        choose(plain, **what)


def test_folders_that_are_no_run_or_hold_no_heads_and_outputs_that_exist_are_one_line(
    plain: Path, run_folder: Path, tmp_path: Path
) -> None:
    for source, words in ((tmp_path, "is not a run folder"), (run_folder, "holds no trained heads")):
        with pytest.raises(RunFolderError, match=words):
            choose(source)
    done = run(export_heads, plain, "--output", tmp_path)
    assert (done.exit_code, done.output.count("\n")) == (1, 3)
    assert "exists already: name another folder" in done.output


def test_public_without_a_place_to_push_to_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    done = run(export_heads, tmp_path, "--output", tmp_path / "out", "--public")
    assert (done.exit_code, done.stderr.splitlines()) == (
        1, ["error: --public without --push: name the id that is to be public, or leave it out"]
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_nothing_stands_under_the_name_when_a_graph_cannot_be_written(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "onnxscript"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            done = run(export_heads, plain, "--output", tmp_path / "heads", "--onnx")
        assert done.exit_code == 1
        assert done.output == f"error: --onnx needs {name}, which is not installed: pip install 'amber2[onnx]'\n"
        assert list(tmp_path.iterdir()) == []
        pytest.importorskip(name)
    monkeypatch.setattr(torch.onnx, "export", None)
    done = run(export_heads, plain, "--output", tmp_path / "heads", "--onnx")
    assert (done.exit_code, "model.onnx cannot be written ('NoneType'" in done.output) == (1, True)
    assert list(tmp_path.iterdir()) == []


# --- config and card ---


def test_config_tells_the_scores_of_run_members_and_averaged_seeds(plain: Path, tmp_path: Path) -> None:
    done = exported(plain, "--output", tmp_path / "heads", "--system", "cb-ce", "--ensemble", "--json", "--quiet")
    config = json.loads(done.output)
    assert json.loads((tmp_path / "heads" / "config.json").read_text()).items() <= config.items()
    metrics, rows = config["metrics"], read_results(plain)
    summary = json.loads((plain / "summary.json").read_text())["table"]["cb-ce"]
    assert metrics["system"]["test"] == summary
    key = {"system": "cb-ce", "head": "text", "fold": 2, "seed": 1, "split": "test"}
    (row,) = [row for row in rows if key.items() <= row.items()]
    (own,) = [one for one in metrics["members"] if (one["fold"], one["seed"]) == (2, 1)]
    assert own["file"] == "heads-4.safetensors"
    assert own["test"]["text"] == {name: row[name] for name in own["test"]["text"]}
    predictions = read_predictions(plain)
    means = []
    for fold in (1, 2, 3):
        members = predictions.fold == fold
        mean = predictions.probs["cb-ce/fusion"][:, members].astype(np.float64).mean(0)
        means.append(evaluate(predictions.target[members], mean)["js"])
    assert metrics["ensemble"]["fusion"]["js"] == pytest.approx(np.mean(means))
    assert config["protocol"]["protocol"] == "session"
    assert config["corpus"]["utterances"]["kept"] == 90


def test_nothing_in_a_folder_tells_where_it_was_made(plain: Path, graphed: Path) -> None:
    files = list(graphed.iterdir())
    names = ["README.md", "config.json", "description.json", "heads-1.safetensors", "heads-2.safetensors", "model.onnx"]
    assert sorted(path.name for path in files) == names
    for path in files:
        for place in (
            str(plain.parent),
            str(graphed.parent),
            str(Path(__file__).parents[1]),
            str(Path.home()) + "/",
            ".py",
        ):
            assert place.encode() not in path.read_bytes(), path.name


class Seen(HTMLParser):
    """The tags and the words of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def rendered(markdown: str) -> Seen:
    from markdown_it import MarkdownIt

    return Seen(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))


def test_the_card_has_metadata_and_says_what_there_is_and_what_it_is_not_for(plain: Path, tmp_path: Path) -> None:
    import yaml

    exported(plain, "--output", tmp_path / "heads", "--system", "amber2")
    whole = (tmp_path / "heads" / "README.md").read_text()
    _, front, body = whole.split("---\n", 2)
    told = yaml.safe_load(front)
    assert (told["library_name"], told["pipeline_tag"]) == ("amber2", "audio-classification")
    page, config = rendered(body), read_folder(tmp_path / "heads").config
    for words in ("made-up", "90 of 90", "session", "any-vote", "decisions about people", "Licence"):
        assert words in page.words
    for features in config["features"].values():
        assert features["fingerprint"] in page.words
    score = config["metrics"]["system"]["test"]["fusion"]["js"]
    assert f"{score['mean']:.3f} ± {score['sd']:.3f}" in page.words


HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "`</code><b>`",
    "![x](http://a.b/c)", "a | b\n\n<h1>x", "&lt;script&gt;", "<!-- ", "<javascript:alert(1)>", "# h", "1. x", "~~x~~",
    '"\n---\nlicense: mit', "\u202eevil", "\x1b[2J", "<a@b.c>", "\\<b>\\", "***x***", "http://a.b",
]  # fmt: skip


def test_no_markup_of_a_corpus_s_names_remains_in_a_card() -> None:
    import yaml

    config = config_of(member())
    clean = rendered(card(config).split("---\n", 2)[2])
    for words in HOSTILE:
        dirty = {
            **config, "corpus": {"name": words, "version": words, "utterances": {"dropped": {words: 3}}},
            "emotions": [words] * 3, "policy": {words: words}, "protocol": {"protocol": words}, "remarks": [words],
            "features": {words: {"name": words, "fingerprint": words, "recipe": {"model": words, words: words}}},
            "metrics": {"system": {"test": {words: {}}}, "members": [], "ensemble": {words: {}}},
        }  # fmt: skip
        _, front, body = card(dirty).split("---\n", 2)
        page = rendered(body)
        assert set(page.tags) <= {*clean.tags, "table", "thead", "tbody", "tr", "td", "th"}, words
        assert not {"script", "img", "a"} & set(page.tags)
        assert yaml.safe_load(front)["license"] == "other"


@given(st.text(max_size=60))
def test_text_in_a_card_is_read_as_it_was_written(words: str) -> None:
    page = rendered(text(words))
    assert set(page.tags) <= {"p"}
    expected = "".join(letter if letter.isprintable() else "�" for letter in " ".join(words.split()))
    assert page.words.strip() == expected.strip()
