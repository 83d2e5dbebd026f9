"""What users have stays theirs: old files open, and the same command gives the numbers that it gave.

Everything here goes through what a user uses: commands, documented files, and the readers of caches and run folders.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import golden_files as golden
import h5py
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from amber2_core.cache import read_cache, read_feature_headers
from amber2_core.heads_folder import read_heads
from amber2_core.run_folder import load, read_settings

KEYS = ("system", "head", "split", "fold", "seed", "selected")
HEADS = ("audio", "text", "fusion")
# rounding differs from processor to processor, and training carries it on: features that are off by their last bit
# change no score by more than a seventh of this
CLOSE = 1e-4
Array = npt.NDArray[Any]
Row = dict[str, str]


@pytest.fixture(autouse=True)
def _no_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AMBER2_"):
            monkeypatch.delenv(name)


# --- train-heads ---

COMMANDS = {**golden.SWEEPS, "run": golden.RUN_COMMAND}
VARIED = {**golden.VARIED, "run": ("kappa",)}


class Trained:
    """A golden sweep, the run folder that its command gives today, and the table that it prints."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.golden = golden.RUN if name == "run" else golden.GOLDEN / "sweeps" / name
        done = golden.train(COMMANDS[name], folder)
        assert done.exit_code == 0, done.output
        self.printed = json.loads(done.stdout)


@pytest.fixture(scope="module", params=sorted(COMMANDS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(request.param, tmp_path_factory.mktemp("golden") / request.param)


def rows_of(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def number(text: str) -> float:
    return float(text) if text else np.nan


def word(text: str) -> float | str:
    """A cell as something to compare: 2 is 2.0, and nan is an empty cell."""
    try:
        value = float(text)
    except ValueError:
        return text
    return "" if np.isnan(value) else value


def by_key(rows: Sequence[Row], columns: Sequence[str]) -> dict[tuple[float | str, ...], Row]:
    """Every row under its key; no two may have the same."""
    keyed = {tuple(word(row.get(column, "")) for column in columns): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


def assert_same_rows(now: Path, before: Path, keys: Sequence[str], exact: Sequence[str], close: Sequence[str]) -> None:
    """The same keys in both tables, with the same words and nearly the same numbers."""
    new, old = by_key(rows_of(now), keys), by_key(rows_of(before), keys)
    assert new.keys() == old.keys()
    for column in exact:
        assert {key: word(row[column]) for key, row in new.items()} == {
            key: word(row[column]) for key, row in old.items()
        }
    found, expected = (
        np.array([[number(table[key][column]) for column in close] for key in old]) for table in (new, old)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)


def metrics_of(path: Path) -> list[str]:
    header = path.read_text(encoding="utf-8").splitlines()[0].split(",")
    return header[header.index("n") + 1 :]


def test_a_sweep_gives_the_scores_that_it_gave(trained: Trained) -> None:
    before = trained.golden / "results.csv"
    keys = (*KEYS, *VARIED[trained.name])
    assert_same_rows(trained.folder / "results.csv", before, keys, ("epoch", "n"), metrics_of(before))


def test_a_sweep_gives_the_predictions_that_it_gave(trained: Trained) -> None:
    with (
        np.load(trained.folder / "predictions.npz", allow_pickle=False) as new,
        np.load(trained.golden / "predictions.npz", allow_pickle=False) as old,
    ):
        assert set(new.files) == set(old.files)
        for name in ("id", "fold", "target", "emotions"):
            np.testing.assert_array_equal(new[name], old[name])
        for name in old.files:
            if "/" in name:
                assert new[name].dtype == old[name].dtype
                np.testing.assert_allclose(new[name], old[name], rtol=0, atol=CLOSE)


def test_the_table_that_is_printed_is_that_of_the_golden_rows(trained: Trained) -> None:
    """Mean and sd over seeds of the mean over folds, of the selected settings on test."""
    rows = rows_of(trained.golden / "results.csv")
    chosen = [row for row in rows if row["split"] == "test" and row["selected"] == "1"]
    table = trained.printed["table"]
    assert set(table) == {row["system"] for row in chosen}
    for system, head in sorted({(row["system"], row["head"]) for row in chosen}):
        own = [row for row in chosen if (row["system"], row["head"]) == (system, head)]
        for metric in metrics_of(trained.golden / "results.csv"):
            seeds = [np.mean([number(row[metric]) for row in own if row["seed"] == seed]) for seed in "01"]
            shown = table[system][head][metric]
            assert shown["mean"] == pytest.approx(np.mean(seeds), abs=CLOSE)
            assert shown["sd"] == pytest.approx(np.std(seeds, ddof=1), abs=CLOSE)


@pytest.fixture(scope="module")
def rerun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Trained("run", tmp_path_factory.mktemp("golden") / "rerun").folder


def test_a_run_tells_the_same_of_its_experts_and_of_every_epoch(rerun: Path) -> None:
    before = golden.RUN / "experts.csv"
    keys = ("system", "fold", "seed", "by", "group")
    shares = ["disagreement", *(f"weight_{head}" for head in HEADS)]
    assert_same_rows(rerun / "experts.csv", before, keys, ("n",), shares)
    keys = ("system", "head", "fold", "seed", "epoch")
    assert_same_rows(rerun / "curves.csv", golden.RUN / "curves.csv", keys, (), ("dev_js",))


def test_a_run_keeps_the_same_utterances_votes_and_folds(rerun: Path) -> None:
    new, old = read_settings(rerun), read_settings(golden.RUN)
    assert old["policy"].items() <= new["policy"].items()  # of which later versions know more
    for name in ("corpus", "corpus_version", "features", "emotions", "utterances", "ratings", "folds"):
        assert new[name] == old[name]


@pytest.mark.parametrize(
    ("words", "runs", "settings"),
    [
        ("", 50, {"amber2": 1, "cb-ce": 1}),
        ("--preset paper", 250, {"amber2": 9, "cb-ce": 1}),
        ("--video faces --kappa 2,4 --folds official --seeds 3", 9, {"amber2": 2, "cb-ce": 1}),
    ],
)
def test_a_plan_counts_what_would_be_trained_and_trains_nothing(
    words: str, runs: int, settings: Mapping[str, int], tmp_path: Path
) -> None:
    done = golden.train(f"{words} --plan --device cpu", tmp_path / "run")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert (plan["runs"], plan["settings"]) == (runs, settings)
    assert list(tmp_path.iterdir()) == []


# --- run folders ---


def selected(rows: Sequence[Row], system: str, head: str) -> list[Row]:
    """A head's test rows of the selected settings."""
    want = {"system": system, "head": head, "split": "test", "selected": "1"}
    return [row for row in rows if want.items() <= row.items()]


def test_a_run_folder_of_the_first_format_loads_as_tables() -> None:
    tables = load(golden.RUN)
    assert tables.settings["corpus"] == read_settings(golden.RUN)["corpus"] == "golden"
    for name in ("results", "experts", "curves"):
        rows, table = rows_of(golden.RUN / f"{name}.csv"), getattr(tables, name)
        for column in rows[0]:
            held = np.asarray(table[column])
            assert len(held) == len(rows)
            texts = [row[column] for row in rows]
            if any(isinstance(word(text), str) and text not in ("", "nan") for text in texts):
                at = [place for place, text in enumerate(texts) if text]
                assert [str(held[place]) for place in at] == [texts[place] for place in at]
            else:
                np.testing.assert_array_equal(held.astype(float), [number(text) for text in texts])


def test_a_run_folder_of_the_first_format_loads_with_its_predictions() -> None:
    tables = load(golden.RUN)
    with np.load(golden.RUN / "predictions.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(np.asarray(tables.utterances["id"]).astype(str), arrays["id"])
        np.testing.assert_array_equal(np.asarray(tables.utterances["fold"]), arrays["fold"])
        rated = [np.asarray(tables.utterances[f"rated_{emotion}"]) for emotion in golden.EMOTIONS]
        np.testing.assert_array_equal(np.stack(rated, axis=1), arrays["target"])
        columns = {name: np.asarray(tables.predictions[name]) for name in ("system", "head", "seed", "fold", "id")}
        predicted = [np.asarray(tables.predictions[f"predicted_{emotion}"]) for emotion in golden.EMOTIONS]
        total = 0
        for name in (name for name in arrays.files if "/" in name):
            system, head = name.split("/")
            for seed in (0, 1):
                at = (columns["system"] == system) & (columns["head"] == head) & (columns["seed"] == seed)
                np.testing.assert_array_equal(columns["id"][at].astype(str), arrays["id"])
                np.testing.assert_array_equal(columns["fold"][at], arrays["fold"])
                np.testing.assert_array_equal(np.stack(predicted, axis=1)[at], arrays[name][seed])
                total += int(at.sum())
        assert total == len(columns["id"])


def softmax(logits: Array) -> Array:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def probs_by_hand(path: Path, audio: Array, text: Array) -> dict[str, Array]:
    """Head → probabilities (N, C), from the tensors of a heads file and the documented equations alone."""
    from safetensors.numpy import load_file

    tensors = {name: tensor.astype(np.float64) for name, tensor in load_file(path).items()}
    gate = 1 / (1 + np.exp(-np.concatenate([audio, text], axis=1) @ tensors["fusion.gate.weight"].T))
    values = [
        np.tanh(x @ tensors[f"fusion.projection.{name}.weight"].T) for name, x in (("audio", audio), ("text", text))
    ]
    inputs = {"audio": audio, "text": text, "fusion": gate * values[0] + (1 - gate) * values[1]}
    probs = {}
    for head, x in inputs.items():
        weights = {name: tensors[f"heads.{head}.{name}"] for name in ("hidden.weight", "hidden.bias")}
        hidden = np.maximum(x @ weights["hidden.weight"].T + weights["hidden.bias"], 0)
        output = tensors[f"heads.{head}.output.weight"]
        probs[head] = softmax(hidden @ output.T + tensors[f"heads.{head}.output.bias"])
    return probs


def vectors(modality: str, name: str) -> Array:
    """The last layer of a feature set of the golden cache, (N, D), read without the project."""
    with h5py.File(golden.FEATURES) as file:
        values = file[f"features/{modality}/{name}/values"][:]
    return np.asarray(values if values.ndim == 2 else values[:, -1])


def words_of(path: Path, place: str) -> list[str]:
    """A column of text of a cache, read without the project."""
    with h5py.File(path) as file:
        return [value.decode().rstrip("\0") for value in file[place][:].tolist()]


@pytest.mark.parametrize("which", ["golden", "today's"])
def test_heads_files_give_the_predictions_of_their_run(which: str, rerun: Path) -> None:
    import torch

    folder = golden.RUN if which == "golden" else rerun
    audio, text = vectors("audio", "voices").astype(np.float64), vectors("text", "words").astype(np.float64)
    place = {name: row for row, name in enumerate(words_of(golden.FEATURES, "utterances/id"))}
    with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
        ids, folds, probs = arrays["id"], arrays["fold"], {name: arrays[name] for name in arrays.files if "/" in name}
    seen = 0
    for system in ("amber2", "cb-ce"):
        for fold in range(1, golden.SESSIONS + 1):
            at = np.flatnonzero(folds == fold)
            rows = [place[name] for name in ids[at]]
            for seed in (0, 1):
                path = folder / "heads" / f"{system}-fold{fold}-seed{seed}.safetensors"
                by_hand = probs_by_hand(path, audio[rows], text[rows])
                heads = read_heads(path)
                assert heads.emotions == golden.EMOTIONS
                inputs = {name: torch.from_numpy(x[rows]).float() for name, x in (("audio", audio), ("text", text))}
                read = heads.probs(inputs)
                for head in HEADS:
                    np.testing.assert_allclose(probs[f"{system}/{head}"][seed, at], by_hand[head], rtol=0, atol=1e-5)
                    np.testing.assert_allclose(read[head].numpy(), by_hand[head], rtol=0, atol=1e-5)
                seen += len(rows)
    assert seen == 4 * len(ids)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("golden") / "report"
    done = golden.report(folder)
    assert done.exit_code == 0, done.output
    return folder, json.loads(done.stdout)["comparisons"]


def test_a_report_of_the_golden_run_shows_its_systems_with_their_scores(
    reported: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, _ = reported
    page = (folder / "report.html").read_text(encoding="utf-8")
    rows = rows_of(golden.RUN / "results.csv")
    table = {row["entry"]: row for row in rows_of(folder / "tables" / "all-metrics.csv")}
    assert set(table) == {f"{system} {head}" for system in ("amber2", "cb-ce") for head in HEADS}
    for entry, shown in table.items():
        assert entry in page
        own = selected(rows, *entry.split())
        for metric in metrics_of(golden.RUN / "results.csv"):
            seeds = [np.mean([number(row[metric]) for row in own if row["seed"] == seed]) for seed in "01"]
            assert number(shown[metric]) == pytest.approx(np.mean(seeds), abs=1e-9)
            assert number(shown[f"{metric}_sd"]) == pytest.approx(np.std(seeds, ddof=1), abs=1e-9)


def test_a_report_of_the_golden_run_finds_the_differences_that_it_found(
    reported: tuple[Path, list[dict[str, Any]]],
) -> None:
    def keyed(comparisons: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], dict[str, Any]]:
        return {tuple(one[name] for name in ("first", "second", "metric")): one for one in comparisons}

    _, comparisons = reported
    new, old = keyed(comparisons), keyed(json.loads(golden.COMPARISONS.read_text(encoding="utf-8")))
    assert new.keys() == old.keys()
    for key, one in old.items():
        numbers = {name: value for name, value in one.items() if not isinstance(value, str)}
        assert {name: new[key][name] for name in numbers} == pytest.approx(numbers, abs=1e-6)


# --- caches ---


def test_a_feature_cache_for_training_opens_with_everything_in_it() -> None:
    cache = read_cache(golden.FEATURES)
    assert [(one.modality, one.name) for one in cache.features] == [
        ("audio", "voices"),
        ("text", "words"),
        ("video", "faces"),
    ]
    with h5py.File(golden.FEATURES) as file:
        for features, header in zip(cache.features, read_feature_headers(golden.FEATURES), strict=True):
            group = file[f"features/{features.modality}/{features.name}"]
            np.testing.assert_array_equal(np.asarray(features.values), group["values"][:])
            assert (header.name, tuple(header.shape)) == (features.name, group["values"].shape)
            assert header.has_frames == ("frames" in group)
        frames = cache.features[0].frames
        assert frames is not None
        np.testing.assert_array_equal(np.asarray(frames.values), file["features/audio/voices/frames/values"][:])
        np.testing.assert_array_equal(np.asarray(frames.offsets), file["features/audio/voices/frames/offsets"][:])
        np.testing.assert_array_equal(np.asarray(cache.ratings.utterance), file["ratings/utterance"][:])
    assert list(cache.utterances.id) == words_of(golden.FEATURES, "utterances/id")
    assert list(cache.utterances.split) == words_of(golden.FEATURES, "utterances/split")
    assert list(cache.ratings.label) == words_of(golden.FEATURES, "ratings/label")
    assert [one.utterance for one in cache.failures] == words_of(golden.FEATURES, "failures/utterance")
    assert len(cache.failures) == int(np.isnan(vectors("video", "faces")[:, 0]).sum()) > 0


@pytest.mark.parametrize("path", [golden.FEATURES, golden.EXTRACTED], ids=lambda path: path.name)
def test_a_golden_cache_can_be_inspected_and_is_whole(path: Path) -> None:
    from amber2_extract.cli import inspect_cache

    done = CliRunner().invoke(inspect_cache, [str(path), "--verify", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["verified"]
    assert told["utterances"] == len(words_of(path, "utterances/id"))
    with h5py.File(path) as file:
        for one in told["features"]:
            group = file[f"features/{one['modality']}/{one['name']}"]
            assert tuple(one["shape"]) == group["values"].shape
            assert one["fingerprint"].encode() == group.attrs["fingerprint"]


# --- extract-features ---


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden.write_manifest(tmp_path_factory.mktemp("corpus"))


def assert_golden(path: Path) -> None:
    """The cache holds what the golden one holds: same inputs and recipes, values to within rounding."""
    cache = read_cache(path)
    assert list(cache.utterances.id) == words_of(golden.EXTRACTED, "utterances/id")
    assert list(cache.utterances.audio_sha256) == words_of(golden.EXTRACTED, "utterances/audio_sha256")
    assert [one.utterance for one in cache.failures] == words_of(golden.EXTRACTED, "failures/utterance") == ["gone"]
    assert [one.stage for one in cache.failures] == words_of(golden.EXTRACTED, "failures/stage")
    held = {f"features/{one.modality}/{one.name}": one for one in cache.features}
    with h5py.File(golden.EXTRACTED) as file:
        assert set(held) == {f"features/{kind}/{name}" for kind in file["features"] for name in file["features"][kind]}
        np.testing.assert_allclose(np.asarray(cache.utterances.duration), file["utterances/duration"][:], rtol=1e-6)
        for place, features in held.items():
            group = file[place]
            assert list(features.inputs) == words_of(golden.EXTRACTED, f"{place}/inputs")
            assert features.fingerprint.encode() == group.attrs["fingerprint"]
            assert np.asarray(features.values).dtype == group["values"].dtype
            frames = features.frames
            assert frames is not None
            np.testing.assert_array_equal(np.asarray(frames.offsets), group["frames/offsets"][:])
            for found, expected in ((features.values, group["values"]), (frames.values, group["frames/values"])):
                np.testing.assert_allclose(np.asarray(found), expected[:], rtol=1e-5, atol=1e-5)


def test_recordings_get_the_features_that_they_got(manifest: Path, tmp_path: Path) -> None:
    done = golden.extract(manifest, tmp_path / "out.h5")
    assert done.exit_code == 3, done.output
    assert_golden(tmp_path / "out.h5")


def test_a_corpus_that_grew_keeps_its_features_and_gets_those_that_are_new(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    half, output = golden.write_manifest(tmp_path / "half", count=6), tmp_path / "out.h5"
    assert golden.extract(half, output).exit_code == 3
    done = golden.extract(manifest, output)
    assert done.exit_code == 3, done.output
    assert "audio/wav2vec2-layers-frames5: 6 encoded, 6 up to date, 1 failed" in done.stdout
    assert_golden(output)


def test_what_an_earlier_version_extracted_is_up_to_date(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    output.write_bytes(golden.EXTRACTED.read_bytes())
    done = golden.extract(manifest, output)
    assert done.exit_code == 3, done.output
    assert "text/bert-layers-frames5: 0 encoded, 13 up to date, 0 failed" in done.stdout
    assert "audio/wav2vec2-layers-frames5: 0 encoded, 12 up to date, 1 failed" in done.stdout
    assert output.read_bytes() == golden.EXTRACTED.read_bytes()


def bytes_in(folder: Path) -> int:
    """What the files below a folder take, as far as they stay while they are counted."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(place, name).stat().st_size
    return total


def test_extraction_that_was_killed_goes_on_to_the_same_features(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "cache" / "out.h5"
    code = "from amber2_extract.cli import extract_features; extract_features()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *golden.extract_words(manifest, output)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # the vectors of the text alone take 3,000 bytes: some work is stored; wherever the kill then falls is well
    while process.poll() is None and bytes_in(output.parent) < 2_000:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = golden.extract(manifest, output)
    assert done.exit_code == 3, done.output
    assert_golden(output)
    assert [path.name for path in output.parent.iterdir()] == ["out.h5"]
