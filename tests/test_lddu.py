"""LDDU: its network against torch's modules, its losses against loops, and its runs from the cache to their files."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import reference
import torch
from click.testing import CliRunner
from media_trees import m3ed_annotations, write_m3ed, write_mosei
from synthetic_data import write_layered_cache, write_small_cache
from test_stacked_inputs import layered_fold

from amber2_core import lddu
from amber2_core.cache import FeatureCache, Features, Frames, write_cache
from amber2_core.heads_folder import read_heads, read_tensors
from amber2_core.lddu import ABSENT, Lddu, Queue, initial_parameters, outputs, probs
from amber2_core.run_folder import read_curves, read_predictions, read_results, read_settings, read_summary
from amber2_core.tables import rating_table, utterance_table
from amber2_core.utterance import Corpus
from amber2_data.corpora import m3ed, mosei
from amber2_report.runs import read_run
from amber2_train.cli import train_heads
from amber2_train.fold_data import FoldData
from amber2_train.systems.lddu import LatentDistributions, LdduSettings, Training
from amber2_train.systems.system import FitOptions

TINY: dict[str, Any] = {"lddu_width": 8, "lddu_layers": 1, "lddu_attention_heads": 2, "lddu_feed_forward": 8,
                        "lddu_latent": 4, "contrast_queue": 32, "batch_size": 7, "lr": 0.003}  # fmt: skip
QUICK = ["--system", "lddu", "--seeds", "2", "--epochs", "2", "--lddu-width", "8", "--lddu-layers", "1",
         "--lddu-attention-heads", "2", "--lddu-latent", "4"]  # fmt: skip
SHAPE = Lddu((("audio", 6), ("text", 5)), 3, width=16, layers=2, attention_heads=4, feed_forward=12, latent=5)


def drawn(*seeds: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The parameters of runs side by side."""
    runs = [initial_parameters(SHAPE, torch.Generator().manual_seed(seed)) for seed in seeds]
    return {name: torch.stack([run[name] for run in runs]).to(dtype) for name in runs[0]}


def some_frames(batch: int = 4, *, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of every modality frames (1, batch, T, D) and which are valid; the last utterance has no text."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, size in SHAPE.inputs:
        valid = torch.arange(7) < torch.randint(1, 8, (1, batch, 1), generator=generator)
        if name == "text":
            valid[:, -1] = False
        x = torch.randn(1, batch, 7, size, dtype=torch.float64, generator=generator)
        found[name] = x * valid.unsqueeze(-1), valid
    return found


# --- the network ---


def test_an_encoder_layer_is_that_of_torch() -> None:
    parameters, name = drawn(3), "audio.encoder.0"
    own = {key: x[0] for key, x in parameters.items()}
    oracle = torch.nn.TransformerEncoderLayer(16, 4, 12, 0.0, "gelu", batch_first=True, dtype=torch.float64)
    places = {"self_attn.in_proj_": "attention.input.", "self_attn.out_proj.": "attention.output.",
              "linear1.": "forward.0.", "linear2.": "forward.1.",
              "norm1.": "attention.norm.", "norm2.": "forward.norm."}  # fmt: skip
    oracle.load_state_dict(
        {a + part: own[f"{name}.{b}{part}"] for a, b in places.items() for part in ("weight", "bias")}
    )
    x, valid = torch.randn(4, 7, 16, dtype=torch.float64), torch.arange(7) < torch.tensor([[7], [3], [1], [5]])
    found = lddu.encoder_layer(own, name, x, valid, heads=4)
    expected = oracle.train()(x, src_key_padding_mask=~valid)
    torch.testing.assert_close(found[valid], expected[valid])


def test_class_features_are_attention_of_torch_over_encoded_frames() -> None:
    own = {name: x[0] for name, x in drawn(4).items()}
    x, valid = (part[0] for part in some_frames()["audio"])
    shape = replace(SHAPE, layers=0)
    found = lddu.label_features(shape, own, "audio", x, valid)
    normed = torch.nn.functional.layer_norm(x, (6,), own["audio.norm.weight"], own["audio.norm.bias"])
    encoded = torch.nn.functional.linear(normed, own["audio.projection.weight"], own["audio.projection.bias"])
    angles = [[t / 10000 ** (i // 2 * 2 / 16) for i in range(16)] for t in range(7)]
    place = [[math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(row)] for row in angles]
    encoded = encoded + torch.tensor(place, dtype=torch.float64)
    queries = own["audio.queries"].expand(4, -1, -1)
    expected = torch.nn.functional.scaled_dot_product_attention(queries, encoded, encoded, valid.unsqueeze(-2))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["distribution", "multi-label"])
def test_a_prediction_is_what_the_gate_makes_of_two_branches_of_every_class(kind: Any) -> None:
    own = {name: x[0] for name, x in drawn(5).items()}
    frames = {name: (x[0, :1], valid[0, :1]) for name, (x, valid) in some_frames().items()}
    shape = replace(SHAPE, kind=kind)
    features = {name: lddu.label_features(shape, own, name, *frames[name])[0] for name in frames}

    def layers(x: torch.Tensor, *names: str, place: int | None = None) -> torch.Tensor:
        for k, name in enumerate(names):
            weight, bias = (own[f"{name}.{part}"] for part in ("weight", "bias"))
            weight, bias = (weight, bias) if place is None else (weight[place], bias[place])
            x = torch.nn.functional.linear(x.relu() if k else x, weight, bias)
        return x

    logits: dict[str, list[torch.Tensor]] = {"mean": [], "spread": []}
    gate, norms = [], []
    for c in range(3):
        parts = [layers(features[name][c], *(f"{name}.latent.{k}" for k in range(3))).chunk(2) for name in frames]
        spread = torch.cat([(log_variance / 2).exp() for _, log_variance in parts])
        norms.append(spread.norm())
        for branch, x in (("mean", torch.cat([mean for mean, _ in parts])), ("spread", spread)):
            logits[branch].append(layers(x, f"{branch}.hidden", f"{branch}.output", place=c))
        gate.append(layers(torch.cat([features[name][c] for name in frames]), "gate.hidden", "gate.output"))
    mean, spread = (torch.cat(some) for some in logits.values())
    g = torch.cat(gate).sigmoid()
    active = torch.sigmoid if kind == "multi-label" else lambda x: x.softmax(-1)
    expected = g * active(mean) + (1 - g) * active(spread)
    if kind == "distribution":
        expected = expected / expected.sum()
    found = outputs(shape, own, frames)
    torch.testing.assert_close(found.log_probs[0].exp(), expected)
    torch.testing.assert_close(found.spread[0], torch.stack(norms))
    if kind == "multi-label":
        torch.testing.assert_close(found.log_rest[0].exp(), 1 - expected)


def test_runs_side_by_side_are_each_what_they_are_alone() -> None:
    together, frames = drawn(1, 2, 3), some_frames()
    found = outputs(SHAPE, together, frames)
    target = torch.full((1, 4, 3), 1 / 3, dtype=torch.float64)
    queue = lddu.empty_queue(SHAPE, target, (3,))
    parts = list(lddu.terms(found, target, queue, kind="distribution", temperature=0.07))
    for run in range(3):
        own = {name: x[run] for name, x in together.items()}
        alone = outputs(SHAPE, own, {name: (x[0], valid[0]) for name, (x, valid) in frames.items()})
        for a, b in zip(found[:-1], alone[:-1], strict=True):
            torch.testing.assert_close(a[run], b)
        of_one = lddu.terms(alone, target[0], lddu.empty_queue(SHAPE, target), kind="distribution", temperature=0.07)
        for a, b in zip(parts, of_one, strict=True):
            torch.testing.assert_close(a[run], b)


def test_padding_changes_nothing_and_a_modality_without_frames_adds_nothing() -> None:
    own, frames = {name: x[0] for name, x in drawn(6).items()}, some_frames()
    expected = probs(SHAPE, own, {name: (x[0], valid[0]) for name, (x, valid) in frames.items()})
    noisy = {name: (torch.where(valid.unsqueeze(-1), x, 1e3)[0], valid[0]) for name, (x, valid) in frames.items()}
    torch.testing.assert_close(probs(SHAPE, own, noisy), expected)
    found = outputs(SHAPE, own, noisy)
    assert not found.latent[-1, 1].any()
    assert found.latent[-1, 0].norm(dim=-1) == pytest.approx(math.sqrt(2))


# --- losses ---


def test_the_contrast_is_what_a_loop_gives_with_queue_and_prototypes() -> None:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(9, 6, dtype=torch.float64, generator=generator)
    groups = torch.tensor([0, 0, 1, 2, 1, ABSENT, 5, 2, 2])
    queue = Queue(torch.randn(5, 6, dtype=torch.float64, generator=generator), torch.tensor([0, 5, ABSENT, 1, 7]))
    for known in (queue, Queue(queue.latent[:0], queue.prototype[:0])):
        names = [[None if g == ABSENT else g for g in some.tolist()] for some in (groups, known.prototype)]
        expected = reference.supervised_contrast(latent.tolist(), names[0], known.latent.tolist(), names[1], 0.5)
        assert lddu.contrast(latent, groups, known, 0.5).item() == pytest.approx(expected, rel=1e-12)


def test_prototypes_tell_modality_class_and_presence_apart() -> None:
    target = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    found = lddu.prototypes(target, torch.tensor([[True, True], [True, False]]))
    place = {(m, c, p): found[i, m, c].item() for i, m, c in itertools.product(range(2), range(2), range(3))
             for p in [bool(target[i, c] > 0)] if found[i, m, c] != ABSENT}  # fmt: skip
    assert len(set(place.values())) == len(place) == 9
    assert (found[1, 1] == ABSENT).all()


def test_the_queue_keeps_the_newest_features() -> None:
    queue = lddu.empty_queue(SHAPE, torch.zeros(1))
    for step in range(4):
        queue = queue.with_batch(torch.full((2, 10), float(step)), torch.full((2,), step), 5)
    assert queue.prototype.tolist() == [3, 3, 2, 2, 1]
    assert queue.latent[:, 0].tolist() == [3, 3, 2, 2, 1]


def test_prediction_gate_and_calibration_are_what_loops_give() -> None:
    own, frames = {name: x[0] for name, x in drawn(7).items()}, some_frames()
    target = torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1], [1 / 3] * 3], dtype=torch.float64)
    queue = lddu.empty_queue(SHAPE, target)
    inputs = {name: (x[0], valid[0]) for name, (x, valid) in frames.items()}
    for kind in ("distribution", "multi-label"):
        found = outputs(replace(SHAPE, kind=kind), own, inputs)  # type: ignore[arg-type]
        prediction, gate, _, calibrated = lddu.terms(found, target, queue, kind=kind, temperature=0.07)  # type: ignore[arg-type]
        p, u = found.log_probs.exp().tolist(), found.gate
        expected = [
            reference.symmetric_kl_of_softmax(*pair)
            for pair in zip(found.spread.tolist(), u.sigmoid().tolist(), strict=True)
        ]
        assert calibrated.item() == pytest.approx(np.mean(expected))
        for term, q in ((prediction, p), (gate, (u.sigmoid() if kind == "multi-label" else u.softmax(-1)).tolist())):
            if kind == "distribution":
                losses = [reference.js(y, row) for y, row in zip(target.tolist(), q, strict=True)]
            else:
                losses = [-math.log(b if a > 0 else 1 - b) for y, row in zip(target.tolist(), q, strict=True)
                          for a, b in zip(y, row, strict=True)]  # fmt: skip
            assert term.item() == pytest.approx(np.mean(losses))


# --- training ---


@pytest.mark.parametrize("mode", ["distribution", "multi-label"])
def test_without_dropout_it_learns_32_utterances_by_heart(tmp_path: Path, mode: Any) -> None:
    fold = layered_fold(tmp_path, count=96)
    fold = replace(fold, train=fold.train.first(32))
    setting = LdduSettings(mode, 32, 1, 2, 32, 16, contrast_queue=64, dropout=0.0, lr=3e-3, batch_size=32)
    training = Training(setting, 0, fold)
    before = training.weighted_terms(torch.arange(32))[0].item()
    for _ in range(250):
        training.epoch()
    after = training.weighted_terms(torch.arange(32))[0].item()
    assert after < min(0.02, before / 20)


@pytest.mark.parametrize("mode", ["distribution", "multi-label"])
def test_a_run_depends_on_no_neighbour_and_not_on_test(tmp_path: Path, mode: str) -> None:
    system, fold = LatentDistributions(), layered_fold(tmp_path, missing={"audio": [2, 21, 40], "text": [3, 4, 5]})
    own = {**TINY, "lddu_mode": mode}
    settings = [LdduSettings(**own), LdduSettings(**{**own, "dropout": 0.0, "lambda_contrast": 0.0})]
    many = list(system.fit(fold, settings, [0, 1], FitOptions(2)))
    assert [(one.setting, one.seed) for one in many] == list(itertools.product(settings, [0, 1]))
    elsewhere = replace(fold, test=replace(fold.test, targets=fold.test.targets.flip(0)))
    for one in many:
        (alone,) = system.fit(elsewhere, [one.setting], [one.seed], FitOptions(2))
        np.testing.assert_array_equal(one.probs(fold.test)["fusion"], alone.probs(fold.test)["fusion"])
        assert (one.history, one.threshold) == (alone.history, alone.threshold)
    assert not np.array_equal(many[0].probs(fold.test)["fusion"], many[1].probs(fold.test)["fusion"])


def test_the_epoch_that_is_best_on_dev_is_kept(tmp_path: Path) -> None:
    fold = layered_fold(tmp_path)
    (one,) = LatentDistributions().fit(fold, [LdduSettings(**{**TINY, "lr": 0.02})], [0], FitOptions(8, patience=3))
    curve, epoch = one.history.dev_js["fusion"], one.history.epoch["fusion"]
    assert epoch == 1 + int(np.argmin(curve))
    assert len(curve) == min(8, epoch + 3)
    found = one.probs(fold.dev)["fusion"].tolist()
    scores = [reference.js(y, p) for y, p in zip(fold.dev.targets.tolist(), found, strict=True)]
    assert np.mean(scores) == pytest.approx(curve[epoch - 1], abs=1e-6)


def test_of_presence_the_epoch_and_the_threshold_of_the_best_macro_f1_on_dev_are_kept(tmp_path: Path) -> None:
    from sklearn.metrics import f1_score

    fold, system = layered_fold(tmp_path), LatentDistributions()
    setting = LdduSettings(**{**TINY, "lddu_mode": "multi-label", "lddu_width": 16, "lr": 0.01, "dropout": 0.0})
    scores = []
    for epochs in (1, 5, 15, 30):
        (one,) = system.fit(fold, [setting], [0], FitOptions(epochs))
        probs, rated = one.probs(fold.dev)["fusion"].astype(np.float64), fold.dev.targets.numpy() > 0
        by_threshold = {
            t / 100: f1_score(rated, probs > t / 100, average="macro", zero_division=0) for t in range(1, 100)
        }
        assert by_threshold[one.threshold] == pytest.approx(max(by_threshold.values()))
        scores.append(max(by_threshold.values()))
        assert not one.history.dev_js
    assert scores == sorted(scores)  # what was better is not given up
    assert len(set(scores)) > 1


@pytest.mark.parametrize("mode", ["distribution", "multi-label"])
def test_a_run_that_diverges_at_once_keeps_no_epoch_and_predicts_nothing(tmp_path: Path, mode: str) -> None:
    fold = layered_fold(tmp_path)
    setting = LdduSettings(**{**TINY, "lddu_mode": mode, "lr": 1e30})
    (one,) = LatentDistributions().fit(fold, [setting], [0], FitOptions(2))
    assert one.history.epoch == {"fusion": 0}
    assert np.isnan(one.probs(fold.test)["fusion"]).all()


@pytest.mark.parametrize("modalities", [("audio",), ("audio", "text", "video")])
def test_one_modality_does_and_three_do(tmp_path: Path, modalities: tuple[str, ...]) -> None:
    words = [] if len(modalities) == 3 else ["--text", "none"]
    path = write_layered_cache(tmp_path, modalities=modalities)
    done = run(path, tmp_path / "run", *QUICK, *words, *(["--video", "video-model"] if len(modalities) == 3 else []))
    assert done.exit_code == 0, done.output
    assert {row["head"] for row in read_results(tmp_path / "run")} == {"fusion" if len(modalities) > 1 else "audio"}


# --- from the cache to files ---


def run(cache: Path, output: Path, *words: str) -> Any:
    return CliRunner().invoke(
        train_heads, ["--cache", str(cache), "--output", str(output), *words], catch_exceptions=False
    )


def test_its_run_folder_has_one_head_and_says_that_it_is_adapted(tmp_path: Path) -> None:
    done = run(write_layered_cache(tmp_path), tmp_path / "run", *QUICK, "--inputs", "standardized")
    assert done.exit_code == 0, done.output
    assert {row["head"] for row in read_results(tmp_path / "run")} == {"fusion"}
    assert len(read_curves(tmp_path / "run")) == 3 * 2 * 2
    (line,) = read_settings(tmp_path / "run")["remarks"]["lddu"]
    assert line.startswith("Adapted to distributions")
    predicted = read_predictions(tmp_path / "run").probs["lddu/fusion"]
    np.testing.assert_allclose(predicted.sum(-1), 1, atol=1e-5)


def saved(one: Any, fold: FoldData, path: Path) -> Path:
    recipe = {"name": "made", "fingerprint": "f", "recipe": {}}
    features = dict.fromkeys(fold.train.features, recipe)
    origin = {"system": "lddu", "setting": asdict(one.setting), "emotions": fold.emotions, "policy": {}}
    one.save(path, {**origin, "features": features})
    return path


def test_a_saved_file_predicts_alone(tmp_path: Path) -> None:
    fold = layered_fold(tmp_path, standardise=True)
    (one,) = LatentDistributions().fit(fold, [LdduSettings(**TINY)], [0], FitOptions(1))
    tensors, record = read_tensors(saved(one, fold, tmp_path / "heads.safetensors"))
    shape = Lddu(**{**record["architecture"], "inputs": tuple(map(tuple, record["architecture"]["inputs"]))})
    frames = {}
    for name in shape.modalities:
        x, valid = fold.test.frames(name, torch.arange(len(fold.test)))
        frames[name] = (x - tensors[f"inputs.{name}.mean"]) / tensors[f"inputs.{name}.sd"] * valid.unsqueeze(-1), valid
    found = probs(shape, tensors, frames)
    np.testing.assert_allclose(found, one.probs(fold.test)["fusion"], atol=1e-6)
    assert record["reads"] == {"audio": "frames", "text": "frames"}
    read, every = read_heads(tmp_path / "heads.safetensors"), torch.arange(len(fold.test))
    again = read.probs({name: fold.test.frames(name, every) for name in shape.modalities})
    np.testing.assert_allclose(again["fusion"], found, atol=1e-6)


def test_heads_predict_of_what_is_there_as_the_run_does(tmp_path: Path) -> None:
    missing = {"audio": [2, 21, 40], "text": [3, 4, 5, 21]}
    fold = layered_fold(tmp_path, missing=missing, standardise=True)
    (one,) = LatentDistributions().fit(fold, [LdduSettings(**TINY)], [0], FitOptions(1))
    read = read_heads(saved(one, fold, tmp_path / "heads.safetensors"))
    rows = replace(fold.test, index=torch.arange(60), targets=fold.test.targets[:1].expand(60, -1))
    expected, there = one.probs(rows)["fusion"], torch.ones(60, dtype=torch.bool)
    frames, present = {}, {}
    for name, lack in missing.items():
        x, valid = rows.frames(name, torch.arange(60))
        present[name] = there.index_fill(0, torch.tensor(lack), False)
        # of what is not there, anything may stand in its place
        frames[name] = torch.where(present[name][:, None, None], x, 9.0), valid | ~present[name].unsqueeze(-1)
    np.testing.assert_allclose(read.probs(frames, present)["fusion"], expected, atol=1e-6)
    assert np.isnan(expected).any(-1).nonzero()[0].tolist() == [21]
    alone = read.probs({"audio": frames["audio"]}, {"audio": present["audio"]})["fusion"][3:6]
    np.testing.assert_allclose(alone, expected[3:6], atol=1e-6)


def as_cache(corpus: Corpus, path: Path) -> Path:
    """A corpus's utterances and ratings as they are, with frames that tell something of what was rated."""
    random, table = np.random.default_rng(0), utterance_table(corpus)
    ratings, count = rating_table(corpus), len(corpus.utterances)
    rated = np.zeros((count, 40))
    np.add.at(rated, (ratings.utterance, [sum(map(ord, label)) % 40 for label in ratings.label]), ratings.weight)
    sets = []
    for name in ("audio", "text"):
        values = (rated @ random.normal(size=(40, 6)) + 0.1 * random.normal(size=(count, 6))).astype(np.float32)
        lengths = random.integers(1, 5, count)
        rows = np.repeat(values, lengths, axis=0) + 0.1 * random.normal(size=(lengths.sum(), 6))
        frames = Frames(rows.astype(np.float32), np.concatenate([[0], np.cumsum(lengths)]))
        inputs = np.array([f"{k:064}" for k in range(count)], dtype=object)
        sets.append(Features(name, f"{name}-model", values, inputs, {"model": name}, frames))
    write_cache(path, FeatureCache(corpus.name, table, ratings, corpus.defaults, tuple(sets)))
    return path


def write_more_mosei(root: Path) -> Corpus:
    """Sixty segments of twenty videos, a few of them without any emotion."""
    random = np.random.default_rng(0)
    write_mosei(root)
    with h5py.File(root / "CMU_MOSEI_Labels.csd", "r+") as file:
        for video in range(20):
            labels = random.uniform(0, 3, (3, 7)) * (random.uniform(size=(3, 7)) < 0.35)
            times = np.array([[0, 2], [2, 4], [4, 6]], dtype=np.float32)
            file[f"All Labels/data/video{video}/features"] = labels.astype(np.float32)
            file[f"All Labels/data/video{video}/intervals"] = times
    return mosei.read(root)


def write_more_m3ed(root: Path) -> Corpus:
    """Ten movies of four utterances each, by three raters who tick one or two emotions."""
    random, emotions = np.random.default_rng(0), ["Happy", "Surprise", "Sad", "Neutral", "Disgust", "Anger", "Fear"]
    write_m3ed(root)
    annotations = m3ed_annotations()
    one = annotations["anjia"]["anjia_1"]["Dialog"]["A_anjia_1_1"]
    for movie in range(10):
        dialog = {}
        for k in range(4):
            ticks = [",".join(random.choice(emotions, random.integers(1, 3), replace=False)) for _ in range(3)]
            said = {f"EmoAnnotator{r + 1}": tick for r, tick in enumerate(ticks)}
            said |= {"final_mul_emo": ticks[0], "final_main_emo": ticks[0].partition(",")[0]}
            dialog[f"A_movie{movie}_1_{k}"] = {**one, "EmoAnnotation": said}
        annotations[f"movie{movie}"] = {f"movie{movie}_1": {"Dialog": dialog}}
    (root / "annotation.json").write_text(json.dumps(annotations, ensure_ascii=False), "utf-8")
    return m3ed.read(root)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_more_mosei, ["--folds", "stratified"]),
        (write_more_m3ed, ["--multi-label", "split", "--keep", "any-vote", "--folds", "stratified"]),
    ],
)
def test_corpora_of_several_emotions_at_once_are_learnt_as_presence(
    tmp_path: Path, write: Callable[[Path], Corpus], words: list[str]
) -> None:
    corpus = write(tmp_path / "corpus")
    path = as_cache(corpus, tmp_path / "corpus.h5")
    done = run(path, tmp_path / "run", *QUICK, "--lddu-mode", "multi-label", "--lr", "0.01", *words)
    assert done.exit_code == 0, done.output
    predictions, settings = read_predictions(tmp_path / "run"), read_settings(tmp_path / "run")
    assert (settings["kinds"], "remarks" in settings and settings["remarks"]) == ({"lddu": "multi-label"}, {})
    # present is what any counting vote is for
    merged, known = dict(settings["policy"]["merge"]), {u.id: u for u in corpus.utterances}
    for name, target in zip(predictions.id, predictions.target, strict=True):
        said = {rating.label.lower() for rating in known[name].ratings}
        said = {{"anger": "angry", **merged}.get(label, label) for label in said}
        assert {e for e, share in zip(predictions.emotions, target, strict=True) if share > 0} == said
    (scores,) = read_summary(tmp_path / "run")["table"]["lddu"].values()
    assert 0 < scores["ml_accuracy"]["mean"] <= scores["ml_micro_f1"]["mean"] <= 1
    assert read_run(tmp_path / "run").tested["ml_macro_f1"].notna().all()


def test_a_cache_of_pooled_vectors_is_refused_with_the_reason(tmp_path: Path) -> None:
    done = run(write_small_cache(tmp_path), tmp_path / "run", *QUICK)
    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    assert "lddu reads frames, and audio/audio-model has none (on pooled vectors label-wise attention" in done.output
    assert "extract-features --frames" in done.output


def test_sizes_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    done = run(write_layered_cache(tmp_path), tmp_path / "run", *QUICK, "--lddu-width", "12,18")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "Bad lddu-width 18, expected a multiple of 4" in done.output
