"""Systems: our losses against slow loops over one run and one utterance at a time, and those of users end to end."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from click.testing import CliRunner, Result
from slow_training import small
from synthetic_data import cache_of, fold_in, training_data, write_small_cache

from amber2_core.cache import Frames, read_cache, write_cache
from amber2_core.errors import RunFolderError, SettingError
from amber2_core.heads_folder import read_heads, read_tensors
from amber2_core.run_folder import read_curves, read_predictions, read_results, read_settings, read_summary
from amber2_train.cli import train_heads
from amber2_train.fold_data import FoldData
from amber2_train.folds import make_folds
from amber2_train.grid import Setting
from amber2_train.stacked.system import StackedSystem
from amber2_train.systems.system import OURS, FitOptions, system_of

HEADS = ("audio", "text", "fusion")
MINE = Path(__file__).with_name("my_systems.py")


def fold() -> FoldData:
    data = training_data(45)
    return fold_in(data, make_folds("session", data)[0])


def batch(seeds: int, settings: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (heads, seeds, settings, batch, C) and targets (seeds, 1, batch, C)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, seeds, settings, 6, 4, dtype=torch.float64, generator=generator)
    ticks = torch.randint(0, 4, (seeds, 1, 6, 3), generator=generator)
    return logits, torch.nn.functional.one_hot(ticks, 4).double().mean(-2)


def losses_of(settings: Sequence[Setting], logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    system = settings[0].system
    assert isinstance(system, StackedSystem)
    loss = system.loss([setting.values for setting in settings], heads=HEADS, fold=fold())
    return loss(logits, target, None, torch.ones(()))


SETTINGS = [
    small(kappa=kappa, lambda_mai=mai, lambda_rai=rai, lambda_expert=expert, student=student)
    for kappa, mai, rai, expert, student in (
        (4.0, 0.5, 1.0, 0.0, "fusion"),
        (0.0, 0.3, 1.0, 0.0, "fusion"),
        (8.0, 0.7, 0.5, 1.0, "audio"),
        (2.0, 0.7, 1.0, 0.0, "text"),
    )
]


def test_the_loss_of_amber_is_that_of_the_slow_formula_for_every_run() -> None:
    logits, target = batch(2, len(SETTINGS))
    losses = losses_of(SETTINGS, logits, target)
    assert losses.shape == (2, len(SETTINGS))
    probs = logits.softmax(-1)
    for s, (k, setting) in itertools.product(range(2), enumerate(SETTINGS)):
        values = setting.values
        expected = reference.amber(
            target[s, 0].tolist(),
            [probs[h, s, k].tolist() for h in range(3)],
            student=HEADS.index(values.student),
            lambda_rai=values.lambda_rai,
            lambda_mai=values.lambda_mai,
            lambda_expert=values.lambda_expert,
            kappa=values.kappa,
        )
        assert losses[s, k].item() == pytest.approx(expected, abs=1e-12)


def test_settings_of_different_students_distances_and_gradients_stay_in_their_order() -> None:
    mixed = [
        small(student=student, loss=loss, weight_gradient=gradient)
        for student, loss, gradient in itertools.product(("text", "fusion", "audio"), ("kl", "js"), ("flow", "detach"))
    ]
    logits, target = batch(1, len(mixed))
    together = losses_of(mixed, logits, target)
    for k, setting in enumerate(mixed):
        torch.testing.assert_close(together[:, k : k + 1], losses_of([setting], logits[:, :, k : k + 1], target))


def test_the_loss_of_the_baseline_is_the_sum_of_the_heads_slow_formulas() -> None:
    """Its class weights are those of all train rows."""
    logits, target = batch(2, 2)
    losses = losses_of([small("cb-ce"), small("cb-ce", lr=1e-3)], logits, target)
    weights = reference.class_balanced_weights(fold().train.targets.tolist())
    for s, k in itertools.product(range(2), range(2)):
        expected = sum(
            reference.class_balanced_cross_entropy(target[s, 0].tolist(), logits[h, s, k].softmax(-1).tolist(), weights)
            for h in range(3)
        )
        assert losses[s, k].item() == pytest.approx(expected, abs=1e-12)


def test_the_student_judges_every_head_of_amber_and_each_head_of_the_baseline_judges_itself() -> None:
    amber, baseline = system_of("amber2"), system_of("cb-ce")
    assert isinstance(amber, StackedSystem)
    assert isinstance(baseline, StackedSystem)
    for student, head in itertools.product(HEADS, HEADS):
        setting = small(student=student)
        assert amber.judge(head, setting.values) == student
        assert amber.chooses(setting.values) == student
        assert baseline.judge(head, small("cb-ce").values) == head
    assert baseline.chooses(small("cb-ce").values) == "fusion"


def test_an_unknown_system_names_those_there_are() -> None:
    with pytest.raises(SettingError, match=r"^Bad system 'nowhere', expected one of ") as refused:
        system_of("nowhere")
    assert str(refused.value).endswith(f"expected one of {[*OURS, 'path/to/my_system.py:MySystem', 'imported:NAME']}")


# --- systems of users ---


def call(*arguments: str) -> Result:
    return CliRunner().invoke(train_heads, [*arguments, "--seeds", "2", "--epochs", "2"])


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with three layers of audio and frames of text."""
    random, cache = np.random.default_rng(0), cache_of(30)
    audio, text = cache.features
    audio = replace(audio, values=np.stack([audio.values * factor for factor in (3, 2, 1)], axis=1))
    offsets = np.concatenate([[0], np.cumsum(random.integers(1, 5, 30))])
    text = replace(text, frames=Frames(random.normal(size=(offsets[-1], 3)).astype(np.float32), offsets))
    path = tmp_path_factory.mktemp("caches") / "rich.h5"
    write_cache(path, replace(cache, features=(audio, text)))
    return path


@pytest.fixture(scope="module")
def run(rich: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four systems of a user's file beside ours, with settings of their own."""
    folder, mine = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("elsewhere") / "mine.py"
    shutil.copyfile(MINE, mine)
    names = ",".join(["amber2", *(f"{mine}:{name}" for name in ("Flattened", "Prior", "Layered", "Framed"))])
    options = ["--system", names, "--hidden", "5", "--flatness", "0.1,0.9", "--prior-votes", "1", "--kappa", "2"]
    result = call("--cache", str(rich), "--output", str(folder / "run"), *options)
    assert result.exit_code == 0, result.output
    return folder / "run"


def test_systems_of_a_file_compete_with_settings_of_their_own_which_are_columns_of_the_results(run: Path) -> None:
    rows = read_results(run)
    dev = {(row["system"], row["kappa"], row["flatness"], row["prior_votes"]) for row in rows if row["split"] == "dev"}
    priors = {(name, None, None, 1.0) for name in ("prior", "layered", "framed")}
    assert dev == {("amber2", 2.0, None, None), ("flattened", None, 0.1, None), ("flattened", None, 0.9, None), *priors}
    settings = read_settings(run)
    assert settings["systems"] == ["amber2", "flattened", "prior", "layered", "framed"]
    assert {"flatness", "prior_votes", "kappa", "hidden"} < set(settings["axes"])
    table = read_summary(run)["table"]
    assert {name: sorted(heads) for name, heads in table.items()} == {
        name: sorted(HEADS) for name in settings["systems"]
    }


def test_a_loss_is_all_that_a_system_of_stacked_heads_needs(run: Path) -> None:
    chosen = [row for row in read_results(run) if row["system"] == "flattened" and row["selected"]]
    predictions, features = read_predictions(run), {f.modality: f.values for f in cache_of(30).features}
    for row in (r for r in chosen if r["split"] == "test" and r["head"] == "fusion"):
        heads = read_heads(run / "heads" / f"flattened-fold{row['fold']}-seed{row['seed']}.safetensors")
        assert heads.origin["setting"]["flatness"] == row["flatness"]
        rows = np.flatnonzero(predictions.fold == row["fold"])
        places = [int(name[1:]) for name in predictions.id[rows]]
        for head, probs in heads.probs({m: torch.from_numpy(x[places]) for m, x in features.items()}).items():
            np.testing.assert_allclose(probs, predictions.probs[f"flattened/{head}"][row["seed"], rows], atol=1e-6)
    assert {row["system"] for row in read_curves(run)} == {"amber2", "flattened"}


def test_a_system_without_a_gradient_is_scored_as_any_other_and_keeps_what_it_found(run: Path, rich: Path) -> None:
    data = training_data(30)
    predictions = read_predictions(run)
    for fold in make_folds("session", data):
        votes = data.targets[fold.train].sum(0) + 1
        for seed, head in itertools.product((0, 1), HEADS):
            probs = predictions.probs[f"prior/{head}"][seed, predictions.fold == fold.number]
            np.testing.assert_allclose(probs, np.tile(votes / votes.sum(), (10, 1)), atol=1e-6)
        tensors, record = read_tensors(run / "heads" / f"prior-fold{fold.number}-seed1.safetensors")
        np.testing.assert_allclose(tensors["prior"], votes / votes.sum(), atol=1e-6)
        assert (record["system"], record["setting"]) == ("prior", {"prior_votes": 1.0})
        assert {row["epoch"] for row in read_results(run) if row["system"] == "prior"} <= {0, None}


def test_a_system_that_asks_for_layers_or_frames_is_handed_them(run: Path, rich: Path) -> None:
    audio, text = read_cache(rich).features
    assert text.frames is not None
    for fold in make_folds("session", training_data(30)):
        layers = read_tensors(run / "heads" / f"layered-fold{fold.number}-seed0.safetensors")[0]["layers"]
        np.testing.assert_array_equal(layers, audio.values[fold.train])
        held = read_tensors(run / "heads" / f"framed-fold{fold.number}-seed0.safetensors")[0]
        for k, row in enumerate(fold.train):
            frames = text.frames.values[text.frames.offsets[row] : text.frames.offsets[row + 1]]
            np.testing.assert_array_equal(held["frames"][k][held["valid"][k]], frames)


def refused(tmp_path: Path, system: str, *options: str) -> str:
    """The one line, with a cache that has neither layers nor frames."""
    (tmp_path / "caches").mkdir(exist_ok=True)
    cache = write_small_cache(tmp_path / "caches", count=30)
    result = call("--cache", str(cache), "--output", str(tmp_path / "run"), "--system", system, *options)
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("run*"))
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("system", "line"),
    [
        ("Layered", "layered reads all layers, and audio/audio-model has one: encode with extract-features --layers"),
        ("Framed", "framed reads frames, and text/text-model has none: encode with extract-features --frames"),
        (
            "Forgetful",
            "my_systems.py:Forgetful' gave 1 runs for 1 settings under 2 seeds: its fit must yield one",
        ),
        ("Nameless", "my_systems.py:Nameless': Nameless has no name; see docs/extend.md"),
        ("Mine", "my_systems.py has no class 'Mine', it has Flattened, Prior, Layered"),
        ("Elsewhere", "elsewhere is chosen by its head 'fusion', and has early, late alone"),
        ("Slashed", "its name 'my prior/1' is to be a word such as my-system"),
        ("Trebled", "trebled predicts by its head 'audio' what is no distribution: shares sum to one"),
        ("Narrow", "narrow predicts (10, 3) by its head 'audio', expected (utterances, classes) = (10, 4)"),
        ("Column", "Bad setting 'js' of a system: results.csv has such a column; rename it"),
        ("Switch", "Bad setting 'epochs' of a system: train-heads has an option of that name; rename it"),
        ("Scalar", "The loss of scalar is (), expected one number for each run, (seeds, settings) = (2, 1)"),
    ],
)
def test_what_a_system_cannot_have_or_is_not_is_one_line(tmp_path: Path, system: str, line: str) -> None:
    assert line in refused(tmp_path, f"{MINE}:{system}")


def test_settings_that_learn_different_targets_train_as_each_does_alone() -> None:
    data, system = fold(), system_of(f"{MINE}:Sharpened")
    settings = [system.Settings(hidden=5, lr=0.03, flatness=share) for share in (0.0, 0.8)]
    options = FitOptions(epochs=3)
    together = {one.setting: one for one in system.fit(data, settings, [0], options)}
    for setting in settings:
        (alone,) = system.fit(data, [setting], [0], options)
        assert together[setting].history == alone.history
    assert len({one.history.dev_js["fusion"][-1] for one in together.values()}) == 2


def test_heads_whose_outputs_a_system_alone_understands_do_not_predict_as_if_they_were_logits(tmp_path: Path) -> None:
    system = system_of(f"{MINE}:Sharpened")
    (one,) = system.fit(fold(), [system.Settings(hidden=5)], [0], FitOptions(epochs=1))
    origin = {"system": "sharpened", "setting": {}, "emotions": list("abcd"), "policy": {}, "features": {}}
    one.save(tmp_path / "heads.safetensors", origin)
    features = {name: torch.zeros(2, x.shape[-1]) for name, x in fold().train.features.items()}
    with pytest.raises(RunFolderError, match=r"sharpened predict through .*Sharpened.log_probs_of alone"):
        read_heads(tmp_path / "heads.safetensors").probs(features)


def test_a_file_that_is_not_there_or_does_not_load_is_one_line(tmp_path: Path) -> None:
    assert refused(tmp_path, f"{tmp_path}/none.py:Mine") == (
        f"Bad system: no file {tmp_path}/none.py; give path/to/my_system.py:MySystem"
    )
    (tmp_path / "broken.py").write_text("import torch\nraise ValueError('not yet\\nwritten')\n", encoding="utf-8")
    line = refused(tmp_path, f"{tmp_path}/broken.py:Mine")
    assert line == f"Cannot load the system of {tmp_path}/broken.py: ValueError: not yet"


def test_a_setting_of_ones_own_is_checked_as_ours_are_and_named_in_the_help(tmp_path: Path) -> None:
    system = f"{MINE}:Flattened"
    line = "Bad flatness 1, expected a number of at least 0 and below 1"
    assert refused(tmp_path, system, "--flatness", "1") == line
    shown = CliRunner().invoke(train_heads, ["--system", system, "--help"]).output
    assert f"Settings of {MINE}:Flattened" in " ".join(shown.split())
    assert "--flatness" in shown
    assert "Share of the uniform distribution in what is learnt." in " ".join(shown.split())
    assert "--flatness" not in CliRunner().invoke(train_heads, ["--help"]).output
    assert CliRunner().invoke(train_heads, ["--flatness", "0.5"]).exit_code == 2  # no such option


def test_two_systems_of_one_name_do_not_compete(tmp_path: Path) -> None:
    shutil.copyfile(MINE, tmp_path / "other.py")
    line = refused(tmp_path, f"{MINE}:Prior,{tmp_path}/other.py:Prior")
    assert line.endswith("expected a list of different ones")


def test_a_system_of_an_installed_package_goes_by_the_name_of_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(MINE, tmp_path / "their_systems.py")
    info = tmp_path / "their_systems-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-systems\nVersion: 1.0\n", encoding="utf-8")
    points = "[amber2.systems]\ntheir-prior = their_systems:Prior\nbroken = their_systems.nowhere:Prior\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    cache = write_small_cache(tmp_path, count=30)
    options = ["--system", "their-prior", "--prior-votes", "2"]
    result = call("--cache", str(cache), "--output", str(tmp_path / "run"), *options)
    assert result.exit_code == 0, result.output
    assert {(row["system"], row["prior_votes"]) for row in read_results(tmp_path / "run")} == {("prior", 2.0)}
    assert not (tmp_path / "run" / "curves.csv").exists()
    with pytest.raises(SettingError, match=r"^Cannot load the system 'broken' from their_systems\.nowhere:Prior: "):
        system_of("broken")
    with pytest.raises(SettingError, match=r"expected one of \['amber2', .*, 'their-prior', 'broken', 'path"):
        system_of("nowhere")
