"""A sweep that is ready to be trained: its device, its workers, and all that its results depend on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_data import cache_of, training_data, write_small_cache

from amber2_core.cache import write_cache
from amber2_core.errors import SettingError
from amber2_core.tables import texts
from amber2_train import tasks
from amber2_train.folds import make_folds
from amber2_train.options import Grid, TrainOptions
from amber2_train.request import Request, cores, identity, prepared, settings_record
from amber2_train.training_data import read_material


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_cache(tmp_path_factory.mktemp("caches"), count=30)


def request_of(cache: Path, device: str = "cpu", **options: Any) -> Request:
    """What `prepared` gives, without asking a worker for the device."""
    wanted = TrainOptions(**options)
    material = read_material(cache, wanted.modalities, wanted.policy, missing=wanted.missing)
    folds = make_folds(wanted.folds or "session", material.data)
    return Request(wanted, wanted.settings(), device, True, material, wanted.folds or "session", folds)


def test_the_device_is_the_one_that_is_there(cache: Path) -> None:
    assert prepared(cache, TrainOptions()).device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert prepared(cache, TrainOptions(device="cpu")).device == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_an_accelerator_that_is_not_there_is_refused(cache: Path) -> None:
    with pytest.raises(SettingError, match=r"Bad device 'cuda:0': torch finds no CUDA device here; use --device cpu"):
        prepared(cache, TrainOptions(device="cuda:0"))


def test_tensorfloat_is_refused_where_there_is_none(cache: Path) -> None:
    with pytest.raises(SettingError, match=r"^Bad precision 'tf32' on a CPU: only GPUs have it; use --precision fp32"):
        prepared(cache, TrainOptions(precision="tf32", device="cpu"))


def test_there_is_a_worker_for_every_core_but_not_for_more_than_there_are_tasks(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert cores() == 4
    several = request_of(cache, grid=Grid(seeds=5))
    assert len(several.tasks) >= 4
    assert several.workers == [1, 1, 1, 1]
    one_setting = request_of(cache, grid=Grid(systems=("cb-ce",), seeds=1))
    assert len(one_setting.tasks) == 3
    assert one_setting.workers == [1, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    assert one_setting.workers == [3, 3, 3]
    assert request_of(cache, "cuda").workers == [9]
    for unset in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", unset)
        assert cores() >= 1


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"grid": Grid(axes={"kappa": (2.0,)})}, "kappa"),
    ({"grid": Grid(systems=("amber2",))}, "system"),
    ({"grid": Grid(seeds=4)}, "seeds"),
    ({"grid": Grid(epochs=3)}, "epochs"),
    ({"inputs": "standardized"}, "inputs"),
    ({"missing": "mask"}, "missing"),
    ({"patience": 2}, "patience"),
    ({"precision": "bf16"}, "precision"),
    ({"score_all": True}, "score-all"),
    ({"policy": {"keep": "majority"}}, "policy"),
    ({"folds": "stratified"}, "folds"),
    ({"device": "cuda"}, "device"),
]


@pytest.mark.parametrize(("change", "name"), CHANGES, ids=[name for _, name in CHANGES])
def test_whatever_results_depend_on_is_part_of_a_sweeps_identity_by_its_name(
    cache: Path, change: dict[str, Any], name: str
) -> None:
    before, after = identity(request_of(cache)), identity(request_of(cache, **change))
    assert before[name] != after[name]
    assert identity(request_of(cache)) == before


def test_the_cache_is_known_by_its_contents_and_not_by_its_name(tmp_path: Path) -> None:
    def found(name: str, **changes: Any) -> dict[str, Any]:
        write_cache(tmp_path / name, replace(cache_of(30), **changes))
        return identity(request_of(tmp_path / name))

    whole = cache_of(30)
    audio, text = whole.features
    first = found("one.h5")
    assert found("two.h5") == first
    moved = text.values.copy()
    moved[29, 0] += 1e-3
    assert (
        found("other.h5", features=(audio, replace(text, values=moved)))["cache's contents"]
        != first["cache's contents"]
    )
    labels = np.roll(whole.ratings.label, 3)
    assert (
        found("votes.h5", ratings=replace(whole.ratings, label=labels))["cache's contents"] != first["cache's contents"]
    )
    other = found("recipe.h5", features=(audio, replace(text, recipe={"model": "another"})))
    assert other["features"] != first["features"]
    assert other["cache's contents"] == first["cache's contents"]


def test_a_system_of_a_users_own_file_is_known_by_what_the_file_says(cache: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    shutil.copyfile(Path(__file__).with_name("my_systems.py"), mine)
    grid = Grid(systems=("amber2", f"{mine}:Prior"))
    before = identity(request_of(cache, grid=grid))
    mine.write_text(mine.read_text(encoding="utf-8") + "# another thought\n", encoding="utf-8")
    after = identity(request_of(cache, grid=grid))
    assert {name for name in before if before[name] != after[name]} == {"file of a system"}


def test_how_tasks_are_cut_is_part_of_the_identity(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(request_of(cache))
    monkeypatch.setitem(tasks.RUNS, "cpu", 2)
    after = identity(request_of(cache))
    assert {name for name in before if before[name] != after[name]} == {"runs in a task"}


def test_workers_are_told_plain_values_of_every_setting(cache: Path, tmp_path: Path) -> None:
    asked = request_of(cache, grid=Grid(axes={"kappa": (2.0, 4.0)}))
    sweep = asked.sweep(tmp_path)
    assert [(reference, row.get("kappa")) for reference, row in sweep.settings] == [
        ("amber2", 2.0), ("amber2", 4.0), ("cb-ce", None),
    ]  # fmt: skip
    assert sweep.names == ("amber2", "amber2", "cb-ce")
    assert sweep.origin["emotions"] == list(training_data().emotions)
    assert sweep.origin["features"]["text"]["recipe"] == {"model": "text"}


def test_a_run_knows_its_data_by_ids_inputs_and_raw_votes_of_what_is_kept(tmp_path: Path) -> None:
    def record(**changes: Any) -> dict[str, Any]:
        write_cache(tmp_path / "cache.h5", replace(cache_of(30), **changes))
        return settings_record(request_of(tmp_path / "cache.h5"))

    def changed(**changes: Any) -> set[str]:
        now = record(**changes)
        assert (now["digest"] == first["digest"]) == (now["digests"] == first["digests"])
        return {name for name in first["digests"] if now["digests"][name] != first["digests"][name]}

    def with_word(column: Any, row: int, word: str) -> Any:
        return texts([word if k == row else old for k, old in enumerate(column)])

    whole, first = cache_of(30), record()
    audio, text = whole.features
    assert set(first["digests"]) == {"ids", "audio", "text", "votes"}
    assert len(first["digest"]) == 64
    assert changed() == set()
    assert changed(utterances=replace(whole.utterances, id=with_word(whole.utterances.id, 4, "u004b"))) == {"ids"}
    encoded_again = replace(text, inputs=with_word(text.inputs, 7, "f" * 64))
    assert changed(features=(audio, encoded_again)) == {"text"}
    # a vote is one whether it changes the target or not: another rater's, of another stimulus, outside the label space
    ratings = whole.ratings
    last = len(ratings) - 1
    for column, word in (("label", "bored"), ("rater", "somebody"), ("stimulus", "audio"), ("source", "self")):
        ticks = replace(ratings, **{column: with_word(getattr(ratings, column), last, word)})
        assert changed(ratings=ticks) == {"votes"}, column
    half = ratings.weight.copy()
    half[0] = 0.5
    assert changed(ratings=replace(ratings, weight=half)) == {"votes"}
    # what is not kept plays no part
    lost = replace(text, inputs=with_word(text.inputs, 3, ""), values=text.values.copy())
    lost.values[3] = np.nan
    without = record(features=(audio, lost))
    spoilt = replace(ratings, label=with_word(ratings.label, 9, "sad" if ratings.label[9] != "sad" else "happy"))
    assert ratings.utterance[9] == 3
    assert record(features=(audio, lost), ratings=spoilt)["digests"] == without["digests"]


def test_vectors_that_were_made_elsewhere_are_known_by_themselves(tmp_path: Path) -> None:
    cache = cache_of(30)
    audio, text = cache.features
    imported, found = replace(text, inputs=texts(["imported"] * 30)), []
    for step in (0.0, 0.0, 1.0):
        values = text.values.copy()
        values[5, 0] += step
        write_cache(tmp_path / "cache.h5", replace(cache, features=(audio, replace(imported, values=values))))
        found.append(settings_record(request_of(tmp_path / "cache.h5"))["digests"])
    assert found[0] == found[1]
    assert {name for name in found[0] if found[0][name] != found[2][name]} == {"text"}
